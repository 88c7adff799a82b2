"""A small ViT on CIFAR-10 from scratch: the default for `--data cifar10`.

paper     the model: ViT, arXiv 2010.11929; fixed positions and the mean of all tokens: arXiv 2205.01580
command   OMP_NUM_THREADS=1 scratchvit train --recipe vit_cifar10 --data FOLDER
machine   one core of an Intel Xeon, 2 h 23 min, of which half an hour beside other work (23 and 24 November 2026)
result    test 79.4 % with the weights that were best on the validation images, those of epoch 29

    epoch              1     2     5    10    15    20    25    29    30
    validation, %   26.1  41.5  59.5  68.6  74.1  77.3  78.3  78.9  78.9

Measured on CIFAR-10 re-encoded as JPEG, in an image folder. The accuracy on augmented training images was 84.5 % at the
end.
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
)
