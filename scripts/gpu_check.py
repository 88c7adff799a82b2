"""The one command for a machine with a GPU: does everything work there, does it agree with the CPU, is it fast?

    python scripts/gpu_check.py --quick --out FOLDER        # what fails: at most 200 seconds
    python scripts/gpu_check.py --measure --out FOLDER      # how fast, beside PyTorch: at most 460 seconds
    python scripts/gpu_check.py --list                      # the parts and their items
    python scripts/gpu_check.py --parts probes "kernels of a step" --out FOLDER
    python scripts/gpu_check.py --quick --device cpu --out FOLDER           # a rehearsal without a GPU
    tests/fakegpu/run python scripts/gpu_check.py --measure --out FOLDER    # a rehearsal with CuPy on the CPU

It needs no network, and beyond the package's own dependencies only CuPy. pytest, PyTorch and NVIDIA's compute-sanitizer
are used where they are installed. Every part runs in a process of its own, with a limit, so that a kernel that fails
or hangs costs no more than its part. FOLDER/gpu.jsonl gets a line as soon as something is known; summary.md is written
anew after every part; log.txt has what the parts printed.

A rehearsal runs everything with the smallest sizes. Its times mean nothing, and the summary says so. It is what
--device cpu, tests/fakegpu and --rehearse do. The exit code is 1 if something failed; a missed target is no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))       # run from the checkout, installed or not

from scratchvit.files import write_atomically  # noqa: E402
from scripts.gpu_parts.part import ROWS, Part, Setting, read  # noqa: E402
from scripts.gpu_parts.plan import BUDGETS, MODES, find  # noqa: E402
from scripts.gpu_parts.runner import Runner  # noqa: E402
from scripts.gpu_parts.summary import summary  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.list:
        list_parts()
        return 0
    rows = options.out / ROWS
    if rows.exists():
        print(f"gpu_check: {rows} has results already: name another folder with --out", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, ended_by_sigterm():
        small = options.rehearse or options.device == "cpu" or importlib.util.find_spec("fakegpu") is not None
        setting = Setting(options.device, options.out.resolve(), Path(scratch), small)
        for mode, parts in chosen(options).items():
            if not run(mode, parts, setting, options.limit_scale):
                break
    return int(any(row["ok"] is False for row in read(rows)))


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as an exception does, so that the part in progress ends with it."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="find what fails; without an option: this, then --measure")
    which.add_argument("--measure", action="store_true", help="time training steps, here and in PyTorch")
    which.add_argument("--parts", nargs="+", metavar="NAME", help="these parts only; see --list")
    which.add_argument("--list", action="store_true", help="print the parts and their items, and end")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results are written")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a rehearsal")
    parser.add_argument("--rehearse", action="store_true", help="the smallest sizes: does everything run?")
    parser.add_argument("--limit-scale", type=float, default=1.0, metavar="X", help="multiply all limits of time by X")
    options = parser.parse_args(argv)
    if not options.list and options.out is None:
        parser.error("name a folder for the results with --out")
    for name in options.parts or ():
        if find(name) is None:
            parser.error(f"there is no part {name!r}; --list prints their names")
    return options


def chosen(options: argparse.Namespace) -> dict[str, Sequence[Part]]:
    """{mode: its parts}."""
    if options.parts:
        device_first = [name for name in options.parts if name != "facts"]
        return {"parts": [find("facts"), *map(find, device_first)]}
    names = [name for name in MODES if getattr(options, name)] or list(MODES)
    return {name: MODES[name] for name in names}


def run(mode: str, parts: Sequence[Part], setting: Setting, scale: float) -> bool:
    """Run the parts of a mode, and keep the summary up to date. False if there is no device to run them on."""
    budget = BUDGETS.get(mode, sum(part.seconds for part in parts)) * scale
    runner = Runner(setting, mode, time.monotonic() + budget, scale, tell=lambda line: print(line, flush=True))
    begin = time.monotonic()
    for part in parts:
        found = runner.run(part)
        write_atomically(setting.out / "summary.md", summary(runner.rows(), setting).encode())
        for row in found:
            if row["item"] == "device" and row["ok"] is False:
                print(f"gpu_check: {row['result']}", file=sys.stderr)
                return False
    print(f"--{mode}: {time.monotonic() - begin:.0f} of {budget:.0f} s; {setting.out / 'summary.md'}", flush=True)
    return True


def list_parts() -> None:
    for mode, parts in MODES.items():
        print(f"--{mode}, {BUDGETS[mode]} s")
        for part in parts:
            print(f"  {part.name} ({part.seconds:.0f} s): {part.about}")
            print("".join(f"      {item}\n" for item in part.items), end="")


if __name__ == "__main__":
    sys.exit(main())
