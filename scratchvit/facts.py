"""Facts about an op that are known without running it: output shape, arrays saved for the backward, multiply-adds.

    @op(takes="floats", facts=Facts(
        shape=lambda x, weight: (*x.shape[:-1], len(weight)),
        saves=inputs("x", "weight"),
        macs=lambda weight, out: out.size * weight.shape[1],
    ))
    def project(x: Array, weight: Array): ...

`costs.cost` and `costs.peak_memory` add these facts up. A fact is a constant or a *rule*: a function whose parameters
have the names of the op's arguments that it needs. Two more parameters are available: `function`, the op's function on
plain arrays, and, except in the rule for the shape, `out`, the value (a tuple if there are several). The arrays have a
shape, a dtype and strides; their entries are meaningless, except those of integers and masks. The most common rules are
defined below; a rule for a single op is in the file of the op.

Ops in scratchvit.ops must have facts, which is checked at import. Your own ops need them only for computing costs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from scratchvit.backend import Array, is_array
from scratchvit.errors import ScratchvitError

Rule: TypeAlias = Callable[..., Any]
Shape: TypeAlias = tuple[int, ...]


class Bytes(int):
    """The size in bytes of saved arrays that are neither arguments nor the value of the op."""


@dataclass(frozen=True)
class Workspace:
    """Temporary memory in bytes, without inputs, outputs, saved arrays, and blocks that fit in the cache."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of an op; each is a constant or a rule (see the top of this file)."""

    shape: Rule                             # of the value; a list of shapes for several values
    saves: Rule | tuple[()]                 # what the backward keeps alive: arguments, the value, and Bytes
    macs: Rule | int                        # multiply-adds: products that are added to a sum
    workspace: Rule | Workspace = Workspace()
    view: Rule | bool = False               # whether the value is a view of the first argument
    order: Rule | None = None               # the value's axes in memory, outermost first; None: C order, or unknown
    passes_on: Rule | bool = False          # whether the gradient of an input (`given` in the rule) is a view of dy
    exact: bool = False                     # whether forward and backward never round
    attends: Rule | None = None             # for attention: (entries of the matrices, queries)


def facts_of(function: Callable[..., Any]) -> Facts:
    """The facts of an op, or of its function on plain arrays. Raises ScratchvitError for an op without them."""
    facts = getattr(function, "facts", None)
    if facts is None:
        raise ScratchvitError(
            f"the op {function.__name__!r} has no facts, so its cost is unknown: declare it with "
            "@op(facts=Facts(shape=…, saves=…, macs=…)), see scratchvit/facts.py"
        )
    return facts


def ask(fact: Any, arguments: dict[str, Any], **more: Any) -> Any:
    """The value of a fact for a call with these arguments (including the op's defaults)."""
    if not callable(fact):
        return fact
    known, wanted = {**arguments, **more}, _names(fact)
    return fact(**known) if wanted is None else fact(**{name: known[name] for name in wanted})


@functools.cache
def _names(rule: Rule) -> tuple[str, ...] | None:
    """The names of the arguments that a rule needs; None for all."""
    parameters = inspect.signature(rule).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return tuple(parameters)


def saved(function: Callable[..., Any], arguments: dict[str, Any], out: Any) -> list[Any]:
    """The arrays that a call of an op saves (arguments and values, without duplicates), and Bytes for other arrays."""
    found = list(_arrays_and_bytes(ask(facts_of(function).saves, arguments, function=function, out=out)))
    arrays = {id(x): x for x in found if not isinstance(x, Bytes)}
    return [*arrays.values(), *(x for x in found if isinstance(x, Bytes))]


def _arrays_and_bytes(x: Any) -> Iterator[Any]:
    if isinstance(x, list | tuple):
        for element in x:
            yield from _arrays_and_bytes(element)
    elif isinstance(x, Bytes) or is_array(x):       # an argument may also be None or a number
        yield x


# --- rules for the shape of the value -------------------------------------------------------------------------------


def like(name: str) -> Rule:
    """A rule: the shape of the argument `name`."""
    return lambda **arguments: arguments[name].shape


def broadcast(function: Any, **operands: Any) -> Shape:
    """A rule: the shape to which all array arguments broadcast."""
    return np.broadcast_shapes(*(np.shape(x) for x in operands.values() if is_array(x) or isinstance(x, list)))


def of_an_empty_batch(function: Any, x: Array, **options: Any) -> Shape:
    """A rule: run the op on an empty batch, which checks the arguments without computing anything."""
    return (len(x), *function(x[:0], **options)[0].shape[1:])


def by_running(function: Any, **arguments: Any) -> Shape | list[Shape]:
    """A rule: run the op; for ops that return views, which cost nothing."""
    value = function(**arguments)[0]
    return [y.shape for y in value] if isinstance(value, tuple) else value.shape


def unless_reduced(x: Array, reduction: str) -> Shape:
    """A rule for losses: the shape of x if the reduction is "none", otherwise ()."""
    return x.shape if reduction == "none" else ()


# --- rules for what is saved ----------------------------------------------------------------------------------------

nothing: tuple[()] = ()
"""Nothing is saved: the backward only needs shapes."""


def inputs(*names: str) -> Rule:
    """A rule: those of these arguments that are arrays."""
    return lambda **arguments: [arguments[name] for name in names]


def output(out: Any) -> Any:
    """A rule: the value."""
    return out


def one_like_x(x: Array) -> Bytes:
    """A rule: an array made by the op, of the size of x."""
    return Bytes(x.nbytes)


def reshaped(x: Array, shape: Shape) -> list[Any]:
    """x, and a copy of it if it cannot be reshaped to this shape without one."""
    return [x] if fits_without_copy(x, shape) else [x, Bytes(x.nbytes)]


def fits_without_copy(x: Array, shape: Any) -> bool:
    """Whether x can be reshaped to this shape without a copy."""
    try:
        np.reshape(x, shape, copy=False)
    except ValueError:
        return False
    return True


# --- rules for the order in memory ----------------------------------------------------------------------------------


def order_of(x: Array) -> list[int]:
    """The order of an array's axes in memory, the outermost first."""
    return sorted(range(x.ndim), key=lambda axis: -x.strides[axis])


def as_given(function: Any, **operands: Any) -> list[int] | None:
    """A rule: the order of the largest argument if all others agree with it, as in NumPy's element-wise functions."""
    arrays = [x for x in operands.values() if is_array(x)]
    if not arrays:
        return None
    largest = max(arrays, key=lambda x: (x.ndim, x.size))
    order = order_of(largest)
    for x in arrays:
        steps = [x.strides[axis] for axis in order if x.ndim == largest.ndim and x.shape[axis] > 1 and x.strides[axis]]
        if steps != sorted(steps, reverse=True):
            return None
    return order


# --- all facts of the simplest ops ----------------------------------------------------------------------------------


def per_entry(saves: Any, shape: Rule = broadcast, **others: Any) -> Facts:
    """The facts of an element-wise op: nothing is summed, and the value has the shape of the broadcast arguments."""
    return Facts(shape=shape, saves=saves, macs=0, **{"order": as_given, **others})


def moves(shape: Rule, saves: Any = nothing, exact: bool = True, **others: Any) -> Facts:
    """The facts of an op that rearranges entries. exact: False if the backward sums gradients."""
    return Facts(shape=shape, saves=saves, macs=0, exact=exact, **others)


def unless_broadcast(given: Array, out: Array) -> bool:
    """A rule for passes_on: the gradient of an input is dy unless the input was broadcast."""
    return given.shape == out.shape
