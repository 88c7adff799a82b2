"""A small DETR on scenes of scikit-learn's digits, from nothing: what `scratchvit detect-train` does without options.

papers    DETR 2005.12872; anchors as queries DAB-DETR 2201.12329; two stages Deformable DETR 2010.04159; denoising
          DN-DETR 2203.01305; focal loss 1708.02002
command   scratchvit detect-train --recipe detect_scenes
machine   to be measured
result    to be measured
"""

from scratchvit.detection.config import DetectConfig

RECIPE = DetectConfig(
    data="scenes", model="dab_detr_tiny", model_args={"two_stage": True, "denoising": 3},
    epochs=12, batch_size=8, lr=1e-3,
)  # fmt: skip
