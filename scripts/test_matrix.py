"""Run the suite as other processors, threads, seeds, orders and versions would, and write the table of it.

    python scripts/test_matrix.py                               # everything: an hour or more on two cores
    python scripts/test_matrix.py --only "kernel|seed" --marker parity
    python scripts/test_matrix.py --out docs/testing/matrix.md  # the table that is committed

A row is one run of pytest, with the newest versions of all dependencies or the lowest that pyproject.toml promises, on
one of the Pythons that this machine has. OPENBLAS_CORETYPE makes OpenBLAS take the kernels of another processor,
NPY_DISABLE_CPU_FEATURES makes NumPy take those of an older one. The largest margin of a row is the largest measured /
allowed of its comparisons (tests/support/margins.py). A row with a margin above 0.5, a process of the quick part above
1 GB or a failed test is red, and the exit status is 1. The table is written anew after every row, so that a run that is
cut short leaves its part; `--resume` runs the rows that are missing or red in the JSON file beside the table. Needs uv
(`pip install uv`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.records import commit, processor  # noqa: E402

LARGEST = 0.5
LARGEST_PROCESS = 1000                      # MB, of the quick part
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
KERNELS = ("Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX")
NEEDS = {"Sandybridge": "avx", "Haswell": "avx2", "Zen": "avx2", "SkylakeX": "avx512f"}     # of the processor
OLDER_NUMPY = "X86_V3 X86_V4"               # NumPy's names for AVX2 and for AVX-512 and what belongs to them


@dataclass(frozen=True)
class Row:
    """One run: its name, Python and versions ("newest", "lowest"), what is in the environment, options of pytest.

    numerical: only the test modules with error bounds or gradient checks. What another processor's kernels, other
        random numbers or a newer NumPy change is there.
    command_line: only the tests of the command line and of imports. What a Python between the oldest and the newest
        changes is likely to be there; it has the NumPy of the newest. With `numerical`: these, too.
    """

    name: str
    python: str = "3.11"
    versions: str = "newest"
    variables: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    numerical: bool = False
    command_line: bool = False


@dataclass
class Result:
    """What came of a row."""

    name: str
    part: str
    commit: str
    day: str
    versions: str
    kernel: str
    command: str
    summary: str
    margin: float | None
    closest: str
    seconds: float
    green: bool
    megabytes: float | None = None          # of the largest process, where the system tells it


def rows() -> list[Row]:
    """The table of issue 22, parts 1 to 3, as far as this machine can run it."""
    flags = processor_flags()
    kernels = [name for name in KERNELS if NEEDS.get(name, "") in flags]
    pythons = [python for python in PYTHONS[1:] if interpreter(python)]
    return [
        Row("as it is"),
        *(Row(f"kernel {name}", variables={"OPENBLAS_CORETYPE": name}, numerical=True) for name in kernels),
        Row("kernel of NumPy without AVX2", variables={"NPY_DISABLE_CPU_FEATURES": OLDER_NUMPY}, numerical=True),
        Row("two threads in each process", variables={"OMP_NUM_THREADS": "2"}, numerical=True),
        *(Row(f"seed {n}", options=("--seed", str(n)), numerical=True) for n in range(1, 6)),
        *(Row(f"random order {n}", options=("--random-order-bucket=global", f"--random-order-seed={n}"))
          for n in range(1, 6)),
        Row("one process", options=("-n", "0")),
        Row("lowest versions", "3.11", "lowest"),
        # ci.yml runs the whole on each
        *(Row(f"Python {python}", python, numerical=python == pythons[-1], command_line=True) for python in pythons),
    ]


def processor_flags() -> str:
    """What the processor says it can do, on Linux; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith("flags")), "")


def modules(row: Row) -> list[str]:
    """The test modules that a row runs; none if it runs all."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    chosen = []
    for path, text in texts.items():
        numerical = "support.margins" in text or "gradcheck" in text
        command_line = path.parent.name == "cli" or path.name == "test_imports.py"
        if (row.numerical and numerical) or (row.command_line and command_line):
            chosen.append(path.relative_to(ROOT).as_posix())
    return chosen


# --- environments ---------------------------------------------------------------------------------------------------


def environment(row: Row, folder: Path, parity: bool) -> Path | None:
    """The interpreter of the row's environment, made if it is not there; None where this machine lacks that Python."""
    place = folder / f"{row.python}-{row.versions}{'-parity' * parity}"
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (place / "complete").exists():
        return python
    found = interpreter(row.python)
    if found is None:
        return None
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--clear", "--python", found, place], check=True)
    install = [*uv, "pip", "install", "-q", "--python", python]
    if row.versions == "lowest":
        pinned = subprocess.run(
            [*uv, "pip", "compile", "-q", "--extra", "test", "--resolution", "lowest-direct", "--python", python,
             ROOT / "pyproject.toml"],
            check=True, capture_output=True, text=True,
        ).stdout
        (place / "pinned.txt").write_text(pinned, encoding="utf-8")
        subprocess.run([*install, "-r", place / "pinned.txt"], check=True)
        subprocess.run([*install, "--no-deps", "-e", ROOT], check=True)
    else:
        if parity:      # pip takes a build for CPUs where the machine offers one; uv does not
            subprocess.run([*install, "pip"], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0"], check=True)
        subprocess.run([*install, "-e", f"{ROOT}[test{',parity' * parity}]"], check=True)
    subprocess.run([*install, "pytest-random-order"], check=True)
    (place / "complete").touch()
    return python


def interpreter(version: str) -> Path | None:
    """A Python of this version: on the PATH, or among those of pyenv; its shims exist also where no version is set."""
    name = f"python{version}"
    folders = [*map(Path, os.get_exec_path()), *sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin"))]
    for path in (folder / name for folder in folders):
        if path.exists() and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


ABOUT = """
import platform, numpy, scipy, threadpoolctl
pool = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
print(f"Python {platform.python_version()}, NumPy {numpy.__version__}, SciPy {scipy.__version__}")
print(pool[0]["architecture"] if pool else "")
"""


# --- runs -----------------------------------------------------------------------------------------------------------


def run(row: Row, python: Path, marker: str, log: Path) -> Result:
    """Run pytest for a row, and read what it printed."""
    options = ["-p", "no:cacheprovider", "--margins", *(["-m", marker] if marker else []), *row.options]
    if chosen := modules(row):      # named modules would run in one process
        options += ["-n", str(os.cpu_count()), *chosen]
    variables = {**os.environ, **row.variables}
    about = subprocess.run([python, "-c", ABOUT], check=True, capture_output=True, text=True, env=variables).stdout
    versions, kernel = about.splitlines()
    start = time.perf_counter()
    status, megabytes = outcome([str(python), "-m", "pytest", *options], variables, log)
    seconds = time.perf_counter() - start
    small = marker or megabytes is None or megabytes <= LARGEST_PROCESS
    text = log.read_text("utf-8")
    summary = re.findall(r"^=* ?((?:\d+ \w+, )*\d+ \w+) in [\d.]+s.*$", text, re.MULTILINE)
    closest = re.search(r"^=+ measured / allowed in .*\n *([\d.a-z]+)  (\S.*)", text, re.MULTILINE)
    margin = float(closest[1]) if closest else None
    return Result(
        name=row.name, part=part(row, marker), commit=commit(), day=date.today().isoformat(), versions=versions,
        kernel=kernel, summary=summary[-1] if summary else f"no summary: see {log.name}", margin=margin,
        closest=closest[2] if closest else "", seconds=seconds, megabytes=megabytes,
        green=status == 0 and (margin or 0) <= LARGEST and bool(small),
        command=" ".join([*(f'{k}="{v}"' for k, v in row.variables.items()), "pytest", *row.options]),
    )


def outcome(command: list[str], variables: dict[str, str], log: Path) -> tuple[int, float | None]:
    """The exit status, and the MB in memory of the largest among the process and all that it started and waited for."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT)
        if not hasattr(os, "wait4"):
            return process.wait(), None
        _, status, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * unit / 1e6


def part(row: Row, marker: str) -> str:
    """What of the suite a row runs."""
    return (marker or "quick") + ", numerical" * row.numerical + ", command line" * row.command_line


# --- the table ------------------------------------------------------------------------------------------------------

HEAD = """# The suite on other processors, seeds, orders and versions

Written by `python scripts/test_matrix.py`. A row is a run of pytest; its largest margin is the largest measured ÷
allowed of its comparisons with an error bound ([margins.py](../../tests/support/margins.py)); above {largest}, it is
red. MB is the largest process, of which the quick part allows {process}. Run on {machine}.

| | run | part | what came out | largest margin | of | BLAS kernel | versions | MB | s | day, commit |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def table(results: list[Result]) -> str:
    """Markdown of all rows, and the names of those that were not run."""

    def line(r: Result) -> str:
        cells = (
            "ok" if r.green else "**red**", f"{r.name}<br>`{r.command}`", r.part, r.summary,
            "" if r.margin is None else f"{r.margin:.3f}", r.closest.replace("|", "/"), r.kernel, r.versions,
            "" if r.megabytes is None else f"{r.megabytes:.0f}", f"{r.seconds:.0f}",
            f"{r.day}, {r.commit}",
        )
        return f"| {' | '.join(cells)} |\n"

    missing = ", ".join(row.name for row in rows() if row.name not in {r.name for r in results})
    note = f"\nNot run: {missing}.\n" if missing else ""
    machine = f"{os.cpu_count()} cores of: {processor()}"
    return HEAD.format(largest=LARGEST, process=LARGEST_PROCESS, machine=machine) + "".join(map(line, results)) + note


def main() -> None:
    """Run the rows that are asked for."""
    parser = argparse.ArgumentParser(description="Run the suite as other machines, seeds, orders and versions would.")
    parser.add_argument("--only", default="", help="a regular expression that a row's name must contain")
    parser.add_argument("--marker", default="", help="pytest's -m (default: the quick part), such as parity")
    parser.add_argument("--options", type=shlex.split, default=[], help="of pytest, for all rows: \"--device cpu\"")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "environments", help="where to keep them")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "matrix.md", help="the table; JSON goes beside it")
    parser.add_argument("--resume", action="store_true", help="keep the green rows that are there")
    parser.add_argument("--install", action="store_true", help="make the environments that are missing and stop")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    options = parser.parse_args()
    chosen = [
        replace(row, options=(*row.options, *options.options)) for row in rows() if re.search(options.only, row.name)
    ]
    if options.list:
        print("\n".join(row.name for row in chosen))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.environments.mkdir(parents=True, exist_ok=True)
    if options.install:
        for row in chosen:
            environment(row, options.environments.resolve(), "parity" in options.marker)
        return
    record = options.out.with_suffix(".json")
    before = json.loads(record.read_text("utf-8")) if options.resume and record.exists() else []
    results = [Result(**row) for row in before if row["green"]]
    done = {(r.name, r.part) for r in results}
    for row in chosen:
        if (row.name, part(row, options.marker)) in done:
            continue
        python = environment(row, options.environments.resolve(), "parity" in options.marker)
        if python is None:
            print(f"{row.name}: this machine has no Python {row.python}")
            continue
        log = options.environments / f"{row.name.replace(' ', '-')}.log"
        result = run(row, python, options.marker, log)
        print(f"{'ok ' if result.green else 'RED'} {row.name}: {result.summary}, margin {result.margin}, "
              f"{result.megabytes or 0:.0f} MB, {result.seconds:.0f} s", flush=True)
        if not result.green:
            print("\n".join(log.read_text("utf-8").splitlines()[-60:]))
        results.append(result)
        record.write_text(json.dumps([asdict(r) for r in results], indent=1), encoding="utf-8")
        options.out.write_text(table(results), encoding="utf-8")
    sys.exit(any(not r.green for r in results))


if __name__ == "__main__":
    main()
