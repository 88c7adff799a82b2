"""kernels.cu against NumPy in float64. Its texts run without CuPy, so that a process can try a broken one quickly.

python -m tests.fakegpu.kernel_checks OLD NEW       does the same with OLD replaced by NEW in the text
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fakegpu import compiler, device

TEXT = Path(__file__).with_name("kernels.cu").read_text("utf-8")


class Kernels:
    """The kernels of a CUDA text, as functions on NumPy arrays and numbers."""

    def __init__(self, text: str):
        device.load()
        self.library = ctypes.CDLL(str(compiler.build(text)))

    def launch(self, name: str, grid: tuple[int, ...], threads: int, *arguments: Any) -> None:
        boxes = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray)
            else ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int(a)
            for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(box) for box in boxes))
        sizes = [*[*grid, 1, 1][:3], threads, 1, 1, 0]        # with no dynamic shared memory
        getattr(self.library, f"{name}__launch")(pointers, *map(ctypes.c_uint, sizes))


def check(text: str) -> None:
    """Raise AssertionError if a kernel of the text computes something wrong or writes beyond the end of its result."""
    kernels, rng = Kernels(text), np.random.default_rng(0)
    for rows, width in ((100, 197), (50, 1024), (7, 5)):
        check_softmax(kernels, rng, rows, width)
    for rows, width in ((100, 192), (30, 768), (5, 33)):
        check_layer_norm(kernels, rng, rows, width)
    for heads, queries, keys in ((3, 65, 130), (2, 64, 64), (2, 33, 45)):
        check_attention(kernels, rng, heads, queries, keys)


def check_softmax(kernels: Kernels, rng: np.random.Generator, rows: int, width: int) -> None:
    x = rng.standard_normal((rows, width), dtype=np.float32)
    y, beyond = with_room_behind(rows, width)
    kernels.launch("softmax_rows", (rows,), 128, x, y, width)
    e = np.exp(x - x.max(1, keepdims=True).astype(float))
    agree(y, e / e.sum(1, keepdims=True))
    assert np.isnan(beyond).all(), "written beyond the end"


def check_layer_norm(kernels: Kernels, rng: np.random.Generator, rows: int, width: int) -> None:
    x = rng.standard_normal((rows, width), dtype=np.float32)
    weight, bias = rng.standard_normal((2, width), dtype=np.float32)
    y, stats = np.full_like(x, np.nan), np.full((rows, 2), np.nan, np.float32)
    kernels.launch("layer_norm_rows", (rows,), 128, x, weight, bias, y, stats, width, 1e-6)
    X = x.astype(float)
    agree(y, (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-6) * weight + bias)


def check_attention(kernels: Kernels, rng: np.random.Generator, heads: int, queries: int, keys: int) -> None:
    q, k, v = (rng.standard_normal((heads, n, 64), dtype=np.float32) for n in (queries, keys, keys))
    y, beyond = with_room_behind(heads, queries, 64)
    log_sums = np.full((heads, queries), np.nan, np.float32)
    kernels.launch("flash_forward", (-(-queries // 32), heads), 128, q, k, v, y, log_sums, queries, keys, 0.125)
    scores = q.astype(float) @ k.swapaxes(1, 2) * 0.125
    e = np.exp(scores - scores.max(-1, keepdims=True))
    agree(y, e @ v / e.sum(-1, keepdims=True))
    agree(log_sums, scores.max(-1) + np.log(e.sum(-1)))
    assert np.isnan(beyond).all(), "written beyond the end"


def with_room_behind(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """An array for a result, and the memory behind it; all NaN."""
    size = int(np.prod(shape))
    memory = np.full(size + 4096, np.nan, np.float32)
    return memory[:size].reshape(shape), memory[size:]


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    """To about 16 roundings of float32, relative to the largest entry; NaN does not agree."""
    error = np.abs(found - expected).max()
    assert error <= 2e-6 * np.abs(expected).max(), f"an error of {error}"


if __name__ == "__main__":
    old, new = sys.argv[1:]
    assert TEXT.count(old) == 1
    check(TEXT.replace(old, new))
