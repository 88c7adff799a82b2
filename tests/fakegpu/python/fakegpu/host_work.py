"""What NumPy does in the place of Thrust's sorts and of cub's device-wide reductions, scans and histograms."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from fakegpu import device

_kept: list[Any] = []       # callbacks that a queue or a graph may still call


def view(dtype: Any, pointer: int, shape: Sequence[int]) -> np.ndarray:
    """The array (*shape) in the device's memory at this address."""
    size = int(np.prod(shape, dtype=np.int64))
    if size == 0:
        return np.empty(shape, dtype)
    memory = (ctypes.c_byte * (size * np.dtype(dtype).itemsize)).from_address(pointer)
    return np.frombuffer(memory, dtype, size).reshape(shape)


def in_order(cupy: ModuleType, name: str, work: Callable[[], None]) -> None:
    """Do the work in the order of the current stream, as a kernel that is launched."""
    stream = cupy.cuda.get_current_stream().ptr
    call = device.Work(lambda arguments: work())
    if device.library.fakegpu_does_work_later(stream):
        _kept.append(call)
    check(cupy, device.library.fakegpu_perform(stream, b"launch", name.encode(), 1, 1, call, None, 0))


def after_waiting(cupy: ModuleType, name: str) -> bool:
    """Wait for the current stream, as Thrust does, which a capture forbids. Returns whether work is to be done."""
    check(cupy, device.library.fakegpu_wait_for_host_work(cupy.cuda.get_current_stream().ptr, name.encode()))
    return device.executes()


def check(cupy: ModuleType, status: int) -> None:
    if status:
        raise cupy.cuda.runtime.CUDARuntimeError(status)


def install_thrust(cupy: ModuleType) -> None:
    """Let NumPy sort."""
    from cupy.cuda import thrust

    def sort(dtype: Any, data: int, keys: int, shape: Sequence[int]) -> None:
        if after_waiting(cupy, "thrust sort"):
            view(dtype, data, shape).sort(axis=-1)

    def argsort(dtype: Any, indices: int, data: int, keys: int, shape: Sequence[int]) -> None:
        if after_waiting(cupy, "thrust argsort"):
            x = view(dtype, data, shape)
            order = np.argsort(x, axis=-1, kind="stable")
            view(np.intp, indices, shape)[...] = order
            x[...] = np.take_along_axis(x, order, -1)

    def lexsort(dtype: Any, indices: int, keys: int, number: int, size: int) -> None:
        if after_waiting(cupy, "thrust lexsort"):
            view(np.intp, indices, (size,))[...] = np.lexsort(view(dtype, keys, (number, size)))

    thrust.sort, thrust.argsort, thrust.lexsort = sort, argsort, lexsort


def install_cub(cupy: ModuleType) -> None:
    """Let NumPy reduce and scan whole arrays. The parameters are those of `cupy.cuda.cub`."""
    from cupy.cuda import cub

    sums = {cub.CUPY_CUB_SUM, cub.CUPY_CUB_PROD}            # they have an identity; the others need an entry
    positions = {cub.CUPY_CUB_ARGMIN, cub.CUPY_CUB_ARGMAX}
    reductions = {
        cub.CUPY_CUB_SUM: np.add.reduce, cub.CUPY_CUB_PROD: np.multiply.reduce,
        cub.CUPY_CUB_MIN: np.minimum.reduce, cub.CUPY_CUB_MAX: np.maximum.reduce,
        cub.CUPY_CUB_ARGMIN: np.argmin, cub.CUPY_CUB_ARGMAX: np.argmax,
    }

    def reduce(
        name: str, x: Any, op: Any, axes: Sequence[int], rows: int, shape: tuple[int, ...], out: Any, order: str = "C"
    ) -> Any:
        if op not in sums and any(x.shape[axis] == 0 for axis in axes):
            raise ValueError(f"zero-size array to reduction operation {op.name} which has no identity")
        y = cupy.empty(shape, np.int64 if op in positions else x.dtype, order=order)
        dtype, source, target, size = x.dtype, x.data.ptr, y.data.ptr, x.size
        computed_in = np.float32 if dtype == np.float16 and op in sums else dtype

        def work() -> None:
            with np.errstate(all="ignore"):
                values = view(dtype, source, (rows, size // rows)).astype(computed_in, copy=False)
                view(y.dtype, target, (rows,))[...] = reductions[op](values, axis=1)

        if x.size:
            in_order(cupy, name, work)
        elif op in sums:
            y.fill(int(op == cub.CUPY_CUB_PROD))
        if out is None:
            return y
        cupy._core.elementwise_copy(y, out)
        return out

    def kept_shape(x: Any, axes: Sequence[int], keepdims: bool) -> tuple[int, ...]:
        if keepdims:
            return tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))
        return tuple(x.shape[axis] for axis in axes)

    def device_reduce(
        x: Any, op: Any, reduce_axis: Sequence[int], out_axis: Sequence[int], out: Any = None, keepdims: bool = False
    ) -> Any:
        if out is not None and out.ndim != (x.ndim if keepdims else 0):
            raise ValueError(f"out has {out.ndim} axes")
        shape = kept_shape(x, out_axis, True) if keepdims else ()
        return reduce("cub::DeviceReduce", cupy.ascontiguousarray(x), op, reduce_axis, 1, shape, out)

    def device_segmented_reduce(
        x: Any, op: Any, reduce_axis: Sequence[int], out_axis: Sequence[int], out: Any = None, keepdims: bool = False,
        contiguous_size: int = 0,
    ) -> Any:
        shape = kept_shape(x, out_axis, keepdims)
        if out is not None and out.shape != shape:
            raise ValueError(f"out has shape {out.shape}, not {shape}")
        rows, order = x.size // contiguous_size, "C" if x.flags.c_contiguous else "F"
        return reduce("cub::DeviceSegmentedReduce", x, op, reduce_axis, rows, shape, out, order)

    def device_scan(x: Any, op: Any) -> Any:
        if x.size:
            x = cupy.ascontiguousarray(x)
            accumulate = np.add.accumulate if op == cub.CUPY_CUB_CUMSUM else np.multiply.accumulate
            dtype, pointer, size = x.dtype, x.data.ptr, x.size

            def work() -> None:
                values = view(dtype, pointer, (size,))
                with np.errstate(all="ignore"):
                    values[...] = accumulate(values.copy(), dtype=dtype)

            in_order(cupy, "cub::DeviceScan", work)
        return x

    def device_histogram(x: Any, y: Any, bins: Any) -> Any:
        x = cupy.ascontiguousarray(x)
        levels = cupy.ascontiguousarray(bins) if isinstance(bins, cupy.ndarray) else None

        def work() -> None:
            edges = np.arange(bins) if levels is None else view(levels.dtype, levels.data.ptr, levels.shape)
            bin_of = np.searchsorted(edges, view(x.dtype, x.data.ptr, (x.size,)), side="right") - 1
            bin_of = bin_of[(bin_of >= 0) & (bin_of < y.size)]
            view(y.dtype, y.data.ptr, (y.size,))[...] = np.bincount(bin_of, minlength=y.size)

        in_order(cupy, "cub::DeviceHistogram", work)
        return y

    cub.device_reduce, cub.device_segmented_reduce = device_reduce, device_segmented_reduce
    cub.device_scan, cub.device_histogram = device_scan, device_histogram
