"""Every setting of a run that trains a detector; what it shares with other runs is in `training.config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scratchvit.training.config import RunConfig, option


@dataclass(frozen=True)
class DetectConfig(RunConfig):
    """A run of `scratchvit detect-train`."""

    command: ClassVar[str] = "detect-train"

    data: str = option("scenes", "scenes (made of digits as it goes), or a folder in COCO's, VOC's or YOLO's format")
    skip_bad: bool = option(False, "leave out, and name, bad annotations and pictures that do not decode")
    epoch_images: int = option(0, "of scenes, which never end: how many are an epoch; 0: 2000")
    overfit_one_batch: bool = option(
        False, "train on the first batch alone, as it is, and evaluate on it: can everything learn at all?"
    )

    model: str = option("detr_tiny", "a name from `scratchvit models 'd*'`")
    freeze_stem: bool = option(False, "keep conv1 and layer1 of the backbone as they are, as the authors do")

    short_side: int = option(0, "bring the shorter side of pictures to so many pixels; 0: pictures as they are")
    longest: int = option(0, "but the longer side to no more than that; 0: 5/3 of short_side")
    multi_scale: bool = option(False, "the paper's sizes, from 0.6 to 1 of short_side, and its crops")
    flip: bool = option(False, "mirror training images at random")
    color_jitter: float = option(0.0, "change brightness, contrast and saturation by up to this share")

    batch_size: int = option(16, "images in a step")
    lr: float = option(5e-4, "learning rate after the warm-up")
    lr_backbone: float = option(1.0, "the backbone's learning rate as a share of lr; authors: 0.1, when pretrained")
    weight_decay: float = option(1e-4, "decay of matrices; norms, biases and queries have none")
    clip_grad: float = option(0.1, "largest norm of all gradients together; 0: no limit")
    warmup_epochs: float = option(1.0, "epochs in which the learning rate rises to lr, at most half of them")

    cost_class: float | None = option(
        None, "what the class counts when queries are matched with objects; none: 1, of focal models 2"
    )
    cost_bbox: float = option(5.0, "what the L1 distance of boxes counts there")
    cost_giou: float = option(2.0, "what the generalised IoU of boxes counts there")
    weight_ce: float | None = option(None, "what the class counts in the loss; none: 1, of focal models 2")
    weight_bbox: float = option(5.0, "what the L1 distance of boxes counts there")
    weight_giou: float = option(2.0, "what the generalised IoU of boxes counts there")
    eos_coef: float = option(0.1, "what a query that is to find nothing counts in the loss of classes; unused if focal")
