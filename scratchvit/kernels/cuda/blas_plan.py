"""How a product of arrays with strides is described to cuBLAS; computed once for each combination of shapes.

cuBLAS counts along columns: it reads the memory of a row-major (n, k) as the column-major (k, n), its transpose. So it
is asked for outᵀ = yᵀ xᵀ, of which it reads and writes all three where they are:

    x (n, k)    ┌ 0 1 2 ┐       in memory 0 1 2 3 4 5, with a leading dimension    as cuBLAS      ┌ 0 3 ┐
                └ 3 4 5 ┘       of 3: the entries from one row to the next         reads it       │ 1 4 │
                                                                                                  └ 2 5 ┘

That is C = A B with A = y, B = x and C = out. A matrix with contiguous columns, such as w.T, is read as what it is, so
A or B gets the operation T. If the columns of `out` are contiguous, it is C = A B with A = x, B = y and C = out.

The leading axes are a stack of matrices. cuBLAS computes a stack with one stride in one call, so axes are joined where
their strides allow it, such as images and heads of contiguous arrays (B, H, N, M). And all rows of x that are
multiplied by the same y, as in (B, N, k) @ (k, m), are the rows of one product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from scratchvit.kernels.cuda.cublas import IN_FLOAT32, IN_FLOAT64, IN_TF32, REAL_TYPES

ITEM_BYTES = {"f": 4, "d": 8, "e": 2, "E": 2}           # of a dtype.char
LARGEST = 2**31 - 1             # size of a matrix, and leading dimension: int in the C interface

Shape: TypeAlias = tuple[int, ...]
Stack: TypeAlias = tuple[tuple[int, ...], ...]    # for each axis its length, and entries to the next A, B and C


class Matrices(NamedTuple):
    """A stack of matrices in memory; strides are counted in entries."""

    rows: int
    columns: int
    row: int                    # from one row to the next
    column: int                 # from one column to the next
    stack: tuple[int, ...]      # from one matrix to the next, along each axis of the stack; 0: the same matrix again

    def transposed(self) -> Matrices:
        return Matrices(self.columns, self.rows, self.column, self.row, self.stack)

    def reading(self) -> tuple[int, int] | None:
        """(0, leading dimension) if rows are contiguous, (1, leading dimension) if columns are, None if neither."""
        for transposed, m in enumerate((self, self.transposed())):
            if (m.column == 1 or m.columns == 1) and (m.rows == 1 or m.row >= m.columns):
                return transposed, m.columns if m.rows == 1 else m.row
        return None


@dataclass(frozen=True, eq=False)
class Plan:
    """How cuBLAS computes the products of arrays of some shapes, strides and dtypes."""

    shape: tuple[int, ...]                      # of the result
    copies: tuple[str, ...] = ()                # "x", "y", "out": what cuBLAS cannot read or write where it is
    is_swapped: bool = False                    # A is x and B is y
    operations: tuple[int, ...] = ()            # transposed A, transposed B, m, n, k
    a: tuple[int, int] = (0, 0)                 # type and leading dimension
    b: tuple[int, int] = (0, 0)
    c: tuple[int, int] = (0, 0)
    stack: Stack = ()
    item_bytes: tuple[int, ...] = ()            # of A, B, C
    compute: int = IN_FLOAT32
    needs_aligned: bool = False                 # whether cuBLAS's fast kernels need aligned addresses in a table


@functools.lru_cache(maxsize=8192)
def plan(
    x_shape: Shape, x_strides: Shape, y_shape: Shape, y_strides: Shape, out: tuple[Shape, Shape] | None, char: str,
    out_char: str, tf32: bool,
) -> Plan:
    """The plan for x and y of dtype.char `char`, and for `out`, its shape and strides, or None: a new array.

    Strides are in bytes, as those of arrays. Raises ValueError if the shapes do not fit together.
    """
    if x_shape[-1] != y_shape[-2]:
        raise ValueError(f"matmul: {x_shape} @ {y_shape} do not fit together")
    leading = np.broadcast_shapes(x_shape[:-2], y_shape[:-2])
    shape = (*leading, x_shape[-2], y_shape[-1])
    out_shape, out_strides = out or (shape, _contiguous(shape, ITEM_BYTES[out_char]))
    if out_shape != shape:
        raise ValueError(f"matmul: {x_shape} @ {y_shape} is {shape}, out is {out_shape}")
    if 0 in shape or x_shape[-1] == 0:
        return Plan(shape)
    bytes_of, out_bytes = ITEM_BYTES[char], ITEM_BYTES.get(out_char, 0)
    of_x = _matrices(x_shape, x_strides, leading, bytes_of)
    of_y = _matrices(y_shape, y_strides, leading, bytes_of)
    of_out = _matrices(shape, out_strides, leading, out_bytes) if out_char in _STORED_AS[char] else None
    if of_out and any(step == 0 and length > 1 for step, length in zip(of_out.stack, leading)):
        of_out = None                                   # one memory for several results
    if of_x is None or of_y is None or of_out is None:
        found = {"x": of_x, "y": of_y, "out": of_out}
        return Plan(shape, tuple(name for name, matrices in found.items() if matrices is None))

    is_swapped = _reading(of_out)[0] == 1
    if is_swapped:                                      # outᵀ = yᵀ xᵀ
        of_x, of_y, of_out = of_y.transposed(), of_x.transposed(), of_out.transposed()
    every_axis: list[Shape] = sorted(zip(leading, of_y.stack, of_x.stack, of_out.stack), key=lambda axis: -axis[3])
    of_x, of_out, axes = _more_rows(of_x, of_out, [axis for axis in every_axis if axis[0] > 1])
    (transposed_a, ld_a), (transposed_b, ld_b), (_, ld_c) = map(_reading, (of_y, of_x, of_out))
    m, n, k = of_out.columns, of_out.rows, of_x.columns             # in cuBLAS's terms
    if max(m, n, k, ld_a, ld_b, ld_c) > LARGEST:
        raise ValueError(f"matmul: {x_shape} @ {y_shape} is larger than cuBLAS can compute: {LARGEST} rows or columns")
    is_tf32 = tf32 and char == "f"
    return Plan(
        shape, (), is_swapped,
        (transposed_a, transposed_b, m, n, k),
        (REAL_TYPES[char], ld_a), (REAL_TYPES[char], ld_b), (REAL_TYPES[out_char], ld_c),
        joined(axes), (bytes_of, bytes_of, out_bytes),
        IN_TF32 if is_tf32 else IN_FLOAT64 if char == "d" else IN_FLOAT32, is_tf32 or char in "eE",
    )


_STORED_AS = {"f": "f", "d": "d", "e": "ef", "E": "Ef"}         # {dtype.char: those of a result}


def _contiguous(shape: Shape, item: int) -> Shape:
    """The strides of a contiguous array, in bytes."""
    return tuple(item * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _matrices(shape: Shape, strides: Shape, leading: Shape, item: int) -> Matrices | None:
    """An array, broadcast to the leading axes; None if cuBLAS cannot read it where it is."""
    if any(stride % item for stride in strides):
        return None
    *steps, row, column = (stride // item for stride in strides)
    steps = [0 if length == 1 else step for length, step in zip(shape, steps)]
    stack = (*(0,) * (len(leading) - len(steps)), *steps)
    matrices = Matrices(shape[-2], shape[-1], row, column, stack)
    return None if min(stack, default=0) < 0 or matrices.reading() is None else matrices


def _reading(matrices: Matrices) -> tuple[int, int]:
    """`reading` of matrices that cuBLAS can read."""
    reading = matrices.reading()
    assert reading is not None
    return reading


def _more_rows(x: Matrices, out: Matrices, axes: list[Shape]) -> tuple[Matrices, Matrices, list[Shape]]:
    """x, out and the axes of the stack, after inner axes have become rows: those along which y is the same."""
    while axes and axes[-1][1] == 0:
        length, _, step, out_step = axes[-1]
        longer = [
            matrices._replace(rows=matrices.rows * length, row=by if matrices.rows == 1 else matrices.row)
            for matrices, by in ((x, step), (out, out_step))
        ]
        follow = all(m.rows == 1 or by == m.rows * m.row for m, by in ((x, step), (out, out_step)))
        if not follow or longer[0].reading() is None or longer[1].reading() != (0, longer[1].row):
            break
        (x, out), axes = longer, axes[:-1]
    return x, out, axes


def joined(axes: Sequence[Shape]) -> Stack:
    """Axes of stacks, from the outermost to the innermost, with neighbours made one where all steps allow it.

    An axis is its length and the steps from one matrix to the next of each stack.
    """
    fewer: list[Shape] = []
    for length, *steps in axes:
        if fewer and all(outer == length * step for outer, step in zip(fewer[-1][1:], steps)):
            fewer[-1] = (fewer[-1][0] * length, *steps)
        else:
            fewer.append((length, *steps))
    return tuple(fewer)
