"""The settings of a run that trains a detector; those of every run are in `training.config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scratchvit.options import option
from scratchvit.training.config import RunConfig


@dataclass(frozen=True)
class DetectConfig(RunConfig):
    """A run of `scratchvit detect-train`."""

    command: ClassVar[str] = "detect-train"

    data: str = option("scenes", "scenes (generated from digits), or a folder in COCO, VOC, YOLO or CSV format")
    skip_bad: bool = option(False, "skip bad annotations and pictures that cannot be decoded, and list them")
    epoch_images: int = option(0, "scenes in an epoch; 0: 2000")
    overfit_one_batch: bool = option(
        False, "train and evaluate on the first batch alone, without augmentation, to check that it can be learned"
    )

    model: str = option("detr_tiny", 'name of the model, see `scratchvit models "*detr*"`')
    freeze_stem: bool = option(False, "freeze conv1 and layer1 of the backbone, as the authors do")

    short_side: int = option(0, "resize pictures so that the shorter side has this many pixels; 0: do not resize")
    longest: int = option(0, "limit of the longer side in pixels; 0: 5/3 of short_side")
    multi_scale: bool = option(False, "random sizes from 0.6 to 1 of short_side, and random crops, as in the paper")
    flip: bool = option(False, "flip training images horizontally at random")
    pad_to: int = option(
        64, "where a GPU replays steps, and pictures differ in size: pad batches to multiples of this many pixels, so "
        "that few sizes have to be captured. Padding is masked, but what lies beside it changes a little; 1: no padding"
    )
    color_jitter: float = option(0.0, "largest relative change of brightness, contrast and saturation")

    batch_size: int = option(16, "images per training step")
    lr: float = option(5e-4, "learning rate after the warm-up")
    lr_backbone: float = option(1.0, "learning rate of the backbone as a share of lr; authors: 0.1, when pretrained")
    weight_decay: float = option(1e-4, "weight decay of weight matrices; norms, biases and queries have none")
    clip_grad: float = option(0.1, "largest norm of the gradient of all parameters; 0: no clipping")
    warmup_epochs: float = option(1.0, "epochs in which the learning rate rises to lr; at most half of all epochs")

    cost_class: float | None = option(None, "weight of the class in the matching cost; none: 1, or 2 with focal")
    cost_bbox: float = option(5.0, "λ_L1: weight of the L1 box distance in the matching cost")
    cost_giou: float = option(2.0, "λ_iou: weight of the generalised IoU in the matching cost")
    weight_ce: float | None = option(None, "weight of the class loss; none: 1, or 2 with focal")
    weight_bbox: float = option(5.0, "λ_L1: weight of the L1 box loss")
    weight_giou: float = option(2.0, "λ_iou: weight of the generalised IoU loss")
    eos_coef: float = option(0.1, 'class weight of "no object" in the cross-entropy; not used with focal')
