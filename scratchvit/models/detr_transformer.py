"""DETR's Transformer: an encoder of the image's features, a decoder of object queries (arXiv 2005.12872, §3.2, §A.3).

It is the Transformer of Vaswani et al. (arXiv 1706.03762), with three changes. Symbols are those of detr.py.

- Positional embeddings are added in every layer, not once at the input, and only to queries and keys. So positions
  determine where a query attends, but are not part of the values:

      q = W_q (x_q + p_q),   k = W_k (x_k + p_k),   v = W_v x_k                                 eq. 7 of §A.1

- The input of the decoder is not text but N zero vectors, which differ only by learned positional embeddings, the
  *object queries*. All N are decoded in parallel, and each attends to all others, without a causal mask: so they can
  avoid predicting the same object twice. (In the first layer all values are equal, so self-attention only adds the same
  vector to every query.)
- The output of every decoder layer is normalised and returned, so that each can be trained (auxiliary losses).

                          self_attn                     multihead_attn                   linear1, linear2
    encoder layer   q, k: x + pos; v: x                            –                   on every feature
    decoder layer   q, k: x + query_pos; v: x     q: x + query_pos; k: memory + pos;   on every query
                                                  v: memory

Images of a batch differ in size and are padded. The key mask, (B, 1, 1, HW), is False on padding. Padding is only
masked as a key: as a query it still has outputs, which no other position uses.

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
    """Attention with heads of width d' = D / heads (§A.1). query (B, Q, D); key, value (B, S, D) → (B, Q, D).

    Positional embeddings are already added to query and key; if they are one Tensor, as in self-attention, it is
    multiplied by W_q and W_k at once. visible: bool (…, 1 or Q, S), True where a key may be attended to; None:
    everywhere.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float):
        rng = np.random.default_rng()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(init.xavier_uniform((3 * dim, dim), rng))    # W_q, W_k, W_v of all heads
        self.in_proj_bias = nn.Parameter(np.zeros(3 * dim, np.float32))
        self.out_proj = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Array | None = None) -> Tensor:
        B, Q, D = query.shape
        heads, packed, bias = self.num_heads, self.in_proj_weight, self.in_proj_bias    # W_q, W_k and W_v of eq. 7
        if query is key:
            qk, v = ops.linear_parts((query, value), packed, bias, (2 * D, D))          # (B, Q, 2D), (B, Q, D)
            q, k = qk.reshape(B, Q, 2, heads, D // heads).permute((2, 0, 3, 1, 4)).unbind(0)    # (B, heads, Q, d')
        else:
            q, k, v = ops.linear_parts((query, key, value), packed, bias, (D, D, D))    # (B, Q or S, D)
            q, k = self.split(q), self.split(k)                                         # (B, heads, Q or S, d')
        v = self.split(v)
        x = ops.attention(                                          # softmax(q kᵀ / √d') v, eq. 8
            q, k, v, mask=visible,
            dropout=self.attn_drop.p if self.training else 0.0, generator=self.attn_drop.generator,
        )
        return self.out_proj(x.transpose(1, 2).reshape(B, Q, D))    # (B, heads, Q, d') → (B, Q, D)

    def split(self, x: Tensor) -> Tensor:
        """(B, S, D) → (B, heads, S, d')."""
        return x.reshape(*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads).transpose(1, 2)


class Layer(nn.Module):
    """The parts that encoder and decoder layers share: residual connections with layer norm, and the MLP."""

    def __init__(self, dim: int, dim_feedforward: int, dropout: float, normalize_before: bool):
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.activation: Callable[[Tensor], Tensor] = ops.relu
        self.dropout = nn.Dropout(dropout)
        self.normalize_before = normalize_before

    def residual(self, x: Tensor, norm: nn.LayerNorm, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """norm(x + dropout(branch(x))), eq. 6; with normalize_before x + branch(norm(x)), as in a ViT."""
        if self.normalize_before:
            return x + self.dropout(branch(norm(x)))
        return norm.of_sum(x, branch(x), self.dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The MLP, applied to each token: (B, Q, D) → (B, Q, F) → (B, Q, D)."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(Layer):
    """Self-attention over the features of an image, and an MLP. x (B, HW, D); pos (B or 1, HW, D) → (B, HW, D)."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, normalize_before: bool):
        self.self_attn = MultiheadAttention(dim, num_heads, dropout)
        super().__init__(dim, dim_feedforward, dropout, normalize_before)
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.norm2 = nn.LayerNorm(dim, EPS)

    def forward(self, x: Tensor, pos: Tensor, visible: Array | None) -> Tensor:
        def self_attention(x: Tensor) -> Tensor:
            with_pos = x + pos
            return self.self_attn(with_pos, with_pos, x, visible)

        x = self.residual(x, self.norm1, self_attention)
        return self.residual(x, self.norm2, self.feed_forward)


class DecoderLayer(Layer):
    """Self-attention over the queries, cross-attention to the image, and an MLP.

    x and query_pos (B, Q, D) → (B, Q, D).
    memory: (B, HW, D), the encoder's output. memory_with_pos: memory + pos, computed once for all layers.
    visible: key mask, bool (B, 1, 1, HW), False on padding, or None.
    self_mask: bool (Q, Q) or (B, 1, Q, Q), True where a query (row) may attend to another (column); None: no
        restrictions, as in the paper.
    """

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, normalize_before: bool):
        self.self_attn = MultiheadAttention(dim, num_heads, dropout)
        self.multihead_attn = MultiheadAttention(dim, num_heads, dropout)
        super().__init__(dim, dim_feedforward, dropout, normalize_before)
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.norm3 = nn.LayerNorm(dim, EPS)

    def forward(
        self, x: Tensor, query_pos: Tensor, memory: Tensor, memory_with_pos: Tensor, visible: Array | None,
        self_mask: Array | None = None,
    ) -> Tensor:
        def self_attention(x: Tensor) -> Tensor:
            with_pos = x + query_pos
            return self.self_attn(with_pos, with_pos, x, self_mask)

        def cross_attention(x: Tensor) -> Tensor:
            return self.multihead_attn(x + query_pos, memory_with_pos, memory, visible)

        x = self.residual(x, self.norm1, self_attention)
        x = self.residual(x, self.norm2, cross_attention)
        return self.residual(x, self.norm3, self.feed_forward)


class Encoder(nn.Module):
    """x (B, HW, D), pos (B or 1, HW, D) → memory (B, HW, D)."""

    def __init__(
        self, depth: int, dim: int, num_heads: int, dim_feedforward: int, dropout: float, normalize_before: bool
    ):
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, dim_feedforward, dropout, normalize_before) for _ in range(depth)
        )
        # Otherwise every layer ends with a norm, so the output of the last one is already normalised.
        self.norm = nn.LayerNorm(dim, EPS) if normalize_before else nn.Identity()

    def forward(self, x: Tensor, pos: Tensor, visible: Array | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, pos, visible)
        return self.norm(x)


class Decoder(nn.Module):
    """x (B, Q, D), query_pos (Q, D), memory (B, HW, D), pos (B or 1, HW, D) → outputs of all layers (L, B, Q, D).

    The outputs are normalised; the input of the next layer is not. Masks: see `DecoderLayer`.
    """

    def __init__(
        self, depth: int, dim: int, num_heads: int, dim_feedforward: int, dropout: float, normalize_before: bool
    ):
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_heads, dim_feedforward, dropout, normalize_before) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, EPS)      # shared by all layers

    def forward(
        self, x: Tensor, query_pos: Tensor, memory: Tensor, pos: Tensor, visible: Array | None,
        self_mask: Array | None = None,
    ) -> Tensor:
        query_pos, memory_with_pos = query_pos.expand(x.shape), memory + pos            # for all layers
        outputs = []
        for layer in self.layers:
            x = layer(x, query_pos, memory, memory_with_pos, visible, self_mask)
            outputs.append(x)
        return self.norm(ops.stack(outputs))


class Transformer(nn.Module):
    """Encoder and decoder of the same width, heads, MLPs and dropout."""

    def __init__(
        self, dim: int, num_heads: int, enc_layers: int, dec_layers: int, dim_feedforward: int, dropout: float,
        normalize_before: bool,
    ):
        sizes = (dim, num_heads, dim_feedforward, dropout, normalize_before)
        self.encoder = Encoder(enc_layers, *sizes)
        self.decoder = Decoder(dec_layers, *sizes)

    def init_weights(self, rng: np.random.Generator) -> None:
        """Weights by Glorot & Bengio (2010); biases of attention zero, biases of MLPs as in PyTorch's layers."""
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
