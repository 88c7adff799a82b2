"""MViTv2: improved multiscale vision Transformers (Li, Wu, Fan, Mangalam et al., CVPR 2022, arXiv 2112.01526).

What changes against MViT (mvit.py), whose pyramid and pooling stay the same:

*Decomposed relative positions* (§4.1). Attention depends on the offset between query and key, not on their absolute
positions: E_ij = q_i · R(i − j) is added to the scores, with R a learned relative positional embedding. One R for each
of (2T−1)(2H−1)(2W−1) offsets would be too many, so R is a sum of one embedding per axis (eq. 4), and so is E:

    E_ij = q_i · R^h(row i − row j) + q_i · R^w(column i − column j) + q_i · R^t(frame i − frame j)

These are kH + kW + kT scores for each query, not kH·kW·kT. They need not be expanded to a matrix of the size of the
attention matrix either: append them to the query, and append to each key ones at its own row, column and frame,

    [q_i, s_i] · [k_j, 1 at j] = q_i · k_j + s_i[row j] + s_i[column j] + s_i[frame j]

so that the scores are still one matrix product, also for attention in blocks, which never stores the matrix. There are
no absolute positional embeddings. Queries and keys lie on grids of different resolution: offsets are counted on the
finer one (`relative_offsets` has an example).

*Residual pooling* (§4.1, eq. 5). The pooled queries are added to the output of attention, Z = Attn(Q, K, V) + Q, so
that information is not lost if keys are pooled with a large stride. For this, queries are convolved in every block,
also with stride 1.

*Channels are expanded in attention* (Appendix B.1), at the start of a stage, not in the MLP before it: this is cheaper,
because the block has four times fewer tokens. (MViTv2-L does it as MViT, as its authors trained it.)

    model         stages (depths)    D     h     parameters     Table 1 of the paper
    MViTv2-T      1, 2,  5, 2         96   1      24 M
    MViTv2-S      1, 2, 11, 2         96   1      35 M
    MViTv2-B      2, 3, 16, 3         96   1      52 M
    MViTv2-L      2, 6, 36, 4        144   2     218 M
    MViTv2-H      4, 8, 60, 8        192   3     667 M

    paper      here           shape at MViTv2-T, 224×224, in the first block
    X          x              (B, 3136, 96): 56·56 tokens, no class token
    Q, K, V    q, k, v        (B, 1, 3136, 96) and (B, 1, 196, 96) twice, as 14·14 = 196
    R^h, R^w   rel_pos_h, _w  (111, 96) each: offsets −55 … 55
    s          scores         (B, 1, 3136, 28)
    E^(rel)                   not made

Names of parameters are timm's (`timm.models.mvitv2`), also for clips. torchvision's `mvit_v2_s` numbers its blocks
consecutively; its weights are loaded by a table of names (weights/names/torchvision.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scratchvit import nn, ops
from scratchvit.backend import Array
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_images
from scratchvit.models.mvit import (
    Scale,
    Size,
    check_clips,
    check_pyramid,
    half,
    init_linear_and_conv,
    max_pool_tokens,
    pool_tokens,
    pooled,
    pyramid,
)
from scratchvit.models.registry import register
from scratchvit.models.vit import pair
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class MViTv2Config:
    """The sizes of an MViTv2. For clips, kernels and strides are three numbers: frames, rows, columns."""

    img_size: int | tuple[int, int] = option(224, "side of the images, or (height, width)")
    num_frames: int = option(1, "T: frames of a clip; 1: images")
    in_chans: int = option(3, "channels of the images")
    num_classes: int = option(1000, "number of classes; 0: no head, the model returns the pooled features")
    depths: tuple[int, ...] = option((2, 3, 16, 3), "blocks in each stage")
    embed_dim: int = option(96, "D: channels (width) of a token in stage 1; doubled at each later stage")
    num_heads: int = option(1, "h: attention heads in stage 1; doubled at each later stage")
    mlp_ratio: float = option(4.0, "hidden width of the MLP as a multiple of D")
    qkv_bias: bool = option(True, "whether q, k and v have biases")
    expand_attn: bool = option(True, "double the channels in the first attention of a stage; no: in the MLP before it")
    residual_pooling: bool = option(True, "whether the pooled queries are added to the output of attention")
    use_cls_token: bool = option(False, "whether to prepend a learned class token to the others")
    cls_residual: bool = option(True, "whether residual pooling includes the class token")
    patch_kernel: tuple[int, ...] = option((7, 7), "kernel size of the patch embedding; patches overlap")
    patch_stride: tuple[int, ...] = option((4, 4), "stride of the patch embedding")
    kernel_qkv: tuple[int, ...] = option((3, 3), "kernel size of the pooling of q, k and v")
    stride_kv: tuple[int, ...] = option((4, 4), "stride of keys and values in stage 1; halved whenever the grid is")
    global_pool: str = option("avg", "input of the head: \"avg\", the mean; \"token\", the class token")
    drop_rate: float = option(0.0, "dropout rate before the head")
    drop_path_rate: float = option(0.0, "stochastic depth rate of the last block; rises linearly from 0")


#          blocks of each stage    D   h      Table 1 of the paper
_SIZES = {
    "tiny":  ((1, 2, 5, 2),           96,  1),
    "small": ((1, 2, 11, 2),          96,  1),
    "base":  ((2, 3, 16, 3),          96,  1),
    "large": ((2, 6, 36, 4),         144,  2),
    "huge":  ((4, 8, 60, 8),         192,  3),
}

PRESETS = {
    f"mvitv2_{size}": MViTv2Config(depths=depths, embed_dim=dim, num_heads=heads, expand_attn=size != "large")
    for size, (depths, dim, heads) in _SIZES.items()
    if size != "huge"
}
PRESETS |= {
    f"mvitv2_{size}_cls": MViTv2Config(
        depths=depths, embed_dim=dim, num_heads=heads, use_cls_token=True, global_pool="token"
    )
    for size, (depths, dim, heads) in _SIZES.items()
    if size != "tiny"
}
PRESETS["mvit_v2_s"] = MViTv2Config(                                # MViTv2-S for video, 16×4: torchvision's
    depths=(1, 2, 11, 2), num_frames=16, num_classes=400, patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4),
    kernel_qkv=(3, 3, 3), stride_kv=(1, 8, 8), use_cls_token=True, global_pool="token", cls_residual=False,
    drop_rate=0.5, drop_path_rate=0.2,
)


class PatchEmbed(nn.Module):
    """Embed overlapping patches, or cubes of a clip: (B, C, [T,] H, W) → tokens (B, N, D)."""

    def __init__(self, config: MViTv2Config):
        self.img_size, axes = pair(config.img_size), len(config.patch_kernel)
        self.grid_size = pooled((config.num_frames, *self.img_size)[-axes:], config.patch_stride)
        self.proj = _conv(axes)(
            config.in_chans, config.embed_dim, config.patch_kernel, config.patch_stride,
            padding=half(config.patch_kernel),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)                          # (B, N, D)


class RelativeAttention(nn.Module):
    """Pooling attention with relative positions and residual pooling. x (B, [1 +] N, D) → (B, [1 +] N', D')."""

    def __init__(self, config: MViTv2Config, scale: Scale):
        D = scale.dim_out if config.expand_attn else scale.dim
        self.scale, self.num_heads, self.prefix = scale, scale.num_heads, int(config.use_cls_token)
        self.residual, self.cls_residual = config.residual_pooling, config.cls_residual
        d, kernel, axes = D // self.num_heads, config.kernel_qkv, len(scale.size)
        self.qkv = nn.Linear(scale.dim, 3 * D, bias=config.qkv_bias)
        self.pool_q, self.pool_k, self.pool_v = (
            _conv(axes)(d, d, kernel, stride, padding=half(kernel), groups=d, bias=False)
            for stride in (scale.stride_q, scale.stride_kv, scale.stride_kv)
        )
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(d) for _ in range(3))
        self.proj = nn.Linear(D, D)
        for name, q, k in zip(_tables(axes), scale.q_size, scale.kv_size):
            setattr(self, name, nn.Parameter(np.zeros((2 * max(q, k) - 1, d), np.float32)))
        self.offsets = [Tensor(relative_offsets(q, k)) for q, k in zip(scale.q_size, scale.kv_size)]
        # Times √d, since attention divides these scores by √d together with the products q · k.
        self.key_places = Tensor(key_places(scale.kv_size, self.prefix) * np.float32(d**0.5))

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        h, size, prefix = self.num_heads, self.scale.size, self.prefix
        d = self.norm_q.weight.size
        qkv = self.qkv(x).reshape(B, N, 3, h, d).permute((2, 0, 3, 1, 4))       # (3, B, h, N, d)
        q, k, v = qkv.reshape(3, B * h, N, d).unbind(0)
        q = self.norm_q(pool_tokens(q, size, prefix, self.pool_q))              # eq. 1
        k = self.norm_k(pool_tokens(k, size, prefix, self.pool_k))
        v = self.norm_v(pool_tokens(v, size, prefix, self.pool_v))
        q, k, v = (t.reshape(B, h, *t.shape[1:]) for t in (q, k, v))            # (B, h, [1 +] N' or M, d)

        on_grid = q[:, :, prefix:]                                              # (B, h, N', d)
        tables = [getattr(self, name) for name in _tables(len(size))]
        scores = relative_scores(on_grid, self.scale.q_size, tables, self.offsets)  # (B, h, N', kT + kH + kW)
        scores = ops.pad(scores, (0, 0, prefix, 0)) if prefix else scores       # 0 for the class token: no position
        places = self.key_places.expand((B, h, *self.key_places.shape))         # (B, h, [1 +] M, kT + kH + kW)
        x = ops.attention(                                                      # eqs. 2 and 3
            ops.concatenate([q, scores], dim=-1), ops.concatenate([k, places], dim=-1), v, scale=d**-0.5
        )
        if self.residual:                                                       # eq. 5
            x = x + (q if self.cls_residual or not prefix else ops.pad(on_grid, (0, 0, prefix, 0)))
        x = x.transpose(1, 2).reshape(B, x.shape[2], h * d)                     # (B, [1 +] N', D)
        return self.proj(x)


class Block(nn.Module):
    """One layer. If the number of channels changes, the residual path is a projection of the normalised input."""

    def __init__(self, config: MViTv2Config, scale: Scale):
        D = scale.dim_out if config.expand_attn else scale.dim                  # after attention
        grows = scale.dim_out != scale.dim
        self.scale, self.prefix = scale, int(config.use_cls_token)
        self.norm1 = nn.LayerNorm(scale.dim)
        self.shortcut_proj_attn = nn.Linear(scale.dim, D) if grows and config.expand_attn else None
        self.attn = RelativeAttention(config, scale)
        self.drop_path1 = nn.DropPath(scale.drop_path)
        self.norm2 = nn.LayerNorm(D)
        self.shortcut_proj_mlp = nn.Linear(D, scale.dim_out) if grows and not config.expand_attn else None
        self.mlp = nn.Mlp(D, int(D * config.mlp_ratio), out_dim=scale.dim_out)
        self.drop_path2 = nn.DropPath(scale.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x if self.shortcut_proj_attn is None else self.shortcut_proj_attn(y)
        x = max_pool_tokens(x, self.scale.size, self.prefix, self.scale.stride_q)   # (B, [1 +] N', D)
        x = x + self.drop_path1(self.attn(y))
        y = self.norm2(x)
        x = x if self.shortcut_proj_mlp is None else self.shortcut_proj_mlp(y)
        return x + self.drop_path2(self.mlp(y))


class Stage(nn.Module):
    """The blocks of one resolution. The first one pools the grid of the previous stage."""

    def __init__(self, config: MViTv2Config, scales: Sequence[Scale]):
        self.blocks = nn.ModuleList(Block(config, scale) for scale in scales)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Head(nn.Module):
    """Dropout and a linear classifier: features (B, D) → logits (B, num_classes)."""

    def __init__(self, dim: int, config: MViTv2Config):
        self.drop = nn.Dropout(config.drop_rate)
        self.fc = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x))


class MViTv2(nn.Module):
    """images (B, C, H, W), or clips (B, C, T, H, W), arrays or Tensors → logits (B, num_classes).

    Raises ScratchvitError if sizes do not fit together, or if the shape of the input does not fit the model.
    """

    def __init__(self, config: MViTv2Config, seed: int = 0):
        _check(config)
        self.config = config
        self.num_prefix_tokens = int(config.use_cls_token)
        self.patch_embed = PatchEmbed(config)
        D = config.embed_dim
        self.cls_token = nn.Parameter(np.zeros((1, 1, D), np.float32)) if config.use_cls_token else None
        stages = list(pyramid(config, self.patch_embed.grid_size, config.expand_attn))
        self.stages = nn.ModuleList(Stage(config, scales) for scales in stages)
        width = stages[-1][-1].dim_out
        self.norm = nn.LayerNorm(width)
        self.head = Head(width, config)

        self.init_weights(np.random.default_rng(seed))
        self.set_generator(Generator(seed))

    def forward_features(self, x: Tensor | Array) -> Tensor:
        """images or clips → tokens (B, [1 +] N, D) after the last block."""
        config, dtype = self.config, self.patch_embed.proj.weight.dtype
        if len(config.patch_kernel) == 3:
            x = check_clips(x, config, dtype)
        else:
            x = check_images(x, (config.in_chans, *self.patch_embed.img_size), dtype)
        x = self.patch_embed(x)                                                 # (B, N, D)
        if self.cls_token is not None:
            x = ops.concatenate([self.cls_token.expand((len(x), 1, x.shape[-1])), x], dim=1)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x)

    def forward(self, x: Tensor | Array) -> Tensor:
        x = self.forward_features(x)
        pooled_x = x[:, 0] if self.config.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(dim=1)
        return self.head(pooled_x)

    def init_weights(self, rng: np.random.Generator) -> None:
        """Matrices, tables and class token truncated normal (standard deviation 0.02); convolutions as in PyTorch."""
        init_linear_and_conv(self, rng)
        for name, parameter in self.named_parameters():
            if _is_table(name):
                parameter.assign(init.trunc_normal(parameter.shape, rng))

    def no_weight_decay(self) -> set[str]:
        """Positional embeddings and class token: not weight matrices, so weight decay is not applied to them."""
        return {name for name, _ in self.named_parameters() if _is_table(name)}

    def layer_names(self) -> list[tuple[str, ...]]:
        """The modules of each layer, from the image to the head, for `layer_decay` (see `optim.param_groups`)."""
        blocks: list[tuple[str, ...]] = [
            (f"stages.{s}.blocks.{b}",) for s, depth in enumerate(self.config.depths) for b in range(depth)
        ]
        blocks[-1] += ("norm",)
        return [("cls_token", "patch_embed"), *blocks, ("head",)]


# --- relative positions ---------------------------------------------------------------------------------------------


def relative_scores(q: Tensor, size: Size, tables: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
    """q_i · R of each axis for every frame, row and column of the keys: q (B, h, N, d) → (B, h, N, kT + kH + kW).

    size: the grid of the queries.  tables: R (2 max(n, k) − 1, d) of each axis.  offsets: row indices into R (n, k) of
    each axis, from `relative_offsets`.
    For the rows of an image this is einsum("bhyxd,ykd->bhyxk"), which takes 2 to 4 times as long.
    """
    B, h, N, d = q.shape
    axes = len(size)
    q = q.reshape(B, h, *size, d)                                               # (B, h, [T,] H, W, d)
    parts = []
    for axis, (table, offset) in enumerate(zip(tables, offsets)):
        n, k = offset.shape                                                     # queries and keys along this axis
        R = ops.embedding(offset, table).transpose(1, 2)                        # (n, k, d) → (n, d, k)
        R = R.reshape(n, *(1,) * (axes - 2), d, k)                              # (n, [1,] d, k): n matrices
        order = [0, 1, 2 + axis, *(2 + other for other in range(axes) if other != axis), 2 + axes]
        product = q.permute(order) @ R                                          # (B, h, n, the other axes, k)
        back = [order.index(position) for position in range(len(order))]        # the inverse permutation
        parts.append(product.permute(back).reshape(B, h, N, k))                 # (B, h, [T,] H, W, k) → (B, h, N, k)
    return ops.concatenate(parts, dim=-1)                                       # (B, h, N, kT + kH + kW)


def relative_offsets(n: int, k: int) -> np.ndarray:
    """The row of the table for query i and key j along an axis: (n, k) integers from 0 to 2 max(n, k) − 2.

    An offset is query minus key, in units of the finer of the two grids. With n queries, k keys and m = max(n, k),
    queries are m / n apart and keys m / k. The first query and the last key have row 0; fractions are rounded down.
    Four queries, at 0, 1, 2, 3, and two keys, at 0 and 2, have the offsets 0 and −2, 1 and −1, …; 2 is added:

    >>> relative_offsets(4, 2)
    array([[2, 0],
           [3, 1],
           [4, 2],
           [5, 3]])
    """
    i, j, m = np.arange(n)[:, None], np.arange(k), max(n, k)
    return m * (i * k + (k - 1 - j) * n) // (n * k)


def key_places(size: Size, prefix: int) -> np.ndarray:
    """Ones at each key's row, column and frame: float32 (prefix + M, kT + kH + kW), zeros for a class token."""
    coordinates = np.indices(size).reshape(len(size), -1)                       # (axes, M)
    places = np.concatenate([np.eye(n, dtype=np.float32)[where] for n, where in zip(size, coordinates)], axis=1)
    return np.concatenate([np.zeros((prefix, places.shape[1]), np.float32), places])


def _tables(axes: int) -> tuple[str, ...]:
    """Names of the tables of relative positional embeddings, in the order of the axes."""
    return ("rel_pos_t", "rel_pos_h", "rel_pos_w")[-axes:]


def _is_table(name: str) -> bool:
    return name == "cls_token" or ".rel_pos_" in name


def _conv(axes: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if axes == 2 else nn.Conv3d


def _check(config: MViTv2Config) -> None:
    """Raise ScratchvitError for options that do not fit together."""
    axes = len(config.patch_kernel)
    if axes not in (2, 3):
        raise ScratchvitError(
            f"patch_kernel must be two numbers for images, or three for clips, not {config.patch_kernel}"
        )
    check_pyramid(config, axes)
    if axes == 2 and config.num_frames > 1:
        raise ScratchvitError("clips need kernels and strides of three numbers: frames, rows, columns")
    if config.global_pool not in ("avg", "token"):
        raise ScratchvitError(f'global_pool must be "avg" or "token", not {config.global_pool!r}')
    if config.global_pool == "token" and not config.use_cls_token:
        raise ScratchvitError('global_pool="token" needs a class token: use global_pool="avg"')


register(MViTv2, PRESETS, paper="MViTv2, arXiv 2112.01526")
