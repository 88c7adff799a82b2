"""load_weights: sizes adapted as timm does, everything else refused whole, and nothing half loaded."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.errors import ScratchvitError
from scratchvit.weights.fit import adapt_channels, fit, resize_patches, resize_positions
from scratchvit.weights.names import recognise
from tests.support import peers
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

NAME = "vit_tiny_patch16_224"
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def tiny(seed=0, name=NAME, **options):
    return sv.create_model(name, seed=seed, **{**TINY, **options})


@pytest.fixture
def saved(tmp_path):
    """Write tensors, or those of a model, into a file and return its path."""

    def save(tensors, file="model.safetensors"):
        tensors = tensors if isinstance(tensors, dict) else tensors.state_dict()
        safetensors.numpy.save_file({name: np.asarray(v, order="C") for name, v in tensors.items()}, tmp_path / file)
        return tmp_path / file

    return save


def assert_equal(model, state, but=()):
    for name, value in model.state_dict().items():
        assert name in but or np.array_equal(value, state[name]), name


# --- what fits ---


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_any_precision_loads_into_float32(device, saved, dtype):
    state = {name: value.astype(dtype) for name, value in tiny(seed=1).state_dict().items()}
    model = tiny()
    report = sv.load_weights(model, saved(state))
    assert str(report) == "names: timm"
    assert_equal(model, {name: value.astype(np.float32) for name, value in state.items()})
    assert model.head.weight.dtype == np.float32


def test_bfloat16_loads_exactly(saved, tmp_path):
    state = tiny(seed=1).state_dict()
    rounded = {name: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, value in state.items()}
    header, data = {}, b""
    for name, value in rounded.items():
        raw = (value.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (tmp_path / "bf16.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    model = tiny()
    sv.load_weights(model, tmp_path / "bf16.safetensors")
    assert_equal(model, rounded)


def test_the_file_is_not_touched_by_what_the_model_learns(saved):
    path = saved(tiny(seed=1))
    model = tiny()
    sv.load_weights(model, path)
    before = path.read_bytes()
    model.head.weight.data[...] = 0
    assert path.read_bytes() == before


def test_a_new_head_stays_as_it_was_drawn(saved):
    donor, model = tiny(seed=1, num_classes=1000), tiny()
    drawn = model.head.weight.numpy().copy()
    report = sv.load_weights(model, saved(donor), new_head=True)
    assert np.array_equal(model.head.weight.numpy(), drawn)
    assert_equal(model, donor.state_dict(), but=("head.weight", "head.bias"))
    assert "not loaded, as initialised: head.weight, head.bias" in str(report)


def test_a_new_head_is_new_even_if_the_file_has_as_many_classes(saved):
    model = tiny()
    drawn = model.head.weight.numpy().copy()
    sv.load_weights(model, saved(tiny(seed=1)), new_head=True)
    assert np.array_equal(model.head.weight.numpy(), drawn)


def test_both_heads_of_deit_are_new(saved):
    name = "deit_tiny_distilled_patch16_224"
    model = tiny(name=name)
    drawn = {key: model.state_dict()[key] for key in ("head.weight", "head_dist.weight")}
    sv.load_weights(model, saved(tiny(seed=1, name=name, num_classes=7)), new_head=True)
    assert all(np.array_equal(model.state_dict()[key], value) for key, value in drawn.items())


def test_a_model_without_a_head_has_no_use_for_one(saved):
    model = tiny(num_classes=0)
    report = sv.load_weights(model, saved(tiny(seed=1)))
    assert "not used: head.bias, head.weight" in str(report)


def test_counters_of_batch_norm_may_be_missing(saved):
    donor, model = sv.create_model("resnet18", seed=1), sv.create_model("resnet18")
    state = {name: value for name, value in donor.state_dict().items() if "num_batches" not in name}
    state["bn1.running_mean"] += 1
    sv.load_weights(model, saved(state))
    assert_equal(model, state, but={name for name in model.state_dict() if "num_batches" in name})


def test_a_backbone_takes_what_it_builds(saved):
    model = sv.create_model("resnet18", features_only=True, out_indices=(1, 2))
    donor = sv.create_model("resnet18", seed=1)
    report = sv.load_weights(model, saved(donor))
    assert_equal(model, donor.state_dict())
    assert "fc.weight" in report.left_out and "layer4.0.conv1.weight" in report.left_out


def test_a_frozen_norm_has_no_counter(saved):
    donor = sv.create_model("resnet18", seed=1)
    model = sv.create_model("resnet18", frozen_bn=True)
    sv.load_weights(model, saved(donor))
    assert_equal(model, donor.state_dict())


def test_computed_positions_need_none_from_the_file(saved):
    model = tiny(pos_embed="sincos")
    state = {**tiny(seed=1, pos_embed="sincos").state_dict(), "pos_embed": model.pos_embed.numpy()}
    assert "pos_embed" in sv.load_weights(model, saved(state)).left_out
    with pytest.raises(ScratchvitError, match=r'the file has a learned positional embedding.*pos_embed="learn"'):
        sv.load_weights(model, saved(tiny(seed=1)))


def test_a_patch_embedding_that_was_saved_as_a_matrix(saved):
    state = tiny(seed=1).state_dict()
    flat = {**state, "patch_embed.proj.weight": state["patch_embed.proj.weight"].reshape(24, -1)}
    model = tiny()
    sv.load_weights(model, saved(flat))
    assert_equal(model, state)


# --- adapting, by what it should mean ---


def test_channels_keep_their_sum():
    kernel = seeded(0).standard_normal((4, 3, 2, 2), dtype=np.float32)
    grey = adapt_channels(kernel, 1)
    whole = kernel.sum(axis=1, dtype=np.float64)
    assert_close(grey[:, 0], whole, ulps(np.abs(kernel).sum(axis=1), 2))
    six = adapt_channels(kernel, 6)
    assert_close(six.sum(axis=1, dtype=np.float64), whole, ulps(np.abs(kernel).sum(axis=1), 2))
    assert np.array_equal(six[:, 3:], kernel / 2)
    assert np.array_equal(adapt_channels(kernel, 2), kernel[:, :2] * np.float32(1.5))


@pytest.mark.parametrize(
    ("name", "kernel", "options"),
    [
        (NAME, "patch_embed.proj.weight", TINY),
        ("resnet18", "conv1.weight", {}),
        ("resnetv2_50x1_bit", "stem.conv.weight", {"layers": (1, 1, 1, 1)}),
        ("vit_tiny_r_s16_p8_224", "patch_embed.backbone.conv.weight", {"depth": 1, "img_size": 64}),
        ("vit_small_r26_s32_224", "patch_embed.backbone.stem.conv.weight",
         {"depth": 1, "layers": (1,), "img_size": 64}),
    ],
)
def test_every_familys_first_kernel_is_found(saved, name, kernel, options):
    donor = sv.create_model(name, seed=1, **options)
    model = sv.create_model(name, in_chans=1, **options)
    report = sv.load_weights(model, saved(donor))
    before = donor.state_dict()[kernel]
    expected = before.sum(axis=1, keepdims=True, dtype=np.float64)
    assert_close(model.state_dict()[kernel], expected, ulps(np.abs(before).sum(axis=1), 2))
    assert f"adapted: {kernel}: 3 → 1 input channels" in str(report)


def test_an_enlarged_patch_gets_the_same_answer():
    """FlexiViT's condition: ŵ answers to the enlarged patch as w did to the patch."""
    from scratchvit.ops import interpolate

    rng = seeded(0)
    kernel, patch = rng.standard_normal((5, 3, 4, 4)), rng.standard_normal((1, 3, 4, 4))
    larger = interpolate(sv.Tensor(patch), (8, 6), mode="bicubic", antialias=True).numpy()
    resized = resize_patches(kernel, (8, 6))
    rounded = ulps(np.abs(resized * larger).sum(axis=(1, 2, 3)), 1)                     # of the kernel, to float32
    assert_close((resized * larger).sum(axis=(1, 2, 3)), (kernel * patch).sum(axis=(1, 2, 3)), rounded)


def test_positions_at_another_size_are_in_the_same_order():
    y, x = np.meshgrid(np.linspace(0, 1, 8), np.linspace(0, 1, 8), indexing="ij")
    table = np.concatenate([[[9.0, 9.0]], np.stack([y, x], axis=-1).reshape(-1, 2)])[None]
    resized = resize_positions(table, (8, 8), (4, 16), prefix=1)
    assert resized.shape == (1, 65, 2) and np.array_equal(resized[0, 0], [9, 9])
    rows, columns = resized[0, 1:].reshape(4, 16, 2).transpose(2, 0, 1)
    assert (np.diff(rows, axis=0) > 0).all() and (np.diff(columns, axis=1) > 0).all()
    assert_close(rows, np.broadcast_to(rows[:, :1], rows.shape), ulps(rows, 2))
    assert_close(columns, np.broadcast_to(columns[:1], columns.shape), ulps(columns, 2))


def test_another_image_and_patch_size_at_once(saved):
    model = tiny(img_size=(40, 24), patch_size=8)
    report = sv.load_weights(model, saved(tiny(seed=1)))
    assert report.adapted == [
        "patch_embed.proj.weight: patches of 4×4 → 8×8",
        "pos_embed: a grid of 4×4 → 5×3",
    ]
    assert np.isfinite(model(np.zeros((1, 3, 40, 24), np.float32)).numpy()).all()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "pos_embed: a grid of 6×6 → 3×3"),       # nothing says otherwise
        ({"architecture": NAME, "pretrained_cfg": {"input_size": [3, 16, 36]}}, "pos_embed: a grid of 4×9 → 3×3"),
        ({"model_type": "vit", "image_size": [16, 36]}, "pos_embed: a grid of 4×9 → 3×3"),
    ],
    ids=["unknown", "timm", "Hugging Face"],
)
def test_the_configuration_tells_36_positions_as_4_by_9_from_6_by_6(saved, tmp_path, config, expected):
    path = saved(tiny(seed=1, img_size=(16, 36)))
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert sv.load_weights(tiny(img_size=12), path).adapted == [expected]


def test_a_table_of_the_models_own_length_is_left_alone(saved):
    donor, model = tiny(seed=1, img_size=(16, 36)), tiny(img_size=(16, 36))
    assert not sv.load_weights(model, saved(donor)).adapted
    assert_equal(model, donor.state_dict())


# --- what does not fit ---


@pytest.mark.parametrize(
    ("donor", "model", "cause"),
    [
        ({"num_classes": 7}, {},
         "its head has 7 classes, the model's 5: create the model with num_classes=7, or .*--new-head"),
        ({"num_classes": 0}, {}, "the file has no head: new_head=True"),
        ({"embed_dim": 32}, {}, "this file is from a model of another size: D = 32, the model has D = 24"),
        ({"depth": 3}, {}, "from a model of another size: 3 blocks, the model has 2"),
        ({"qkv_bias": False}, {}, "the model has biases of q, k and v, the file has none: .*qkv_bias=False"),
        ({"global_pool": "avg"}, {}, 'global_pool="avg": create this model with it too'),
        ({}, {"global_pool": "avg"}, 'global_pool="token": create this model with it too'),
        ({}, {"global_pool": "avg", "class_token": False}, "the file has a class token.*class_token=True"),
        ({"name": "deit_tiny_distilled_patch16_224"}, {}, "the file has a distillation token, the model has none"),
        ({}, {"name": "deit_tiny_distilled_patch16_224"}, "the model has a distillation token, the file has none"),
        ({"pos_embed": "sincos"}, {}, "the file has no positional embedding.*sincos"),
    ],
    ids=str,
)
def test_the_likely_cause_comes_first_and_nothing_is_loaded(saved, donor, model, cause):
    model = tiny(**model)
    before = model.state_dict()
    with pytest.raises(ScratchvitError, match=cause) as caught:
        sv.load_weights(model, saved(tiny(seed=1, **donor)))
    assert "nothing was loaded" in str(caught.value)
    assert_equal(model, before)


def test_everything_that_does_not_fit_is_named(saved):
    state = tiny(seed=1).state_dict()
    state["extra.weight"] = np.zeros(3, np.float32)
    state["blocks.1.mlp.fc1.bias"] = np.zeros(7, np.float32)
    del state["norm.bias"], state["blocks.0.attn.proj.weight"]
    model = tiny()
    before = model.state_dict()
    with pytest.raises(ScratchvitError) as caught:
        sv.load_weights(model, saved(state))
    text = str(caught.value)
    assert "model.safetensors" in text
    assert "missing: blocks.0.attn.proj.weight, norm.bias" in text
    assert "unexpected: extra.weight" in text
    assert "mis-shaped: blocks.1.mlp.fc1.bias (file (7,) → model (96,))" in text
    assert_equal(model, before)


def test_a_file_of_another_preset_is_recognised(saved):
    path = saved(sv.create_model("vit_tiny_patch16_224", num_classes=3))
    with pytest.raises(ScratchvitError, match="looks like vit_tiny_patch16_224: D = 192, the model has D = 24"):
        sv.load_weights(tiny(), path)
    with pytest.raises(ScratchvitError, match=r"unexpected: blocks\.3…11\.attn\.proj\.bias, ") as caught:
        sv.load_weights(sv.create_model("vit_tiny_patch16_224", depth=3), path)
    assert "looks like vit_tiny_patch16_224: 12 blocks, the model has 3" in str(caught.value)


def test_a_resnet_of_another_depth_is_recognised(saved):
    with pytest.raises(ScratchvitError, match=r"looks like resnet18\n"):
        sv.load_weights(sv.create_model("resnet34"), saved(sv.create_model("resnet18")))


def test_a_stranger_is_told_as_one(saved):
    with pytest.raises(ScratchvitError, match="no name matches the model's; the file has alpha, beta"):
        sv.load_weights(tiny(), saved({"alpha": np.zeros(1), "beta": np.zeros(1)}))


def test_a_head_on_a_hidden_layer_is_refused_but_for_a_new_one(saved):
    state = tiny(seed=1).state_dict() | {"pre_logits.fc.weight": np.eye(24, dtype=np.float32)}
    model = tiny()
    before = model.state_dict()
    with pytest.raises(ScratchvitError, match=r"follows a hidden layer \(pre_logits.fc.weight\).*--new-head"):
        sv.load_weights(model, saved(state))
    assert_equal(model, before)
    report = sv.load_weights(model, saved(state), new_head=True)
    assert "pre_logits.fc.weight" in report.left_out


@pytest.mark.parametrize("shape", [(), (1,), (1, 17), (1, 0, 24), (2, 17, 24), (1, 18, 24)])
def test_a_position_table_of_no_such_shape_is_refused(saved, shape):
    state = tiny(seed=1).state_dict() | {"pos_embed": np.zeros(shape, np.float32)}
    with pytest.raises(ScratchvitError, match=r"mis-shaped: pos_embed"):
        sv.load_weights(tiny(), saved(state))


@pytest.mark.parametrize(
    "shape", [(), (0,), (3,), (0, 0), (2, 3), (0, 3, 4, 4), (24, 0, 4, 4), (24, 3, 0, 4), (1,) * 5], ids=str
)
@pytest.mark.parametrize("options", [{}, {"img_size": 24, "patch_size": 8, "in_chans": 1}], ids=["same", "adapted"])
def test_any_tensor_of_a_wrong_shape_is_refused_with_a_sentence(options, shape):
    model, state = tiny(**options), tiny(seed=1).state_dict()
    for name in state:
        weights = state | {name: np.zeros(shape, np.float32)}
        with pytest.raises(ScratchvitError, match=rf"mis-shaped: .*{re.escape(name)} \(file {re.escape(str(shape))}"):
            fit(model, recognise(weights).rename(weights), img_size=(16, 16))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ScratchvitError, match=r"nowhere\.pth"):
        sv.load_weights(tiny(), tmp_path / "nowhere.pth")


# --- timm's own functions ---


def of_places(resized, *sizes):
    """The bound where PyTorch finds the places that it resizes from in float32, numbers up to the longest side."""
    return ulps(resized, 4 * max(max(size) for size in sizes))


@pytest.mark.parity
@pytest.mark.parametrize(("before", "after"), [((14, 14), (24, 24)), ((14, 14), (7, 10)), ((4, 9), (6, 6))])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_positions_are_resized_as_timm_does(before, after, prefix):
    peers.import_timm()
    import torch
    from timm.layers import resample_abs_pos_embed

    table = seeded(0).standard_normal((1, prefix + before[0] * before[1], 32), dtype=np.float32)
    theirs = resample_abs_pos_embed(torch.from_numpy(table), after, before, num_prefix_tokens=prefix).numpy()
    assert_close(resize_positions(table, before, after, prefix), theirs, of_places(theirs, before, after))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("before", "after"), [((16, 16), (32, 32)), ((16, 16), (8, 8)), ((16, 16), (14, 12)), ((4, 8), (6, 6))]
)
def test_patch_kernels_are_resized_as_timm_does(before, after):
    peers.import_timm()
    import torch
    from timm.layers import resample_patch_embed

    kernel = seeded(0).standard_normal((8, 3, *before), dtype=np.float32)
    theirs = resample_patch_embed(torch.from_numpy(kernel), after).numpy()
    assert_close(resize_patches(kernel, after), theirs, of_places(theirs, before, after))


@pytest.mark.parity
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_channels_are_adapted_as_timm_does(channels):
    peers.import_timm()
    import torch
    from timm.models import adapt_input_conv

    kernel = seeded(0).standard_normal((8, 3, 5, 5), dtype=np.float32)
    theirs = adapt_input_conv(channels, torch.from_numpy(kernel)).numpy()
    assert_close(adapt_channels(kernel, channels), theirs, ulps(theirs, 2))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("options", "more"),
    [({"img_size": 96}, {}), ({"img_size": (96, 64)}, {}), ({"img_size": 64, "patch_size": 8}, {"in_chans": 1})],
    ids=str,
)
def test_a_whole_model_is_adapted_as_timm_does(options, more, tmp_path):
    timm = peers.import_timm()
    import torch

    donor = peers.randomise(timm.create_model(NAME, depth=1, img_size=64))
    torch.save(donor.state_dict(), tmp_path / "model.pth")
    peer = timm.create_model(
        NAME, depth=1, pretrained=True, **options, **more,
        pretrained_cfg_overlay={"file": str(tmp_path / "model.pth"), "input_size": (3, 64, 64), "custom_load": False},
    )
    model = sv.create_model(NAME, depth=1, **options, **more)
    report = sv.load_weights(model, tmp_path / "model.pth")
    assert report.adapted
    for name, value in peer.state_dict().items():
        assert_close(model.state_dict()[name], value, of_places(value, (16, 16)), name)
