"""Element-wise arithmetic and functions, with NumPy's broadcasting.

Every backward here follows from two rules: the chain rule, dx = dy · f′(x), and the transpose of broadcasting, which is
a sum over the broadcast axes (`unbroadcast`).

Either of two arguments may be a Python number; the value has the shape that both broadcast to. Shapes that do not
broadcast raise ValueError, which names the op and both shapes. dtypes.py describes the conversion of integers and
float16.
"""

from __future__ import annotations

import math
from typing import Any

from scratchvit import backend
from scratchvit.backend import Array, array_module
from scratchvit.facts import Bytes, Workspace, inputs, like, nothing, one_like_x, output, per_entry, unless_broadcast
from scratchvit.kernels.gelu import gelu_kernel
from scratchvit.kernels.logistic import logistic, logistic_dx
from scratchvit.kernels.masks import masked, where_positive
from scratchvit.kernels.sums import unbroadcast
from scratchvit.plain import is_plain
from scratchvit.recording import is_recording
from scratchvit.tensor import op
from scratchvit.threads import BLOCK_BYTES, cpu_threads


def _shape(x: Any) -> tuple[int, ...]:
    return getattr(x, "shape", ())      # a Python scalar has none


@op(takes="any", half_on_gpu=True, facts=per_entry(saves=nothing, passes_on=unless_broadcast))
def add(x: Array, y: Array):
    """x + y.

    x, y: any shapes that broadcast, any dtype.  Raises ValueError for shapes that do not broadcast.
    """
    if getattr(x, "shape", ()) == getattr(y, "shape", ()):      # the usual case, as in a residual connection
        return x + y, _to_both
    return x + y, _to_each(_shape(x), _shape(y))


def _to_both(dy):
    return dy, dy


def _to_each(x_shape, y_shape):
    def backward(dy, need):
        return unbroadcast(dy, x_shape) if need[0] else None, unbroadcast(dy, y_shape) if need[1] else None

    return backward


@op(takes="any", half_on_gpu=True, facts=per_entry(
    saves=nothing, passes_on=lambda given, x, out: given is x and x.shape == out.shape,
))
def sub(x: Array, y: Array):
    """x - y.

    x, y: any shapes that broadcast, any dtype.  Raises ValueError for shapes that do not broadcast.
    """
    x_shape, y_shape = _shape(x), _shape(y)

    def backward(dy, need):
        return unbroadcast(dy, x_shape) if need[0] else None, -unbroadcast(dy, y_shape) if need[1] else None

    return x - y, backward


@op(takes="any", half_on_gpu=True, facts=per_entry(saves=inputs("x", "y")))
def mul(x: Array, y: Array):
    """x · y, element-wise:  dx = dy · y,  d(y) = dy · x.

    x, y: any shapes that broadcast, any dtype.  Raises ValueError for shapes that do not broadcast.
    """

    def backward(dy, need):
        return (
            unbroadcast(dy * y, _shape(x)) if need[0] else None,
            unbroadcast(dy * x, _shape(y)) if need[1] else None,
        )

    return x * y, backward


@op(takes="numbers", facts=per_entry(saves=lambda y, out: [y, out]))
def div(x: Array, y: Array):
    """q = x / y:  dx = dy / y,  d(y) = -dx q.

    x, y: any shapes that broadcast; integers become float32. A division by 0 gives ±∞, or NaN for 0 / 0.
    Raises ValueError for shapes that do not broadcast.
    """
    value = x / y
    x_shape = _shape(x)

    def backward(dy, need):
        dx = dy / y
        return (
            unbroadcast(dx, x_shape) if need[0] else None,
            unbroadcast(-dx * value, _shape(y)) if need[1] else None,
        )

    return value, backward


@op(takes="numbers", facts=per_entry(saves=inputs("x")))
def pow(x: Array, exponent: float):
    """x to a constant power p:  dx = dy · p xᵖ⁻¹.

    x: any shape; integers become float32. A negative number to a fractional power is NaN.
    exponent: p, a Python number.
    Raises TypeError for an exponent that is an array or a Tensor.
    """
    if not isinstance(exponent, int | float):
        raise TypeError("pow: the exponent must be a Python number; for a Tensor write (x.log() * exponent).exp()")

    def backward(dy):
        return dy * (exponent * x ** (exponent - 1)) if exponent else array_module(x).zeros_like(dy)

    return x**exponent, backward


@op(takes="any", facts=per_entry(saves=nothing, exact=True))
def neg(x: Array):
    """-x.

    x: any shape, any dtype except bool.  Raises TypeError for bool.
    """
    if x.dtype == bool:
        raise TypeError("neg: x is bool, which has no negative: convert it, or use ~ on the array")
    return -x, lambda dy: -dy


@op(takes="any", facts=per_entry(saves=inputs("x")))
def abs(x: Array):
    """|x|:  dx = dy sign(x), with gradient 0 at 0.

    x: any shape and dtype.
    """
    xp = array_module(x)
    return xp.abs(x), lambda dy: dy * xp.sign(x)


@op(takes="any", facts=per_entry(saves=inputs("condition")))
def where(condition: Any, x: Array, y: Array):
    """x where the condition is True, else y. Each gets the gradient of the entries that were selected from it.

    condition: bool.  x, y: any dtype.  All three: any shapes that broadcast.
    Raises ValueError for shapes that do not broadcast.
    """
    condition = backend.asarray(condition)
    xp = array_module(condition)
    if not backend.is_array(x) and not backend.is_array(y):
        x, y = backend.asarray(x), backend.asarray(y)       # two Python numbers: floats become float32
    x_shape, y_shape = _shape(x), _shape(y)

    def backward(dy, need):
        return (
            unbroadcast(xp.where(condition, dy, 0), x_shape) if need[0] else None,
            unbroadcast(xp.where(condition, 0, dy), y_shape) if need[1] else None,
        )

    return xp.where(condition, x, y), backward


@op(takes="any", facts=per_entry(saves=inputs("x", "min", "max")))
def clip(x: Array, min: Array | None = None, max: Array | None = None):
    """x limited to [min, max] (PyTorch's `clamp`).

    x: any shape and dtype.  min, max: numbers, or arrays that broadcast with x; None for no limit. Where min > max the
    value is max.
    The gradient goes to x within the limits (inclusive), otherwise to the limit that applies.
    Raises ValueError if neither min nor max is given.
    """
    if min is None and max is None:
        raise ValueError("clip: give min, max or both")
    x = x if backend.is_array(x) else backend.asarray(x)
    xp, x_shape, y = array_module(x), x.shape, x
    if min is not None:
        y = xp.maximum(y, min)
    if max is not None:
        y = xp.minimum(y, max)

    def backward(dy, need):
        below = False if min is None else x < min
        above = False if max is None else (x > max if min is None else (x > max) | (max < min))
        dy_below = dy_above = None
        if need[1]:
            dy_below = unbroadcast(_where(dy, below & ~above if max is not None else below), _shape(min))
        if need[2]:
            dy_above = unbroadcast(_where(dy, above), _shape(max))
        dx = unbroadcast(_where(dy, ~(below | above)), x_shape) if need[0] else None
        return dx, dy_below, dy_above

    return y, backward


def _where(dy: Array, mask: Array) -> Array:
    """dy where the mask, which is broadcast, is True, else 0."""
    return masked(dy, array_module(dy).broadcast_to(mask, dy.shape))


@op(takes="any", facts=per_entry(saves=inputs("x", "y")))
def maximum(x: Array, y: Array):
    """The element-wise maximum of x and y; where they are equal, each gets half of the gradient.

    x, y: any shapes that broadcast, any dtype; one of them may be a Python number. NaN where either is NaN.
    Raises TypeError for two Python numbers, ValueError for shapes that do not broadcast.
    """
    xp = _module("maximum", x, y)
    return xp.maximum(x, y), lambda dy, need: _to_the_chosen(x > y, x, y, dy, need)


@op(takes="any", facts=per_entry(saves=inputs("x", "y")))
def minimum(x: Array, y: Array):
    """The element-wise minimum of x and y; where they are equal, each gets half of the gradient.

    x, y: any shapes that broadcast, any dtype; one of them may be a Python number. NaN where either is NaN.
    Raises TypeError for two Python numbers, ValueError for shapes that do not broadcast.
    """
    xp = _module("minimum", x, y)
    return xp.minimum(x, y), lambda dy, need: _to_the_chosen(x < y, x, y, dy, need)


def _module(name: str, x: Any, y: Any) -> Any:
    if not backend.is_array(x) and not backend.is_array(y):
        raise TypeError(f"{name}: x or y must be an array or a Tensor, not {type(x).__name__} and {type(y).__name__}")
    return array_module(x if backend.is_array(x) else y)


def _to_the_chosen(chose_x: Array, x: Array, y: Array, dy: Array, need: list[bool]) -> tuple[Array, Array]:
    equal = x == y
    halves = _where(0.5 * dy, equal)
    return (
        unbroadcast(_where(dy, chose_x) + halves, _shape(x)) if need[0] else None,
        unbroadcast(_where(dy, ~(chose_x | equal)) + halves, _shape(y)) if need[1] else None,
    )


@op(takes="numbers", facts=per_entry(saves=output))
def exp(x: Array):
    """eˣ:  dx = dy eˣ.

    x: any shape; integers become float32.
    """
    y = array_module(x).exp(x)
    return y, lambda dy: dy * y


@op(takes="numbers", facts=per_entry(saves=inputs("x")))
def log(x: Array):
    """The natural logarithm:  dx = dy / x.

    x: any shape; integers become float32. -∞ at 0, NaN for negative x.
    """
    return array_module(x).log(x), lambda dy: dy / x


@op(takes="numbers", facts=per_entry(saves=output))
def sqrt(x: Array):
    """√x:  dx = dy / 2√x.

    x: any shape; integers become float32. NaN for negative x; at 0 the gradient is infinite.
    """
    y = array_module(x).sqrt(x)
    return y, lambda dy: dy / (2 * y)


@op(takes="numbers", facts=per_entry(saves=inputs("x")))
def sin(x: Array):
    """The sine of x in radians:  dx = dy cos x.

    x: any shape; integers become float32.
    """
    xp = array_module(x)
    return xp.sin(x), lambda dy: dy * xp.cos(x)


@op(takes="numbers", facts=per_entry(saves=inputs("x")))
def cos(x: Array):
    """The cosine of x in radians:  dx = -dy sin x.

    x: any shape; integers become float32.
    """
    xp = array_module(x)
    return xp.cos(x), lambda dy: -dy * xp.sin(x)


@op(takes="numbers", facts=per_entry(saves=output))
def tanh(x: Array):
    """The hyperbolic tangent:  dx = dy (1 - tanh² x).

    x: any shape; integers become float32.
    """
    y = array_module(x).tanh(x)
    return y, lambda dy: dy * (1 - y * y)


def _logistic_workspace(x: Array) -> Workspace:
    """e^{-|x|}, and where x ≥ 0."""
    return Workspace(forward=x.nbytes + x.size)


@op(takes="numbers", half_on_gpu=True, facts=per_entry(saves=output, workspace=lambda x: _logistic_workspace(x)))
def sigmoid(x: Array):
    """The logistic function σ(x) = 1 / (1 + e⁻ˣ):  dx = dy σ (1 - σ). It never overflows.

    x: any shape; integers become float32.
    """
    y = logistic(x)
    return y, lambda dy: logistic_dx(dy, y)


@op(takes="sums", facts=per_entry(
    saves=lambda x: [x, Bytes(x.nbytes)], workspace=lambda x: _logistic_workspace(x),
))
def silu(x: Array):
    """x σ(x), also called swish (Elfwing et al., arXiv 1702.03118):  dx = dy (σ + x σ (1 - σ)).

    x: any shape, floating-point; float16 is computed in float32.  Raises TypeError for integers.
    """
    s = logistic(x)
    return x * s, lambda dy: dy * (s + x * s * (1 - s))


@op(takes="numbers", facts=per_entry(saves=inputs("x")))
def erf(x: Array):
    """The error function 2/√π ∫₀ˣ e⁻ᵗ² dt:  dx = dy · 2/√π e⁻ˣ².

    x: any shape; integers become float32.
    """
    xp = array_module(x)
    return backend.erf(x).astype(x.dtype, copy=False), lambda dy: dy * (2 / math.sqrt(math.pi)) * xp.exp(-x * x)


@op(takes="any", facts=per_entry(saves=output, exact=True))
def relu(x: Array):
    """max(x, 0):  dx = dy where x > 0, else 0 (also at 0). NaN stays NaN, with gradient 0.

    x: any shape and dtype.
    """
    y = array_module(x).maximum(x, 0)
    return y, lambda dy: where_positive(dy, y)


@op(facts=per_entry(saves=inputs("x", "weight"), shape=like("x")))
def prelu(x: Array, weight: Array):
    """x where x > 0, else weight · x, with one learned slope (He et al., arXiv 1502.01852, eq. 1).

    x: any shape, floating-point.  weight: (1,).
    dx = dy · (1 or weight),  dweight = Σ dy min(x, 0).  At 0 the slope is weight, as in PyTorch.
    Raises ValueError for a weight of another shape, TypeError for integers.
    """
    if weight.shape != (1,):
        raise ValueError(f"prelu: weight must have shape (1,), one slope for all entries, not {weight.shape}")
    xp = array_module(x)
    slope = weight.reshape(())

    def backward(dy: Array):
        return xp.where(x > 0, dy, slope * dy), (dy * xp.minimum(x, 0)).sum().reshape(1)

    return xp.maximum(x, 0) + slope * xp.minimum(x, 0), backward


@op(takes="sums", half_on_gpu=True, facts=per_entry(
    saves=one_like_x, order=None, workspace=lambda x: _gelu_workspace(x),
))
def gelu(x: Array, approximate: str = "none"):
    """x Φ(x), with Φ the cumulative distribution function of the normal distribution (Hendrycks & Gimpel 2016).

    x: any shape, floating-point; float16 is computed in float32.
    approximate: "none" for the exact form, dx = dy (Φ(x) + x φ(x)); "tanh" for ½x (1 + tanh √(2/π) (x + 0.044715 x³)).
    If ops are recorded, the derivative is computed together with the value (kernels/gelu.py) and saved instead of x.
    Raises ValueError for another approximation, TypeError for integers.

    Source: arXiv 1606.08415.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", not {approximate!r}')
    y, dydx = gelu_and_slope(x, approximate)
    return y, lambda dy: dy * dydx


def gelu_and_slope(x: Array, approximate: str = "none") -> tuple[Array, Array]:
    """GELU and its derivative, which may be None if ops are not recorded."""
    kernel = None if is_plain() else gelu_kernel(x, approximate)
    return kernel(x, derivative=is_recording()) if kernel else _plain_gelu(x, approximate)


def _plain_gelu(x: Array, approximate: str) -> tuple[Array, Array]:
    """GELU and its derivative."""
    xp = array_module(x)
    if approximate == "tanh":
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)             # of what tanh is taken of
        t = xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
        return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope
    cdf = 0.5 * (1 + backend.erf(x / math.sqrt(2)))                             # Φ, of the normal distribution
    pdf = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)                         # φ
    return x * cdf, cdf + x * pdf


def _gelu_workspace(x: Array) -> Workspace:
    """Two blocks per thread, which matter in small models."""
    return Workspace(forward=min(x.nbytes, 2 * BLOCK_BYTES * cpu_threads()))
