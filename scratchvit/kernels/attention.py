"""Attention over whole rows of scores (B, ..., N, M), a few images at a time; none of the scores are stored.

    plain       P = softmax(q kᵀ scale + bias), y = P v
    problem     ten passes over all scores, which for 32 images of 197 tokens and 3 heads take 15 MB in every layer
    idea        the scores of a few images stay in the cache from the product with k to the product with v. They are
                computed in place. Row sums are products with ones, at the speed of BLAS (see row_sums.py). As in
                FlashAttention (arXiv 2205.14135), only the maximum m and the sum l of e^(S - m) of each row are
                stored, and the backward computes the scores again: a fifth product, where storing and loading P takes
                as long

NumPy takes 50 ns for the maximum of even a short row, longer than for all else that is done with it. So m is 0 where no
score exceeds LIMIT in magnitude, which two passes over all scores show; e^S is then safe without it. Not so if there is
a mask: what it hides would decide about the last bits of what it does not hide.

Nothing of the size of the scores is divided by l: y and, in the backward, dy are. With E = e^(S - m) = P l:

    y = E v / l,   dv = Eᵀ (dy / l),   dS = E ((dy / l) vᵀ - Σ y (dy / l))

cuda/attention.py and cuda/flash.py have the kernels for a GPU.
"""

from __future__ import annotations

import math

import numpy as np

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.cuda import attention as on_gpu
from scratchvit.kernels.cuda import flash
from scratchvit.kernels.dropout import drop
from scratchvit.kernels.in_float32 import in_float32
from scratchvit.kernels.parts import empty_parts
from scratchvit.kernels.products import matmul
from scratchvit.kernels.row_sums import column_of_ones, sum_rows
from scratchvit.kernels.sums import in_pairs, unbroadcast
from scratchvit.precision import is_half
from scratchvit.random import Draw
from scratchvit.threads import parallel_rows

LIMIT = 20.0        # e²⁰ is 5e8: sums and products of such numbers are far from the largest float32


def attention_over_rows(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, draw: Draw | None, scale: float
):
    """The value of `attention` and its backward. draw: which probabilities dropout keeps, or None; the other arguments
    are those of the plain form in ops/attention.py."""
    if flash.takes(q, k, v, bias):
        return flash.attention(q, k, v, bias, mask, draw, scale)
    if on_gpu.takes(q, k):
        return on_gpu.attention_over_rows(q, k, v, bias, mask, draw, scale)
    if is_half(q):
        return in_float32(attention_over_rows, q, k, v, bias, mask, draw, scale)
    xp = array_module(q)
    scores_shape = (*q.shape[:-1], k.shape[-2])
    scores_bytes = math.prod(scores_shape) * q.itemsize
    y = xp.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]))
    highest, total = (xp.empty((*q.shape[:-1], 1), dtype=q.dtype) for _ in range(2))        # m and l
    ones, ones_of_v = (column_of_ones(q, n) for n in v.shape[-2:])
    lowest = float(xp.finfo(q.dtype).min)
    shifted = np.ones(len(q), bool)                     # of an image: whether m was subtracted from its scores

    # The optional arrays, broadcast over the batch so that parallel_rows can slice them along it.
    optional: dict[str, Array] = {}
    if bias is not None:
        bias_shape = bias.shape
        bias_axes = bias.reshape((1,) * (q.ndim - bias.ndim) + bias.shape)
        optional["bias"] = xp.broadcast_to(bias_axes, (len(q), *bias_axes.shape[1:]))
    if mask is not None:
        optional["blocked"] = xp.broadcast_to(~mask, scores_shape)
    if draw is not None:
        optional["kept"] = draw.array()
    names, extras = list(optional), list(optional.values())

    def dropped(p, given):
        return p if draw is None else drop(p, given["kept"], draw.probability)

    def scores(scaled_q, k, given):
        s = matmul(scaled_q, k.swapaxes(-1, -2))
        if "bias" in given:
            s += given["bias"]
        if "blocked" in given:
            xp.copyto(s, -math.inf, where=given["blocked"])
        return s

    def forward(q, k, v, y, m, l, shifted, *extras):
        given = dict(zip(names, extras))
        e = scores(q * scale, k, given)
        shifted[:] = "blocked" in given or not _is_moderate(e)
        if shifted[0]:
            xp.maximum(e.max(axis=-1, keepdims=True), lowest, out=m)    # a row of -∞ has no maximum to subtract
            e -= m
        xp.exp(e, out=e)
        sum_rows(e, ones, out=l)
        l += l == 0
        matmul(dropped(e, given), v, out=y)
        y /= l

    parallel_rows(forward, q, k, v, y, highest, total, shifted, *extras, largest=scores_bytes)

    def backward(dy, need):
        dq, dk, dv = empty_parts(q, k, v)

        def backward_rows(q, k, v, y, m, l, shifted, dy, dq, dk, dv, *extras):
            given = dict(zip(names, extras))
            scaled_q, dy = q * scale, dy / l
            e = scores(scaled_q, k, given)
            if shifted[0]:
                e -= m
            xp.exp(e, out=e)
            matmul(dropped(e, given).swapaxes(-1, -2), dy, out=dv)
            ds = dropped(matmul(dy, v.swapaxes(-1, -2)), given)
            ds -= sum_rows(y * dy, ones_of_v)
            ds *= e
            dbias = None
            if need[3]:
                dbias = unbroadcast(ds, (len(ds) if bias_axes.shape[0] != 1 else 1, *bias_axes.shape[1:]))
            matmul(ds, k, out=dq)
            dq *= scale
            matmul(ds.swapaxes(-1, -2), scaled_q, out=dk)
            return dbias

        parts = parallel_rows(
            backward_rows, q, k, v, y, highest, total, shifted, dy, dq, dk, dv, *extras, largest=scores_bytes
        )
        dbias = None
        if need[3]:
            dbias = (xp.concatenate(parts) if bias_axes.shape[0] != 1 else in_pairs(parts)).reshape(bias_shape)
        return dq, dk, dv, dbias

    return y, backward


def _is_moderate(scores: Array) -> bool:
    """Whether e to the power of every score is neither huge nor tiny. On a GPU nobody asks, since it would wait."""
    return backend_of(scores) is CPU and scores.min() >= -LIMIT and scores.max() <= LIMIT
