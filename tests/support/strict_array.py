"""A stand-in for the GPU: NumPy that is as strict as CuPy, so that machines without a GPU can test the GPU's code path.

`STRICT` is a backend for `sv.use(STRICT)`. Its array module offers the names that CuPy has and their parameters (from
cupy_api.json, see scripts/update_cupy_api.py). Its arrays refuse every implicit conversion from and to NumPy's, and
count what would wait for the GPU in `transfers`. Where CuPy would convert silently (a host array or a list as an index,
a NumPy function called on its array) the stand-in refuses: in this project such a conversion is a bug.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.special

from scratchvit.backend import Backend

API: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("cupy_api.json").read_text())

transfers = 0       # how often something waited for the "GPU": float(x), x.item(), a boolean index, to_host, …

TAKES_HOST_DATA = {"array", "asarray"}
RETURNS_ARRAY_BOOL = {"allclose", "array_equal", "array_equiv"}     # NumPy's return a Python bool
SIZE_OF_RESULT_DEPENDS_ON_DATA = {"argwhere", "bincount", "compress", "extract", "flatnonzero", "nonzero", "unique"}
READS_TO_HOST = {"dump", "dumps", "item", "tobytes", "tofile", "tolist"}
ABOUT_DEVICE_MEMORY = {"cstruct", "data", "device", "flat", "mdspan", "reduced_view"}


@contextlib.contextmanager
def no_transfers() -> Iterator[None]:
    """Fail when something inside waits for the device."""
    before = transfers
    yield
    assert transfers == before, f"{transfers - before} transfers to the host"


def _count_transfer() -> None:
    global transfers
    transfers += 1


class StrictArray:
    """What `cupy.ndarray` is: the same methods, nothing implicit. `base` is the owner of a view's memory, or None."""

    __slots__ = ("__weakref__", "_data", "base")
    __array_ufunc__ = None
    __hash__ = None     # type: ignore[assignment]

    def __init__(self, data: np.ndarray, base: StrictArray | None = None):
        self._data, self.base = data, base

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion of a CuPy array to NumPy is not allowed: use backend.asnumpy")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        name = function.__name__
        raise TypeError(f"numpy.{name} was called on a CuPy array: use array_module(x).{name}")

    def __getattr__(self, name: str) -> Any:
        if name not in API["cupy.ndarray"]:
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        if name == "get":
            return lambda: to_host(self)
        if name in ABOUT_DEVICE_MEMORY or not hasattr(self._data, name):
            raise NotImplementedError(f"the stand-in has no cupy.ndarray.{name}")
        parameters = API["cupy.ndarray"][name]
        value = _tree_sum(self._data) if name == "sum" else getattr(self._data, name)
        return _lift(value, [self]) if parameters is None else _strict(f"ndarray.{name}", value, parameters, self)

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[StrictArray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Strict{self._data!r}"

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __getitem__(self, index: Any) -> StrictArray:
        arrays = [self]
        plain = _lower_index(index, arrays)
        value = self._data[plain]
        if isinstance(value, np.generic):       # CuPy gives a view, not a copy, of a single element
            value = self._data[(*plain, ...) if isinstance(plain, tuple) else (plain, ...)]
        if any(array.dtype == bool for array in arrays[1:]):
            _count_transfer()
        return _lift(value, arrays)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._data[_lower_index(index, [])] = _lower_operand("assignment", value)


def _tree_sum(array: np.ndarray) -> Callable[..., Any]:
    """array.sum, as exact as CuPy's, which adds in a tree; NumPy's runs from row to row along all but the last axis."""

    def sum(axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        dtype = dtype or (array.dtype if array.dtype.kind == "f" else None)
        wide = np.float64 if array.dtype.kind == "f" else dtype
        return array.sum(axis, dtype=wide, out=out, keepdims=keepdims).astype(dtype or np.int64)

    return sum


def to_host(x: StrictArray) -> np.ndarray:
    """A NumPy copy of x; waits for the device."""
    _count_transfer()
    return x._data.copy()


# --- operators ------------------------------------------------------------------------------------------------------


def _is_operand(x: Any) -> bool:
    return isinstance(x, StrictArray | int | float | complex | np.generic)


def _lower_operand(what: str, x: Any) -> Any:
    if not _is_operand(x):
        raise TypeError(f"cupy {what}: unsupported type {type(x).__name__}; take it to the device with backend.asarray")
    return x._data if isinstance(x, StrictArray) else x


def _add_operators() -> None:
    """Give StrictArray the operators that cupy.ndarray has (there is no `@=`)."""

    def binary(function: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
        def apply(self: StrictArray, other: Any) -> Any:
            if not _is_operand(other) and not isinstance(other, np.ndarray):
                return NotImplemented       # the other's turn: a Tensor knows what to do
            x, y = self._data, _lower_operand(function.__name__, other)
            return _lift(function(y, x) if swapped else function(x, y), [self])
        return apply

    def in_place(ufunc: np.ufunc) -> Callable[..., Any]:
        def apply(self: StrictArray, other: Any) -> StrictArray:
            ufunc(self._data, _lower_operand(ufunc.__name__, other), out=self._data)
            return self
        return apply

    ufuncs = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "floordiv": np.floor_divide,
        "mod": np.remainder, "pow": np.power, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
        "lshift": np.left_shift, "rshift": np.right_shift,
    }
    for name, ufunc in ufuncs.items():
        setattr(StrictArray, f"__i{name}__", in_place(ufunc))
    for name, function in {**ufuncs, "matmul": np.matmul, "divmod": np.divmod}.items():
        setattr(StrictArray, f"__{name}__", binary(function))
        setattr(StrictArray, f"__r{name}__", binary(function, swapped=True))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(StrictArray, f"__{name}__", binary(getattr(operator, name)))
    for name in ("neg", "pos", "abs", "invert"):
        function = getattr(operator, name)
        setattr(StrictArray, f"__{name}__", lambda self, function=function: _lift(function(self._data), [self]))


_add_operators()


# --- functions ------------------------------------------------------------------------------------------------------


def _strict(
    name: str, function: Callable[..., Any], parameters: list[str], bound_to: StrictArray | None = None
) -> Callable[..., Any]:
    """`function` of NumPy with the parameters of CuPy's, on StrictArrays."""
    short = name.rpartition(".")[2]
    signature = _signature(parameters)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"cupy.{name}(): {error}") from None
        kwargs.pop("blocking", None)        # about streams, which NumPy does not have
        arrays = [] if bound_to is None else [bound_to]
        if short in TAKES_HOST_DATA and isinstance(args[0], np.ndarray):
            args = (args[0].copy(), *args[1:])      # the device's memory is its own
        elif short not in TAKES_HOST_DATA:
            _refuse_host_arrays(name, parameters, args, kwargs)
        value = function(*_lower(args, arrays), **_lower(kwargs, arrays))
        if short in READS_TO_HOST | SIZE_OF_RESULT_DEPENDS_ON_DATA or (short == "where" and len(args) == 1):
            _count_transfer()
        if short in READS_TO_HOST:
            return value
        return _lift(np.asarray(value) if short in RETURNS_ARRAY_BOOL else value, arrays)

    call.__name__ = short
    return call


def _signature(parameters: list[str]) -> inspect.Signature:
    """The signature that scripts/update_cupy_api.py spelled."""
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    result = []
    for word in parameters:
        name = word.strip("*=")
        if word.startswith("**"):
            result.append(inspect.Parameter(name, inspect.Parameter.VAR_KEYWORD))
            continue
        if word.startswith("*"):
            if name:
                result.append(inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL))
            kind = inspect.Parameter.KEYWORD_ONLY
            continue
        default = None if word.endswith("=") or kind is inspect.Parameter.KEYWORD_ONLY else inspect.Parameter.empty
        result.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(result)


def _refuse_host_arrays(name: str, parameters: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # A list is fine as a shape or as the arrays of a stack, but not as the one array that most functions begin with.
    if args and isinstance(args[0], list | tuple) and parameters[0] in ("a", "x", "x1", "ar", "arr", "array"):
        raise TypeError(f"cupy.{name}: a {type(args[0]).__name__} is not an array")

    def look(x: Any) -> None:
        if isinstance(x, np.ndarray):
            raise TypeError(f"cupy.{name}: unsupported type numpy.ndarray; take it to the device with backend.asarray")
        if isinstance(x, list | tuple):
            for element in x:
                look(element)

    look(args)
    look(tuple(kwargs.values()))


def _lower(x: Any, arrays: list[StrictArray]) -> Any:
    """x with NumPy arrays for StrictArrays, which are collected in `arrays`."""
    if isinstance(x, StrictArray):
        arrays.append(x)
        return x._data
    if isinstance(x, list | tuple):
        return type(x)(_lower(element, arrays) for element in x)
    if isinstance(x, dict):
        return {key: _lower(value, arrays) for key, value in x.items()}
    return x


def _lower_index(index: Any, arrays: list[StrictArray]) -> Any:
    if isinstance(index, np.ndarray | list):
        raise TypeError(f"cupy indexing by a {type(index).__name__} copies it to the device: use backend.asarray first")
    if isinstance(index, tuple):
        return tuple(_lower_index(part, arrays) for part in index)
    return _lower(index, arrays)


def _lift(value: Any, arrays: list[StrictArray]) -> Any:
    """NumPy's result as CuPy would give it: 0-d arrays for scalars, and for a view of one of `arrays`, its base."""
    if isinstance(value, np.ndarray):
        for array in arrays:
            if value is array._data:
                return array
        for array in arrays:
            if _memory(value) is _memory(array._data):
                return StrictArray(value, array if array.base is None else array.base)
        return StrictArray(value)
    if isinstance(value, np.generic):
        return StrictArray(np.asarray(value))
    if isinstance(value, list | tuple):
        lifted = [_lift(element, arrays) for element in value]
        return type(value)(*lifted) if hasattr(value, "_fields") else type(value)(lifted)
    return value


def _memory(array: Any) -> Any:
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


# --- modules --------------------------------------------------------------------------------------------------------


class _Ufunc:
    """A ufunc with the parameters and the methods that CuPy's have."""

    def __init__(self, name: str, function: Any):
        parameters = ["*args", "out=", "dtype=", "casting="]
        self._name, self._function = name, function
        self._call = _strict(name, function, parameters)
        if name in API["ufunc.at"]:
            self.at = _strict(f"{name}.at", function.at, ["a", "indices", "b="])
        if name in ("add", "multiply"):
            self.reduce = _strict(f"{name}.reduce", function.reduce, ["array", "axis=", "dtype=", "out=", "keepdims="])
            self.accumulate = _strict(f"{name}.accumulate", function.accumulate, ["array", "axis=", "dtype=", "out="])
        if name == "add":
            self.reduceat = _strict("add.reduceat", _add_reduceat, ["array", "indices", "axis=", "dtype="])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(arg, list | tuple) for arg in args):
            raise TypeError(f"cupy.{self._name}: a list is not an array")
        return self._call(*args, **kwargs)


def _add_reduceat(array: np.ndarray, indices: np.ndarray, axis: int = 0, dtype: Any = None) -> np.ndarray:
    """Differences of running sums, as CuPy computes it: short runs of a long float32 array lose their digits."""
    sums = np.cumsum(array, axis, dtype)
    before = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
    start, end = indices, np.append(indices[1:], array.shape[axis])
    runs = before.take(end, axis) - before.take(start, axis)
    is_run = np.expand_dims(start < end, tuple(range(1, array.ndim - axis)))
    return np.where(is_run, runs, array.take(np.minimum(start, array.shape[axis] - 1), axis))


class _StrictModule:
    """NumPy or a part of it, narrowed to what the CuPy module of that name offers."""

    def __init__(self, name: str, numpy_module: Any):
        self._name, self._numpy_module = name, numpy_module

    def __getattr__(self, name: str) -> Any:
        entry = API[self._name].get(name)
        if entry is None:
            raise AttributeError(f"module {self._name!r} has no attribute {name!r}")
        if entry == "same":
            return getattr(self._numpy_module, name)
        if entry == "other" or not hasattr(self._numpy_module, name):
            raise NotImplementedError(f"the stand-in has no {self._name}.{name}")
        function = getattr(self._numpy_module, name)
        value = _Ufunc(name, function) if entry == "ufunc" else _strict(name, function, entry)
        setattr(self, name, value)
        return value


xp: Any = _StrictModule("cupy", np)
xp.ndarray = StrictArray
xp.asnumpy = to_host
xp.linalg = _StrictModule("cupy.linalg", np.linalg)
xp.fft = _StrictModule("cupy.fft", np.fft)
xp.lib = SimpleNamespace(stride_tricks=_StrictModule("cupy.lib.stride_tricks", np.lib.stride_tricks))

STRICT = Backend("strict", xp, _StrictModule("cupyx.scipy.special", scipy.special), StrictArray, to_host)
