"""`scratchvit export`: what is written loads here again, and timm builds from it a model that answers alike."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.models import model_config
from scratchvit.training import train
from scratchvit.training.checkpoint import load_checkpoint
from scratchvit.weights import model_from_weights
from scratchvit.weights.export import _FAMILIES, _NOT_IN_TIMM, export
from scratchvit.weights.preprocess import Preprocessing, preprocessing_for
from tests.support import peers
from tests.support.margins import assert_close, rounding, ulps
from tests.support.model_parity import assert_same_model, full_size
from tests.support.runs import CONFIG
from tests.support.seeds import seeded

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
SMALL = {"depth": 2, "num_classes": 5}
IMAGES = Preprocessing((16, 16), 0.9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))

MODELS = {
    "as it is": ("vit_tiny_patch16_224", SMALL),
    "sizes": ("vit_tiny_patch16_224", TINY),
    "not square": ("vit_tiny_patch16_224", {**TINY, "img_size": (16, 24), "patch_size": (4, 8)}),
    "averaged, no class token": ("vit_tiny_patch16_224", {**TINY, "global_pool": "avg", "class_token": False}),
    "averaged": ("vit_tiny_patch16_224", {**TINY, "global_pool": "avg", "qkv_bias": False}),
    "computed positions": ("vit_tiny_patch16_224", {**TINY, "pos_embed": "sincos", "weight_init": "xavier"}),
    "grey, dropped": ("vit_small_patch32_224", {**SMALL, "in_chans": 1, "drop_path_rate": 0.1, "img_size": 64}),
    "a size that timm lacks": ("vit_tiny_patch14_224", {**SMALL, "img_size": 56}),
    "without a head": ("vit_tiny_patch16_224", {**TINY, "num_classes": 0}),
    "distilled": ("deit_tiny_distilled_patch16_224", TINY),
    "hybrid": ("vit_tiny_r_s16_p8_224", {**SMALL, "img_size": 64}),
    "hybrid with stages": ("vit_small_r26_s32_224", {**SMALL, "img_size": 64}),
    "ResNet": ("resnet18", {"num_classes": 5}),
    "ResNet, other stages": ("resnet18", {"num_classes": 5, "layers": (1, 1, 2, 1), "frozen_bn": True}),
    "ResNet, other widths": ("resnet18", {"num_classes": 5, "layers": (1, 1, 1, 1), "channels": (16, 24, 32, 40)}),
    "BiT": ("resnetv2_50x1_bit", {"num_classes": 5, "in_chans": 1}),
}
LARGE = ("hybrid with stages", "BiT")


def built(case):
    """A model with no tensor that is all zeros or ones, and images for it."""
    name, options = MODELS[case]
    model = sv.create_model(name, **options)
    rng = seeded(0)
    state = {}
    for key, value in model.state_dict().items():
        noise = (0.1 if value.ndim < 2 else 0.02) * rng.standard_normal(value.shape).astype(np.float32)
        state[key] = abs(value + noise) if key.endswith("running_var") else value + noise
        state[key] = state[key].astype(value.dtype)
    model.load_state_dict(state)
    H, W = (64, 64) if name.startswith("resnet") else model.patch_embed.img_size
    return name, model.eval(), rng.standard_normal((1, model.config.in_chans, H, W), dtype=np.float32)


def config_in(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS)
def test_what_is_exported_loads_here_again(case, tmp_path):
    name, model, x = built(case)
    export(model, name, tmp_path, preprocessing_for(name, None, model.config.img_size, model.config.in_chans))
    loaded, _ = model_from_weights(tmp_path / "model.safetensors")
    assert_close(loaded(x), model(x), rounding(lambda: model(x), samples=1)[""])


def test_the_configuration_says_what_the_model_is_and_sees(tmp_path):
    name, model, _ = built("sizes")
    export(model, name, tmp_path, IMAGES, ["ant", "bee", "cat", "dog", "eel"])
    assert config_in(tmp_path) == {
        "architecture": name,
        "num_classes": 5,
        "num_features": 24,
        "global_pool": "token",
        "label_names": ["ant", "bee", "cat", "dog", "eel"],
        "model_args": TINY,
        "pretrained_cfg": {
            **IMAGES.to_timm(), "fixed_input_size": True, "num_classes": 5, "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    assert preprocessing_for(name, tmp_path) == IMAGES
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}      # without which transformers refuses a file


def test_what_timm_cannot_build_is_refused_before_anything_is_written(tmp_path):
    for name, options, text in (
        ("vit_base_r50_s16_224", {"layers": (1, 1), "depth": 1, "embed_dim": 24, "num_heads": 2}, r"layers=\(1, 1\)"),
        ("resnet18", {"small_stem": True}, "small_stem=True"),
        ("resnetv2_50x1_bit", {"layers": (1, 1, 1, 1)}, "none of its functions builds one"),
    ):
        with pytest.raises(ScratchvitError, match=text):
            export(sv.create_model(name, **options), name, tmp_path / "out", IMAGES)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    name, model, _ = built("sizes")
    with pytest.raises(ScratchvitError, match=r"file[/\\]out cannot be created"):
        export(model, name, tmp_path / "file" / "out", IMAGES)


# --- the command ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(dataclasses.replace(CONFIG, epochs=1, ema_decay=0.5), folder)
    return folder


def test_a_run_is_exported_with_its_averaged_weights(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out" / "config.json") in capsys.readouterr().out
    checkpoint = load_checkpoint(run)
    state = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(state[key], value) for key, value in checkpoint.ema.items())
    config = config_in(tmp_path / "out")
    assert config["label_names"] == [str(digit) for digit in range(10)]
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert config["pretrained_cfg"]["mean"] == checkpoint.data["mean"]
    assert config["pretrained_cfg"]["crop_pct"] == 1


def test_a_run_is_a_source_for_fine_tuning(run):
    checkpoint = load_checkpoint(run)
    model = sv.create_model(checkpoint.model_name, **checkpoint.model_args)
    assert str(sv.load_weights(model, run / "last.safetensors")) == "names: scratchvit train"
    last = load_checkpoint(run / "last.safetensors").ema
    assert all(np.array_equal(last[key], value) for key, value in model.state_dict().items())


def test_anybodys_weights_are_exported(tmp_path, capsys):
    name, model, _ = built("sizes")
    named = {f"module.{key}": value for key, value in model.state_dict().items()}
    safetensors.numpy.save_file(named, tmp_path / "theirs.safetensors")
    weights = ["export", "--weights", str(tmp_path / "theirs.safetensors"), "--out", str(tmp_path / "out")]
    assert main(weights) == 1
    assert "name the model: --model" in capsys.readouterr().err
    export(model, name, tmp_path / "first", IMAGES, list("abcde"))
    assert main(["export", "--weights", str(tmp_path / "first"), "--out", str(tmp_path / "again")]) == 0
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()


def test_what_is_there_already_is_kept(tmp_path, capsys):
    """Into the folder of the weights themselves, it would replace what was never saved elsewhere."""
    name, model, _ = built("sizes")
    export(model, name, tmp_path, IMAGES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["export", "--weights", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "model.safetensors already exists: choose another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failure_leaves_no_half(tmp_path, monkeypatch):
    name, model, _ = built("sizes")

    def full(path, content):
        if path.name == "config.json":
            raise ScratchvitError("the disk is full")
        write_atomically(path, content)

    monkeypatch.setattr("scratchvit.weights.export.write_atomically", full)
    with pytest.raises(ScratchvitError, match="full"):
        export(model, name, tmp_path / "out", IMAGES)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("argv", "text"),
    [(["--out", "x"], "name either a checkpoint or"), (["a", "--weights", "b", "--out", "x"], "name either"),
     (["a", "--model", "vit", "--out", "x"], "--model is only for --weights"), (["a"], "--out")],
)
def test_bad_usage(argv, text, capsys):
    assert main(["export", *argv]) == 2
    assert text in capsys.readouterr().err


# --- timm ---


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("case", [full_size(case) if case in LARGE else case for case in MODELS])
def test_timm_builds_it_strictly_and_answers_alike(case, tmp_path):
    timm = peers.import_timm()
    name, model, x = built(case)
    export(model, name, tmp_path, preprocessing_for(name, None, model.config.img_size, model.config.in_chans))
    config = config_in(tmp_path)
    built_by_hand = timm.create_model(
        config["architecture"], checkpoint_path=tmp_path / "model.safetensors", **config.get("model_args", {})
    )
    from_the_folder = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    for peer in (built_by_hand, from_the_folder):
        assert_same_model(model, peer, x, gradients=False)
    data = timm.data.resolve_model_data_config(from_the_folder)
    expected = preprocessing_for(config["architecture"], tmp_path).to_timm()
    assert {key: list(data[key]) if isinstance(data[key], tuple) else data[key] for key in expected} == expected


@pytest.mark.parity
def test_the_models_that_timm_lacks_are_those_listed():
    in_timm = set(peers.import_timm().list_models())
    ours = [name for name in sv.list_models() if type(model_config(name)) in _FAMILIES]
    assert {name for name in ours if name not in in_timm} == _NOT_IN_TIMM


@pytest.mark.parity
def test_timm_gives_it_another_head_and_other_channels(tmp_path):
    timm = peers.import_timm()
    name, model, _ = built("ResNet")
    export(model, name, tmp_path, preprocessing_for(name))
    peer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1)
    assert peer.fc.weight.shape[0] == 3
    kernel = model.conv1.weight.numpy()
    expected = kernel.sum(axis=1, keepdims=True, dtype=np.float64)
    assert_close(peer.conv1.weight, expected, ulps(np.abs(kernel).sum(axis=1), 2))
