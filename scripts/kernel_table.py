"""What the CUDA kernels need of a GPU, as NVIDIA's compiler sees it: registers, shared memory, spilled registers.

    tests/fakegpu/run python scripts/kernel_table.py --out docs/testing/cuda_kernels.md

A processor has 65,536 registers, so kernels of at most 32 registers let it run 2,048 threads, as many as it can. What
is spilled lies in memory, which is slow. Neither a GPU nor a driver is needed.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scratchvit.files import write_atomically  # noqa: E402
from scratchvit.kernels.cuda import modules  # noqa: E402


def rows(nvrtc: Any) -> Iterator[str]:
    """The table's lines. nvrtc: the module of tests/fakegpu."""
    architectures = nvrtc.ARCHITECTURES.split(",")
    yield f"| kernel | module | type | registers on {', '.join(architectures)} | shared memory | spilled |"
    yield "|---|---|---|---|--:|--:|"
    for module, char in modules.variants():
        compiled = [
            nvrtc.compile(modules.text_of(module, char), arch) for arch in architectures
            if int(arch.removeprefix("sm_")) >= modules.least_capability(module)
        ]
        for kernel in sorted(compiled[0]):
            used = [on_one[kernel] for on_one in compiled]
            older = ["–"] * (len(architectures) - len(used))
            registers = ", ".join([*older, *(str(use.registers) for use in used)])
            shared, spilled = max(use.shared for use in used), max(use.spilled for use in used)
            yield f"| `{kernel}` | {module} | {modules.TYPES[char][0]} | {registers} | {shared} | {spilled} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    options = parser.parse_args(argv)
    try:
        from fakegpu import nvrtc
    except ImportError:
        print("kernel_table: start it by tests/fakegpu/run python scripts/kernel_table.py", file=sys.stderr)
        return 1
    version = ".".join(map(str, nvrtc.version()))
    head = [
        "# What the CUDA kernels need",
        "",
        "Registers of a thread; over these architectures, the largest number of bytes of static shared memory of a",
        "block, and of registers that a thread had to spill to memory. A dash: it is not compiled for it. Made by",
        f"NVRTC {version}, {datetime.date.today()}:",
        "`tests/fakegpu/run python scripts/kernel_table.py --out docs/testing/cuda_kernels.md`.",
        "",
    ]
    write_atomically(options.out, ("\n".join([*head, *rows(nvrtc)]) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
