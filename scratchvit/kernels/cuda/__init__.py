"""The fast forms on a GPU: kernels in CUDA C++, a file per idea, compiled by CuPy when they are first used.

A kernel is a function that thousands of threads run at the same time, each with its own number. Threads come in warps
of 32, which run in step and can read each other's registers; warps form a block, which has a piece of fast shared
memory and can wait at a barrier; the blocks form the grid, run in any order, and know nothing of each other. So a
kernel is mostly a plan: which numbers are whose. Each file has

    plain       the expression it computes, as in ops/ and in the NumPy kernels
    problem     what is slow about computing it operation by operation
    idea        what the kernel does instead
    who         a drawing of which threads compute what

then the CUDA text, and the Python functions that launch its kernels. In all texts

    T           the type of which arrays are stored: float, double, __half (float16), __nv_bfloat16
    A           the type of everything that is computed: double for double, otherwise float; see modules.py
    N, D        rows and columns, `long long`

Numbers become A when they are read, and are rounded to T when they are written; no expression is of type T. Statistics,
weights and biases of norms, and gradients of parameters are arrays of type A, so of float32 where x is of 16 bits.

Three rules hold everywhere. No kernel uses an atomic operation, and how work is divided depends on shapes only, so that
the same device gives the same bits in every run. A long sum is one of at most 64 numbers per thread, then a sum of such
sums in order, in float64. And no kernel reads memory that nobody has written, which tests/fakegpu fills with NaN.

Kernels take contiguous arrays of these four types (`takes`). The norm of gradients and the steps of optimisers
(updates.py, total_norm.py) are computed in float32 or float64, from such arrays alone. Everything else uses CuPy's own
functions, by the code that the CPU uses.
"""

from __future__ import annotations

from scratchvit.backend import Array, backend_of
from scratchvit.plain import is_plain


def takes(x: Array) -> bool:
    """Whether the kernels of this folder compute on x: a CuPy array of one of the four types, and no plain forms."""
    return backend_of(x).has_cuda and x.dtype.char in "fdeE" and not is_plain()
