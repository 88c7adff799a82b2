"""What runs of all tasks have in common: checks of their settings, the optimiser, the schedule, the normalisation."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchvit import optim
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted
from scratchvit.parallel.buckets import Buckets
from scratchvit.training.checkpoint import is_checkpoint, load_checkpoint
from scratchvit.training.config import RunConfig
from scratchvit.weights.preprocess import preprocessing_for


def check_run(config: RunConfig) -> None:
    """Raise ScratchvitError for a setting of the wrong type, an unknown choice, or a RunConfig field out of range."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise ScratchvitError(f"{field.name} is one of {', '.join(choices)}, not {value!r}")
        if check := field.metadata.get("check"):
            check(value)
        if type(field.default) in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ScratchvitError(f"{field.name} must be a number, not {value!r}")
    at_least = dict.fromkeys(("lr", "min_lr", "weight_decay", "momentum", "clip_grad", "warmup_epochs"), 0)
    at_least |= dict.fromkeys(("save_every", "seed", "loss_scale", "workers"), 0)
    at_least |= dict.fromkeys(("epochs", "batch_size", "accumulate", "lr_base_batch", "rank_timeout"), 1)
    check_least(config, at_least)
    if config.accumulate > config.batch_size:
        raise ScratchvitError(
            f"accumulate cuts a batch into parts of at least one image, so it must not exceed batch_size, "
            f"{config.batch_size}: it is {config.accumulate}"
        )
    check_shares(config, ("ema_decay",))
    _check_scaling(config)
    if config.entry and not config.init:
        raise ScratchvitError("entry chooses one of the sets of weights in a file: name the file with init")
    if config.new_head and not config.init:
        raise ScratchvitError("new_head is for pretrained weights: name the file with init, or leave new_head out")


def check_least(config: RunConfig, at_least: Mapping[str, float]) -> None:
    """Raise ScratchvitError for a field that is below its smallest value. at_least: {name: smallest value}."""
    for name, smallest in at_least.items():
        if not getattr(config, name) >= smallest:       # also true for NaN
            raise ScratchvitError(f"{name} must be at least {smallest}, not {getattr(config, name)}")


def check_shares(config: RunConfig, names: Sequence[str]) -> None:
    """Raise ScratchvitError for a field that is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ScratchvitError(f"{name} must lie in [0, 1), not {getattr(config, name)}")


def _check_scaling(config: RunConfig) -> None:
    default = RunConfig().lr_base_batch
    if config.lr_scaling == "none" and config.lr_base_batch != default:
        raise ScratchvitError(
            f"lr_base_batch {config.lr_base_batch} needs lr_scaling linear or sqrt: set it, or leave lr_base_batch out"
        )
    if config.lr_scaling != "none" and scaled_lr(config) < config.min_lr:
        raise ScratchvitError(
            f"lr_scaling {config.lr_scaling} makes lr {scaled_lr(config):g}, which is below min_lr, {config.min_lr:g}: "
            "use a lower min_lr or a larger lr"
        )


def scaled_lr(config: RunConfig) -> float:
    """The learning rate after the warm-up, for config.batch_size images per step. With k = batch_size / lr_base_batch:

    none      lr
    linear    lr · k     Goyal et al. 2017, arXiv 1706.02677, §2.1
    sqrt      lr · √k    Krizhevsky 2014, arXiv 1404.5997; for Adam, Malladi et al. 2022, arXiv 2205.10287, who change
                         the betas and eps too, which is not done here

    As timm's --lr-base, --lr-base-size and --lr-base-scale. min_lr is not scaled, as there.
    """
    k = config.batch_size / config.lr_base_batch
    return config.lr * {"none": 1.0, "linear": k, "sqrt": math.sqrt(k)}[config.lr_scaling]


def make_optimizer(
    config: RunConfig, groups: list[dict[str, Any]], buckets: Buckets | None = None
) -> optim.Optimizer | optim.Sharded:
    """The optimiser that the settings name, for parameter groups from `optim.param_groups`.

    buckets: of a run of several processes. With config.shard_optimizer, they are sharded, and so is the optimiser.
    """
    kinds: dict[str, Callable[..., optim.Optimizer]] = {
        "adamw": optim.AdamW, "adam": optim.Adam, "sgd": functools.partial(optim.SGD, momentum=config.momentum),
    }
    make = functools.partial(kinds[config.optimizer], lr=scaled_lr(config))
    return optim.Sharded(make, groups, buckets) if config.shard_optimizer and buckets else make(groups)


def make_schedule(config: RunConfig, steps_per_epoch: int) -> optim.Schedule:
    """The learning rate schedule. The warm-up takes at most half of the steps, so that it suits short runs too."""
    return optim.Schedule(
        config.schedule,
        scaled_lr(config),
        total_steps=config.epochs * steps_per_epoch,
        warmup_steps=round(min(config.warmup_epochs, config.epochs / 2) * steps_per_epoch),
        min_lr=config.min_lr,
    )


def rest_note(rest: int, size: int) -> tuple[str, ...]:
    """What a run of `size` processes says of the `small_rest` of an epoch (data/loader.py), if there is one."""
    if not rest or size == 1:
        return ()
    return (
        f"train: the last batch of an epoch, {counted(rest, 'image')}, is left for the next epoch: each of {size} "
        "processes needs an image",
    )


def normalisation(
    model: str, init: str | Path, channels: int, entry: str | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The (mean, standard deviation) of each channel that the weights in `init` expect.

    None for the checkpoint of a run with another number of channels, such as grey pictures instead of colour.
    """
    if not is_checkpoint(init):
        expected = preprocessing_for(model, init, in_chans=channels, entry=entry).to_timm()      # of pixels in 0 … 1
        return tuple(expected["mean"]), tuple(expected["std"])
    about = load_checkpoint(init).data
    return (tuple(about["mean"]), tuple(about["std"])) if len(about["mean"]) == channels else None
