"""Functions of single entries: GELU, the logistic function, the gradient of relu. One launch each.

    plain       as in ops/elementwise.py
    problem     CuPy starts a kernel for every operator of a formula, and each reads and writes whole arrays
    idea        the formula is the kernel
    who

        x      x₀ x₁ … x₂₅₅ │ x₂₅₆ …        thread i of block b computes entry 256 b + i
               block 0      │ block 1
"""

from __future__ import annotations

from typing import Any

from scratchvit.backend import Array, array_module
from scratchvit.kernels.cuda.modules import divide, launch

THREADS = 256                   # of a block

TEXT = r"""
// --- maps.py ---

__device__ inline size entry() { return blockIdx.x * (size)blockDim.x + threadIdx.x; }

struct Gelu { A value, slope; };

// x Phi(x) and Phi(x) + x phi(x); the compiler leaves out what is not used.
__device__ inline Gelu gelu_of(A x) {
    const A root_half = 0.70710678118654752440, root_half_pi = 0.39894228040143267794; // √½ and 1/√(2π)
    A cdf = (A)0.5 * erfc(-x * root_half); // not ½ (1 + erf), which loses the digits of small values
    return {x * cdf, cdf + x * root_half_pi * exp((A)-0.5 * x * x)};
}

// y = GELU(x), and unless dydx is null, its derivative.
extern "C" __global__ void gelu(const T* x, T* y, T* dydx, size N) {
    size i = entry();
    if (i >= N) return;
    Gelu gelu = gelu_of((A)x[i]);
    y[i] = gelu.value;
    if (dydx) dydx[i] = gelu.slope;
}

// y = x s with s = 1/(1 + exp(-2u)), which is ½ (1 + tanh u); and unless dydx is null, dydx = s + 2 x s (1 - s) u'.
extern "C" __global__ void gelu_tanh(const T* x, T* y, T* dydx, size N) {
    size i = entry();
    if (i >= N) return;
    const A c = 0.044715, root = 0.79788456080286535588; // √(2/π)
    A value = (A)x[i], square = value * value;
    A s = 1 / (1 + exp(-2 * root * value * (1 + c * square)));
    y[i] = value * s;
    if (dydx) dydx[i] = s + 2 * value * s * (1 - s) * root * (1 + 3 * c * square);
}

// y = 1/(1 + exp(-x)), from exp(-|x|), which never overflows.
extern "C" __global__ void logistic(const T* x, T* y, size N) {
    size i = entry();
    if (i >= N) return;
    A value = (A)x[i], small = exp(-fabs(value));
    y[i] = (value >= 0 ? 1 : small) / (1 + small);
}

// dx = dy y (1 - y)
extern "C" __global__ void logistic_backward(const T* dy, const T* y, T* dx, size N) {
    size i = entry();
    if (i < N) dx[i] = (A)dy[i] * (A)y[i] * (1 - (A)y[i]);
}

// x where y > 0, else 0: not a product with 0 or 1, since 0 times infinity is NaN.
extern "C" __global__ void where_positive(const T* x, const T* y, T* out, size N) {
    size i = entry();
    if (i < N) out[i] = (A)y[i] > 0 ? x[i] : (T)0;
}
"""


def gelu(x: Array, approximate: str, derivative: bool) -> tuple[Array, Array | None]:
    """GELU of x, of any shape, exact or with approximate="tanh"; and its derivative, None unless asked for."""
    y = array_module(x).empty(x.shape, dtype=x.dtype)
    dydx = array_module(x).empty(x.shape, dtype=x.dtype) if derivative else None
    _map("gelu_tanh" if approximate == "tanh" else "gelu", array_module(x).ascontiguousarray(x), y, dydx)
    return y, dydx


def logistic(x: Array) -> Array:
    """1 / (1 + e⁻ˣ) of x, of any shape."""
    y = array_module(x).empty(x.shape, dtype=x.dtype)
    _map("logistic", array_module(x).ascontiguousarray(x), y)
    return y


def logistic_dx(dy: Array, y: Array) -> Array:
    """dy y (1 - y) of arrays of one shape."""
    return _of_two("logistic_backward", dy, y)


def where_positive(x: Array, y: Array) -> Array:
    """x where y > 0, 0 elsewhere, of arrays of one shape."""
    return _of_two("where_positive", x, y)


def _of_two(name: str, x: Array, y: Array) -> Array:
    xp = array_module(x)
    out = xp.empty(x.shape, dtype=x.dtype)
    _map(name, xp.ascontiguousarray(x), xp.ascontiguousarray(y), out)
    return out


def _map(name: str, x: Array, *others: Any) -> None:
    launch("maps", name, x, (divide(x.size, THREADS),), (THREADS,), x, *others, x.size)
