"""The GPU: finding CuPy and a device, proving that they compute, and what their errors mean, in a sentence each.

CuPy can be imported, count devices and allocate without the libraries that it computes with: NVRTC compiles its
kernels, cuBLAS multiplies matrices. Whether they are there shows at the first kernel. So `open_gpu` runs three small
ones, and what fails is told with the command that mends it.

Errors are recognised by the module and the name of their class, so that CuPy need not be there.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from scratchvit.errors import ScratchvitError

OLDEST = 14                                             # CuPy's major version: the first with NumPy 2's rules of dtypes
OLDEST_CUDA = 12                                        # that CuPy 14 is built for
PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")     # on PyPI; all of them install the module cupy
ON_THE_CPU = 'or continue with use("cpu")'

# {class: the beginning of its module}: what CuPy raises about the device and its libraries.
_CLASSES = {
    "OutOfMemoryError": "cupy", "CompileException": "cupy",
    "CUDARuntimeError": "cupy_backends", "CUDADriverError": "cupy_backends", "NVRTCError": "cupy_backends",
    "CUBLASError": "cupy_backends", "DynamicLibNotFoundError": "cuda.",
}
_NO_MEMORY = {
    "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED",
}
# After these, every further call fails: "the process must be terminated and relaunched" (CUDA's documentation).
_KERNEL_FAILED = {
    "cudaErrorIllegalAddress", "cudaErrorLaunchFailure", "cudaErrorLaunchTimeout", "cudaErrorMisalignedAddress",
    "cudaErrorIllegalInstruction", "cudaErrorHardwareStackError", "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc",
    "cudaErrorAssert", "cudaErrorECCUncorrectable",
    "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE", "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_ASSERT", "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_MAPPING_ERROR", "CUBLAS_STATUS_INTERNAL_ERROR",
}
_OTHER_CUDA = {         # the driver is older than what CuPy was built for, or CuPy than the device
    "cudaErrorInsufficientDriver", "cudaErrorUnsupportedPtxVersion", "cudaErrorNoKernelImageForDevice",
    "cudaErrorCompatNotSupportedOnDevice", "cudaErrorSystemDriverMismatch",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
}
_LIBRARY = re.compile(r"(?:lib)?(?:nvrtc|cublas|nvJitLink|cudart)\w*\.(?:so[.\d]*|dll)", re.IGNORECASE)


# --- finding and proving --------------------------------------------------------------------------------------------


def open_gpu(number: int) -> tuple[Any, Any]:
    """The modules cupy and cupyx.scipy.special, after GPU `number` has computed what it must.

    Raises ScratchvitError: one sentence, with the pip line where a package is the reason. Nothing else.
    """
    from scratchvit import compiling  # loads tqdm

    cupy, special = _import()
    count = _count(cupy)
    if number >= count:
        known = ", ".join(f"gpu:{n} ({_name(cupy, n)})" for n in range(count))
        raise ScratchvitError(f"there is no GPU {number}: CuPy finds {known}")
    try:
        with cupy.cuda.Device(number):
            compiling.watch(cupy)
            prove(cupy, number)
    except ScratchvitError:
        raise
    except Exception as error:
        raise ScratchvitError(_cannot_compute(error, number, count)) from error
    return cupy, special


def prove(cupy: Any, number: int) -> None:
    """Raise ScratchvitError if one of three kernels gives a wrong result. Numbers are small: TF32 has them exactly."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    x = cupy.asarray(values)
    for what, found, expected in (
        ("an element-wise sum", x + x, values + values),                    # NVRTC
        ("a sum over all entries", x.sum(), values.sum()),                  # CUB, or NVRTC
        ("a matrix product", cupy.matmul(x, x.T), values @ values.T),       # cuBLAS
    ):
        if not np.array_equal(result := cupy.asnumpy(found), expected):
            raise ScratchvitError(
                f"GPU {number} computes wrongly: {what} gave {result.tolist()}, not {expected.tolist()}: see "
                f"`nvidia-smi -q` for its errors, try another GPU, {ON_THE_CPU}"
            )


def _import() -> tuple[Any, Any]:
    found = installed()
    # Precompiled headers take a third off the time of compiling kernels. CuPy uses them from CUDA 12.8 on.
    os.environ.setdefault("CUPY_NVRTC_USE_PCH", "1")
    try:
        cupy = importlib.import_module("cupy")
        special = importlib.import_module("cupyx.scipy.special")
        version = str(cupy.__version__)     # a folder that an uninstalled CuPy left behind imports too, and has none
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy" and not found:
            raise ScratchvitError(
                f"the GPU needs CuPy, which is not installed ({_driver()}): {pip_line()}"
            ) from None
        cause = error.__cause__ or error    # CuPy's own text is twenty lines of advice around its cause
        what = _several(found) or f"{_names(found) or 'CuPy'} is installed but does not load"
        raise ScratchvitError(f"{what} ({_named(cause)}): {pip_line(afresh=True)}") from error
    major = re.match(r"\d+", version)
    if major and int(major[0]) < OLDEST:
        raise ScratchvitError(f"CuPy {version} is too old, {OLDEST} or later is needed: {pip_line()}")
    return cupy, special


def _count(cupy: Any) -> int:
    """The number of GPUs. Raises ScratchvitError if there is none."""
    driver = cuda_driver_version()
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        count, reason = 0, _one_line(error)
    else:
        reason = "it has no device; `nvidia-smi` should list one, and CUDA_VISIBLE_DEVICES must not hide it"
    if count:
        return count
    if driver is None:
        why = f"no CUDA driver was found: install NVIDIA's, {ON_THE_CPU}"
    elif driver[0] < max(OLDEST_CUDA, _cuda_of_cupy(cupy)):
        why = f"it was built for CUDA {max(OLDEST_CUDA, _cuda_of_cupy(cupy))}, {_driver()}: {pip_line()}, {ON_THE_CPU}"
    else:
        why = f"{_driver()}, but {reason}; {ON_THE_CPU}"
    raise ScratchvitError(f"CuPy {cupy.__version__} is installed but finds no GPU: {why}")


def number_of_gpus() -> int:
    """How many GPUs this process sees. Nothing is started on them.

    Raises ScratchvitError if CuPy is missing, or if there is none.
    """
    return _count(_import()[0])


def _cannot_compute(error: Exception, number: int, count: int) -> str:
    """The sentence for an error of the first kernels."""
    if is_out_of_memory(error):
        other = f", choose another GPU ({count} are there: gpu:0 … gpu:{count - 1})" if count > 1 else ""
        return (
            f"GPU {number} has no free memory{_memory(number)}: end the programs that hold it, which `nvidia-smi` "
            f"lists{other}, {ON_THE_CPU}"
        )
    if several := _several(installed()):
        return f"{several} ({_named(error)}): {pip_line(afresh=True)}"
    return explain(error) or (
        f"GPU {number} cannot compute ({_named(error)}): {pip_line(afresh=True)}, {ON_THE_CPU}"
    )


def _several(found: dict[str, str]) -> str | None:
    return f"{_names(found)} are installed, and the files of each overwrite the other's" if len(found) > 1 else None


def _names(found: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in found.items())


def installed() -> dict[str, str]:
    """{name of a CuPy package: its version}."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def pip_line(afresh: bool = False) -> str:
    """The command that installs CuPy, with the libraries that it computes with, for this machine's driver.

    afresh: what is installed must go first, as it does if it is for a later CUDA than the driver's.
    """
    driver, found = cuda_driver_version(), installed()
    if driver is not None and driver[0] < OLDEST_CUDA:
        return f"install a driver that supports CUDA {OLDEST_CUDA} or later"
    newest = 13 if driver is None or driver[0] >= 13 else 12
    fitting = [name for name in found if (cuda := _cuda_of_package(name)) and OLDEST_CUDA <= cuda <= newest]
    package = fitting[0] if len(found) == len(fitting) == 1 else f"cupy-cuda{newest}x"
    line = f'pip install "{package}[ctk]>={OLDEST}"'
    others = list(found) if afresh else [name for name in found if name != package]
    return f"pip uninstall {' '.join(others)}, then {line}" if others else line


def _cuda_of_package(name: str) -> int:
    """12 of cupy-cuda12x; 0 for a CuPy that was built on this machine, or by conda."""
    match = re.fullmatch(r"cupy-cuda(\d\d)x", name)
    return int(match[1]) if match else 0


def _cuda_of_cupy(cupy: Any) -> int:
    """The major version of CUDA that the imported CuPy was built for; 0 if it does not say."""
    with contextlib.suppress(Exception):
        return int(cupy.cuda.runtime.runtimeGetVersion()) // 1000
    return max(map(_cuda_of_package, installed()), default=0)


def _driver() -> str:
    version = cuda_driver_version()
    return "no CUDA driver was found" if version is None else f"the driver supports CUDA {version[0]}.{version[1]}"


def cuda_driver_version() -> tuple[int, int] | None:
    """The CUDA version that the installed driver supports, as (major, minor); None without a driver."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError):
            version = ctypes.c_int()
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
                return version.value // 1000, version.value % 1000 // 10
    return None


def descriptions() -> Iterator[str]:
    """A line for each GPU that CuPy finds: its name, compute capability and memory, or the error in their place.

    None if CuPy was not imported, as it is by `open_gpu`.
    """
    cupy: Any = sys.modules.get("cupy")
    if cupy is None or not hasattr(cupy, "cuda"):
        return
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception:       # there is none, which is what open_gpu says
        return
    for number in range(count):
        try:
            properties = cupy.cuda.runtime.getDeviceProperties(number)
            with cupy.cuda.Device(number):
                free, total = cupy.cuda.runtime.memGetInfo()
            yield (
                f"{_name(cupy, number)}, compute capability {properties['major']}.{properties['minor']}, "
                f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            )
        except Exception as error:
            yield told(error)


def capability(cupy: Any, number: int) -> tuple[tuple[int, int], str]:
    """The compute capability of a GPU, such as (9, 0), and its name."""
    digits = cupy.cuda.Device(number).compute_capability       # "90", "120"
    return (int(digits[:-1]), int(digits[-1])), _name(cupy, number)


def _name(cupy: Any, number: int) -> str:
    with contextlib.suppress(Exception):
        return str(cupy.cuda.runtime.getDeviceProperties(number)["name"].decode())
    return "its name cannot be read"


# --- what errors mean -----------------------------------------------------------------------------------------------


def explain(error: BaseException, batch_size: int | None = None) -> str | None:
    """What an error of CuPy's about the device or its libraries means and what to do, in a sentence; None for others.

    batch_size: images in the training step that raised it, if it was one.
    """
    if is_out_of_memory(error):
        at = "" if batch_size is None else f" with a batch of {batch_size} images"
        needed = re.search(r"allocating ([\d,]+) bytes", str(error))
        more = f", {_size(int(needed[1].replace(',', '')))} more are needed" if needed else ""
        parts = "" if batch_size is None else " or compute it in parts (--accumulate)"
        return (
            f"the memory of the GPU is full{at}{more}{_memory()}: use a smaller batch (--batch-size){parts}, smaller "
            "images (--img-size; --short-side of a detector), or a smaller model"
        )
    kind, text = _kind(error), _one_line(error)
    if kind is None:
        return _missing_library(text) if isinstance(error, ImportError | OSError | RuntimeError) else None
    if kind == "DynamicLibNotFoundError":
        return _missing_library(text) or f"a library of CUDA is missing ({text}): {pip_line()}"
    status = text.partition(":")[0]
    if has_failed_for_good(error):
        return (
            f"a kernel failed on the GPU ({text}), and whatever this process still asks of the GPU fails too: run it "
            "again with CUDA_LAUNCH_BLOCKING=1 in the environment, so that the traceback ends where the kernel was "
            "started"
        )
    if status in _OTHER_CUDA:
        return f"CuPy does not suit this GPU and its driver ({text}; {_driver()}): {pip_line(afresh=True)}"
    if kind in ("CompileException", "NVRTCError"):
        return (
            f"a kernel could not be compiled for the GPU ({text}): CuPy and NVRTC must suit each other and the GPU, as "
            f"after {pip_line(afresh=True)}"
        )
    if status == "CUBLAS_STATUS_NOT_INITIALIZED":
        return (
            f"cuBLAS does not start on the GPU ({text}), mostly because too little memory is free{_memory()}: end the "
            "programs that hold it, which `nvidia-smi` lists, or use a smaller batch (--batch-size)"
        )
    if kind == "CUBLASError":
        return f"a matrix product failed on the GPU ({text}): CuPy and cuBLAS must suit each other: {pip_line(True)}"
    return f"the GPU reports an error ({text}): see `nvidia-smi`, or run `scratchvit doctor`"


def told(error: BaseException) -> str:
    """A sentence for any error: `explain`'s, that of a ScratchvitError, or the name of its class and its text."""
    return explain(error) or (str(error) if isinstance(error, ScratchvitError) else _named(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU is full. Nothing else is lost then."""
    kind = _kind(error)
    return kind == "OutOfMemoryError" or (kind is not None and _one_line(error).partition(":")[0] in _NO_MEMORY)


def has_failed_for_good(error: BaseException) -> bool:
    """Whether every later call of this process fails too, such as one that reads weights to save them."""
    return _kind(error) is not None and _one_line(error).partition(":")[0] in _KERNEL_FAILED


def _kind(error: BaseException) -> str | None:
    """The name of CuPy's class that an error is of; None for other errors."""
    for each in type(error).__mro__:
        module = _CLASSES.get(each.__name__)
        if module is not None and each.__module__.startswith(module):
            return each.__name__
    return None


def _missing_library(text: str) -> str | None:
    """The sentence about the library of CUDA that a text names; None if it names none."""
    wanted = re.search('Failure finding "([^"]+)"', text)       # after it come the folders that were searched
    names = list(dict.fromkeys(name.rstrip(".") for name in _LIBRARY.findall(wanted[1] if wanted else text)))
    if not names:
        return None
    return f"CuPy does not find {' or '.join(names)}, with which it computes: {pip_line()}"


def _memory(number: int | None = None) -> str:
    """How full the GPU is, in brackets; "" if it does not answer."""
    cupy: Any = sys.modules.get("cupy")
    try:
        with cupy.cuda.Device(number):      # None: the current one
            free, total = cupy.cuda.runtime.memGetInfo()
            held = cupy.get_default_memory_pool().total_bytes()
    except Exception:       # no CuPy, or a device that has failed
        return ""
    return f" (of {_size(total)}, this process holds {_size(held)} and {_size(free)} are free)"


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 or number == 0 else f"{number / 2**20:.1f} MiB"


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException, most: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]}…"
