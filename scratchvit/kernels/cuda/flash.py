"""Attention that never writes its matrix (FlashAttention-2, Dao 2023, arXiv 2307.08691), by tensor cores: forward.

    plain       P = softmax(S), S = q kᵀ scale + bias;  y = P v
    problem     S and P have N·M numbers where q, k and v have (N + 2 M) d. To write and read them takes longer than to
                compute them, and for long sequences they do not fit into memory
    idea        a block computes a few rows of S, a tile of keys at a time, and uses them at once. For every query it
                keeps the largest score m and the sum l of e^(S - m) so far; with a tile that has a larger score, what
                was added up before is multiplied by e^(m_old - m). kernels/attention_blocks.py has the formulas
    who         a block of four warps has 64 queries of one head of one image, each warp 16 of them

                                 tile 0       tile 1        keys
        q   warp 0    0 … 15  ┌────────────┬────────────┬─────────
            warp 1   16 … 31  │  S, 16 × 64 numbers at a time, in registers:  a lane has 2 of every 8 columns
            warp 2   32 … 47  │            │            │          of the rows r and r + 8, as mma.py says
            warp 3   48 … 63  └────────────┴────────────┴─────────

        of each tile, a warp
            multiplies q with the tile's keys                       S, in C of the product
            finds the largest number of each row                    in its registers, and in those of three other lanes
            replaces S by e^(S - m), adds it up, drops some         P l
            multiplies that with the tile's values: C is A now      adds to y l

The scores stay in the registers where a product left them, and from these the next product takes them. Every sum is
that of one warp, in one order: the same bits in every run. Backward is in flash_backward.py; what the kernels share, in
flash_tiles.py.

Rounded to the type of q are, for their products, q, k, v and P l; all else is in float32. So arrays of float32 are
taken with `set_matmul_precision("tf32")` only: tensor cores do not multiply float32. Sums over keys have more than the
64 numbers that other kernels add up in a thread; what float32 loses there is little beside a P of 11 bits.

A bias has no gradient here, since that is a sum of dS, a whole matrix. That one is wanted is known in backward only, so
while ops are recorded, attention with a bias goes by attention.py. Then no score is as large as the -10⁹ of a bias that
serves as a mask, in whose sum with log l, rounding would lose log l: one number for every query is enough, m + log l.

No device has run this yet. On tests/fakegpu it is right; that it is fast is unproven.
"""

from __future__ import annotations

import functools

import numpy as np

from scratchvit.backend import Array, array_module, backend_of
from scratchvit.kernels.cuda import flash_backward
from scratchvit.kernels.cuda.flash_tiles import Problem, in_rows
from scratchvit.kernels.cuda.modules import FLASH, least_capability
from scratchvit.plain import is_plain
from scratchvit.precision import is_half, matmul_precision
from scratchvit.random import Draw
from scratchvit.recording import is_recording

TEXT = r"""
// --- flash.py ---

#define LOWEST_FLOAT -0x1.fffffep127f // the most negative finite number

// Replace the scores of row r of C's beside each other by e^(S - m), with the new m, and what was added up before by
// what it is with that m: y, and l, the sum over this lane's columns.
__device__ inline void exponentials(Sums* s, Sums* y, float& m, float& l, int r) {
    float largest = m;
    #pragma unroll
    for (int j = 0; j < TILE / 8; j++) largest = fmaxf(largest, fmaxf(s[j].at[2 * r], s[j].at[2 * r + 1]));
    largest = largest_of_four(largest);
    float rescale = __expf(m - largest);
    m = largest;
    l *= rescale;
    #pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        y[i].at[2 * r] *= rescale;
        y[i].at[2 * r + 1] *= rescale;
    }
    #pragma unroll
    for (int j = 0; j < TILE / 8; j++) {
        l += s[j].at[2 * r] = __expf(s[j].at[2 * r] - m);
        l += s[j].at[2 * r + 1] = __expf(s[j].at[2 * r + 1] - m);
    }
}

// y, and in logs (B, H, N) the logarithm of the sum of e^S of each query; ∞ for one that may attend to no key.
extern "C" __global__ void __launch_bounds__(128, 2) flash_forward(View q, View k, View v, View y, float* logs,
                                                                   Attention of) {
    Row *keys = shared_tiles(), *values = keys + TILE;
    Place place(of, of.N);
    Left queries[STEPS];
    load_own(queries, q, place, of.N);
    Sums sums[COLUMNS] = {};                                // y l
    float m[2] = {LOWEST_FLOAT, LOWEST_FLOAT}, l[2] = {};   // of this lane's two rows
    for (int from = 0; from < of.M; from += TILE) {
        __syncthreads(); // until all have read the tiles before
        load(keys, TILE, k, place, from, of.M);
        load(values, TILE, v, place, from, of.M);
        __syncthreads();
        if (place.first >= of.N) continue;
        Sums p[TILE / 8];
        #pragma unroll
        for (int j = 0; j < TILE / 8; j++) p[j] = product(queries, keys + j * 8);
        #pragma unroll
        for (int j = 0; j < TILE / 8; j++)
            #pragma unroll
            for (int i = 0; i < 4; i++)
                p[j].at[i] = place.score(p[j].at[i], place.first + row_of(i), from + j * 8 + column_of(i));
        exponentials(p, sums, m[0], l[0], 0);
        exponentials(p, sums, m[1], l[1], 1);
        #pragma unroll
        for (int j = 0; j < TILE / 8; j++)
            #pragma unroll
            for (int i = 0; i < 4; i++)
                p[j].at[i] *= place.kept(place.first + row_of(i), from + j * 8 + column_of(i));
        __syncwarp(); // masks and dropout may have parted the lanes, which multiply together
        #pragma unroll
        for (int step = 0; step < TILE / STEP; step++)
            add_rows(sums, left_of(p + step * (STEP / 8)), values + step * STEP);
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = sum_of_four(l[r]);
        int n = place.first + row_of(2 * r);
        if (n >= of.N) continue;
        store(place.row(y, n), of.d, sums, r, sum == 0 ? 0 : 1 / sum);
        if (lane_column() == 0) logs[place.first_query + n] = sum == 0 ? INFINITY : m[r] + logf(sum);
    }
}
"""


def takes(q: Array, k: Array, v: Array, bias: Array | None) -> bool:
    """Whether `attention` computes that of q, k and v now.

    It takes q (B, H, N, d) or (H, N, d) with d ≤ 128, a multiple of 8, and k and v (…, M, d); float16, bfloat16, or
    float32 if products are in TF32; on GPUs of compute capability 8.0 and later; a bias only if nothing is recorded.
    """
    d = q.shape[-1]
    return (
        backend_of(q).has_cuda and not is_plain()
        and (is_half(q) or (q.dtype.char == "f" and matmul_precision() == "tf32"))
        and q.ndim in (3, 4) and k.shape == v.shape and q.dtype == k.dtype == v.dtype
        and d % 8 == 0 and 0 < d <= max(FLASH.values())
        and (bias is None or not is_recording())
        and _has_tensor_cores(q.device.id)
    )


@functools.cache
def _has_tensor_cores(device: int | None) -> bool:
    """Whether a GPU has the instructions of mma.py; one that is only assumed (None, in costs/blanks.py) has them."""
    if device is None:
        return True
    import cupy

    return int(cupy.cuda.Device(device).compute_capability) >= min(map(least_capability, FLASH))


def attention(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, draw: Draw | None, scale: float
):
    """The value of `attention` and its backward; the arguments are those of the plain form in ops/attention.py.

    No array of the size of the scores is made, but a bias is converted to float32. What is saved are q, k, v, y, the
    mask, and a float32 number for every query.
    """
    xp = array_module(q)
    q, k, v = map(in_rows, (q, k, v))
    y, logs = xp.empty_like(q), xp.empty(q.shape[:-1], dtype=np.float32)
    problem = Problem(q, k, bias, mask, draw, scale)
    problem.launch("flash_forward", problem.N, q, k, v, y, logs)

    def backward(dy: Array, need: list[bool]) -> tuple[Array | None, ...]:
        return *flash_backward.gradients(problem, q, k, v, y, in_rows(dy), logs), None

    return y, backward
