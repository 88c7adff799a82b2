"""Reading the signatures of an op's functions: differentiable parameters, and whether a backward takes `need`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from scratchvit.backend import AnyArray, Array


class Slot(NamedTuple):
    """A differentiable parameter of an op's function."""

    position: int
    name: str
    is_sequence: bool       # a sequence of arrays
    takes_rest: bool        # it is *args
    any_dtype: bool         # annotated AnyArray: the op itself handles integers


def differentiable_parameters(function: Callable[..., Any]) -> list[Slot]:
    """The differentiable parameters of an op's function, in order."""
    one, many = ("Array", Array, "Array | None", Array | None), ("Sequence[Array]", Sequence[Array])
    any_dtype = ("AnyArray", AnyArray, "AnyArray | None", AnyArray | None)
    return [
        Slot(position, name, found in many, parameter.kind is parameter.VAR_POSITIONAL, found in any_dtype)
        for position, (name, parameter) in enumerate(inspect.signature(function).parameters.items())
        if (found := parameter.annotation) in (*one, *many, *any_dtype)
    ]


def constant_parameters(function: Callable[..., Any]) -> list[tuple[int, str]]:
    """(position, name) of the parameters that are not differentiable."""
    differentiable = {slot.name for slot in differentiable_parameters(function)}
    return [(i, name) for i, name in enumerate(inspect.signature(function).parameters) if name not in differentiable]


def inputs_of(slots: Sequence[Slot], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a call for these parameters, in order; None for parameters that are not given."""
    inputs: list[Any] = []
    for position, name, is_sequence, takes_rest, _ in slots:
        if takes_rest:
            inputs.extend(args[position:])
        else:
            given = args[position] if position < len(args) else kwargs.get(name)
            if is_sequence:
                inputs.extend(given if isinstance(given, list | tuple) else ())
            else:
                inputs.append(given)
    return inputs


def with_inputs(
    slots: Sequence[Slot], args: Sequence[Any], kwargs: dict[str, Any], change: Callable[[Slot, Any], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call, with every input replaced by `change(slot, input)`."""
    args, kwargs = list(args), dict(kwargs)
    for slot in slots:

        def changed(given: Any, slot: Slot = slot) -> Any:
            return [change(slot, x) for x in given] if slot.is_sequence else change(slot, given)

        if slot.takes_rest:
            args[slot.position :] = [change(slot, x) for x in args[slot.position :]]
        elif slot.position < len(args):
            args[slot.position] = changed(args[slot.position])
        elif slot.name in kwargs:
            kwargs[slot.name] = changed(kwargs[slot.name])
    return args, kwargs


def takes_need(backward: Callable[..., Any]) -> bool:
    """Whether a backward, which can be any callable, has a parameter named `need` (see `op`)."""
    code = getattr(backward, "__code__", None)
    if code is None:        # functools.partial, or an object with __call__
        return "need" in inspect.signature(backward).parameters
    count = code.co_argcount + code.co_kwonlyargcount
    return count > 1 and "need" in code.co_varnames[:count]
