"""From a configuration to the things that a run is made of: those of every run, and those of a classifier's."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchvit import data, optim
from scratchvit.data import (
    LEVELS,
    ColorJitter,
    Compose,
    Loader,
    Normalize,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Splits,
)
from scratchvit.data.palette import fit_palette
from scratchvit.errors import ScratchvitError
from scratchvit.models import model_config
from scratchvit.models.checks import check_classifies
from scratchvit.models.interface import PatchModel, PixelModel, frames_of, own_normalisation
from scratchvit.models.vit import pair
from scratchvit.nn import Module
from scratchvit.training.checkpoint import is_checkpoint, load_checkpoint
from scratchvit.training.config import RunConfig, TrainConfig
from scratchvit.weights.preprocess import preprocessing_for

# What the augreg paper's dropout and stochastic depth are in a ViT: dropout after every dense layer but those of q, k
# and v, and after the positions are added (ViT, arXiv 2010.11929, §B.1).
_DROPPING = {"pos_drop_rate", "proj_drop_rate", "drop_path_rate"}


@dataclass(frozen=True)
class TrainingData:
    """The splits and the statistics of the training images."""

    splits: Splits
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        train = self.splits.train
        return {
            "name": train.name,
            "classes": list(train.classes),
            "image_shape": list(train.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def fingerprint(self) -> dict[str, int]:
        """A number for each split, which changes if pictures come, go, or take other places."""
        numbers = {}
        for name, part in (("train", self.splits.train), ("val", self.splits.val), ("test", self.splits.test)):
            files = "/".join(path.name for path in getattr(part, "paths", ()))     # those of a folder
            numbers[name] = zlib.crc32(files.encode(errors="surrogateescape"), zlib.crc32(part.labels.tobytes()))
        return numbers

    def train_loader(self, config: TrainConfig) -> Loader:
        """Shuffled and augmented; every image once in an epoch, or as many as the run asks for."""
        level = LEVELS[config.augment]
        jitter = config.color_jitter
        size = self.splits.train.image_shape[0]
        steps: list[Any] = [
            RandomResizedCrop(size, (config.crop_scale, 1.0)) if config.crop_scale else None,
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
        if images % config.batch_size == 1 < images:
            images -= 1     # batch norm has nothing to learn from one image: it comes first in the next epoch
        return Loader(
            train.originals() if config.crop_scale else train, config.batch_size, transform,
            shuffle=True, epoch_size=images, seed=config.seed, workers=config.workers,
        )

    def eval_loader(self, split: data.Dataset, batch_size: int) -> Loader:
        """In order, as they are."""
        return Loader(split, batch_size, Normalize(self.mean, self.std))


def load_data(config: TrainConfig, init: str | Path | None = None) -> TrainingData:
    """Load and measure the data. A folder's pictures are brought to the model's img_size.

    init: weights to begin with; pixels are then normalised as these are used to, not by the training images.
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
    )
    if not len(splits.val):
        raise ScratchvitError(f"{config.data}: no validation images to choose the best weights by; raise val_fraction")
    train = data.stratified_share(splits.train, config.train_fraction, config.seed)
    splits = dataclasses.replace(splits, train=train)
    own = own_normalisation(model_config(config.model))
    if own is not None:     # a model with a palette, whose colours have units of their own
        mean, std = ((number,) * splits.train.image_shape[2] for number in own)
    else:
        theirs = init and normalisation(config.model, init, splits.train.image_shape[2])
        mean, std = theirs or data.channel_stats(splits.train)
    # A channel that never changes carries nothing; any deviation will do.
    return TrainingData(splits, mean, tuple(deviation or 1.0 for deviation in std))


def normalisation(
    model: str, init: str | Path, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of each channel, as the weights in `init` expect them.

    None of a run whose pictures were in grey and are now in colour, or the other way round.
    """
    if not is_checkpoint(init):
        expected = preprocessing_for(model, init, in_chans=channels).to_timm()      # of pixels in 0 … 1
        return tuple(expected["mean"]), tuple(expected["std"])
    about = load_checkpoint(init).data
    return (tuple(about["mean"]), tuple(about["std"])) if len(about["mean"]) == channels else None


def model_args(config: TrainConfig, about: dict[str, Any]) -> dict[str, Any]:
    """The options of the model: what the data says (sizes, channels, classes) unless the run says otherwise."""
    height, width, channels = about["image_shape"]
    classes = len(about["classes"])
    from_data = {
        "img_size": height if height == width else (height, width),
        "in_chans": channels,
        "num_classes": classes,
    }
    preset = model_config(config.model)
    known = {field.name for field in dataclasses.fields(preset)}
    if not preset.num_classes:      # it learns the images themselves, unless the run asks for classes
        known.remove("num_classes")
    if config.regularisation:
        rates = (_DROPPING if "proj_drop_rate" in known else {"drop_rate", "drop_path_rate"}) & known
        from_data |= dict.fromkeys(rates, config.regularisation)
    if frames_of(preset) > 1:
        from_data["num_frames"] = 1     # the data are pictures
        known.add("num_frames")
    args = {name: value for name, value in from_data.items() if name in known} | config.model_args
    if args.get("num_classes", classes) < classes:
        raise ScratchvitError(
            f"a head of {args['num_classes']} classes is too small for the {classes} classes of {about['name']}: "
            "leave num_classes out"
        )
    return args


def show_data(model: Any, training: TrainingData, seed: int) -> None:
    """Let a model that codes pixels with a palette find its colours in the training images, before the first step."""
    if isinstance(model, PixelModel):
        model.palette.overwrite(fit_palette(training.splits.train, len(model.palette), seed))


def coarse_patches(model: Any) -> str | None:
    """A sentence if the model cuts images into few patches, the usual reason for a poor ViT on small images.

    Few are under 16 tokens, or patches that span more than an eighth of the image.
    """
    if not isinstance(model, PatchModel):
        return None
    embed = model.patch_embed
    (H, W), (*_, rows, columns) = embed.img_size, embed.grid_size
    if rows * columns >= 16 and min(rows, columns) >= 8:
        return None
    finer = next((P for P in range(min(H, W) // 8, 0, -1) if H % P == W % P == 0), None)
    patch_size = getattr(model.config, "patch_size", None)      # a hybrid's is of the map that its ConvNet gives
    if finer and patch_size and pair(patch_size) == (H // rows, W // columns):
        way_out = f"--patch-size {finer} gives {H // finer * (W // finer)}"
    else:
        way_out = "larger images give more"
    return (
        f"only {rows * columns} patches: one spans {H // rows}×{W // columns} of {H}×{W} pixels, more than an "
        f"eighth of a side, and what is inside one the model sees as one; {way_out}"
    )


def augments(config: TrainConfig) -> bool:
    """Whether a picture may look different from one epoch to the next."""
    changes = ("crop_padding", "crop_scale", "flip", "color_jitter", "random_erasing", "mixup", "cutmix")
    return config.augment != "none" or any(getattr(config, name) for name in changes)


def make_optimizer(config: TrainConfig, model: Module) -> optim.Optimizer:
    """The optimiser, with decay on matrices only."""
    return optimizer_of(config, optim.param_groups(model, config.weight_decay, config.layer_decay))


def optimizer_of(config: RunConfig, groups: list[dict[str, Any]]) -> optim.Optimizer:
    """The optimiser of parameters in groups, as `optim.param_groups` makes them."""
    if config.optimizer == "adamw":
        return optim.AdamW(groups, config.lr)
    if config.optimizer == "adam":
        return optim.Adam(groups, config.lr)
    return optim.SGD(groups, config.lr, momentum=config.momentum)


def make_schedule(config: RunConfig, steps_per_epoch: int) -> optim.Schedule:
    """The learning rate over all steps. The warm-up takes at most half of them, so that short trials need no other."""
    return optim.Schedule(
        config.schedule,
        config.lr,
        total_steps=config.epochs * steps_per_epoch,
        warmup_steps=round(min(config.warmup_epochs, config.epochs / 2) * steps_per_epoch),
        min_lr=config.min_lr,
    )


def check(config: TrainConfig) -> None:
    """Raise ScratchvitError for a setting out of its range, before anything is loaded."""
    check_classifies(config.model, model_config(config.model))
    check_run(config)
    check_least(config, dict.fromkeys(("epoch_images", "crop_padding", "mixup", "cutmix"), 0))
    check_shares(config, ("label_smoothing", "regularisation", "color_jitter"))
    if config.teacher_model and not config.teacher:
        raise ScratchvitError("teacher_model names the model of a teacher's file: name the file with teacher")
    if not config.distill_temperature > 0:
        raise ScratchvitError(f"distill_temperature must be positive, not {config.distill_temperature}")
    if config.distill_weight is not None and not config.teacher:
        raise ScratchvitError("distill_weight is a teacher's share of the loss: name the teacher, or leave it out")
    if config.distill_weight is not None and not 0 <= config.distill_weight <= 1:
        raise ScratchvitError(f"distill_weight must lie in [0, 1], not {config.distill_weight}")
    if not 0 < config.train_fraction <= 1:
        raise ScratchvitError(f"train_fraction must lie in (0, 1], not {config.train_fraction}")


def check_run(config: RunConfig) -> None:
    """Raise ScratchvitError for a number that is none, a choice that there is not, and what every run has."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise ScratchvitError(f"{field.name} is one of {', '.join(choices)}, not {value!r}")
        if type(field.default) in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ScratchvitError(f"{field.name} must be a number, not {value!r}")
    at_least = dict.fromkeys(("lr", "min_lr", "weight_decay", "momentum", "clip_grad", "warmup_epochs"), 0)
    at_least |= dict.fromkeys(("save_every", "seed", "loss_scale", "workers"), 0)
    check_least(config, {"epochs": 1, "batch_size": 1} | at_least)
    check_shares(config, ("ema_decay",))
    if config.new_head and not config.init:
        raise ScratchvitError("new_head leaves the head of a file out: name the file with init, or leave new_head out")


def check_least(config: RunConfig, at_least: Mapping[str, float]) -> None:
    """Raise ScratchvitError for a field below its smallest value."""
    for name, smallest in at_least.items():
        if not getattr(config, name) >= smallest:       # so that NaN is refused too
            raise ScratchvitError(f"{name} must be at least {smallest}, not {getattr(config, name)}")


def check_shares(config: RunConfig, names: Sequence[str]) -> None:
    """Raise ScratchvitError for a field that is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ScratchvitError(f"{name} must lie in [0, 1), not {getattr(config, name)}")
