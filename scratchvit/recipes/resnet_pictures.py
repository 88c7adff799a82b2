"""A small ResNet from scratch on your own pictures: the default of `scratchvit train --data FOLDER`.

paper     ResNet, arXiv 1512.03385; random resized crops: 1409.4842; label smoothing: 1512.00567
command   scratchvit train --recipe resnet_pictures --data FOLDER
machine   two cores of AMD EPYCs (Zen 4 and Zen 5), 30 November and 1 December 2026; docs/benchmarks.md has the details:
          python scripts/bench_own_pictures.py FOLDER…
result    beside a ResNet-18 of torchvision that trains from scratch at 224×224 for five minutes (seed 0):
          chess pieces (398 training pictures, 6 classes): 47.7 % of 111 test pictures in 180 s; ResNet-18 40.5 %
          household trash (1,820, 6 classes): 70.7 % of 505 test pictures in 199 s; ResNet-18 67.9 %
          brain scans (182, 2 classes): 88.2 % of 51 test pictures in 123 s; ResNet-18 88.2 %
          held back while the settings were chosen:
          ants and bees (245, 2 classes): 78.4 % of 153 validation pictures in 251 s; ResNet-18 77.1 %
          flowers (3,109, 5 classes): 62.0 % of 863 test pictures in 227 s; ResNet-18 54.9 %

The epochs are those that `scratchvit train --data FOLDER` chooses (see `_own_pictures`), the images 96×96 pixels, which
it chooses for photos. At 128×128 and in the same time, chess pieces had 26.1 %: few pictures need many steps.
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="FOLDER", model="resnet18", model_args={"img_size": 96, "channels": (32, 64, 128, 256)},
    epochs=30, batch_size=16, lr=1e-3, weight_decay=0.05, warmup_epochs=2, ema_decay=0.99, label_smoothing=0.1,
    crop_scale=0.5, flip=True,
)
