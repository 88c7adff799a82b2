"""Group norm: one launch forward, three backward.

    plain       y = x̂ weight + bias,  x̂ = (x - μ) r over each group of channels of each image; with g = dy weight
                dx = r (g - mean(g) - x̂ mean(g x̂)),  dweight = Σ dy x̂,  dbias = Σ dy, over images and places
    problem     18 operations forward and 25 backward, each of which reads and writes whole arrays
    idea        a group of an image is one row of numbers, and a block computes it. In backward, a first kernel sums dy
                and dy x̂ over each channel of each image; the weighted sums of these over the channels of a group are
                n mean(g) and n mean(g x̂), and their sums over the images are dweight and dbias
    who

        x (B, C, S), groups of c = C / G channels
                                     forward                  backward
        channel 0   places ─ ─ ─     ┐ block 0                block 0
        channel 1                    ┘ a row of n = c·S       block 1     thread t of T has the places t, t + T, …
        channel 2                    ┐ block 1                block 2
        channel 3                    ┘                        block 3
"""

from __future__ import annotations

import math

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.column_sums import sum_parts
from scratchvit.kernels.cuda.modules import computed_in, divide, launch

MOST_THREADS = 256              # of a block
SMALLEST = 16                   # places of a channel: with fewer, most threads of its block would have nothing to do

TEXT = r"""
// --- group_norm.py ---

// The sum of f(i) over 0 ≤ i < n, which every thread of a block gets: in each thread, 64 numbers at a time.
template <class F> __device__ double sum_over_block(size n, F f) {
    double sum = 0;
    for (size i = threadIdx.x; i < n;) {
        A some = 0;
        for (int k = 0; k < 64 && i < n; k++, i += blockDim.x) some += f(i);
        sum += some;
    }
    return block_sum(sum);
}

// y, mean and r of the rows of x (rows, c·S), of which S numbers in turn have the same weight and bias, (C,) or null.
extern "C" __global__ void group_norm(const T* x, const A* weight, const A* bias, T* y, A* mean, A* r, size C, size c,
                                      size S, double eps) {
    size row = blockIdx.x, n = c * S, channel = row % (C / c) * c;
    x += row * n;
    y += row * n;
    A mu = sum_over_block(n, [&](size i) { return (A)x[i]; }) / n;
    A variance = sum_over_block(n, [&](size i) { return ((A)x[i] - mu) * ((A)x[i] - mu); }) / n;
    A scale = 1 / sqrt(variance + (A)eps);
    if (isinf(variance)) scale = NAN; // of numbers around 1e20, where 1/sqrt(inf) would give 0
    for (size i = threadIdx.x; i < n; i += blockDim.x) {
        A value = ((A)x[i] - mu) * scale;
        size at = channel + (unsigned)i / (unsigned)S;
        if (weight) value *= weight[at];
        if (bias) value += bias[at];
        y[i] = value;
    }
    if (threadIdx.x > 0) return;
    mean[row] = mu;
    r[row] = scale;
}

// The sums of dy x_hat and of dy over the places of each channel of each image: sums (2, B·C).
extern "C" __global__ void group_norm_sums(const T* x, const T* dy, const A* mean, const A* r, A* sums, size c,
                                           size S) {
    size plane = blockIdx.x, row = plane / c;
    A mu = mean[row];
    x += plane * S;
    dy += plane * S;
    A along_x_hat = sum_over_block(S, [&](size i) { return (A)dy[i] * ((A)x[i] - mu); }) * r[row];
    A sum = sum_over_block(S, [&](size i) { return (A)dy[i]; });
    if (threadIdx.x > 0) return;
    sums[plane] = along_x_hat;
    sums[gridDim.x + plane] = sum;
}

// dx, from the sums over the channels of the same group, each times its weight.
extern "C" __global__ void group_norm_backward(const T* x, const T* dy, const A* weight, const A* mean, const A* r,
                                               const A* sums, T* dx, size C, size c, size S) {
    size plane = blockIdx.x, row = plane / c;
    double sum_g = 0, sum_g_x_hat = 0;
    for (size i = threadIdx.x % 32; i < c; i += 32) { // every warp adds for itself
        A w = weight ? weight[(row * c + i) % C] : 1;
        sum_g_x_hat += w * sums[row * c + i];
        sum_g += w * sums[gridDim.x + row * c + i];
    }
    A mean_g = warp_sum(sum_g) / (c * S), mean_g_x_hat = warp_sum(sum_g_x_hat) / (c * S);
    A mu = mean[row], scale = r[row], w = weight ? weight[plane % C] : 1;
    x += plane * S;
    dy += plane * S;
    dx += plane * S;
    for (size i = threadIdx.x; i < S; i += blockDim.x)
        dx[i] = scale * ((A)dy[i] * w - mean_g - ((A)x[i] - mu) * scale * mean_g_x_hat);
}
"""


def fits(x: Array, num_groups: int) -> bool:
    """Whether a group of an image in x (B, C, …) has fewer than 2³¹ numbers, and each channel enough for its block."""
    S = math.prod(x.shape[2:])
    return len(x) > 0 and S >= SMALLEST and x.shape[1] // num_groups * S < 1 << 31


def normalise_groups(x: Array, num_groups: int, weight: Array | None, bias: Array | None, eps: float):
    """Value and backward of group norm of x (B, C, ...), with weight and bias (C,) or None: see ops/norm.py.

    For x of 16 bits, the gradients of weight and bias are of float32.
    """
    xp, precise = array_module(x), computed_in(x)
    x = xp.ascontiguousarray(x)
    weight, bias = (None if a is None else xp.ascontiguousarray(a, dtype=precise) for a in (weight, bias))
    B, C = x.shape[:2]
    c, S, rows = C // num_groups, math.prod(x.shape[2:]), B * num_groups
    y = xp.empty_like(x)
    mean, r = (xp.empty(rows, dtype=precise) for _ in range(2))
    launch("channels", "group_norm", x, (rows,), _threads(c * S), x, weight, bias, y, mean, r, C, c, S, float(eps))

    def backward(dy: Array, need: list[bool]) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy)
        sums = xp.empty((2, B, C), dtype=precise)
        launch("channels", "group_norm_sums", x, (B * C,), _threads(S), x, dy, mean, r, sums, c, S)
        dx = xp.empty_like(x) if need[0] else None
        if need[0]:
            given = x, dy, weight, mean, r, sums, dx
            launch("channels", "group_norm_backward", x, (B * C,), _threads(S), *given, C, c, S)
        dweight, dbias = (xp.empty(C, dtype=precise) if wanted else None for wanted in need[1:3])
        if need[1] or need[2]:
            sum_parts(sums, dweight, dbias)
        return dx, dweight, dbias

    return y, backward


def _threads(numbers: int) -> tuple[int]:
    """Of a block for a row of so many numbers: whole warps."""
    return (min(MOST_THREADS, 32 * divide(numbers, 32)),)
