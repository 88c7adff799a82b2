"""Attention with whole rows of scores: two products and two launches forward, four products and two launches backward.

    plain       P = softmax(S scale + bias), S = q kᵀ;  y = P v
                dS = P (dP - Σ P dP), dP = dy vᵀ;  dq = dS k scale,  dk = dSᵀ q scale,  dv = Pᵀ dy
    problem     between its products, attention is ten operations on all scores, with dropout 23
    idea        the threads of a row (softmax.py) do in registers what is between the products: scale, bias, mask,
                softmax and dropout. They replace S by P, and in backward dP by dS. Which entries dropout keeps is drawn
                again in backward (draws.py)
    who         as in softmax.py: the rows are those of all scores (B, …, N, M)

The second launch of each way is that of a table of addresses, which cuBLAS needs for q, k and v in one array.

P is kept for backward, unlike on the CPU, whose kernel computes it again (kernels/attention.py): a fifth product and
a second pass over the scores would take longer here than reading P does.
"""

from __future__ import annotations

from typing import Any

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda import draws, softmax
from scratchvit.kernels.cuda.addresses import addresses_of
from scratchvit.kernels.cuda.blas import matmul
from scratchvit.kernels.cuda.modules import launch
from scratchvit.kernels.parts import empty_parts
from scratchvit.kernels.sums import unbroadcast
from scratchvit.random import Draw

TEXT = r"""
// --- attention.py ---

#define LOWEST (A)(sizeof(A) == 4 ? -0x1.fffffep127 : -0x1.fffffffffffffp1023) // the most negative finite number

// Replace the products S = q k (R, M) by P = softmax(S scale + bias), 0 where a mask hides it. Row (b H + h) N + n is
// of image b, head h and query n. bias and mask, or null, have a stride for each of b, h, n and for the key m. Unless
// it is null, dropped gets P after dropout.
extern "C" __global__ void __launch_bounds__(512) attention_probabilities(
    T* S, T* dropped, size R, size M, size H, size N, double scale, const T* bias, size bias_b, size bias_h,
    size bias_n, size bias_m, const bool* mask, size mask_b, size mask_h, size mask_n, size mask_m,
    const uint32* keys, size first_key, size second_key, size first, size threshold, double factor) {
    size row = own_row();
    if (row >= R) return;
    size b = row / N / H, h = row / N % H, n = row % N;
    S += row * M;
    A p[EACH], sum;
    for (int j = 0; j < EACH; j++) {
        size m = own_column(j);
        p[j] = -INFINITY;
        if (m >= M || (mask && !mask[b * mask_b + h * mask_h + n * mask_n + m * mask_m])) continue;
        p[j] = (A)S[m] * (A)scale;
        if (bias) p[j] += (A)bias[b * bias_b + h * bias_h + n * bias_n + m * bias_m];
    }
    exponentials(p, LOWEST, &sum);
    A r = sum == 0 ? 0 : 1 / sum; // 0: a query that may attend to no key
    Draw draw = draw_of(keys, first_key, second_key, first, threshold, factor);
    for (int j = 0; j < EACH; j++) {
        size m = own_column(j);
        if (m >= M) continue;
        S[m] = p[j] *= r;
        if (dropped) dropped[row * M + m] = p[j] * keep(draw, row * M + m);
    }
}

// Replace dP (R, M), the gradient of P after dropout, by dS. Unless it is null, dropped gets P after dropout again.
extern "C" __global__ void __launch_bounds__(512) attention_probabilities_backward(
    const T* P, T* dP, T* dropped, size R, size M, const uint32* keys, size first_key, size second_key, size first,
    size threshold, double factor) {
    __shared__ A sums[16];
    size row = own_row();
    if (row >= R) return;
    Draw draw = draw_of(keys, first_key, second_key, first, threshold, factor);
    A p[EACH], dp[EACH], own_sum = 0;
    for (int j = 0; j < EACH; j++) {
        size i = row * M + own_column(j);
        p[j] = dp[j] = 0;
        if (own_column(j) >= M) continue;
        p[j] = (A)P[i];
        dp[j] = (A)dP[i];
        if (dropped) {
            A kept = keep(draw, i);
            dropped[i] = p[j] * kept;
            dp[j] *= kept;
        }
        own_sum += p[j] * dp[j];
    }
    A sum = row_sum(own_sum, sums);
    for (int j = 0; j < EACH; j++)
        if (own_column(j) < M) dP[row * M + own_column(j)] = p[j] * (dp[j] - sum);
}
"""


def takes(q: Array, k: Array) -> bool:
    """Whether `attention_over_rows` computes attention of q (B, …, N, d) to k (B, …, M, d): for up to 4,096 keys."""
    return cuda.takes(q) and softmax.fits(k.shape[-2])


def attention_over_rows(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, draw: Draw | None, scale: float,
):
    """The value of `attention` and its backward; the arguments are those of the plain form in ops/attention.py."""
    xp, N, M = array_module(q), q.shape[-2], k.shape[-2]
    p = xp.empty((*q.shape[:-1], M), dtype=q.dtype)             # S, then P, (B, …, N, M)
    dropped = p if draw is None else xp.empty(p.shape, dtype=p.dtype)       # P after dropout
    y = xp.empty_like(q, shape=(*q.shape[:-1], v.shape[-1]))
    addresses = addresses_of(q, k, v, p, dropped, y)
    matmul(q, k.swapaxes(-1, -2), p, addresses=addresses)
    blocks = softmax.blocks_of_rows(p.size // M, M)
    launch(
        "rows", "attention_probabilities", p, *blocks, p, None if draw is None else dropped, p.size // M, M,
        _heads(p), N, float(scale), *over_scores(bias, p.shape, p.dtype), *over_scores(mask, p.shape, bool),
        *draws.arguments(draw),
    )
    matmul(dropped, v, y, addresses=addresses)

    def backward(dy: Array, need: list[bool]) -> tuple[Array | None, ...]:
        dropped = p if draw is None else xp.empty(p.shape, dtype=p.dtype)
        ds, (dq, dk, dv) = xp.empty(p.shape, dtype=p.dtype), empty_parts(q, k, v)
        addresses = addresses_of(q, k, v, p, dropped, dy, ds, dq, dk, dv)
        matmul(dy, v.swapaxes(-1, -2), ds, addresses=addresses)                 # dP, then dS
        launch(
            "rows", "attention_probabilities_backward", p, *blocks, p, ds, None if draw is None else dropped,
            p.size // M, M, *draws.arguments(draw),
        )
        matmul(dropped.swapaxes(-1, -2), dy, dv, addresses=addresses)
        matmul(ds, k, dq, alpha=scale, addresses=addresses)
        matmul(ds.swapaxes(-1, -2), q, dk, alpha=scale, addresses=addresses)
        return dq, dk, dv, unbroadcast(ds, bias.shape, dtype=bias.dtype) if bias is not None and need[3] else None

    return y, backward


def _heads(scores: Array) -> int:
    """H of scores (B, …, H, N, M); B of scores (B, N, M)."""
    return int(scores.shape[-3])


def over_scores(x: Array | None, scores: tuple[int, ...], dtype: Any) -> tuple[Any, ...]:
    """The arguments for a bias or mask that broadcasts to scores of the shape (B, …, H, N, M): itself, in a dtype, and
    its strides along the images, the heads, the queries and the keys. It is copied only if it has another dtype, or no
    single stride along all images."""
    if x is None:
        return None, 0, 0, 0, 0
    x = array_module(x).broadcast_to(x.astype(dtype, copy=False), scores).reshape(-1, *scores[-3:])
    return x, *(stride // x.itemsize for stride in x.strides)
