"""What NVIDIA's own compiler says of CUDA text; it needs neither a GPU nor a driver.

    tests/fakegpu/run python -m fakegpu.nvrtc [--arch sm_70,sm_80,sm_90,sm_100,sm_120] [-DNAME=VALUE …] FILE.cu…

For each file and architecture it prints the registers of each kernel's threads, its static shared bytes, and the bytes
of registers that did not fit and were spilled to memory. The exit code is 1 if a text is refused.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = "sm_70,sm_80,sm_90,sm_100,sm_120"
REPORT = re.compile(        # of ptxas, on one kernel
    r"entry function '(?P<name>\w+)'.*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)", re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What a kernel uses: registers of a thread, bytes of static shared memory, bytes that a thread spills."""

    registers: int
    shared: int
    spilled: int


@functools.cache
def library() -> Any:
    """libnvrtc, from its wheel."""
    folder = _wheel("cuda_nvrtc") / "lib"
    ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so*"))), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so*"))))


def _wheel(name: str) -> Path:
    """The folder of one of NVIDIA's wheels."""
    spec = importlib.util.find_spec(f"nvidia.{name}")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def version() -> tuple[int, int]:
    """The compiler's version, such as (12, 9)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def compile(
    source: str, arch: str = "sm_90", options: Iterable[str] = (), name: str = "kernel.cu"
) -> dict[str, Resources]:
    """Compile a text to machine code: {kernel: what it uses}. Raises RuntimeError with the compiler's log."""
    nvrtc, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    flags = (
        f"-arch={arch}", "-default-device", "-std=c++17", "--ptxas-options=-v",
        f"-I{_wheel('cuda_runtime') / 'include'}", *options,
    )
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*map(str.encode, flags)))
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise RuntimeError(log.value.decode())
    return {report["name"]: _resources(report) for report in REPORT.finditer(log.value.decode())}


def _resources(report: re.Match[str]) -> Resources:
    shared = re.search(r"(\d+) bytes smem", report["rest"])
    spilled = max(int(report["stores"]), int(report["loads"]))
    return Resources(int(report["registers"]), int(shared[1]) if shared else 0, spilled)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default=ARCHITECTURES)
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args(argv)
    refused = 0
    for file in options.files:
        for arch in options.arch.split(","):
            try:
                kernels = compile(file.read_text(), arch, [f"-D{define}" for define in options.defines], file.name)
            except RuntimeError as error:
                refused += 1
                print(f"{file}: {arch}: refused\n{error}")
                continue
            for kernel, used in kernels.items():
                print(f"{file}: {arch}: {kernel} {used.registers} registers, {used.shared} B shared, "
                      f"{used.spilled} B spilled")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
