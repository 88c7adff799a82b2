"""What a model costs, found without running it.

    with init.without_weights():
        model = create_model("vit_huge_patch14_224")
    found = cost(model)                             # milliseconds, and no memory to speak of
    found.parameters, found.macs                    # 632,045,800 and 167,295,109,120
    found.attention_bytes                           # 135,268,352, for one image
    max(found.layers, key=lambda row: row.macs)     # every op: which module called it, what came in and went out

Shapes alone say what a model computes. So the ops are not run: each gets arrays of the right shape in which every entry
is the same zero in memory (stride 0), and a rule below says the shape of what comes out. Reshaping, transposing and
slicing such an array costs nothing, so the ops that only do this are run as they are.

What is counted: one multiply-add (MAC) for each product that is added to a sum, in linear layers, convolutions, matrix
products, and the two products of attention, q kᵀ and P v. Not counted: biases, norms, activations, softmax, pooling,
resizing, residual sums. PyTorch's FlopCounterMode counts the same, a multiply-add as two operations. fvcore, and timm's
tables after it, add a few for norms: 17.58 GMACs for ViT-B/16 where this says 17.56.

    linear       tokens · in · out
    convolution  places · out · in / groups · taps
    attention    entries · (d + e),  entries = heads · N · M, the numbers in softmax(q kᵀ); q (N, d), k (M, d), v (M, e)
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import backend
from scratchvit.backend import asnumpy, is_array
from scratchvit.errors import ScratchvitError
from scratchvit.nn import Module
from scratchvit.ops.conv import convolution_windows
from scratchvit.ops.linear import spell_out
from scratchvit.tensor import Tensor, no_grad, replace_ops

Shape = tuple[int, ...]


@dataclass(frozen=True)
class OpCost:
    """One op that was called, for a batch of one image."""

    module: str                     # path of the innermost module that called it: "blocks.0.attn.qkv"
    op: str                         # its name in scratchvit.ops
    inputs: tuple[Shape, ...]       # of the arrays among its arguments
    outputs: tuple[Shape, ...]
    macs: int = 0                   # multiply-adds
    attention_entries: int = 0      # of softmax(q kᵀ), over all heads and windows
    tokens: int = 0                 # queries of attention, over all windows


@dataclass(frozen=True)
class Cost:
    """What a model costs for one image."""

    parameters: int
    layers: tuple[OpCost, ...]      # in the order of the calls

    @property
    def macs(self) -> int:
        """Multiply-adds: see the head of this file for what is counted."""
        return sum(layer.macs for layer in self.layers)

    @property
    def attention_entries(self) -> int:
        """Entries of the attention matrices of all layers and heads."""
        return sum(layer.attention_entries for layer in self.layers)

    @property
    def attention_bytes(self) -> int:
        """What these entries take in float32."""
        return 4 * self.attention_entries

    @property
    def tokens(self) -> int | None:
        """The most queries that one attention has; None without attention."""
        return max((layer.tokens for layer in self.layers), default=0) or None


def cost(model: Module, image_shape: Sequence[int] | None = None) -> Cost:
    """What `model` costs for one image, in evaluation mode. Nothing is computed, and the model stays as it is.

    image_shape: (C, H, W), or (C, T, H, W) for clips; by default in_chans, num_frames and img_size of the model's
    configuration.
    Raises ScratchvitError for a model without a configuration if no shape is given, and what the model itself raises
    for images that do not fit it.
    """
    if image_shape is None:
        image_shape = _configured_shape(model)
    dtype = next((parameter.dtype for parameter in model.parameters()), np.dtype(np.float32))
    with tracing(model) as layers:
        model(Tensor(_blank((1, *image_shape), dtype)))
    return Cost(model.num_parameters(), tuple(layers))


def _configured_shape(model: Module) -> Shape:
    config = getattr(model, "config", None)
    if config is None:
        raise ScratchvitError(
            f"{type(model).__name__} has no configuration that says what images it takes: give image_shape=(C, H, W)"
        )
    size, frames = config.img_size, getattr(config, "num_frames", 1)
    clip = (frames,) if frames > 1 else ()
    return (config.in_chans, *clip, *((size, size) if isinstance(size, int) else size))


def readable_bytes(count: int) -> str:
    """153,664 is "150 KiB"."""
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    amount = count / 1024**power
    digits = 0 if power == 0 or amount >= 100 else 1
    return f"{amount:.{digits}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


# --- following shapes through the model -----------------------------------------------------------------------------


@contextlib.contextmanager
def tracing(model: Module) -> Iterator[list[OpCost]]:
    """Inside, calling the model computes nothing; the list that is given fills with a row for each op.

    What the model returns has the right shape and no meaning. In evaluation mode, whatever mode it was in.
    """
    layers: list[OpCost] = []
    running = [""]                          # paths of the modules whose forward is running, the innermost last

    def stand_in(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, None]:
        value, layer = _follow(function, _signature(function).bind(*_blanks(args), **_blanks(kwargs)), running[-1])
        layers.append(layer)
        return value, None

    before = [(module, dict(vars(module))) for module in model.modules()]
    device = backend.current()
    try:
        model.eval()
        for path, module in model.named_modules():      # an attribute of the instance hides the class's forward
            vars(module)["forward"] = _noting_path(path, module.forward, running)
        backend.use("cpu")                  # arrays of stride 0 are NumPy's, wherever the model's weights are
        with no_grad(), replace_ops(stand_in), np.errstate(all="ignore"):
            yield layers
    finally:
        backend.use(device)
        for module, attributes in before:   # the mode and forward among them
            vars(module).clear()
            vars(module).update(attributes)


def _noting_path(path: str, forward: Callable[..., Any], running: list[str]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        running.append(path)
        try:
            return forward(*args, **kwargs)
        finally:
            running.pop()

    return noted


_signature = functools.cache(inspect.signature)


def _blank(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of zeros that is one zero in memory."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def _blanks(x: Any) -> Any:
    """x with its floating arrays blank. Integers and masks keep their values: as indices they decide shapes."""
    if isinstance(x, list | tuple):
        return type(x)(_blanks(element) for element in x)
    if isinstance(x, dict):
        return {key: _blanks(value) for key, value in x.items()}
    if not is_array(x):
        return x
    return _blank(x.shape, x.dtype) if x.dtype.kind == "f" else asnumpy(x)


def _arrays(arguments: Any) -> list[np.ndarray]:
    if isinstance(arguments, list | tuple):
        return [array for argument in arguments for array in _arrays(argument)]
    return [arguments] if is_array(arguments) else []


def _follow(function: Callable[..., Any], call: inspect.BoundArguments, module: str) -> tuple[Any, OpCost]:
    """The value of a call, blank, and its row."""
    name, arguments = function.__name__, call.arguments
    inputs = _arrays(tuple(arguments.values()))
    dtype = next((x.dtype for x in inputs if x.dtype.kind == "f"), None)
    if name in _SHAPES and dtype is not None:
        value = _blank(_SHAPES[name](function, **arguments), dtype)
    else:                                   # views, integers, and what has no rule: for one image that is little
        value = _blanks(function(*call.args, **call.kwargs)[0])
    outputs = tuple(y.shape for y in (value if isinstance(value, tuple) else (value,)))
    entries, tokens = _attention_size(**arguments) if name == "attention" else (0, 0)
    return value, OpCost(
        module, name, tuple(x.shape for x in inputs), outputs,
        macs=_MULTIPLY_ADDS[name](outputs[0], **arguments) if name in _MULTIPLY_ADDS else 0,
        attention_entries=entries, tokens=tokens,
    )  # fmt: skip


# --- the rules: what shape comes out --------------------------------------------------------------------------------


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


def _index_sizes(equation: str, operands: Sequence[Any]) -> tuple[str, dict[str, int]]:
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
    output, sizes = _index_sizes(equation, operands)
    return tuple(sizes[letter] for letter in output)


def _concatenate(function: Any, tensors: Sequence[Any], dim: int = 0) -> Shape:
    shape = list(tensors[0].shape)
    shape[dim] = sum(x.shape[dim] for x in tensors)
    return tuple(shape)


def _pad(function: Any, x: Any, pad: Sequence[int], value: float = 0.0) -> Shape:
    added = [before + after for before, after in zip(pad[::2], pad[1::2])]      # to the last axis, the one before, …
    added += [0] * (x.ndim - len(added))
    return tuple(n + more for n, more in zip(x.shape, added[::-1]))


_LIKE_X = (
    "neg", "abs", "pow", "clip", "exp", "log", "sqrt", "tanh", "sigmoid", "silu", "erf", "relu", "gelu",
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
    "linear": _linear,
    "attention": _attention,
    "matmul": _matmul,
    "einsum": _einsum,
    "concatenate": _concatenate,
    "pad": _pad,
}


# --- the rules: what is multiplied and added, given the output's shape ----------------------------------------------


def _weighted(output: Shape, weight: Any, **_: Any) -> int:
    """Each output is a product with one row of the weight: (out, in), or (out, in / groups, k, k)."""
    return math.prod(output) * math.prod(weight.shape[1:])


def _attention_size(q: Any, k: Any, **_: Any) -> tuple[int, int]:
    """(entries, queries): q (B, ..., heads, N, d) and k (B, ..., heads, M, d), windows beside B."""
    return math.prod(q.shape[:-1]) * k.shape[-2], math.prod(q.shape[:-3]) * q.shape[-2]


def _attention_macs(output: Shape, q: Any, k: Any, v: Any, **_: Any) -> int:
    return _attention_size(q, k)[0] * (q.shape[-1] + v.shape[-1])


def _einsum_macs(output: Shape, equation: str, operands: Sequence[Any]) -> int:
    """Of two operands. More are counted as one product over all indices, an upper bound; one is only summed."""
    return math.prod(_index_sizes(equation, operands)[1].values()) if len(operands) > 1 else 0


_MULTIPLY_ADDS: dict[str, Callable[..., int]] = {
    "linear": _weighted,
    "conv2d": _weighted,
    "conv3d": _weighted,
    "matmul": lambda output, x, y: math.prod(output) * x.shape[-1],
    "einsum": _einsum_macs,
    "attention": _attention_macs,
}
