"""A classifier's weights as a detector's backbone: loaded, the rest fresh, and the maps those of the classifier."""

import re

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.detector import pixels_of
from scratchvit.detection.run_data import pixels_expected
from scratchvit.errors import ScratchvitError
from scratchvit.nn import FrozenBatchNorm2d
from scratchvit.training import TrainConfig, train
from scratchvit.training.checkpoint import load_checkpoint
from scratchvit.training.folder import read_config
from scratchvit.weights.backbone import BODY, options_of_resnet
from tests.support.data_samples import write_picture
from tests.support.detection_samples import coco, write_coco
from tests.support.margins import agree
from tests.support.peers import import_timm, import_torchvision, randomise
from tests.support.seeds import seeded

RESNET = {"layers": (1, 2, 1, 1), "channels": (8, 8, 16, 16), "bottleneck": False}
DETR = {"hidden_dim": 16, "nheads": 2, "enc_layers": 1, "dec_layers": 1, "dim_feedforward": 16, "num_queries": 3,
        "num_classes": 2}
TINY = ["--hidden-dim=16", "--nheads=2", "--enc-layers=1", "--dec-layers=1", "--dim-feedforward=16", "--epochs=1",
        "--num-queries=3", "--short-side=0", "--no-multi-scale", "--no-two-stage", "--denoising=0"]


def saved(path, state):
    np.savez(path, **state)
    return path


def classifier(**options):
    model = sv.create_model("resnet18", num_classes=7, seed=1, **RESNET | options)
    rng = seeded(0)
    state = {name: value + rng.uniform(0.1, 0.3, value.shape).astype(value.dtype)
             for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize(("detector", "options", "stages"), [
    ("detr_resnet18", {}, 4), ("detr_resnet18", {"stages": 3}, 3), ("dab_detr_tiny", {"two_stage": True}, 3),
    ("detr_resnet18", {"frozen_bn": False}, 4),
])
def test_the_backbone_is_loaded_and_the_rest_is_as_it_was(tmp_path, detector, options, stages):
    resnet = classifier()
    model = sv.create_model(detector, **DETR, **RESNET, **options)
    before = model.state_dict()
    report = sv.load_weights(model, saved(tmp_path / "resnet.npz", resnet.state_dict()))
    after, state = model.state_dict(), resnet.state_dict()
    assert report.as_drawn == [name for name in after if not name.startswith(BODY)]
    for name, value in after.items():
        expected = state[name.removeprefix(BODY)] if name.startswith(BODY) else before[name]
        assert np.array_equal(value, expected), name
    deeper = [name for name in state if stages == 3 and name.startswith("layer4.")]
    assert set(report.left_out) == {"fc.weight", "fc.bias", *deeper}
    assert "adapted: the weights of a classifier, to the backbone" in str(report)
    assert "not loaded, as initialised: " in str(report) and len(str(report).splitlines()) == 4


def test_the_maps_are_those_of_the_classifier(tmp_path):
    """With frozen batch norms: also in training mode."""
    resnet = classifier()
    model = sv.create_model("detr_resnet18", **DETR, **RESNET)
    sv.load_weights(model, saved(tmp_path / "resnet.npz", resnet.state_dict()))
    x = seeded(1).standard_normal((2, 3, 40, 56), dtype=np.float32)
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms and not any(name.startswith(f"{BODY}bn1") for name, _ in model.named_parameters())
    body = model.train().backbone[0].body
    agree(lambda: body(x)[-1], resnet.forward_features(sv.Tensor(x)).numpy())


def test_grey_classifiers_see_colours(tmp_path):
    state = classifier(in_chans=1).state_dict()
    model = sv.create_model("detr_resnet18", **DETR, **RESNET)
    report = sv.load_weights(model, saved(tmp_path / "resnet.npz", state))
    assert f"{BODY}conv1.weight: 1 → 3 input channels" in str(report)
    kernel = model.state_dict()[f"{BODY}conv1.weight"]
    assert np.allclose(kernel.sum(axis=1, keepdims=True), state["conv1.weight"], atol=1e-6)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"layers": (1, 1, 1, 1)}, r"create the model with layers=\(1, 1, 1, 1\), bottleneck=False, channels=\(8, 8, 16"),
    ({"bottleneck": True}, r"from a ResNet of another size, .* bottleneck=True"),
    ({"small_stem": True}, "its first kernel is 3×3, that of a backbone 7×7: use a classifier without small_stem"),
])
def test_another_backbone_is_told_with_the_way_out(tmp_path, options, sentence):
    path = saved(tmp_path / "resnet.npz", classifier(**options).state_dict())
    model = sv.create_model("detr_resnet18", **DETR, **RESNET)
    before = model.state_dict()
    with pytest.raises(ScratchvitError, match=sentence):
        sv.load_weights(model, path)
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_options_of_a_resnet():
    for name in ("resnet18", "resnet50"):
        model = sv.create_model(name)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        config = model.config
        assert options_of_resnet(shapes) == {
            "layers": config.layers, "bottleneck": config.bottleneck, "channels": config.channels, "frozen_bn": True,
        }
    assert options_of_resnet({name: shape for name, shape in shapes.items() if "layer3" not in name}) == {}
    assert options_of_resnet({"cls_token": (1, 1, 8)}) == {}


def test_the_normalisation_is_the_classifiers(tmp_path):
    config = '{"architecture": "resnet18.a1_in1k", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.3, 0.4]}}'
    assert pixels_of(tmp_path / "model.safetensors").mean == (0.485, 0.456, 0.406)
    (tmp_path / "config.json").write_text(config)
    assert pixels_expected("detr_resnet18", tmp_path / "model.safetensors") == ((0.5,) * 3, (0.2, 0.3, 0.4))


def animals(folder):
    for part in ("train", "val", "test"):
        write_coco(folder / "animals", part, coco(4))
    return folder / "animals"


@pytest.mark.slow
def test_a_run_of_a_classifier_begins_a_run_of_a_detector(tmp_path, monkeypatch, capsys):
    """Without --model the detector has the backbone of the file, and the run can be told again and resumed."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val", "test"):
        for name in ("ant", "bee"):
            for number in range(4):
                write_picture(tmp_path / "photos" / part / name / f"{number}.png")
    config = TrainConfig(data="photos", model="resnet18", model_args=RESNET | {"img_size": 32}, epochs=1, batch_size=4)
    train(config, "classifier", log=lambda line: None)
    words = ["detect-train", "--data", str(animals(tmp_path)), "--init", "classifier", *TINY]
    assert main([*words, "--out", "detector"]) == 0
    out = capsys.readouterr().out
    assert "weights   initialised from classifier" in out and "the weights of a classifier, to the backbone" in out
    trained, begun = load_checkpoint(tmp_path / "detector"), load_checkpoint(tmp_path / "classifier")
    assert trained.data["mean"] == begun.data["mean"]
    frozen = f"{BODY}layer1.0.bn1.running_mean"
    assert np.array_equal(trained.model[frozen], begun.model["layer1.0.bn1.running_mean"])
    model_args = read_config("detector", DetectConfig).model_args
    assert model_args["frozen_bn"] is True and tuple(model_args["layers"]) == RESNET["layers"]
    assert main(["detect-train", "--resume", "detector", "--epochs", "2"]) == 0
    words = [word for word in words if word not in ("--no-two-stage", "--denoising=0")]     # not of a plain DETR
    assert main([*words, "--model", "detr_resnet18", "--out", "other"]) == 1
    assert re.search(r"another backbone: create the model with layers=\(1, 2, 1, 1\)", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_published_resnets_become_backbones(tmp_path, monkeypatch, library, capsys):
    """The map of the last stage is the peer's, and `detect-train --init` takes the file as it is."""
    import_timm()
    import torch

    monkeypatch.chdir(tmp_path)
    make = import_torchvision().models.resnet18 if library == "torchvision" else lambda: import_timm().create_model(
        "resnet18"
    )
    peer = randomise(make())
    file = "resnet18-f37072fd.pth"
    torch.save(peer.state_dict() if library == "torchvision" else {"state_dict": peer.state_dict()}, file)
    model = sv.create_model("detr_resnet18", **DETR)
    sv.load_weights(model, file)
    x = seeded(1).standard_normal((1, 3, 64, 96), dtype=np.float32)
    stem = torch.nn.Sequential(*list(peer.children())[:-2])         # all before the pool and the head
    with torch.no_grad():
        expected = stem(torch.from_numpy(x)).numpy()
    body = model.backbone[0].body
    agree(lambda: body(x)[-1], expected)
    words = ["detect-train", "--data", str(animals(tmp_path)), "--init", file, *TINY]
    assert main([*words, "--out", "run"]) == 0
    assert "the weights of a classifier, to the backbone" in capsys.readouterr().out
    model_args = read_config("run", DetectConfig).model_args
    assert list(model_args["layers"]) == [2, 2, 2, 2] and model_args["bottleneck"] is False


def test_a_recipe_takes_the_preset_with_the_files_backbone(tmp_path, monkeypatch):
    from scratchvit.cli.detect_train import COMMAND

    path = saved(tmp_path / "resnet.npz", sv.create_model("resnet18").state_dict())
    config, _, _ = COMMAND.parse(["--recipe", "detect_finetune", "--data", "x", "--init", str(path)])
    assert config.model == "detr_resnet18" and config.model_args == {}
    config, _, _ = COMMAND.parse(["--recipe", "detect_finetune", "--data", "x", "--init", str(tmp_path / "none")])
    assert config.model == "detr_resnet50"
