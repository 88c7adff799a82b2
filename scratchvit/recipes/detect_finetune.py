"""The DETR authors' settings for training, to fine-tune a DETR on your own pictures with a new head for their classes.

paper     DETR 2005.12872, §4 and §A.4: lr 1e-4, of the backbone 1e-5, with conv1 and layer1 frozen, weight decay 1e-4,
          gradients clipped at 0.1, AdamW, sizes 480 … 800 with crops
command   scratchvit detect-train --recipe detect_finetune --data FOLDER --init WEIGHTS
result    not measured here: no published weights were available. Steps of two such pictures need a GPU, or patience;
          --short-side 400 makes them four times cheaper
"""

from scratchvit.detection.config import DetectConfig

RECIPE = DetectConfig(
    data="FOLDER", model="detr_resnet50", init="WEIGHTS", new_head=True, freeze_stem=True,
    epochs=50, batch_size=2, lr=1e-4, lr_backbone=0.1, min_lr=1e-6, weight_decay=1e-4, clip_grad=0.1,
    short_side=800, longest=1333, multi_scale=True, flip=True,
)
