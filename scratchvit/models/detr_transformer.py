"""DETR's Transformer: an encoder over an image's features, a decoder over its objects (arXiv 2005.12872, §3.2, §A.3).

It is the Transformer of Vaswani et al. (arXiv 1706.03762), with three changes:

- *Where* is told apart from *what*, in every layer anew. Positions P are added to what asks and to what is asked, never
  to what is fetched, so that the values stay features alone:

      Q = T_q (X_q + P_q),   K = T_k (X_kv + P_kv),   V = T_v X_kv                              eq. 7 of §A.1

- The decoder's words are no words. It begins with N zeros, and what tells the N apart are learned positions, the
  *object queries*: P_q of the decoder. All N are decoded at once, each may look at every other, none is masked. (In
  the first layer there is nothing to see yet: whoever looks at zeros sees the same everywhere.)
- What comes out of every decoder layer is normalised and given out, so that each can be asked for boxes.

                          self_attn                    multihead_attn                 linear1, linear2
    encoder layer   src asks src, both + pos                   –                 on every feature
    decoder layer   tgt asks tgt, both + query_pos   tgt + query_pos asks        on every object
                                                     memory + pos

Images of a batch differ in size and are padded. `visible` (B, 1, 1, HW) is True where a feature shows the image: nobody
looks at the others. (They look themselves, and nobody minds what they find.)

Names of parameters are those of the authors' code, and so of PyTorch's nn.MultiheadAttention.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scratchvit import nn, ops
from scratchvit.backend import Array
from scratchvit.nn import init
from scratchvit.tensor import Tensor

EPS = 1e-5      # of every layer norm


class MultiheadAttention(nn.Module):
    """M heads of d' = D / M numbers (§A.1). query (B, N, D); key, value (B, L, D); visible (…, 1, L) → (B, N, D).

    Positions are in query and key already. visible: bool, True where a key may be looked at; None: everywhere.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float):
        rng = np.random.default_rng()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(init.xavier_uniform((3 * dim, dim), rng))    # T_q, T_k, T_v of all heads
        self.in_proj_bias = nn.Parameter(np.zeros(3 * dim, np.float32))
        self.out_proj = nn.Linear(dim, dim)                                             # L
        self.attn_drop = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Array | None = None) -> Tensor:
        B, N, D = query.shape
        weights, biases = self.in_proj_weight.split(D), self.in_proj_bias.split(D)
        q, k, v = (                                                 # each (B, heads, N or L, d'), eq. 7
            ops.linear(x, weight, bias).reshape(B, x.shape[1], self.num_heads, D // self.num_heads).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases)
        )
        x = ops.attention(                                          # softmax(q kᵀ / √d') v, eq. 8
            q, k, v, mask=visible,
            dropout=self.attn_drop.p if self.training else 0.0, generator=self.attn_drop.generator,
        )  # fmt: skip
        return self.out_proj(x.transpose(1, 2).reshape(B, N, D))    # the heads side by side again


class Layer(nn.Module):
    """What layers of encoder and decoder share: sums with the input, where the norms stand, and the MLP at the end."""

    def __init__(self, dim: int, dim_feedforward: int, dropout: float, normalize_before: bool):
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.activation: Callable[[Tensor], Tensor] = ops.relu
        self.dropout = nn.Dropout(dropout)
        self.normalize_before = normalize_before

    def residual(self, x: Tensor, norm: nn.LayerNorm, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """norm(x + branch(x)), eq. 6; with normalize_before, as in a ViT, x + branch(norm(x))."""
        if self.normalize_before:
            return x + self.dropout(branch(norm(x)))
        return norm(x + self.dropout(branch(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Two layers on each vector alone: (B, N, D) → (B, N, F) → (B, N, D)."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(Layer):
    """Every feature asks every feature of its image. x (B, HW, D); pos (B or 1, HW, D) → (B, HW, D)."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, normalize_before: bool):
        self.self_attn = MultiheadAttention(dim, num_heads, dropout)
        super().__init__(dim, dim_feedforward, dropout, normalize_before)
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.norm2 = nn.LayerNorm(dim, EPS)

    def forward(self, x: Tensor, pos: Tensor, visible: Array | None) -> Tensor:
        def look_around(x: Tensor) -> Tensor:
            placed = x + pos
            return self.self_attn(placed, placed, x, visible)

        x = self.residual(x, self.norm1, look_around)
        return self.residual(x, self.norm2, self.feed_forward)


class DecoderLayer(Layer):
    """Objects agree who takes what, then look at the image. x (B, N, D), query_pos (N, D) or (B, N, D) → (B, N, D).

    memory (B, HW, D): the encoder's features; placed_memory: the same + pos, for all layers alike.
    sees: bool (N, N) or (B, 1, N, N), True where an object may look at another; None: everywhere.
    """

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, normalize_before: bool):
        self.self_attn = MultiheadAttention(dim, num_heads, dropout)
        self.multihead_attn = MultiheadAttention(dim, num_heads, dropout)
        super().__init__(dim, dim_feedforward, dropout, normalize_before)
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.norm3 = nn.LayerNorm(dim, EPS)

    def forward(
        self, x: Tensor, query_pos: Tensor, memory: Tensor, placed_memory: Tensor, visible: Array | None,
        sees: Array | None = None,
    ) -> Tensor:  # fmt: skip
        def look_at_each_other(x: Tensor) -> Tensor:
            placed = x + query_pos
            return self.self_attn(placed, placed, x, sees)

        def look_at_the_image(x: Tensor) -> Tensor:
            return self.multihead_attn(x + query_pos, placed_memory, memory, visible)

        x = self.residual(x, self.norm1, look_at_each_other)
        x = self.residual(x, self.norm2, look_at_the_image)
        return self.residual(x, self.norm3, self.feed_forward)


class Encoder(nn.Module):
    """x (B, HW, D), pos (B or 1, HW, D) → memory (B, HW, D)."""

    def __init__(
        self, depth: int, dim: int, num_heads: int, dim_feedforward: int, dropout: float, normalize_before: bool
    ):
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, dim_feedforward, dropout, normalize_before) for _ in range(depth)
        )
        # Norms at the end of each layer leave nothing to do after the last one.
        self.norm = nn.LayerNorm(dim, EPS) if normalize_before else nn.Identity()

    def forward(self, x: Tensor, pos: Tensor, visible: Array | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, pos, visible)
        return self.norm(x)


class Decoder(nn.Module):
    """x (B, N, D), query_pos (N, D), memory (B, HW, D), pos (B or 1, HW, D) → what every layer gives, normalised.

    That is a list of (B, N, D). What goes from layer to layer is not that, but what was before this norm.
    """

    def __init__(
        self, depth: int, dim: int, num_heads: int, dim_feedforward: int, dropout: float, normalize_before: bool
    ):
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, dim_feedforward, dropout, normalize_before) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, EPS)      # one for all layers

    def forward(
        self, x: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor, visible: Array | None,
        sees: Array | None = None,
    ) -> list[Tensor]:  # fmt: skip
        placed_memory, given_out = memory + pos, []
        for layer in self.layers:
            x = layer(x, query_pos, memory, placed_memory, visible, sees)
            given_out.append(self.norm(x))
        return given_out


class Transformer(nn.Module):
    """Encoder and decoder of the same width, heads, MLPs and dropout."""

    def __init__(
        self, dim: int, num_heads: int, enc_layers: int, dec_layers: int, dim_feedforward: int, dropout: float,
        normalize_before: bool,
    ):  # fmt: skip
        sizes = (dim, num_heads, dim_feedforward, dropout, normalize_before)
        self.encoder = Encoder(enc_layers, *sizes)
        self.decoder = Decoder(dec_layers, *sizes)

    def init_weights(self, rng: np.random.Generator) -> None:
        """Matrices by their width (Glorot & Bengio 2010); biases of attention zero, of MLPs as in PyTorch's layers."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                assert module.bias is not None
                module.bias.assign(init.uniform(module.bias.shape, rng, init.fans(module.weight.shape)[0] ** -0.5))
        for module in self.modules():
            if isinstance(module, MultiheadAttention):
                assert module.out_proj.bias is not None
                module.in_proj_bias.assign(0)
                module.out_proj.bias.assign(0)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.assign(init.xavier_uniform(parameter.shape, rng))
