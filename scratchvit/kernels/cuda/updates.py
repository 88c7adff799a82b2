"""Steps of optimisers, scaled gradients, averages and copies of weights: one launch for 64 arrays.

    plain       the formulas of kernels/updates.py, with a dozen array operations for each parameter: a thousand
                launches for a step of a ViT-Ti
    problem     each operation reads and writes whole arrays, and each launch costs the host 5 µs or more
    idea        a thread computes the whole formula for an entry, whose intermediate results stay in registers. Array
                lists (array_lists.py) make it three launches
    who         a thread has entries of one row, 256 apart: threads next to each other have entries next to each other

Learning rates and the like are read from device memory, a line of `numbers` for each group of rows, and so is `factor`,
by which gradients are multiplied: the arguments of a launch stay the same when a step is replayed (replay.py). So is
`when`, without which a kernel changes nothing (decision.py). How many steps of Adam were made is then known to the
device only, which corrects the moments by it.

A parameter in float32 may have a shadow of 16 bits, with which products are computed. It is written together with the
parameter, which the thread has in a register.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from scratchvit import replay
from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.array_lists import Shadows, launch_rows
from scratchvit.kernels.cuda.modules import launch

TEXT = r"""
// --- updates.py ---

// A kernel with `when` does nothing where that is false. null: it does.
__device__ inline bool is_off(const bool* when) { return when && !*when; }

// The numbers of each group as `adam` takes them, own (groups, 6), from those that the host knows, given (groups, 7):
// learning rate, eps, shrink, decay, beta1, beta2, and steps, of which *unmade (or none, if null) were not made.
extern "C" __global__ void correct_adam(const double* given, const size* unmade, double* own, size groups) {
    for (size i = threadIdx.x; i < groups; i += blockDim.x) {
        const double* n = given + 7 * i;
        double steps = n[6] - (unmade ? *unmade : 0), root = sqrt(1 - pow(n[5], steps));
        own[6 * i] = n[0] * root / (1 - pow(n[4], steps));
        own[6 * i + 1] = n[1] * root;
        for (int k = 2; k < 6; ++k) own[6 * i + k] = n[k];
    }
}

// A step of Adam for rows (p, g, m, v). numbers (groups, 6). factor: of gradients, or null. A shadow gets p, rounded.
extern "C" __global__ void adam(Rows rows, const double* numbers, const A* factor, const bool* when) {
    if (is_off(when)) return;
    Piece piece = own_piece(rows);
    A *p = rows.at[0][piece.row], *m = rows.at[2][piece.row], *v = rows.at[3][piece.row];
    const A* gradient = rows.at[1][piece.row];
    T* shadow = rows.shadow[piece.row];
    numbers += 6 * rows.group[piece.row];
    A step_size = numbers[0], eps = numbers[1], shrink = numbers[2], decay = numbers[3];
    A first_share = 1 - numbers[4], beta2 = numbers[5], second_share = 1 - numbers[5];
    A scale = factor ? *factor : (A)1;
    for (size i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) {
        A g = gradient[i] * scale;
        if (decay != 0) g += decay * p[i];
        A first = m[i] + first_share * (g - m[i]);
        A second = beta2 * v[i] + second_share * (g * g);
        m[i] = first;
        v[i] = second;
        p[i] = shrink * p[i] - step_size * (first / (sqrt(second) + eps));
        if (shadow) shadow[i] = p[i];
    }
}

// A step of SGD for rows (p, g), or with momentum (p, g, b). numbers (groups, 4). factor and shadow: as for Adam.
extern "C" __global__ void sgd(Rows rows, const double* numbers, const A* factor, const bool* when) {
    if (is_off(when)) return;
    Piece piece = own_piece(rows);
    A *p = rows.at[0][piece.row], *b = rows.at[2][piece.row];
    const A* gradient = rows.at[1][piece.row];
    T* shadow = rows.shadow[piece.row];
    numbers += 4 * rows.group[piece.row];
    A lr = numbers[0], decay = numbers[1], momentum = numbers[2];
    bool nesterov = numbers[3] != 0;
    A scale = factor ? *factor : (A)1;
    for (size i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) {
        A direction = gradient[i] * scale + decay * p[i];
        if (b) {
            A velocity = momentum * b[i] + direction;
            b[i] = velocity;
            direction = nesterov ? direction + momentum * velocity : velocity;
        }
        p[i] -= lr * direction;
        if (shadow) shadow[i] = p[i];
    }
}

// x <- factor x for rows (x).
extern "C" __global__ void scale(Rows rows, const A* factor) {
    Piece piece = own_piece(rows);
    A* x = rows.at[0][piece.row];
    A scale = *factor;
    for (size i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) x[i] *= scale;
}

// a <- a + share (x - a) for rows (a, x).
extern "C" __global__ void average(Rows rows, double share, const bool* when) {
    if (is_off(when)) return;
    Piece piece = own_piece(rows);
    A *a = rows.at[0][piece.row], part = share;
    const A* x = rows.at[1][piece.row];
    for (size i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) a[i] += part * (x[i] - a[i]);
}

// a <- a + weight x for rows (a, x).
extern "C" __global__ void accumulate(Rows rows, double weight, const bool* when) {
    if (is_off(when)) return;
    Piece piece = own_piece(rows);
    A *a = rows.at[0][piece.row], factor = weight;
    const A* x = rows.at[1][piece.row];
    for (size i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) a[i] += factor * x[i];
}

// y <- x for rows (y, x): nothing is computed, so they may be any numbers of the size of T.
extern "C" __global__ void copy(Rows rows, const bool* when) {
    if (is_off(when)) return;
    Piece piece = own_piece(rows);
    T* y = (T*)rows.at[0][piece.row];
    const T* x = (const T*)rows.at[1][piece.row];
    for (size i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) y[i] = x[i];
}

// The shadows of rows (x) get x, rounded.
extern "C" __global__ void round_to_shadows(Rows rows) {
    Piece piece = own_piece(rows);
    T* shadow = rows.shadow[piece.row];
    const A* x = rows.at[0][piece.row];
    for (size i = piece.first + threadIdx.x; i < piece.last; i += blockDim.x) shadow[i] = x[i];
}
"""

MakeNumbers: TypeAlias = Callable[[], Sequence[tuple[float, ...]]]


def adam(
    rows: Sequence[Any], groups: Sequence[int], numbers: MakeNumbers, factor: Array | None, when: Array | None,
    unmade: Array | None, shadows: Shadows,
) -> None:
    """The step of `kernels.updates.adam`."""
    given = _on_device(numbers, groups, 7)
    own = array_module(given).empty((len(given), 6))
    launch("updates", "correct_adam", rows[0][0], (1,), (64,), given, unmade, own, len(given))
    launch_rows("adam", rows, own, _like(rows, factor), when, groups=groups, shadows=shadows)


def sgd(
    rows: Sequence[Any], groups: Sequence[int], numbers: MakeNumbers, factor: Array | None, when: Array | None,
    shadows: Shadows,
) -> None:
    """The step of `kernels.updates.sgd`."""
    numbers_of_groups = _on_device(numbers, groups, 4)
    launch_rows("sgd", rows, numbers_of_groups, _like(rows, factor), when, groups=groups, shadows=shadows)


def scale(rows: Sequence[Any], factor: Any) -> None:
    """x ← factor x for rows (x,). factor: a number, or a 0-d array."""
    launch_rows("scale", rows, _like(rows, factor))


def average(rows: Sequence[Any], share: float, when: Array | None) -> None:
    """a ← a + share (x - a) for rows (a, x)."""
    launch_rows("average", rows, float(share), when)


def accumulate(rows: Sequence[Any], weight: float, when: Array | None) -> None:
    """a ← a + weight x for rows (a, x)."""
    launch_rows("accumulate", rows, float(weight), when)


def copy(rows: Sequence[Any], when: Array | None) -> None:
    """y ← x for rows (y, x)."""
    launch_rows("copy", rows, when)


def round_to(shadows: Sequence[Array], rows: Sequence[Any]) -> None:
    """shadow ← x, rounded, for rows (x,) of float32."""
    launch_rows("round_to_shadows", rows, shadows=shadows)


def _on_device(numbers: MakeNumbers, groups: Sequence[int], count: int) -> Array:
    """The `count` numbers of every group, float64 (groups, count), new in every replay."""
    return replay.numbers(lambda: np.array(numbers(), np.float64), (max(groups) + 1, count), np.float64)


def _like(rows: Sequence[Any], factor: Any) -> Array | None:
    """A factor on the device, in the dtype of the rows."""
    first = rows[0][0]
    return None if factor is None else array_module(first).asarray(factor, dtype=first.dtype)
