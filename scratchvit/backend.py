"""Devices: NumPy on the CPU and CuPy on the GPU behind one interface.

Ops get the array module from their data (`xp = array_module(x)`), so the same code runs on both. Only functions of this
file copy data between devices: `asarray` to the current device, `asnumpy` to the host.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import importlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import threadpoolctl

from scratchvit.errors import ScratchvitError, WrongType

Array: TypeAlias = Annotated[Any, "array"]
"""A `numpy.ndarray` or a `cupy.ndarray`. Parameters of an op that carry this annotation are differentiable."""

AnyArray: TypeAlias = Annotated[Any, "array of any dtype"]
"""Like Array, but the op itself handles integers and bool, such as class indices."""


@dataclass(frozen=True)
class Backend:
    """A device and the array module that computes on it."""

    name: str                               # "cpu" or "gpu"
    xp: Any                                 # numpy, cupy
    special: Any                            # scipy.special, cupyx.scipy.special
    array_type: Any
    to_host: Callable[[Any], np.ndarray]
    synchronize: Callable[[], None] = lambda: None


class _ImportedWhenUsed:
    """A module that is imported on first use, because importing it is slow and few programs need it."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


CPU = Backend("cpu", np, _ImportedWhenUsed("scipy.special"), np.ndarray, np.asarray)

# Where CuPy returns 0-d arrays, NumPy returns scalars; they are treated as arrays.
_by_array_type: dict[type, Backend] = {np.ndarray: CPU, np.float32: CPU, np.float64: CPU}
_current: Backend | None = None             # None until first use, then set by SCRATCHVIT_DEVICE


def use(device: str | Backend) -> Backend:
    """Make `"cpu"` or `"gpu"` the device on which new data is placed.

    Raises ScratchvitError, with a `pip install` command, if CuPy or a device is missing.
    """
    global _current
    if isinstance(device, str):
        if device not in ("cpu", "gpu"):
            raise ScratchvitError(f'unknown device {device!r}: choose "cpu" or "gpu"')
        device = CPU if device == "cpu" else _gpu()
    _by_array_type[device.array_type] = device
    _current = device
    return device


def default_device() -> str:
    """The default device: the environment variable SCRATCHVIT_DEVICE, or "cpu"."""
    return os.environ.get("SCRATCHVIT_DEVICE", "cpu")


def current() -> Backend:
    """The backend in use."""
    return _current or use(default_device())


def device() -> str:
    """The name of the device in use: `"cpu"` or `"gpu"`."""
    return current().name


@functools.cache
def _gpu() -> Backend:
    cuda = cuda_driver_version()
    package = "cupy-cuda13x" if cuda is None or cuda[0] >= 13 else "cupy-cuda12x"
    extra = package.removeprefix("cupy-").removesuffix("x")
    try:
        import cupy
        import cupyx.scipy.special
    except ImportError:
        found = "no CUDA driver was found either" if cuda is None else f"the driver supports CUDA {cuda[0]}.{cuda[1]}"
        raise ScratchvitError(
            f'the GPU needs CuPy, which is not installed ({found}): pip install "scratchvit[{extra}]"'
        ) from None
    if not cupy.cuda.is_available():
        reason = (
            "no CUDA driver was found" if cuda is None
            else f"the driver (CUDA {cuda[0]}.{cuda[1]}) reports no device; if CuPy was built for another CUDA "
                 f'version: pip install "scratchvit[{extra}]"'
        )
        raise ScratchvitError(
            f'CuPy {cupy.__version__} is installed but finds no GPU: {reason}; or continue with use("cpu")'
        )
    return Backend(
        "gpu", cupy, cupyx.scipy.special, cupy.ndarray, cupy.asnumpy,
        lambda: cupy.cuda.get_current_stream().synchronize(),
    )


def cuda_driver_version() -> tuple[int, int] | None:
    """The CUDA version that the installed driver supports, as (major, minor); None without a driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError):
            version = ctypes.c_int()
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
                return version.value // 1000, version.value % 1000 // 10
    return None


# --- arrays ---------------------------------------------------------------------------------------------------------


def is_array(x: Any) -> bool:
    """Whether x is an array of a backend that has been used in this process."""
    return type(x) in _by_array_type


def backend_of(x: Array) -> Backend:
    """The backend of the array x."""
    try:
        return _by_array_type[type(x)]
    except KeyError:
        raise WrongType(f"expected an array or a Tensor, got {type(x).__name__}") from None


def array_module(x: Array) -> Any:
    """`numpy` for a NumPy array, `cupy` for a CuPy array."""
    return backend_of(x).xp


def asarray(x: Any, dtype: Any = None) -> Array:
    """x as an array on the device in use. Python floats become float32; arrays keep their dtype unless one is given."""
    target = current()
    if type(x) is target.array_type:
        return x if dtype is None else x.astype(dtype, copy=False)
    host: np.ndarray = asnumpy(x) if is_array(x) else np.asarray(x)
    if dtype is None and not is_array(x) and host.dtype == np.float64:
        dtype = np.float32
    return target.xp.asarray(host if dtype is None else host.astype(dtype, copy=False))


def asnumpy(x: Array) -> np.ndarray:
    """x as a NumPy array on the host. On the GPU this waits for the device."""
    return backend_of(x).to_host(x)


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a shape can be broadcast to the target shape."""
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape[::-1], target[::-1]))


def erf(x: Array) -> Array:
    """The error function in full precision. (`kernels.gelu` has a faster form for float32.)"""
    return backend_of(x).special.erf(x)


# --- the CPU's cores and memory -------------------------------------------------------------------------------------

BLOCK_BYTES = 1 << 20       # 1 MiB: small enough for the cache, large enough that Python's share is small
PARALLEL_BYTES = 1 << 20    # for smaller arrays, distributing rows to threads costs more than it saves


def cpu_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_threads() -> int:
    """The number of threads for work on the CPU: that of BLAS (OMP_NUM_THREADS), but at most the number of cores."""
    numbers = [pool["num_threads"] for pool in _blas().info()]
    if not numbers and (number := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        numbers = [int(number)]     # threadpoolctl does not support Accelerate, which NumPy uses on macOS
    return max(1, min(max(numbers, default=cpu_cores()), cpu_cores()))


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cpu_threads(), thread_name_prefix="scratchvit")


_dealing = threading.Lock()     # the limit on BLAS applies to the whole process, so only one `deal` runs at a time


def _forget_threads() -> None:
    """Reset thread pools in a child process of `os.fork`, which does not inherit the parent's threads."""
    global _dealing
    _pool.cache_clear()
    _dealing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def deal(fn: Callable[..., Any], blocks: Sequence[tuple[Array, ...]], threads: int) -> list[Any]:
    """Call `fn(*block)` for every block in a pool of threads; returns the results in the order of the blocks.

    NumPy releases the GIL inside each call, so Python threads run in parallel. Their matrix products are
    single-threaded.
    """
    threads = min(threads, len(blocks))
    results: list[Any] = [None] * len(blocks)
    remaining = iter(enumerate(blocks))

    def work() -> None:
        for number, block in remaining:     # the iterator is shared: each block goes to one thread
            results[number] = fn(*block)

    if threads <= 1:
        work()
        return results
    with _dealing, _blas().limit(limits=1):
        # Each thread runs in a copy of this thread's context, which includes NumPy's error state.
        others = [_pool().submit(contextvars.copy_context().run, work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
    return results


def parallel_rows(fn: Callable[..., Any], *arrays: Array, block_bytes: int = BLOCK_BYTES) -> list[Any]:
    """Call `fn(*blocks)` for blocks of rows (axis 0) of the arrays, which all have the same number of rows.

    On the CPU, the blocks of the largest array have about block_bytes, which fits in the cache, and are distributed to
    threads: a chain of NumPy calls on one block then runs at the speed of the cache on every core. On a GPU, fn is
    called once with the whole arrays. Returns a list of the results of fn in the order of the rows, so that their sum
    is reproducible.
    """
    rows = len(arrays[0])
    if backend_of(arrays[0]) is not CPU or rows == 0:
        return [fn(*arrays)]
    largest = max(a.nbytes for a in arrays)
    step = max(1, rows * block_bytes // max(1, largest))
    threads = cpu_threads() if largest >= PARALLEL_BYTES else 1
    if threads > 1:     # enough blocks for all threads to finish at about the same time
        step = min(step, math.ceil(rows / (2 * threads)))
    return deal(fn, [tuple(a[i : i + step] for a in arrays) for i in range(0, rows, step)], threads)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next array instead of returning it to the system.

    A new 50 MB array causes page faults, which often take longer than the computation itself, and every training step
    allocates the same arrays again. Affects the whole process. Returns whether it worked (only on Linux with glibc).
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False
