"""How a detector learned, for its report: losses, each decoder layer's, and average precision over the epochs.

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
PRECISIONS = (("AP", "#228833", "AP"), ("AP50", "#ccbb44", "AP50"), ("AP75", "#aa3377", "AP75"))
LAYERS = ("#98cae1", "#6ea6cd", "#fdb366", "#f67e4b", "#dd3d2d", "#a50026")     # of the decoder, first to last


def detection_curves(history: Sequence[Mapping[str, Any]]) -> list[Element]:
    """Plots with what to look for in them, and the numbers, of the rows of metrics.csv; at least one."""
    # A row of an epoch that was not evaluated, or where there is nothing to find, has no figure.
    rows = [{name: _number(value) for name, value in row.items()} for row in history]
    columns = [name for name in rows[-1] if all(name in row for row in rows)]
    losses, precisions, layers = _plots(columns)
    key = [("training", TRAIN), ("validation", VALIDATION)]
    stuck = (
        "AP counts only boxes that overlap an object by half or more, so that for the first epochs it is zero in every "
        "DETR, while the losses of the boxes (L1, GIoU) must fall from the start. What is learned first is to say “no "
        "object”, which is right for most queries though it counts little (§3.1: a tenth). If the losses of the boxes "
        "do not fall either, try another learning rate, and whether one batch can be learned by heart "
        "(--overfit-one-batch); if they do, go on: the paper trains for 300 to 500 epochs (§4)."
    )
    parts = [element("p", stuck)]
    if precisions:
        parts += curves(rows, precisions, _key([(name, colour) for _, colour, name in PRECISIONS]))
    parts += curves(rows, losses, _key(key))
    if layers:
        lines = next(iter(layers.values()))
        by_layer = (
            "Every decoder layer answers, is matched and is judged by itself (§3.2). The later ones should do better, "
            "most of all the second than the first, which cannot know what other queries take (§4.2, Fig. 4)."
        )
        parts += [element("h3", "Losses by decoder layer"), element("p", by_layer)]
        parts += curves(rows, layers, _key([(name, colour) for _, colour, name in lines]))
    return [*parts, numbers(rows, ["epoch", *(name for name in columns if name != "epoch")])]


def _number(value: Any) -> float:
    return math.nan if value is None or value == "" else float(value)


def _plots(columns: Sequence[str]) -> Iterator[dict[str, Lines]]:
    """What is drawn of the columns that there are: losses in training and validation, AP, and losses by layer."""
    both = (("train_", TRAIN, "training"), ("val_", VALIDATION, "validation"))
    found = {split: from_columns({column: column for column in columns}, split) for split, *_ in both}
    # Of the layers of a decoder the last one is drawn, which comes after the others.
    names = {split: {(source, kind): column for (source, _), of_output in found[split].items()
                     for kind, column in of_output.items()} for split in found}
    wanted = {title: ("decoder", kind) for kind, title in LOSSES.items()}
    wanted |= {f"denoising: {title}": ("denoising", kind) for kind, title in LOSSES.items()}
    wanted |= {"class error, %": ("decoder", "class_error")}
    wanted |= {"objects too many or too few": ("decoder", "cardinality_error")}
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
    """A line for each decoder layer."""
    colours = np.linspace(0, len(LAYERS) - 1, len(columns)).round().astype(int)
    return [(column, LAYERS[colour], f"layer {i + 1}") for i, (column, colour) in enumerate(zip(columns, colours))]


def _key(entries: Sequence[tuple[str, str]]) -> Element:
    named = {TRAIN: "key train", VALIDATION: "key validation"}
    return element("p", *(
        element("span", name, class_=named.get(colour, "key"), style=None if colour in named else f"color: {colour}")
        for name, colour in entries
    ))
