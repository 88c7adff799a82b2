"""Counting parameters, multiply-adds and attention entries of a model without running it.

    with init.without_weights():
        model = create_model("vit_huge_patch14_224")
    found = cost(model)                             # takes milliseconds and almost no memory
    found.parameters, found.macs                    # 632,045,800 and 167,295,109,120
    found.attention_bytes                           # 135,268,352, for one image
    max(found.layers, key=lambda row: row.macs)     # every op: its module, input and output shapes

The cost of a model depends only on shapes. So the ops are not run: each gets arrays of the right shape, with a single
zero in memory (stride 0), and the facts of the op (facts.py) give its output shape and its counts.

One multiply-add (MAC) is counted for each product that is added to a sum, in linear layers, convolutions, matrix
products, and the two products of attention, q kᵀ and P v. Not counted are biases, norms, activations, softmax, pooling,
resizing and residual sums. PyTorch's FlopCounterMode counts the same operations, a multiply-add as two. fvcore, and
timm's tables based on it, also count norms: 17.58 GMACs for ViT-B/16 instead of 17.56.

    linear       tokens · in · out
    convolution  output positions · out · in / groups · kernel entries
    attention    entries · (d + e),  entries = heads · N · M, the numbers in softmax(q kᵀ); q (N, d), k (M, d), v (M, e)
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import backend
from scratchvit.backend import asnumpy, is_array
from scratchvit.costs.blanks import broadcast_zero, mapped
from scratchvit.errors import ScratchvitError
from scratchvit.facts import Shape, ask, facts_of
from scratchvit.models.interface import config_of, frames_of
from scratchvit.nn import Module
from scratchvit.precision import autocast
from scratchvit.recording import no_grad, replace_ops
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class OpCost:
    """The cost of one call of an op, for a batch of one image."""

    module: str                     # path of the innermost module that called it: "blocks.0.attn.qkv"
    op: str                         # its name in scratchvit.ops
    inputs: tuple[Shape, ...]       # of the arrays among its arguments
    outputs: tuple[Shape, ...]
    macs: int = 0                   # multiply-adds
    attention_entries: int = 0      # of softmax(q kᵀ), over all heads and windows
    tokens: int = 0                 # queries of attention, over all windows


@dataclass(frozen=True)
class Cost:
    """The cost of a model for one image."""

    parameters: int
    layers: tuple[OpCost, ...]      # in the order of the calls

    @property
    def macs(self) -> int:
        """The number of multiply-adds; see the top of this file for what is counted."""
        return sum(layer.macs for layer in self.layers)

    @property
    def attention_entries(self) -> int:
        """The number of entries of the attention matrices of all layers and heads."""
        return sum(layer.attention_entries for layer in self.layers)

    @property
    def attention_bytes(self) -> int:
        """The memory of all attention matrices in float32, in bytes."""
        return 4 * self.attention_entries

    @property
    def tokens(self) -> int | None:
        """The largest number of queries in one attention; None for a model without attention."""
        return max((layer.tokens for layer in self.layers), default=0) or None


def cost(model: Module, image_shape: Sequence[int] | None = None) -> Cost:
    """The cost of a model for one image, in evaluation mode. Nothing is computed, and the model is not changed.

    image_shape: (C, H, W), or (C, T, H, W) for clips; by default in_chans, num_frames and img_size of the model's
    configuration.
    Raises ScratchvitError for a model without a configuration if no shape is given, and for an op without facts; and
    the errors of the model for images that do not fit.
    """
    if image_shape is None:
        image_shape = configured_shape(model)
    dtype = next((parameter.dtype for parameter in model.parameters()), np.dtype(np.float32))
    with tracing(model) as layers:
        model(Tensor(broadcast_zero((1, *image_shape), dtype)))
    return Cost(model.num_parameters(), tuple(layers))


def configured_shape(model: Module) -> Shape:
    """The shape of the images (C, H, W) or clips (C, T, H, W) in the model's configuration."""
    config = config_of(model)
    if config is None:
        raise ScratchvitError(
            f"{type(model).__name__} has no configuration with the size of its images: pass image_shape=(C, H, W)"
        )
    size, frames = config.img_size, frames_of(config)
    clip = (frames,) if frames > 1 else ()
    return (config.in_chans, *clip, *((size, size) if isinstance(size, int) else size))


def readable_bytes(count: int) -> str:
    """Format a number of bytes: 153,664 becomes "150 KiB"."""
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    amount = count / 1024**power
    digits = 0 if power == 0 or amount >= 100 else 1
    return f"{amount:.{digits}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


# --- propagating shapes through the model ---------------------------------------------------------------------------


@contextlib.contextmanager
def tracing(model: Module) -> Iterator[list[OpCost]]:
    """Context manager in which calling the model only propagates shapes; yields a list that gets an OpCost per op call.

    The result of the model has the right shape but no meaningful values. The model is in evaluation mode.
    """
    layers: list[OpCost] = []

    def note(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], path: str) -> tuple[Any, None]:
        value, layer = follow(function, args, kwargs, path)
        layers.append(layer)
        return value, None

    # Arrays of stride 0 are NumPy arrays, whatever device the weights are on.
    with no_grad(), autocast("float32"), standing_in(model, note, training=False, device=backend.CPU):
        yield layers


@contextlib.contextmanager
def standing_in(model: Module, call: Callable[..., Any], training: bool, device: backend.Backend) -> Iterator[None]:
    """Context manager in which `call(function, args, kwargs, path)` replaces each op of the model.

    call returns (value, backward); path is that of the innermost module that called the op. In training, the model
    begins without gradients. Afterwards it is restored, and so are its gradients.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    buffers = [(buffer, buffer.data) for _, buffer in model.named_buffers()] if training else []
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()] if training else []
    in_use = backend.current()
    try:
        model.train(training)
        for parameter, _ in gradients:
            parameter.grad = None
        for buffer, data in buffers:        # batch norm updates its counter in place
            buffer.data = data.copy()
        backend.use(device)
        noting = noting_paths(model)
        with noting as running, replace_ops(lambda *what: call(*what, running[-1])), np.errstate(all="ignore"):
            yield
    finally:
        backend.use(in_use)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for buffer, data in buffers:
            buffer.data = data
        for module, attributes in before:   # including mode and forward
            vars(module).clear()
            vars(module).update(attributes)


@contextlib.contextmanager
def noting_paths(model: Module) -> Iterator[list[str]]:
    """Context manager that gives a list: the paths of the modules whose forward is running, the innermost last."""
    running = [""]
    for path, module in model.named_modules():          # an instance attribute overrides the class's forward
        vars(module)["forward"] = _noting_path(path, module.forward, running)
    try:
        yield running
    finally:
        for module in model.modules():
            vars(module).pop("forward", None)


def _noting_path(path: str, forward: Callable[..., Any], running: list[str]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        running.append(path)
        try:
            return forward(*args, **kwargs)
        finally:
            running.pop()

    return noted


_signature_of = functools.cache(inspect.signature)


def bind(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> inspect.BoundArguments:
    """The arguments of a call by name, including the defaults of the op."""
    call = _signature_of(function).bind(*args, **kwargs)
    call.apply_defaults()
    return call


def without_floats(x: Any, stand_in: Callable[[Any], Any]) -> Any:
    """x with arrays on the host, those of floats replaced by stand_in(array), which takes no memory.

    Integers and masks stay: shapes may depend on them.
    """

    def on_host(x: Any) -> Any:
        if not is_array(x):
            return x
        return stand_in(x) if x.dtype.kind == "f" else asnumpy(x)

    return mapped(x, on_host)


def _blanks(x: Any) -> Any:
    return without_floats(x, lambda x: broadcast_zero(x.shape, x.dtype))


def _arrays(arguments: Any) -> list[np.ndarray]:
    if isinstance(arguments, list | tuple):
        return [array for argument in arguments for array in _arrays(argument)]
    return [arguments] if is_array(arguments) else []


def follow(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], module: str
) -> tuple[Any, OpCost]:
    """The value of a call of an op, as zeros that take no memory, and its OpCost."""
    facts, call = facts_of(function), bind(function, _blanks(args), _blanks(kwargs))
    arguments = call.arguments
    inputs = _arrays(tuple(arguments.values()))
    dtype = next((x.dtype for x in inputs if x.dtype.kind == "f"), None)
    if dtype is None:                       # only integers, on whose values shapes may depend: run the op
        value = function(*call.args, **call.kwargs)[0]
    else:
        shape = ask(facts.shape, arguments, function=function)
        several = isinstance(shape, list)
        value = tuple(broadcast_zero(s, dtype) for s in shape) if several else broadcast_zero(shape, dtype)
    outputs = tuple(y.shape for y in (value if isinstance(value, tuple) else (value,)))
    entries, tokens = ask(facts.attends, arguments) if facts.attends else (0, 0)
    return value, OpCost(
        module, function.__name__, tuple(x.shape for x in inputs), outputs,
        macs=ask(facts.macs, arguments, out=value), attention_entries=entries, tokens=tokens,
    )
