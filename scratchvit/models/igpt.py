"""iGPT: an image as a sequence of pixels (Chen et al., "Generative Pretraining from Pixels", ICML 2020).

The idea: a language model for images. The pixels are read row by row, and the model learns to predict the next one
from all before it. No labels are needed; what the model must learn for this (strokes, outlines, objects) is also useful
for a classifier. The best features are in the middle of the stack: the last layers specialise in the next pixel, so
the paper's linear probe uses a layer between.

What changes against ViT: every pixel is a token, without any information about its neighbours. A pixel is one of K
colours of a palette, found by k-means, so that a table can embed it and a softmax can predict it: 9 bits instead of 24.
Attention is causal. The norm divides by the root mean square, without subtracting the mean (RMS norm).

What it costs: an image of R×R pixels is a sequence of R², its attention matrices have R⁴ entries. At R = 128 each is
128⁴ · 4 bytes = 1 GiB, and 48 layers with 16 heads have 768 GiB of them, for one image. So iGPT's images are
32×32, and ViT uses patches.

    paper    here              shape at iGPT-S
    x        tokens            (B, 1024): the colour of each of 32 × 32 pixels, row by row
    n        num_tokens        1024
             num_colors        512, K below
    d        embed_dim         512
    L        depth             24
    h^l      x between blocks  (B, 1024, 512), l = 0 … L
    n^l      ln_1(x)           (B, 1024, 512)
    f^l      layer_features    (B, 512), the mean of n^l over the pixels

Names and layouts of parameters are those of Hugging Face's ImageGPT, whose matrices in the blocks are (in, out). The
head is not tied to the embedding, as in the authors' code.

The end of this file has a simpler model: a classifier of pixels as a *set*. It is a ViT whose patches are single
pixels, each embedded by a matrix (D, C); `pixel_transformer_tiny` is one (see also arXiv 2406.09415).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from scratchvit import nn, ops
from scratchvit.backend import Array, array_module, asarray, current
from scratchvit.errors import ScratchvitError
from scratchvit.kernels.products import matmul
from scratchvit.models.checks import check_images, check_numbers
from scratchvit.models.registry import register
from scratchvit.models.vit import VisionTransformer, ViTConfig, pair
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor
from scratchvit.threads import BLOCK_BYTES, parallel_rows


@dataclass(frozen=True)
class IGPTConfig:
    """The sizes of an iGPT."""

    img_size: int | tuple[int, int] = option(32, "side of the images, or (height, width); every pixel is a token")
    in_chans: int = option(3, "channels of the images")
    num_classes: int = option(0, "number of classes of a classifier; 0: a generative model, which predicts pixels")
    num_colors: int = option(512, "K: number of colours in the palette")
    embed_dim: int = option(512, "d: channels (width) of a token")
    depth: int = option(24, "L: number of blocks")
    num_heads: int = option(8, "attention heads; must divide d")
    norm_eps: float = option(1e-5, "ε of every RMS norm")
    pos_drop_rate: float = option(0.0, "dropout rate after the positional embedding is added")
    proj_drop_rate: float = option(0.0, "dropout rate after the projections of attention and MLP")
    attn_drop_rate: float = option(0.0, "dropout rate of the attention probabilities")

    # (mean, std) by which pixels in 0 … 1 are normalised to -1 … 1, the range of the palette
    normalisation: ClassVar = (0.5, 0.5)


#                   L   d     heads    §3.3; the heads from the authors' weights. Tiny is ours, for digits on a CPU
PRESETS = {
    "igpt_tiny":   IGPTConfig(depth=4,  embed_dim=64,   num_heads=4, num_colors=16),
    "igpt_small":  IGPTConfig(depth=24, embed_dim=512,  num_heads=8),
    "igpt_medium": IGPTConfig(depth=36, embed_dim=1024, num_heads=8),
    "igpt_large":  IGPTConfig(depth=48, embed_dim=1536, num_heads=16),
}


def nearest_colors(pixels: Array, palette: Array) -> Array:
    """The index of the nearest colour of the palette (K, C) for each pixel (..., C): int64 (...).

    |x - c|² = |x|² - 2 x·c + |c|², where |x|² is the same for every colour and can be left out.
    """
    xp = array_module(pixels)
    rows = pixels.reshape(-1, pixels.shape[-1])
    nearest = xp.empty(len(rows), dtype=np.int64)
    lengths = (palette * palette).sum(axis=1)

    def find(rows: Array, nearest: Array) -> None:
        nearest[...] = (lengths - matmul(rows, 2 * palette.T)).argmin(axis=1)

    parallel_rows(find, rows, nearest, block_bytes=max(1, 4 * BLOCK_BYTES // len(palette)))  # K distances per pixel
    return nearest.reshape(pixels.shape[:-1])


def even_palette(num_colors: int, channels: int) -> np.ndarray:
    """Colours evenly spaced from -1 to 1, float32 (K, C): the initial palette, before k-means."""
    levels = np.linspace(-1, 1, math.ceil(num_colors ** (1 / channels)), dtype=np.float32)
    grid = np.stack(np.meshgrid(*[levels] * channels, indexing="ij"), axis=-1).reshape(-1, channels)
    return grid[np.linspace(0, len(grid) - 1, num_colors).round().astype(int)]


class LayerNorm(nn.Module):
    """RMS norm, x / √(mean x² + ε) · weight over the last axis: x (..., d), weight (d,)."""

    def __init__(self, dim: int, eps: float):
        self.weight = nn.Parameter(np.ones(dim, np.float32))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = ops.to_float32(x)            # statistics are no matter for 16 bits
        return x * ((wide * wide).mean(dim=-1, keepdim=True) + self.eps) ** -0.5 * self.weight


class Conv1D(nn.Module):
    """A linear layer with GPT-2's name and layout, weight (in, out): x (..., in) → (..., out)."""

    def __init__(self, in_features: int, out_features: int):
        self.weight = nn.Parameter(init.normal((in_features, out_features), np.random.default_rng(), 0.02))
        self.bias = nn.Parameter(np.zeros(out_features, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight.T, self.bias)


class KeyValueCache:
    """The keys and values of one layer for the pixels so far, so that only those of a new pixel must be computed."""

    def __init__(self, batch: int, config: IGPTConfig, num_tokens: int, dtype: Any):
        shape = (batch, config.num_heads, num_tokens, config.embed_dim // config.num_heads)
        self.keys, self.values = (current().xp.empty(shape, dtype=dtype) for _ in range(2))
        self.length = 0

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append keys and values of the next n pixels, each (B, heads, n, d); returns views of all so far."""
        begin, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, begin : self.length], self.values[:, :, begin : self.length] = k, v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Attention(nn.Module):
    """Causal multi-head attention: each pixel attends to itself and the pixels before it. x (B, n, D) → (B, n, D)."""

    def __init__(self, config: IGPTConfig):
        D = config.embed_dim
        self.num_heads = config.num_heads
        self.c_attn = Conv1D(D, 3 * D)
        self.c_proj = Conv1D(D, D)
        self.attn_dropout = nn.Dropout(config.attn_drop_rate)
        self.resid_dropout = nn.Dropout(config.proj_drop_rate)

    def forward(self, x: Tensor, mask: Array | None, cache: KeyValueCache | None = None) -> Tensor:
        B, n, D = x.shape
        qkv = self.c_attn(x).reshape(B, n, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute((2, 0, 3, 1, 4)).unbind(0)            # each (B, heads, n, d)
        if cache is not None:
            k, v = cache.extend(k.data, v.data)                     # (B, heads, length, d)
        x = ops.attention(
            q, k, v, mask=mask,
            dropout=self.attn_dropout.p if self.training else 0.0, generator=self.attn_dropout.generator,
        )
        x = x.transpose(1, 2).reshape(B, n, D)                      # the heads concatenated
        return self.resid_dropout(self.c_proj(x))


class Mlp(nn.Module):
    """The MLP, with hidden width 4 D and x σ(1.702 x), an older approximation of GELU. x (B, n, D) → (B, n, D)."""

    def __init__(self, config: IGPTConfig):
        D = config.embed_dim
        self.c_fc, self.c_proj = Conv1D(D, 4 * D), Conv1D(4 * D, D)
        self.dropout = nn.Dropout(config.proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.dropout(self.c_proj(x * ops.sigmoid(x * 1.702)))


class Block(nn.Module):
    """GPT-2's block: norms before attention and MLP, and only sums on the residual path from h^0 to h^L (§2.2)."""

    def __init__(self, config: IGPTConfig):
        self.ln_1 = LayerNorm(config.embed_dim, config.norm_eps)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.embed_dim, config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, mask: Array | None, cache: KeyValueCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache)                # a^l
        return x + self.mlp(self.ln_2(x))                           # h^(l+1)


class Transformer(nn.Module):
    """tokens int (B, n) → (B, n, D), including the last norm. Token K, after the K colours, starts an image."""

    def __init__(self, config: IGPTConfig, num_tokens: int):
        D = config.embed_dim
        self.wte = nn.Embedding(config.num_colors + 1, D)
        self.wpe = nn.Embedding(num_tokens, D)
        self.drop = nn.Dropout(config.pos_drop_rate)
        self.h = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.ln_f = LayerNorm(D, config.norm_eps)

    def states(self, tokens: Array, caches: list[KeyValueCache] | None = None) -> Iterator[Tensor]:
        """Yield h^0 … h^L, each (B, n, D). With caches, one per block, the tokens follow those that are cached."""
        begin, n = caches[0].length if caches else 0, tokens.shape[1]
        x = self.wte(tokens) + self.wpe.weight[begin : begin + n]
        x = self.drop(x)
        yield x
        mask = None if n == 1 else causal_mask(begin, n)
        for i, block in enumerate(self.h):
            x = block(x, mask, caches[i] if caches else None)
            yield x

    def forward(self, tokens: Array, caches: list[KeyValueCache] | None = None) -> Tensor:
        for x in self.states(tokens, caches):
            last = x
        return self.ln_f(last)


def causal_mask(begin: int, n: int) -> Array:
    """The causal mask, bool (n, begin + n) on the device, for pixels from `begin` on: True up to the pixel itself."""
    places = current().xp.arange(begin + n)
    return places[begin:, None] >= places


class IGPT(nn.Module):
    """images (B, C, H, W) in -1 … 1 → scores (B, K, H·W) of the K colours at every pixel, given those before it.

    The K scores of a pixel are on axis 1, as `ops.cross_entropy` expects; the targets are `tokens(images)`. With
    num_classes the model is a classifier for fine-tuning (§2.3): logits (B, num_classes).

    Raises ScratchvitError if sizes are inconsistent, or if the shape of the images does not fit the model.
    """

    optional_state = ("palette",)       # third-party weights do not include it

    def __init__(self, config: IGPTConfig, seed: int = 0):
        _check(config)
        self.config = config
        self.generative = not config.num_classes
        self.num_tokens = math.prod(pair(config.img_size))
        self.palette = nn.Buffer(even_palette(config.num_colors, config.in_chans))
        self.transformer = Transformer(config, self.num_tokens)
        if self.generative:
            self.lm_head = nn.Linear(config.embed_dim, config.num_colors, bias=False)
        else:
            self.score = nn.Linear(config.embed_dim, config.num_classes, bias=False)
        self.init_weights(np.random.default_rng(seed))
        self.set_generator(Generator(seed))

    def tokens(self, images: Tensor | Array) -> Array:
        """Encode images (B, C, H, W) as palette indices of their pixels, row by row: int64 (B, H·W)."""
        x = check_images(images, (self.config.in_chans, *pair(self.config.img_size)), self.palette.dtype).data
        return nearest_colors(x.reshape(*x.shape[:2], -1).transpose(0, 2, 1), self.palette.data)

    def after_start(self, tokens: Any) -> Array:
        """Put the start token before tokens (B, n): (B, 1 + n).

        Raises ScratchvitError for more tokens than pixels and, if they are on the host, for tokens out of range.
        """
        K, n = self.config.num_colors, tokens.shape[1]
        if n > self.num_tokens:
            raise ScratchvitError(f"a sequence of {n} pixels is too long: this model's images have {self.num_tokens}")
        if isinstance(tokens, np.ndarray) and tokens.size and not 0 <= tokens.min() <= tokens.max() < K:
            raise ScratchvitError(
                f"tokens are palette indices, 0 … {K - 1}, not {tokens.min()} … {tokens.max()}: encode the images "
                "with this model's own palette"
            )
        tokens = asarray(tokens)
        xp = array_module(tokens)
        return xp.concatenate([xp.full((len(tokens), 1), K, dtype=tokens.dtype), tokens], axis=1)

    def pixel_logits(self, tokens: Any) -> Tensor:
        """Logits of the colours, log p(x_i | x_1 … x_(i-1)) + constant (§2.1): tokens int (B, n ≤ H·W) → (B, n, K)."""
        return self.lm_head(self.transformer(self.after_start(tokens)[:, :-1]))

    def key_value_caches(self, batch: int) -> list[KeyValueCache]:
        """An empty cache for each block, for `batch` images; `transformer` uses them to generate pixel by pixel."""
        dtype = self.transformer.wte.weight.dtype
        return [KeyValueCache(batch, self.config, self.num_tokens, dtype) for _ in range(self.config.depth)]

    def layer_features(self, images: Tensor | Array) -> list[Tensor]:
        """Features f^0 … f^L, each (B, D): the mean over all pixels of n^l, the input of the next block (§2.4)."""
        norms = [*(block.ln_1 for block in self.transformer.h), self.transformer.ln_f]
        states = self.transformer.states(self.after_start(self.tokens(images))[:, :-1])
        return [norm(x).mean(dim=1) for norm, x in zip(norms, states)]

    def forward(self, images: Tensor | Array) -> Tensor:
        tokens = self.tokens(images)                                # (B, N)
        if self.generative:
            return self.pixel_logits(tokens).transpose(1, 2)        # (B, K, N)
        x = self.transformer(self.after_start(tokens)[:, :-1])      # (B, N, D)
        return self.score(x.mean(dim=1))                            # from f^L

    def init_weights(self, rng: np.random.Generator) -> None:
        """As in the authors' code: standard deviation 1/√D in attention, smaller in its projection, and zero heads."""
        D, L = self.config.embed_dim, self.config.depth
        stds = {"wpe": 0.01, "c_attn": D**-0.5, "attn.c_proj": (D * L) ** -0.5, "lm_head": 0.0, "score": 0.0}
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = next((std for part, std in stds.items() if f"{part}.weight" in name), 0.02)
                parameter.assign(init.normal(parameter.shape, rng, std))

    def no_weight_decay(self) -> set[str]:
        """The embedding tables: they are not weight matrices, so weight decay is not applied."""
        return {"transformer.wte.weight", "transformer.wpe.weight"}

    def layer_names(self) -> list[tuple[str, ...]]:
        """The modules of each layer, from the image to the head, for `layer_decay` (see `optim.param_groups`)."""
        blocks: list[tuple[str, ...]] = [(f"transformer.h.{i}",) for i in range(self.config.depth)]
        blocks[-1] += ("transformer.ln_f",)
        return [("transformer.wte", "transformer.wpe"), *blocks, ("lm_head", "score")]


def _check(config: IGPTConfig) -> None:
    """Raise ScratchvitError for options that do not fit together."""
    check_numbers(config)
    if config.num_colors < 2:
        raise ScratchvitError(f"num_colors must be at least 2, not {config.num_colors}")
    if config.embed_dim % config.num_heads:
        raise ScratchvitError(
            f"embed_dim {config.embed_dim} is not divisible by {config.num_heads} heads: choose a multiple"
        )


# --- pixels as a set: a classifier ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelTransformerConfig(ViTConfig):
    """The sizes of a pixel Transformer: a ViT's, with patches of one pixel."""

    img_size: int | tuple[int, int] = option(32, "side of the images, or (height, width); every pixel is a token")
    patch_size: int | tuple[int, int] = option(1, "must be 1: every pixel is a token")


#  ViT's sizes that are affordable. For 1,025 tokens (32×32) an attention matrix takes 4 MiB; tiny has 36 per image
PIXEL_PRESETS = {
    "pixel_transformer_tiny":  PixelTransformerConfig(embed_dim=192, num_heads=3),
    "pixel_transformer_small": PixelTransformerConfig(embed_dim=384, num_heads=6),
    "pixel_transformer_base":  PixelTransformerConfig(embed_dim=768, num_heads=12),
}


def pixel_transformer(config: PixelTransformerConfig, seed: int = 0) -> VisionTransformer:
    """A ViT whose patches are single pixels. Raises ScratchvitError for another patch_size."""
    if pair(config.patch_size) != (1, 1):
        raise ScratchvitError(
            f"the patch_size of a pixel Transformer must be 1, not {config.patch_size}: use a vit_… model instead"
        )
    return VisionTransformer(config, seed)


register(IGPT, PRESETS, paper="iGPT, Chen et al., ICML 2020")
register(pixel_transformer, PIXEL_PRESETS, paper="iGPT, Chen et al., ICML 2020")
