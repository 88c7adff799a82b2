"""DeiT: a ViT that learns from a teacher (Touvron et al., ICML 2021, arXiv 2012.12877).

ViT was best after hundreds of millions of pictures. DeiT needs ImageNet's 1.3 million: the model is the same, its
training is not. It gets strong augmentation and regularisation, and a teacher whose answers it learns to give too (§4).
A convolutional network teaches better than a Transformer does, probably because its inductive bias comes with its
answers (§5.2).

What changes in the model, and only with distillation: a second learned token stands beside the class token and attends
to the patches in the same blocks. The class token answers to the true label, the *distillation token* to the teacher's.
Each has a head of its own; at inference their answers are averaged (§4, "classification with our approach: joint
classifiers"; the paper adds the two softmaxes, its authors' code and timm average the logits, and so does this).

    paper                here          shape at DeiT-B, 224×224
    class token          cls_token     (1, 1, 768)
    distillation token   dist_token    (1, 1, 768)
    class head           head          (1000, 768)
    distillation head    head_dist     (1000, 768)
    Z_s                  logits        (B, 1000), of the class head or of both

Without the token, DeiT is ViT, trained otherwise: `deit_tiny_patch16_224` is a VisionTransformer. Names are timm's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchvit import nn
from scratchvit.errors import ScratchvitError
from scratchvit.models.registry import register
from scratchvit.models.vit import VisionTransformer, ViTConfig
from scratchvit.nn import init
from scratchvit.tensor import Tensor

#          name     D   heads       Table 1; 12 blocks, 64 numbers a head
_SIZES = {
    "tiny":  (192,  3),
    "small": (384,  6),
    "base":  (768, 12),
}


def _presets(infix: str) -> dict[str, ViTConfig]:
    presets = {
        f"deit_{size}{infix}_patch16_224": ViTConfig(embed_dim=dim, num_heads=heads)
        for size, (dim, heads) in _SIZES.items()
    }
    presets[f"deit_base{infix}_patch16_384"] = ViTConfig(img_size=384)      # fine-tuned at a higher resolution, §6
    return presets


PRESETS = _presets("")
DISTILLED_PRESETS = _presets("_distilled")


class DistilledVisionTransformer(VisionTransformer):
    """images (B, C, H, W) → logits (B, num_classes), the mean of both heads.

    With `distilled_training` set, and in training mode, it gives both: (class logits, distillation logits), each
    (B, num_classes), for a loss that tells them apart (eqs. 2 and 3).

    Raises ScratchvitError as VisionTransformer does, and if the class token is to be left out.
    """

    def __init__(self, config: ViTConfig, seed: int = 0):
        if config.global_pool != "token" or not config.class_token:
            raise ScratchvitError(
                'a distilled model has a head on its class token and one on its distillation token: it needs '
                f'class_token and global_pool="token", not {config.class_token} and {config.global_pool!r}'
            )
        D, classes = config.embed_dim, config.num_classes
        self.distilled_training = False
        # What is new is made first: ViT's constructor counts the tokens and draws all weights.
        self.dist_token = nn.Parameter(np.zeros((1, 1, D), np.float32))
        self.head_dist = nn.Linear(D, classes) if classes else nn.Identity()
        super().__init__(config, seed)

    def prefix_tokens(self) -> list[nn.Parameter]:
        """The class token and the distillation token, each (1, 1, D)."""
        return [*super().prefix_tokens(), self.dist_token]

    def forward_head(self, x: Tensor) -> Any:
        """tokens (B, 2 + N, D) → logits (B, num_classes), or the pair of them."""
        class_logits = self.head(self.head_drop(x[:, 0]))           # (B, classes)
        distilled_logits = self.head_dist(self.head_drop(x[:, 1]))
        if self.distilled_training and self.training:
            return class_logits, distilled_logits
        return (class_logits + distilled_logits) / 2

    def init_weights(self, rng: np.random.Generator) -> None:
        """As ViT's, and the new token a truncated normal."""
        super().init_weights(rng)
        self.dist_token.assign(init.trunc_normal(self.dist_token.shape, rng))

    def no_weight_decay(self) -> set[str]:
        """As ViT's, and the new token."""
        return super().no_weight_decay() | {"dist_token"}

    def layer_names(self) -> list[tuple[str, ...]]:
        """As ViT's, with the new token among the embeddings and its head beside the other."""
        embeddings, *blocks, head = super().layer_names()
        return [(*embeddings, "dist_token"), *blocks, (*head, "head_dist")]


register(VisionTransformer, PRESETS, paper="DeiT, arXiv 2012.12877")
register(DistilledVisionTransformer, DISTILLED_PRESETS, paper="DeiT, arXiv 2012.12877")
