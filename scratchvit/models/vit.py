"""ViT: an image is worth 16×16 words (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929).

The idea: cut the image into patches, embed each patch with the same matrix, and feed the sequence to a standard
Transformer encoder. Only the patches are specific to images. A ViT must learn the inductive biases of a convolution
(locality and translation equivariance) from data.

Why patches: attention compares every token with every other, so its memory grows with the square of the number of
tokens. For the 50,176 pixels of a 224×224 image, an attention matrix would have 2.5 billion entries; for its 196
patches it has 38,416.

    paper    here           shape at ViT-B/16, 224×224
    x        images         (B, 3, 224, 224)
    P        patch_size     16
    N        num_patches    196 = 14 × 14
    D        embed_dim      768
    L        depth          12
    k        num_heads      12, each with d = D / k = 64 channels
    E        patch_embed    (768, 3, 16, 16): a matrix from P²·3 = 768 numbers to D, stored as a convolution kernel
    E_pos    pos_embed      (1, 197, 768)
    z_0^0    cls_token      (1, 1, 768)
    z_l      x in blocks    (B, 197, 768)
    y        norm(x)[:, 0]  (B, 768)

Names of parameters and options are timm's, so that its checkpoints load here and ours there. Three things can be asked
for that it does not have: positions by sines and cosines (pos_embed), an initialisation by width (weight_init), and
another ε of the layer norms, for Hugging Face's weights (norm_eps).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scratchvit import nn, ops
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_images, check_numbers
from scratchvit.models.registry import register
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a ViT."""

    img_size: int | tuple[int, int] = option(224, "side of the images, or (height, width)")
    patch_size: int | tuple[int, int] = option(16, "P: side of the patches, or (height, width)")
    in_chans: int = option(3, "channels of the images")
    num_classes: int = option(1000, "number of classes; 0: no head, the model returns the pooled features")
    embed_dim: int = option(768, "D: channels (width) of a token")
    depth: int = option(12, "L: number of blocks")
    num_heads: int = option(12, "k: attention heads; must divide D")
    mlp_ratio: float = option(4.0, "hidden width of the MLP as a multiple of D")
    qkv_bias: bool = option(True, "whether q, k and v have biases")
    class_token: bool = option(True, "whether to prepend a learned class token to the patches")
    global_pool: str = option(
        "token", "input of the head: \"token\", the class token; \"avg\", the mean of the patches"
    )
    pos_embed: str = option("learn", "\"learn\", or \"sincos\": fixed sines and cosines of row and column")
    norm_eps: float = option(1e-6, "ε of every layer norm")
    weight_init: str = option(
        "timm", "\"timm\": standard deviation 0.02; \"xavier\" (paper's code): by width, for small D"
    )
    drop_rate: float = option(0.0, "dropout rate before the head")
    pos_drop_rate: float = option(0.0, "dropout rate after the positional embedding is added")
    proj_drop_rate: float = option(0.0, "dropout rate after the projections of attention and MLP")
    attn_drop_rate: float = option(0.0, "dropout rate of the attention probabilities")
    drop_path_rate: float = option(0.0, "stochastic depth rate of the last block; rises linearly from 0 at the first")


#          name      L  D     MLP/D  k        Table 1 of the paper (B, L, H); Ti and S from DeiT, arXiv 2012.12877
_SIZES = {
    "tiny":  (12,  192, 4.0,  3),
    "small": (12,  384, 4.0,  6),
    "base":  (12,  768, 4.0, 12),
    "large": (24, 1024, 4.0, 16),
    "huge":  (32, 1280, 4.0, 16),
}

PRESETS = {
    f"vit_{size}_patch{patch}_224": ViTConfig(
        patch_size=patch, depth=depth, embed_dim=dim, mlp_ratio=ratio, num_heads=heads
    )
    for size, (depth, dim, ratio, heads) in _SIZES.items()
    for patch in (32, 16, 14)
}


class PatchEmbed(nn.Module):
    """Cut the images into P×P patches and embed each patch: x_p E, the first term of eq. 1.

    This is a convolution whose stride is its kernel size. images (B, C, H, W) → tokens (B, N, D).
    """

    def __init__(self, config: ViTConfig):
        self.img_size, self.patch_size = pair(config.img_size), pair(config.patch_size)
        (H, W), (P, Q) = self.img_size, self.patch_size
        if H % P or W % Q:
            raise ScratchvitError(
                f"an image of {H}×{W} cannot be cut into patches of {P}×{Q}: choose an img_size that patch_size divides"
            )
        self.grid_size = (H // P, W // Q)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)                                # (B, D, H/P, W/P)
        return x.flatten(2).transpose(1, 2)             # (B, N, D)


class Attention(nn.Module):
    """Multi-head self-attention (Appendix A): every token attends to every token. x (B, N, D) → (B, N, D)."""

    def __init__(self, config: ViTConfig):
        D = config.embed_dim
        if D % config.num_heads:
            raise ScratchvitError(f"embed_dim {D} is not divisible by {config.num_heads} heads: choose a multiple")
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(D, 3 * D, bias=config.qkv_bias)        # U_qkv of all heads, concatenated, eq. 5
        self.attn_drop = nn.Dropout(config.attn_drop_rate)
        self.proj = nn.Linear(D, D)                                 # U_msa, eq. 8
        self.proj_drop = nn.Dropout(config.proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)     # (B, N, 3, heads, d)
        q, k, v = qkv.permute((2, 0, 3, 1, 4)).unbind(0)            # each (B, heads, N, d)
        x = ops.attention(                                          # softmax(q kᵀ / √d) v, eqs. 6 and 7
            q, k, v,
            dropout=self.attn_drop.p if self.training else 0.0, generator=self.attn_drop.generator,
        )
        x = x.transpose(1, 2).reshape(B, N, D)                      # (B, N, D), the heads concatenated
        return self.proj_drop(self.proj(x))


class Block(nn.Module):
    """One encoder layer: attention, then an MLP on each token, both pre-norm and with a residual connection."""

    def __init__(self, config: ViTConfig, drop_path: float):
        D = config.embed_dim
        self.norm1 = nn.LayerNorm(D, config.norm_eps)
        self.attn = Attention(config)
        self.drop_path1 = nn.DropPath(drop_path)
        self.norm2 = nn.LayerNorm(D, config.norm_eps)
        self.mlp = nn.Mlp(D, int(D * config.mlp_ratio), drop=config.proj_drop_rate)
        self.drop_path2 = nn.DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))           # eq. 2
        x = x + self.drop_path2(self.mlp(self.norm2(x)))            # eq. 3
        return x


class VisionTransformer(nn.Module):
    """images (B, C, H, W), an array or a Tensor → logits (B, num_classes).

    Raises ScratchvitError if sizes do not fit together, or if the shape of the images does not fit the model.
    """

    embed_layer: type[PatchEmbed] = PatchEmbed      # images → tokens; a hybrid has a CNN before the patches (hybrid.py)

    def __init__(self, config: ViTConfig, seed: int = 0):
        _check(config)
        self.config = config
        D = config.embed_dim
        pooled = config.global_pool == "avg"
        self.cls_token = nn.Parameter(np.zeros((1, 1, D), np.float32)) if config.class_token else None
        self.num_prefix_tokens = len(self.prefix_tokens())
        self.patch_embed = self.embed_layer(config)
        self.num_tokens = self.num_prefix_tokens + self.patch_embed.num_patches
        if config.pos_embed == "learn":
            self.pos_embed: Tensor = nn.Parameter(np.zeros((1, self.num_tokens, D), np.float32))
        else:
            self.pos_embed = Tensor(sincos_positions(self.patch_embed.grid_size, D, self.num_prefix_tokens))
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        drop_paths = np.linspace(0, config.drop_path_rate, config.depth).tolist()
        self.blocks = nn.ModuleList(Block(config, drop_path) for drop_path in drop_paths)
        # The last norm belongs to what the head sees: each token, or their mean (timm then calls it fc_norm).
        self.norm = nn.Identity() if pooled else nn.LayerNorm(D, config.norm_eps)
        self.fc_norm = nn.LayerNorm(D, config.norm_eps) if pooled else nn.Identity()
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = nn.Linear(D, config.num_classes) if config.num_classes else nn.Identity()

        self.init_weights(np.random.default_rng(seed))
        self.set_generator(Generator(seed))

    def prefix_tokens(self) -> list[nn.Parameter]:
        """The learned tokens (1, 1, D) that are prepended to the patches: x_class, if there is one."""
        return [] if self.cls_token is None else [self.cls_token]

    def forward_features(self, x: Tensor) -> Tensor:
        """images (B, C, H, W) → tokens (B, [1 +] N, D) after the last block."""
        x = check_images(x, (self.config.in_chans, *self.patch_embed.img_size), self.patch_embed.proj.weight.dtype)
        x = self.patch_embed(x)                                     # (B, N, D)
        if prefix := [token.expand((len(x), 1, x.shape[-1])) for token in self.prefix_tokens()]:
            x = ops.concatenate([*prefix, x], dim=1)                # (B, 1 + N, D)
        x = self.pos_drop(x + self.pos_embed)                       # z_0, eq. 1
        for block in self.blocks:
            x = block(x)                                            # z_1 … z_L
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """tokens → logits (B, num_classes)."""
        if self.config.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)          # (B, D)
        else:
            x = x[:, 0]                                             # y = LN(z_L^0), eq. 4
        return self.head(self.head_drop(self.fc_norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def init_weights(self, rng: np.random.Generator) -> None:
        """Matrices as in `weight_init`; positions truncated normal with standard deviation 0.02; biases zero."""
        draw = init.trunc_normal if self.config.weight_init == "timm" else init.xavier_uniform
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.assign(draw(module.weight.shape, rng))
                if module.bias is not None:
                    module.bias.assign(0)
        embedding = self.patch_embed.proj
        embedding.weight.assign(init.kaiming_uniform(embedding.weight.shape, rng, a=5**0.5))
        assert embedding.bias is not None
        embedding.bias.assign(0)
        if self.cls_token is not None:
            self.cls_token.assign(init.normal(self.cls_token.shape, rng, std=1e-6))
        if isinstance(self.pos_embed, nn.Parameter):
            self.pos_embed.assign(init.trunc_normal(self.pos_embed.shape, rng))

    def no_weight_decay(self) -> set[str]:
        """Class token and positional embedding: not weight matrices, so weight decay is not applied to them."""
        return {"cls_token", "pos_embed"}

    def layer_names(self) -> list[tuple[str, ...]]:
        """The modules of each layer, from the image to the head, for `layer_decay` (see `optim.param_groups`)."""
        blocks: list[tuple[str, ...]] = [(f"blocks.{i}",) for i in range(len(self.blocks))]
        blocks[-1] += ("norm",)
        return [("cls_token", "pos_embed", "patch_embed"), *blocks, ("fc_norm", "head")]


def sincos_positions(grid: tuple[int, int], dim: int, num_prefix_tokens: int = 0) -> np.ndarray:
    """Fixed 2-D positional embeddings (1, prefix + H·W, dim): a quarter each of sin x, cos x, sin y and cos y.

    Frequencies decrease from 1 to 1/10,000 (MoCo v3, arXiv 2104.02057). Prefix tokens have no position and get zeros.
    Raises ScratchvitError if dim is not a multiple of 4.
    """
    if dim % 4:
        raise ScratchvitError(f"sin-cos positions need an embed_dim that is a multiple of 4, not {dim}")
    y, x = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
    omega = 10_000.0 ** -np.linspace(0, 1, dim // 4)
    angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]       # each (H·W, dim / 4)
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    table = np.concatenate([np.zeros((num_prefix_tokens, dim)), table])
    return table[None].astype(np.float32)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """A size as (height, width); one number means a square."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check(config: ViTConfig) -> None:
    """Raise ScratchvitError for options that do not fit together."""
    check_numbers(config)
    if int(config.embed_dim * config.mlp_ratio) < 1:
        raise ScratchvitError(
            f"mlp_ratio {config.mlp_ratio} is too small: with embed_dim {config.embed_dim} the MLP has no hidden units"
        )
    if config.global_pool not in ("token", "avg"):
        raise ScratchvitError(f'global_pool must be "token" or "avg", not {config.global_pool!r}')
    if config.global_pool == "token" and not config.class_token:
        raise ScratchvitError('global_pool="token" needs a class token: use global_pool="avg"')
    if config.pos_embed not in ("learn", "sincos"):
        raise ScratchvitError(f'pos_embed must be "learn" or "sincos", not {config.pos_embed!r}')
    if config.weight_init not in ("timm", "xavier"):
        raise ScratchvitError(f'weight_init must be "timm" or "xavier", not {config.weight_init!r}')


register(VisionTransformer, PRESETS, paper="ViT, arXiv 2010.11929")
