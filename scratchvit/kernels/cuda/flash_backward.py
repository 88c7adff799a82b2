"""Attention that never writes its matrix (FlashAttention-2, Dao 2023, arXiv 2307.08691), by tensor cores: backward.

    plain       dS = P (dP - Σ P dP), dP = dy vᵀ;  dq = dS k scale,  dk = dSᵀ q scale,  dv = Pᵀ dy
    problem     P was not stored, and dq is a sum over keys, dk and dv are sums over queries: whoever goes through S by
                rows has to add to dk and dv what others add to as well
    idea        P is computed again, as e^(S - log of the sum of e^S), whose logarithm flash.py stored. By Σ P dP =
                Σ y dy, a sum of d terms, no sum over a row of S is needed before dS is known. And S is gone through
                twice, by rows for dq and by columns for dk and dv, so that every sum is one warp's. Of seven products
                two are made twice; adding to dk and dv together would take atomic operations, and give other bits in
                every run
    who         a block of four warps has 64 rows, each warp 16 of them, in registers; tiles of the others come by

        kernel                      rows                tiles           adds up
        flash_backward_queries      queries: q, dy      k, v            dq; finds Σ y dy, which the other one reads
        flash_backward_keys         keys: k, v          q, dy           dk, dv

                  tile       ┌──┐ 16 queries or keys at a time (8 in TF32): two C of S and of dP, of which P and dS
        16 rows   ┌──────────┼──┼──────┐ are made, and as A multiplied with the rows of the tile there
                  └──────────┼──┼──────┘
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scratchvit.backend import Array, array_module
from scratchvit.kernels.parts import empty_parts

if TYPE_CHECKING:
    from scratchvit.kernels.cuda.flash_tiles import Problem

TEXT = r"""
// --- flash_backward.py ---

// Replace p, a product q kᵀ, by the probability after dropout, and ds, a product dy vᵀ, by dS. log and dot: the query's
// logarithm of the sum of e^S, and its Σ y dy.
__device__ inline void differentiate(float& p, float& ds, const Place& place, int n, int m, float log, float dot) {
    float probability = __expf(place.score(p, n, m) - log), kept = place.kept(n, m);
    p = probability * kept;
    ds = probability * (ds * kept - dot);
}

// dq, and in dots (B, H, N) Σ y dy of each query.
extern "C" __global__ void __launch_bounds__(128) flash_backward_queries(View q, View k, View v, View y, View dy,
                                                                         View dq, const float* logs, float* dots,
                                                                         Attention of) {
    Row *keys = shared_tiles(), *values = keys + TILE;
    Place place(of, of.N);
    Left queries[STEPS], gradients[STEPS];
    load_own(queries, q, place, of.N);
    load_own(gradients, dy, place, of.N);
    float log[2] = {INFINITY, INFINITY}, dot[2] = {}; // of this lane's two rows
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        int n = place.first + row_of(2 * r);
        if (n < of.N) {
            log[r] = logs[place.first_query + n];
            const T *of_y = place.row(y, n), *of_dy = place.row(dy, n);
            for (int i = lane_column() / 2; i < of.d; i += 4) dot[r] += (float)of_y[i] * (float)of_dy[i];
        }
        dot[r] = sum_of_four(dot[r]);
        if (n < of.N && lane_column() == 0) dots[place.first_query + n] = dot[r];
    }
    Sums sums[COLUMNS] = {};
    for (int from = 0; from < of.M; from += TILE) {
        __syncthreads(); // until all have read the tiles before
        load(keys, TILE, k, place, from, of.M);
        load(values, TILE, v, place, from, of.M);
        __syncthreads();
        if (place.first >= of.N) continue;
        for (int step = 0; step < TILE; step += STEP) {
            Sums p[STEP / 8], ds[STEP / 8];
            #pragma unroll
            for (int j = 0; j < STEP / 8; j++) {
                p[j] = product(queries, keys + step + j * 8);
                ds[j] = product(gradients, values + step + j * 8);
            }
            #pragma unroll
            for (int j = 0; j < STEP / 8; j++)
                #pragma unroll
                for (int i = 0; i < 4; i++)
                    differentiate(p[j].at[i], ds[j].at[i], place, place.first + row_of(i),
                                  from + step + j * 8 + column_of(i), log[i / 2], dot[i / 2]);
            __syncwarp(); // masks and dropout may have parted the lanes, which multiply together
            add_rows(sums, left_of(ds), keys + step);
        }
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        int n = place.first + row_of(2 * r);
        if (n < of.N) store(place.row(dq, n), of.d, sums, r, of.scale);
    }
}

// dk and dv. All C are transposed here: their rows are keys, their columns queries.
extern "C" __global__ void __launch_bounds__(128) flash_backward_keys(View q, View k, View v, View dy, View dk,
                                                                      View dv, const float* logs, const float* dots,
                                                                      Attention of) {
    __shared__ float log[TILE], dot[TILE]; // of the tile's queries
    Row *queries = shared_tiles(), *gradients = queries + TILE;
    Place place(of, of.M);
    Left keys[STEPS], values[STEPS];
    load_own(keys, k, place, of.M);
    load_own(values, v, place, of.M);
    Sums dk_sums[COLUMNS] = {}, dv_sums[COLUMNS] = {};
    for (int from = 0; from < of.N; from += TILE) {
        __syncthreads(); // until all have read the tiles before
        load(queries, TILE, q, place, from, of.N);
        load(gradients, TILE, dy, place, from, of.N);
        if (threadIdx.x < TILE) {
            int n = from + threadIdx.x;
            log[threadIdx.x] = n < of.N ? logs[place.first_query + n] : INFINITY;
            dot[threadIdx.x] = n < of.N ? dots[place.first_query + n] : 0;
        }
        __syncthreads();
        if (place.first >= of.M) continue;
        for (int step = 0; step < TILE; step += STEP) {
            Sums p[STEP / 8], ds[STEP / 8];
            #pragma unroll
            for (int j = 0; j < STEP / 8; j++) {
                p[j] = product(keys, queries + step + j * 8);
                ds[j] = product(values, gradients + step + j * 8);
            }
            #pragma unroll
            for (int j = 0; j < STEP / 8; j++)
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    int n = step + j * 8 + column_of(i);
                    differentiate(p[j].at[i], ds[j].at[i], place, from + n, place.first + row_of(i), log[n], dot[n]);
                }
            __syncwarp();
            add_rows(dv_sums, left_of(p), gradients + step);
            add_rows(dk_sums, left_of(ds), queries + step);
        }
    }
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        int m = place.first + row_of(2 * r);
        if (m >= of.M) continue;
        store(place.row(dk, m), of.d, dk_sums, r, of.scale);
        store(place.row(dv, m), of.d, dv_sums, r, 1);
    }
}
"""


def gradients(problem: Problem, q: Array, k: Array, v: Array, y: Array, dy: Array, logs: Array) -> list[Array]:
    """dq, dk and dv of `flash.attention`, as parts of one array if q, k and v are. logs: what flash_forward wrote."""
    dq, dk, dv = empty_parts(q, k, v)
    dots = array_module(q).empty_like(logs)
    problem.launch("flash_backward_queries", problem.N, q, k, v, y, dy, dq, logs, dots)
    problem.launch("flash_backward_keys", problem.M, q, k, v, dy, dk, dv, logs, dots)
    return [dq, dk, dv]
