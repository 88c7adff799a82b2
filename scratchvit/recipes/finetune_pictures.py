"""Fine-tuning of pretrained weights on your own pictures, with a new head for their classes.

paper     a small learning rate and few epochs, as in ViT, arXiv 2010.11929, §B.1.1, and BiT, 1912.11370
command   scratchvit train --recipe finetune_pictures --data FOLDER
result    not measured here: no published weights were available

Add the weights, and their model if it is not a ResNet-18: --init FILE --model NAME.
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="FOLDER", model="resnet18", model_args={"img_size": 128}, init="WEIGHTS", new_head=True,
    epochs=10, batch_size=32, lr=3e-4, min_lr=1e-6, weight_decay=0.05, warmup_epochs=1, label_smoothing=0.1,
    crop_scale=0.5, flip=True,
)
