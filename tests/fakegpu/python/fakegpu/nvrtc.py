"""What NVIDIA's own compiler says of CUDA text; it needs neither a GPU nor a driver.

    tests/fakegpu/run python -m fakegpu.nvrtc [--arch sm_70,sm_80,sm_90,sm_100,sm_120] [-DNAME=VALUE …] FILE.cu…

For each file and architecture it prints the size, and the registers and static shared bytes of each kernel. The exit
code is 1 if a text is refused.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ARCHITECTURES = "sm_70,sm_80,sm_90,sm_100,sm_120"


@functools.cache
def library() -> Any:
    """libnvrtc, from its wheel."""
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so*"))), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so*"))))


def compile(source: str, arch: str = "sm_90", options: Iterable[str] = (), name: str = "kernel.cu") -> bytes:
    """The text's machine code, a cubin. Raises RuntimeError with the compiler's log."""
    nvrtc, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    words = [word.encode() for word in (f"-arch={arch}", "-default-device", "-std=c++17", *options)]
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        if status:
            raise RuntimeError(log.value.decode())
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def resources(cubin: bytes) -> dict[str, tuple[int, int]]:
    """{kernel: (registers of a thread, bytes of static shared memory)}, from the sections of a cubin, an ELF file."""
    table, entry_size, count, names = struct.unpack_from("<Q", cubin, 40) + struct.unpack_from("<HHH", cubin, 58)
    # Of a section: name, type, flags, address, offset, size, link, info, alignment, size of an entry
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * entry_size) for i in range(count)]

    def text(section: int, at: int) -> str:
        begin = sections[section][4] + at
        return cubin[begin:cubin.index(b"\0", begin)].decode()

    registers, shared = {}, {}
    for name, _, _, _, offset, size, _, info, _, _ in sections:
        title = text(names, name)
        if title.startswith(".text."):
            registers.setdefault(title.removeprefix(".text."), info >> 24)      # up to sm_89
        elif title.startswith(".nv.shared."):
            shared[title.removeprefix(".nv.shared.")] = size
        elif title == ".nv.info":
            symbols = next(section for section in sections if section[1] == 2)
            for symbol, number in _register_counts(cubin[offset:offset + size]):
                registers[text(symbols[6], struct.unpack_from("<I", cubin, symbols[4] + 24 * symbol)[0])] = number
    return {kernel: (number, shared.get(kernel, 0)) for kernel, number in registers.items()}


def _register_counts(info: bytes) -> Iterable[tuple[int, int]]:
    """(index of a symbol, registers) of the section .nv.info; from sm_90 on."""
    at = 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:                       # the attribute has a value of `size` bytes
            if attribute == 0x2F:           # the number of registers
                yield struct.unpack_from("<II", info, at)       # type: ignore[misc]
            at += size


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
                cubin = compile(file.read_text(), arch, [f"-D{define}" for define in options.defines], file.name)
            except RuntimeError as error:
                refused += 1
                print(f"{file}: {arch}: refused\n{error}")
                continue
            used = [f"{kernel} {n} registers, {shared} B shared" for kernel, (n, shared) in resources(cubin).items()]
            print(f"{file}: {arch}: {len(cubin)} bytes; {'; '.join(used)}")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
