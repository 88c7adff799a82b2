"""The data of a run that trains a classifier: splits, mean and standard deviation, loaders."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchvit import data, progress
from scratchvit.data import (
    LEVELS,
    ColorJitter,
    Compose,
    ImageFolder,
    Loader,
    Normalize,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Splits,
)
from scratchvit.data.loader import small_rest
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, listed
from scratchvit.models import model_config
from scratchvit.models.interface import own_normalisation
from scratchvit.training.build import normalisation, rest_note
from scratchvit.training.checkpoint import Checkpoint
from scratchvit.training.config import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """The splits, and the mean and standard deviation of each channel by which images are normalised.

    share: (rank, size), which of the processes of the run this is.
    """

    splits: Splits
    mean: tuple[float, ...]
    std: tuple[float, ...]
    share: tuple[int, int] = (0, 1)

    def about(self) -> dict[str, Any]:
        """The description of the data in a checkpoint."""
        train = self.splits.train
        return {
            "name": train.name,
            "classes": list(train.classes),
            "image_shape": list(train.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def fingerprint(self) -> dict[str, int]:
        """A checksum of each split. It changes if pictures are added, removed or reordered."""
        checksums = {}
        for name, part in (("train", self.splits.train), ("val", self.splits.val), ("test", self.splits.test)):
            files = "/".join(path.name for path in getattr(part, "paths", ()))     # only folders have files
            checksums[name] = zlib.crc32(files.encode(errors="surrogateescape"), zlib.crc32(part.labels.tobytes()))
        return checksums

    def train_loader(self, config: TrainConfig) -> Loader:
        """The training images, shuffled and augmented; an epoch is one pass, or `epoch_images` of the settings."""
        level = LEVELS[config.augment]
        jitter = config.color_jitter
        size = self.splits.train.image_shape[0]
        crop = RandomResizedCrop(size, (config.crop_scale, 1.0)) if config.crop_scale else None
        steps: list[Any] = [
            crop,
            RandomCrop(config.crop_padding) if config.crop_padding else None,
            RandomHorizontalFlip() if config.flip else None,
            RandAugment(level.num_layers, level.magnitude) if level.num_layers else None,
            ColorJitter(jitter, jitter, jitter) if jitter else None,
            Normalize(self.mean, self.std),
            RandomErasing(config.random_erasing, mode="pixel") if config.random_erasing else None,
        ]
        transform = Compose(*(step for step in steps if step))
        train = self.splits.train
        images = config.epoch_images or len(train)
        return Loader(
            train.originals(crop.needs()) if crop else train, config.batch_size, transform, shuffle=True,
            epoch_size=images - _left_out(images, config, self.share), seed=config.seed, workers=config.workers,
            share=self.share,
        )

    def eval_loader(self, split: data.Dataset, batch_size: int) -> Loader:
        """The images of a split in order, without augmentation."""
        return Loader(split, batch_size, Normalize(self.mean, self.std))


def load_data(config: TrainConfig, init: str | Path | None = None, began: Checkpoint | None = None) -> TrainingData:
    """Load the data, and compute mean and standard deviation. Pictures in a folder are resized to the model's img_size.

    init: file of the initial weights; pixels are then normalised as these expect, not by the training images.
    began: see `load_splits`.
    """
    return measured(load_splits(config, began), config, init)


def had_test_split(checkpoint: Checkpoint) -> bool:
    """Whether the run of a checkpoint has a test split. Version 0.1 drew one from train if a folder had only val."""
    return checkpoint.progress.get("pictures", {}).get("test") != 0     # the checksum of no pictures


def load_splits(config: TrainConfig, began: Checkpoint | None = None) -> Splits:
    """The splits of a run's data, train reduced to the share that is used.

    began: a checkpoint of the run, if it has one; its splits are made as they were. Raises ScratchvitError as
    `data.load` does, and if there are no validation images.
    """
    img_size = config.model_args.get("img_size")
    if img_size is None and config.data not in data.list_datasets():
        img_size = model_config(config.model).img_size
    splits = data.load(
        config.data,
        data_dir=config.data_dir,
        img_size=img_size,
        val_fraction=config.val_fraction,
        seed=config.seed,
        skip_bad=config.skip_bad,
        download=config.download,
        test_from_train=began is not None and had_test_split(began),
    )
    if not len(splits.val):
        raise ScratchvitError(
            f"{config.data}: there are no validation images to choose the best weights by; increase val_fraction "
            "(--val-fraction), or add pictures"
        )
    train = data.stratified_share(splits.train, config.train_fraction, config.seed)
    if len(train) < len(splits.train):
        share = f"{len(train):,} of its {counted(len(splits.train), 'picture')}"
        note = f"train: {share}, by train_fraction {config.train_fraction:g}"
        splits = dataclasses.replace(splits, train=train, notes=(*splits.notes, note))
    return splits


def check_pictures(splits: Splits) -> None:
    """Decode every picture of a folder. Raises ScratchvitError, which names the bad ones."""
    parts = [part for part in (splits.train, splits.val, splits.test) if isinstance(part, ImageFolder)]
    with progress.bar(sum(map(len, parts)), "checking pictures") as bar:
        bad = {part.paths[at]: text for part in parts for at, text in part.bad_pictures(bar.update).items()}
    if bad:
        first, *others = bad
        more = f"; {len(others)} more cannot be decoded: {listed(others)}" if others else ""
        raise ScratchvitError(f"{bad[first]}{more}")


def measured(
    splits: Splits, config: TrainConfig, init: str | Path | None, share: tuple[int, int] = (0, 1)
) -> TrainingData:
    """Splits with the statistics by which their pixels are normalised. init: see `load_data`. share: see `Loader`."""
    own = own_normalisation(model_config(config.model))
    if own is not None:     # a model with a palette, which expects pixels in the units of its colours
        mean, std = ((number,) * splits.train.image_shape[2] for number in own)
    else:
        theirs = init and normalisation(config.model, init, splits.train.image_shape[2], config.entry)
        mean, std = theirs or data.channel_stats(splits.train)
    rest = _left_out(config.epoch_images or len(splits.train), config, share)
    splits = dataclasses.replace(splits, notes=(*splits.notes, *rest_note(rest, share[1])))
    # A constant channel has a standard deviation of 0; divide it by 1 instead.
    return TrainingData(splits, mean, tuple(deviation or 1.0 for deviation in std), share)


def _left_out(images: int, config: TrainConfig, share: tuple[int, int]) -> int:
    """How many images of an epoch, its last batch, are left for the next one."""
    least = max(2, share[1])        # batch norm needs more than one image, and every process needs one
    return small_rest(images, config.batch_size, least)


def augments(config: TrainConfig) -> bool:
    """Whether the settings include augmentation, so that images differ from epoch to epoch."""
    changes = ("crop_padding", "crop_scale", "flip", "color_jitter", "random_erasing", "mixup", "cutmix")
    return config.augment != "none" or any(getattr(config, name) for name in changes)
