"""Convolution by columns (im2col) on a GPU: a gather and a product.

    plain       columns of all windows, y = weight × columns (ops/conv.py)
    problem     a slice is copied for each row of the kernel and added into a padded copy on the way back: 40 operations
                a convolution
    idea        one kernel writes all columns, of as many images as fit into COLUMN_BYTES_GPU. The way back is a gather
                too: each entry of dx adds up what the windows that read it have sent. The products are those of one
                filter matrix with the columns of each image, so that y is written as (B, O, places) at once
    who

        columns (C·taps, n·places)      im2col: thread i of a row of blocks has column i, and for the channels
        image 0   │ image 1   │ …       c = blockIdx.y, … writes the rows c·taps … c·taps + taps - 1
        places    │ places    │
                                        col2im: thread i has entry i of an image's plane, of the channels
                                        c = blockIdx.y, …

dweight is one product over the columns of all images, for which dy is rearranged to (O, n·places).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.modules import computed_in, divide, launch
from scratchvit.kernels.cuda.windows import struct
from scratchvit.kernels.products import matmul
from scratchvit.kernels.sliding import Windows
from scratchvit.kernels.sums import total

COLUMN_BYTES_GPU = 256 << 20    # of columns at a time: large products and few launches, within this much memory
THREADS = 256                   # of a block
MOST_BLOCKS = 65_535            # along the second axis of a grid

TEXT = r"""
// --- columns.py ---

// Columns (C·taps, n·P) of the images x (n, C, *S), for P = last - first of the places of each image.
extern "C" __global__ void im2col(const T* x, T* columns, Windows windows, size n, size C, size first, size last) {
    size P = last - first, N = n * P, column = blockIdx.x * (size)blockDim.x + threadIdx.x;
    if (column >= N) return;
    size image = column / P;
    Index place(first + column % P, windows.output);
    for (size c = blockIdx.y; c < C; c += gridDim.y) {
        const T* plane = x + (image * C + c) * windows.entries();
        T* to = columns + c * windows.taps() * N + column;
        for (int u = 0; u < windows.kernel[0]; u++)
            for (int v = 0; v < windows.kernel[1]; v++)
                for (int w = 0; w < windows.kernel[2]; w++, to += N) {
                    size entry = windows.read(place, u, v, w);
                    *to = entry < 0 ? (T)0 : plane[entry];
                }
    }
}

// dx (n, C, *S) from the gradients of such columns, or with `add`, dx plus that.
extern "C" __global__ void col2im(const T* columns, T* dx, Windows windows, size n, size C, size first, size last,
                                  size add) {
    size P = last - first, N = n * P, S = windows.entries(), i = blockIdx.x * (size)blockDim.x + threadIdx.x;
    if (i >= n * S) return;
    size image = i / S;
    Index entry(i % S, windows.input);
    for (size c = blockIdx.y; c < C; c += gridDim.y) {
        T* to = dx + (image * C + c) * S + i % S;
        A sum = add ? (A)*to : 0;
        const T* sent = columns + c * windows.taps() * N + image * P;
        for (int u = 0; u < windows.kernel[0]; u++)
            for (int v = 0; v < windows.kernel[1]; v++)
                for (int w = 0; w < windows.kernel[2]; w++, sent += N) {
                    size place = windows.reader(entry, u, v, w); // -1 comes before the first
                    if (place >= first && place < last) sum += (A)sent[place - first];
                }
        *to = sum;
    }
}
"""


def columns(x: Array, weight: Array, bias: Array | None, windows: Windows, groups: int) -> Array:
    """The value: weight X + bias, as kernels/columns.py."""
    xp = array_module(x)
    x, filters = xp.ascontiguousarray(x), _filters(weight, groups)
    y = xp.empty((len(x), len(weight), *windows.output), dtype=x.dtype)
    y_rows = _by_group(y, groups)                                                   # (B, G, O/G, places)
    if _is_pointwise(windows):
        matmul(filters, _by_group(x, groups), out=y_rows)
    else:
        for some, first, last in _chunks(x, windows):
            gathered = _gather(x[some], windows, groups, first, last)
            for group in range(groups):
                matmul(filters[group], gathered[group].swapaxes(0, 1), out=y_rows[some, group, :, first:last])
    if bias is not None:
        y += bias.reshape(-1, *(1 for _ in windows.output))
    return y


def columns_dx(dy: Array, weight: Array, windows: Windows, groups: int) -> Array:
    """dX = weightᵀ dy, collected by the entries of x."""
    xp = array_module(dy)
    filters, dy_rows = _filters(weight, groups).swapaxes(1, 2), _by_group(dy, groups)
    channels = groups * weight.shape[1]
    dx = xp.empty((len(dy), channels, *windows.size), dtype=dy.dtype)
    if _is_pointwise(windows):
        matmul(filters, dy_rows, out=_by_group(dx, groups))
        return dx
    for some, first, last in _chunks(dx, windows):
        n = len(dx[some])
        sent = xp.empty((groups, filters.shape[1], n, last - first), dtype=dy.dtype)
        for group in range(groups):
            matmul(filters[group], dy_rows[some, group, :, first:last], out=sent[group].swapaxes(0, 1))
        blocks = divide(n * math.prod(windows.size), THREADS), min(channels, MOST_BLOCKS)
        launch(
            "windows", "col2im", dx, blocks, (THREADS,), sent, dx[some], struct(windows), n, channels, first, last,
            int(first > 0),
        )
    return dx


def columns_dw(dy: Array, x: Array, windows: Windows, groups: int) -> Array:
    """Σ_b dy Xᵀ: (O, C/G, taps), in float32 for x of 16 bits."""
    xp, precise = array_module(x), computed_in(x)
    x, dy_rows = xp.ascontiguousarray(x), _by_group(dy, groups)
    shape = (groups, dy_rows.shape[2], x.shape[1] // groups * math.prod(windows.kernel))
    dw = (xp.empty if len(x) else xp.zeros)(shape, dtype=precise)
    if _is_pointwise(windows):
        chunks = _images(len(x), dw.nbytes)
        products = (
            total(matmul(dy_rows[some], _by_group(x[some], groups).swapaxes(2, 3), dtype=precise), (0,))
            for some in chunks
        )
    else:
        products = (
            matmul(
                _rows(dy_rows[some, ..., first:last]), _flat(_gather(x[some], windows, groups, first, last)),
                dtype=precise,
            )
            for some, first, last in _chunks(x, windows)
        )
    for number, product in enumerate(products):
        dw = product if number == 0 else dw + product
    return dw.reshape(dy.shape[1], x.shape[1] // groups, -1)


def _is_pointwise(windows: Windows) -> bool:
    """Whether the columns are the image itself: a 1×1 kernel."""
    return max(windows.kernel + windows.stride) == 1 and windows.padded == windows.size


def _gather(x: Array, windows: Windows, groups: int, first: int, last: int) -> Array:
    """The columns of the places first…last of images x (n, C, *S): (G, C/G·taps, n, places)."""
    n, C = x.shape[:2]
    rows = C * math.prod(windows.kernel)
    gathered = array_module(x).empty((groups, rows // groups, n, last - first), dtype=x.dtype)
    blocks = divide(n * (last - first), THREADS), min(C, MOST_BLOCKS)
    launch("windows", "im2col", x, blocks, (THREADS,), x, gathered, struct(windows), n, C, first, last)
    return gathered


def _chunks(x: Array, windows: Windows) -> Iterator[tuple[slice, int, int]]:
    """Divide the work so that the columns have at most COLUMN_BYTES_GPU: (slice of images, first place, last place).

    If the columns of one image are more, its places are divided.
    """
    places = math.prod(windows.output)
    column = x.shape[1] * math.prod(windows.kernel) * x.itemsize
    parts = divide(column * places, COLUMN_BYTES_GPU)
    if parts == 1:
        for some in _images(len(x), column * places):
            yield some, 0, places
        return
    for image in range(len(x)):
        for part in range(parts):
            yield slice(image, image + 1), places * part // parts, places * (part + 1) // parts


def _images(count: int, bytes_of_one: int) -> Iterator[slice]:
    """Slices of images of equal size, together of at most COLUMN_BYTES_GPU each."""
    parts = divide(count, max(1, COLUMN_BYTES_GPU // bytes_of_one))
    for part in range(parts):
        yield slice(count * part // parts, count * (part + 1) // parts)


def _filters(weight: Array, groups: int) -> Array:
    """(O, C/G, *kernel) → (G, O/G, C/G·taps)."""
    return weight.reshape(groups, len(weight) // groups, -1)


def _by_group(y: Array, groups: int) -> Array:
    """(B, C, *S) → (B, G, C/G, places)."""
    return y.reshape(len(y), groups, y.shape[1] // groups, math.prod(y.shape[2:]))


def _rows(dy: Array) -> Array:
    """(n, G, O/G, places) → (G, O/G, n·places)."""
    return _flat_last(array_module(dy).ascontiguousarray(dy.transpose(1, 2, 0, 3)))


def _flat(gathered: Array) -> Array:
    """(G, K, n, places) → (G, n·places, K)."""
    return _flat_last(gathered).swapaxes(1, 2)


def _flat_last(x: Array) -> Array:
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
