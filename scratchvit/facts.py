"""What is known of an op without running it: the shape of its value, what it saves, and how much it computes.

    @op(takes="floats", facts=Facts(
        shape=lambda x, weight: (*x.shape[:-1], len(weight)),
        saves=inputs("x", "weight"),
        macs=lambda weight, out: out.size * weight.shape[1],
    ))
    def project(x: Array, weight: Array): ...

`inspect.cost` and `inspect.peak_memory` add these facts up. A fact is a constant, or a *rule*: a function that names
those arguments of the call that it wants, as the op does. Beside them it may name `function`, the op's own function on
plain arrays, and, but for the rule of the shape, `out`, the value (a tuple of several values). Arrays have a shape, a
dtype and strides; their entries mean nothing, except those of integers and masks. The words for the most common rules
stand below; a rule that only one op has stands beside that op.

An op of scratchvit.ops without facts is an error at import. An op of yours may do without, until its cost is asked for.
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
    """What an op saves in arrays of its own making: neither an argument nor the value."""


@dataclass(frozen=True)
class Workspace:
    """Bytes beside what goes in, comes out and is saved. Blocks that stay in the cache are not counted."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of an op; each a constant or a rule (see the head of this file)."""

    shape: Rule                             # of the value; a list of shapes for several values
    saves: Rule | tuple[()]                 # what the backward holds: arguments, the value, and Bytes
    macs: Rule | int                        # multiply-adds: products that are added to a sum
    workspace: Rule | Workspace = Workspace()
    view: Rule | bool = False               # is the value a view of the first argument?
    order: Rule | None = None               # its axes in memory, the outermost first; None: as they stand, or unknown
    passes_on: Rule | bool = False          # is the gradient of an input, which the rule calls `given`, a view of dy?
    exact: bool = False                     # rounds nothing, forward or backward
    attends: Rule | None = None             # for attention: (entries of the matrices, queries)


def facts_of(function: Callable[..., Any]) -> Facts:
    """The facts of an op, or of its function on plain arrays. Raises ScratchvitError for an op without them."""
    facts = getattr(function, "facts", None)
    if facts is None:
        raise ScratchvitError(
            f"the op {function.__name__!r} does not say what it costs: give it @op(facts=Facts(shape=…, saves=…, "
            "macs=…)), as scratchvit/facts.py explains"
        )
    return facts


def ask(fact: Any, arguments: dict[str, Any], **more: Any) -> Any:
    """What a fact says of a call with these arguments, the op's defaults among them."""
    if not callable(fact):
        return fact
    known, wanted = {**arguments, **more}, _names(fact)
    return fact(**known) if wanted is None else fact(**{name: known[name] for name in wanted})


@functools.cache
def _names(rule: Rule) -> tuple[str, ...] | None:
    """The arguments that a rule wants; None for all of them."""
    parameters = inspect.signature(rule).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return tuple(parameters)


def saved(function: Callable[..., Any], arguments: dict[str, Any], out: Any) -> list[Any]:
    """What a call of an op saves: arrays among its arguments and values, each once, and Bytes."""
    found = list(_arrays_and_bytes(ask(facts_of(function).saves, arguments, function=function, out=out)))
    arrays = {id(x): x for x in found if not isinstance(x, Bytes)}
    return [*arrays.values(), *(x for x in found if isinstance(x, Bytes))]


def _arrays_and_bytes(x: Any) -> Iterator[Any]:
    if isinstance(x, list | tuple):
        for element in x:
            yield from _arrays_and_bytes(element)
    elif isinstance(x, Bytes) or is_array(x):       # not None, and no number: an argument may be either
        yield x


# --- rules for the shape of the value -------------------------------------------------------------------------------


def like(name: str) -> Rule:
    """The shape of an argument."""
    return lambda **arguments: arguments[name].shape


def broadcast(function: Any, **operands: Any) -> Shape:
    """The shape that all arguments broadcast to; numbers and options have none."""
    return np.broadcast_shapes(*(np.shape(x) for x in operands.values() if is_array(x) or isinstance(x, list)))


def of_an_empty_batch(function: Any, x: Array, **options: Any) -> Shape:
    """The op itself finds it, from none of the images: it checks its arguments, and has nothing to compute."""
    return (len(x), *function(x[:0], **options)[0].shape[1:])


def by_running(function: Any, **arguments: Any) -> Shape | list[Shape]:
    """The op itself finds it: for views, which cost nothing."""
    value = function(**arguments)[0]
    return [y.shape for y in value] if isinstance(value, tuple) else value.shape


def unless_reduced(x: Array, reduction: str) -> Shape:
    """A loss: x's shape with the reduction "none", else a single number."""
    return x.shape if reduction == "none" else ()


# --- rules for what is saved ----------------------------------------------------------------------------------------

nothing: tuple[()] = ()
"""For a backward that needs shapes alone."""


def inputs(*names: str) -> Rule:
    """These arguments, as far as they are arrays."""
    return lambda **arguments: [arguments[name] for name in names]


def output(out: Any) -> Any:
    """The value."""
    return out


def one_like_x(x: Array) -> Bytes:
    """An array of the op's own, as large as x."""
    return Bytes(x.nbytes)


def reshaped(x: Array, shape: Shape) -> list[Any]:
    """x, and a copy where its entries do not lie so that it can be seen in this shape."""
    return [x] if fits_without_copy(x, shape) else [x, Bytes(x.nbytes)]


def fits_without_copy(x: Array, shape: Any) -> bool:
    """Whether x reshaped is a view of x."""
    try:
        np.reshape(x, shape, copy=False)
    except ValueError:
        return False
    return True


# --- rules for the order in memory ----------------------------------------------------------------------------------


def order_of(x: Array) -> list[int]:
    """The axes of an array in memory, the outermost first."""
    return sorted(range(x.ndim), key=lambda axis: -x.strides[axis])


def as_given(function: Any, **operands: Any) -> list[int] | None:
    """As the largest argument lies, if no other contradicts: so NumPy's functions of single numbers do it."""
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


# --- all facts of the plainest ops ----------------------------------------------------------------------------------


def per_entry(saves: Any, shape: Rule = broadcast, **others: Any) -> Facts:
    """A function of single numbers: nothing is summed, and the value is as large as the arguments, broadcast."""
    return Facts(shape=shape, saves=saves, macs=0, **{"order": as_given, **others})


def moves(shape: Rule, saves: Any = nothing, exact: bool = True, **others: Any) -> Facts:
    """Numbers are moved, there and back, and not computed with. `exact=False`: on the way back some are added up."""
    return Facts(shape=shape, saves=saves, macs=0, exact=exact, **others)


def unless_broadcast(given: Array, out: Array) -> bool:
    """dy is passed on to an input that was not repeated."""
    return given.shape == out.shape
