"""Weight files as PyTorch, timm and safetensors write them: read without PyTorch, and equal to what PyTorch reads."""

import argparse
import zipfile

import numpy as np
import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import DTYPES
from scratchvit.weights.files import read_weights
from tests.support.peers import import_timm
from tests.support.seeds import moved

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def numbers(tensor):
    """What a tensor must become."""
    tensor = tensor.detach()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def is_equal(found, expected):
    return list(found) == list(expected) and all(
        found[name].dtype == numbers(value).dtype
        and found[name].shape == tuple(value.shape)
        and np.array_equal(found[name], numbers(value))
        for name, value in expected.items()
    )


def assorted(torch):
    base = torch.arange(24.0).reshape(4, 6)
    weights = {
        "base": base, "transposed": base.t(), "row": base[1], "strided": base[::2, 1::2],
        "expanded": base[:1].expand(3, 6),
        "parameter": torch.nn.Parameter(base + 1), "scalar": torch.tensor(3), "empty": torch.zeros(0, 4),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    return weights | {name: base.sub(2).abs().to(getattr(torch, name)) for name in DTYPES}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor(tmp_path, torch, zipped, protocol):
    weights, path = assorted(torch), tmp_path / "weights.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_weights(path)
    assert is_equal(found, weights)
    assert np.shares_memory(found["base"], found["transposed"]) and np.shares_memory(found["base"], found["strided"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint(tmp_path, torch, zipped):
    torch.manual_seed(moved(0))
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    assert state._metadata                      # an attribute of the OrderedDict, in the file as a BUILD
    checkpoint = {
        "model": {f"module.{name}": value for name, value in state.items()},
        "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.5, "best": np.float64(0.75), "seen": {1, 2},
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3]).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": argparse.Namespace(lr=1e-3, device=torch.device("cuda", 0), dtype=torch.float16, size=torch.Size([2])),
        "numpy_rng": np.random.RandomState(0).get_state(), "rng": torch.get_rng_state(),
        "arrays": [np.zeros((0, 3)), np.asfortranarray(np.ones((2, 3), np.float32)), np.arange(3, dtype=">i2")],
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    assert is_equal(read_weights(path), state)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert is_equal(read_weights(path), state)


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize(
    "keys",
    [
        (), ("state_dict",), ("model",), ("state_dict", "model"), ("state_dict", "state_dict_ema"),
        ("model", "model_ema"), ("model", "state_dict", "model_ema", "state_dict_ema"),
    ],
)
def test_the_same_state_dict_is_chosen_as_by_timm(tmp_path, torch, keys, use_ema):
    import_timm()
    from timm.models import load_state_dict

    path = tmp_path / "checkpoint.pth"
    choices = {key: {"module.w": torch.full((2,), float(i))} for i, key in enumerate(keys)}
    torch.save(choices or {"module.w": torch.zeros(2)}, path)
    assert is_equal(read_weights(path, use_ema=use_ema), load_state_dict(str(path), use_ema=use_ema))


def test_the_weights_of_a_vit(tmp_path, torch):
    state = import_timm().create_model("test_vit").state_dict()
    save_file = pytest.importorskip("safetensors.torch").save_file
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "numpy.npz", **{name: value.numpy() for name, value in state.items()})
    save_file(state, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        found = read_weights(path)
        assert is_equal({name: found[name] for name in state}, state) and len(found) == len(state), path.name


def test_safetensors_with_bfloat16_and_metadata(tmp_path, torch):
    save_file = pytest.importorskip("safetensors.torch").save_file
    weights = {name: value.contiguous() for name, value in assorted(torch).items() if name not in ("row", "base")}
    weights = {name: value.detach().clone() for name, value in weights.items()}
    save_file(weights, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = read_weights(tmp_path / "w.safetensors")
    assert is_equal({name: found[name] for name in weights}, weights)
    save_file({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    with pytest.raises(ScratchvitError, match="'w' is of type 'F8_E4M3'"):
        read_weights(tmp_path / "w.safetensors")


REFUSED = {
    "complex": (lambda torch: torch.ones(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
    "sparse": (lambda torch: torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    "quantised": (
        lambda torch: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "torch._utils._rebuild_qtensor"
    ),
    "meta": (lambda torch: torch.ones(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
    "8 bits": (lambda torch: torch.zeros(2, dtype=torch.float8_e5m2), "torch.float8_e5m2"),
}
STORED = ("complex", "quantised")       # a legacy file says how large a storage is only by its type


@pytest.mark.filterwarnings("ignore")           # PyTorch's own, of deprecated kinds of tensors
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", REFUSED)
def test_other_tensors_are_refused_by_name_among_the_weights_and_only_there(tmp_path, torch, kind, zipped):
    make, name = REFUSED[kind]
    weights = {"w": torch.ones(2)}
    torch.save({"model": weights | {"x": make(torch)}}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ScratchvitError, match=f"{name}|torch.QInt8Storage.* only real dense tensors .* to safetensors"):
        read_weights(tmp_path / "w.pth")
    torch.save({"model": weights, "x": make(torch)}, tmp_path / "v.pth", _use_new_zipfile_serialization=zipped)
    if zipped or kind not in STORED:
        assert is_equal(read_weights(tmp_path / "v.pth"), weights)
    else:
        with pytest.raises(ScratchvitError, match="only real dense tensors are read"):
            read_weights(tmp_path / "v.pth")


@pytest.mark.filterwarnings("ignore")           # torch.jit is deprecated
def test_torchscript_is_refused(tmp_path, torch):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "w.pt")
    with pytest.raises(ScratchvitError, match="TorchScript"):
        read_weights(tmp_path / "w.pt")


def test_a_flipped_bit_in_a_file_of_torch(tmp_path, torch):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.arange(1000.0)}, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(1000, dtype=np.float32).tobytes()) + 1234] ^= 16
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["w"].shape == (1000,)       # PyTorch does not notice
    with pytest.raises(ScratchvitError, match="the checksum of its entry 'w/data/0' is wrong"):
        read_weights(path)
