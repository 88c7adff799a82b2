"""Layer norm of rows: one launch forward, two backward.

    plain       y = x̂ weight + bias,  x̂ = (x - μ) r,  r = 1/√(σ² + ε); with g = dy weight
                dx = r (g - mean(g) - x̂ mean(g x̂)),  dweight = Σ dy x̂,  dbias = Σ dy
    problem     13 operations forward and 19 backward, each of which reads and writes whole arrays
    idea        a row is short, 192 numbers, and 32 threads that run in step can add theirs without a barrier. So a warp
                computes whole rows, and reads them again from the cache instead of storing x̂. In backward, it also
                collects what its rows add to dweight and dbias. What a residual connection does before a norm,
                x + dropout(added), a thread does on its way to the first sum, and undoes on its way from dx
    who

        x (N, D)                                      in backward, warp w of block p has the rows pW + w,
        row 0   warp 0 of block 0                     pW + w + PW, … of P blocks, and a row of its own in
        row 1   warp 1            lane l: columns     shared memory for the sums of dy x̂ and of dy:
        row 2   warp 2            l, l + 32, …
        row 3   warp 3                                sums (W, 2, D) → parts (2, P, D) → dweight, dbias
        row 4   warp 0 of block 1

The variance is the mean of (x - μ)², not of x² less μ², which would lose all digits of rows far from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.column_sums import LONGEST, sum_parts
from scratchvit.kernels.cuda.draws import arguments
from scratchvit.kernels.cuda.modules import computed_in, divide, launch
from scratchvit.random import Draw

WARPS = 4                       # of a block
SHARED_BYTES = 48 << 10         # what a block has on every GPU
SHORTEST = 4                    # rows of a warp in backward, so that there are fewer parts than rows

TEXT = r"""
// --- layer_norm.py ---

// y, mean and r of the rows of x (N, D). weight and bias (D,) or null. Unless added is null, of the rows of
// z = x + added, each entry of added times what the draw says, if there is one (factor is not 0).
extern "C" __global__ void layer_norm(const T* x, const T* added, T* z, const A* weight, const A* bias, T* y, A* mean,
                                      A* r, size N, size D, double eps, const uint32* keys, size first_key,
                                      size second_key, size first, size threshold, double factor) {
    size row = blockIdx.x * (size)(blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= N) return;
    x += row * D;
    y += row * D;

    if (added) {
        Draw draw = draw_of(keys, first_key, second_key, first, threshold, factor);
        added += row * D;
        z += row * D;
        for (size i = lane; i < D; i += 32) // each lane reads what it has written, so no barrier
            z[i] = (A)x[i] + (A)added[i] * (factor != 0 ? keep(draw, row * D + i) : 1);
        x = z;
    }
    A sum = 0, squares = 0;
    for (size i = lane; i < D; i += 32) sum += (A)x[i];
    A mu = warp_sum(sum) / D;
    for (size i = lane; i < D; i += 32) {
        A centred = (A)x[i] - mu;
        squares += centred * centred;
    }
    A variance = warp_sum(squares) / D;
    A scale = 1 / sqrt(variance + (A)eps);
    if (isinf(variance)) scale = variance - variance; // of numbers around 1e20: NaN, where 1/sqrt(inf) would give 0

    for (size i = lane; i < D; i += 32) {
        A value = ((A)x[i] - mu) * scale;
        if (weight) value *= weight[i];
        if (bias) value += bias[i];
        y[i] = value;
    }
    if (lane == 0) {
        mean[row] = mu;
        r[row] = scale;
    }
}

// dx, or null; dadded, dx times what the draw says, or null; and unless parts is null, the sums of dy x_hat and of dy
// over the rows of each block: parts (2, P, D).
extern "C" __global__ void layer_norm_backward(const T* x, const T* dy, const A* weight, const A* mean, const A* r,
                                               T* dx, T* dadded, A* parts, size N, size D, const uint32* keys,
                                               size first_key, size second_key, size first, size threshold,
                                               double factor) {
    extern __shared__ A sums[]; // (warps, 2, D)
    int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    A *own_weight = sums + (size)warp * 2 * D, *own_bias = own_weight + D;
    Draw draw = draw_of(keys, first_key, second_key, first, threshold, factor);
    if (parts)
        for (size i = lane; i < D; i += 32) own_weight[i] = own_bias[i] = 0; // what this lane adds to, so no barrier

    for (size row = blockIdx.x * (size)warps + warp; row < N; row += (size)gridDim.x * warps) {
        const T *x_row = x + row * D, *dy_row = dy + row * D;
        A mu = mean[row], scale = r[row], sum_g = 0, sum_g_x_hat = 0;
        for (size i = lane; i < D; i += 32) {
            A given = (A)dy_row[i], x_hat = ((A)x_row[i] - mu) * scale;
            A g = weight ? given * weight[i] : given;
            sum_g += g;
            sum_g_x_hat += g * x_hat;
            if (parts) {
                own_weight[i] += given * x_hat;
                own_bias[i] += given;
            }
        }
        if (!dx && !dadded) continue;
        A mean_g = warp_sum(sum_g) / D, mean_g_x_hat = warp_sum(sum_g_x_hat) / D;
        for (size i = lane; i < D; i += 32) {
            A given = (A)dy_row[i], x_hat = ((A)x_row[i] - mu) * scale;
            A g = weight ? given * weight[i] : given;
            A gradient = scale * (g - mean_g - x_hat * mean_g_x_hat);
            if (dx) dx[row * D + i] = gradient;
            if (dadded) dadded[row * D + i] = gradient * keep(draw, row * D + i);
        }
    }
    if (!parts) return;
    __syncthreads();
    for (size i = threadIdx.x; i < 2 * D; i += blockDim.x) {
        A sum = 0;
        for (int w = 0; w < warps; w++) sum += sums[(size)w * 2 * D + i];
        size of_bias = i >= D;
        parts[(of_bias * gridDim.x + blockIdx.x) * D + i - of_bias * D] = sum;
    }
}
"""


def fits(x: Array) -> bool:
    """Whether the sums of one row of x (N, D) fit into shared memory: up to D = 6,144 in float32."""
    return 2 * x.shape[1] * computed_in(x).itemsize <= SHARED_BYTES


def normalise_rows(x: Array, weight: Array | None, bias: Array | None, eps: float):
    """Value and backward of layer norm of x (N, D), with weight and bias (D,) or None: see ops/norm.py.

    For x of 16 bits, the gradients of weight and bias are of float32.
    """
    y, backward = normalise_sum(x, None, None, weight, bias, eps)

    def backward_of_x(dy: Array, need: Sequence[bool]) -> tuple[Array | None, ...]:
        dx, _, dweight, dbias = backward(dy, (need[0], False, *need[1:]))
        return dx, dweight, dbias

    return y, backward_of_x


def normalise_sum(
    x: Array, added: Array | None, draw: Draw | None, weight: Array | None, bias: Array | None, eps: float
):
    """Value and backward of layer norm of x + added, both (N, D), with dropout of `added` by a draw: see
    ops/norm.py. For 16 bits as in `normalise_rows`."""
    xp, precise = array_module(x), computed_in(x)
    x, added = (None if a is None else xp.ascontiguousarray(a) for a in (x, added))
    weight, bias = (None if a is None else xp.ascontiguousarray(a, dtype=precise) for a in (weight, bias))
    N, D = x.shape
    z = x if added is None else xp.empty((N, D), dtype=x.dtype)        # a third of empty_like's time
    y = xp.empty((N, D), dtype=x.dtype)
    mean, r = (xp.empty(N, dtype=precise) for _ in range(2))
    launch(
        "rows", "layer_norm", x, (divide(N, WARPS),), (32 * WARPS,), x, added, z, weight, bias, y, mean, r, N, D,
        float(eps), *arguments(draw),
    )
    del x, added        # of which backward needs the sum

    def backward(dy: Array, need: Sequence[bool]) -> tuple[Array | None, ...]:
        dy = xp.ascontiguousarray(dy)
        wants_dz = need[0] or (need[1] and draw is None)
        dz = xp.empty((N, D), dtype=z.dtype) if wants_dz else None
        dadded = xp.empty((N, D), dtype=z.dtype) if need[1] and draw is not None else None
        dweight, dbias = (xp.empty(D, dtype=precise) if wanted else None for wanted in need[2:4])
        sums_bytes = 2 * D * precise.itemsize                               # of a warp
        warps = min(WARPS, SHARED_BYTES // sums_bytes)
        rows = min(LONGEST, max(SHORTEST, divide(N, 256 * warps)))          # of a warp
        P = max(1, divide(N, rows * warps))
        parts = xp.empty((2, P, D), dtype=precise) if need[2] or need[3] else None
        launch(
            "rows", "layer_norm_backward", z, (P,), (32 * warps,), z, dy, weight, mean, r, dz, dadded, parts, N, D,
            *arguments(draw), shared=0 if parts is None else warps * sums_bytes,
        )
        if parts is not None:
            sum_parts(parts, dweight, dbias)
        d_added = dadded if draw is not None else dz
        return dz if need[0] else None, d_added if need[1] else None, dweight, dbias

    return y, backward
