"""DeiT: a ViT that learns from a teacher (Touvron et al., ICML 2021, arXiv 2012.12877).

ViT was pretrained on hundreds of millions of images. DeiT needs only ImageNet's 1.3 million: the model is the same, the
training is different. It uses strong augmentation and regularisation, and knowledge distillation from a teacher (§4). A
convolutional network is a better teacher than a Transformer, probably because the student inherits its inductive bias
(§5.2).

What changes in the model, and only with distillation: a second learned token next to the class token, which attends to
the patches in the same blocks. The class token is trained with the true label, the *distillation token* with that of
the teacher. Each has its own head; at inference the logits are averaged (§4, "classification with our approach: joint
classifiers": the paper adds the two softmaxes, its authors' code and timm average the logits, as here).

    paper                here          shape at DeiT-B, 224×224
    class token          cls_token     (1, 1, 768)
    distillation token   dist_token    (1, 1, 768)
    class head           head          (1000, 768)
    distillation head    head_dist     (1000, 768)
    Z_s                  logits        (B, 1000), of the class head or of both

Without distillation, DeiT is a ViT trained differently: `deit_tiny_patch16_224` is a VisionTransformer. Names are as in
timm.
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

#          name     D   heads       Table 1; 12 blocks, 64 channels per head
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

    If `distilled_training` is set, and in training mode, it returns both: (class logits, distillation logits), each
    (B, num_classes), for a distillation loss (eqs. 2 and 3).

    Raises ScratchvitError as VisionTransformer does, and for a configuration without class token.
    """

    def __init__(self, config: ViTConfig, seed: int = 0):
        if config.global_pool != "token" or not config.class_token:
            raise ScratchvitError(
                'a distilled model has heads on its class token and its distillation token: it needs '
                f'class_token=True and global_pool="token", not {config.class_token} and {config.global_pool!r}'
            )
        D, classes = config.embed_dim, config.num_classes
        self.distilled_training = False
        # Before super().__init__, which counts the tokens and initialises all weights.
        self.dist_token = nn.Parameter(np.zeros((1, 1, D), np.float32))
        self.head_dist = nn.Linear(D, classes) if classes else nn.Identity()
        super().__init__(config, seed)

    def prefix_tokens(self) -> list[nn.Parameter]:
        """The class token and the distillation token, each (1, 1, D)."""
        return [*super().prefix_tokens(), self.dist_token]

    def forward_head(self, x: Tensor) -> Any:
        """tokens (B, 2 + N, D) → logits (B, num_classes), or a pair of them in distillation training."""
        class_logits = self.head(self.head_drop(x[:, 0]))           # (B, classes)
        distilled_logits = self.head_dist(self.head_drop(x[:, 1]))
        if self.distilled_training and self.training:
            return class_logits, distilled_logits
        return (class_logits + distilled_logits) / 2

    def init_weights(self, rng: np.random.Generator) -> None:
        """ViT's initialisation, and a truncated normal for the distillation token."""
        super().init_weights(rng)
        self.dist_token.assign(init.trunc_normal(self.dist_token.shape, rng))

    def no_weight_decay(self) -> set[str]:
        """The names of VisionTransformer.no_weight_decay, and the distillation token."""
        return super().no_weight_decay() | {"dist_token"}

    def layer_names(self) -> list[tuple[str, ...]]:
        """The layers of a ViT, with the distillation token in the first and its head in the last."""
        embeddings, *blocks, head = super().layer_names()
        return [(*embeddings, "dist_token"), *blocks, (*head, "head_dist")]


register(VisionTransformer, PRESETS, paper="DeiT, arXiv 2012.12877")
register(DistilledVisionTransformer, DISTILLED_PRESETS, paper="DeiT, arXiv 2012.12877")
