"""Cross-entropy: two launches forward, one backward.

    plain       ops/loss.py: L = -Σ_c w_c q_c log p_c,  dx = dy (p Σ_c w_c q_c - w q),  p = softmax(x)
    problem     30 operations forward and 9 backward, for a few numbers
    idea        the graph keeps three numbers of each row: its largest logit and log Σ e^(x - largest), from which p is
                made again, and Σ_c w_c q_c. (Added up, the first two would lose digits.) q is not stored: with a label
                it is a at the class and b everywhere
    who

        x (B, C, S)     row n = (b, s) of N = B·S rows belongs to a warp, lane l of it has classes l, l + 32, …
                        losses (N,), counts (N,) → one block, in float64 → loss (), count ()

The rows of x need not be contiguous: `Strides` says where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.modules import computed_in, divide, launch

WARPS = 4                       # of a block
THREADS = 1024                  # of the block that adds the rows' losses
STRIDES = np.dtype([("image", np.int64), ("of_class", np.int64), ("place", np.int64)])

TEXT = r"""
// --- cross_entropy.py ---

struct Strides { size image, of_class, place; };

// What belongs to a row: its target, which is a label or C probabilities q, and what is made of it.
struct Target {
    const A *q, *weight;
    A smoothing;
    size C, S, label;
    A count;            // with a label: what the row adds to the divisor of the mean
    A a, b;             // w q is a at the label, and b w_c everywhere

    __device__ Target(const size* labels, const A* q, const A* weight, double smoothing, size ignored, size row, size C,
                      size S) : q(q), weight(weight), smoothing(smoothing), C(C), S(S) {
        if (q) {
            this->q += row / S * C * S + row % S;
            return;
        }
        label = labels[row];
        count = label != ignored;
        if (label < 0 || label >= C) {
            if (count != 0) count = NAN; // nobody has checked the labels
            label = 0;
        }
        b = count * (A)(smoothing / C);
        if (weight) count *= weight[label];
        a = count * (A)(1 - smoothing);
    }

    __device__ A weighted_q(size c) const {
        A w = weight ? weight[c] : 1;
        if (q) return smoothing == 0 ? q[c * S] * w : (q[c * S] * (1 - smoothing) + smoothing / C) * w;
        return (c == label ? a : 0) + (smoothing == 0 ? 0 : b * w);
    }

    __device__ bool one_hot() const { return !q && smoothing == 0; }
};

// Of each row of x: its loss; what it adds to the divisor of the mean; mass, the sum of w q; and shift (2, N), the
// largest logits and log(sum of exp(x - largest)).
extern "C" __global__ void cross_entropy(const T* x, Strides at, const size* labels, const A* q, const A* weight,
                                         double smoothing, size ignored, A* losses, A* counts, A* shift, A* mass,
                                         size N, size C, size S) {
    size row = blockIdx.x * (size)(blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= N) return;
    x += row / S * at.image + row % S * at.place;
    A largest = -INFINITY, sum = 0;
    for (size c = lane; c < C; c += 32) largest = fmax(largest, (A)x[c * at.of_class]);
    largest = warp_max(largest);
    for (size c = lane; c < C; c += 32) sum += exp((A)x[c * at.of_class] - largest);
    A log_of_sum = log(warp_sum(sum));

    Target target(labels, q, weight, smoothing, ignored, row, C, S);
    A loss, of_targets;
    if (target.one_hot()) {
        of_targets = target.a;
        loss = -target.a * ((A)x[target.label * at.of_class] - largest - log_of_sum);
    } else {
        A own_loss = 0, own_targets = 0;
        for (size c = lane; c < C; c += 32) {
            A weighted_q = target.weighted_q(c);
            own_targets += weighted_q;
            own_loss -= weighted_q * ((A)x[c * at.of_class] - largest - log_of_sum);
        }
        loss = warp_sum(own_loss);
        of_targets = warp_sum(own_targets);
    }
    if (lane > 0) return;
    losses[row] = !q && labels[row] == ignored ? 0 : loss; // 0 also beside NaN
    counts[row] = q ? 1 : target.count;
    shift[row] = largest;
    shift[N + row] = log_of_sum;
    mass[row] = of_targets;
}

// loss and count, the sums of both arrays (N,); with `mean`, loss is divided by count. One block of 1,024 threads.
extern "C" __global__ void reduce_losses(const A* losses, const A* counts, A* loss, A* count, size N, size mean) {
    __shared__ double sums[2][1024];
    int i = threadIdx.x;
    sums[0][i] = sums[1][i] = 0;
    for (size row = i; row < N; row += 1024) {
        sums[0][i] += losses[row];
        sums[1][i] += counts[row];
    }
    for (int half = 512; half > 0; half /= 2) {
        __syncthreads();
        if (i < half)
            for (int k = 0; k < 2; k++) sums[k][i] += sums[k][i + half];
    }
    if (i > 0) return;
    *loss = mean ? sums[0][0] / sums[1][0] : sums[0][0];
    *count = sums[1][0];
}

// dx. dy is the gradient of each row's loss if `each`, else that of their sum; or, unless count is null, of their mean.
extern "C" __global__ void cross_entropy_backward(const T* x, Strides at, const size* labels, const A* q,
                                                  const A* weight, double smoothing, size ignored, const A* shift,
                                                  const A* mass, const A* dy, const A* count, T* dx, Strides dx_at,
                                                  size N, size C, size S, size each) {
    size row = blockIdx.x * (size)(blockDim.x / 32) + threadIdx.x / 32;
    if (row >= N) return;
    x += row / S * at.image + row % S * at.place;
    dx += row / S * dx_at.image + row % S * dx_at.place;
    Target target(labels, q, weight, smoothing, ignored, row, C, S);
    A of_targets = mass[row], given = each ? dy[row] : dy[0], divisor = count ? *count : 1;
    if (divisor != 0) given /= divisor; // the gradient of the mean of no rows is 0
    if (each && !q && of_targets == 0) given = 0;
    for (size c = threadIdx.x % 32; c < C; c += 32) {
        A p = exp((A)x[c * at.of_class] - shift[row] - shift[N + row]);
        dx[c * dx_at.of_class] = given * (p * of_targets - target.weighted_q(c));
    }
}
"""


def cross_entropy(
    x: Array, target: Array, weight: Array | None, smoothing: float, reduction: str, ignore_index: int,
) -> tuple[Array, Callable[[Array], Array], Callable[[], Array]]:
    """Value of cross_entropy, a function dy → dx, and one that returns log p: see ops/loss.py.

    x (B, C, …); target: labels (B, …) or probabilities of x's shape; weight: C numbers, or None.
    For logits of 16 bits, the value and log p are of float32.
    """
    xp, precise = array_module(x), computed_in(x)
    shape, C = x.shape, x.shape[1]
    x = x.reshape(len(x), C, -1) if x.size else x.reshape(0, C, 1)
    S = x.shape[2]
    N = len(x) * S
    soft = target.dtype.kind not in "iub"
    target = xp.ascontiguousarray(target, dtype=precise if soft else np.int64)
    weight = None if weight is None else xp.ascontiguousarray(weight, dtype=precise).reshape(C)
    given = (None, target, weight) if soft else (target, None, weight)
    given = (*given, float(smoothing), ignore_index)
    losses, counts, mass = (xp.empty(N, dtype=precise) for _ in range(3))
    shift = xp.empty((2, N), dtype=precise)
    rows = (divide(N, WARPS),), (32 * WARPS,)
    launch("rows", "cross_entropy", x, *rows, x, _strides(x), *given, losses, counts, shift, mass, N, C, S)
    count = None
    value = losses.reshape(shape[0], *shape[2:])
    if reduction != "none":
        value, count = (xp.empty((), dtype=precise) for _ in range(2))
        launch("rows", "reduce_losses", x, (1,), (THREADS,), losses, counts, value, count, N, int(reduction == "mean"))

    def input_gradient(dy: Array) -> Array:
        dx = xp.empty_like(x)
        launch(
            "rows", "cross_entropy_backward", x, *rows, x, _strides(x), *given, shift, mass,
            xp.ascontiguousarray(dy, dtype=precise),
            count if reduction == "mean" else None, dx, _strides(dx), N, C, S, int(reduction == "none"),
        )
        return dx.reshape(shape)

    def log_p() -> Array:
        largest, log_of_sum = shift.reshape(2, len(x), 1, S)
        return (x.astype(precise, copy=False) - largest - log_of_sum).reshape(shape)

    return value, input_gradient, log_p


def _strides(x: Array) -> Any:
    return _as_struct(tuple(stride // x.itemsize for stride in x.strides))


@functools.lru_cache(maxsize=1024)
def _as_struct(strides: tuple[int, ...]) -> Any:
    return np.array(strides, dtype=STRIDES)[()]
