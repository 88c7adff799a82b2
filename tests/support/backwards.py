"""Sound and broken backwards as somebody may write them: what a gradient check must pass, and what it must catch.

Each row is one op in this project's form, a function on plain arrays that gives (value, backward). It runs here, and by
`as_torch_function` under PyTorch, from the same source. scripts/gradcheck_table.py makes the table of who catches what
in docs/gradcheck.md.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import scratchvit as sv
from scratchvit.backend import Array, array_module
from scratchvit.tensor import op
from tests.support.seeds import seeded

Points = Callable[[np.random.Generator], list[np.ndarray]]


@dataclass(frozen=True)
class Backward:
    """One op.

    name: what is wrong with it, or what it is.
    make: gives the function anew, so that what it remembers of its calls is forgotten.
    point: NumPy generator → float64 inputs.
    kind: the part of the table.
    says: what the GradientError must match; for those of kind WARNED, the GradcheckWarning; "" where neither comes.
    """

    name: str
    make: Callable[[], Callable[..., Any]]
    point: Points
    kind: str
    says: str

    def __str__(self) -> str:
        return self.name


NUMBERS, RULES, FLOAT32 = "wrong numbers", "breaks a rule", "wrong in a precision"
WARNED, UNSEEN = "right at this point only", "not seen"
BROKEN: list[Backward] = []
SOUND: list[Backward] = []


def shapes(*given: tuple[int, ...]) -> Points:
    return lambda rng: [rng.standard_normal(shape) for shape in given]


def broken(kind: str, name: str, says: str, *inputs: tuple[int, ...], point: Points | None = None) -> Any:
    """Add a broken op that remembers nothing. The point: normal numbers of these shapes, unless given."""
    return lambda function: BROKEN.append(Backward(name, lambda: function, point or shapes(*inputs), kind, says))


def broken_with_memory(kind: str, name: str, says: str, *inputs: tuple[int, ...]) -> Any:
    """Add a broken op that a factory makes."""
    return lambda factory: BROKEN.append(Backward(name, factory, shapes(*inputs), kind, says))


def sound(name: str, *inputs: tuple[int, ...], point: Points | None = None) -> Any:
    return lambda function: SOUND.append(Backward(name, lambda: function, point or shapes(*inputs), "sound", ""))


# --- the parts that many share ----------------------------------------------------------------------------------------


def _exp(x: Array, change: Callable[[Array], Array]) -> Any:
    """eˣ, and its gradient changed."""
    y = array_module(x).exp(x)
    return y, lambda dy: change(dy * y)


def _first_entry(g: Array, factor: float) -> Array:
    g = g.copy()
    g[(0,) * g.ndim] *= factor
    return g


def _softmax(x: Array) -> Array:
    xp = array_module(x)
    e = xp.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# --- sound ------------------------------------------------------------------------------------------------------------


@sound("exp", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g)


@sound("softmax", (3, 5))
def _(x: Array):
    y = _softmax(x)
    return y, lambda dy: y * (dy - (dy * y).sum(axis=-1, keepdims=True))


@sound("product that broadcasts, and asks what is needed", (3, 4), (4,))
def _(x: Array, y: Array):
    def backward(dy, need):
        return dy * y if need[0] else None, (dy * x).sum(axis=0) if need[1] else None
    return x * y, backward


@sound("matrix product", (3, 4), (4, 2))
def _(x: Array, y: Array):
    return x @ y, lambda dy: (dy @ y.T, x.T @ dy)


@sound("sum that hands out its cotangent twice", (3, 4), (4, 3))
def _(x: Array, y: Array):
    return x + y.T, lambda dy: (dy, dy.T)


@sound("views there and back", (3, 4))
def _(x: Array):
    return x.T, lambda dy: dy.T


@sound("sum of everything, whose gradient is broadcast", (3, 4))
def _(x: Array):
    xp = array_module(x)
    return xp.asarray(x.sum()), lambda dy: xp.broadcast_to(dy, x.shape)


@sound("two outputs, either of them unused", (3, 4))
def _(x: Array):
    xp = array_module(x)
    sin, cos = xp.sin(x), xp.cos(x)

    def backward(dys):
        dx = xp.zeros_like(x)
        for dy, slope in zip(dys, (cos, -sin)):
            if dy is not None:
                dx += dy * slope
        return dx
    return (sin, cos), backward


@sound("two gradients cut from one array", (3, 4), (3, 2))
def _(x: Array, y: Array):
    xp = array_module(x)
    return xp.concatenate([x, y], axis=1), lambda dy: tuple(xp.split(dy * 1, [4], axis=1))


@sound("rows picked, one of them twice", (3, 4))
def _(x: Array):
    xp = array_module(x)
    rows = xp.asarray(np.array([0, 2, 0]))

    def backward(dy):
        dx = xp.zeros_like(x)
        xp.add.at(dx, rows, dy)
        return dx
    return x[rows], backward


@sound("absolute value", (3, 4), point=lambda rng: [rng.uniform(0.5, 2, (3, 4)) * rng.choice([-1, 1], (3, 4))])
def _(x: Array):
    xp = array_module(x)
    return xp.abs(x), lambda dy: dy * xp.sign(x)


@sound("layer norm of an offset of 1000, which float32 feels", point=lambda rng: [
    np.array([[1000], [-1000], [0]]) + rng.standard_normal((3, 8))
])
def _(x: Array):
    xp = array_module(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    r = 1 / xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-6)
    y = centred * r

    def backward(dy):
        return r * (dy - dy.mean(axis=-1, keepdims=True) - y * (dy * y).mean(axis=-1, keepdims=True))
    return y, backward


@sound("gradient that is zero but for rounding", (3, 5))
def _(x: Array):
    y = _softmax(x)
    dsum = array_module(x).ones_like(x)
    return y.sum(axis=-1), lambda dy: dy[:, None] * y * (dsum - (dsum * y).sum(axis=-1, keepdims=True))


@sound("three inputs", (2, 3), (3, 4), (4,))
def _(x: Array, weight: Array, bias: Array):
    def backward(dy, need):
        return (
            dy @ weight.T if need[0] else None,
            x.T @ dy if need[1] else None,
            dy.sum(axis=0) if need[2] else None,
        )
    return x @ weight + bias, backward


# --- wrong numbers ----------------------------------------------------------------------------------------------------


@broken(NUMBERS, "the sign of one entry", "wrong gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: _first_entry(g, -1))


@broken(NUMBERS, "one entry missing", "wrong gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: _first_entry(g, 0))


@broken(NUMBERS, "zero everywhere", "wrong gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: 0 * g)


@broken(NUMBERS, "times 1.001", "wrong gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: 1.001 * g)


@broken(NUMBERS, "times 1 + 1e-5", "wrong gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: (1 + 1e-5) * g)


@broken(NUMBERS, "times 1 + 2e-7", "wrong gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: (1 + 2e-7) * g)


@broken(NUMBERS, "rows in the wrong order", "wrong gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g[::-1])


@broken(NUMBERS, "a square gradient transposed", "wrong gradient", (3, 3))
def _(x: Array):
    return _exp(x, lambda g: g.T)


@broken(NUMBERS, "softmax with a mean for the weighted sum", "wrong gradient", (3, 5))
def _(x: Array):
    y = _softmax(x)
    return y, lambda dy: y * (dy - dy.mean(axis=-1, keepdims=True))


@broken(NUMBERS, "the gradients of two inputs exchanged", "wrong gradient", (3, 4), (3, 4))
def _(x: Array, y: Array):
    return x * y, lambda dy: (dy * x, dy * y)


@broken(NUMBERS, "a mean over the broadcast axis for the sum", "wrong gradient", (3, 4), (4,))
def _(x: Array, y: Array):
    return x * y, lambda dy: (dy * y, (dy * x).mean(axis=0))


@broken(NUMBERS, "of a row picked twice, one gradient lost", "wrong gradient", (3, 4))
def _(x: Array):
    xp = array_module(x)
    rows = xp.asarray(np.array([0, 2, 0]))

    def backward(dy):
        dx = xp.zeros_like(x)
        dx[rows] = dy
        return dx
    return x[rows], backward


@broken(NUMBERS, "the second output forgotten", "wrong gradient", (3, 4))
def _(x: Array):
    xp = array_module(x)
    return (xp.sin(x), xp.cos(x)), lambda dys: 0 * x if dys[0] is None else dys[0] * xp.cos(x)


@broken(NUMBERS, "the cotangent taken for ones", "wrong gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: array_module(x).exp(x))


@broken(NUMBERS, "zero for the slope of 1 + 1e-6 x", "wrong gradient", (3, 4))
def _(x: Array):
    return 1 + 1e-6 * x, lambda dy: 0 * dy


@broken(NUMBERS, "NaN in one entry", "not finite", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: _first_entry(g, float("nan")))


@broken(NUMBERS, "a gradient of another shape", "the backward raises WrongState: a backward returned", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g.sum(axis=0))


# --- breaks a rule ----------------------------------------------------------------------------------------------------


@broken(RULES, "the forward writes to its input", "fn writes to input 0", (3, 4))
def _(x: Array):
    x -= x.max(axis=-1, keepdims=True)
    y = _softmax(x)
    return y, lambda dy: y * (dy - (dy * y).sum(axis=-1, keepdims=True))


@broken_with_memory(RULES, "the forward gives out an array that it uses again", "later call writes to output 0", (3, 4))
def _():
    results = {}

    def exp_in_a_buffer(x: Array):
        xp = array_module(x)
        y = results.setdefault(x.dtype, xp.empty_like(x))
        y[...] = xp.exp(x)
        return y, lambda dy: dy * xp.exp(x)
    return exp_in_a_buffer


@broken(RULES, "the backward writes to its cotangent", "the backward writes to its cotangent", (3, 4))
def _(x: Array):
    y = array_module(x).exp(x)

    def backward(dy):
        dy *= y
        return dy
    return y, backward


@broken(RULES, "the backward writes to an input", "the backward writes to input 0", (3, 4))
def _(x: Array):
    xp = array_module(x)

    def backward(dy):
        x[...] = xp.cos(x)
        return dy * x
    return xp.sin(x), backward


@broken(RULES, "the backward writes to the value", "the backward writes to output 0", (3, 4))
def _(x: Array):
    y = array_module(x).exp(x)

    def backward(dy):
        nonlocal y
        y *= dy
        return y * 1
    return y, backward


@broken(RULES, "wrong when the second input needs no gradient", r"is wrong when .*need=\[True, False\]", (3, 4), (4,))
def _(x: Array, y: Array):
    def backward(dy, need):
        return dy * (y if need[1] else 1), (dy * x).sum(axis=0) if need[1] else None
    return x * y, backward


@broken(RULES, "raises when the first input needs no gradient", r"TypeError when .*need=\[False, True\]", (3, 4), (4,))
def _(x: Array, y: Array):
    def backward(dy, need):
        dx = dy * y if need[0] else None
        return dx, (dx * (x / y)).sum(axis=0)
    return x * y, backward


@broken(RULES, "wrong when one of three inputs needs no gradient", r"need=\[True, True, False\]", (2, 3), (3, 4), (4,))
def _(x: Array, weight: Array, bias: Array):
    def backward(dy, need):
        factor = 2 if need == [True, True, False] else 1
        return dy @ weight.T, factor * (x.T @ dy), dy.sum(axis=0)
    return x @ weight + bias, backward


@broken(RULES, "wrong when the second output is not used", "is wrong when only output 0 is used", (3, 4))
def _(x: Array):
    xp = array_module(x)

    def backward(dys):
        first, second = (xp.zeros_like(x) if dy is None else dy for dy in dys)
        return first * xp.cos(x) * (1 if dys[1] is not None else 2) - second * xp.sin(x)
    return (xp.sin(x), xp.cos(x)), backward


@broken(RULES, "raises when an output is not used", "raises TypeError when only output 0 is used", (3, 4))
def _(x: Array):
    xp = array_module(x)
    return (xp.sin(x), xp.cos(x)), lambda dys: dys[0] * xp.cos(x) - dys[1] * xp.sin(x)


@broken(RULES, "wrong for a cotangent in Fortran order", "for a cotangent in Fortran order", (3, 4))
def _(x: Array):
    def entries_as_in_memory(g):
        return g.T.reshape(g.shape) if g.flags.f_contiguous and not g.flags.c_contiguous else g
    y = array_module(x).exp(x)
    return y, lambda dy: entries_as_in_memory(dy) * y


@broken(RULES, "wrong for a cotangent with gaps", "for a cotangent with gaps", (3, 4))
def _(x: Array):
    xp = array_module(x)
    y = xp.exp(x)

    def backward(dy):
        if min(abs(stride) for stride in dy.strides) == dy.itemsize:
            return dy * y
        first = dy.reshape(-1)[:1]                  # as if a row of memory held its neighbours
        return xp.broadcast_to(first, dy.shape) * y
    return y, backward


@broken(RULES, "wrong for a cotangent of negative strides", "for a cotangent with negative strides", (3, 4))
def _(x: Array):
    y = array_module(x).exp(x)
    return y, lambda dy: (dy[::-1] if dy.strides[0] < 0 else dy) * y


@broken(RULES, "raises for a cotangent that is not contiguous", "ValueError for a cotangent in Fortran order", (3, 4))
def _(x: Array):
    y = array_module(x).exp(x)

    def backward(dy):
        if not dy.flags.c_contiguous:
            raise ValueError("give me a contiguous array")
        return dy * y
    return y, backward


@broken(RULES, "raises for a cotangent that is read-only", "ValueError for a cotangent that is read-only", (3, 4))
def _(x: Array):
    y = array_module(x).exp(x)

    def backward(dy):
        dy += 0         # changes nothing, but writes
        return dy * y
    return y, backward


@broken(RULES, "hands out an array made in the forward", "two backward passes return the same memory", (3, 4))
def _(x: Array):
    xp = array_module(x)
    y, dx = xp.exp(x), xp.empty_like(x)

    def backward(dy):
        dx[...] = dy * y
        return dx
    return y, backward


@broken_with_memory(RULES, "hands out an array that all calls share", "changes after it was returned", (3, 4))
def _():
    results = {}

    def twice_and_thrice(x: Array):
        xp = array_module(x)

        def backward(dys):
            dx = results.setdefault(x.dtype, xp.empty_like(x))
            dx[...] = 0
            for dy, factor in zip(dys, (2, 3)):
                if dy is not None:
                    dx[...] += factor * dy
            return dx
        return (2 * x, 3 * x), backward
    return twice_and_thrice


@broken(RULES, "hands out zeros that it made in the forward", "two backward passes return the same", (3, 4), (4,))
def _(x: Array, y: Array):
    zeros = array_module(x).zeros_like(y)
    return x * 2, lambda dy: (dy * 2, zeros)


@broken(RULES, "hands out one of its values", "to the gradient of input 1 also writes to output 1", (3, 4), (4,))
def _(x: Array, y: Array):
    zeros = array_module(x).zeros_like(y)
    return (x * 2, zeros), lambda dys: (0 * x if dys[0] is None else dys[0] * 2, zeros)


@broken(RULES, "hands out a gradient that it saved", "two backward passes return the same memory", (3, 4))
def _(x: Array):
    xp = array_module(x)
    known = []

    def backward(dy):
        if known and xp.array_equal(known[0][0], dy):
            return known[0][1]
        known[:] = [(dy.copy(), dy * xp.cos(x))]
        return known[0][1]
    return xp.sin(x), backward


@broken(RULES, "scales what it saved in place", "second backward pass of the same graph|changes after", (3, 4))
def _(x: Array):
    xp = array_module(x)
    slope = xp.cos(x)

    def backward(dy):
        nonlocal slope
        slope *= dy
        return slope * 1
    return xp.sin(x), backward


@broken(RULES, "frees what it saved", "raises IndexError in a second backward pass of the same graph", (3, 4))
def _(x: Array):
    xp = array_module(x)
    saved = [xp.cos(x)]
    return xp.sin(x), lambda dy: dy * saved.pop()


@broken_with_memory(RULES, "differs in a second graph", "in a second backward pass of a new graph", (3, 4))
def _():
    graphs = []

    def exp_with_a_memory(x: Array):
        graphs.append(x.shape)
        factor = 1 if len(graphs) == 1 else 3
        y = array_module(x).exp(x)
        return y, lambda dy: factor * dy * y
    return exp_with_a_memory


@broken_with_memory(RULES, "values differ from call to call", "not deterministic", (3, 4))
def _():
    rng = np.random.default_rng(0)

    def noisy(x: Array):
        return x * float(rng.random()), lambda dy: dy
    return noisy


# --- wrong in a precision ---------------------------------------------------------------------------------------------


@broken(FLOAT32, "times 2 in float32 only", "is wrong in float32", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g * (2 if x.dtype == np.float32 else 1))


@broken(FLOAT32, "by way of float16 in float32", "is wrong in float32", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g.astype(np.float16).astype(np.float32) if x.dtype == np.float32 else g)


@broken(FLOAT32, "a float64 gradient of float32", "raises WrongState in float32: a backward returned", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g.astype(np.float64))


@broken(FLOAT32, "a float32 gradient of float64", "raises WrongState: a backward returned a gradient", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g.astype(np.float32))


@broken(FLOAT32, "rounded to float32 in float64", "is rounded to float32", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g.astype(np.float32).astype(x.dtype))


@broken(FLOAT32, "a value that overflows in float32", "output 0 is wrong in float32", point=lambda rng: [
    100 + rng.standard_normal((3, 4))
])
def _(x: Array):
    xp = array_module(x)
    e = xp.exp(x)                   # log(1 + e¹⁰⁰) is 100
    return xp.log(1 + e), lambda dy: dy / (1 + 1 / e)


@broken(FLOAT32, "a logarithm of 1 + x that float32 loses", "output 0 is wrong in float32", point=lambda rng: [
    1e-4 * rng.standard_normal((3, 4))
])
def _(x: Array):
    return array_module(x).log(1 + x), lambda dy: dy / (1 + x)


# --- right at this point only -----------------------------------------------------------------------------------------


@broken(WARNED, "the sign forgotten, at a positive point", "no entry is negative", point=lambda rng: [
    rng.uniform(0.5, 2, (3, 4))
])
def _(x: Array):
    return array_module(x).abs(x), lambda dy: dy * 1


@broken(WARNED, "transposed, at a symmetric point", "every matrix is symmetric", point=lambda rng: [
    (lambda x: x + x.T)(rng.standard_normal((3, 3)))
])
def _(x: Array):
    return (x * x).sum(), lambda dy: dy * 2 * x.T


@broken(WARNED, "the length of the wrong axis, at a square point", "every axis of the inputs has length 3", (3, 3))
def _(x: Array):
    return x.mean(axis=0), lambda dy: dy + 0 * x if x.shape[1] == 0 else (dy + 0 * x) / x.shape[1]


@broken(WARNED, "not summed over broadcast axes, with none", "fn broadcasts", (3, 4), (3, 4))
def _(x: Array, y: Array):
    return x * y, lambda dy: (dy * y, dy * x)


# --- not seen ---------------------------------------------------------------------------------------------------------


@broken(UNSEEN, "times 1 + 1e-8", "", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: (1 + 1e-8) * g)


@broken(UNSEEN, "1e-4 missing beside 1e4 (seen with jacobian=True)", "", point=lambda rng: [
    np.concatenate([[-18.4], rng.standard_normal(4)])
])
def _(x: Array):
    y, backward = _exp(x, lambda g: _first_entry(g, 0))
    return 1e4 * y, lambda dy: 1e4 * backward(dy)


@broken(UNSEEN, "what it saved rounded to float32 (seen with tolerance=1e-8)", "", (3, 4))
def _(x: Array):
    y = array_module(x).exp(x)
    rounded = y.astype(np.float32)
    return y, lambda dy: dy * rounded


@broken(UNSEEN, "wrong beyond 1,000 entries, at a point of 12", "", (3, 4))
def _(x: Array):
    return _exp(x, lambda g: g if g.size <= 1000 else 2 * g)


# --- what a check says of them ----------------------------------------------------------------------------------------

CAUGHT, WARNS, MISSED = "caught", "warns", "no"


def verdict(row: Backward, seed: int = 0, **options: Any) -> tuple[str, str]:
    """What `gradcheck` makes of an op: caught, warns or no, and its words."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", sv.GradcheckWarning)
            sv.gradcheck(op(row.make()), *row.point(seeded(seed)), seed=seed, **options)
    except sv.GradientError as error:
        return CAUGHT, str(error)
    words = "; ".join(str(w.message) for w in said)
    return (WARNS if words else MISSED), words


def verdict_of_torch(torch: Any, row: Backward, **options: Any) -> str:
    """What `torch.autograd.gradcheck` makes of the same op at the same point: caught or no."""
    inputs = [torch.tensor(x, requires_grad=True) for x in row.point(seeded(0))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.autograd.gradcheck(as_torch_function(torch, row.make()), inputs, **options)
    except Exception:       # a GradcheckError, or what the backward itself raises
        return CAUGHT
    return MISSED


def as_torch_function(torch: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The op as a `torch.autograd.Function` on the CPU, with the same arrays in the same memory."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            value, ctx.back = function(*(t.detach().numpy() for t in tensors))
            ctx.set_materialize_grads(False)
            ctx.gives_tuple = isinstance(value, tuple)
            values = tuple(torch.from_numpy(np.asarray(v)) for v in (value if ctx.gives_tuple else (value,)))
            return values if ctx.gives_tuple else values[0]

        @staticmethod
        def backward(ctx: Any, *dys: Any) -> Any:
            arrays = tuple(None if dy is None else dy.numpy() for dy in dys)
            if all(dy is None for dy in arrays):        # as here, where such a backward is not called
                return tuple(None for _ in ctx.needs_input_grad)
            takes_need = "need" in inspect.signature(ctx.back).parameters
            need = [list(ctx.needs_input_grad)] if takes_need else []
            gradients = ctx.back(arrays if ctx.gives_tuple else arrays[0], *need)
            gradients = gradients if isinstance(gradients, tuple | list) else (gradients,)
            return tuple(None if g is None else torch.from_numpy(np.require(g, requirements="CW")) for g in gradients)

    return Function.apply
