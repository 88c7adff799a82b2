"""A small ViT on Fashion-MNIST from scratch: the default for `--data fashion-mnist`.

paper     the model: ViT, arXiv 2010.11929; fixed positions and the mean of all tokens: arXiv 2205.01580
command   OMP_NUM_THREADS=1 scratchvit train --recipe vit_fashion --data-dir FOLDER
machine   one core of an Intel Xeon, 2 h 10 min (23 November 2026)
result    test 92.2 % with the weights that were best on the validation images, those of epoch 32

    epoch              1     2     5    10    15    20    25    32
    validation, %    51.9  78.5  84.5  87.4  89.6  90.6  91.2  91.8

Patches of 4 pixels are coarse, a seventh of the side of the image; patches of 2 give 196 tokens and take four times as
long. Twelve epochs without stochastic depth, shifts and weight decay 0.1 ended at 89.1 % and overfitted: a ViT needs
regularisation, and with it longer training.
"""

from scratchvit.training import TrainConfig

RECIPE = TrainConfig(
    data="fashion-mnist",
    model="vit_tiny_patch16_224",
    model_args={
        "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0, "drop_path_rate": 0.1,
        "class_token": False, "global_pool": "avg", "pos_embed": "sincos", "weight_init": "xavier",
    },
    epochs=32, batch_size=64, lr=1e-3, weight_decay=0.1, flip=True, crop_padding=1, label_smoothing=0.1,
    ema_decay=0.999,
)
