"""The libraries in CUDA's place: loading them, counting and tracing what the device is asked to do."""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fakegpu.settings import CACHE

FIELDS = (
    "launches", "mallocs", "frees", "malloc_bytes", "h2d", "d2h", "d2d", "memsets", "syncs", "event_records",
    "event_syncs", "gemms", "module_loads", "illegal_in_capture", "h2d_bytes", "d2h_bytes", "host_allocs",
    "graph_launches", "errors",
)

Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Tracer = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_long)

library: Any = None                 # libcuda.so.1
_tracer: Any = None                 # kept, or it would be freed while C calls it


class _Counts(ctypes.Structure):    # FakegpuCounts of src/device.h
    _fields_ = [(field, ctypes.c_long) for field in FIELDS]


def load() -> None:
    """Load libcuda and cuBLAS, so that CuPy's modules find them by their names. Raises ImportError."""
    global library
    if library is not None:
        return
    library = ctypes.CDLL(str(CACHE / "lib" / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    blas = ctypes.CDLL(str(CACHE / "lib" / "libcublas.so.12"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(CACHE / "lib" / "libcublasLt.so.12"), mode=ctypes.RTLD_GLOBAL)
    if not blas.fakegpu_use_openblas(str(_openblas()).encode()):
        raise ImportError(f"fakegpu: {_openblas()} is not the OpenBLAS of NumPy's wheel")
    pointer, text, number, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_size_t
    library.fakegpu_perform.argtypes = [pointer, text, text, number, number, Work, pointer, size]
    library.fakegpu_does_work_later.argtypes = [pointer]
    library.fakegpu_wait_for_host_work.argtypes = [pointer, text]
    library.fakegpu_poison.argtypes = [pointer, size, pointer]
    library.fakegpu_graph_nodes.argtypes = [pointer, text, size]


def _openblas() -> Path:
    import numpy

    folder = Path(numpy.__file__).parent.parent / "numpy.libs"
    return next(folder.glob("libscipy_openblas64_*"), folder)


# --- counting and tracing ---


def counts() -> dict[str, int]:
    """How often the device was asked for what, since the process began or `reset`."""
    found = _Counts.in_dll(library, "fakegpu_counts")
    return {field: getattr(found, field) for field in FIELDS}


def reset() -> None:
    """Set all counters to 0."""
    found = _Counts.in_dll(library, "fakegpu_counts")
    ctypes.memset(ctypes.addressof(found), 0, ctypes.sizeof(found))


def execute(on: bool) -> None:
    """False: kernels, products and copies within the device are counted and not done."""
    ctypes.c_int.in_dll(library, "fakegpu_execute").value = int(on)


def executes() -> bool:
    """Whether work is done, and not only counted."""
    return bool(ctypes.c_int.in_dll(library, "fakegpu_execute").value)


def trace(function: Callable[[str, str, int, int], Any] | None) -> None:
    """Call function(what, name, a, b) for every launch, product, copy, allocation and wait; None ends it.

    a, b: of a launch, blocks and threads a block; of copies and allocations, a is the number of bytes.
    """
    global _tracer
    pointer = ctypes.c_void_p.in_dll(library, "fakegpu_on_event")
    pointer.value = None
    _tracer = Tracer(lambda what, name, a, b: function(what.decode(), name.decode(), a, b)) if function else None
    if _tracer:
        pointer.value = ctypes.cast(_tracer, ctypes.c_void_p).value


def graph_nodes(graph: Any) -> list[str]:
    """The names of the nodes of a `cupy.cuda.Graph`."""
    names = ctypes.create_string_buffer(1 << 20)
    library.fakegpu_graph_nodes(graph.graph, names, len(names))
    return names.value.decode().splitlines()


# --- memory ---


def poison_pool(cupy: ModuleType) -> None:
    """Fill what CuPy's memory pool gives out and takes back with NaN, or -1 in integers."""
    current = cupy.cuda.get_current_stream

    class Poison(cupy.cuda.MemoryHook):     # type: ignore[misc, name-defined]
        name = "Poison"

        def malloc_postprocess(self, **about: Any) -> None:
            library.fakegpu_poison(about["mem_ptr"], about["size"], current().ptr)

        def free_preprocess(self, **about: Any) -> None:
            library.fakegpu_poison(about["mem_ptr"], about["mem_size"], current().ptr)

    poison = Poison()
    poison.__enter__()
    atexit.register(poison.__exit__, None, None, None)
    atexit.register(execute, False)         # at exit arrays are freed when CuPy's streams are gone


def check_fences_at_exit() -> None:
    """Look for writes beyond the ends of what was not freed."""
    atexit.register(library.fakegpu_check_fences)
