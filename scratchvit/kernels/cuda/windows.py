"""Sliding windows in CUDA: the Windows of kernels/sliding.py, over three spatial axes, the first of length 1 in 2-D.

A thread asks in one of two directions: where does a tap read at my place? Or, to collect gradients: at which place does
a tap read me? So every number is written by one thread, and nothing is scattered.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from scratchvit.kernels.sliding import Windows

FIELDS = ("size", "kernel", "stride", "dilation", "before", "output")
STRUCT = np.dtype([(name, np.int32, 3) for name in FIELDS])

TEXT = r"""
// --- windows.py ---

// The three indices of entry i of an array of this shape, in C order.
struct Index {
    int at[3];
    __device__ Index(size i, const int* shape) {
        at[2] = i % shape[2];
        at[1] = i / shape[2] % shape[1];
        at[0] = i / shape[2] / shape[1];
    }
};

struct Windows {
    int input[3], kernel[3], stride[3], dilation[3], before[3], output[3];

    __device__ size entries() const { return (size)input[0] * input[1] * input[2]; }
    __device__ size places() const { return (size)output[0] * output[1] * output[2]; }
    __device__ int taps() const { return kernel[0] * kernel[1] * kernel[2]; }

    // The entry that tap (u, v, w) reads at a place; -1 if that is padding.
    __device__ size read(const Index& place, int u, int v, int w) const {
        int i = reads(0, place, u), j = reads(1, place, v), k = reads(2, place, w);
        return i < 0 || j < 0 || k < 0 ? -1 : ((size)i * input[1] + j) * input[2] + k;
    }
    __device__ int reads(int axis, const Index& place, int tap) const {
        int i = place.at[axis] * stride[axis] + tap * dilation[axis] - before[axis];
        return i < input[axis] ? i : -1;
    }

    // The place at which tap (u, v, w) reads an entry; -1 if there is none.
    __device__ size reader(const Index& entry, int u, int v, int w) const {
        int i = read_at(0, entry, u), j = read_at(1, entry, v), k = read_at(2, entry, w);
        return i < 0 || j < 0 || k < 0 ? -1 : ((size)i * output[1] + j) * output[2] + k;
    }
    __device__ int read_at(int axis, const Index& entry, int tap) const {
        int distance = entry.at[axis] + before[axis] - tap * dilation[axis];
        return distance % stride[axis] == 0 && distance / stride[axis] < output[axis] ? distance / stride[axis] : -1;
    }
};
"""


@functools.lru_cache(maxsize=1024)
def struct(windows: Windows) -> Any:
    """The windows as an argument of a kernel."""
    neutral = {"size": 1, "kernel": 1, "stride": 1, "dilation": 1, "before": 0, "output": 1}
    fields = [getattr(windows, name) for name in FIELDS]
    axes = len(windows.size)
    padded = tuple((neutral[name],) * (3 - axes) + field for name, field in zip(FIELDS, fields))
    return np.array(padded, dtype=STRUCT)[()]
