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

struct Windows {
    int input[3], kernel[3], stride[3], dilation[3], before[3], output[3];

    __device__ size entries() const { return (size)input[0] * input[1] * input[2]; }
    __device__ size places() const { return (size)output[0] * output[1] * output[2]; }
    __device__ int taps() const { return kernel[0] * kernel[1] * kernel[2]; }

    // Where a tap reads at a place, along an axis; outside of 0 … input - 1 it is padding.
    __device__ int read(int axis, int place, int tap) const {
        return place * stride[axis] + tap * dilation[axis] - before[axis];
    }
    __device__ bool inside(int axis, int i) const { return i >= 0 && i < input[axis]; }

    // The place at which a tap reads entry i, along an axis; -1 if there is none.
    __device__ int place(int axis, int i, int tap) const {
        int distance = i + before[axis] - tap * dilation[axis];
        if (distance < 0 || distance % stride[axis] != 0) return -1;
        return distance / stride[axis] < output[axis] ? distance / stride[axis] : -1;
    }
};

// The three indices of entry i of an array of this shape, in C order.
struct Index {
    int at[3];
    __device__ Index(size i, const int* shape) {
        at[2] = i % shape[2];
        at[1] = i / shape[2] % shape[1];
        at[0] = i / shape[2] / shape[1];
    }
};
__device__ inline size flat(int i, int j, int k, const int* shape) { return ((size)i * shape[1] + j) * shape[2] + k; }
"""


@functools.lru_cache(maxsize=1024)
def struct(windows: Windows) -> Any:
    """The windows as an argument of a kernel."""
    neutral = {"size": 1, "kernel": 1, "stride": 1, "dilation": 1, "before": 0, "output": 1}
    fields = [getattr(windows, name) for name in FIELDS]
    axes = len(windows.size)
    padded = tuple((neutral[name],) * (3 - axes) + field for name, field in zip(FIELDS, fields))
    return np.array(padded, dtype=STRUCT)[()]
