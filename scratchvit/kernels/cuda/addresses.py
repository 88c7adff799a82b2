"""The addresses of all matrices of a stack, for products of stacks whose matrices have no single stride.

    plain       [array[b, h].data.ptr for b in range(B) for h in range(H)]
    problem     q (B, H, N, d), a view of qkv (B, N, 3, H, d), has two strides in its stack: from image to image, and
                from head to head. cuBLAS takes one stride, or a table of addresses in the memory of the device
    idea        a table for all arrays that take part in several products, such as attention's, is written by one launch
    who

        table (arrays, B·H)

        q       q_00  q_01  …  q_bh  …        thread i of row r writes the address of matrix i of array r, the one
        k       k_00  k_01  …  k_bh  …        with b = i / H and h = i % H:
        scores  s_00  s_01  …  s_bh  …            q_bh = q + b · (bytes to the next image) + h · (to the next head)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scratchvit.backend import Array
from scratchvit.kernels.cuda.blas_plan import joined
from scratchvit.kernels.cuda.modules import divide, kernel

MOST_ARRAYS = 12
ADDRESS_BYTES = 8
THREADS = 128                   # of a block

TEXT = r"""
// --- addresses.py ---

struct Stack { // steps are bytes to the next matrix, along the outer and the inner axis
    size address, outer_step, inner_step;
};
struct Stacks {
    Stack of[12];
};

// The addresses of the matrices of the arrays: table (arrays, count). Matrix i has the numbers i / inner and i % inner
// along its two axes.
extern "C" __global__ void write_addresses(size* table, size count, size inner, Stacks stacks) {
    size i = blockIdx.x * (size)blockDim.x + threadIdx.x;
    if (i >= count) return;
    Stack stack = stacks.of[blockIdx.y];
    table[blockIdx.y * count + i] = stack.address + i / inner * stack.outer_step + i % inner * stack.inner_step;
}
"""

# The struct Stacks, as NumPy sees it.
STACKS = np.dtype([("of", np.int64, (MOST_ARRAYS, 3))])


class Addresses(NamedTuple):
    """A table of addresses on the device."""

    table: Array | None
    lengths: tuple[int, ...]                # of the outer and the inner axis
    rows: dict[tuple[int, ...], int]        # {(address, outer step, inner step) of a stack: the address of its row}

    def have(self, lengths: tuple[int, ...], stacks: Sequence[tuple[int, ...]]) -> bool:
        """Whether all of these stacks (address, outer step, inner step) are in the table."""
        return lengths == self.lengths and all(stack in self.rows for stack in stacks)


NO_ADDRESSES = Addresses(None, (), {})


def addresses_of(*arrays: Array) -> Addresses:
    """The table of up to 12 arrays with the same leading axes, to pass to `blas.matmul`.

    It is empty, and nothing is launched, if all of them are stacks with one stride.
    """
    leading = arrays[0].shape[:-2]
    axes = joined([
        (length, *(array.strides[axis] for array in arrays)) for axis, length in enumerate(leading) if length > 1
    ])
    if len(axes) != 2:                                  # one stride, or more than two
        return NO_ADDRESSES
    stacks = [(array.data.ptr, *steps) for array, *steps in zip(arrays, axes[0][1:], axes[1][1:])]
    return write_addresses((axes[0][0], axes[1][0]), stacks)


def write_addresses(lengths: tuple[int, ...], stacks: Sequence[tuple[int, ...]]) -> Addresses:
    """The table for stacks (address, outer step, inner step) with axes of these lengths; steps are in bytes."""
    import cupy

    count, by_value = lengths[0] * lengths[1], np.zeros(1, STACKS)
    by_value["of"][0, : len(stacks)] = stacks
    table = cupy.empty((len(stacks), count), dtype=np.int64)
    blocks = divide(count, THREADS), len(stacks)
    kernel("addresses", "write_addresses", "f")(blocks, (THREADS,), (table, count, lengths[1], by_value))
    rows = {stack: table.data.ptr + ADDRESS_BYTES * count * row for row, stack in enumerate(stacks)}
    return Addresses(table, lengths, rows)
