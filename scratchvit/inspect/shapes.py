"""What shape comes out of an op, by the shapes of what goes in. `shape_of` has a rule for each op that computes.

A rule gets the op's own function and the arguments of the call, in which every array of floats is a *blank*: all its
entries are the same zero in memory (stride 0). Where the op itself finds its output's size, the rule lets it, on an
empty batch. Rules raise what the op would for shapes that do not fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scratchvit.ops.conv import convolution_windows
from scratchvit.ops.linear import spell_out

Shape = tuple[int, ...]
_ZERO = bytes(16)       # of any dtype


def blank(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of zeros that is one zero in memory."""
    return np.ndarray(shape := tuple(shape), dtype, _ZERO, strides=(0,) * len(shape))


def shape_of(function: Callable[..., Any], arguments: dict[str, Any]) -> Shape | None:
    """The shape of the value of a call; None for an op without a rule: a view, or what costs next to nothing."""
    rule = _SHAPES.get(function.__name__)
    return None if rule is None else rule(function, **arguments)


def _like_x(function: Any, x: Any, **_: Any) -> Shape:
    return x.shape


def _broadcast(function: Any, **operands: Any) -> Shape:
    return np.broadcast_shapes(*(np.shape(operand) for operand in operands.values()))


def _images(function: Any, x: Any, **options: Any) -> Shape:
    """An empty batch tells: the op checks its arguments, finds the output's size, and has nothing to compute."""
    return (len(x), *function(x[:0], **options)[0].shape[1:])


def _convolution(
    function: Any, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Shape:
    """Not by an empty batch: the op would lay out its kernels."""
    name, axes = function.__name__, x.ndim - 2
    windows = convolution_windows(name, axes, x, weight, bias, stride, padding, dilation, groups)
    return (len(x), len(weight), *windows.output)


def _linear(function: Any, x: Any, weight: Any, bias: Any = None) -> Shape:
    rows = x.reshape(-1, x.shape[-1])
    return (*x.shape[:-1], function(rows[:0], weight, bias)[0].shape[-1])


def _attention(function: Any, q: Any, k: Any, v: Any, **_: Any) -> Shape:
    return (len(q), *function(q[:0], k[:0], v[:0])[0].shape[1:])


def _matmul(function: Any, x: Any, y: Any) -> Shape:
    columns = y.shape[-1:] if y.ndim > 1 else ()
    if x.shape[-1] != y.shape[-1 - len(columns)]:
        raise ValueError(f"matmul: {x.shape} @ {y.shape} do not fit together")
    return (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), *x.shape[-2:-1], *columns)


def index_sizes(equation: str, operands: Sequence[Any]) -> tuple[str, dict[str, int]]:
    """An einsum's output indices, and the size of every index."""
    inputs, output = spell_out(equation, [x.ndim for x in operands])
    sizes: dict[str, int] = {}
    for letter, n in ((letter, n) for term, x in zip(inputs, operands) for letter, n in zip(term, x.shape)):
        if sizes.setdefault(letter, n) == 1:
            sizes[letter] = n
        elif n not in (1, sizes[letter]):
            raise ValueError(f"einsum: {equation!r} has an index of sizes {sizes[letter]} and {n}")
    return output, sizes


def _einsum(function: Any, equation: str, operands: Sequence[Any]) -> Shape:
    output, sizes = index_sizes(equation, operands)
    return tuple(sizes[letter] for letter in output)


def _concatenate(function: Any, tensors: Sequence[Any], dim: int = 0) -> Shape:
    shape = list(tensors[0].shape)
    shape[dim] = sum(x.shape[dim] for x in tensors)
    return tuple(shape)


def _pad(function: Any, x: Any, pad: Sequence[int], **_: Any) -> Shape:
    added = [before + after for before, after in zip(pad[::2], pad[1::2])]      # to the last axis, the one before, …
    added += [0] * (x.ndim - len(added))
    return tuple(n + more for n, more in zip(x.shape, added[::-1]))


def _cross_entropy(function: Any, x: Any, target: Any, reduction: str = "mean", **_: Any) -> Shape:
    return () if reduction != "none" else (*x.shape[:1], *x.shape[2:])


_LIKE_X = (
    "neg", "abs", "pow", "clip", "exp", "log", "sqrt", "tanh", "sigmoid", "silu", "erf", "relu", "gelu",
    "sin", "cos", "prelu",
    "softmax", "log_softmax", "dropout", "drop_path", "layer_norm", "group_norm", "batch_norm", "frozen_batch_norm",
    "roll",
)
_ARITHMETIC = ("add", "sub", "mul", "div", "where", "maximum", "minimum")
_OF_IMAGES = ("max_pool2d", "max_pool3d", "avg_pool2d", "avg_pool3d", "interpolate")

_SHAPES: dict[str, Callable[..., Shape]] = {
    **dict.fromkeys(_LIKE_X, _like_x),
    **dict.fromkeys(_ARITHMETIC, _broadcast),
    **dict.fromkeys(_OF_IMAGES, _images),
    **dict.fromkeys(("conv2d", "conv3d"), _convolution),
    "weight_standardization": lambda function, weight, **_: weight.shape,
    "embedding": lambda function, index, weight: (*index.shape, weight.shape[1]),
    "cross_entropy": _cross_entropy,
    "linear": _linear,
    "attention": _attention,
    "matmul": _matmul,
    "einsum": _einsum,
    "concatenate": _concatenate,
    "pad": _pad,
}
