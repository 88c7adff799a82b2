"""The learning curves in the report of a detector: losses, also by decoder layer, and average precision.

Sections (§) and figures are those of DETR, Carion et al., ECCV 2020, arXiv 2005.12872.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from scratchvit.detection.losses import from_columns, layers_of
from scratchvit.inspect.figures import TRAIN, VALIDATION, Lines
from scratchvit.reports.page import curves, element, numbers

LOSSES = {"ce": "class", "bbox": "box, L1", "giou": "box, GIoU"}
# All of them are visible on a light and on a dark page.
PRECISIONS = (("AP", "#228833", "AP"), ("AP50", "#a87a10", "AP50"), ("AP75", "#c04a8e", "AP75"))
LAYERS = ("#3f88d6", "#1f9a8c", "#5a9438", "#b8791a", "#d9602b", "#cf4289")     # of the decoder, first to last


def detection_curves(history: Sequence[Mapping[str, Any]]) -> list[Element]:
    """Plots of the rows of metrics.csv (at least one), with explanations, and a table of the numbers."""
    # Epochs that were not evaluated, or without objects in the data, have no AP.
    rows = [{name: _number(value) for name, value in row.items()} for row in history]
    columns = [name for name in rows[-1] if all(name in row for row in rows)]
    losses, precisions, layers = _plots(columns)
    stuck = (
        "AP counts only boxes with an IoU of at least 0.5, so it is zero in the first epochs of every DETR, while the "
        "box losses (L1, GIoU) should fall from the start. The first thing that is learned is to predict “no object”, "
        "which is right for most queries, although its weight in the loss is low (§3.1: a tenth). If the box losses do "
        "not fall either, try another learning rate, and check whether the model can overfit one batch "
        "(--overfit-one-batch); if they do fall, continue: the paper trains for 300 to 500 epochs (§4)."
    )
    parts = [element("p", stuck)]
    parts += curves(rows, {**precisions, **losses})
    if layers:
        lines = next(iter(layers.values()))
        by_layer = (
            "Every decoder layer has its own predictions, matching and losses (§3.2). Later layers should be better, "
            "above all the second than the first, which cannot know what other queries predict (§4.2, Fig. 4)."
        )
        parts += [element("h3", "Losses by decoder layer"), element("p", by_layer)]
        parts += curves(rows, layers, [(name, colour) for _, colour, name in lines])
    return [*parts, numbers(rows, ["epoch", *(name for name in columns if name != "epoch")])]


def _number(value: Any) -> float:
    return math.nan if value is None or value == "" else float(value)


def _plots(columns: Sequence[str]) -> Iterator[dict[str, Lines]]:
    """The plots for the given columns: losses in training and validation, AP, and losses by decoder layer."""
    both = (("train_", TRAIN, "training"), ("val_", VALIDATION, "validation"))
    found = {split: from_columns({column: column for column in columns}, split) for split, *_ in both}
    # A later layer replaces the earlier ones, so the last decoder layer is drawn.
    names = {split: {(source, kind): column for (source, _), of_output in found[split].items()
                     for kind, column in of_output.items()} for split in found}
    wanted = {title: ("decoder", kind) for kind, title in LOSSES.items()}
    wanted |= {f"denoising: {title}": ("denoising", kind) for kind, title in LOSSES.items()}
    wanted |= {"class error, %": ("decoder", "class_error")}
    wanted |= {"cardinality error, objects": ("decoder", "cardinality_error")}
    losses: dict[str, Lines] = {
        "loss": [(f"{split}loss", colour, of) for split, colour, of in both if f"{split}loss" in columns]
    }
    losses |= {
        title: [(names[split][loss], colour, of) for split, colour, of in both if loss in names[split]]
        for title, loss in wanted.items()
    }
    precisions: dict[str, Lines] = {"average precision": [line for line in PRECISIONS if line[0] in columns]}
    decoders = [layers_of(found[split], "decoder") for split in ("val_", "train_")]
    decoder = next((of_layers for of_layers in decoders if len(of_layers) > 1), [])
    layers = {title: _by_layer([of_layer[kind] for of_layer in decoder]) for kind, title in LOSSES.items()}
    for plots in (losses, precisions, layers):
        yield {title: lines for title, lines in plots.items() if lines}


def _by_layer(columns: Sequence[str]) -> Lines:
    """The lines of a plot with one line per decoder layer."""
    colours = np.linspace(0, len(LAYERS) - 1, len(columns)).round().astype(int)
    return [(column, LAYERS[colour], f"layer {i + 1}") for i, (column, colour) in enumerate(zip(columns, colours))]
