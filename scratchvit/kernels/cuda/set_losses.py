"""Sets of boxes: the costs of matching, the losses of matched boxes, and what is counted. One launch each way.

    plain       detection/set_losses.py
    problem     GIoU alone is 30 operations on a few thousand numbers, its backward 60 more
    idea        four numbers of two boxes are read once, and everything about them is computed in registers. Backward
                they are read again, instead of being kept in 30 arrays
    who

        costs (L, T, N)         a thread has a pair: object t and query n of its image
        box_losses (2, L)       a block has a layer; thread i adds, in float64, the pairs of queries i, i + 256, …
        its dboxes              a thread has a query; without an object, it writes 0
        set_errors (2, L, B)    a block has an image of a layer; a warp has queries w, w + 8, …, lane l of it the
                                logits l, l + 32, …
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.modules import divide, launch

THREADS = 256                   # of a block

TEXT = r"""
// --- set_losses.py ---

__device__ inline A ratio(A x, A y) { return x / (y == 0 ? 1 : y); }

__device__ inline A side(A lo, A hi) { return hi - lo < 0 ? 0 : hi - lo; } // NaN stays NaN

// 1 where x < y, 1/2 where x = y, else 0.
__device__ inline A less(A x, A y) { return x < y ? 1 : x == y ? (A)0.5 : 0; }

// Of two boxes (centre x, y, width, height), by axes: the ends of their intervals, and all sides and areas.
struct Pair {
    A lo[2], hi[2], b_lo[2], b_hi[2], own[2], common[2], around[2];
    A I, U, C;

    __device__ Pair(const T* box, const T* b) {
        A theirs[2];
        for (int k = 0; k < 2; k++) {
            A half = (A)box[2 + k] * (A)0.5, b_half = (A)b[2 + k] * (A)0.5;
            lo[k] = (A)box[k] - half, hi[k] = (A)box[k] + half;
            b_lo[k] = (A)b[k] - b_half, b_hi[k] = (A)b[k] + b_half;
            own[k] = side(lo[k], hi[k]);
            theirs[k] = side(b_lo[k], b_hi[k]);
            common[k] = side(fmax(lo[k], b_lo[k]), fmin(hi[k], b_hi[k]));
            around[k] = side(fmin(lo[k], b_lo[k]), fmax(hi[k], b_hi[k]));
        }
        I = common[0] * common[1];
        U = own[0] * own[1] + theirs[0] * theirs[1] - I;
        C = around[0] * around[1];
    }

    __device__ A giou() const { return ratio(I, U) - ratio(C - U, C); }

    // The derivatives of GIoU by the four numbers of the first box.
    __device__ void gradient(A* d) const {
        A one_by_U = ratio(1, U), one_by_C = ratio(1, C);
        A dU = one_by_C - I * one_by_U * one_by_U;
        A dI = one_by_U - dU;
        A dC = (C - U) * one_by_C * one_by_C - one_by_C;
        for (int k = 0; k < 2; k++) {
            A by_own = hi[k] >= lo[k] ? dU * own[1 - k] : 0;
            A by_common = fmin(hi[k], b_hi[k]) >= fmax(lo[k], b_lo[k]) ? dI * common[1 - k] : 0;
            A by_around = dC * around[1 - k];
            A dhi = by_own + by_common * less(hi[k], b_hi[k]) + by_around * less(b_hi[k], hi[k]);
            A dlo = -by_own - by_common * less(b_lo[k], lo[k]) - by_around * less(lo[k], b_lo[k]);
            d[k] = dlo + dhi;
            d[2 + k] = (dhi - dlo) * (A)0.5;
        }
    }
};

__device__ inline A l1(const T* box, const T* b) {
    A sum = 0;
    for (int k = 0; k < 4; k++) sum += fabs((A)b[k] - (A)box[k]);
    return sum;
}

// of_class * class cost + of_l1 * L1 - of_giou * GIoU, (L, objects, N).
extern "C" __global__ void matching_costs(const T* class_costs, const T* boxes, const T* objects, const size* labels,
                                          const size* image, double of_class, double of_l1, double of_giou, T* costs,
                                          size L, size images, size of_all, size N, size classes) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x;
    if (i >= L * of_all * N) return;
    size n = i % N, t = i / N % of_all, layer = i / (N * of_all);
    size query = (layer * images + image[t]) * N + n;
    const T *box = boxes + 4 * query, *b = objects + 4 * t;
    costs[i] = (A)of_l1 * l1(box, b) + (A)of_class * (A)class_costs[query * classes + labels[t]]
             - (A)of_giou * Pair(box, b).giou();
}

// Of the block's layer, over its Q queries that have an object: the sums of L1 and of 1 - GIoU. 256 threads.
extern "C" __global__ void box_losses(const T* boxes, const T* objects, const size* which, T* losses, size L, size Q) {
    __shared__ double sums[2][256];
    size layer = blockIdx.x;
    int i = threadIdx.x;
    sums[0][i] = sums[1][i] = 0;
    for (size query = layer * Q + i; query < (layer + 1) * Q; query += 256) {
        if (which[query] < 0) continue;
        const T *box = boxes + 4 * query, *b = objects + 4 * which[query];
        sums[0][i] += l1(box, b);
        sums[1][i] += 1 - Pair(box, b).giou();
    }
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (i < half)
            for (int k = 0; k < 2; k++) sums[k][i] += sums[k][i + half];
    }
    if (i < 2) losses[i * L + layer] = (A)sums[i][0];
}

// dboxes (L, Q, 4), from dy (2, L).
extern "C" __global__ void box_losses_backward(const T* boxes, const T* objects, const size* which, const T* dy,
                                               T* dboxes, size L, size Q) {
    size query = blockIdx.x * (size)blockDim.x + threadIdx.x;
    if (query >= L * Q) return;
    A d[4] = {0, 0, 0, 0};
    if (which[query] >= 0) {
        const T *box = boxes + 4 * query, *b = objects + 4 * which[query];
        A dl1 = dy[query / Q], dgiou = -(A)dy[L + query / Q];
        Pair(box, b).gradient(d);
        for (int k = 0; k < 4; k++) {
            A difference = (A)box[k] - (A)b[k];
            d[k] = dl1 * ((difference > 0) - (difference < 0)) + dgiou * d[k];
        }
    }
    for (int k = 0; k < 4; k++) dboxes[4 * query + k] = d[k];
}

// Of the block's layer and image: |queries that predict an object - count|, and the matched ones whose largest logit is
// that of another class. none: the index of "no object", -1 if a logit above 0 says that there is one.
extern "C" __global__ void set_errors(const T* logits, const size* classes, const size* counts, T* errors, size images,
                                      size N, size C, size none) {
    __shared__ int found[8][2];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, objects = 0, wrong = 0;
    size place = blockIdx.x, labels = none < 0 ? C : none;
    for (size n = warp; n < N; n += 8) {
        const T* z = logits + (place * N + n) * C;
        size label = classes[place * N + n];
        bool matched = label < labels;
        // The first of the largest logits is the prediction: one before the label's may not be as large.
        A threshold = none < 0 ? 0 : (A)z[none], of_label = matched ? (A)z[label] : 0;
        A is_object = 0, is_wrong = 0;
        for (size c = lane; c < C; c += 32) {
            A logit = z[c];
            if (c != none && (none < 0 ? logit > threshold : logit >= threshold)) is_object = 1;
            if (matched && (logit > of_label || (logit == of_label && c < label))) is_wrong = 1;
        }
        objects += warp_max(is_object) > 0;
        wrong += warp_max(is_wrong) > 0;
    }
    if (lane == 0) found[warp][0] = objects, found[warp][1] = wrong;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int other = 1; other < 8; other++) objects += found[other][0], wrong += found[other][1];
    size count = counts[place % images];
    errors[place] = (A)(objects > count ? objects - count : count - objects);
    errors[gridDim.x + place] = (A)wrong;
}
"""


def matching_costs(
    class_costs: Array, boxes: Array, objects: Array, labels: Array, image: Array, weights: tuple[float, float, float]
) -> Array:
    """As in detection/set_losses.py."""
    xp = array_module(boxes)
    L, B, N, classes = class_costs.shape
    T = len(objects)
    costs = xp.empty((L, T, N), boxes.dtype)
    given = xp.ascontiguousarray(class_costs), xp.ascontiguousarray(boxes), xp.ascontiguousarray(objects)
    launch(
        "rows", "matching_costs", boxes, (divide(costs.size, THREADS),), (THREADS,), *given, _whole(labels),
        _whole(image), *map(float, weights), costs, L, B, T, N, classes,
    )
    return costs


def box_losses(boxes: Array, objects: Array, which: Array) -> tuple[Array, Callable[[Array], Array]]:
    """As in detection/set_losses.py: the sums (2, L), and a function dy → dboxes."""
    xp = array_module(boxes)
    L, Q = len(boxes), which.size // max(1, len(boxes))
    given = xp.ascontiguousarray(boxes), xp.ascontiguousarray(objects.astype(boxes.dtype, copy=False)), _whole(which)
    losses = xp.empty((2, L), boxes.dtype)
    launch("rows", "box_losses", boxes, (L,), (THREADS,), *given, losses, L, Q)

    def backward(dy: Array) -> Array:
        dboxes = xp.empty(boxes.shape, boxes.dtype)
        blocks = (divide(L * Q, THREADS),)
        launch(
            "rows", "box_losses_backward", boxes, blocks, (THREADS,), *given, xp.ascontiguousarray(dy), dboxes, L, Q
        )
        return dboxes

    return losses, backward


def set_errors(logits: Array, classes: Array, counts: Array, none: int | None) -> Array:
    """As in detection/set_losses.py."""
    xp = array_module(logits)
    L, B, N, C = logits.shape
    errors = xp.empty((2, L, B), logits.dtype)
    given = xp.ascontiguousarray(logits), _whole(classes), _whole(counts)
    launch("rows", "set_errors", logits, (L * B,), (THREADS,), *given, errors, B, N, C, -1 if none is None else none)
    return errors


def _whole(x: Array) -> Array:
    """x as int64, contiguous."""
    return array_module(x).ascontiguousarray(x.astype(np.int64, copy=False))
