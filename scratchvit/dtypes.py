"""Which dtypes an op accepts, and their conversion by the `@op` decorator before the op's function runs.

Every op has one of four rules, its `takes`:

    takes        integers and bool              float16
    "any"        kept                           kept            rearranges, compares or adds
    "numbers"    become float32, as in PyTorch  kept            exp, div, …: results are not integers
    "floats"     TypeError                      kept            products: BLAS accumulates float16 in float32
    "sums"       TypeError                      in float32      norms, softmax, losses, means: sums overflow in float16

"In float32" means that the inputs are converted to float32, and the value and the gradients to float16 at the end.
(The largest number in float16 is 65,504.)

If the arrays of one call have different dtypes, integers are converted to the dtype of the floating-point arrays, and
an array of shape () to the dtype of the others, like Python numbers and lists of them. So none of these promotes
float32 to float64. A float64 array of another shape does, as in NumPy and PyTorch; the gradient of the float32 array
then raises an error that says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scratchvit.backend import asarray
from scratchvit.errors import WrongType
from scratchvit.signature import Slot, inputs_of, takes_need, with_inputs

TAKES = ("any", "numbers", "floats", "sums")
REGULAR = (np.dtype(np.float32), np.dtype(np.float64))      # dtypes that every op takes without conversion


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is floating-point. The kind of ml_dtypes' bfloat16 says that it is something unknown."""
    return dtype.kind == "f" or dtype.char == "E"


def settle(
    function: Callable[..., Any], takes: str, slots: Sequence[Slot], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """The function of an op and its converted arguments, if the dtypes differ or are not float32 or float64.

    slots: the differentiable parameters (see signature.py). Raises TypeError for dtypes that the op does not accept.
    """
    given = [(slot, x) for slot in slots for x in inputs_of([slot], args, kwargs) if hasattr(x, "dtype")]
    for slot, array in given:
        if takes in ("floats", "sums") and not slot.any_dtype:
            need_floats(function.__name__, slot.name, array)
    fractions = takes == "numbers" or any(_holds_fractions(x) for x in inputs_of(slots, args, kwargs))
    dtype = _common([array for slot, array in given if not slot.any_dtype], fractions)
    half = takes == "sums" and dtype is not None and dtype.itemsize == 2

    def convert(slot: Slot, value: Any) -> Any:
        if isinstance(value, list | tuple):             # of Python numbers, which take the dtype of the others
            return asarray(value, None if slot.any_dtype else dtype)
        if dtype is None or not hasattr(value, "dtype") or (slot.any_dtype and not is_float(value.dtype)):
            return value
        if half:
            return value.astype(np.float32, copy=False)
        return value.astype(dtype, copy=False) if not is_float(value.dtype) or value.ndim == 0 else value

    return (_in_float32(function, dtype) if half else function), *with_inputs(slots, args, kwargs, convert)


def need_floats(op: str, parameter: str, array: Any) -> None:
    """Raise TypeError, naming the op and the parameter, if the array holds integers or bool."""
    if not is_float(array.dtype):
        raise WrongType(
            f"{op}: {parameter} is {array.dtype}, but {op} takes floating-point numbers: convert it, for instance with "
            'astype("float32")'
        )


def _holds_fractions(x: Any) -> bool:
    """Whether x is a Python float, or a list with one: integers beside it become float32, as in PyTorch."""
    return isinstance(x, float) or (isinstance(x, list | tuple) and np.asarray(x).dtype.kind == "f")


def _common(arrays: Sequence[Any], fractions: bool) -> np.dtype | None:
    """The dtype to which integers and single numbers are converted; None if all are integers and stay integers."""
    floats = [x for x in arrays if is_float(x.dtype)]
    if not floats:
        return np.dtype(np.float32) if fractions else None
    return functools.reduce(np.promote_types, [x.dtype for x in floats if x.ndim] or [x.dtype for x in floats])


def _in_float32(function: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    """Wrap an op's function, whose inputs were converted to float32, so that value and gradients are of this dtype."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        value, backward = function(*args, **kwargs)

        def back(dy: Any, **need: Any) -> Any:
            return _converted(backward(_converted(dy, np.float32), **need), dtype)

        if takes_need(backward):
            return _converted(value, dtype), lambda dy, need: back(dy, need=need)
        return _converted(value, dtype), back

    return called


def _converted(value: Any, dtype: Any) -> Any:
    """Convert an array, or a tuple or list of arrays, to a dtype; None stays None."""
    if isinstance(value, tuple | list):
        return type(value)(_converted(element, dtype) for element in value)
    return None if value is None else value.astype(dtype)
