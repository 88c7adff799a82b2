"""Compiling the CUDA text of this folder, and launching its kernels.

Compiling takes NVRTC 0.15 s for each module, however small it is. So the texts of several files are one module, which
is compiled when the first of its kernels is used, once for each type; CuPy keeps the result on disk.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from scratchvit.backend import Array

# {module: the files whose texts it consists of}
MODULES = {
    "updates": ("array_lists", "updates"),
    "norms": ("array_lists", "total_norm"),
    "rows": ("warps", "column_sums", "layer_norm", "cross_entropy", "draws", "softmax", "attention", "index_sums"),
    "maps": ("draws", "maps", "dropout"),
    "channels": ("warps", "batch_norm", "group_norm"),
    "windows": ("windows", "columns", "pooling"),
    "depthwise": ("windows", "column_sums", "depthwise"),
    "addresses": ("addresses",),
}
TYPES = {"f": ("float", "float"), "d": ("double", "double")}        # {dtype.char: (T, A)}

HEAD = r"""
typedef long long size;
#ifndef NAN // which NVRTC does not define
#define NAN __int_as_float(0x7fffffff)
#define INFINITY __int_as_float(0x7f800000)
#endif
"""


def text_of(module: str, dtype: Any) -> str:
    """The CUDA text of a module for arrays of a dtype: what NVRTC compiles."""
    stored, sums = TYPES[np.dtype(dtype).char]
    files = [importlib.import_module(f"{__package__}.{name}") for name in MODULES[module]]
    return "\n".join([f"typedef {stored} T;\ntypedef {sums} A;", HEAD, *(file.TEXT for file in files)])


@functools.cache
def kernel(module: str, name: str, char: str) -> Any:
    """A kernel as a `cupy.RawKernel`, for arrays whose `dtype.char` is char."""
    return _compiled(module, char).get_function(name)


@functools.cache
def _compiled(module: str, char: str) -> Any:
    import cupy

    return cupy.RawModule(code=text_of(module, char), options=("--std=c++17",))


def launch(
    module: str, name: str, like: Array, blocks: tuple[int, ...], threads: tuple[int, ...], *arguments: Any,
    shared: int = 0,
) -> None:
    """Start a kernel on the current stream, compiled for the dtype of `like`. Does nothing if there are no blocks.

    arguments: contiguous arrays, and None for a null pointer; integers, which are `long long` in the text, and floats,
    which are `double`; a structured NumPy array (1,), which is passed by value as a struct. shared: bytes of dynamic
    shared memory for each block.
    """
    if 0 not in blocks:
        given = tuple(NULL if argument is None else argument for argument in arguments)
        kernel(module, name, like.dtype.char)(blocks, threads, given, shared_mem=shared)


NULL = np.intp(0)


def divide(n: int, by: int) -> int:
    """n / by, rounded up."""
    return -(-n // by)
