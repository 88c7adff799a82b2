"""--precision of commands that run a trained model: the numbers are those of the model inside `autocast`."""

import dataclasses
import json

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import data, ops
from scratchvit.cli import main
from scratchvit.detection.data.source import load_detection
from scratchvit.detection.detector import open_detector
from scratchvit.recording import no_grad
from scratchvit.training.checkpoint import Checkpoint, model_from_checkpoint, save_checkpoint
from scratchvit.training.config import TrainConfig
from tests.support.data_samples import write_image_folder
from tests.support.detector_samples import refused, written
from tests.support.seeds import seeded

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3, "in_chans": 3}
NAME = "vit_tiny_patch16_224"
ROUNDED = "on a CPU, float32 is rounded to it, which is not faster but slower"
HALVES = [("bf16", "bfloat16"), ("fp16", "float16")]


@pytest.fixture
def run(tmp_path):
    """A run whose classifier is random, and the pictures that it is said to be trained on."""
    photos = write_image_folder(tmp_path / "photos", per_class=4)
    classes = sorted(path.name for path in (photos / "train").iterdir())
    about = {"name": "photos", "classes": classes, "image_shape": [8, 8, 3], "mean": [0.4] * 3, "std": [0.2] * 3}
    options = TINY | {"num_classes": len(classes)}
    config = dataclasses.asdict(TrainConfig(data=str(photos)))
    weights = sv.create_model(NAME, **options, seed=3).state_dict()
    weights["head.weight"] = seeded(0).standard_normal(weights["head.weight"].shape).astype(np.float32)     # 0 at first
    save_checkpoint(tmp_path / "best.safetensors", Checkpoint(config, NAME, options, about, {}, weights))
    return tmp_path / "best.safetensors"


def said_by(capsys, *words):
    """What a command prints, in one line, and the results that --json prints."""
    assert main([*map(str, words), "--json"]) == 0
    out = capsys.readouterr().out
    return " ".join(out.split()), json.loads(out.splitlines()[-1])


def logits_of(run, precision, images):
    model, _ = model_from_checkpoint(run)
    with no_grad(), sv.autocast(precision):
        return ops.to_float32(model(images))


@pytest.mark.parametrize(("precision", "dtype"), HALVES)
def test_predict(run, tmp_path, capsys, precision, dtype):
    files = sorted((tmp_path / "photos" / "train").rglob("*.png"))
    out, found = said_by(capsys, "predict", run, *files, "--precision", precision)
    assert f"precision {precision}: activations and products in {dtype}, weights in float32; {ROUNDED}" in out
    assert found["precision"] == precision
    normalize = data.Normalize([0.4] * 3, [0.2] * 3)
    images = np.stack([normalize(data.load_image(path, 8, 3)[None])[0] for path in files])
    expected = logits_of(run, dtype, images).softmax(-1).numpy().max(axis=1)
    probabilities = [one["classes"][0]["probability"] for one in found["pictures"]]
    np.testing.assert_array_equal(np.array(probabilities, np.float32), expected)
    in_full = logits_of(run, "float32", images).softmax(-1).numpy().max(axis=1)
    assert 0 < np.abs(expected - in_full).max() < 0.05


@pytest.mark.parametrize(("precision", "dtype"), HALVES)
def test_eval(run, tmp_path, capsys, precision, dtype):
    words = ["eval", run, "--data", tmp_path / "photos", "--split", "train"]
    out, found = said_by(capsys, *words, "--precision", precision)
    assert f"precision {precision}: activations and products in {dtype}" in out and ROUNDED in out
    in_full_out, in_full = said_by(capsys, *words)
    assert "precision float32" not in in_full_out
    assert (found["precision"], in_full["precision"]) == (precision, "float32")
    assert 0 < abs(found["loss"] - in_full["loss"]) < 0.05
    assert sv.autocast_dtype() == "float32"


def found_in(animals, trained, precision):
    """The scores of a detector in its test pictures, inside `autocast`."""
    detector, pictures = open_detector(trained), load_detection(str(animals)).test
    with sv.autocast(precision):
        found, _ = detector.in_dataset(pictures, 2)
    return np.concatenate([one["scores"] for one in found])


def test_detect_and_detect_eval(animals, trained, capsys):
    rough = found_in(animals, trained, "bfloat16")
    assert 0 < np.abs(rough - found_in(animals, trained, "float32")).max() < 0.05
    words = ["--checkpoint", str(trained), "--batch-size", "2", "--precision", "bf16"]
    assert main(["detect-eval", *words, "--results", "found.json"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "precision bf16: activations and products in bfloat16" in out and ROUNDED in out
    np.testing.assert_array_equal(np.array([one["score"] for one in written("found.json")], np.float32), rough)

    pictures = [*map(str, sorted((animals / "test").iterdir()))]
    assert main(["detect", *words, "--threshold", "0", "--json", "all.json", *pictures]) == 0
    assert "precision bf16" in " ".join(capsys.readouterr().out.split())
    np.testing.assert_array_equal(np.array([one["score"] for one in written("all.json")], np.float32), rough)
    assert main(["detect-eval", "--checkpoint", str(trained)]) == 0
    assert "precision bf16" not in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["eval", "predict", "detect", "detect-eval"])
def test_a_device_without_this_precision(command, capsys):
    """Before weights are read."""
    picture = () if "eval" in command else ("a.png",)
    error, code = refused(capsys, command, "run", *picture, "--precision", "tf32")
    assert code == 1 and "tf32 is about matrix products on GPUs" in error and "--device gpu" in error
