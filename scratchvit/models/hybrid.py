"""Hybrids: a ViT on the features of a CNN instead of pixels (ViT §3.1, arXiv 2010.11929; augreg, 2106.10270).

What changes against ViT is only the first layer. A patch embedding is a single matrix on raw pixels; in a hybrid, the
first stages of a ResNet compute features, and the patches are cut from these:

    images (B, 3, H, W) → ResNet, stride s → features (B, C, H/s, W/s) → patches of P×P features → tokens (B, N, D)

*What the CNN adds*: edges, textures and parts, found by kernels with the inductive bias of locality. A ViT lacks it,
which matters with little data or few parameters: hybrids are better in small models, and the advantage disappears in
large ones (ViT §4.4, figure 5). *What it costs*: no additional tokens. A token covers s·P pixels per side, as if
patches were that large, so attention costs the same, and the cost of the CNN does not grow with N².

    model          CNN: blocks per stage    s   P    C     N at 224   N at 384
    R+Ti/16        only the stem            4   8    64     7² =  49   12² = 144
    R26+S/32       2, 2, 2, 2              32   1  2048     7² =  49   12² = 144
    R50+B/16       3, 4, 9                 16   1  1024    14² = 196   24² = 576
    R50+L/32       3, 4, 6, 3              32   1  2048     7² =  49   12² = 144

R50+B/16 is a ResNet-50 whose fourth stage of 3 blocks was moved into the third: the same number of layers, four times
as many tokens (ViT §4.1). The names R+Ti/16 and timm's say 16, but the weights have 8×8 patches of features of stride
4, that is 32.

The CNN is that of resnet_v2.py, with group norm and weight standardisation, but with norms after the convolutions and
with TensorFlow's "same" padding, by which every stride rounds up: a side of n pixels gives ⌈n / s⌉ features.

    paper    here                    shape at R50+B/16, 224×224
             patch_embed.backbone    (B, 3, 224, 224) → (B, 1024, 14, 14)
    E        patch_embed.proj        (768, 1024, 1, 1)

Names of parameters and options are timm's, so that its checkpoints load here and ours there, except `layers` and
`width_factor`, which timm's functions fix. The blocks of the CNN are initialised as identities, as in Google's code; in
timm they are not, which only makes a difference for training from scratch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.models.registry import register
from scratchvit.models.resnet_v2 import ResNetV2, ResNetV2Config, Stem
from scratchvit.models.vit import PatchEmbed, VisionTransformer, ViTConfig, pair
from scratchvit.options import option
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class HybridConfig(ViTConfig):
    """The sizes of a hybrid: those of a ViT, and those of the CNN before it."""

    patch_size: int | tuple[int, int] = option(
        1, "P: side of the patches of the CNN's feature map, or (height, width)"
    )
    layers: tuple[int, ...] = option(
        (3, 4, 9), "blocks in each stage of the CNN, up to four stages; empty: only the stem"
    )
    width_factor: int = option(1, "multiplies the number of channels in every layer of the CNN")


#    name                   CNN's layers    P   D      L   k   pixels
_SIZES = {
    "vit_tiny_r_s16_p8":  ((),              8,  192,  12,  3, (224, 384)),
    "vit_small_r26_s32":  ((2, 2, 2, 2),    1,  384,  12,  6, (224, 384)),
    "vit_base_r26_s32":   ((2, 2, 2, 2),    1,  768,  12, 12, (224,)),
    "vit_base_r50_s16":   ((3, 4, 9),       1,  768,  12, 12, (224, 384)),
    "vit_large_r50_s32":  ((3, 4, 6, 3),    1, 1024,  24, 16, (224, 384)),
}

PRESETS = {
    f"{name}_{size}": HybridConfig(
        img_size=size, layers=layers, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads
    )
    for name, (layers, patch, dim, depth, heads, sizes) in _SIZES.items()
    for size in sizes
}


class HybridEmbed(PatchEmbed):
    """Embed patches of a CNN's feature map: images (B, C, H, W) → tokens (B, N, D)."""

    def __init__(self, config: HybridConfig):
        cnn = ResNetV2Config(
            in_chans=config.in_chans, num_classes=0, global_pool="", layers=tuple(config.layers),
            width_factor=config.width_factor, preact=False, padding_same=True,
        )
        backbone = ResNetV2(cnn) if config.layers else Stem(cnn)
        (H, W), (P, Q), s = pair(config.img_size), pair(config.patch_size), backbone.stride
        features = (math.ceil(H / s), math.ceil(W / s))
        if features[0] % P or features[1] % Q:
            raise ScratchvitError(
                f"for an image of {H}×{W} the CNN gives {features[0]}×{features[1]} features, which cannot be divided "
                f"into patches of {P}×{Q}: choose an img_size whose height is a multiple of {P * s} and width of "
                f"{Q * s}, or another patch_size"
            )
        super().__init__(replace(config, img_size=features, in_chans=backbone.num_features))
        self.img_size = (H, W)
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.backbone(x))


class HybridVisionTransformer(VisionTransformer):
    """images (B, C, H, W), an array or a Tensor → logits (B, num_classes).

    Raises ScratchvitError if sizes are inconsistent, or if the shape of the images does not fit the model.
    """

    embed_layer = HybridEmbed
    patch_embed: HybridEmbed

    def init_weights(self, rng: np.random.Generator) -> None:
        """ViT's initialisation, and that of the CNN."""
        super().init_weights(rng)
        self.patch_embed.backbone.init_weights(rng)


register(HybridVisionTransformer, PRESETS, paper="ViT hybrids, arXiv 2010.11929 and 2106.10270")
