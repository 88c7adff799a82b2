"""A small ViT on CIFAR-10 from scratch: the default for `--data cifar10`.

paper     the model: ViT, arXiv 2010.11929; fixed positions and the mean of all tokens: arXiv 2205.01580
command   OMP_NUM_THREADS=1 scratchvit train --recipe vit_cifar10 --data FOLDER
machine   one core of an Intel Xeon, 4 minutes an epoch (23 November 2026)
result    not whole yet: five of the 30 epochs were made, on CIFAR-10 re-encoded as JPEG (a folder of pictures)

    epoch              1     2     3     4     5
    validation, %   26.1  41.5  50.6  56.4  59.5
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="cifar10",
    model="vit_tiny_patch16_224",
    model_args={
        "img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0,
        "class_token": False, "global_pool": "avg", "pos_embed": "sincos", "weight_init": "xavier",
        "drop_path_rate": 0.1,
    },
    epochs=30, batch_size=64, lr=1e-3, weight_decay=0.05, flip=True, crop_padding=4, label_smoothing=0.1,
    ema_decay=0.999,
)  # fmt: skip
