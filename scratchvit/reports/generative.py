"""What a generative model of pixels, an iGPT, has in its report: bits per pixel, and completed pictures.

Chen et al., Generative Pretraining from Pixels, ICML 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from scratchvit.backend import asnumpy
from scratchvit.data import Dataset, Splits
from scratchvit.data.palette import histogram_bits
from scratchvit.inspect.completions import complete
from scratchvit.inspect.figures import CURVES, Lines, first_of_each_class
from scratchvit.models.igpt import IGPT
from scratchvit.reports.page import element, picture

PICTURES, SAMPLES = 6, 4

GENERATIVE_CURVES: Mapping[str, Lines] = {
    "bits per pixel": tuple((column.replace("loss", "bits"), colour, name) for column, colour, name in CURVES["loss"]),
    "accuracy of the next pixel": CURVES["accuracy"],
    "learning rate": CURVES["learning rate"],
}


def in_bits(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of metrics.csv with the losses, which are in nats, also in bits: train_bits, val_bits."""
    return [dict(row) | {f"{part}_bits": row[f"{part}_loss"] / math.log(2) for part in ("train", "val")}
            for row in history]


def bits_and_baseline(model: Any, splits: Splits, split: Dataset, loss: float) -> tuple[float, float]:
    """Bits per pixel of a model whose loss on `split` is `loss`, and those of `histogram_bits`, which it must beat."""
    return loss / math.log(2), histogram_bits(splits.train, split, asnumpy(model.palette.data))


def completions(model: IGPT, split: Dataset, seed: int) -> list[Element]:
    """Pictures of different classes, their upper halves, and completions of these."""
    pictures = split.images(first_of_each_class(split.labels, PICTURES))
    drawn = complete(model, pictures, SAMPLES, np.random.default_rng(seed))
    cells = [element("div", "picture", class_="head"), element("div", "given", class_="head")]
    cells.append(element("div", "completed", class_="head rest"))
    for pixels, completed in zip(pictures, drawn):
        half = pixels[: len(pixels) // 2]
        cells += [picture(pixels, "picture"), element("div", picture(half, "upper half"), class_="half")]
        cells += [picture(sample, "completion") for sample in completed]
    lead = (
        f"Each picture, its upper half, and {SAMPLES} completions of it: every following pixel is drawn at random with "
        "the probabilities that the model predicts."
    )
    return [element("p", lead, class_="faint"), element("div", *cells, class_="completions")]
