"""Convolution by columns (im2col), a block of places at a time.

    plain       columns of all windows, y = weight × columns (ops/conv.py)
    problem     the columns take as many times the memory of the image as the kernel has taps
    idea        columns are made in blocks, so memory does not grow by the number of taps. Most of the copies are
                unnecessary, because each row of the kernel reads the same values as the row above it, one line further
                down. For a 3×3 kernel, only the three taps of one row are copied:

        columns (C·3, lines of the image · W')      output rows 0…3 of an image without padding, H' = 4
        line  0 1 2 3 4 5
              └─────┘          read by kernel row 0   y = weight[row 0] × columns[lines 0…3]
                └─────┘                       row 1     + weight[row 1] × columns[lines 1…4]
                  └─────┘                     row 2     + weight[row 2] × columns[lines 2…5]

Both gradients are matrix products with such columns or their transpose, so no scatter is needed. For a 1×1 kernel the
image itself is the columns.

cuda/columns.py has the kernels for a GPU; this code runs there for float16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.cuda.columns import COLUMN_BYTES_GPU
from scratchvit.kernels.patches import PLACES, by_image
from scratchvit.kernels.products import matmul
from scratchvit.kernels.sliding import Windows
from scratchvit.threads import PARALLEL_BYTES, deal

COLUMN_BYTES = 4 << 20          # columns that one thread makes at a time. Smaller ones would be nearer to the core, but
                                # NumPy calls of less than 50 µs make threads wait for Python's lock
DEPTH = 64                      # minimum length of the dot products: below it, adding up the kernel rows dominates
SUMS = 8                        # maximum number of partial sums of a weight's gradient, one per thread


def columns(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    pointwise = max(windows.kernel + windows.stride) == 1 and windows.padded == windows.size
    if pointwise and math.prod(windows.size) >= PLACES:
        return _pointwise(x, weight, bias, groups)
    xp = array_module(x)
    outputs = len(weight) // groups
    rows, depth = _filter_shape(weight.shape[1], windows)
    filters = weight.reshape(len(weight), weight.shape[1], -1).swapaxes(1, 2)           # (O, taps, C/G)
    filters = filters.reshape(groups, outputs, rows, depth)
    y = xp.empty((len(x), len(weight), *windows.output), dtype=x.dtype)

    def images(x: Array, y: Array) -> None:
        for some, ranges in _blocks(x, groups * depth, windows):
            for first, last in ranges:
                target = y[some, :, first:last].swapaxes(0, 1).swapaxes(1, 2)           # (O, rows, n, …)
                shape, total = (groups, outputs, *target.shape[1:]), None
                for columns, kernel_rows in _gather(x[some], windows, groups, first, last):
                    for kernel_row, places, lines in kernel_rows:
                        part = matmul(filters[:, :, kernel_row], _flat(columns[:, :, lines]))
                        part = part.reshape(groups, outputs, -1, *shape[3:])
                        if total is None and part.shape == shape:                       # no need to start from zeros
                            total = part
                        else:
                            total = xp.zeros(shape, dtype=x.dtype) if total is None else total
                            total[:, :, places] += part
                target[...] = 0 if total is None else total.reshape(target.shape)
                if bias is not None:
                    target += bias.reshape(-1, *(1 for _ in target.shape[1:]))

    by_image(images, math.prod(windows.output), weight, x, y)
    return y


def _pointwise(x: Array, weight: Array, bias: Array | None, groups: int) -> Array:
    """1×1 kernel: the columns are the image itself."""
    filters = weight.reshape(groups, len(weight) // groups, -1)                         # (G, O/G, C/G)
    y = array_module(x).empty((len(x), len(weight), *x.shape[2:]), dtype=x.dtype)
    places = math.prod(x.shape[2:])

    def images(x: Array, y: Array) -> None:
        columns = x.reshape(len(x), *filters.shape[::2], places)                        # (n, G, C/G, places)
        matmul(filters, columns, out=y.reshape(len(y), *filters.shape[:2], places))
        if bias is not None:
            y += bias.reshape(-1, *(1 for _ in y.shape[2:]))

    by_image(images, places, weight, x, y)
    return y


def columns_dx(dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """dX = weightᵀ dy; each tap's row of dX is added to the slice of dx that the tap read.

    With stride 1 this is a convolution of dy with the flipped kernel, input and output channels exchanged.
    """
    if max(windows.stride) == 1:
        flipped = weight[(..., *(slice(None, None, -1) for _ in windows.kernel))]
        flipped = flipped.reshape(groups, -1, *flipped.shape[1:]).swapaxes(1, 2)        # (G, C/G, O/G, *kernel)
        flipped = flipped.reshape(-1, *flipped.shape[2:])                               # (C, O/G, *kernel)
        return columns(dy, flipped, None, windows.backwards(), groups)

    xp = array_module(dy)
    channels = groups * weight.shape[1]
    filters = weight.reshape(groups, len(weight) // groups, -1).swapaxes(1, 2)          # (G, C/G·taps, O/G)
    dx = xp.empty((len(dy), channels, *windows.size), dtype=dy.dtype)

    def images(dy: Array, dx: Array) -> None:
        for some, ranges in _blocks(dx, channels * math.prod(windows.kernel), windows):
            padded = xp.zeros((channels, len(dx[some]), *windows.padded), dtype=dx.dtype)
            for first, last in ranges:
                block = dy[some, :, first:last].swapaxes(0, 1)                          # (O, n, rows, …)
                sent = matmul(filters, block.reshape(groups, len(weight) // groups, -1))    # (G, C/G·taps, n·places)
                sent = sent.reshape(channels, -1, *block.shape[1:])                     # (C, taps, n, rows, …)
                for tap, window in enumerate(windows.taps(first, last)):
                    padded[window] += sent[:, tap]
            dx[some] = padded[(..., *windows.inside)].swapaxes(0, 1)

    by_image(images, math.prod(windows.output), weight, dy, dx)
    return dx


def columns_dw(dy: Array, x: Array, windows: Windows, groups: int) -> Array:
    """Σ_b dy Xᵀ.

    The batch is divided into parts, which threads sum separately: a power of two, for as many threads. The parts depend
    on the shapes and not on the number of threads, so the result is reproducible. Together the partial sums are smaller
    than x.
    """
    xp = array_module(x)
    outputs, channels = dy.shape[1] // groups, x.shape[1] // groups
    rows, depth = _filter_shape(channels, windows)
    parts = 1
    if backend_of(x) is CPU and x.nbytes >= PARALLEL_BYTES:
        most = max(1, min(SUMS, len(x), x.size // (2 * groups * outputs * rows * depth)))
        parts = 1 << most.bit_length() - 1
    sums = xp.zeros((parts, groups, outputs, rows, depth), dtype=x.dtype)

    def images(dy: Array, x: Array, sums: Array) -> None:
        for some, ranges in _blocks(x, groups * depth, windows, larger=4):
            for first, last in ranges:
                block = dy[some, :, first:last].swapaxes(0, 1).swapaxes(1, 2)           # (O, rows, n, …)
                block = block.reshape(groups, outputs, *block.shape[1:])
                for columns, kernel_rows in _gather(x[some], windows, groups, first, last):
                    for kernel_row, places, lines in kernel_rows:
                        sums[:, :, kernel_row] += _product(_flat(block[:, :, places]), _flat(columns[:, :, lines]))

    starts = [len(x) * part // parts for part in range(parts + 1)]
    if parts == 1:      # large weights, small images: the products are distributed to threads instead
        images(dy, x, sums[0])
    else:
        deal(images, [(dy[i:j], x[i:j], own) for i, j, own in zip(starts, starts[1:], sums)])
    total = sums[0] if parts == 1 else sums.sum(axis=0)
    return total.reshape(groups * outputs, -1, channels).swapaxes(1, 2)                 # (O, C/G, taps)


def _product(dy: Array, columns: Array) -> Array:
    """dy Xᵀ (G, O/G, depth). BLAS packs its right operand, which should be the smaller one: dy if it has few rows."""
    if dy.shape[1] <= 128:
        return matmul(columns, dy.swapaxes(1, 2)).swapaxes(1, 2)
    return matmul(dy, columns.swapaxes(1, 2))


def _filter_shape(channels: int, windows: Windows) -> tuple[int, int]:
    """How a filter is split: (number of kernel rows, or 1 if they are used together; number of weights in each)."""
    rows, depth = windows.kernel[0], channels * math.prod(windows.kernel[1:])
    return (rows, depth) if depth >= DEPTH else (1, rows * depth)


def bytes_of_columns(channels: int, output: tuple[int, ...], itemsize: int, windows: Windows) -> int:
    """What one thread needs at a time for an image of so many channels: its columns, and their product with the
    filters; output: the shape (B, O, *S') of the value."""
    _, depth = _filter_shape(channels, windows)
    places = math.prod(output[2:])
    return min(COLUMN_BYTES, depth * places * itemsize) + output[1] * places * itemsize


def _gather(
    x: Array, windows: Windows, groups: int, first: int, last: int
) -> Iterator[tuple[Array, list[tuple[int, slice, slice]]]]:
    """The columns (G, depth, lines, n, *S'[1:]) for output rows first…last of some images x (n, C, *S).

    Yields them with a list that has an entry for each kernel row that reads more than padding: its number, the output
    rows (from `first`) where it does, and the lines of the columns that it reads there. With a stride, kernel rows
    share lines only if they have the same phase, so there are separate columns for each phase. If filters are not split
    into rows, the columns of all kernel rows are stacked.
    """
    xp = array_module(x)
    rows, depth = _filter_shape(x.shape[1] // groups, windows)
    shared = _gather_shared(x, windows, groups, first, last)
    if rows == windows.kernel[0]:
        yield from shared
        return
    rows, places = windows.kernel[0], (last - first, len(x), *windows.output[1:])
    inside = all(windows.reads(0, row, first, last)[0] == slice(first, last) for row in range(rows))
    stack = (xp.empty if inside else xp.zeros)((groups, rows, depth // rows, *places), dtype=x.dtype)
    for columns, kernel_rows in shared:
        for kernel_row, output_rows, lines in kernel_rows:
            stack[:, kernel_row, :, output_rows] = columns[:, :, lines]
    yield stack.reshape(groups, depth, *places), [(0, slice(None), slice(None))]


def _gather_shared(x: Array, windows: Windows, groups: int, first: int, last: int):
    stride = windows.stride[0]
    phases: dict[int, list[tuple[int, slice, slice]]] = {}
    for kernel_row in range(windows.kernel[0]):
        places, read = windows.reads(0, kernel_row, first, last)
        if places.start < places.stop:
            phases.setdefault(read.start % stride, []).append((kernel_row, places, read))
    for kernel_rows in phases.values():
        top, bottom = min(read.start for *_, read in kernel_rows), max(read.stop for *_, read in kernel_rows)
        columns, runs = _tap_by_tap(x[:, :, top:bottom:stride], windows, groups), []
        for kernel_row, places, read in kernel_rows:
            line = (read.start - top) // stride
            lines = slice(line, line + places.stop - places.start)
            runs.append((kernel_row, slice(places.start - first, places.stop - first), lines))
        yield columns, runs


def _tap_by_tap(x: Array, windows: Windows, groups: int) -> Array:
    """The columns of one kernel row for lines of x (n, C, lines, *S[1:]): (G, taps·C/G, lines, n, *S'[1:])."""
    taps = windows.taps_of_a_row
    channels = x.shape[1] // groups
    x = x.swapaxes(0, 1).swapaxes(1, 2)                                                 # (C, lines, n, *S[1:])
    x = x.reshape(groups, channels, *x.shape[1:])
    if x.shape[3:] == (len(taps), *windows.output[1:]) == (1, *windows.padded[1:]):     # 1×1: the image is its columns
        return x
    columns = array_module(x).empty((groups, len(taps), *x.shape[1:4], *windows.output[1:]), dtype=x.dtype)
    for tap, (places, read, beside) in enumerate(taps):
        target = columns[:, tap]
        for padding in beside:
            target[padding] = 0
        target[places] = x[read]
    return columns.reshape(groups, len(taps) * channels, *columns.shape[3:])


def _flat(columns: Array) -> Array:
    """(G, depth, lines, n, …) → (G, depth, places)."""
    return columns.reshape(*columns.shape[:2], math.prod(columns.shape[2:]))


def _blocks(x: Array, height: int, windows: Windows, larger: int = 1) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Divide the work so that the columns, `height` values per place, have COLUMN_BYTES.

    Yields pairs (slice of the images of x, ranges of output rows).
    """
    limit = COLUMN_BYTES if backend_of(x) is CPU else COLUMN_BYTES_GPU
    limit = max(larger * limit, height * PLACES * x.dtype.itemsize)
    rows = windows.output[0]
    row = height * math.prod(windows.output[1:]) * x.dtype.itemsize
    images = max(1, limit // max(1, row * rows))
    step = max(1, limit // max(1, row * min(images, len(x))))
    step = math.ceil(rows / math.ceil(rows / step))                                     # of equal size
    ranges = [(first, min(first + step, rows)) for first in range(0, rows, step)]
    for start in range(0, len(x), images):
        yield slice(start, start + images), ranges
