"""ResNet-18 with its ImageNet stem on CIFAR-10: a CNN to compare a ViT with, or to use as its teacher.

paper     ResNet, arXiv 1512.03385; settings: its §4.2, with a cosine schedule and the warm-up of large batches
command   OMP_NUM_THREADS=1 scratchvit train --recipe resnet18_cifar10 --data FOLDER
machine   one busy core of an Intel Xeon, 66 min (23 November 2026)
result    test 71.3 % after five epochs, on CIFAR-10 re-encoded as JPEG; validation 36.2, 55.3, 60.8, 69.6, 71.0 %.
          It shows that the model trains, not what a ResNet can reach
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="cifar10", model="resnet18", model_args={"img_size": 32},
    epochs=5, batch_size=64, optimizer="sgd", lr=0.05, weight_decay=5e-4, warmup_epochs=1, clip_grad=0, flip=True,
    crop_padding=4,
)
