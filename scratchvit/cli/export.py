"""`scratchvit export`: a model for timm, and for everything that reads timm's folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scratchvit import backend
from scratchvit.cli._options import Parser
from scratchvit.data.images import MODES
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_classifies
from scratchvit.training.checkpoint import model_from_checkpoint
from scratchvit.weights.export import export as write
from scratchvit.weights.labels import class_names
from scratchvit.weights.load import open_model
from scratchvit.weights.preprocess import Preprocessing, preprocessing_for


def export(argv: Sequence[str]) -> int:
    """Write a model's weights and configuration as timm does."""
    parser = Parser(
        prog="scratchvit export",
        description="Write DIR/model.safetensors and DIR/config.json as timm does, so that timm builds and loads the "
        "model:\n  timm.create_model('local-dir:DIR', pretrained=True)\n\n"
        "  scratchvit export runs/photos-vit_tiny_patch16_224-1/best.safetensors --out mine\n"
        "  scratchvit export --model vit_base_patch16_224 --weights B_16.npz --out mine",
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, help="a file of `scratchvit train`, or the run's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write; it is made")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="instead of a checkpoint: anybody's weights")
    parser.add_argument("--model", metavar="NAME", help="the model that they are of (default: what config.json says)")
    given = parser.parse_strictly(argv)
    if (given.checkpoint is None) == (given.weights is None):
        parser.error("name a checkpoint, or weights with --weights FILE, one of them")
    if given.checkpoint is not None and given.model is not None:
        parser.error("a checkpoint knows its model: --model is for --weights")

    backend.use("cpu")
    model: Any
    if given.checkpoint is not None:
        model, checkpoint = model_from_checkpoint(given.checkpoint)
        name, about = checkpoint.model_name, checkpoint.data
        check_classifies(name, model.config)
        height, width, channels = about["image_shape"]
        if channels not in MODES:
            raise ScratchvitError(f"its pictures have {channels} channels: timm's transforms know 3 (RGB) and 1 (grey)")
        # As training prepares pictures: the shorter side resized, the central square kept.
        preprocessing = Preprocessing((height, width), 1.0, mean=tuple(about["mean"]), std=tuple(about["std"]))
        names = list(about["classes"])
        if len(names) != model.config.num_classes:      # a head that was asked to be larger than the data
            names = []
    else:
        model, name, report = open_model(given.weights, given.model)
        print(report)
        config = model.config
        preprocessing = preprocessing_for(name, given.weights, config.img_size, config.in_chans, report.owner)
        names, _ = class_names(config.num_classes, weights_path=given.weights)
        if names == [f"class {index}" for index in range(config.num_classes)]:      # nothing beside the file names them
            names = []
    for path in write(model, name, given.out, preprocessing, names):
        print(f"wrote {path}")
    return 0
