"""Mixed precision: what becomes of the dtypes of an op inside `autocast`, applied by the `@op` decorator.

*16-bit* values are those that ops gave back inside autocast. Every op has one of four rules, its `autocast`:

    autocast     16-bit and float32 inputs                          the value is
    "casts"      float32 is cast down                               16-bit      products: linear, conv, attention
    "follows"    float32 beside 16-bit is cast down                 16-bit      add, reshape, …; without a 16-bit input
                                                                                all stays as it is
    "sums"       float32 stays, computed in float32                 16-bit      norms, softmax; of one number (a mean of
                                                                                all) float32
    "loss"       float32 stays, computed in float32                 float32     losses

The rule follows from `takes` unless an op names another: "floats" casts, "any" and "numbers" follow, "sums" sums.
float64 is never cast, and an op with a float64 input computes as outside of autocast (a loss too, but in float32).

*Parameters* stay in float32. Where one is cast down, its `shadow` is used, a 16-bit copy that it keeps (nn/module.py).

*Gradients* have the dtype of what they are the gradient of: those of 16-bit values are 16-bit, those of float32
parameters float32. So nothing is accumulated in 16 bits over the steps or the batch.

*Storage.* On a GPU, 16-bit values are arrays of 16-bit numbers. An op that declares `half_on_gpu` is given them as they
are: its kernels read 16-bit numbers, compute in float32 and store 16-bit numbers. Other ops, and plain forms, are given
them in float32, and their values and gradients are stored in 16 bits again. On the CPU, 16-bit values are float32
arrays whose entries are rounded (see rounding.py), and Tensors that hold them are marked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchvit.backend import CPU, Array, backend_of, is_array
from scratchvit.dtypes import is_float
from scratchvit.errors import WrongValue
from scratchvit.facts import Facts
from scratchvit.plain import is_plain
from scratchvit.precision import Half, is_half
from scratchvit.rounding import stored
from scratchvit.signature import Slot, inputs_of, takes_need, with_inputs

RULES = ("casts", "follows", "sums", "loss")
RULE_OF = {"any": "follows", "numbers": "follows", "floats": "casts", "sums": "sums"}      # {takes: autocast}


def rule_of(op: str, takes: str, autocast: str | None) -> str:
    """The rule of an op. Raises ValueError for one that does not exist."""
    if autocast is not None and autocast not in RULES:
        raise WrongValue(f"op {op!r}: autocast must be one of {', '.join(RULES)}, not {autocast!r}")
    return autocast or RULE_OF[takes]


def holds(x: Any, half: Half) -> bool:
    """Whether a Tensor or an array holds 16-bit values of this type."""
    return x.dtype.char == half.char or getattr(x, "_half", None) is half


def array_of(x: Any) -> Array:
    """The array of a Tensor, or an array itself."""
    return x if is_array(x) else x.data


def mark_alike(x: Any, other: Any) -> None:
    """Mark the Tensor x as holding 16-bit values if the other does, whose entries it has."""
    half = getattr(other, "_half", None)
    if half is not None:
        x._half = half


def narrow(
    rule: str, slots: Sequence[Slot], args: Sequence[Any], kwargs: dict[str, Any], half: Half, facts: Facts | None,
    half_on_gpu: bool | Callable[..., bool] = False,
) -> Narrowed | None:
    """The call of an op with inputs that are cast by its rule; None if it computes as outside of autocast.

    args, kwargs: as the op was called, with Tensors. slots: the differentiable parameters (see signature.py).
    """
    inputs = inputs_of(slots, args, kwargs)
    floats = [x for x in inputs if hasattr(x, "dtype") and is_float(x.dtype)]
    regular = inputs_of([slot for slot in slots if not slot.any_dtype], args, kwargs)
    is_double = any(getattr(x, "dtype", None) == np.float64 and x.ndim for x in regular)
    if not floats or (is_double and rule != "loss"):
        return None
    if rule != "casts" and not any(holds(x, half) for x in floats):
        return None

    def cast(slot: Slot, x: Any) -> Any:
        if not hasattr(x, "dtype") or not is_float(x.dtype):
            return x
        array = array_of(x)
        if rule == "loss" and slot.any_dtype:       # a target
            return array.astype(np.float32, copy=False)
        if rule in ("casts", "follows") and not holds(x, half):
            array = x.shadow(half) if hasattr(x, "shadow") else stored(array, half)
        return array

    def in_float32(slot: Slot, x: Any) -> Any:
        return x.astype(np.float32) if is_half(x) else x

    call = with_inputs(slots, args, kwargs, cast)
    moves = rule == "follows" and facts is not None and facts.exact
    by_kernels = not moves and half_on_gpu and backend_of(array_of(floats[0])).has_cuda and not is_plain()
    if by_kernels and callable(half_on_gpu):
        by_kernels = half_on_gpu(*call[0], **call[1])
    if not (moves or by_kernels):
        call = with_inputs(slots, *call, in_float32)
    given = [(x.dtype, holds(x, half)) if hasattr(x, "dtype") else None for x in inputs]
    return Narrowed(*call, rule, half, moves, bool(by_kernels), given)


class Narrowed(NamedTuple):
    """A call of an op inside autocast."""

    args: list[Any]
    kwargs: dict[str, Any]
    rule: str
    half: Half
    moves: bool                                     # the op only moves numbers: nothing is rounded
    by_kernels: bool                                # it is given arrays of 16-bit numbers
    given: list[tuple[np.dtype, bool] | None]       # for each input its dtype, and whether it is 16-bit

    def is_half(self, value: Array) -> bool:
        """Whether a value of the op is stored in 16 bits."""
        return not (self.rule == "loss" or (self.rule == "sums" and value.ndim == 0))

    def mark(self, outputs: Sequence[Any]) -> None:
        """Mark the Tensors that the op gave back and whose values are 16-bit."""
        for output in outputs:
            if self.is_half(output.data):
                output._half = self.half

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The op's function, so that values and gradients are stored as they should be."""
        rules = self._replace(args=[], kwargs={})       # backward must not keep inputs alive that the op did not save

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            value, backward = function(*args, **kwargs)
            if isinstance(value, tuple):
                return tuple(map(rules._stored, value)), lambda dys, need: rules._gradients(
                    backward, tuple(map(rules._arrived, dys)), need
                )
            return rules._stored(value), lambda dy, need: rules._gradients(backward, rules._arrived(dy), need)

        called.narrowed = rules         # type: ignore[attr-defined]    # for costs/memory.py
        return called

    def _stored(self, value: Array) -> Array:
        is_rounded = self.moves and backend_of(value) is CPU    # elsewhere, promotion may have made float32 of it
        return stored(value, self.half, in_place=True) if self.is_half(value) and not is_rounded else value

    def _arrived(self, dy: Array | None) -> Array | None:
        """The gradient of a value, as the op's backward takes it."""
        if dy is None or self.moves or not self.is_half(dy):
            return dy
        dy = stored(dy, self.half)
        return dy if self.by_kernels else dy.astype(np.float32, copy=False)

    def _gradients(self, backward: Callable[..., Any], dy: Any, need: Sequence[bool]) -> Any:
        """The gradients of the inputs, each in its input's dtype, those of 16-bit inputs rounded."""
        gradients = backward(dy, need=need) if takes_need(backward) else backward(dy)
        if not isinstance(gradients, tuple | list):
            gradients = (gradients,)
        if len(gradients) != len(self.given):
            return gradients                # the engine says what is wrong
        return [*map(self._left, gradients, self.given)]

    def _left(self, gradient: Array | None, given: tuple[np.dtype, bool] | None) -> Array | None:
        if gradient is None or given is None:
            return gradient
        dtype, was_half = given
        if was_half and not self.moves:
            gradient = stored(gradient, self.half)
        return gradient.astype(dtype, copy=False)
