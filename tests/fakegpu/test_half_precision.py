"""float16 and bfloat16 in kernels are rounded as NumPy and ml_dtypes round them, bit for bit."""

from __future__ import annotations

from typing import Any

import cupy
import ml_dtypes
import numpy as np
import pytest

from tests.support.seeds import seeded

TEXT = r"""
#include <HEADER>
extern "C" __global__ void narrow(const FROM* x, T* y, long long N) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < N) y[i] = x[i];
}
extern "C" __global__ void widen(const T* x, float* y, long long N) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < N) y[i] = (float)x[i];
}
"""
TYPES = {
    "float16": ("cuda_fp16.h", "__half", np.float16), "bfloat16": ("cuda_bf16.h", "__nv_bfloat16", ml_dtypes.bfloat16),
}


def convert(name: str, kernel: str, x: np.ndarray, to: Any, wide: str = "float") -> np.ndarray:
    header, type_name, _ = TYPES[name]
    text = TEXT.replace("HEADER", header).replace("FROM", wide).replace("T*", f"{type_name}*")
    y = cupy.empty(x.shape, to)
    module = cupy.RawModule(code=text, options=("--std=c++17",))
    module.get_function(kernel)((-(-x.size // 256),), (256,), (cupy.asarray(x), y, x.size))
    return cupy.asnumpy(y)


@pytest.mark.parametrize("name", TYPES)
def test_every_16_bit_number_is_read_exactly(name: str) -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(TYPES[name][2])
    found, expected = convert(name, "widen", numbers, np.float32), numbers.astype(np.float32)
    numbers_again = ~np.isnan(expected)
    assert (found.view(np.uint32) == expected.view(np.uint32))[numbers_again].all()
    assert np.isnan(found[~numbers_again]).all()


@pytest.mark.parametrize("wide", ["float", "double"])
@pytest.mark.parametrize("name", TYPES)
def test_rounding_is_to_nearest_even(name: str, wide: str) -> None:
    """All midpoints between two numbers, the numbers next to them, overflow, denormals, and random bits."""
    dtype = TYPES[name][2]
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float64)
        finite = np.sort(exact[np.isfinite(exact)])
        middle = (finite[1:] + finite[:-1]) / 2
        beside = (middle * (1 + 2.0**-22), middle * (1 - 2.0**-22), np.array([np.inf, -np.inf, 0.0, -0.0]))
        bits = seeded(0).integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32).astype(np.float64)
        x = np.concatenate([exact, middle, *beside, bits[np.isfinite(bits)]])
        if wide == "double":            # so near to a midpoint that float32 would be one
            x = np.concatenate([x, middle * (1 + 2.0**-40), middle * (1 - 2.0**-40)])
            x = x[~(np.abs(x) < np.finfo(np.float32).tiny)]     # which CuPy's kernels flush to 0 on the way
        x = x.astype(np.float32 if wide == "float" else np.float64)
        expected = _rounded_once(x, dtype)
    found = convert(name, "narrow", x, dtype, wide)
    is_nan = np.isnan(x)
    assert (found.view(np.uint16) == expected.view(np.uint16))[~is_nan].all()
    assert np.isnan(found[is_nan].astype(np.float32)).all()


def _rounded_once(x: np.ndarray, dtype: Any) -> np.ndarray:
    """x, rounded to a 16-bit dtype. ml_dtypes rounds float64 to float32 first, so that is made odd: see cuda_bf16.h."""
    if x.dtype == np.float64 and dtype is not np.float16:
        near = x.astype(np.float32)
        bits = near.view(np.int32)
        inexact = (near.astype(np.float64) != x) & np.isfinite(x) & (bits % 2 == 0)
        bits[inexact] += np.where(np.abs(near[inexact].astype(np.float64)) < np.abs(x[inexact]), 1, -1)
        x = near
    return x.astype(dtype)
