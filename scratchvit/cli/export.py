"""`scratchvit export`: writes a model in timm's format, a folder with model.safetensors and config.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scratchvit import backend
from scratchvit.cli._options import Parser
from scratchvit.cli._text import filled
from scratchvit.cli._weights import add_entry
from scratchvit.data.images import MODES
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_classifies
from scratchvit.training.checkpoint import model_from_checkpoint
from scratchvit.weights.export import differs_in_timm
from scratchvit.weights.export import export as write
from scratchvit.weights.labels import class_names
from scratchvit.weights.load import open_model
from scratchvit.weights.preprocess import Preprocessing, preprocessing_for
from scratchvit.weights.pretrained import run_or_trained


def export(argv: Sequence[str]) -> int:
    """Write a model's weights and configuration in timm's format."""
    parser = Parser(
        prog="scratchvit export", usage="scratchvit export RUN --out DIR [options]",
        description="Write DIR/model.safetensors and DIR/config.json in timm's format, so that timm can load the\n"
        "model:\n  timm.create_model('local-dir:DIR', pretrained=True)\n\n"
        "  scratchvit export runs/NAME --out mine\n"
        "  scratchvit export --model vit_base_patch16_224 --weights B_16.npz --out mine",
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, metavar="RUN",
        help="a run folder of `scratchvit train`, a checkpoint in it, or the name of a trained model (`scratchvit "
        "models --trained`)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="output folder; created if it does not exist"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="third-party weights, instead of a checkpoint")
    parser.add_argument(
        "--model", metavar="NAME", help="with --weights: name of the model (default: read from config.json)"
    )
    add_entry(parser)
    given = parser.parse_strictly(argv)
    if (given.checkpoint is None) == (given.weights is None):
        parser.error("name either a checkpoint or --weights FILE")
    if given.checkpoint is not None and given.model is not None:
        parser.error("--model is only for --weights: a checkpoint says which model it is")

    backend.use("cpu")
    model: Any
    if given.checkpoint is not None:
        model, checkpoint = model_from_checkpoint(run_or_trained(given.checkpoint), entry=given.entry)
        name, about = checkpoint.model_name, checkpoint.data
        check_classifies(name, model.config)
        height, width, channels = about["image_shape"]
        if channels not in MODES:
            raise ScratchvitError(
                f"{name} takes images of {channels} channels: timm's transforms support 3 (RGB) and 1 (grey)"
            )
        # As in training: resize the shorter side, then crop the centre.
        preprocessing = Preprocessing((height, width), 1.0, mean=tuple(about["mean"]), std=tuple(about["std"]))
        names = list(about["classes"])
        if len(names) != model.config.num_classes:      # the head was configured larger than the data
            names = []
    else:
        model, name, report = open_model(given.weights, given.model, entry=given.entry)
        print(report)
        config = model.config
        preprocessing = preprocessing_for(name, given.weights, config.img_size, config.in_chans, report.owner)
        names, _ = class_names(config.num_classes, weights_path=given.weights)
        if names == [f"class {index}" for index in range(config.num_classes)]:      # no file with class names was found
            names = []
    for path in write(model, name, given.out, preprocessing, names):
        print(f"wrote {path}")
    for line in differs_in_timm(model, name):
        print(filled(line))
    return 0
