"""Rows for scratchvit/ops/attention.py."""

import math

import numpy as np

from scratchvit import ops
from scratchvit.random import Generator
from tests.support.seeds import moved

from .case import Case

_mask = np.array([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], dtype=bool)          # (N, M)
_qkv = ((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 6))


def _sdpa(torch, q, k, v, bias=None, mask=None, **kwargs):
    if mask is not None:
        mask = torch.as_tensor(mask)
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf) + (0 if bias is None else bias)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, **kwargs)


def _attention(note, *extra_inputs, theirs=_sdpa, **kwargs):
    return Case("attention", (*_qkv, *extra_inputs), lambda *a: ops.attention(*a, **kwargs),
                lambda torch, *a: theirs(torch, *a, **kwargs), note)


def _kept(probability, shape):
    return Generator(moved(7)).bernoulli(probability, shape)


def _packed(attention):
    """Self-attention on slices of one projection, as models do it: the result comes back in its memory order."""
    def run(qkv):
        q, k, v = qkv.reshape(2, 5, 3, 2, 4).permute((2, 0, 3, 1, 4)).unbind(0)
        return attention(q, k, v).transpose(1, 2).reshape(2, 5, 8)
    return run


CASES = [
    Case("softmax", ((3, 5),), ops.softmax, lambda torch, x: torch.softmax(x, -1)),
    Case("softmax", ((3, 5, 2),), lambda x: ops.softmax(x, dim=1), lambda torch, x: torch.softmax(x, 1), "dim"),
    Case("log_softmax", ((3, 5),), ops.log_softmax, lambda torch, x: torch.log_softmax(x, -1)),
    _attention("plain"),
    _attention("scale", scale=0.3),
    _attention("bias over the batch", (2, 3, 5)),
    _attention("bias per image", (2, 1, 3, 5)),
    _attention("bias per head", (2, 1, 5)),
    _attention("mask", mask=_mask),
    _attention("mask per image and bias", (1, 2, 3, 5), mask=np.stack([_mask, _mask[::-1]])[:, None]),
    Case("attention", ((2, 5, 24),), _packed(ops.attention),
         lambda torch, x: _packed(torch.nn.functional.scaled_dot_product_attention)(x), "packed projection"),
    Case("attention", _qkv, lambda q, k, v: ops.attention(q, k, v, dropout=0.4, generator=Generator(moved(7))),
         lambda torch, q, k, v: (torch.softmax(q @ k.mT / 2, -1) * torch.as_tensor(_kept(0.6, (2, 2, 3, 5))) / 0.6) @ v,
         "dropout"),
    Case("dropout", ((3, 5),), lambda x: ops.dropout(x, 0.4, generator=Generator(moved(7))),
         lambda torch, x: x * torch.as_tensor(_kept(0.6, (3, 5))) / 0.6),
    Case("dropout", ((3, 5),), lambda x: ops.dropout(x, 0.4, training=False), lambda torch, x: x * 1, "evaluation"),
    Case("drop_path", ((6, 2, 3),), lambda x: ops.drop_path(x, 0.4, generator=Generator(moved(7))),
         lambda torch, x: x * torch.as_tensor(_kept(0.6, (6, 1, 1))) / 0.6),
]
