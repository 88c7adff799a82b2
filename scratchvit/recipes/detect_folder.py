"""A small DETR from scratch on your own pictures: the default of `scratchvit detect-train --data FOLDER`.

papers    as in detect_scenes; sizes and crops: DETR 2005.12872, §A.4
command   scratchvit detect-train --data FOLDER
machine   with OMP_NUM_THREADS=1, one core of an Intel Xeon whose other core was busy, 30 min (24 November 2026)
result    BCCD's blood cells (205 pictures to train on, 87 for validation): on its 72 test pictures AP 0.429, AP50 0.724
          (Platelets 0.553, RBC 0.681, WBC 0.938), AP75 0.480 (seed 0)

Before that, 60 epochs with batches of 8, 100 queries and without averaged weights gave AP50 0.521 in 21 min. There must
be at least as many queries as objects in a picture; a run prints a warning if there are fewer.
"""

from scratchvit.detection.config import DetectConfig

RECIPE = DetectConfig(
    data="FOLDER", model="dab_detr_tiny",
    model_args={"two_stage": True, "denoising": 2, "num_queries": 60, "dilation": False},
    epochs=90, batch_size=4, lr=1e-3, ema_decay=0.998, short_side=240, multi_scale=True, flip=True,
)
