"""The work of an op's call: multiply-adds, and bytes between memory and processor, forward and backward.

*Multiply-adds* of the forward are those of the op's facts, as in counting.py. The backward of a product makes as many
again for each of its two operands whose gradient is needed: dW = dyᵀ x and dx = dy W for y = x Wᵀ. So it makes twice
those of the forward, or as many in the first layer, as images need no gradient. Attention always makes twice as many:
four products instead of two. What a blockwise attention computes a second time in its backward is not counted.

*Bytes* are those of a perfect op, which reads each input once and writes each result once:

    forward     inputs, results, and what is saved for the backward beside these
    backward    the gradients of the results, everything saved, and the gradients of the inputs

A result that is a view of an input is not written; an op that only returns views moves nothing. An array that was
broadcast counts as small as it was before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from scratchvit.backend import Array, is_array
from scratchvit.costs.counting import bind, without_floats
from scratchvit.facts import Bytes, ask, facts_of, saved


@dataclass(frozen=True)
class Work:
    """The work of a call, from the facts of its op."""

    macs: int               # of the forward
    saved: int              # bytes of everything saved for the backward
    extra: int              # bytes of what is saved and neither an input nor a result
    attends: bool           # whether the op is an attention

    def backward_macs(self, need: Sequence[bool]) -> int:
        """Multiply-adds of the backward, if the gradients of these inputs are needed."""
        return self.macs * (2 if self.attends else sum(need[:2]))

    def forward_bytes(self, inputs: Any, outputs: Any, saves: bool) -> int:
        """Bytes that the forward moves at least. saves: whether it is recorded, so that something is saved."""
        return _moved(inputs, outputs) + (self.extra if saves else 0)

    def backward_bytes(self, dy: Any, gradients: Any) -> int:
        """Bytes that the backward moves at least: none if it only passes dy on."""
        nbytes = _moved(dy, gradients)
        return nbytes + self.saved if nbytes else 0


class Works:
    """The Work of calls, found once for all calls with arguments of the same shapes."""

    def __init__(self) -> None:
        self._known: dict[Any, Work] = {}

    def of(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], value: Any) -> Work:
        """The work of a call of an op that returned this value. Raises ScratchvitError for an op without facts."""
        key = function.__module__, function.__name__, _described((args, kwargs))
        if key not in self._known:
            self._known[key] = _work(function, args, kwargs, value)
        return self._known[key]


def _work(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], value: Any) -> Work:
    facts, out = facts_of(function), _layouts(value)
    arguments = bind(function, _layouts(args), _layouts(kwargs)).arguments
    kept = saved(function, arguments, out)
    extra = sum(x for x in kept if isinstance(x, Bytes))
    return Work(
        macs=ask(facts.macs, arguments, out=out),
        saved=extra + sum(_nbytes(x) for x in kept if not isinstance(x, Bytes)),
        extra=extra,
        attends=facts.attends is not None,
    )


def _moved(inputs: Any, outputs: Any) -> int:
    """The bytes of all arrays in inputs, and of those in outputs that are not views of them; 0 if all outputs are."""
    read = {id(x): x for x in _arrays_in(inputs)}
    owners = {id(_owner(x)) for x in read.values()}
    written = {id(y): y for y in _arrays_in(outputs) if id(_owner(y)) not in owners}
    return sum(map(_nbytes, (*read.values(), *written.values()))) if written else 0


def _arrays_in(x: Any) -> Iterator[Array]:
    """All arrays in x, which may be nested lists, tuples and dicts."""
    if isinstance(x, list | tuple):
        for element in x:
            yield from _arrays_in(element)
    elif isinstance(x, dict):
        yield from _arrays_in(list(x.values()))
    elif is_array(x):
        yield x


def _owner(array: Array) -> Array:
    return array if getattr(array, "base", None) is None else array.base


def _nbytes(array: Array) -> int:
    """The bytes of an array's entries, without the repetitions of a broadcast."""
    steps = zip(array.shape, array.strides)
    return array.dtype.itemsize * math.prod(n for n, step in steps if step or not n)


def _described(x: Any) -> Any:
    """What the facts of an op depend on, as a key of a dictionary."""
    if isinstance(x, list | tuple):
        return tuple(_described(element) for element in x)
    if isinstance(x, dict):
        return tuple((name, _described(value)) for name, value in x.items())
    return (x.shape, x.strides, x.dtype) if is_array(x) else repr(x)


def _layouts(x: Any) -> Any:
    """x with arrays on the host, for the rules of facts: floats have shape and strides but no memory."""
    return without_floats(x, lambda x: as_strided(np.zeros((), x.dtype), x.shape, x.strides))
