"""ViT against ResNet where the answer needs two distant places (ViT, arXiv 2010.11929, §4.3 and Figures 3 and 4).

The lecture's claim: a ResNet's inductive bias wins on little data, and a ViT overtakes it once there is enough. On
Fashion-MNIST (data_growth.py) the ViT never catches up: what tells a shirt from a coat lies side by side, and 57,000
pictures are few. Here the supply has no end, and the answer takes two places. Of four handwritten digits in a picture,
one is black on white and three are white on black: which of the three is farthest from the one?

Hypothesis, written before the first run (1 December 2026). With 500 and 2,000 pictures, seen again and again, the
ResNet is better by 3 points or more. With 128,000, each seen once, the ViT is better by 3 points or more.

    python scripts/figures/relations.py --seeds 3 --jobs 2      # docs/figures/relations.csv and .png
    python scripts/figures/relations.py --quick                 # half a minute: does the script work?
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from experiment import RESNET, RESNET_10, VIT, VIT_D64, Run, carry_on, growth, main, parse
from numpy.typing import ArrayLike, NDArray

from scratchvit.data import Dataset, Splits
from scratchvit.data.digits import load_digits
from scratchvit.inspect.figures import INK, sheet
from scratchvit.training import ClassificationTask, TrainConfig
from scratchvit.training.classification.data import TrainingData, measured

Indices = NDArray[np.int64]

SIDE, DIGIT, DIGITS = 64, 16, 4         # of a picture and of a digit in pixels; in a picture
SEEN = 128_000                          # pictures that a run sees, each of them once or again and again
IMAGES = (500, 2_000, 8_000, 32_000, 128_000)

# A patch of the ViT is a quarter of a digit. Learning rates: those that data_growth.py chose on validation images.
MODELS = {
    "ViT": (VIT, {**VIT_D64, "patch_size": 8, "depth": 4, "class_token": False, "global_pool": "avg"}, 2e-3),
    "ResNet": (RESNET, RESNET_10, 4e-3),
}
REGIME = TrainConfig(data="digits", epochs=10, batch_size=64, weight_decay=0.05, warmup_epochs=1, ema_decay=0.99)


class Relations:
    """Pictures (SIDE, SIDE, 1) of four digits, labelled by the one that is farthest from the digit on white.

    written     the digits that are drawn, uint8 (n, 8, 8)
    places      (top, left) of each digit in each picture, in pixels (N, DIGITS, 2), that on white first
    digits      which digits these are, indices into `written` (N, DIGITS)
    labels      (N,)
    """

    name = "relations"
    classes = tuple("0123456789")
    image_shape = (SIDE, SIDE, 1)

    def __init__(self, written: NDArray[np.uint8], places: Indices, digits: Indices, labels: Indices):
        self.written, self.places, self.digits, self.labels = written, places, digits, labels

    @classmethod
    def drawn(cls, source: Dataset, count: int, seed: int) -> Self:
        """So many pictures with the digits of `source`."""
        rng = np.random.default_rng(seed)
        places = np.empty((0, DIGITS, 2), np.int64)
        while len(places) < count:
            places = np.concatenate([places, _clear(rng.integers(SIDE - DIGIT + 1, size=(4 * count, DIGITS, 2)))])
        places = places[:count]
        digits = rng.integers(len(source), size=(count, DIGITS))
        farthest = 1 + _distances(places).argmax(axis=1)
        labels = source.labels[digits[np.arange(count), farthest]]
        return cls(source.images(range(len(source)))[..., 0], places, digits, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        chosen = np.asarray(indices, np.intp)
        large = self.written[self.digits[chosen]].repeat(2, axis=-2).repeat(2, axis=-1)     # (B, DIGITS, DIGIT, DIGIT)
        large[:, 0] = 255 - large[:, 0]
        rows, columns = (self.places[chosen][..., axis, None] + np.arange(DIGIT) for axis in (0, 1))
        pictures = np.zeros((len(chosen), *self.image_shape), np.uint8)
        pictures[np.arange(len(chosen))[:, None, None, None], rows[..., None], columns[..., None, :], 0] = large
        return pictures

    def originals(self, shorter_side: int | None = None) -> Self:
        return self

    def subset(self, indices: ArrayLike) -> Self:
        chosen = np.asarray(indices, np.intp)
        return type(self)(self.written, self.places[chosen], self.digits[chosen], self.labels[chosen])


def _distances(places: Indices) -> Indices:
    """From the first digit to each of the others, in pixels squared: (N, DIGITS, 2) → (N, DIGITS - 1)."""
    return ((places[:, 1:] - places[:, :1]) ** 2).sum(axis=-1)


def _clear(places: Indices) -> Indices:
    """Those of the pictures in which no digit covers another, and the farthest is so by half a digit or more."""
    apart = (abs(places[:, :, None] - places[:, None]) >= DIGIT).any(axis=-1) | np.eye(DIGITS, dtype=bool)
    ordered = np.sqrt(np.sort(_distances(places), axis=1))
    return places[apart.all(axis=(1, 2)) & (ordered[:, -1] - ordered[:, -2] >= DIGIT / 2)]


class RelationsTask(ClassificationTask):
    """Train on `train_fraction` of what a run sees, drawn by its seed. Val and test are always the same."""

    val_pictures, test_pictures = 2_000, 5_000

    def load_data(self, init: str | Path | None) -> TrainingData:
        digits, config = load_digits(), self.config
        splits = Splits(
            Relations.drawn(digits.train, round(config.train_fraction * SEEN), 100 + config.seed),
            Relations.drawn(digits.val, self.val_pictures, 1),
            Relations.drawn(digits.test, self.test_pictures, 2),
        )
        self.data = measured(splits, config, init, (self.ranks.rank, self.ranks.size))
        return self.data


class QuickTask(RelationsTask):
    """The same with few pictures to validate and test on."""

    val_pictures, test_pictures = 100, 100


def runs(seeds: int, quick: bool) -> list[Run]:
    """Both models on each number of pictures, all numbers of one seed before the next."""
    regime, seen = (REGIME.replace(epochs=2, ema_decay=0.0), 640) if quick else (REGIME, SEEN)
    return [
        Run(
            regime.replace(
                model=model, model_args={**sizes, "img_size": SIDE}, lr=lr, train_fraction=images / SEEN,
                epoch_images=seen // regime.epochs, seed=seed,
            ),
            {"model": name, "images": images, "seed": seed},
            QuickTask if quick else RelationsTask,
        )
        for seed in range(seeds)
        for images in ((320, 640) if quick else IMAGES)
        for name, (model, sizes, lr) in MODELS.items()
    ]


def figure() -> None:
    """Make the runs, then the picture."""
    args = parse(__doc__)
    rows = carry_on(runs(args.seeds, args.quick), args.runs / "relations", args.jobs, args.out / "relations.csv")
    with sheet(args.out / "relations.png", 1, 1, size=(6, 4)) as axes:
        growth(axes[0, 0], rows, MODELS)
        axes[0, 0].set_xlabel(f"training pictures; every run sees {SEEN:,}", color=INK)
    print(args.out / "relations.png")


if __name__ == "__main__":
    main(figure)
