"""Attention without storing the N × M matrix: memory grows linearly with the number of tokens, not quadratically.

Softmax seems to need a whole row of scores at once. But if the largest score m so far and the sum l of eˢ⁻ᵐ are kept,
the keys can be processed in blocks (Rabe & Staats, arXiv 2112.05682; Dao et al., FlashAttention, arXiv 2205.14135,
algorithm 1). For each block, the previous result is rescaled by e^(m_old - m_new) and the block's contribution added:

    m ← max(m, max S),   l ← l e^(m_old - m) + Σ e^(S - m),   y ← y e^(m_old - m) + e^(S - m) v,   at the end y / l

Only m and l are stored, two numbers per query. The backward recomputes the scores block by block, and from them the
probabilities P = e^(S - m) / l; the rest is the backward of `attention`. FlashAttention stores the single number
m + log l. We do not: if all scores of a query are very negative, as with a bias of -10⁹ used as a mask, rounding loses
log l in that sum, and every P becomes 1 instead of 1/M.

On a GPU with tensor cores, cuda/flash.py computes the same in one kernel, in the dtypes that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.cuda import flash
from scratchvit.kernels.in_float32 import in_float32
from scratchvit.kernels.products import matmul
from scratchvit.kernels.sums import unbroadcast
from scratchvit.precision import is_half
from scratchvit.random import Draw
from scratchvit.threads import deal

# Scores per block: on the CPU what fits in a core's cache, on a GPU enough to keep it busy.
SCORES = {"cpu": 1 << 18, "gpu": 1 << 26}


def attention_in_blocks(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, draw: Draw | None, scale: float
) -> tuple[Array, Callable[[Array, list[bool]], tuple[Array | None, ...]]]:
    """The value of `attention` and its backward. The arguments must already be checked.

    bias and mask have as many axes as the scores (B, ..., N, M); axes of length 1 are broadcast. draw: which
    probabilities dropout keeps, or None.
    """
    if flash.takes(q, k, v, bias):
        return flash.attention(q, k, v, bias, mask, draw, scale)
    if is_half(q):
        return in_float32(attention_in_blocks, q, k, v, bias, mask, draw, scale)
    xp = array_module(q)
    leading, N, M = q.shape[:-2], q.shape[-2], k.shape[-2]
    lowest = float(xp.finfo(q.dtype).min)
    y = xp.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]))
    highest, total = (xp.empty((*q.shape[:-1], 1), dtype=q.dtype) for _ in range(2))         # m and l
    units = _units(leading, bias) if backend_of(q) is CPU else [[()]]
    together = 1 if backend_of(q) is CPU else math.prod(leading)        # matrices that are processed at a time
    rows, columns = _block_sizes(N, M, together, SCORES["cpu" if backend_of(q) is CPU else "gpu"])

    def scores(at: tuple[int, ...], i: slice, j: slice) -> Array:
        """The scores S of queries i and keys j in the matrices at index `at`: (…, rows, columns)."""
        s = matmul(q[at][..., i, :] * scale, k[at][..., j, :].swapaxes(-1, -2))
        if bias is not None:
            s += _block(bias, at, i, j)
        if mask is not None:
            xp.copyto(s, -math.inf, where=~_block(mask, at, i, j))
        return s

    def factors(at: tuple[int, ...], i: slice, j: slice) -> Array | None:
        """Dropout's factors for a block of probabilities: 0, or where kept more than 1; None without dropout."""
        if draw is None:
            return None
        return draw.at(_positions(xp, leading, N, M, at, i, j)) * q.dtype.type(1 / draw.probability)

    def forward(places: list[tuple[int, ...]]) -> None:
        for at in places:
            for i in _slices(N, rows):
                m = xp.full(total[at][..., i, :].shape, lowest, dtype=q.dtype)
                l = xp.zeros_like(m)
                out = xp.zeros_like(y[at][..., i, :])
                for j in _slices(M, columns):
                    p = scores(at, i, j)
                    m_new = xp.maximum(m, p.max(axis=-1, keepdims=True))
                    p -= m_new
                    xp.exp(p, out=p)
                    rescale = xp.exp(m - m_new)
                    l = l * rescale + p.sum(axis=-1, keepdims=True)
                    out *= rescale
                    out += matmul(_times(p, factors(at, i, j)), v[at][..., j, :])
                    m = m_new
                l += l == 0                 # a query that may attend to no key gets zeros
                y[at][..., i, :] = out / l
                highest[at][..., i, :], total[at][..., i, :] = m, l

    deal(forward, [(places,) for places in units])

    def backward(dy: Array, need: list[bool]) -> tuple[Array | None, ...]:
        dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
        dbias = xp.zeros_like(bias) if need[3] else None
        sums = (y * dy).sum(axis=-1, keepdims=True)             # Σ P dP

        def backward_rows(places: list[tuple[int, ...]]) -> None:
            for at in places:
                for i in _slices(N, rows):
                    dy_i, q_i = dy[at][..., i, :], q[at][..., i, :]
                    for j in _slices(M, columns):
                        v_j, k_j = v[at][..., j, :], k[at][..., j, :]
                        p = scores(at, i, j)
                        p -= highest[at][..., i, :]
                        xp.exp(p, out=p)
                        p /= total[at][..., i, :]
                        drops = factors(at, i, j)
                        ds = _times(matmul(dy_i, v_j.swapaxes(-1, -2)), drops)
                        ds -= sums[at][..., i, :]
                        ds *= p
                        dv[at][..., j, :] += matmul(_times(p, drops).swapaxes(-1, -2), dy_i)
                        if dbias is not None:
                            block = _block(dbias, at, i, j)
                            block += unbroadcast(ds, block.shape)
                        ds *= scale
                        dq[at][..., i, :] += matmul(ds, k_j)
                        dk[at][..., j, :] += matmul(ds.swapaxes(-1, -2), q_i)

        deal(backward_rows, [(places,) for places in units])
        return dq, dk, dv, dbias

    return y, backward


def _times(x: Array, factors: Array | None) -> Array:
    return x if factors is None else x * factors


def _units(leading: tuple[int, ...], bias: Array | None) -> list[list[tuple[int, ...]]]:
    """The indices of all matrices, in groups that can be processed in parallel.

    Matrices that share a bias add to the same gradient, and are therefore in the same group.
    """
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for at in np.ndindex(leading):
        shared = at if bias is None else _place(bias, at)
        groups.setdefault(shared, []).append(at)
    return list(groups.values())


def _place(x: Array, at: tuple[int, ...]) -> tuple[int, ...]:
    """The index into x, whose axes of length 1 are broadcast, for the matrix at index `at`."""
    return tuple(0 if x.shape[axis] == 1 else index for axis, index in enumerate(at))


def _block(x: Array, at: tuple[int, ...], i: slice, j: slice) -> Array:
    """A view of rows i and columns j of a bias or mask (B, ..., N, M) at index `at`; axes of length 1 stay whole."""
    matrix = x[_place(x, at)]
    return matrix[..., i if x.shape[-2] > 1 else slice(None), j if x.shape[-1] > 1 else slice(None)]


def _positions(
    xp: Any, leading: tuple[int, ...], N: int, M: int, at: tuple[int, ...], i: slice, j: slice
) -> Array:
    """The flat positions in (B, ..., N, M) of a block's entries: uint32 (…, rows, columns)."""
    if at:
        first = xp.full((), np.ravel_multi_index(at, leading))
    else:
        first = xp.arange(math.prod(leading)).reshape(*leading, 1, 1)
    row, column = xp.arange(i.start, i.stop).reshape(-1, 1), xp.arange(j.start, j.stop)
    return ((first * N + row) * M + column).astype(np.uint32)


def _block_sizes(N: int, M: int, together: int, entries: int) -> tuple[int, int]:
    """Rows and columns of a block: roughly square, with about `entries` entries in all matrices processed together."""
    side = max(1, math.isqrt(max(1, entries // together)))
    columns = min(M, side)
    return min(N, max(1, entries // together // columns)), columns


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
