"""Small detectors that find what they are told to, in files as a run or others leave them, and commands refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import safetensors.numpy

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.detection.config import DetectConfig
from scratchvit.training.checkpoint import Checkpoint, save_checkpoint
from tests.support.detection_samples import coco, write_coco

SMALL = {
    "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "hidden_dim": 16, "nheads": 2, "enc_layers": 1, "dec_layers": 1,
    "dim_feedforward": 16, "num_queries": 3,
}


def refused(capsys, *argv):
    """The one sentence on stderr and the exit code of a command that is refused."""
    code = main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") == 1, error
    return error, code


def written(name):
    return json.loads(Path(name).read_text())


def detector(box, label, classes=2, **sizes):
    """A detr_tiny whose queries all find that box (cx, cy, w, h in 0 … 1) and label with a score of 0.9."""
    model = sv.create_model("detr_tiny", num_classes=classes, **SMALL, **sizes)
    state = model.state_dict()
    last = "bbox_embed.layers.2"
    state[f"{last}.weight"][:], state["class_embed.weight"][:] = 0, 0
    state[f"{last}.bias"][:] = np.log(np.array(box) / (1 - np.array(box)))
    state["class_embed.bias"][:] = np.log(0.1 / classes)
    state["class_embed.bias"][label] = np.log(0.9)
    model.load_state_dict(state)
    return model


def write_checkpoint(path, data, model, classes=("ant", "cat"), category_ids=(3, 7), **about):
    about = {
        "name": str(data), "classes": list(classes), "category_ids": list(category_ids), "mean": [0.5] * 3,
        "std": [0.25] * 3, "short_side": 0, "longest": 0, **about,
    }
    args = {**SMALL, "num_classes": model.config.num_classes}
    config = dataclasses.asdict(DetectConfig(data=str(data)))
    save_checkpoint(path, Checkpoint(config, "detr_tiny", args, about, {}, model.state_dict()))
    return path


def write_animals(root):
    """A data set of three parts, 4 pictures in each of 40 × 30, with an ant and a cat in each."""
    for part in ("train", "val", "test"):
        content = coco(4)
        for i, entry in enumerate(content["annotations"]):
            entry["bbox"] = [4 + i, 6, 10, 12]          # moves away from what is found
        write_coco(root / "animals", part, content)
    return root / "animals"


BOX = np.array([4, 6, 10, 12])      # left, top, width, height: what `write_trained` finds in every picture, a cat


def write_trained(path, animals):
    """A checkpoint of a run on those data."""
    return write_checkpoint(path, animals, detector(np.array([9, 12, 10, 12]) / (40, 30, 40, 30), label=1))


def write_weights(folder, preprocessing=None, **config):
    """A small detr_tiny that finds label 0 in the middle of every picture, with the files that say what it is."""
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(detector([0.5] * 4, 0).state_dict(), folder / "model.safetensors")
    described = {"architecture": "detr_tiny", "model_args": SMALL | {"img_size": 128}, **config}
    for name, content in (("config", described), ("preprocessor_config", preprocessing)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "model.safetensors"


# What a user's annotations may have wrong: how the file is spoilt, what is said, and what --skip-bad counts.
def _box(*numbers):
    return lambda content: content["annotations"][1].update(bbox=[*numbers])


BAD = [
    (_box(30, 3, 30, 8), "annotations[1] (id 101), 0.png: bbox [30, 3, 30, 8] extends 20 pixels beyond"),
    (_box(50, 3, 5, 8), "annotations[1] (id 101), 0.png: bbox [50, 3, 5, 8] lies outside its picture of 40 × 30"),
    (_box(20, 3, -5, 8), "annotations[1] (id 101), 0.png: bbox [20, 3, -5, 8] has reversed sides"),
    (lambda content: content["annotations"][1].update(category_id=8), "there is no category with the id 8"),
    (lambda content: content["annotations"][1].update(id=100), "(id 100) has the same id as annotations[0]"),
    (lambda content: content["images"][1].update(id=10), "images[1] (1.png) has the same id, 10, as 0.png"),
    (lambda content: content["images"][1].update(file_name="gone.png"), "there is no picture"),
]
