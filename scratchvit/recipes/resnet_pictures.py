"""A small ResNet from scratch on your own pictures: the default of `scratchvit train --data FOLDER`.

paper     ResNet, arXiv 1512.03385; random resized crops: 1409.4842; label smoothing: 1512.00567
command   scratchvit train --recipe resnet_pictures --data FOLDER
machine   two cores of an AMD EPYC (Zen 4), 30 November 2026: python scripts/bench_own_pictures.py FOLDER…
result    beside a ResNet-18 of torchvision that trains from scratch at 224×224 for five minutes (seed 0):
          chess pieces (398 training pictures, 6 classes): 47.7 % of 111 test pictures, ResNet-18 25.2 %
          ants and bees (245 training pictures, 2 classes): 75.2 % of 153 validation pictures in 231 s, ResNet-18 79.7 %

The epochs are those that `scratchvit train --data FOLDER` chooses (see `_own_pictures`), the images 96×96 pixels, which
it chooses for photos. At 128×128 and in the same time, chess pieces had 26.1 %: few pictures need many steps.
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="FOLDER", model="resnet18", model_args={"img_size": 96, "channels": (32, 64, 128, 256)},
    epochs=30, batch_size=16, lr=1e-3, weight_decay=0.05, warmup_epochs=2, ema_decay=0.99, label_smoothing=0.1,
    crop_scale=0.5, flip=True,
)
