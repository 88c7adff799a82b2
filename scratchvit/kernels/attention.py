"""Attention that stores the probabilities P (B, ..., N, M), a few matrices at a time.

    plain       P = softmax(q kᵀ scale + bias), y = P v
    problem     ten passes over all scores, which for 32 images of 197 tokens and 3 heads take 15 MB
    idea        the scores of a few images stay in the cache from the product with k to the product with v. They are
                computed in place. Row sums are products with ones, at the speed of BLAS
"""

from __future__ import annotations

import math

from scratchvit.backend import Array, array_module
from scratchvit.kernels.sums import in_pairs, unbroadcast
from scratchvit.threads import parallel_rows


def attention_with_matrices(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, kept: Array | None, dropout: float,
    scale: float,
):
    """The value of `attention`, P and the backward; the arguments are those of the plain form in ops/attention.py."""
    xp = array_module(q)
    p = xp.empty((*q.shape[:-1], k.shape[-2]), dtype=q.dtype)
    y = xp.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]))
    ones = xp.ones((k.shape[-2], 1), dtype=q.dtype)     # the matrix product with ones sums rows at the speed of BLAS
    lowest = float(xp.finfo(q.dtype).min)

    # The optional arrays, broadcast over the batch so that parallel_rows can slice them along it.
    optional: dict[str, Array] = {}
    if bias is not None:
        bias_shape = bias.shape
        bias_axes = bias.reshape((1,) * (p.ndim - bias.ndim) + bias.shape)
        optional["bias"] = xp.broadcast_to(bias_axes, (len(q), *bias_axes.shape[1:]))
    if mask is not None:
        blocked = ~mask
        optional["blocked"] = xp.broadcast_to(blocked, (len(q), *p.shape[1:]))
    if kept is not None:
        optional["kept"] = kept
    names, extras = list(optional), list(optional.values())

    def forward(q, k, v, p, y, *extras):
        given = dict(zip(names, extras))
        xp.matmul(q * scale, k.swapaxes(-1, -2), out=p)
        if "bias" in given:
            p += given["bias"]
        if "blocked" in given:
            xp.copyto(p, -math.inf, where=given["blocked"])
        p -= xp.maximum(p.max(axis=-1, keepdims=True), lowest)
        xp.exp(p, out=p)
        row_sums = xp.matmul(p, ones)
        row_sums += row_sums == 0
        p /= row_sums
        xp.matmul(drop(p, given.get("kept"), dropout), v, out=y)

    parallel_rows(forward, q, k, v, p, y, *extras)

    def backward(dy, need):
        dq, dk, dv = xp.empty_like(q), xp.empty_like(k), xp.empty_like(v)

        def backward_rows(q, k, v, p, y, dy, dq, dk, dv, *extras):
            given = dict(zip(names, extras))
            kept = given.get("kept")
            xp.matmul(drop(p, kept, dropout).swapaxes(-1, -2), dy, out=dv)
            ds = drop(xp.matmul(dy, v.swapaxes(-1, -2)), kept, dropout)
            ds -= (y * dy).sum(axis=-1, keepdims=True)
            ds *= p
            dbias = None
            if need[3]:
                dbias = unbroadcast(ds, (len(ds) if bias_axes.shape[0] != 1 else 1, *bias_axes.shape[1:]))
            xp.matmul(ds, k, out=dq)
            dq *= scale
            xp.matmul(ds.swapaxes(-1, -2), q, out=dk)
            dk *= scale
            return dbias

        parts = parallel_rows(backward_rows, q, k, v, p, y, dy, dq, dk, dv, *extras)
        dbias = None
        if need[3]:
            dbias = (xp.concatenate(parts) if bias_axes.shape[0] != 1 else in_pairs(parts)).reshape(bias_shape)
        return dq, dk, dv, dbias

    return y, p, backward


def drop(values: Array, kept: Array | None, rate: float) -> Array:
    """The values, zero where not kept, the others divided by 1 - rate: a new array, or `values` if kept is None."""
    if kept is None:
        return values
    values = values * kept
    values *= 1 / (1 - rate)
    return values
