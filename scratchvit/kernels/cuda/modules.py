"""Compiling the CUDA text of this folder, and launching its kernels.

Compiling takes NVRTC 0.15 s for each module, however small it is. So the texts of several files are one module, which
is compiled when the first of its kernels is used, once for each type; CuPy keeps the result on disk.

The types of 16 bits are those of CUDA's headers, which CuPy needs for every kernel and gives NVRTC the folder of. They
are included where they are used only, since NVRTC takes a while to read them.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from scratchvit.backend import Array

# flash.py is compiled for rows of these lengths, to which others are filled up.
FLASH = {f"flash_{width}": width for width in (32, 64, 96, 128)}

# {module: the files whose texts it consists of}
MODULES = {
    "updates": ("array_lists", "updates"),
    "norms": ("array_lists", "total_norm", "decision"),
    "rows": (
        "warps", "column_sums", "draws", "layer_norm", "cross_entropy", "set_losses", "softmax", "attention",
        "index_sums",
    ),
    "maps": ("draws", "column_sums", "maps", "bias_gelu", "dropout", "add_up"),
    "channels": ("warps", "batch_norm", "group_norm"),
    "windows": ("windows", "columns", "pooling"),
    "depthwise": ("windows", "column_sums", "depthwise"),
    "addresses": ("addresses",),
    **dict.fromkeys(FLASH, ("warps", "draws", "mma", "flash_tiles", "flash", "flash_backward")),
}
IN_FULL = ("norms", "addresses")        # modules that have no kernel for arrays of 16 bits
TYPES = {                               # {dtype.char: (T, A, the header of T)}
    "f": ("float", "float", None), "d": ("double", "double", None),
    "e": ("__half", "float", "cuda_fp16.h"), "E": ("__nv_bfloat16", "float", "cuda_bf16.h"),
}

HEAD = r"""
typedef long long size;
#ifndef NAN // which NVRTC does not define
#define NAN __int_as_float(0x7fffffff)
#define INFINITY __int_as_float(0x7f800000)
#endif
"""


def variants() -> list[tuple[str, str]]:
    """(module, dtype.char) of everything that is compiled."""
    chars = {**dict.fromkeys(IN_FULL, "fd"), **dict.fromkeys(FLASH, "feE")}
    return [(module, char) for module in MODULES for char in chars.get(module, TYPES)]


def least_capability(module: str) -> int:
    """The compute capability, 80 for 8.0, of the oldest GPUs that a module is compiled for."""
    return 80 if module in FLASH else 70


def text_of(module: str, char: str) -> str:
    """The CUDA text of a module for arrays whose `dtype.char` is char: what NVRTC compiles."""
    files = [importlib.import_module(f"{__package__}.{name}") for name in MODULES[module]]
    width = [f"#define WIDTH {FLASH[module]}"] if module in FLASH else []
    return "\n".join([head_of(char), *width, *(file.TEXT for file in files)])


def head_of(char: str) -> str:
    """What every text begins with: the types T and A, and `size`."""
    stored, computed, header = TYPES[char]
    types = [f"#include <{header}>"] if header else []
    return "\n".join([*types, f"typedef {stored} T;", f"typedef {computed} A;", HEAD])


def computed_in(x: Array) -> np.dtype:
    """The dtype A of what is computed from x: float64 for float64, otherwise float32."""
    return np.dtype(np.float64 if x.dtype.char == "d" else np.float32)


@functools.cache
def kernel(module: str, name: str, char: str) -> Any:
    """A kernel as a `cupy.RawKernel`, for arrays whose `dtype.char` is char."""
    return _compiled(module, char).get_function(name)


@functools.cache
def _compiled(module: str, char: str) -> Any:
    import cupy

    return cupy.RawModule(code=text_of(module, char), options=("--std=c++17",))


def compile_module(module: str, dtype: Any) -> None:
    """Compile a module for arrays of a dtype now, before the first of its kernels is used."""
    _compiled(module, np.dtype(dtype).char).compile()


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
