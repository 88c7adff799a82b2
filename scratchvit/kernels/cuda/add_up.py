"""The sum of several arrays in one launch, for tensors that several ops use.

    plain       x_0 + x_1 + x_2 + …
    problem     each addition is a launch, and reads and writes the sum so far
    idea        a thread adds up its entries of all arrays, in a register. Their addresses are arguments of the launch
    who

        x_0    x_0,0  x_0,1  …  x_0,i        thread i adds column i, from top to bottom: the bits are those of one
        x_1    x_1,0  x_1,1  …  x_1,i        addition after the other
        x_2    x_2,0  x_2,1  …  x_2,i
        out    Σ      Σ      …  Σ            out may be one of the arrays, as a thread reads before it writes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scratchvit.backend import Array, array_module
from scratchvit.kernels import cuda
from scratchvit.kernels.cuda.modules import divide, launch

MOST = 16                       # arrays of a launch
THREADS = 256                   # of a block

TEXT = r"""
// --- add_up.py ---

struct Addends {
    const T* of[16];
};

// out = x_0 + x_1 + …, of `count` arrays of N numbers.
extern "C" __global__ void add_up(Addends x, size count, T* out, size N) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x;
    if (i >= N) return;
    A sum = (A)x.of[0][i];
    for (size j = 1; j < count; j++) sum += (A)x.of[j][i];
    out[i] = sum;
}
"""

ADDENDS = np.dtype((np.void, 8 * MOST))             # the struct Addends, as NumPy sees it


def add_up(arrays: Sequence[Array], out: Array | None) -> Array | None:
    """The sum of 2 to 16 arrays of one shape and dtype, in `out`, which may be one of them, or in a new array.

    None if the kernel does not take them: it takes contiguous arrays of the types of this folder, and no blanks, which
    have no memory (costs/blanks.py).
    """
    first = arrays[0]
    if not cuda.takes(first) or not hasattr(first, "data"):
        return None
    if not all(x.flags.c_contiguous and x.dtype == first.dtype for x in arrays):
        return None
    out = array_module(first).empty(first.shape, dtype=first.dtype) if out is None else out
    addends = np.array([*(x.data.ptr for x in arrays), *(0,) * (MOST - len(arrays))], np.uint64).view(ADDENDS)
    launch("maps", "add_up", first, (divide(first.size, THREADS),), (THREADS,), addends, len(arrays), out, first.size)
    return out
