"""cuBLAS, NVIDIA's library of matrix products: its functions, and a handle for each thread, device and stream.

CuPy has bindings of its own, and refuses to use them while a stream is captured into a CUDA graph, where cuBLAS itself
works. So it is called through its C interface here, from the library that CuPy has loaded.

A handle belongs to one thread and one device, as CuPy's do, and nobody else changes its settings. For every stream
it has a workspace of the same size: then cuBLAS chooses the same kernels, and so gives the same bits, inside and
outside of a graph, and does not allocate one while a graph is captured. The first products in a stream create these
things and load kernels, so they belong before the capture.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from types import SimpleNamespace
from typing import Any

WORKSPACE_BYTES = 32 << 20              # what NVIDIA recommends for compute capability 9.0; older ones need less

# Of CUDA's enumerations
REAL_TYPES = {"f": 0, "d": 1, "e": 2, "E": 14}              # {dtype.char: cudaDataType}; E is ml_dtypes' bfloat16
IN_FLOAT32, IN_FLOAT64, IN_TF32 = 68, 70, 77                # cublasComputeType_t
NOT_SUPPORTED = 15                                          # cublasStatus_t

POINTER, INT, LONG, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_size_t
_OPERATIONS_AND_SIZES = [POINTER, INT, INT, INT, INT, INT]  # handle, transpositions of A and B, m, n, k
_MATRIX, _STACK = [POINTER, INT, INT], [POINTER, INT, INT, LONG]    # pointer, type, leading dimension; stride
SIGNATURES = {
    "cublas": {
        "cublasCreate_v2": [POINTER],
        "cublasDestroy_v2": [POINTER],
        "cublasSetStream_v2": [POINTER, POINTER],
        "cublasSetWorkspace_v2": [POINTER, POINTER, SIZE],
        "cublasGemmEx": [*_OPERATIONS_AND_SIZES, POINTER, *_MATRIX, *_MATRIX, POINTER, *_MATRIX, INT, INT],
        "cublasGemmStridedBatchedEx": [
            *_OPERATIONS_AND_SIZES, POINTER, *_STACK, *_STACK, POINTER, *_STACK, INT, INT, INT,
        ],
        "cublasGemmBatchedEx": [*_OPERATIONS_AND_SIZES, POINTER, *_MATRIX, *_MATRIX, POINTER, *_MATRIX, INT, INT, INT],
    },
    "cublasLt": {
        "cublasLtMatmulDescCreate": [POINTER, INT, INT],
        "cublasLtMatmulDescDestroy": [POINTER],
        "cublasLtMatmulDescSetAttribute": [POINTER, INT, POINTER, SIZE],
        "cublasLtMatrixLayoutCreate": [POINTER, INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64],
        "cublasLtMatrixLayoutDestroy": [POINTER],
        "cublasLtMatmulPreferenceCreate": [POINTER],
        "cublasLtMatmulPreferenceDestroy": [POINTER],
        "cublasLtMatmulPreferenceSetAttribute": [POINTER, INT, POINTER, SIZE],
        "cublasLtMatmulAlgoGetHeuristic": [*[POINTER] * 7, INT, POINTER, POINTER],
        "cublasLtMatmul": [*[POINTER] * 14, SIZE, POINTER],
    },
}


@functools.cache
def library() -> Any:
    """The functions of cuBLAS and cublasLt by name, which raise CuPy's CUBLASError if they fail; and CuPy's that say
    for which device and stream they are called.

    Raises cuda.pathfinder's DynamicLibNotFoundError, as CuPy does, if a library is missing; see gpu.py.
    """
    import cupy
    from cuda import pathfinder
    from cupy_backends.cuda.libs.cublas import CUBLASError

    def check(status: int) -> None:
        if status:
            raise CUBLASError(status)

    functions = SimpleNamespace(
        Error=CUBLASError, current_device=cupy.cuda.device.get_device_id, current_stream=cupy.cuda.get_current_stream
    )
    for name, signatures in SIGNATURES.items():
        loaded = ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib(name).abs_path)
        for function_name, types in signatures.items():
            function = getattr(loaded, function_name)
            function.argtypes, function.restype = types, check      # ctypes calls check with the status
            setattr(functions, function_name, function)
    return functions


class Handle:
    """A handle of cuBLAS for the current device, which cublasLt takes too, and what is kept with it."""

    def __init__(self, device: int):
        import cupy

        self.cupy, self.device = cupy, device
        self.pointer = POINTER()
        self.stream = -1                                    # none yet
        self.workspaces: dict[int, Any] = {}                # {stream: its memory}
        self.prepared: dict[Any, Any] = {}                  # products with epilogues: see blas_lt.py
        library().cublasCreate_v2(ctypes.byref(self.pointer))
        kept = self.workspaces, self.prepared
        weakref.finalize(self, _destroy, cupy, device, self.pointer, kept)      # at the latest when Python ends

    def set_stream(self, stream: int) -> None:
        """Work on a stream from now on, with its workspace, which cuBLAS forgets when the stream changes."""
        if stream not in self.workspaces:
            self.workspaces[stream] = self.cupy.cuda.alloc(WORKSPACE_BYTES)
        self.stream = -1                # until both calls have succeeded
        library().cublasSetStream_v2(self.pointer, stream)
        library().cublasSetWorkspace_v2(self.pointer, self.workspaces[stream].ptr, WORKSPACE_BYTES)
        self.stream = stream

    def workspace(self) -> int:
        """The address of the current stream's workspace."""
        return self.workspaces[self.stream].ptr


def _destroy(cupy: Any, device: int, pointer: Any, kept: tuple[dict[Any, Any], ...]) -> None:
    for things in kept:
        things.clear()
    with cupy.cuda.Device(device):
        library().cublasDestroy_v2(pointer)


class _Handles(threading.local):
    def __init__(self) -> None:
        self.of_device: dict[int, Handle] = {}


_handles = _Handles()


def current_handle() -> Handle:
    """The calling thread's handle for the current device, on the current stream."""
    device, stream = library().current_device(), library().current_stream().ptr
    handle = _handles.of_device.get(device)
    if handle is None:
        handle = _handles.of_device[device] = Handle(device)
    if stream != handle.stream:
        handle.set_stream(stream)
    return handle
