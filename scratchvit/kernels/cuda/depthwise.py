"""Depth-wise convolution on a GPU: one launch for the value, one for dx, two for dweight.

    plain       y[b, s, o] = Σ_tap weight[o, tap] x[b, where the tap reads at s, o / m] (kernels/depthwise.py)
    problem     windows for a product with each channel's filter are copies of x, one for every tap
    idea        a thread computes one output from what its window reads; or, for dx, one entry from the places that
                read it. dweight is a sum of columns (column_sums.py) whose numbers are made while they are added
    who

        y (B·places, O)     thread i has entry i. Neighbours have neighbouring channels, side by side in memory

        dweight (O, taps)   block (tap, part, o / 32), threads (32, 8): thread (i, j) adds, for one tap, column i of
                            every eighth place of the part, from place j.  Parts (P, O·taps) → dweight

All arrays are channels-last in memory. O = C·m: m filters for each channel.
"""

from __future__ import annotations

import math

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.column_sums import COLUMNS, LINES, LONGEST, sum_parts
from scratchvit.kernels.cuda.modules import computed_in, divide, launch
from scratchvit.kernels.cuda.windows import struct
from scratchvit.kernels.sliding import Windows

THREADS = 256                   # of a block

TEXT = r"""
// --- depthwise.py ---

// y (B, places, O) = weight (O, taps) x (B, entries, O / m) + bias (O,) or null.
extern "C" __global__ void depthwise(const T* x, const T* weight, const T* bias, T* y, Windows windows, size B, size O,
                                     size m) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x, P = windows.places(), C = O / m;
    if (i >= B * P * O) return;
    size o = i % O, image = i / O / P;
    Index place(i / O % P, windows.output);
    x += image * windows.entries() * C + o / m;
    weight += o * windows.taps();
    A sum = bias ? (A)bias[o] : 0;
    for (int u = 0; u < windows.kernel[0]; u++)
        for (int v = 0; v < windows.kernel[1]; v++)
            for (int w = 0; w < windows.kernel[2]; w++, weight++) {
                size entry = windows.read(place, u, v, w);
                if (entry >= 0) sum += (A)*weight * (A)x[entry * C];
            }
    y[i] = sum;
}

// dx (B, entries, C) from dy (B, places, O).
extern "C" __global__ void depthwise_dx(const T* dy, const T* weight, T* dx, Windows windows, size B, size O, size m) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x, S = windows.entries(), C = O / m;
    if (i >= B * S * C) return;
    size first = i % C * m, image = i / C / S; // of the m filters of this channel
    Index entry(i / C % S, windows.input);
    dy += image * windows.places() * O;
    A sum = 0;
    int tap = 0;
    for (int u = 0; u < windows.kernel[0]; u++)
        for (int v = 0; v < windows.kernel[1]; v++)
            for (int w = 0; w < windows.kernel[2]; w++, tap++) {
                size place = windows.reader(entry, u, v, w);
                if (place < 0) continue;
                for (size o = first; o < first + m; o++)
                    sum += (A)weight[o * windows.taps() + tap] * (A)dy[place * O + o];
            }
    dx[i] = sum;
}

// parts (P, O·taps): the sums of dy times what tap blockIdx.x reads, over part blockIdx.y of the B·places rows of dy.
extern "C" __global__ void depthwise_dw(const T* dy, const T* x, A* parts, Windows windows, size B, size O, size m) {
    __shared__ A scratch[8][33];
    size o = blockIdx.z * 32 + threadIdx.x, part = blockIdx.y, count = gridDim.y, C = O / m;
    size P = windows.places(), N = B * P;
    Index tap(blockIdx.x, windows.kernel);
    A sum = 0;
    if (o < O)
        for (size row = N * part / count + threadIdx.y; row < N * (part + 1) / count; row += 8) {
            size entry = windows.read(Index(row % P, windows.output), tap.at[0], tap.at[1], tap.at[2]);
            if (entry >= 0) sum += (A)dy[row * O + o] * (A)x[(row / P * windows.entries() + entry) * C + o / m];
        }
    sum = sum_of_lines(sum, scratch);
    if (threadIdx.y == 0 && o < O) parts[(part * O + o) * windows.taps() + blockIdx.x] = sum;
}
"""


def depthwise(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    """The value, channels-last in memory: see kernels/depthwise.py."""
    xp = array_module(x)
    y = xp.empty((len(x), *windows.output, len(weight)), dtype=x.dtype)
    bias = None if bias is None else xp.ascontiguousarray(bias)
    launch(
        "depthwise", "depthwise", x, (divide(y.size, THREADS),), (THREADS,), _channels_last(x), weight, bias, y,
        struct(windows), len(x), len(weight), len(weight) // groups,
    )
    return _channels_first(y)


def depthwise_dx(dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """dx, channels-last in memory."""
    dx = array_module(dy).empty((len(dy), *windows.size, groups), dtype=dy.dtype)
    launch(
        "depthwise", "depthwise_dx", dy, (divide(dx.size, THREADS),), (THREADS,), _channels_last(dy), weight, dx,
        struct(windows), len(dy), len(weight), len(weight) // groups,
    )
    return _channels_first(dx)


def depthwise_dw(dy: Array, x: Array, windows: Windows, groups: int) -> Array:
    """dweight (O, taps), in float32 for x of 16 bits."""
    xp = array_module(x)
    O, taps = dy.shape[1], math.prod(windows.kernel)
    parts = max(1, divide(len(dy) * math.prod(windows.output), LINES * LONGEST))
    dw = xp.empty(O * taps, dtype=computed_in(x))
    sums = dw if parts == 1 else xp.empty((parts, O * taps), dtype=dw.dtype)
    launch(
        "depthwise", "depthwise_dw", x, (taps, parts, divide(O, COLUMNS)), (COLUMNS, LINES), _channels_last(dy),
        _channels_last(x), sums, struct(windows), len(x), O, O // groups,
    )
    if parts > 1:
        sum_parts(sums, dw, None)
    return dw.reshape(O, taps)


def _channels_last(x: Array) -> Array:
    return array_module(x).ascontiguousarray(x.transpose(0, *range(2, x.ndim), 1))


def _channels_first(y: Array) -> Array:
    return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))
