"""MViT: multiscale vision Transformers (Fan, Xiong, Mangalam, Li et al., ICCV 2021, arXiv 2104.11227).

What changes against ViT: a ViT has the same number of tokens and channels in all blocks. A CNN is a pyramid: early
layers have high resolution and few channels, for simple features; late layers have low resolution and many channels,
for complex ones. MViT is a Transformer of that shape, by two means.

*Pooling attention* (§3.1). Queries, keys and values lie on a grid, so they can be pooled like an image before
attention: each goes through a depth-wise convolution with a stride, and a norm.

    tokens ── W_q ── pool, stride s_q ──► Q   (fewer queries: fewer output tokens; only at the start of a stage)
           ── W_k ── pool, stride s_kv ─► K   (fewer keys: cheaper attention, the output has the same size)
           ── W_v ── pool, stride s_kv ─► V          softmax(Q Kᵀ / √d) V

*Stages* (§3.2). At the start of a stage, queries are pooled by 2×2 and channels are doubled: fewer, wider tokens. The
stride of the keys starts at 8×8 and is halved with the grid, so that there are always 7×7 keys per frame (14×14 in a
block that pools its queries, whose keys come from the larger grid). Time is halved once, when the clip is cut into
overlapping cubes, and not pooled after that.

    stage         MViT-B, 16×4 (Table 3b)           tokens: frames × rows × columns
    data          16 frames, every 4th of a video   16 × 224 × 224
    cube_1        3×7×7, 96, stride 2×4×4            8 ×  56 ×  56
    scale_2       MHPA( 96), MLP( 384)    ×  1       8 ×  56 ×  56
    scale_3       MHPA(192), MLP( 768)    ×  2       8 ×  28 ×  28
    scale_4       MHPA(384), MLP(1536)    × 11       8 ×  14 ×  14
    scale_5       MHPA(768), MLP(3072)    ×  2       8 ×   7 ×   7

    paper      here           shape at MViT-B, clips of 16×224×224, in the first block
    X          x              (B, 1 + 25,088, 96): the class token, and 8·56·56 others
    D          embed_dim      96, doubled by the last MLP of a stage
    h          num_heads      1, doubled likewise: every head has 96 channels
    P(·; Θ)    Pool           kernel 3×3×3, shared by the heads
    Q          q              (B, 1, 1 + 25,088, 96)
    K, V       k, v           (B, 1, 1 + 392, 96), as 8·7·7 = 392

Positional embeddings are learned and separable: the sum of one for space (56·56) and one for time (8), instead of one
for each of the 25,088 tokens. The class token is not pooled.

Images are clips of one frame: "we remove the temporal dimension" (abstract), by kernels and strides of 1 in time.
`mvit_v1_b_image` is the paper's MViT-B-16 for ImageNet, with the sizes of the authors' configuration
(SlowFast, configs/ImageNet/MVIT_B_16_CONV.yaml): keys are pooled by 4×4 in its first stage.

Names of parameters are torchvision's (`torchvision.models.video.mvit_v1_b`), so that its checkpoints load here and ours
there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import nn, ops
from scratchvit.backend import Array
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_images, check_numbers
from scratchvit.models.registry import register
from scratchvit.models.vit import pair
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor

Size = tuple[int, ...]
"""Of a grid of tokens: (frames, rows, columns), or (rows, columns)."""


@dataclass(frozen=True)
class MViTConfig:
    """The sizes of an MViT."""

    img_size: int | tuple[int, int] = option(224, "side of the frames, or (height, width)")
    num_frames: int = option(16, "T: frames of a clip; 1: images")
    in_chans: int = option(3, "channels of the images")
    num_classes: int = option(400, "number of classes; 0: no head, the model returns the class token's features")
    depths: tuple[int, ...] = option((1, 2, 11, 2), "blocks in each stage")
    embed_dim: int = option(96, "D: channels (width) of a token in stage 1")
    num_heads: int = option(1, "h: attention heads in stage 1")
    mlp_ratio: float = option(4.0, "hidden width of the MLP as a multiple of D")
    patch_kernel: tuple[int, ...] = option(
        (3, 7, 7), "kernel size of the cube embedding: frames, rows, columns"
    )
    patch_stride: tuple[int, ...] = option((2, 4, 4), "stride of the cube embedding")
    kernel_qkv: tuple[int, ...] = option((3, 3, 3), "kernel size of the pooling of q, k and v")
    stride_kv: tuple[int, ...] = option((1, 8, 8), "stride of keys and values in stage 1; halved whenever the grid is")
    drop_rate: float = option(0.5, "dropout rate before the head")
    proj_drop_rate: float = option(0.0, "dropout rate after the projections of attention and MLP")
    drop_path_rate: float = option(0.2, "stochastic depth rate of the last block; rises linearly from 0")


PRESETS = {
    "mvit_v1_b_image": MViTConfig(
        num_frames=1, num_classes=1000, patch_kernel=(1, 7, 7), patch_stride=(1, 4, 4), kernel_qkv=(1, 3, 3),
        stride_kv=(1, 4, 4), drop_rate=0.0, drop_path_rate=0.1,
    ),
    "mvit_v1_b": MViTConfig(),
}


# --- the schedule of channels and resolution, and the pooling of tokens; also used by MViTv2 --------------------------


@dataclass(frozen=True)
class Scale:
    """The sizes and strides of one block of the pyramid."""

    dim: int            # input channels
    dim_out: int        # output channels
    num_heads: int
    size: Size          # of the input grid
    stride_q: Size
    stride_kv: Size
    drop_path: float

    @property
    def q_size(self) -> Size:
        """The size of the output grid."""
        return pooled(self.size, self.stride_q)

    @property
    def kv_size(self) -> Size:
        """The size of the grid of keys and values."""
        return pooled(self.size, self.stride_kv)


def pyramid(config: Any, grid: Size, expand_first: bool) -> Iterator[list[Scale]]:
    """The scales of the blocks of each stage, for an initial grid of size `grid`.

    expand_first: whether channels are doubled in the first block of a stage, not in the last one of the stage before.
    """
    drop_paths = iter(np.linspace(0, config.drop_path_rate, sum(config.depths)).tolist())
    dim, last = config.embed_dim, len(config.depths) - 1
    stride_kv = config.stride_kv
    for stage, depth in enumerate(config.depths):
        halving = tuple(1 if stage == 0 or axis < len(grid) - 2 else 2 for axis in range(len(grid)))    # not of time
        stride_kv = tuple(max(kv // q, 1) for kv, q in zip(stride_kv, halving))
        widest = config.embed_dim * 2 ** (stage if expand_first else min(stage + 1, last))
        scales = []
        for block in range(depth):
            dim_out = widest if expand_first or block == depth - 1 else dim
            stride_q = halving if block == 0 else (1,) * len(grid)
            heads = config.num_heads * 2**stage
            scales.append(Scale(dim, dim_out, heads, grid, stride_q, stride_kv, next(drop_paths)))
            dim, grid = dim_out, scales[-1].q_size
        yield scales


def pooled(size: Sequence[int], stride: Sequence[int]) -> Size:
    """The size of a grid after pooling with a stride, ⌈n / s⌉, for an odd kernel k with padding ⌊k / 2⌋."""
    return tuple(math.ceil(n / s) for n, s in zip(size, stride))


def half(kernel: Sequence[int]) -> Size:
    """The padding ⌊k / 2⌋, with which the size of a pooled grid depends only on the stride."""
    return tuple(k // 2 for k in kernel)


def pool_tokens(x: Tensor, size: Size, prefix: int, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Pool tokens that lie on a grid: x (B, prefix + N, C) → (B, prefix + N', C).

    pool: a function of maps (B, C, *size) → (B, C, *size'). The first `prefix` tokens are not on the grid, and are not
    pooled.
    """
    B, N, C = x.shape
    axes = range(1, 1 + len(size))
    others, x = x.split((prefix, N - prefix), dim=1) if prefix else (None, x)
    x = x.reshape(B, *size, C).permute((0, len(size) + 1, *axes))               # (B, C, T, H, W)
    x = pool(x).permute((0, *(axis + 1 for axis in axes), 1))                   # (B, T', H', W', C)
    x = x.reshape(B, math.prod(x.shape[1:-1]), C)                               # (B, N', C)
    return x if others is None else ops.concatenate([others, x], dim=1)


def max_pool_tokens(x: Tensor, size: Size, prefix: int, stride: Size) -> Tensor:
    """Max-pool the residual path in blocks that pool their queries (§3.2), as in the authors' code."""
    if max(stride) == 1:
        return x
    max_pool = ops.max_pool2d if len(size) == 2 else ops.max_pool3d
    kernel = tuple(s + 1 if s > 1 else 1 for s in stride)
    return pool_tokens(x, size, prefix, lambda maps: max_pool(maps, kernel, stride, half(kernel)))


# --- the blocks -----------------------------------------------------------------------------------------------------


class Pool(nn.Module):
    """P(·; Θ): a depth-wise convolution over the grid, then a norm. x (B·h, 1 + N, d) → (B·h, 1 + N', d).

    One filter for each of the d channels of a head, shared by all heads.
    """

    def __init__(self, dim: int, kernel: Size, stride: Size):
        self.pool = nn.Conv3d(dim, dim, kernel, stride, padding=half(kernel), groups=dim, bias=False)
        self.norm_act = nn.Sequential(nn.LayerNorm(dim))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return self.norm_act(pool_tokens(x, size, 1, self.pool))


class PoolingAttention(nn.Module):
    """Multi-head pooling attention, MHPA (§3.1, figure 3). x (B, 1 + N, D) → (B, 1 + N', D), N' the pooled queries."""

    def __init__(self, config: MViTConfig, scale: Scale):
        D, self.num_heads, self.scale = scale.dim, scale.num_heads, scale
        d = D // self.num_heads
        self.qkv = nn.Linear(D, 3 * D)
        self.project = nn.Sequential(nn.Linear(D, D), nn.Dropout(config.proj_drop_rate))
        self.pool_q = Pool(d, config.kernel_qkv, scale.stride_q) if max(scale.stride_q) > 1 else None
        self.pool_k = Pool(d, config.kernel_qkv, scale.stride_kv)
        self.pool_v = Pool(d, config.kernel_qkv, scale.stride_kv)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        h, size = self.num_heads, self.scale.size
        qkv = self.qkv(x).reshape(B, N, 3, h, D // h).permute((2, 0, 3, 1, 4))  # (3, B, h, N, d)
        q, k, v = qkv.reshape(3, B * h, N, D // h).unbind(0)                    # each (B·h, N, d)
        if self.pool_q is not None:
            q = self.pool_q(q, size)                                            # (B·h, 1 + N', d)
        k, v = self.pool_k(k, size), self.pool_v(v, size)                       # (B·h, 1 + M, d)
        x = ops.attention(*(t.reshape(B, h, *t.shape[1:]) for t in (q, k, v)))  # (B, h, 1 + N', d)
        x = x.transpose(1, 2).reshape(B, q.shape[1], D)                         # (B, 1 + N', D), heads concatenated
        return self.project(x)


class Block(nn.Module):
    """One layer: pooling attention and an MLP, both pre-norm and with a residual connection.

    The last MLP of a stage doubles the channels for the next stage, whose first attention pools the queries.
    """

    def __init__(self, config: MViTConfig, scale: Scale):
        D, hidden = scale.dim, int(scale.dim * config.mlp_ratio)
        self.scale = scale
        self.norm1 = nn.LayerNorm(D)
        self.norm2 = nn.LayerNorm(D)
        self.attn = PoolingAttention(config, scale)
        self.mlp = nn.Sequential(
            nn.Linear(D, hidden), nn.GELU(), nn.Dropout(config.proj_drop_rate),
            nn.Linear(hidden, scale.dim_out), nn.Dropout(config.proj_drop_rate),
        )
        self.drop_path = nn.DropPath(scale.drop_path)
        self.project = nn.Linear(D, scale.dim_out) if scale.dim_out != D else None

    def forward(self, x: Tensor) -> Tensor:
        pooled_x = max_pool_tokens(x, self.scale.size, 1, self.scale.stride_q)  # (B, 1 + N', D)
        x = pooled_x + self.drop_path(self.attn(self.norm1(x)))
        y = self.norm2(x)
        x = x if self.project is None else self.project(y)                      # (B, 1 + N', D or 2 D)
        return x + self.drop_path(self.mlp(y))


class PositionalEncoding(nn.Module):
    """Add spatial and temporal positional embeddings to every token, and prepend the class token (§4.2, Table 11)."""

    def __init__(self, dim: int, size: Size):
        self.class_token = nn.Parameter(np.zeros(dim, np.float32))
        self.spatial_pos = nn.Parameter(np.zeros((math.prod(size[1:]), dim), np.float32))
        self.temporal_pos = nn.Parameter(np.zeros((size[0], dim), np.float32))
        self.class_pos = nn.Parameter(np.zeros(dim, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        table = self.temporal_pos.reshape(-1, 1, D) + self.spatial_pos          # (T, H·W, D)
        x = x + table.reshape(N, D)
        class_token = (self.class_token + self.class_pos).expand((B, 1, D))
        return ops.concatenate([class_token, x], dim=1)                         # (B, 1 + N, D)


class MViT(nn.Module):
    """clips (B, C, T, H, W), or images (B, C, H, W) if T is 1, arrays or Tensors → logits (B, num_classes).

    Raises ScratchvitError if sizes do not fit together, or if the shape of the input does not fit the model.
    """

    def __init__(self, config: MViTConfig, seed: int = 0):
        check_pyramid(config, axes=3)
        self.config = config
        self.grid_size = pooled((config.num_frames, *pair(config.img_size)), config.patch_stride)
        D = config.embed_dim
        self.conv_proj = nn.Conv3d(
            config.in_chans, D, config.patch_kernel, config.patch_stride, padding=half(config.patch_kernel)
        )
        self.pos_encoding = PositionalEncoding(D, self.grid_size)
        stages = list(pyramid(config, self.grid_size, expand_first=False))
        self.blocks = nn.ModuleList(Block(config, scale) for stage in stages for scale in stage)
        width = stages[-1][-1].dim_out
        self.norm = nn.LayerNorm(width)
        classifier = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        self.head = nn.Sequential(nn.Dropout(config.drop_rate), classifier)

        self.init_weights(np.random.default_rng(seed))
        self.set_generator(Generator(seed))

    def forward_features(self, x: Tensor | Array) -> Tensor:
        """clips or images → tokens (B, 1 + N, D) after the last block."""
        x = check_clips(x, self.config, self.conv_proj.weight.dtype)
        x = self.conv_proj(x).flatten(2).transpose(1, 2)                        # (B, D, T, H, W) → (B, N, D)
        x = self.pos_encoding(x)                                                # (B, 1 + N, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, x: Tensor | Array) -> Tensor:
        return self.head(self.forward_features(x)[:, 0])                        # the class token

    def init_weights(self, rng: np.random.Generator) -> None:
        """Matrices, positions truncated normal (standard deviation 0.02), biases zero; convolutions as in PyTorch."""
        init_linear_and_conv(self, rng)
        for table in self.pos_encoding.parameters():
            table.assign(init.trunc_normal(table.shape, rng))

    def no_weight_decay(self) -> set[str]:
        """Positional embeddings and class token: not weight matrices, so weight decay is not applied to them."""
        return {f"pos_encoding.{name}" for name, _ in self.pos_encoding.named_parameters()}

    def layer_names(self) -> list[tuple[str, ...]]:
        """The modules of each layer, from the clip to the head, for `layer_decay` (see `optim.param_groups`)."""
        blocks: list[tuple[str, ...]] = [(f"blocks.{i}",) for i in range(len(self.blocks))]
        blocks[-1] += ("norm",)
        return [("conv_proj", "pos_encoding"), *blocks, ("head",)]


def init_linear_and_conv(model: nn.Module, rng: np.random.Generator) -> None:
    """Matrices truncated normal (standard deviation 0.02), biases zero; convolutions as in PyTorch."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.assign(init.trunc_normal(module.weight.shape, rng))
            if module.bias is not None:
                module.bias.assign(0)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            module.weight.assign(init.kaiming_uniform(module.weight.shape, rng, a=5**0.5))
            if module.bias is not None:
                bound = 1 / math.sqrt(init.fans(module.weight.shape)[0])
                module.bias.assign(init.uniform(module.bias.shape, rng, bound))


def check_clips(x: Tensor | Array, config: Any, dtype: Any) -> Tensor:
    """clips (B, C, T, H, W), or images (B, C, H, W) if num_frames is 1 → a Tensor (B, C, T, H, W).

    Arrays are converted to `dtype`. Raises ScratchvitError if the shape does not fit the model.
    """
    size = pair(config.img_size)
    if config.num_frames == 1:
        x = check_images(x, (config.in_chans, *size), dtype)
        return x.reshape(*x.shape[:2], 1, *size)
    expected = (config.in_chans, config.num_frames, *size)
    if x.ndim != 5 or x.shape[1:] != expected:
        raise ScratchvitError(
            f"this model takes clips of shape (B, {', '.join(map(str, expected))}), it was given {x.shape}: sample "
            "and resize frames, or create the model with that num_frames, img_size and in_chans"
        )
    return x if isinstance(x, Tensor) else Tensor(x, dtype=dtype)


def check_pyramid(config: Any, axes: int) -> None:
    """Raise ScratchvitError for sizes that do not fit together. axes: those of the grid, 2 or 3."""
    check_numbers(config)
    if config.num_frames < 1:
        raise ScratchvitError(f"num_frames must be at least 1, 1 for images, not {config.num_frames}")
    if not config.depths or min(config.depths) < 1:
        raise ScratchvitError(f"depths must be the number of blocks of each stage, at least 1, not {config.depths}")
    if config.embed_dim % config.num_heads:
        raise ScratchvitError(
            f"embed_dim {config.embed_dim} is not divisible by {config.num_heads} heads: choose a multiple"
        )
    if int(config.embed_dim * config.mlp_ratio) < 1:
        raise ScratchvitError(
            f"mlp_ratio {config.mlp_ratio} is too small: with embed_dim {config.embed_dim} the MLP has no hidden units"
        )
    for name in ("patch_kernel", "patch_stride", "kernel_qkv", "stride_kv"):
        value = getattr(config, name)
        if len(value) != axes or min(value) < 1:
            raise ScratchvitError(f"{name} must be {axes} positive numbers, one for each axis, not {value}")
        if "kernel" in name and any(k % 2 == 0 for k in value):
            raise ScratchvitError(f"{name} must be odd along every axis, not {value}")


register(MViT, PRESETS, paper="MViT, arXiv 2104.11227")
