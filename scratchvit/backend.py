"""Devices: NumPy on the CPU and CuPy on the GPU behind one interface.

Ops get the array module from their data (`xp = array_module(x)`), so the same code runs on both. Only functions of this
file copy data between devices: `asarray`, and `upload` for the images of batches, to the current device, `asnumpy` to
the host. gpu.py finds CuPy and the GPU.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np

from scratchvit.errors import ScratchvitError, WrongType
from scratchvit.gpu import open_gpu
from scratchvit.upload import Upload

Array: TypeAlias = Annotated[Any, "array"]
"""A `numpy.ndarray` or a `cupy.ndarray`. Parameters of an op that carry this annotation are differentiable."""

AnyArray: TypeAlias = Annotated[Any, "array of any dtype"]
"""Like Array, but the op itself handles integers and bool, such as class indices."""


@dataclass(frozen=True)
class Backend:
    """A device and the array module that computes on it."""

    name: str                               # "cpu", "gpu", "gpu:1"
    xp: Any                                 # numpy, cupy
    special: Any                            # scipy.special, cupyx.scipy.special
    array_type: Any
    to_host: Callable[[Any], np.ndarray]
    synchronize: Callable[[], None] = lambda: None
    select: Callable[[], None] = lambda: None       # makes it the current device of the calling thread
    here: Callable[[Any], Any] = lambda x: x        # a copy of an array of array_type that lies on another device
    has_cuda: bool = False                          # whether kernels/cuda run on its arrays
    upload: Callable[..., Any] | None = None        # takes the images of a batch to a GPU: see `upload`
    held: Callable[[], int] | None = None           # bytes of a GPU's memory that CuPy's own pool has taken


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
    """Make `"cpu"`, `"gpu"` or `"gpu:1"` (the second GPU) the device on which new data is placed.

    Arrays that exist stay where they are. All threads use the device; CuPy's own current device belongs to a thread,
    and is set here for the calling one, and for others when they place data. The first use of a GPU in a process runs
    three small kernels on it.

    Raises ScratchvitError, with a `pip install` command where that helps, if CuPy, a library or the device is missing
    or does not compute.
    """
    global _current
    if isinstance(device, str):
        number = gpu_number(device)
        device = CPU if number is None else _gpu(number)
    _by_array_type[device.array_type] = device
    device.select()
    _current = device
    return device


def gpu_number(device: str) -> int | None:
    """The number of a GPU: 0 for "gpu", 1 for "gpu:1"; None for "cpu". Raises ScratchvitError for another name."""
    if device == "cpu":
        return None
    match = re.fullmatch(r"gpu(?::(\d+))?", str(device), re.ASCII)
    if not match:
        raise ScratchvitError(f'unknown device {device!r}: choose "cpu", "gpu", or "gpu:1" for the second GPU')
    return int(match[1] or 0)


def default_device() -> str:
    """The default device: the environment variable SCRATCHVIT_DEVICE, or "cpu"."""
    return os.environ.get("SCRATCHVIT_DEVICE", "cpu")


def current() -> Backend:
    """The backend in use, which is also made the current device of the calling thread."""
    if _current is None:
        return use(default_device())
    _current.select()
    return _current


def device() -> str:
    """The name of the device in use: `"cpu"`, `"gpu"` or, for the second GPU, `"gpu:1"`."""
    return current().name


@functools.cache
def _gpu(number: int) -> Backend:
    cupy, special = open_gpu(number)
    device = cupy.cuda.Device(number)
    is_only_one = cupy.cuda.runtime.getDeviceCount() == 1

    def here(x: Any) -> Any:
        return x if is_only_one or x.data.device_id == number else x.copy()     # a copy is made on the current device

    return Backend(
        f"gpu:{number}" if number else "gpu", cupy, special, cupy.ndarray, cupy.asnumpy,
        synchronize=lambda: cupy.cuda.get_current_stream().synchronize(), select=device.use, here=here,
        has_cuda=True, upload=Upload(cupy), held=cupy.get_default_memory_pool().total_bytes,
    )


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
        x = target.here(x)
        return x if dtype is None else x.astype(dtype, copy=False)
    host: np.ndarray = asnumpy(x) if is_array(x) else np.asarray(x)
    if dtype is None and not is_array(x) and host.dtype == np.float64:
        dtype = np.float32
    return target.xp.asarray(host if dtype is None else host.astype(dtype, copy=False))


def upload(images: np.ndarray, convert: Callable[[Array], Array]) -> Array:
    """convert(images) on the device in use. On a GPU, the copy is made beside its work: see upload.py.

    convert must return a new array there. On the CPU it is called with the images themselves.
    """
    target = current()
    if target.upload is None:
        return convert(asarray(images))
    return target.upload(images, convert)


def asnumpy(x: Array) -> np.ndarray:
    """x as a NumPy array on the host. On the GPU this waits for the device."""
    return backend_of(x).to_host(x)


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a shape can be broadcast to the target shape."""
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape[::-1], target[::-1]))


def erf(x: Array) -> Array:
    """The error function in full precision. (`kernels.gelu` has a faster form for float32.)"""
    return backend_of(x).special.erf(x)


# --- memory ---------------------------------------------------------------------------------------------------------


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next array instead of returning it to the system.

    A new 50 MB array causes page faults, which often take longer than the computation itself, and every training step
    allocates the same arrays again. New threads do not get heaps of their own, whose freed memory the other threads
    could not use. Affects the whole process. Returns whether it worked (only on Linux with glibc).
    """
    M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
    try:
        libc = ctypes.CDLL("libc.so.6")
        settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}
        return all(libc.mallopt(name, value) for name, value in settings.items())
    except (OSError, AttributeError):
        return False
