"""What the kernels of flash.py and flash_backward.py share: their rows, tiles of other rows, and scores of both.

    plain       S = q kᵀ scale + bias, where the mask is True, else -∞;  y = P v
    problem     a number of a tile is needed by every row. From the device's memory, 64 rows would read it 64 times
    idea        a block copies a tile to its shared memory, 16 bytes a thread, and its four warps multiply their own
                rows with it, 16 to a warp, which they keep in registers. Rows beyond the last and columns beyond d are
                0 there, so that the products of mma.py need not know of them
    who

        rows of a block               a tile, 64 rows (32 in TF32)
        warp 0 ┌────────────┐         ┌────────────┐ row 0         product()    16 rows times 8 rows of the tile,
               ├────────────┤         │            │               which gives scores; C (16, 8)
        warp 1 │  16 rows   │    ×    │            │
               ├────────────┤         │            │               add_rows()   such C times the rows of the tile,
        warp 2 │            │         │            │               which adds up y; C (16, d)
        …      └────────────┘         └────────────┘
                0 … WIDTH               0 … WIDTH, and 8 numbers more in memory: lanes that read the same column of
                                        neighbouring rows at the same time then read from different banks
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scratchvit.backend import Array
from scratchvit.kernels.cuda import draws
from scratchvit.kernels.cuda.attention import over_scores
from scratchvit.kernels.cuda.modules import FLASH, divide, launch
from scratchvit.random import Draw

ROWS, THREADS = 64, 128         # of a block
ALIGNED = 16                    # bytes, which a thread loads at once

TEXT = r"""
// --- flash_tiles.py ---

// WIDTH: the length d of a head's rows, rounded up
#define STEPS (WIDTH / STEP)            // A's beside each other, for 16 rows of q, k or v
#define COLUMNS (WIDTH / 8)             // C's beside each other, for 16 rows of y
#define TILE (sizeof(T) == 2 ? 64 : 32) // rows of a tile

typedef T Row[WIDTH + 8]; // of a tile

struct View { // of an array (B, H, rows, d), the last axis contiguous: numbers to the next image, head and row
    T* at;
    size b, h, row;
};

struct Attention {
    int H, N, M, d;
    float scale, factor; // factor and the last line: those of draws.py; nothing is dropped if factor is 0
    const bool* mask;    // or null; numbers to the next image, head, query and key
    size mask_b, mask_h, mask_n, mask_m;
    const float* bias;
    size bias_b, bias_h, bias_n, bias_m;
    const uint32* keys;
    size first_key, second_key, first, threshold;
};

// Which head of which image is this block's, and which of its `rows` rows: 64 from `begin` on, of which this warp has
// 16 from `first` on. And what a query of that head has to do with a key.
struct Place {
    const Attention& of;
    int b, h, begin, first;
    const bool* mask; // of this head; so is bias
    const float* bias;
    size first_query; // where the numbers of this head begin in an array (B, H, N)
    Draw draw;

    __device__ Place(const Attention& of, int rows) : of(of) {
        int blocks = (rows + 63) / 64, head = blockIdx.x / blocks;
        b = head / of.H;
        h = head % of.H;
        begin = blockIdx.x % blocks * 64;
        first = begin + threadIdx.x / 32 * 16;
        mask = of.mask ? of.mask + b * of.mask_b + h * of.mask_h : 0;
        bias = of.bias ? of.bias + b * of.bias_b + h * of.bias_h : 0;
        first_query = head * (size)of.N;
        draw = draw_of(of.keys, of.first_key, of.second_key, of.first, of.threshold, of.factor);
    }

    __device__ T* row(const View& x, int number) const { return x.at + b * x.b + h * x.h + number * x.row; }

    // The score of query n and key m, whose product is given; -∞ if the query may not attend to the key.
    __device__ float score(float product, int n, int m) const {
        if (n >= of.N || m >= of.M || (mask && !mask[n * of.mask_n + m * of.mask_m])) return -INFINITY;
        return product * of.scale + (bias ? bias[n * of.bias_n + m * of.bias_m] : 0);
    }

    // What dropout multiplies their probability by.
    __device__ float kept(int n, int m) const {
        return of.factor == 0 ? 1 : keep(draw, (first_query + n) * of.M + m);
    }
};

// The shared memory of a block: two tiles.
__device__ Row* shared_tiles() {
    __shared__ __align__(16) Row tiles[2 * TILE];
    return tiles;
}

// Copy `count` of the `rows` rows of x to a tile, from row `from` on.
__device__ inline void load(Row* tile, int count, const View& x, const Place& place, int from, int rows) {
    const int each = 16 / sizeof(T), pieces = WIDTH / each;
    for (int i = threadIdx.x; i < count * pieces; i += 128) {
        int row = i / pieces, column = i % pieces * each;
        bool inside = from + row < rows && column < place.of.d;
        uint4 numbers = inside ? *(const uint4*)(place.row(x, from + row) + column) : make_uint4(0, 0, 0, 0);
        if (sizeof(T) == 4)
            numbers = make_uint4(to_tf32(__uint_as_float(numbers.x)), to_tf32(__uint_as_float(numbers.y)),
                                 to_tf32(__uint_as_float(numbers.z)), to_tf32(__uint_as_float(numbers.w)));
        *(uint4*)&tile[row][column] = numbers;
    }
}

// Load this warp's 16 rows of x into registers, through shared memory that is free again after the next barrier.
__device__ inline void load_own(Left* own, const View& x, const Place& place, int rows) {
    Row* tile = shared_tiles();
    __syncthreads(); // until all have read what was there
    load(tile, 64, x, place, place.begin, rows);
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < STEPS; i++) own[i] = left(&tile[threadIdx.x / 32 * 16][i * STEP], sizeof(Row) / sizeof(T));
}

// own times the transposed of 8 rows of a tile.
__device__ inline Sums product(const Left* own, const Row* rows) {
    Sums c = {};
    #pragma unroll
    for (int i = 0; i < STEPS; i++)
        add_product(c, own[i], right_transposed(&rows[0][i * STEP], sizeof(Row) / sizeof(T)));
    return c;
}

// y (16, WIDTH) += p x, where p has STEP columns, and x is as many rows of a tile.
__device__ inline void add_rows(Sums* y, const Left& p, const Row* x) {
    #pragma unroll
    for (int i = 0; i < COLUMNS; i++) add_product(y[i], p, right(&x[0][i * 8], sizeof(Row) / sizeof(T)));
}

// Store this lane's part of a row of y, times a factor. r: 0 for the row lane_row() of y, 1 for that 8 below.
__device__ inline void store(T* to, int d, const Sums* y, int r, float factor) {
    #pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        int column = i * 8 + lane_column();
        if (column >= d) continue;
        to[column] = (T)(y[i].at[2 * r] * factor);
        to[column + 1] = (T)(y[i].at[2 * r + 1] * factor);
    }
}

// The sum, and the largest, of the numbers of the four lanes that share rows of C.
__device__ inline float sum_of_four(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ inline float largest_of_four(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
"""

# The structs View and Attention, as NumPy sees them.
VIEW = np.dtype([(name, np.int64) for name in ("at", "b", "h", "row")])
ATTENTION = np.dtype(
    [(name, np.int32) for name in ("H", "N", "M", "d")] + [(name, np.float32) for name in ("scale", "factor")]
    + [(f"{x}_{axis}", np.int64) for x in ("mask", "bias") for axis in ("at", "b", "h", "n", "m")]
    + [(name, np.int64) for name in ("keys", "first_key", "second_key", "first", "threshold")]
)


class Problem:
    """The struct Attention of q (B, H, N, d) or (H, N, d), k, and what else there is; and launches with it."""

    def __init__(
        self, q: Array, k: Array, bias: Array | None, mask: Array | None, draw: Draw | None, scale: float
    ):
        *self.heads, self.N, d = q.shape
        self.M, self.q = k.shape[-2], q
        scores = (*self.heads, self.N, self.M)
        keys, *hash_and_threshold, factor = draws.arguments(draw)
        mask, *of_mask = over_scores(mask, scores, bool)
        bias, *of_bias = over_scores(bias, scores, np.float32)
        self._pointed_to = mask, bias, keys         # lives as long as the struct
        fields = (
            q.shape[-3], self.N, self.M, d, scale, factor, _address(mask), *of_mask, _address(bias), *of_bias,
            _address(keys), *hash_and_threshold,
        )
        self._struct = _by_value(fields, ATTENTION)
        self._module = next(module for module, width in FLASH.items() if d <= width)

    def launch(self, name: str, rows: int, *arrays: Array) -> None:
        """Start a kernel that has a block for 64 of each head's rows. Arrays like q are passed as a View."""
        blocks = math.prod(self.heads) * divide(rows, ROWS)
        views = (_view(x) if x.ndim == self.q.ndim else x for x in arrays)
        launch(self._module, name, self.q, (blocks,), (THREADS,), *views, self._struct)


def in_rows(x: Array) -> Array:
    """x, or a copy if its rows are not contiguous or do not begin where a thread can load 16 bytes at once."""
    *steps, last = x.strides
    aligned = x.data.ptr % ALIGNED == 0 and all(step > 0 and step % ALIGNED == 0 for step in steps)
    return x if aligned and last == x.itemsize else x.copy()


def _view(x: Array) -> np.ndarray:
    steps = [step // x.itemsize for step in x.strides[:-1]]
    return _by_value((x.data.ptr, *([0] if x.ndim == 3 else []), *steps), VIEW)


def _address(x: Any) -> int:
    return 0 if x is None else int(x.data.ptr)


def _by_value(fields: tuple[Any, ...], struct: np.dtype) -> np.ndarray:
    """A struct as bytes, which CuPy passes on faster than fields."""
    return np.array([fields], struct).view(f"V{struct.itemsize}")
