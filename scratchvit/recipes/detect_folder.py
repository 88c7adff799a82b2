"""A small DETR on pictures with boxes of one's own, from nothing: what `scratchvit detect-train --data FOLDER` does.

papers    as in detect_scenes; sizes and crops: DETR 2005.12872, §A.4
command   scratchvit detect-train --data FOLDER
machine   to be measured
result    to be measured
"""

from scratchvit.detection.config import DetectConfig

RECIPE = DetectConfig(
    data="FOLDER", model="dab_detr_tiny",
    model_args={"two_stage": True, "denoising": 2, "num_queries": 60, "dilation": False},
    epochs=90, batch_size=4, lr=1e-3, ema_decay=0.998, short_side=240, multi_scale=True, flip=True,
)  # fmt: skip
