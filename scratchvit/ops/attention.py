"""Softmax, attention, dropout and stochastic depth (drop path)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from scratchvit import random
from scratchvit.backend import AnyArray, Array, array_module, asarray, broadcasts_to
from scratchvit.dtypes import is_float
from scratchvit.facts import Bytes, Facts, Workspace, like, order_of, output, per_entry
from scratchvit.kernels.attention import attention_over_rows
from scratchvit.kernels.attention_blocks import attention_in_blocks
from scratchvit.kernels.cuda import attention as on_gpu
from scratchvit.kernels.cuda import flash
from scratchvit.kernels.dropout import drop, drop_entries
from scratchvit.kernels.products import matmul
from scratchvit.kernels.softmax import softmax_kernel
from scratchvit.kernels.sums import total, unbroadcast
from scratchvit.ops.checks import axis_of, check_probability
from scratchvit.plain import is_plain
from scratchvit.random import Draw, Generator
from scratchvit.recording import setting
from scratchvit.tensor import op
from scratchvit.threads import cpu_threads, rows_of_a_block

LARGE_MATRIX = 1 << 20      # scores of a matrix beyond which `attention` divides its rows too


@op(takes="sums", half_on_gpu=lambda x, dim=-1: softmax_kernel(x, dim % x.ndim) is not None,
    facts=per_entry(saves=output, shape=like("x")))
def softmax(x: Array, dim: int = -1):
    """Softmax along the axis dim: pᵢ = eˣⁱ / Σ eˣʲ,  dx = p (dy - Σ p dy).

    x: any shape, floating-point; float16 is computed in float32. A row of -∞ gives NaN, as in PyTorch.
    Raises IndexError if x has no axis dim, TypeError for integers.
    """
    xp = array_module(x)
    dim = axis_of("softmax", dim, x.shape or (1,))
    if x.size == 0:
        return x.copy(), lambda dy: dy
    if kernel := softmax_kernel(x, dim):
        return kernel(x, logarithm=False)
    p = xp.exp(x - x.max(axis=dim, keepdims=True))
    p /= _sum_along(p, dim)
    return p, lambda dy: p * (dy - _sum_along(p * dy, dim))


@op(takes="sums", autocast="loss", facts=per_entry(saves=output, shape=like("x")))
def log_softmax(x: Array, dim: int = -1):
    """The logarithm of softmax along the axis dim: yᵢ = xᵢ - log Σ eˣʲ,  dx = dy - eʸ Σ dy.

    x: any shape, floating-point; float16 is computed in float32.
    Raises IndexError if x has no axis dim, TypeError for integers.
    """
    xp = array_module(x)
    dim = axis_of("log_softmax", dim, x.shape or (1,))
    if x.size == 0:
        return x.copy(), lambda dy: dy
    if kernel := softmax_kernel(x, dim):
        return kernel(x, logarithm=True)
    y = log_probabilities(x, dim)
    return y, lambda dy: dy - xp.exp(y) * _sum_along(dy, dim)


def log_probabilities(x: Array, dim: int) -> Array:
    """log_softmax of a plain array, as a new array. The maximum is subtracted first, so that nothing overflows."""
    xp = array_module(x)
    y = x - x.max(axis=dim, keepdims=True)
    y -= xp.log(_sum_along(xp.exp(y), dim))
    return y


def _sum_along(x: Array, dim: int) -> Array:
    """The sum over an axis, which stays with length 1. A single number of shape () is its own sum."""
    return total(x, (dim,) if x.ndim else (), keepdims=True)


@op(takes="sums", autocast="casts", half_on_gpu=lambda *args, **kwargs: _by_kernel(*args, **kwargs), facts=Facts(
    shape=lambda function, q, k, v: (len(q), *function(q[:0], k[:0], v[:0])[0].shape[1:]),
    saves=lambda out, **arguments: _saved_attention(out, **arguments),
    macs=lambda q, k, v: _scores(q, k)[0] * (q.shape[-1] + v.shape[-1]),
    workspace=lambda q, k, blocks: _scores_at_a_time(q, k, blocks),
    order=lambda q: order_of(q),
    attends=lambda q, k: _scores(q, k),
))
def attention(
    q: Array,
    k: Array,
    v: Array,
    bias: AnyArray | None = None,
    mask: Any = None,
    dropout: float = 0.0,
    scale: float | None = None,
    generator: Generator | None = None,
    blocks: bool | None = None,
):
    """Scaled dot-product attention, softmax(q kᵀ · scale + bias) v (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    q (B, ..., N, d), k (B, ..., M, d), v (B, ..., M, e) → (B, ..., N, e), in q's memory order. All have the same
    floating-point dtype; float16 is computed in float32.
    bias: added to the scores; broadcasts to (B, ..., N, M).
    mask: bool, broadcasts to (B, ..., N, M); True where a query may attend to a key. A query that may attend to no key
        gets zeros.
    dropout: the probability of setting an attention probability to zero.
    scale: 1/√d if not given.
    blocks: if True, a matrix of scores is processed in blocks of rows and columns (see kernels/attention_blocks.py),
        otherwise whole. If None, blocks are used when N·M is more than 2²⁰. Neither stores the scores, which backward
        computes again, so that memory grows with N + M instead of N·M; `record_attention` does.

    With P the probabilities and dP = dy vᵀ:  dv = Pᵀ dy,  dS = P (dP - Σ P dP),  dq = dS k scale,  dk = dSᵀ q scale,
    dbias = dS. The row sums Σ P dP equal those of y dy, which have fewer terms (e instead of M).

    Raises ValueError if the shapes do not fit together or dropout is not in [0, 1); TypeError for a mask that is not
    bool and for a bias that is not floating-point, so that neither is mistaken for the other.
    """
    mask = None if mask is None else asarray(mask)
    _check_attention(q, k, v, bias, mask, dropout)
    scale = 1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale
    scores_shape = (*q.shape[:-1], k.shape[-2])                                     # (B, ..., N, M)
    if 0 in scores_shape:
        return _of_nothing(q, k, v, bias)
    if blocks is None:
        blocks = _divided(q, k, None) and not _recordings.get()
    if blocks and _recordings.get():
        raise ValueError("attention with blocks=True has no probabilities to record: leave out blocks=True")
    draw = (generator or random.DEFAULT).draw(1 - dropout, scores_shape) if dropout else None
    if blocks and not is_plain():
        return _in_blocks(q, k, v, bias, mask, draw, scale)
    if not is_plain() and not _recordings.get():
        return attention_over_rows(q, k, v, bias, mask, draw, scale)
    y, p, backward = _plain_attention(q, k, v, bias, mask, draw, scale)
    for maps in _recordings.get():
        maps.append(p)
    return y, backward


def _plain_attention(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, draw: Draw | None, scale: float
):
    """The value of `attention`, P and the backward. draw: which probabilities dropout keeps, or None."""
    xp = array_module(q)
    kept = None if draw is None else draw.array()                   # (B, ..., N, M)

    def dropped(p):
        return p if draw is None else drop(p, kept, draw.probability)

    s = matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(scale)
    if bias is not None:
        s = s + bias
    if mask is not None:
        s = xp.where(mask, s, -math.inf).astype(q.dtype)
    lowest = float(xp.finfo(q.dtype).min)                       # of a row of -∞: it has no maximum to subtract
    p = xp.exp(s - xp.maximum(s.max(axis=-1, keepdims=True), lowest))
    row_sums = total(p, (p.ndim - 1,), keepdims=True)
    p = p / (row_sums + (row_sums == 0))
    y = matmul(dropped(p), v)

    def backward(dy, need):
        dp = dropped(matmul(dy, v.swapaxes(-1, -2)))
        ds = p * (dp - (y * dy).sum(axis=-1, keepdims=True))
        dq, dk = (q.dtype.type(scale) * matmul(*factors) for factors in ((ds, k), (ds.swapaxes(-1, -2), q)))
        dv = matmul(dropped(p).swapaxes(-1, -2), dy)
        return dq, dk, dv, None if bias is None else unbroadcast(ds, bias.shape)

    return y, p, backward


def _by_kernel(
    q: Array, k: Array, v: Array, bias: Any = None, *_: Any, blocks: bool | None = None, **__: Any
) -> bool:
    """Whether attention of arrays on a GPU is computed by a kernel."""
    if _recordings.get() or q.ndim < 3:
        return False
    return flash.takes(q, k, v, bias) or (not _divided(q, k, blocks) and on_gpu.takes(q, k))


def _scores(q: Array, k: Array) -> tuple[int, int]:
    """(entries of all score matrices, queries of all images or windows) for q (…, heads, N, d), k (…, heads, M, d)."""
    return math.prod(q.shape[:-1]) * k.shape[-2], math.prod(q.shape[:-3]) * q.shape[-2]


def _divided(q: Array, k: Array, blocks: bool | None) -> bool:
    return q.shape[-2] * k.shape[-2] > LARGE_MATRIX if blocks is None else blocks


def _saved_attention(
    out: Array, q: Array, k: Array, v: Array, bias: Array | None, mask: Any, dropout: float, blocks: bool | None,
    **_: Any,
) -> list[Any]:
    """The inputs, the output, and two numbers per query; without blocks, a bool for each score if there is dropout."""
    numbers = Bytes(2 * math.prod(q.shape[:-1]) * q.itemsize)
    if _divided(q, k, blocks):
        return [q, k, v, bias, mask, out, numbers]
    inverted_mask = 0 if mask is None else asarray(mask).size
    return [q, k, v, bias, out, numbers, Bytes(inverted_mask + (_scores(q, k)[0] if dropout else 0))]


def _scores_at_a_time(q: Array, k: Array, blocks: bool | None) -> Workspace:
    """The scores of the images that are computed at a time, and for backward their gradients."""
    scores = _scores(q, k)[0] * q.itemsize
    if _divided(q, k, blocks) or not scores:
        return Workspace()
    images = rows_of_a_block(len(q), scores)
    held = scores * min(len(q), images * cpu_threads()) // len(q)
    return Workspace(forward=held, backward=2 * held)


def _check_attention(q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, dropout: float) -> None:
    if q.ndim < 3 or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1] or q.shape[:-2] != k.shape[:-2]:
        raise ValueError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit together")
    if not 0 <= dropout < 1:
        raise ValueError(f"attention: dropout must be in [0, 1), not {dropout}")
    if bias is not None and not is_float(bias.dtype):
        raise TypeError(
            f"attention: bias is {bias.dtype}, but it is added to the scores and must be floating-point: pass a mask "
            "as mask=…"
        )
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"attention: mask is {mask.dtype}, it must be bool, True where a query may attend to a key")
    scores_shape = (*q.shape[:-1], k.shape[-2])
    for name, x in (("bias", bias), ("mask", mask)):
        if x is not None and not broadcasts_to(x.shape, scores_shape):
            raise ValueError(f"attention: {name} {x.shape} does not broadcast to the scores {scores_shape}")


def _of_nothing(q: Array, k: Array, v: Array, bias: Array | None):
    """Attention without queries or without keys: zeros."""
    xp = array_module(q)
    y = xp.zeros((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    return y, lambda dy: [None if x is None else xp.zeros_like(x) for x in (q, k, v, bias)]


def _in_blocks(q, k, v, bias, mask, draw, scale):
    """`attention` by `attention_in_blocks`, which takes a bias and a mask with as many axes as the scores."""
    def with_all_axes(x):
        return x.reshape((1,) * (q.ndim - x.ndim) + x.shape)

    y, backward = attention_in_blocks(
        q, k, v, None if bias is None else with_all_axes(bias), None if mask is None else with_all_axes(mask),
        draw, scale,
    )

    def backward_as_given(dy, need):
        dq, dk, dv, dbias = backward(dy, need)
        return dq, dk, dv, None if dbias is None else dbias.reshape(bias.shape)

    return y, backward_as_given


_recordings: ContextVar[tuple[list[Array], ...]] = ContextVar("recordings", default=())


@contextlib.contextmanager
def record_attention() -> Iterator[list[Array]]:
    """Context manager that collects the probabilities of every `attention` call, in order: arrays (B, ..., N, M).

    Only calls of the current thread are recorded, and by the plain form of attention. Inside, attention with
    blocks=True raises ValueError, since it never has a whole row of probabilities.
    """
    maps: list[Array] = []
    with setting(_recordings, (*_recordings.get(), maps)):
        yield maps


def _dropping(kept: Any) -> Facts:
    """kept: the size of the mask in bytes. If nothing is dropped, the value is x itself, and dx is dy."""
    def idle(p: float, training: bool) -> bool:
        return p == 0 or not training

    return per_entry(
        shape=like("x"), view=idle, passes_on=idle, order=None,
        saves=lambda x, p, training: () if idle(p, training) else kept(x),
    )


@op(autocast="follows", half_on_gpu=True, facts=_dropping(lambda x: Bytes(x.size)))
def dropout(x: Array, p: float = 0.5, training: bool = True, generator: Generator | None = None):
    """Set each entry to zero with probability p and scale the others by 1 / (1 - p) (Srivastava et al. 2014).

    x: floating-point, any shape.
    training: if False, x is returned unchanged.
    generator: the source of the random mask; `random.DEFAULT` if not given.
    Raises ValueError if p is not in [0, 1), TypeError for integers.
    """
    return _scale_kept(x, p, x.shape, training, generator)


@op(autocast="follows", half_on_gpu=True, facts=_dropping(lambda x: Bytes(len(x))))
def drop_path(x: Array, p: float = 0.5, training: bool = True, generator: Generator | None = None):
    """Set whole samples (axis 0) to zero with probability p and scale the others by 1 / (1 - p).

    On a residual branch this is stochastic depth (Huang et al. 2016, arXiv 1603.09382): the sample skips the block.
    x: (B, ...), floating-point.  The other arguments are those of `dropout`.  Raises what `dropout` raises.
    """
    return _scale_kept(x, p, (len(x), *(1,) * (x.ndim - 1)), training, generator)


def _scale_kept(x: Array, p: float, shape: tuple[int, ...], training: bool, generator: Generator | None):
    if not check_probability(p) or not training:
        return x, lambda dy: dy
    return drop_entries(x, (generator or random.DEFAULT).draw(1 - p, shape))
