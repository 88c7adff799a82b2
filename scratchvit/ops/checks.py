"""Checks of the arguments of ops. Every error message begins with the name of the op.

Only shapes and dtypes are checked, on the host, so that a check costs almost nothing and never waits for the device.
The one exception is indices, whose values are checked on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scratchvit.backend import CPU, Array, backend_of, is_array


def axis_of(op: str, dim: int, shape: Sequence[int]) -> int:
    """`dim` as a non-negative number. Raises IndexError if there is no such axis, TypeError if it is not an integer."""
    if not isinstance(dim, int):
        raise TypeError(f"{op}: dim must be an integer, not {dim!r}")
    axes = len(shape)
    if not -axes <= dim < axes:
        raise IndexError(f"{op}: dim {dim} is not an axis of an array of shape {tuple(shape)}")
    return dim % axes


def axes_of(op: str, dims: int | Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """The same for one axis or several. Raises ValueError if one is named twice."""
    axes = tuple(axis_of(op, dim, shape) for dim in (dims if hasattr(dims, "__iter__") else (dims,)))
    if len(set(axes)) < len(axes):
        raise ValueError(f"{op}: dims {dims} name an axis of an array of shape {tuple(shape)} twice")
    return axes


def need_arrays(op: str, arrays: Any) -> None:
    """Raise TypeError if `arrays` is not a list or tuple of arrays, ValueError if it is empty."""
    if not isinstance(arrays, list | tuple) or not all(is_array(array) for array in arrays):
        raise TypeError(f"{op}: a list of arrays or Tensors is needed, not {type(arrays).__name__} {arrays!r:.80}")
    if not arrays:
        raise ValueError(f"{op}: at least one array is needed, the list is empty")


def check_indices(op: str, index: Array, size: int, axis: str) -> None:
    """Raise TypeError if `index` does not hold integers, IndexError if one of them is not in 0…size - 1.

    Values are checked only on the CPU: on a GPU the check would wait for the device in every step.
    """
    if index.dtype.kind not in "iu":
        raise TypeError(f"{op}: index must hold integers, not {index.dtype}")
    if backend_of(index) is not CPU or index.size == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        allowed = f"indices are in 0…{size - 1}" if size else "there are no entries"
        raise IndexError(f"{op}: index {wrong} is out of range: along {axis}, {allowed}")


def shapes_of(arrays: Sequence[Any]) -> str:
    """The shapes of the arrays as text, for an error message."""
    return ", ".join(str(tuple(array.shape)) for array in arrays)


def check_probability(p: float) -> float:
    """The probability of dropout. Raises ValueError if it is not in [0, 1)."""
    if not 0 <= p < 1:
        raise ValueError(f"the dropout probability must be in [0, 1), not {p}")
    return p
