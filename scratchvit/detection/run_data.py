"""The data of a run that trains a detector: splits, resizing, mean and standard deviation, loaders."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from scratchvit import backend
from scratchvit.data import ColorJitter, Normalize
from scratchvit.data.loader import small_rest
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.annotations import Annotations, DetectionDataset, DetectionSplits
from scratchvit.detection.data.batches import DetectionLoader
from scratchvit.detection.data.scenes import Scenes, load_scenes
from scratchvit.detection.data.source import load_detection
from scratchvit.detection.data.transforms import RandomHorizontalFlip, Step, Steps, detr_steps
from scratchvit.detection.detector import Sizes, pixels_of
from scratchvit.models import model_config
from scratchvit.training.build import normalisation, rest_note
from scratchvit.training.checkpoint import is_checkpoint

MEASURED = 500          # largest number of training pictures from which mean and standard deviation are computed
OVERFIT_STEPS = 50      # steps per epoch with overfit_one_batch


@dataclass(frozen=True)
class DetectionData:
    """The splits, and how their pictures are preprocessed.

    sizes       how pictures are resized in evaluation
    mean, std   of each channel, by which pictures are normalised
    checksums   the checksum of each split, {"train", "val", "test"}; see `fingerprint`
    share       (rank, size): which of the processes of the run this is; see `Loader`
    """

    splits: DetectionSplits
    sizes: Sizes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksums: dict[str, int]
    share: tuple[int, int] = (0, 1)

    def about(self) -> dict[str, Any]:
        """The description of the data in a checkpoint."""
        train = self.splits.train
        return {
            "name": train.name,
            "classes": list(train.classes),
            "category_ids": list(train.category_ids),
            "mean": list(self.mean),
            "std": list(self.std),
            "short_side": self.sizes.short_side,
            "longest": self.sizes.longest or 0,
        }

    def fingerprint(self) -> dict[str, int]:
        """A checksum of each split. It changes if pictures or annotations are added, removed, changed or reordered."""
        return self.checksums

    def train_loader(self, config: DetectConfig) -> DetectionLoader:
        """The training pictures, shuffled and augmented; with overfit_one_batch, neither."""
        normalize, jitter = Normalize(self.mean, self.std), config.color_jitter
        pictures = len(self.splits.train)
        epoch_size = pictures - small_rest(pictures, config.batch_size, least=self.share[1])
        if config.overfit_one_batch:
            return DetectionLoader(
                self.splits.train, config.batch_size, normalize, steps=self.sizes, stretch=1, seed=config.seed,
                epoch_size=epoch_size, workers=config.workers, share=self.share,
            )
        return DetectionLoader(
            self.splits.train, config.batch_size, normalize, steps=self._training_steps(config),
            colours=ColorJitter(jitter, jitter, jitter) if jitter else None, shuffle=True, seed=config.seed,
            epoch_size=epoch_size, workers=config.workers, pad_to=self._pad_to(config), share=self.share,
        )

    def _pad_to(self, config: DetectConfig) -> int:
        """What sides of a batch are multiples of: 1 unless a GPU replays steps, and images differ in size."""
        options = {**vars(model_config(config.model)), **config.model_args}
        if not (config.replay and backend.current().has_cuda) or why_not_replayed(options):
            return 1
        train = self.splits.train
        differ = config.multi_scale or len({train.size(index) for index in range(len(train))}) > 1
        return config.pad_to if differ else 1

    def _training_steps(self, config: DetectConfig) -> Step:
        flip = [RandomHorizontalFlip()] if config.flip else []
        if not config.multi_scale:
            return Steps(*flip, self.sizes)
        _, resizing = cast(Steps, detr_steps(config.short_side, self.sizes.longest)).steps      # flips are an option
        return Steps(*flip, resizing)

    def eval_loader(self, dataset: DetectionDataset, batch_size: int) -> DetectionLoader:
        """The pictures of a data set once, without augmentation, in batches of similar shape.

        Of several processes, each has its share of every batch, so that images are padded as in one process. The last
        batch may have none for some.
        """
        return DetectionLoader(
            dataset, batch_size, Normalize(self.mean, self.std), steps=self.sizes, share=self.share, uneven=True
        )


def why_not_replayed(options: Mapping[str, Any]) -> str:
    """Why the steps of a model with these options cannot be replayed on a GPU (replay.py), in words; or ""."""
    if options.get("denoising") or options.get("query_groups", 1) > 1 or options.get("two_stage"):
        return "noised objects, groups of queries and two stages have arrays that the host makes in every step"
    return ""


class FirstPictures(DetectionDataset):
    """The first `count` pictures of a data set, repeated `times` times."""

    def __init__(self, source: DetectionDataset, count: int, times: int = 1):
        self.source, self.count, self.times = source, count, times
        self.name, self.classes, self.category_ids = source.name, source.classes, source.category_ids
        self.notes, self.skipped = source.notes, source.skipped

    def __len__(self) -> int:
        return self.count * self.times

    def size(self, index: int) -> tuple[int, int]:
        return self.source.size(index % self.count)

    def annotations(self, index: int) -> Annotations:
        return self.source.annotations(index % self.count)

    def picture(self, index: int) -> Image.Image:
        return self.source.picture(index % self.count)

    def example(self, index: int) -> tuple[Image.Image, Annotations]:
        return self.source.example(index % self.count)


def load_data(
    config: DetectConfig, init: str | Path | None = None, share: tuple[int, int] = (0, 1)
) -> DetectionData:
    """Load the data, and compute mean and standard deviation.

    init: file of the initial weights; pixels are then normalised as these expect, not by the training pictures.
    share: (rank, size), for `train_loader`; see `Loader`.
    """
    if config.data == "scenes" and config.epoch_images:
        splits = load_scenes(seed=config.seed, train=config.epoch_images)
    else:
        splits = load_detection(
            config.data, val_fraction=config.val_fraction, seed=config.seed, skip_bad=config.skip_bad
        )
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    checksums = {name: _checksum(part) for name, part in parts.items()}
    if config.overfit_one_batch:
        splits = one_batch(splits, config.batch_size)
    rest = small_rest(len(splits.train), config.batch_size, share[1])
    splits = dataclasses.replace(splits, drawn=(*splits.drawn, *rest_note(rest, share[1])))
    longest = config.longest or round(config.short_side * 5 / 3) or None
    mean, std = (init and pixels_expected(config.model, init)) or channel_stats(splits.train)
    # A constant channel has a standard deviation of 0; divide it by 1 instead.
    std = tuple(deviation or 1.0 for deviation in std)
    return DetectionData(splits, Sizes(config.short_side, longest), mean, std, checksums, share)


def pixels_expected(model: str, init: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The (mean, std) of red, green and blue that the weights in `init` expect; None for a run on grey pictures."""
    if is_checkpoint(init):
        return normalisation(model, init, 3)
    normalize = pixels_of(init)
    return normalize.mean, normalize.std


def one_batch(splits: DetectionSplits, batch_size: int) -> DetectionSplits:
    """Splits in which train is its first batch, repeated `OVERFIT_STEPS` times, and val and test are the same batch."""
    train = splits.train
    count = min(batch_size, len(train))
    batch = FirstPictures(train, count)
    first = "the first picture" if count == 1 else f"the first {count} pictures"
    note = f"train, val and test are {first} of {train.name}; an epoch has {OVERFIT_STEPS} steps."
    long = FirstPictures(train, count, OVERFIT_STEPS)
    return DetectionSplits(long, batch, batch, (*splits.drawn, note), splits.files)


def channel_stats(dataset: DetectionDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The (mean, std) of red, green and blue, from 0 to 1, over the pixels of at most `MEASURED` pictures."""
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for index in np.unique(np.linspace(0, len(dataset) - 1, MEASURED).round().astype(int)).tolist():
        pixels = np.asarray(dataset.picture(index), np.float64).reshape(-1, 3) / 255
        count += len(pixels)
        total += pixels.sum(axis=0)
        squares += (pixels**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return tuple(mean.tolist()), tuple(std.tolist())


def _checksum(dataset: DetectionDataset) -> int:
    if isinstance(dataset, Scenes):     # generated, the same every time
        return zlib.crc32(f"{dataset.name} {dataset.img_size} {len(dataset)}".encode())
    checksum = 0
    for index in range(len(dataset)):
        one = dataset.annotations(index)
        checksum = zlib.crc32(f"{one.file_name} {one.size}".encode(errors="surrogateescape"), checksum)
        checksum = zlib.crc32(one.boxes.tobytes() + one.labels.tobytes() + one.crowd.tobytes(), checksum)
    return checksum
