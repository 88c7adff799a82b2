"""Checks shared by all models: of the configuration when a model is created, and of the images when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scratchvit.backend import Array
from scratchvit.errors import ScratchvitError
from scratchvit.models.interface import detects
from scratchvit.tensor import Tensor

_POSITIVE = ("in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "width_factor", "norm_eps")


def check_numbers(config: Any) -> None:
    """Raise ScratchvitError for rates outside [0, 1), sizes that are not positive, and a negative num_classes."""
    for name, value in vars(config).items():
        if name.endswith("_rate") and not 0 <= value < 1:
            raise ScratchvitError(f"{name} is a probability and must be in [0, 1), not {value}")
        smallest = min(value, default=0) if isinstance(value, tuple) else value
        if name in _POSITIVE and not smallest > 0:
            raise ScratchvitError(f"{name} must be positive, not {value}")
        if name in ("img_size", "patch_size") and smallest < 1:
            raise ScratchvitError(f"{name} must be at least 1 pixel per side, not {value}")
    if config.num_classes < 0:
        raise ScratchvitError(f"num_classes must be positive, or 0 for no head, not {config.num_classes}")


def check_classifies(name: str, config: Any) -> None:
    """Raise ScratchvitError for the configuration of a detector, if a classifier is needed."""
    if detects(config):
        raise ScratchvitError(
            f"{name} is a detector, which finds boxes and does not classify pictures: use a classifier here; the "
            "commands for detectors are `scratchvit detect-train`, `scratchvit detect-eval` and `scratchvit detect`"
        )


def check_detects(name: str, config: Any) -> None:
    """Raise ScratchvitError for the configuration of a classifier, if a detector is needed."""
    if not detects(config):
        raise ScratchvitError(
            f"{name} is not a detector: it classifies pictures and finds no boxes; use a detector here "
            "(`scratchvit models \"*detr*\"`); the commands for classifiers are `scratchvit train`, `scratchvit eval` "
            "and `scratchvit predict`"
        )


def check_out_indices(config: Any) -> None:
    """Raise ScratchvitError unless the out_indices of a ResNet are valid and used with features_only."""
    indices, stages = config.out_indices, len(config.layers)
    if not config.features_only:
        if indices != type(config).out_indices:
            raise ScratchvitError("out_indices need features_only=True: set it, or leave out_indices out")
    elif not indices or list(indices) != sorted(set(indices) & set(range(stages + 1))):
        raise ScratchvitError(
            f"out_indices must be in 0…{stages} and in increasing order (0: before the max pool; 1…{stages}: after "
            f"that stage), not {indices}"
        )


def check_images(x: Tensor | Array, shape: Sequence[int | None], dtype: Any) -> Tensor:
    """Return images (B, C, H, W), an array or a Tensor, as a Tensor; arrays are converted to `dtype`.

    shape: the (C, H, W) that they must have, None where any will do. Raises ScratchvitError if they do not, for images
    with the channels last, and for bytes, which are pixels that were not normalised.
    """
    if x.ndim == 3 and x.shape[0] == shape[0]:
        raise ScratchvitError(f"this model takes a batch (B, C, H, W), it was given one image {x.shape}: use x[None]")
    if x.ndim == 4 and x.shape[-1] == shape[0] != x.shape[1]:
        raise ScratchvitError(
            f"this model takes images of shape (B, C, H, W), it was given {x.shape}, with the channels last: use "
            "x.transpose(0, 3, 1, 2)"
        )
    if x.ndim != 4 or any(expected not in (None, n) for expected, n in zip(shape, x.shape[1:])):
        wanted = ", ".join(str(expected or axis) for expected, axis in zip(shape, ("C", "height", "width")))
        mend = "create the model with that in_chans" if None in shape else (
            "resize them, or create the model with that img_size and in_chans"
        )
        raise ScratchvitError(f"this model takes images of shape (B, {wanted}), it was given {x.shape}: {mend}")
    if x.dtype == "uint8":
        raise ScratchvitError(
            "this model takes images as floats, it was given uint8: normalise them, for example by "
            "sv.data.Normalize(mean, std), which turns (B, H, W, C) in 0…255 into such images"
        )
    return x if isinstance(x, Tensor) else Tensor(x, dtype=dtype)
