"""CUDA text into a shared object that runs it on the CPU, by g++ and kernel_headers/shim.h.

The objects are kept in $FAKEGPU_CACHE/kernels, named by their text, headers, compiler and processor.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fakegpu import settings

HEADERS = settings.ROOT / "kernel_headers"
OWN = [f"-I{HEADERS}"]      # not in names, which have the text of these headers: all checkouts share the objects
KERNELS = settings.CACHE / "kernels"
OPTIONS = [
    "-std=c++17", "-O1", "-ftree-vectorize", "-march=native", "-ffp-contract=fast", "-fno-strict-aliasing",
    "-fno-exceptions", "-fno-rtti", "-fPIC", "-fpermissive", "-w",
]
LINK = ["-shared", "-nostdlib", "-Wl,--hash-style=gnu", "-Wl,-O0"]

BOUNDS = r"__launch_bounds__\s*\([^)]*\)"
KERNEL = re.compile(rf"__global__\s+void\s+(?:{BOUNDS}\s*)?(\w+)\s*\(")
TEMPLATE = re.compile(rf"template\s*<[^;{{}}()]*>\s*(?:static\s+|inline\s+)*{KERNEL.pattern}")
BOUNDS_BEFORE_GLOBAL = re.compile(rf"({BOUNDS})\s*(__global__\s+void)")
EXTERN_SHARED = re.compile(r"extern\s+__shared__\s+((?:__align__\(\d+\)\s+)?[\w: ]+?)\s+(\w+)\s*\[\s*\]\s*;")
CONSTANT = re.compile(r"__constant__\s+(?:const\s+)?[\w: ]+?\s+(\w+)\s*(?:\[[^;=]*\])?\s*(?:=[^;]*)?;")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
NEEDS_FIBERS = re.compile(r"__syncthreads|__syncwarp|__shfl|_sync\s*\(|cub::|REDUCE\(|__activemask|mma\d")
NAMES_THREADS = re.compile(r"threadIdx|blockIdx|gridDim|blockDim")

CUPY_HEADERS = ("complex.cuh", "carray.cuh", "atomics.cuh", "math_constants.h")

# Shared memory is a section of its own, so that it can be filled with NaN before each block.
SHARED_SECTION = """
extern "C" __attribute__((weak, visibility("hidden"))) char __start_shim_shared[], __stop_shim_shared[];
extern "C" long shim_static_shared() { return __stop_shim_shared - __start_shim_shared; }
"""
ENTRY = """
extern "C" void {name}__launch(void** arguments, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                               unsigned bz, unsigned shared) {{
    shim::launch("{kernel}", &{kernel}, {mode}, arguments, {{gx, gy, gz}}, {{bx, by, bz}}, shared, __start_shim_shared,
                 __stop_shim_shared);
}}
extern "C" int {name}__sizes[64] = {{}};
extern "C" int {name}__nargs = shim::arity(&{kernel});
static int {name}__filled = (shim::sizes(&{kernel}, {name}__sizes), 0);
"""
CONSTANT_SIZE = 'extern "C" size_t {name}__bytes = sizeof({name});\n'


def build(
    source: str, include: Iterable[Path] = (), options: Iterable[str] = (), name_expressions: Sequence[str] | None = ()
) -> Path:
    """The shared object of a CUDA text, with `NAME__launch` for each of its kernels.

    include: folders of headers. options: NVRTC's, of which -D, -U and -I count. name_expressions: instances of
    templates, such as "scale<float>", whose NAME is `entry_name(expression)`. Raises RuntimeError if g++ refuses.
    """
    source = BOUNDS_BEFORE_GLOBAL.sub(r"\2 \1", source)
    code = COMMENT.sub("", source)
    templates = set(TEMPLATE.findall(code))
    kernels = [name for name in KERNEL.findall(code) if name not in templates]
    kernels = list(dict.fromkeys([*kernels, *(name_expressions or ())]))
    text = with_entries(source, kernels)
    folders = [f"-I{folder}" for folder in include]
    extra = [option for option in options if option.startswith(("-D", "-U", "-I"))]
    path = KERNELS / f"{_digest(text, *folders, *extra)}.so"
    if path.exists():
        return path
    KERNELS.mkdir(parents=True, exist_ok=True)
    # Other processes may compile the same text.
    cpp, part = (path.with_suffix(f".{os.getpid()}.{suffix}") for suffix in ("cpp", "part"))
    cpp.write_text(text)
    for define in ([], ["-DSHIM_NO_SECTION"]):      # templates cannot put their shared memory into the section
        header = HEADERS / "shim.h"
        if "<cupy/carray.cuh>" in source:
            header = precompiled_header([*folders, *define])
        command = ["g++", *OPTIONS, *define, *OWN, *folders, "-include", header, *extra, *LINK, cpp, "-o", part]
        done = subprocess.run(command, capture_output=True, text=True)
        if "section type conflict" not in done.stderr:
            break
    if done.returncode:
        raise RuntimeError(f"g++ cannot compile {kernels} for the stand-in:\n{done.stderr[:4000]}\n--- {cpp}")
    part.rename(path)
    cpp.unlink()
    return path


def with_entries(source: str, kernels: list[str]) -> str:
    """The text as C++, followed by an entry point for each kernel."""
    mode = mode_of(source)
    source = EXTERN_SHARED.sub(r"\1* \2 = (\1*)shim_state.dynamic_shared;", source)
    constants = list(dict.fromkeys(CONSTANT.findall(source)))
    entries = [ENTRY.format(name=entry_name(kernel), kernel=kernel, mode=mode) for kernel in kernels]
    return "".join([source, "\n", SHARED_SECTION, *entries, *(CONSTANT_SIZE.format(name=name) for name in constants)])


def mode_of(source: str) -> str:
    """How the threads of the text's kernels must run: see ShimMode in kernel_headers/shim_state.h."""
    code = COMMENT.sub("", source)
    if NEEDS_FIBERS.search(code):
        return "SHIM_FIBERS"
    return "SHIM_ONE_THREAD" if "CUPY_FOR" in code and not NAMES_THREADS.search(code) else "SHIM_SERIAL"


def entry_name(expression: str) -> str:
    """The name in C of a kernel or of a template's instance."""
    return expression if expression.isidentifier() else f"shim_{hashlib.sha1(expression.encode()).hexdigest()[:16]}"


def precompiled_header(flags: list[str]) -> Path:
    """shim.h and CuPy's headers, which would cost g++ a second for each kernel."""
    text = '#include "shim.h"\n' + "".join(f"#include <cupy/{name}>\n" for name in CUPY_HEADERS)
    folder = KERNELS / f"header-{_digest(text, *flags)}"
    header = folder / "kernel.h"
    if not header.with_suffix(".h.gch").exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{os.getpid()}.part"
        part.write_text(text)
        part.rename(header)         # at once: another process may be reading it
        subprocess.run(["g++", *OPTIONS, *OWN, *flags, "-x", "c++-header", header, "-o", part], check=True)
        part.rename(header.with_suffix(".h.gch"))
    return header


def _digest(*words: str) -> str:
    return hashlib.sha1("\0".join([_headers(), _machine(), *OPTIONS, *words]).encode()).hexdigest()


@functools.cache
def _headers() -> str:
    return "".join(path.read_text() for path in sorted(HEADERS.rglob("*.*h")))


@functools.cache
def _machine() -> str:
    """The compiler, and the processor for which -march=native compiles."""
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout
    processor = re.search(r"^flags\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return version + (processor.group() if processor else "")


def install(cupy: ModuleType) -> None:
    """Let CuPy compile by `build` and not by NVRTC."""
    from cupy.cuda import compiler

    include = [Path(cupy.__file__ or "").parent / "_core" / "include"]
    ask_nvrtc = compiler._compile_using_nvrtc_no_warning

    def compile_text(
        source: str, options: Sequence[str] = (), arch: Any = None, filename: str = "kern.cu",
        name_expressions: Sequence[str] | None = None, *others: Any, **more: Any,
    ) -> tuple[bytes, dict[str, str]]:
        if settings.ASK_NVRTC:
            ask_nvrtc(source, options, arch, filename, name_expressions, *others, **more)
        mapping = {expression: entry_name(expression) for expression in name_expressions or ()}
        if settings.COUNT_ONLY:
            return b"FAKEGPU:", mapping
        try:
            path = build(source, include, options, name_expressions)
        except RuntimeError as error:
            raise compiler.CompileException(str(error), source, filename, options) from None
        return f"FAKEGPU:{path}".encode(), mapping

    compiler._compile_using_nvrtc_no_warning = compile_text
    compiler._preprocess = lambda *arguments: "// for the key of CuPy's own cache, which is not used"
