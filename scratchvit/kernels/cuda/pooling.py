"""Max pooling and average pooling: one launch forward, one backward.

    plain       tap by tap over strided slices (ops/pool.py)
    problem     an operation or more for each tap, and a padded copy
    idea        a thread goes through the taps of a window; on the way back, through the windows that have its entry, in
                the same order
    who

        x (planes, *S), planes = B·C        forward: thread i has place i of (planes, *S')
                                            backward: thread i has entry i of (planes, *S)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.modules import divide, launch
from scratchvit.kernels.cuda.windows import struct
from scratchvit.kernels.sliding import Windows

THREADS = 256                   # of a block
MOST_TAPS = 256                 # so that the number of a tap is a byte

TEXT = r"""
// --- pooling.py ---

// The maximum of each window, NaN if there is one; and unless winner is null, the last tap that exceeded all before it.
extern "C" __global__ void max_pool(const T* x, T* y, unsigned char* winner, Windows windows, size planes) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x, P = windows.places();
    if (i >= planes * P) return;
    Index place(i % P, windows.output);
    x += i / P * windows.entries();
    A largest = -INFINITY;
    int tap = 0, last = 0;
    for (int u = 0; u < windows.kernel[0]; u++)
        for (int v = 0; v < windows.kernel[1]; v++)
            for (int w = 0; w < windows.kernel[2]; w++, tap++) {
                size entry = windows.read(place, u, v, w);
                if (entry < 0) continue;
                A value = (A)x[entry];
                if (value > largest) last = tap;
                if (value > largest || isnan(value)) largest = value; // and nothing is larger than NaN
            }
    y[i] = largest;
    if (winner) winner[i] = last;
}

// dx: what came to the windows that an entry has won.
extern "C" __global__ void max_pool_backward(const T* dy, const unsigned char* winner, T* dx, Windows windows,
                                             size planes) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x, S = windows.entries();
    if (i >= planes * S) return;
    Index entry(i % S, windows.input);
    winner += i / S * windows.places();
    dy += i / S * windows.places();
    A sum = 0;
    int tap = 0;
    for (int u = 0; u < windows.kernel[0]; u++)
        for (int v = 0; v < windows.kernel[1]; v++)
            for (int w = 0; w < windows.kernel[2]; w++, tap++) {
                size place = windows.reader(entry, u, v, w);
                if (place >= 0 && winner[place] == tap) sum += (A)dy[place];
            }
    dx[i] = sum;
}

// The number of entries of a window that count, with those in the padding or without. What is beyond never counts.
__device__ size counted(const Windows& windows, const Index& place, size with_padding) {
    size count = 1;
    for (int axis = 0; axis < 3; axis++) {
        int padding = with_padding ? windows.before[axis] : 0;
        int begin = place.at[axis] * windows.stride[axis] - windows.before[axis], end = begin + windows.kernel[axis];
        count *= min(end, windows.input[axis] + padding) - max(begin, -padding);
    }
    return count;
}

// The mean of each window.
extern "C" __global__ void avg_pool(const T* x, T* y, Windows windows, size planes, size with_padding) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x, P = windows.places();
    if (i >= planes * P) return;
    Index place(i % P, windows.output);
    x += i / P * windows.entries();
    A sum = 0;
    for (int u = 0; u < windows.kernel[0]; u++)
        for (int v = 0; v < windows.kernel[1]; v++)
            for (int w = 0; w < windows.kernel[2]; w++) {
                size entry = windows.read(place, u, v, w);
                if (entry >= 0) sum += (A)x[entry];
            }
    y[i] = sum / counted(windows, place, with_padding);
}

// dx: the share of every window that has the entry.
extern "C" __global__ void avg_pool_backward(const T* dy, T* dx, Windows windows, size planes, size with_padding) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x, S = windows.entries();
    if (i >= planes * S) return;
    Index entry(i % S, windows.input);
    dy += i / S * windows.places();
    A sum = 0;
    for (int u = 0; u < windows.kernel[0]; u++)
        for (int v = 0; v < windows.kernel[1]; v++)
            for (int w = 0; w < windows.kernel[2]; w++) {
                size place = windows.reader(entry, u, v, w);
                if (place >= 0) sum += (A)dy[place] / (A)counted(windows, Index(place, windows.output), with_padding);
            }
    dx[i] = sum;
}
"""


def max_pool(x: Array, windows: Windows, recording: bool) -> tuple[Array, Callable[[Array], Array]]:
    """Value and backward of max pooling over the last axes of x (B, C, *S). recording: whether there will be one."""
    y = _empty(x, windows.output)
    winner = array_module(x).empty(y.shape, dtype=np.uint8) if recording else None
    _launch("max_pool", y, windows, x, y, winner)

    def backward(dy: Array) -> Array:
        dx = _empty(dy, windows.size)
        _launch("max_pool_backward", dx, windows, dy, winner, dx)
        return dx

    return y, backward


def avg_pool(x: Array, windows: Windows, count_include_pad: bool) -> tuple[Array, Callable[[Array], Array]]:
    """Value and backward of average pooling over the last axes of x (B, C, *S)."""
    y = _empty(x, windows.output)
    _launch("avg_pool", y, windows, x, y, with_padding=(int(count_include_pad),))

    def backward(dy: Array) -> Array:
        dx = _empty(dy, windows.size)
        _launch("avg_pool_backward", dx, windows, dy, dx, with_padding=(int(count_include_pad),))
        return dx

    return y, backward


def _empty(x: Array, size: tuple[int, ...]) -> Array:
    return array_module(x).empty((*x.shape[:2], *size), dtype=x.dtype)


def _launch(
    name: str, written: Array, windows: Windows, x: Array, *others: Array | None, with_padding: tuple[int, ...] = ()
) -> None:
    """A thread for each entry of the array that is written."""
    x = array_module(x).ascontiguousarray(x)
    blocks = (divide(written.size, THREADS),)
    launch(
        "windows", name, written, blocks, (THREADS,), x, *others, struct(windows), math.prod(x.shape[:2]), *with_padding
    )
