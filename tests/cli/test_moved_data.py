"""Commands that open a run elsewhere than where it was started, so that the path of its data leads nowhere."""

import dataclasses

import pytest

import scratchvit as sv
from scratchvit.detection.config import DetectConfig
from scratchvit.training import TrainConfig
from scratchvit.training.checkpoint import Checkpoint, save_checkpoint
from scratchvit.training.folder import RunFolder
from tests.support.detector_samples import detector, refused, write_checkpoint

VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1, "num_classes": 2, "in_chans": 3}


def write_runs(data):
    """The folders of a classifier's run and of a detector's on these data."""
    with RunFolder("run") as folder:
        folder.begin(config := TrainConfig(data=data, model_args={"img_size": 8}))
        weights = sv.create_model(config.model, **VIT).state_dict()
        about = {"name": data, "classes": ["cat", "dog"], "image_shape": [8, 8, 3], "mean": [0.5] * 3, "std": [1.0] * 3}
        save_checkpoint(folder.best, Checkpoint(dataclasses.asdict(config), config.model, VIT, about, {}, weights))
    with RunFolder("detector") as folder:
        folder.begin(DetectConfig(data=data, model="detr_tiny"))
        write_checkpoint(folder.best, data, detector([0.5] * 4, 1))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("command", "way_out"), [
    ("eval run", "name the data with --data FOLDER"),
    ("report run", "name the data with --data FOLDER"),
    ("detect-eval detector", "name the data with --data FOLDER"),
    ("report detector", "name the data with --data FOLDER"),
    ("train --resume run", "resume where it leads to them"),
    ("detect-train --resume detector", "resume where it leads to them"),
])
def test_the_path_of_the_data_is_explained(tmp_path, capsys, command, way_out, absolute):
    write_runs(str(tmp_path / "photos") if absolute else "photos")
    error, code = refused(capsys, *command.split())
    seen_from = "" if absolute else ", relative to the folder in which the run was started"
    assert "photos" in error and error.endswith(f". That is the path of the run's data{seen_from}: {way_out}\n")
    assert code == 1


@pytest.mark.parametrize(
    "command", ["eval run --data photos", "detect-eval detector --data photos", "train --data photos"]
)
def test_data_that_were_named_need_no_explanation(capsys, command):
    write_runs("elsewhere")
    error, code = refused(capsys, *command.split())
    assert "photos" in error and "the run's data" not in error and code == 1
