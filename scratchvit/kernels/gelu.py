"""GELU with its derivative in one pass.

The exact form needs Φ, the normal distribution function, and SciPy's erf runs at 0.07 billion elements a second, a
sixtieth of NumPy's tanh. But Φ(x) = ½ (1 + tanh u(x)) for an odd, smooth u, of which the popular "tanh" form of GELU
keeps two terms. Seven terms give Φ to float32 precision, so both forms are one expression with two coefficient tables.
"""

from __future__ import annotations

import math

import numpy as np

from scratchvit import backend
from scratchvit.backend import CPU, Array, array_module, backend_of, parallel_rows

# u(x) = x Σ cₖ x²ᵏ. The minimax fit of max(1, |x|) · |Φ(x) - ½(1 + tanh u)| over 0 ≤ x ≤ 7, 7e-8 at worst; beyond, the
# leading term grows, and tanh u is 1. From scripts/fit_gelu.py.
_EXACT = (
    0.7978845308604411, 0.03633379687908337, -3.286102508598637e-05, -5.5309119696017504e-05,
    3.977862750152622e-06, -1.3397354248829627e-07, 1.8174983325333502e-09,
)
_SQRT_2_PI = math.sqrt(2 / math.pi)


def gelu_exact(x: Array) -> tuple[Array, Array]:
    """x Φ(x) and its derivative Φ(x) + x φ(x)."""
    if x.dtype == np.float32 and backend_of(x) is CPU:
        return _in_blocks(_gelu_exact_rows, x)
    normal_cdf = 0.5 * (1 + backend.erf(x / math.sqrt(2)))
    normal_pdf = array_module(x).exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * normal_cdf, normal_cdf + x * normal_pdf


def gelu_tanh(x: Array) -> tuple[Array, Array]:
    """½x (1 + tanh u) with u = √(2/π) (x + 0.044715 x³), and its derivative ½(1 + tanh u) + ½x (1 - tanh² u) u′."""
    return _in_blocks(_gelu_tanh_rows, x)


def _in_blocks(rows, x: Array) -> tuple[Array, Array]:
    xp = array_module(x)
    flat = x.reshape(-1)
    y, dydx = xp.empty_like(flat), xp.empty_like(flat)
    parallel_rows(rows, flat, y, dydx)
    return y.reshape(x.shape), dydx.reshape(x.shape)


def _gelu_exact_rows(x: Array, y: Array, dydx: Array) -> None:
    xp = array_module(x)
    square = x * x
    cdf = square * _EXACT[-1]
    for coefficient in _EXACT[-2:0:-1]:     # Horner
        cdf += coefficient
        cdf *= square
    cdf += _EXACT[0]
    cdf *= x
    xp.tanh(cdf, out=cdf)
    cdf += 1
    cdf *= 0.5                              # Φ(x)
    xp.multiply(x, cdf, out=y)

    square *= -0.5
    xp.exp(square, out=square)
    xp.multiply(x, square, out=dydx)
    dydx *= 0.5 * _SQRT_2_PI                # x φ(x)
    dydx += cdf


def _gelu_tanh_rows(x: Array, y: Array, dydx: Array) -> None:
    xp = array_module(x)
    square = x * x
    u = square * (0.044715 * _SQRT_2_PI)
    u += _SQRT_2_PI
    u *= x
    xp.tanh(u, out=u)

    square *= 3 * 0.044715 * _SQRT_2_PI
    square += _SQRT_2_PI                    # u′
    xp.multiply(u, u, out=dydx)
    xp.subtract(1, dydx, out=dydx)
    dydx *= square
    dydx *= x
    u += 1
    dydx += u
    dydx *= 0.5
    u *= 0.5
    xp.multiply(x, u, out=y)
