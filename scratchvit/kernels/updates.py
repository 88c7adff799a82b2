"""Updates of many arrays: the steps of optimisers, scaled gradients, averages and copies of weights.

    plain       a formula for a row of arrays of equal shape, such as a parameter, its gradient and its moments, some of
                which it changes in place
    problem     a formula is a dozen array operations. Each of them on a whole matrix would read it from main memory
                again; on a small array, it costs more to call than to compute
    idea        large arrays are divided into blocks that stay in the cache for all operations, and the blocks are
                distributed to the cores. Small arrays are concatenated and updated together

cuda/updates.py has the same formulas as kernels for a GPU, which take 64 arrays at once. Rows are contiguous arrays.

A parameter p in float32 may have a shadow: an array of float16 or bfloat16 that is p, rounded to nearest even. A step
writes both.

when: a flag, bool () on their device, without which nothing changes; None: it does. The kernels read it on the device,
the forms of this file on the host, which waits for a GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.cuda import updates as on_gpu
from scratchvit.kernels.cuda.array_lists import Shadows, takes
from scratchvit.plain import is_plain
from scratchvit.threads import deal

BLOCK = 32_768      # entries: of parameter, gradient, two moments and scratch together 640 KiB, within the L2 cache
SMALL = 4_096       # arrays with fewer entries are concatenated
WORDS = {2: "e", 4: "f", 8: "d"}     # as what a GPU copies numbers of so many bytes

Row: TypeAlias = tuple[Array, ...]


# --- steps of optimisers ----------------------------------------------------------------------------------------------


class AdamNumbers(NamedTuple):
    """The numbers of a step of Adam or AdamW, as `Adam` in optim/optimizers.py gives them."""

    lr: float
    eps: float
    shrink: float       # of the parameter, before the step
    decay: float        # the share of the parameter that is added to the gradient
    beta1: float
    beta2: float
    steps: int          # t, including this one


def adam(
    rows: Sequence[Row], groups: Sequence[int], numbers: Callable[[], Sequence[AdamNumbers]],
    factor: Array | None = None, when: Array | None = None, unmade: Array | None = None, shadows: Shadows = None,
) -> None:
    """A step of Adam or AdamW:

        g ← factor g + decay p;  m ← m + (1 - β₁)(g - m);  v ← β₂ v + (1 - β₂) g²
        p ← shrink p - lr m̂ / (√v̂ + eps)  with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)

    rows: (p, g, m, v), of which g is not changed. groups: for each row, which of the numbers() are its; they are asked
    for again in every replay (see replay.py). factor: a 0-d array, or None for 1. unmade: int64 (), how many of the
    steps in numbers() were not made; None: 0. shadows: for each row the shadow of its p, or None.
    """
    if takes(rows, shadows):
        return on_gpu.adam(rows, groups, numbers, factor, when, unmade, shadows)
    if _is_off(when):
        return
    not_made = 0 if unmade is None else int(unmade)

    def update(n: AdamNumbers, p: Array, g: Array, m: Array, v: Array) -> None:
        xp = array_module(p)
        # m̂ / (√v̂ + ε) = √c₂ / c₁ · m / (√v + ε √c₂) with cᵢ = 1 - βᵢᵗ: this saves two passes over memory.
        steps = n.steps - not_made
        root = math.sqrt(1 - n.beta2**steps)
        step_size, eps = n.lr * root / (1 - n.beta1**steps), n.eps * root
        if n.decay:
            g = g + p * n.decay
        scratch = g - m
        scratch *= 1 - n.beta1
        m += scratch
        xp.multiply(g, g, out=scratch)
        scratch *= 1 - n.beta2
        v *= n.beta2
        v += scratch
        xp.sqrt(v, out=scratch)
        scratch += eps
        xp.divide(m, scratch, out=scratch)
        scratch *= step_size
        p *= n.shrink
        p -= scratch

    _update_groups(update, rows, groups, numbers, factor, shadows)


class SGDNumbers(NamedTuple):
    """The numbers of a step of SGD."""

    lr: float
    decay: float
    momentum: float
    nesterov: bool


def sgd(
    rows: Sequence[Row], groups: Sequence[int], numbers: Callable[[], Sequence[SGDNumbers]],
    factor: Array | None = None, when: Array | None = None, unmade: Array | None = None, shadows: Shadows = None,
) -> None:
    """A step of stochastic gradient descent:

        g ← factor g + decay p;  b ← momentum b + g;  p ← p - lr b, or with Nesterov momentum p - lr (g + momentum b)

    rows: (p, g, b), or (p, g) without momentum, where b is g. The rest as for `adam`, but no number of SGD depends on
    how many steps were made.
    """
    if takes(rows, shadows):
        return on_gpu.sgd(rows, groups, numbers, factor, when, shadows)
    if _is_off(when):
        return

    def update(n: SGDNumbers, p: Array, g: Array, b: Array | None = None) -> None:
        direction = p * n.decay
        direction += g
        if b is not None:
            b *= n.momentum
            b += direction
            if n.nesterov:
                direction += b * n.momentum
            else:
                direction[...] = b
        direction *= n.lr
        p -= direction

    _update_groups(update, rows, groups, numbers, factor, shadows)


def _update_groups(
    update: Callable[..., None], rows: Sequence[Row], groups: Sequence[int], numbers: Callable[[], Sequence[Any]],
    factor: Array | None, shadows: Shadows,
) -> None:
    """Call update(numbers of the group, p, factor g, …) for all rows (p, g, …), and write their shadows."""

    def scaled(own: Any, p: Array, g: Array, *moments: Array) -> None:
        update(own, p, g if factor is None else array_module(g).multiply(g, factor, dtype=g.dtype), *moments)

    for group, own in enumerate(numbers()):
        _apply(functools.partial(scaled, own), [row for row, index in zip(rows, groups) if index == group])
    round_into([(shadow, row[0]) for row, shadow in zip(rows, shadows or ()) if shadow is not None])


# --- gradients and averages -------------------------------------------------------------------------------------------


def scale(arrays: Sequence[Array], factor: Any) -> None:
    """x ← factor x for all arrays. factor: a number, or a 0-d array on their device."""
    rows = [(x,) for x in arrays]
    if takes(rows):
        on_gpu.scale(rows, factor)
    else:
        _apply(lambda x: array_module(x).multiply(x, factor, out=x), rows)


def average(rows: Sequence[Row], share: float, when: Array | None = None) -> None:
    """a ← a + share (x - a) for rows (a, x)."""
    if takes(rows):
        return on_gpu.average(rows, share, when)
    if _is_off(when):
        return

    def move(a: Array, x: Array) -> None:
        difference = x - a
        difference *= share
        a += difference

    _apply(move, rows)


def accumulate(rows: Sequence[Row], weight: float, when: Array | None = None) -> None:
    """a ← a + weight x for rows (a, x) of equal dtype. On a CPU, in as little time as a few numbers need."""
    for alike in _divided(rows, lambda a, x: x.dtype):
        if takes(alike):
            on_gpu.accumulate(alike, weight, when)
        elif not _is_off(when):
            for a, x in alike:
                a += x * weight


def copy(rows: Sequence[Row], when: Array | None = None) -> None:
    """y ← x for rows (y, x) of equal dtype, which may be integers."""
    for alike in _divided(rows, lambda y, x: x.itemsize):
        word = WORDS.get(alike[0][0].itemsize)
        words = [tuple(array.view(word) for array in row) for row in alike] if word else []
        if takes(words, chars="efd"):
            on_gpu.copy(words, when)
        elif not _is_off(when):
            for y, x in alike:
                y[...] = x


def round_into(rows: Sequence[Row]) -> None:
    """y ← x, rounded, for rows (y, x) of shadows and parameters."""
    for alike in _divided(rows, lambda y, x: (y.dtype, x.dtype)):
        shadows, masters = [y for y, _ in alike], [(x,) for _, x in alike]
        if takes(masters, shadows):
            on_gpu.round_to(shadows, masters)
        else:
            for y, x in alike:
                y[...] = x


def _is_off(when: Array | None) -> bool:
    return when is not None and not when


def _divided(rows: Sequence[Row], key: Callable[..., Any]) -> list[list[Row]]:
    """The rows, divided by the key of their arrays."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(*row), []).append(row)
    return list(found.values())


# --- one formula for many arrays --------------------------------------------------------------------------------------


def _apply(update: Callable[..., Any], rows: Sequence[Row]) -> None:
    """Call `update` with all rows, as flat arrays: in blocks if large, together if small."""
    rows = [tuple(array.reshape(-1) for array in row) for row in rows]
    if is_plain():
        for row in rows:
            update(*row)
        return
    small = [row for row in rows if row[0].size < SMALL]
    if small:
        joined = [array_module(column[0]).concatenate(column) for column in zip(*small)]
        update(*joined)
        start = 0
        for row in small:
            stop = start + row[0].size
            for array, values in zip(row, joined):
                array[...] = values[start:stop]
            start = stop
    on_cpu = bool(rows) and backend_of(rows[0][0]) is CPU
    blocks = [
        tuple(array[start : start + block] for array in row)
        for row in rows
        if (size := row[0].size) >= SMALL
        for block in [BLOCK if on_cpu else size]
        for start in range(0, size, block)
    ]
    deal(update, blocks, on_cpu)
