"""Swin: attention within windows that shift (Liu et al., ICCV 2021, arXiv 2103.14030).

ViT compares every patch with every other, so patches must stay few and coarse. What changes: attention stays within
windows of M×M patches, and its cost grows linearly with the number of patches, no longer with its square. Then patches
can be small (4×4 pixels), and the model can be a pyramid, as CNNs are: from stage to stage 2×2 neighbours are merged,
which gives maps of 56², 28², 14² and 7² tokens with 96, 192, 384 and 768 channels.

    multiply-adds of attention      global: 4hwC² + 2(hw)²C, eq. 1      windows: 4hwC² + 2M²hwC, eq. 2

Swin-T's first stage has 64 windows of 7×7 tokens: 64 · 49² = 153,664 scores a head. Global attention would have
3,136² = 9,834,496.

No information crosses the borders of fixed windows. So every second block shifts them by half a window, so that tokens
of different windows now share one. `Block.attend` has the steps in order; windows.py has a drawing, the parts and the
mask. `scratchvit inspect swin_tiny_patch4_window7_224` draws windows, masks, bias tables and receptive fields of every
block.

    paper    here                 shape or value at Swin-T, 224×224, in stage 1
    x        images               (B, 3, 224, 224); H, W are 224
    h, w     the map of tokens    56, 56; halved by every merging
    C        embed_dim            96: channels of a token in stage 1
             D                    96: channels of a token in this stage, doubled by every merging
    M        window_size          7; a window has N = 49 tokens, and an image nW = 64 windows
    z^l      x in blocks          (B, h, w, D)
    B̂        bias table           (169, heads): an entry for each of the (2M-1)² offsets between two tokens of a window
    B        bias (eq. 4)         (heads, 49, 49): the entry of B̂ for every pair of tokens

In shapes, B is the number of images, and d = D / heads the channels of a head.

Parameters and options are named as in timm. Three options are not timm's: initialisation by width (weight_init), and
two for weights of other libraries: the rule for maps that windows do not divide (window_rule), and the ε of Hugging
Face's `layer_norm_eps` (norm_eps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import nn, ops
from scratchvit.backend import Array
from scratchvit.errors import ScratchvitError
from scratchvit.models import vit
from scratchvit.models.checks import check_images, check_numbers
from scratchvit.models.registry import register
from scratchvit.models.vit import pair
from scratchvit.models.windows import (
    WINDOW_RULES,
    bias_of_pairs,
    crop,
    pad_below_and_right,
    padding_of,
    relative_position_index,
    same_region,
    shifted_regions,
    window_and_shift,
)
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor

EPS = 1e-5      # of the layer norms of the patch embedding and of patch merging, in every library


@dataclass(frozen=True)
class SwinConfig:
    """The sizes of a Swin Transformer."""

    img_size: int | tuple[int, int] = option(224, "side of the images, or (height, width)")
    patch_size: int | tuple[int, int] = option(4, "side of the patches, or (height, width)")
    in_chans: int = option(3, "channels of the images")
    num_classes: int = option(1000, "0: no head, the pooled features come out")
    embed_dim: int = option(96, "C: channels (width) of a token in stage 1")
    depths: tuple[int, ...] = option((2, 2, 6, 2), "blocks in each stage; every second one shifts its windows")
    num_heads: tuple[int, ...] = option((3, 6, 12, 24), "attention heads in each stage")
    window_size: int | tuple[int, int] = option(7, "M: side of the windows in tokens, or (height, width)")
    mlp_ratio: float = option(4.0, "hidden width of the MLP as a multiple of its tokens' width")
    qkv_bias: bool = option(True, "whether q, k and v have biases")
    window_rule: str = option(
        "timm", "windows at the edge of a map that they do not divide: as in timm, huggingface or torchvision"
    )
    norm_eps: float = option(EPS, "ε of the layer norms in the blocks and of the last one; all others have 1e-5")
    weight_init: str = option("timm", "\"timm\": standard deviation 0.02; \"xavier\": by width, for small models")
    drop_rate: float = option(0.0, "dropout rate before the head")
    proj_drop_rate: float = option(0.0, "dropout rate after the projections of attention and MLP")
    attn_drop_rate: float = option(0.0, "dropout rate of the attention probabilities")
    drop_path_rate: float = option(0.1, "stochastic depth rate of the last block; rises linearly from 0 at the first")


#          name      C   depths          heads               §3.3 of the paper: 32 channels a head, MLP 4 times as wide
SIZES = {
    "tiny":  ( 96, (2, 2,  6, 2), (3,  6, 12, 24)),
    "small": ( 96, (2, 2, 18, 2), (3,  6, 12, 24)),
    "base":  (128, (2, 2, 18, 2), (4,  8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

PRESETS = {
    f"swin_{size}_patch4_window{window}_{side}": SwinConfig(
        img_size=side, window_size=window, embed_dim=dim, depths=depths, num_heads=heads
    )
    for size, (dim, depths, heads) in SIZES.items()
    for window, side in (((7, 224), (12, 384)) if size in ("base", "large") else ((7, 224),))
}


class PatchEmbed(vit.PatchEmbed):
    """Patches of 4×4 pixels, embedded as in ViT, then normalised: images (B, in_chans, H, W) → a map (B, h, w, C)."""

    def __init__(self, config: SwinConfig):
        super().__init__(vit.ViTConfig(
            img_size=config.img_size, patch_size=config.patch_size, in_chans=config.in_chans,
            embed_dim=config.embed_dim,
        ))
        self.norm = nn.LayerNorm(config.embed_dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(super().forward(x))                           # (B, h·w, C)
        return x.reshape(len(x), *self.grid_size, -1)               # (B, h, w, C)


class WindowAttention(nn.Module):
    """Attention among the tokens of each window, with a learned bias for every offset: (B·nW, N, D) → (B·nW, N, D)."""

    def __init__(self, config: SwinConfig, stage: int, window: tuple[int, int]):
        D, self.num_heads = config.embed_dim * 2**stage, config.num_heads[stage]
        self.window = window
        self.index = Tensor(relative_position_index(window))        # (N, N); computed, so not part of the state
        self.relative_position_bias_table = nn.Parameter(           # B̂
            np.zeros(((2 * window[0] - 1) * (2 * window[1] - 1), self.num_heads), np.float32)
        )
        self.qkv = nn.Linear(D, 3 * D, bias=config.qkv_bias)
        self.attn_drop = nn.Dropout(config.attn_drop_rate)
        self.proj = nn.Linear(D, D)
        self.proj_drop = nn.Dropout(config.proj_drop_rate)

    def forward(self, x: Tensor, mask: Array | None) -> Tensor:
        windows, N, D = x.shape                                     # windows: B·nW, those of all images
        qkv = self.qkv(x).reshape(windows, N, 3, self.num_heads, D // self.num_heads)   # (B·nW, N, 3, heads, d)
        q, k, v = qkv.permute((2, 0, 3, 1, 4)).unbind(0)            # each (B·nW, heads, N, d)
        x = ops.attention(                                          # softmax(q kᵀ / √d + bias) v, eq. 4
            q, k, v, bias=bias_of_pairs(self.relative_position_bias_table, self.index), mask=mask,
            dropout=self.attn_drop.p if self.training else 0.0, generator=self.attn_drop.generator,
        )
        x = x.transpose(1, 2).reshape(windows, N, D)                # (B·nW, N, D), the heads side by side again
        return self.proj_drop(self.proj(x))


class Block(nn.Module):
    """A Transformer layer whose attention stays within windows, regular or shifted: (B, h, w, D) → (B, h, w, D)."""

    attention_layer: type[Any] = WindowAttention

    def __init__(self, config: SwinConfig, stage: int, size: tuple[int, int], shifted: bool, drop_path: float):
        D = config.embed_dim * 2**stage
        self.window, self.shift = self.window_and_shift(config, stage, size, shifted)
        self.regions = shifted_regions(size, self.window, self.shift) if any(self.shift) else None
        self.pads_first = config.window_rule != "timm"
        self.norm1 = nn.LayerNorm(D, config.norm_eps)
        self.attn = self.attention_layer(config, stage, self.window)
        self.drop_path1 = nn.DropPath(drop_path)
        self.norm2 = nn.LayerNorm(D, config.norm_eps)
        self.mlp = nn.Mlp(D, int(D * config.mlp_ratio), drop=config.proj_drop_rate)
        self.drop_path2 = nn.DropPath(drop_path)

    @staticmethod
    def window_and_shift(
        config: SwinConfig, stage: int, size: tuple[int, int], shifted: bool
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """The block's (window, shift) on a map of this size (h, w)."""
        return window_and_shift(size, pair(config.window_size), shifted, config.window_rule)

    def attend(self, x: Tensor) -> Tensor:
        """W-MSA, attention in regular windows; or SW-MSA, in shifted ones: (B, h, w, D) → (B, h, w, D).

        Padding, rows and columns of zeros that complete the last windows, is not masked as such: it is attended to like
        other tokens. It is rolled too or, as in timm, stays at the edge (`window_rule`, see windows.py).
        """
        B, h, w, _ = x.shape
        padding = below, right = padding_of((h, w), self.window)
        padded = h + below, w + right
        rolled = padded if self.pads_first else (h, w)              # padding that is added later is not rolled

        x = pad_below_and_right(x, padding)                         # (B, h + below, w + right, D)
        x = ops.window_partition(x, self.window, self.shift, rolled)    # (B·nW, N, D), token `shift` is the first
        mask = None if self.regions is None else same_region(self.regions, B)       # (B·nW, 1, N, N)
        x = self.attn(x, mask)                                      # (B·nW, N, D)
        x = ops.window_reverse(x, self.window, padded, self.shift, rolled)          # every token at its place
        return crop(x, padding)                                     # (B, h, w, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attend(self.norm1(x)))         # ẑ^l, eq. 3
        x = x + self.drop_path2(self.mlp(self.norm2(x)))            # z^l, eq. 3
        return x


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width: (B, h, w, D) → (B, ⌈h/2⌉, ⌈w/2⌉, 2D)."""

    def __init__(self, dim: int):
        self.norm = nn.LayerNorm(4 * dim, EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(neighbours(x)))


def neighbours(x: Tensor) -> Tensor:
    """(B, h, w, D) → (B, ⌈h/2⌉, ⌈w/2⌉, 4D): the tokens of each 2×2 square side by side.

    Their order is upper left, lower left, upper right, lower right, as in the authors' code.
    """
    B, h, w, D = x.shape
    if h % 2 or w % 2:
        x = x.pad((0, 0, 0, w % 2, 0, h % 2))                       # a row or column of zeros makes the side even
    h, w = (h + 1) // 2, (w + 1) // 2
    x = x.reshape(B, h, 2, w, 2, D).permute((0, 1, 3, 4, 2, 5))     # (B, h, w, 2, 2, D): column, row
    return x.reshape(B, h, w, 4 * D)


class Stage(nn.Module):
    """Patch merging, except in the first stage, then blocks with regular and shifted windows in turn.

    size: (h, w) of the map in this stage.  layers: the classes of its blocks and of its merging.
    """

    def __init__(
        self, config: SwinConfig, stage: int, size: tuple[int, int], drop_paths: Sequence[float],
        layers: tuple[type[Block], Callable[[int], nn.Module]],
    ):
        block, merging = layers
        self.downsample = merging(config.embed_dim * 2 ** (stage - 1)) if stage else nn.Identity()
        self.blocks = nn.Sequential(*(
            block(config, stage, size, i % 2 == 1, drop_path) for i, drop_path in enumerate(drop_paths)
        ))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    """The mean over the map, then dropout and a linear classifier: (B, h, w, D) → (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int, drop_rate: float):
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x.mean(dim=(1, 2))))


class SwinTransformer(nn.Module):
    """images (B, in_chans, H, W), an array or a Tensor → logits (B, num_classes).

    Raises ScratchvitError when sizes do not fit together, or the images' shape does not fit the model.
    """

    layers_of_a_stage: tuple[type[Block], Callable[[int], nn.Module]] = (Block, PatchMerging)

    def __init__(self, config: SwinConfig, seed: int = 0):
        _check(config)
        self.config = config
        self.patch_embed = PatchEmbed(config)
        drop_paths = np.linspace(0, config.drop_path_rate, sum(config.depths)).tolist()
        size, stages = self.patch_embed.grid_size, []
        for stage, depth in enumerate(config.depths):
            stages.append(Stage(config, stage, size, drop_paths[:depth], self.layers_of_a_stage))
            drop_paths = drop_paths[depth:]
            size = (size[0] + 1) // 2, (size[1] + 1) // 2
        self.layers = nn.Sequential(*stages)
        self.num_features = config.embed_dim * 2 ** (len(stages) - 1)
        self.norm = nn.LayerNorm(self.num_features, config.norm_eps)
        self.head = Head(self.num_features, config.num_classes, config.drop_rate)

        self.init_weights(np.random.default_rng(seed))
        self.set_generator(Generator(seed))

    def forward_features(self, x: Tensor) -> Tensor:
        """images (B, in_chans, H, W) → the last stage's map (B, h, w, D): (B, 7, 7, 768) for Swin-T at 224×224."""
        x = check_images(x, (self.config.in_chans, *self.patch_embed.img_size), self.patch_embed.proj.weight.dtype)
        return self.norm(self.layers(self.patch_embed(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))

    def init_weights(self, rng: np.random.Generator) -> None:
        """Matrices as `weight_init` says; bias tables truncated normal, standard deviation 0.02; biases zero."""
        draw = init.trunc_normal if self.config.weight_init == "timm" else init.xavier_uniform
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.assign(draw(module.weight.shape, rng))
                if module.bias is not None:
                    module.bias.assign(0)
            if isinstance(module, WindowAttention):
                table = module.relative_position_bias_table
                table.assign(init.trunc_normal(table.shape, rng))
        embedding = self.patch_embed.proj
        embedding.weight.assign(init.kaiming_uniform(embedding.weight.shape, rng, a=5**0.5))
        assert embedding.bias is not None
        embedding.bias.assign(0)

    def no_weight_decay(self) -> set[str]:
        """The bias tables: they are not weight matrices, so weight decay is not applied to them."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def layer_names(self) -> list[tuple[str, ...]]:
        """What each layer is made of, from the image to the head, for `layer_decay` (see `optim.param_groups`)."""
        blocks: list[tuple[str, ...]] = [
            (f"layers.{stage}.blocks.{i}", *((f"layers.{stage}.downsample",) if i == 0 else ()))
            for stage, depth in enumerate(self.config.depths)
            for i in range(depth)
        ]
        blocks[-1] += ("norm",)
        return [("patch_embed",), *blocks, ("head",)]


def _check(config: SwinConfig) -> None:
    """Raise ScratchvitError for options that do not fit together."""
    if not config.depths or len(config.depths) != len(config.num_heads):
        raise ScratchvitError(
            f"depths and num_heads need one number per stage, not {config.depths} and {config.num_heads}"
        )
    if min(config.depths) < 1:
        raise ScratchvitError(f"every stage has at least 1 block, not depths of {config.depths}")
    check_numbers(config)
    for stage, heads in enumerate(config.num_heads):
        if (D := config.embed_dim * 2**stage) % heads:
            raise ScratchvitError(
                f"the {D} numbers in a token of stage {stage + 1} cannot be shared by {heads} heads: choose an "
                "embed_dim that num_heads divide"
            )
    if min(pair(config.window_size)) < 1:
        raise ScratchvitError(f"window_size is at least 1 token a side, not {config.window_size}")
    if int(config.embed_dim * config.mlp_ratio) < 1:
        raise ScratchvitError(f"mlp_ratio {config.mlp_ratio} leaves no hidden layer at {config.embed_dim} dims")
    if config.weight_init not in ("timm", "xavier"):
        raise ScratchvitError(f'weight_init is "timm" or "xavier", not {config.weight_init!r}')
    if config.window_rule not in WINDOW_RULES:
        raise ScratchvitError(f"window_rule is one of {', '.join(WINDOW_RULES)}, not {config.window_rule!r}")


register(SwinTransformer, PRESETS, paper="Swin, arXiv 2103.14030")
