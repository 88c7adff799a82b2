"""Hybrids: a ViT whose patches are cut from the features of a CNN (ViT §3.1, arXiv 2010.11929; augreg, 2106.10270).

What changes against ViT is one layer, the first. A patch embedding is a single matrix on raw pixels; a hybrid lets the
bottom of a ResNet look first, and the Transformer begins with its features:

    images (B, 3, H, W) → ResNet, stride s → features (B, C, H/s, W/s) → patches of P×P features → tokens (B, N, D)

*What the CNN gives*: edges, textures and parts, found by kernels that know that neighbours belong together. That is
what a ViT lacks on little data or with few parameters: hybrids lead at small cost, and the lead is gone in large models
(ViT §4.4, figure 5). *What it costs*: nothing in tokens. A token stands for s·P pixels a side, as if patches were that
large, so attention is no dearer, and the CNN does its work without anything that grows with N².

    model          CNN: blocks a stage      s   P    C     N at 224   N at 384
    R+Ti/16        only the stem            4   8    64     7² =  49   12² = 144
    R26+S/32       2, 2, 2, 2              32   1  2048     7² =  49   12² = 144
    R50+B/16       3, 4, 9                 16   1  1024    14² = 196   24² = 576
    R50+L/32       3, 4, 6, 3              32   1  2048     7² =  49   12² = 144

R50+B/16 is a ResNet-50 whose fourth stage of 3 blocks was moved into the third: as many layers, four times the tokens
(ViT §4.1). R+Ti/16 and timm's name for it say 16, but its weights have 8×8 patches of features of stride 4: 32.

The CNN is that of resnet_v2.py, group norm and weight standardisation, but with the norms after the convolutions, and
with TensorFlow's "same" padding, under which every stride rounds up: a side of n pixels has ⌈n / s⌉ features.

    paper    here                    shape at R50+B/16, 224×224
             patch_embed.backbone    (B, 3, 224, 224) → (B, 1024, 14, 14)
    E        patch_embed.proj        (768, 1024, 1, 1)

Names of parameters are timm's, so that its checkpoints load here and ours there, and so are those of options, but for
`layers` and `width_factor`: timm's functions fix them. The CNN's blocks begin as their shortcuts, as in Google's code;
in timm they do not, which only a training from scratch would notice.
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
    """The sizes of a hybrid: those of a ViT, and of the CNN before it."""

    patch_size: int | tuple[int, int] = option(1, "P: side of the patches, in features of the CNN, or (height, width)")
    layers: tuple[int, ...] = option(
        (3, 4, 9), "blocks of each stage of the CNN, up to four stages; none: only its stem"
    )
    width_factor: int = option(1, "the CNN's channels times this")


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
    """Patches of a CNN's features, embedded: images (B, C, H, W) → tokens (B, N, D)."""

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
                f"of an image of {H}×{W} the CNN makes {features[0]}×{features[1]} features, which cannot be cut into "
                f"patches of {P}×{Q}: choose an img_size that is a multiple of {P * s} by one of {Q * s}, or another "
                "patch_size"
            )
        super().__init__(replace(config, img_size=features, in_chans=backbone.num_features))
        self.img_size = (H, W)
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.backbone(x))


class HybridVisionTransformer(VisionTransformer):
    """images (B, C, H, W), an array or a Tensor → logits (B, num_classes).

    Raises ScratchvitError when sizes do not fit together, or an image's shape does not fit the model.
    """

    embed_layer = HybridEmbed
    patch_embed: HybridEmbed

    def init_weights(self, rng: np.random.Generator) -> None:
        """As ViT's, and the CNN's."""
        super().init_weights(rng)
        self.patch_embed.backbone.init_weights(rng)


register(HybridVisionTransformer, PRESETS, paper="ViT hybrids, arXiv 2010.11929 and 2106.10270")
