"""A small ResNet from scratch on your own pictures: the default of `scratchvit train --data FOLDER`.

paper     ResNet, arXiv 1512.03385; random resized crops: 1409.4842; label smoothing: 1512.00567
command   scratchvit train --recipe resnet_pictures --data FOLDER
machine   TO MEASURE
result    TO MEASURE

Without --recipe, the size of the pictures and the number of epochs follow the folder, see `_own_pictures`.
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="FOLDER", model="resnet18", model_args={"img_size": 96, "channels": (32, 64, 128, 256)},
    epochs=30, batch_size=16, lr=1e-3, weight_decay=0.05, warmup_epochs=2, ema_decay=0.99, label_smoothing=0.1,
    crop_scale=0.5, flip=True,
)
