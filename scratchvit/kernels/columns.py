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

                The filters of all kernel rows, one below the other, are multiplied with all lines in one product, since
                BLAS is slow with few rows; what a kernel row does not read is left out afterwards. With stride 1, the
                second and third tap are the first, shifted in memory: one long copy instead of one for each line.

Both gradients are matrix products with such columns or their transpose, so no scatter is needed. For a 1×1 kernel the
image itself is the columns.

cuda/columns.py has the kernels for a GPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from scratchvit.backend import CPU, Array, array_module, backend_of
from scratchvit.kernels.cuda.columns import COLUMN_BYTES_GPU
from scratchvit.kernels.patches import PLACES, by_image, images_of_a_block
from scratchvit.kernels.products import matmul
from scratchvit.kernels.sliding import Windows
from scratchvit.threads import PARALLEL_BYTES, cpu_threads, deal

COLUMN_BYTES = 8 << 20          # columns and products that one thread makes at a time. Smaller ones would be nearer
                                # to the core, but NumPy calls of less than 50 µs make threads wait for Python's lock
DEPTH = 64                      # minimum length of the dot products: below it, adding up the kernel rows dominates
UNUSED = 0.15                   # share of a product that may be of no use if that makes one product of several
SUMS = 8                        # maximum number of partial sums of a weight's gradient, one per thread


def columns(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    pointwise = max(windows.kernel + windows.stride) == 1 and windows.padded == windows.size
    if pointwise and math.prod(windows.size) >= PLACES:
        return _pointwise(x, weight, bias, groups)
    return _convolve(x, _filters(weight, windows, groups), bias, windows)


def _convolve(x: Array, filters: Array, bias: Array | None, windows: Windows) -> Array:
    """The value (B, O, *S') for filters (G, rows, O/G, depth); see `_filters`."""
    xp = array_module(x)
    groups, rows, outputs, depth = filters.shape
    y = xp.empty((len(x), groups * outputs, *windows.output), dtype=x.dtype)

    def images(x: Array, y: Array) -> None:
        for some, ranges in _blocks(x, groups * (depth + rows * outputs), windows):
            for first, last in ranges:
                target, total = _split(y[some, :, first:last], groups), None            # (G, O/G, n, rows, …)
                for columns, kernel_rows, reads in _gather(x[some], windows, groups, first, last):
                    stack = filters[:, kernel_rows].reshape(groups, len(reads) * outputs, depth)
                    product = matmul(stack, _flat(columns))
                    product = product.reshape(groups, len(reads), outputs, *columns.shape[2:])
                    for number, places, lines in reads:
                        part = product[:, number, :, :, lines]
                        if total is None and part.shape == target.shape:                # no need to start from zeros
                            total = part
                        else:
                            total = xp.zeros(target.shape, dtype=x.dtype) if total is None else total
                            total[:, :, :, places] += part
                target[...] = 0 if total is None else total
                if bias is not None:
                    target += bias.reshape(groups, outputs, *(1 for _ in target.shape[2:]))

    by_image(images, math.prod(windows.output), filters, x, y)
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
        windows = windows.backwards()
        return _convolve(dy, _flipped_filters(weight, windows, groups), None, windows)

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
    rows, taps = _filter_shape(channels, windows)
    depth, parts = taps * channels, 1
    if backend_of(x) is CPU and x.nbytes >= PARALLEL_BYTES:
        most = max(1, min(SUMS, len(x), x.size // (2 * groups * outputs * rows * depth)))
        parts = 1 << most.bit_length() - 1

    def images(dy: Array, x: Array) -> dict[int, Array]:
        sums: dict[int, Array] = {}                                                     # per kernel row (G, O/G, depth)
        for some, ranges in _blocks(x, groups * (depth + rows * outputs), windows, larger=2 if parts == 1 else 1):
            for first, last in ranges:
                block = _split(dy[some, :, first:last], groups)                         # (G, O/G, n, rows, …)
                for columns, kernel_rows, reads in _gather(x[some], windows, groups, first, last):
                    product = _product(_stack(block, reads, columns.shape[3]), _flat(columns))
                    product = product.reshape(groups, len(reads), outputs, depth)
                    for number in range(len(reads)):
                        _add(sums, kernel_rows.start + number, product[:, number])
        return sums

    starts = [len(x) * part // parts for part in range(parts + 1)]
    if parts == 1:      # large weights, small images: the products are distributed to threads instead
        total = images(dy, x)
    else:
        total, *others = deal(images, [(dy[i:j], x[i:j]) for i, j in itertools.pairwise(starts)])
        for other in others:
            for number, product in other.items():
                _add(total, number, product)
    dweight = xp.zeros((groups, outputs, channels, rows, taps), dtype=x.dtype)
    for number, row in enumerate(_order(rows, windows)):
        if number in total:
            product = total[number].reshape(groups, outputs, taps, channels)
            for tap in range(taps):                                     # faster than to copy all with one call
                dweight[:, :, :, row, tap] = product[:, :, tap]
    return dweight


def _add(sums: dict[int, Array], number: int, product: Array) -> None:
    """Add to a sum, or begin it with an array that nothing else needs."""
    if number in sums:
        sums[number] += product
    else:
        sums[number] = product


def _stack(dy: Array, reads: list[_Read], lines: int) -> Array:
    """dy (G, O/G, n, rows, …) as each kernel row meets it at the lines of the columns: (G, kernel rows · O/G, places).

    It is 0 where a kernel row does not read a line.
    """
    if len(reads) == 1:
        return _flat(dy[:, :, :, reads[0].places])
    groups, outputs = dy.shape[:2]
    stack = array_module(dy).empty((groups, len(reads), outputs, dy.shape[2], lines, *dy.shape[4:]), dtype=dy.dtype)
    for number, places, read in reads:
        stack[:, number, :, :, : read.start] = 0
        stack[:, number, :, :, read] = dy[:, :, :, places]
        stack[:, number, :, :, read.stop :] = 0
    return stack.reshape(groups, len(reads) * outputs, math.prod(stack.shape[3:]))


def _product(dy: Array, columns: Array) -> Array:
    """dy Xᵀ (G, O/G, depth). BLAS packs its right operand, which should be the smaller one: dy if it has few rows."""
    if dy.shape[1] <= 128:
        return matmul(columns, dy.swapaxes(1, 2)).swapaxes(1, 2)
    return matmul(dy, columns.swapaxes(1, 2))


def _filter_shape(channels: int, windows: Windows) -> tuple[int, int]:
    """How a filter is split: (number of kernel rows, or 1 if they are used together; number of taps in each)."""
    rows, taps = windows.kernel[0], math.prod(windows.kernel[1:])
    return (rows, taps) if channels * taps >= DEPTH else (1, rows * taps)


def _order(rows: int, windows: Windows) -> list[int]:
    """The order of the kernel rows in the filters: those that share lines follow one another. See `_gather_shared`."""
    return sorted(range(rows), key=lambda row: windows.phase(row))


def _filters(weight: Array, windows: Windows, groups: int) -> Array:
    """The weight (O, C/G, *kernel) as filters (G, rows, O/G, depth), depth = taps · C/G."""
    rows, taps = _filter_shape(weight.shape[1], windows)
    weight = weight.reshape(groups, len(weight) // groups, weight.shape[1], rows, taps)
    filters = array_module(weight).empty((groups, rows, weight.shape[1], taps, weight.shape[2]), dtype=weight.dtype)
    for number, row in enumerate(_order(rows, windows)):
        filters[:, number] = weight[:, :, :, row].swapaxes(2, 3)
    return filters.reshape(*filters.shape[:3], taps * weight.shape[2])


def _flipped_filters(weight: Array, windows: Windows, groups: int) -> Array:
    """The filters of dx: taps in reverse order, input and output channels exchanged: (G, rows, C/G, taps · O/G).

    In memory the input channels remain last, which is faster to copy. BLAS reads transposed factors as fast.
    """
    outputs, channels = len(weight) // groups, weight.shape[1]
    rows, taps = _filter_shape(outputs, windows)
    weight = weight.reshape(groups, outputs, channels, rows * taps)[..., ::-1]
    weight = weight.reshape(groups, outputs, channels, rows, taps)
    filters = array_module(weight).empty((groups, taps, outputs, rows, channels), dtype=weight.dtype)
    for number, row in enumerate(_order(rows, windows)):
        filters[:, :, :, number] = weight[:, :, :, row].transpose(0, 3, 1, 2)
    return filters.reshape(groups, taps * outputs, rows, channels).transpose(0, 2, 3, 1)


def bytes_of_columns(x: Array, y: Array, windows: Windows) -> int:
    """What all threads need at a time to convolve x (B, C, *S) to y (B, O, *S'): columns, and their products with the
    filters."""
    rows, taps = _filter_shape(x.shape[1], windows)
    places = math.prod(y.shape[2:])
    images = images_of_a_block(len(x), places, max(x.nbytes, y.nbytes))
    threads = min(cpu_threads(), math.ceil(len(x) / images))
    image = (x.shape[1] * taps + rows * y.shape[1]) * places * x.itemsize
    return min(threads * COLUMN_BYTES, min(threads * images, len(x)) * image)


class _Read(NamedTuple):
    """What a kernel row reads of the columns that it is multiplied with."""

    number: int             # of the kernel row in the product
    places: slice           # output rows, counted from the first of the block
    lines: slice            # the lines that are read there


def _gather(
    x: Array, windows: Windows, groups: int, first: int, last: int
) -> Iterator[tuple[Array, slice, list[_Read]]]:
    """What output rows first…last of some images x (n, C, *S) are made of: the factors of some products.

    Yields columns (G, depth, n, lines, *S'[1:]), the rows of the filters that they are multiplied with, and what each
    of these reads, the longest first. With a stride, kernel rows share lines only if they have the same phase, so there
    are separate columns for each phase. If filters are not split into rows, the columns of all kernel rows are stacked.
    """
    xp = array_module(x)
    rows, taps = _filter_shape(x.shape[1] // groups, windows)
    shared = _gather_shared(x, windows, groups, first, last)
    if rows == windows.kernel[0]:
        order = _order(rows, windows)
        for columns, runs in shared:
            yield from _products(columns, [(order.index(row), *run) for row, *run in runs])
        return
    rows, places = windows.kernel[0], (len(x), last - first, *windows.output[1:])
    inside = all(windows.reads(0, row, first, last)[0] == slice(first, last) for row in range(rows))
    depth = taps // rows * (x.shape[1] // groups)
    stack = (xp.empty if inside else xp.zeros)((groups, rows, depth, *places), dtype=x.dtype)
    for columns, runs in shared:
        for kernel_row, output_rows, lines in runs:
            stack[:, kernel_row, :, :, output_rows] = columns[:, :, :, lines]
    every = slice(0, last - first)
    yield stack.reshape(groups, rows * depth, *places), slice(0, 1), [_Read(0, every, every)]


def _products(columns: Array, runs: list[tuple[int, slice, slice]]) -> Iterator[tuple[Array, slice, list[_Read]]]:
    """What `_gather` yields of the columns that some kernel rows share: (number in the filters, output rows, lines).

    One product of all filters and all lines is faster than several, unless too many of its values are of no use.
    """
    runs = sorted(runs, key=lambda run: run[1].start - run[1].stop)
    low, high = min(number for number, *_ in runs), max(number for number, *_ in runs) + 1
    used = sum(lines.stop - lines.start for *_, lines in runs)
    if high - low == len(runs) and len(runs) * columns.shape[3] <= (1 + UNUSED) * used:
        yield columns, slice(low, high), [_Read(number - low, *run) for number, *run in runs]
        return
    for number, places, lines in runs:
        every = slice(0, lines.stop - lines.start)
        yield columns[:, :, :, lines], slice(number, number + 1), [_Read(0, places, every)]


def _gather_shared(x: Array, windows: Windows, groups: int, first: int, last: int):
    stride = windows.stride[0]
    phases: dict[int, list[tuple[int, slice, slice]]] = {}
    for kernel_row in range(windows.kernel[0]):
        places, read = windows.reads(0, kernel_row, first, last)
        if places.start < places.stop:
            phases.setdefault(windows.phase(kernel_row), []).append((kernel_row, places, read))
    for kernel_rows in phases.values():
        top, bottom = min(read.start for *_, read in kernel_rows), max(read.stop for *_, read in kernel_rows)
        columns, runs = _tap_by_tap(x[:, :, top:bottom:stride], windows, groups), []
        for kernel_row, places, read in kernel_rows:
            line = (read.start - top) // stride
            lines = slice(line, line + places.stop - places.start)
            runs.append((kernel_row, slice(places.start - first, places.stop - first), lines))
        yield columns, runs


def _tap_by_tap(x: Array, windows: Windows, groups: int) -> Array:
    """The columns of one kernel row for lines of x (n, C, lines, *S[1:]): (G, taps·C/G, n, lines, *S'[1:])."""
    taps, shifts = windows.taps_of_a_row, windows.shifts_of_a_row
    x = _split(x, groups)                                                               # (G, C/G, n, lines, *S[1:])
    if x.shape[4:] == windows.output[1:] == windows.padded[1:] and len(taps) == 1:      # 1×1: the image is its columns
        return x
    columns = array_module(x).empty((groups, len(taps), *x.shape[1:4], *windows.output[1:]), dtype=x.dtype)
    flat = columns.reshape(groups, len(taps), math.prod(columns.shape[2:]))
    if shifts:
        middle, length = shifts.index(0), flat.shape[2]
        columns[:, middle] = x
    for tap, (places, read, beside) in enumerate(taps):
        target = columns[:, tap]
        if shifts and shifts[tap]:      # one long copy, which also writes something to where padding is read
            low = max(0, -shifts[tap])
            high = max(low, min(length, length - shifts[tap]))
            flat[:, tap, low:high] = flat[:, middle, low + shifts[tap] : high + shifts[tap]]
        elif not shifts:                # `read` may have a stride
            target[places] = x[read]
        for padding in beside:
            target[padding] = 0
    return columns.reshape(groups, len(taps) * x.shape[1], *columns.shape[3:])


def _split(x: Array, groups: int) -> Array:
    """x (n, C, lines, …) → (G, C/G, n, lines, …), a view."""
    x = x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])
    return x.transpose(1, 2, 0, *range(3, x.ndim))


def _flat(columns: Array) -> Array:
    """(G, depth, n, lines, …) → (G, depth, places)."""
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
    images = math.ceil(len(x) / math.ceil(len(x) / images)) if len(x) else 1
    step = max(1, limit // max(1, row * min(images, len(x))))
    step = math.ceil(rows / math.ceil(rows / step))                                     # of equal size
    ranges = [(first, min(first + step, rows)) for first in range(0, rows, step)]
    for start in range(0, len(x), images):
        yield slice(start, start + images), ranges
