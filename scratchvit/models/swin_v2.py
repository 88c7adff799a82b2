"""Swin V2: windows that grow with the picture (Liu et al., CVPR 2022, arXiv 2111.09883).

What changes against Swin (swin.py), and why:

1. *Residual post-norm* (§3.2). The output of attention and MLP is normalised before it is added, not their input.
   Otherwise activations accumulate from block to block, and in large models those of deep layers grow until training
   diverges.
2. *Scaled cosine attention* (§3.2). Scores are cosines of q and k, divided by a learned temperature τ: a few pairs with
   large norms can no longer dominate the attention of a row.
3. *Log-spaced continuous position bias* (§3.3). Swin learns a bias for every offset in a window; a larger window has
   offsets that were never trained. Here a small MLP G computes the bias from the offset, on a logarithmic scale: from
   windows of 8 to 16, offsets extrapolate by a third of the trained range, where linear ones do by 1.14 times.

Windows, shifts, masks and stages are Swin's. Two more changes: patch merging normalises after its matrix, and k has no
bias. `scratchvit inspect swinv2_tiny_window8_256` draws windows, masks and the computed bias.

    paper        here            shape at SwinV2-T, window 8, in stage 1 (3 heads)
    Δx, Δy       offsets         (225, 2), on a logarithmic scale: the inputs of G
    G            cpb_mlp         2 → 512 → heads, with a ReLU
    B            position_bias   (heads, 64, 64), 16 σ(G), so at most 16
    τ            logit_scale     (heads, 1, 1): log 1/τ, never above log 100

In shapes, B is the number of images; the other symbols are those of swin.py.

Loading weights of another window size needs no resizing: G is evaluated at other offsets. They are measured in units of
the window that G was trained with, `pretrained_window_sizes`, where it differs from this model's. Names are timm's.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from scratchvit import nn, ops
from scratchvit.backend import Array
from scratchvit.errors import ScratchvitError
from scratchvit.models import swin
from scratchvit.models.registry import register
from scratchvit.models.swin import EPS, SIZES, neighbours
from scratchvit.models.vit import pair
from scratchvit.models.windows import bias_of_pairs, relative_position_index, window_and_shift
from scratchvit.options import option
from scratchvit.tensor import Tensor

HIDDEN = 512                # of G
LARGEST_SCALE = 100.0       # 1/τ, as τ is at least 0.01
EARLIEST_SCALE = 10.0       # initial 1/τ


@dataclass(frozen=True)
class SwinV2Config(swin.SwinConfig):
    """The sizes of a Swin Transformer V2."""

    img_size: int | tuple[int, int] = option(256, "side of the images, or (height, width)")
    window_size: int | tuple[int, int] = option(8, "M: side of the windows in tokens, or (height, width)")
    pretrained_window_sizes: tuple[int, ...] = option(
        (), "per stage, of the training of the weights; 0: as here; (): all 0"
    )


#    windows and images        sizes, as Swin's           image   M  trained before with
_WINDOWS = {
    "window8_256":           (("tiny", "small", "base"),   256,   8, ()),
    "window16_256":          (("tiny", "small", "base"),   256,  16, ()),
    "window12_192":          (("base", "large"),           192,  12, ()),
    "window12to16_192to256": (("base", "large"),           256,  16, (12, 12, 12, 6)),
    "window12to24_192to384": (("base", "large"),           384,  24, (12, 12, 12, 6)),
}

PRESETS = {
    f"swinv2_{size}_{windows}": SwinV2Config(
        img_size=side, window_size=window, embed_dim=dim, depths=depths, num_heads=heads,
        pretrained_window_sizes=pretrained,
    )
    for windows, (sizes, side, window, pretrained) in _WINDOWS.items()
    for size in sizes
    for dim, depths, heads in [SIZES[size]]
}


@functools.lru_cache(maxsize=64)
def log_spaced_offsets(window: tuple[int, int], pretrained: int) -> np.ndarray:
    """The offsets (Δy, Δx) between two tokens of a window on a logarithmic scale, eq. 4, float32 (offsets, 2).

    In the order of the rows that `relative_position_index` refers to. The largest offset of the window (of the
    pretrained one, where it is not 0) becomes 8, and sign(Δ) log₂(1 + |Δ|) / 3 of it about 1: the paper's formula
    leaves base and unit to its code.
    """
    axes = [8 * np.arange(1 - m, m) / max((pretrained or m) - 1, 1) for m in window]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)      # ((2M-1)(2M'-1), 2)
    offsets = (np.sign(offsets) * np.log2(1 + np.abs(offsets)) / 3).astype(np.float32)
    offsets.setflags(write=False)       # all callers share it
    return offsets


def inverse_length(x: Tensor) -> Tensor:
    """1 / |x| of the vectors along the last axis, which stays as an axis of 1; at most 1e12.

    The k of padding is exactly zero, as k has no bias. With the bound it stays zero, and its gradient finite.
    """
    return (x * x).sum(dim=-1, keepdim=True).clip(min=1e-24) ** -0.5


class ReLU(nn.Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class WindowAttention(nn.Module):
    """Cosine attention among the tokens of each window, with a computed bias: (B·nW, N, D) → (B·nW, N, D)."""

    def __init__(self, config: SwinV2Config, stage: int, window: tuple[int, int]):
        D, self.num_heads = config.embed_dim * 2**stage, config.num_heads[stage]
        self.index = Tensor(relative_position_index(window))        # (N, N)
        pretrained = config.pretrained_window_sizes[stage] if config.pretrained_window_sizes else 0
        self.offsets = Tensor(log_spaced_offsets(window, pretrained))
        self.logit_scale = nn.Parameter(np.full((self.num_heads, 1, 1), math.log(EARLIEST_SCALE), np.float32))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, HIDDEN), ReLU(), nn.Linear(HIDDEN, self.num_heads, bias=False))
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.q_bias = nn.Parameter(np.zeros(D, np.float32)) if config.qkv_bias else None
        self.v_bias = nn.Parameter(np.zeros(D, np.float32)) if config.qkv_bias else None
        self.k_bias = Tensor(np.zeros(D, np.float32))               # constant
        self.attn_drop = nn.Dropout(config.attn_drop_rate)
        self.proj = nn.Linear(D, D)
        self.proj_drop = nn.Dropout(config.proj_drop_rate)

    def forward(self, x: Tensor, mask: Array | None) -> Tensor:
        windows, N, D = x.shape                                     # windows: B·nW, those of all images
        qkv = ops.linear(x, self.qkv.weight, self.qkv_bias())       # (B·nW, N, 3D)
        qkv = qkv.reshape(windows, N, 3, self.num_heads, D // self.num_heads)           # (B·nW, N, 3, heads, d)
        q, k, v = qkv.permute((2, 0, 3, 1, 4)).unbind(0)            # each (B·nW, heads, N, d)
        q, k = ops.to_float32(q), ops.to_float32(k)                 # 16 bits are too few for 1 / |k| up to 1e12
        scale = self.logit_scale.clip(max=math.log(LARGEST_SCALE)).exp()        # 1/τ, (heads, 1, 1)
        x = ops.attention(                                          # softmax(cos(q, k) / τ + bias) v, eq. 2
            q * (inverse_length(q) * scale), k * inverse_length(k), v, scale=1.0, bias=self.position_bias(), mask=mask,
            dropout=self.attn_drop.p if self.training else 0.0, generator=self.attn_drop.generator,
        )
        x = x.transpose(1, 2).reshape(windows, N, D)                # (B·nW, N, D), the heads side by side again
        return self.proj_drop(self.proj(x))

    def qkv_bias(self) -> Tensor | None:
        """The bias of q, k (zeros) and v, (3D,); None without biases."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return ops.concatenate([self.q_bias, self.k_bias, self.v_bias])

    def position_bias(self) -> Tensor:
        """B(Δx, Δy) = G(Δx, Δy), eq. 3, for every pair of tokens, (heads, N, N)."""
        return bias_of_pairs(16 * self.cpb_mlp(self.offsets).sigmoid(), self.index)


class Block(swin.Block):
    """Swin's block with the norms after attention and MLP: (B, h, w, D) → (B, h, w, D)."""

    attention_layer = WindowAttention

    @staticmethod
    def window_and_shift(
        config: swin.SwinConfig, stage: int, size: tuple[int, int], shifted: bool
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """As Swin's, but for Hugging Face's rule: the image's height decides, and halves are rounded down.

        So a map of 8 rows that were merged from 15 has windows of at most 7.
        """
        if config.window_rule == "huggingface":
            rows = max(1, pair(config.img_size)[0] // pair(config.patch_size)[0] >> stage)
            size = rows, rows
        return window_and_shift(size, pair(config.window_size), shifted, config.window_rule)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.norm1(self.attend(x)))         # Figure 1, right
        x = x + self.drop_path2(self.norm2(self.mlp(x)))
        return x


class PatchMerging(nn.Module):
    """Swin's with the norm after the matrix: (B, h, w, D) → (B, ⌈h/2⌉, ⌈w/2⌉, 2D)."""

    def __init__(self, dim: int):
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(neighbours(x)))


class SwinTransformerV2(swin.SwinTransformer):
    """images (B, in_chans, H, W), an array or a Tensor → logits (B, num_classes).

    Raises ScratchvitError as SwinTransformer does, and if pretrained_window_sizes are not one per stage.
    """

    layers_of_a_stage = (Block, PatchMerging)

    def __init__(self, config: SwinV2Config, seed: int = 0):
        sizes = config.pretrained_window_sizes
        if sizes and (len(sizes) != len(config.depths) or min(sizes) < 0):
            raise ScratchvitError(
                f"pretrained_window_sizes are one for each of the {len(config.depths)} stages, 0 where the window is "
                f"the model's own, not {sizes}"
            )
        super().__init__(config, seed)

    def init_weights(self, rng: np.random.Generator) -> None:
        """As Swin's, with the blocks' norm weights 0: at first, every block is the identity (§3.2, as in timm)."""
        super().init_weights(rng)
        for module in self.modules():
            if isinstance(module, Block):
                for norm in (module.norm1, module.norm2):
                    norm.weight.assign(0)

    def no_weight_decay(self) -> set[str]:
        """Weight decay is not applied to τ, nor to the MLPs of the position bias, whose output is bounded."""
        return {name for name, _ in self.named_parameters() if "cpb_mlp" in name or name.endswith("logit_scale")}


register(SwinTransformerV2, PRESETS, paper="Swin V2, arXiv 2111.09883")
