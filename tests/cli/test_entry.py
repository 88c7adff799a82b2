"""--entry of the commands that open detectors and runs. (Those of classifiers: tests/weights/test_wrappers.py.)"""

import json

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.errors import ScratchvitError
from scratchvit.training.checkpoint import Checkpoint, model_from_checkpoint, save_checkpoint
from tests.support.detector_samples import SMALL, detector, refused, write_animals
from tests.support.weight_samples import tensors, torch_zip

BOX = (0.5, 0.5, 0.5, 0.5)


@pytest.fixture
def two(tmp_path):
    """A file with a detector that finds ants, and one that finds cats."""
    parts = {"model": detector(BOX, 0).state_dict(), "teacher": detector(BOX, 1).state_dict()}
    arrays = {f"{part}:{name}": value for part, state in parts.items() for name, value in state.items()}
    stored = tensors(arrays)
    saved = {part: {name: stored[f"{part}:{name}"] for name in state} for part, state in parts.items()}
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_zip(saved, {str(key): value.tobytes() for key, value in enumerate(arrays.values())}))
    config = {"architecture": "detr_tiny", "model_args": SMALL | {"num_classes": 2}, "label_names": ["ant", "cat"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return path


def test_detect_takes_the_entry_that_is_asked_for(two, tmp_path, capsys):
    animals = write_animals(tmp_path / "data")
    picture = next((animals / "test").glob("*.png"))
    for words, found in (([], "ant"), (["--entry", "teacher"], "cat")):
        assert main(["detect", str(picture), "--checkpoint", str(two), *words]) == 0
        out = capsys.readouterr().out
        assert f"entry: {'teacher' if words else 'model'} (also in the file" in out and f"  {found}" in out
    error, code = refused(capsys, "detect", picture, "--checkpoint", two, "--entry", "ema")
    assert "it has no entry 'ema'; it has model, teacher" in error and code == 1


def test_detect_eval_and_inspect_take_an_entry(two, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    animals = write_animals(tmp_path / "data")
    words = ["detect-eval", "--checkpoint", str(two), "--data", str(animals), "--entry", "teacher"]
    assert main(words) == 0
    assert "entry: teacher" in capsys.readouterr().out
    picture = next((animals / "test").glob("*.png"))
    assert main(["inspect", str(two), "--image", str(picture), "--entry", "teacher"]) == 0
    out = capsys.readouterr().out
    assert "entry: teacher" in out and " cat " in out and " ant " not in out


IGPT = {"img_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_colors": 8, "in_chans": 1}
VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1, "num_classes": 10, "in_chans": 1}


def write_run(folder, name, options, average=True):
    """The folder of a run on digits, whose averaged weights are not its weights."""
    plain, averaged = (sv.create_model(name, **options, seed=seed).state_dict() for seed in (1, 2))
    about = {"name": "digits", "classes": list("0123456789"), "image_shape": [8, 8, 1], "mean": [0.3], "std": [0.4]}
    config = {"data": "digits", "data_dir": None, "val_fraction": 0.1, "seed": 0, "skip_bad": False,
              "train_fraction": 0.1}
    folder.mkdir()
    save_checkpoint(folder / "best.safetensors", Checkpoint(
        config, name, options, about, {}, plain, averaged if average else {}
    ))
    return plain, averaged


@pytest.mark.parametrize(("command", "name", "options"), [
    ("eval --checkpoint run", "vit_tiny_patch16_224", VIT), ("probe run", "igpt_tiny", IGPT),
])
def test_the_entries_of_a_run(tmp_path, capsys, command, name, options):
    plain, averaged = write_run(tmp_path / "run", name, options)

    def printed(*words):
        assert main([*command.split(), *words]) == 0
        return capsys.readouterr().out

    usual = printed()
    assert printed("--entry", "ema") == usual != printed("--entry", "model")
    error, code = refused(capsys, *command.split(), "--entry", "teacher")
    assert "run has no entry 'teacher'; it has model and ema: choose one of these" in error and code == 1
    for entry, expected in (("model", plain), ("ema", averaged)):
        found = model_from_checkpoint("run", entry=entry)[0].state_dict()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_run_without_averaged_weights(tmp_path):
    write_run(tmp_path / "run", "vit_tiny_patch16_224", VIT, average=False)
    with pytest.raises(ScratchvitError, match="run has no entry 'ema'; it has model: choose one of these"):
        model_from_checkpoint("run", entry="ema")


def test_an_entry_without_a_file(capsys):
    for command in ("train", "detect-train"):
        error, code = refused(capsys, command, "--entry", "teacher", "--out", "x")
        assert "entry chooses one of the sets of weights in a file: name the file with init" in error and code == 1
