"""The measurements of docs/benchmarks.json, and the tables of docs/benchmarks.md that are written from them.

    python scripts/records.py       # write the tables again, after a record or a recipe's first line was edited

A record is what one command measured: {"command", "date", "commit", "machine", and its figures}. The commands that
measure add theirs: bench_accuracy.py to "runs" or, with --precision, to "precision", `bench.py --record` to "steps",
`bench.py --against torch --record` to "against", `bench_loader.py --record` to "loader".
"noted" has what other commands print, copied by hand. Measuring again replaces the record of the same command and seed.
The text of the page around the tables is written by hand.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS, PAGE = ROOT / "docs" / "benchmarks.json", ROOT / "docs" / "benchmarks.md"
SIDE = 4096         # of the matrices whose product is timed

Record = dict[str, Any]


# --- what a record says of its origin -------------------------------------------------------------------------------


def origin(command: str) -> Record:
    """What every record says of where it is from. Measures the machine, which takes some seconds."""
    return {"command": command, "date": date.today().isoformat(), "commit": commit(), "machine": machine()}


def commit() -> str:
    """The short hash of what is checked out; with a + if the package or the scripts were changed since."""
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    found = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
    changed = found and git(["git", "diff", "--quiet", "HEAD", "--", "scratchvit", "scripts"]).returncode
    return f"{found}{'+' if changed else ''}" or "no commit"


def processor() -> str:
    """The processor's name, with family and model, because clouds give several the same name."""
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8") if path.exists() else ""
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if len(fields) < 3:
        return platform.processor() or platform.machine()
    return f"{fields['model name']}, family {fields['cpu family']} model {fields['model']}"


@functools.cache
def machine() -> Record:
    """Processor, cores, versions, and the GFLOP/s that a core makes of a float32 product.

    They are counted by CPU time, because other work may share the cores. "blas" is the processor for which NumPy's
    OpenBLAS has chosen its kernels, or that OPENBLAS_CORETYPE has chosen: it may be an older one than this machine's.
    """
    import numpy as np
    import threadpoolctl

    a = np.ones((SIDE, SIDE), np.float32)
    seconds = []
    with threadpoolctl.threadpool_limits(1):
        for _ in range(4):
            start = time.process_time()
            a @ a
            seconds.append(time.process_time() - start)
    blas = [found.get("architecture") for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"]
    return {
        "blas": blas[0] if blas else None,
        "processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"), "gflops": round(2 * SIDE**3 / min(seconds) / 1e9),
    }


def command_line() -> str:
    """This program's command, as it is recorded: without --record, and with FOLDER for the name of a folder."""
    threads = os.environ.get("OMP_NUM_THREADS")
    words = [word for word in sys.argv[1:] if word != "--record"]
    words = ["python", f"scripts/{Path(sys.argv[0]).name}", *without_places(words)]
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(words)


def without_places(words: Sequence[str]) -> list[str]:
    """The words of a command, with FOLDER in place of the folders that --data and --data-dir name."""
    options = (None, *words)
    return [
        "FOLDER" if option in ("--data", "--data-dir") and Path(word).is_dir() else word
        for option, word in zip(options, words)
    ]


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median, least and most, as a record holds them."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


# --- the file -------------------------------------------------------------------------------------------------------


def read() -> dict[str, list[Record]]:
    """All records, by kind."""
    return json.loads(RECORDS.read_text("utf-8"))


def add(kind: str, record: Record) -> None:
    """Put a record in the place of an earlier one of the same command and seed, or at the end; then write the page.

    The file has a record on each line.
    """

    def name(one: Record) -> tuple[str, int | None]:
        return one["command"], one.get("seed")

    records = read()
    names = [name(one) for one in records[kind]]
    if name(record) in names:
        records[kind][names.index(name(record))] = record
    else:
        records[kind].append(record)
    page = written(PAGE.read_text("utf-8"), records)        # before anything is changed
    lines = {kind: ",\n".join(json.dumps(one, ensure_ascii=False) for one in found) for kind, found in records.items()}
    text = ",\n".join(f'"{kind}": [\n{found}\n]' for kind, found in lines.items())
    RECORDS.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    PAGE.write_text(page, encoding="utf-8")


# --- the tables -----------------------------------------------------------------------------------------------------


def written(page: str, records: dict[str, list[Record]]) -> str:
    """The page with all its tables written from the records."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: written by scripts/records.py -->\n", f"<!-- end of {name} -->\n"
        page = put_between(page, begin, end, table(records))
    return page


def put_between(page: str, begin: str, end: str, content: str) -> str:
    """The page with other content between two marks. Raises ValueError if it does not have both, once each."""
    if not page.count(begin) == page.count(end) == 1:
        raise ValueError(f"the page must have {begin.strip()!r} and {end.strip()!r}, once each")
    before, rest = page.split(begin)
    return before + begin + content + end + rest.split(end)[1]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def measured_on(records: Sequence[Record]) -> str:
    """Machine, date and commit of records, each once."""
    places = (f"{one['machine']['processor']}; {day(one['date'])}; {one['commit']}" for one in records)
    return "<br>".join(dict.fromkeys(places))


def day(text: str) -> str:
    """2026-11-30 → 30 November 2026"""
    found = date.fromisoformat(text)
    return f"{found.day} {found:%B %Y}"


def runs_table(measure: str, kind: str = "runs") -> Callable[[dict[str, list[Record]]], str]:
    """The table of the runs that have this figure, a row for all seeds of a command."""

    def table(records: dict[str, list[Record]]) -> str:
        rows = [
            (about(group[0]), result(group), ", ".join(str(one["seed"]) for one in group), durations(group),
             measured_on(group), f"`{group[0]['command']}`")
            for group in groups(records[kind]) if measure in group[0]["figures"]
        ]
        return markdown(("recipe", "result", "seeds", "time", "measured on", "command"), rows)

    return table


def groups(runs: Iterable[Record]) -> list[list[Record]]:
    """The runs of the same command, by seed."""
    found = defaultdict(list)
    for run in runs:
        found[run["command"]].append(run)
    return [sorted(group, key=lambda run: run["seed"]) for group in found.values()]


def about(run: Record) -> str:
    """A link to the recipe, with the first line of its docstring, and what a record notes besides."""
    path = ROOT / "scratchvit" / "recipes" / f"{run['recipe']}.py"
    first, *_ = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()
    note = f"; {run['note']}" if "note" in run else ""
    return f"[{run['recipe']}](../{path.relative_to(ROOT).as_posix()}): {first.rstrip('.')}{note}"


def result(group: Sequence[Record]) -> str:
    """The figures of a recipe's runs, in words; a recipe's docstring has the same."""
    figures = [run["figures"] for run in group]
    if "accuracy" in figures[0]:
        return listed([f"{100 * found['accuracy']:.1f}" for found in figures]) + " %"
    if "bits_per_pixel" in figures[0]:
        bits = listed([f"{found['bits_per_pixel']:.3f}" for found in figures])
        return f"{bits} bits per pixel (baseline {figures[0]['baseline']:.3f})"
    return "; ".join(", ".join(f"{name} {value:.3f}" for name, value in found.items()) for found in figures)


def listed(words: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def durations(group: Sequence[Record]) -> str:
    """The CPU time of runs, from the shortest to the longest; of older records, the time on the clock."""
    kind, name = ("cpu_seconds", "CPU") if "cpu_seconds" in group[0] else ("seconds", "clock")
    seconds = [run[kind] for run in group]
    shortest, longest = (duration(value) for value in (min(seconds), max(seconds)))
    return f"{shortest if shortest == longest else f'{shortest} to {longest}'} ({name})"


def duration(seconds: float) -> str:
    """58 s, 12 min, 2 h 10 min"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours > 1 else f"{60 * hours + minutes} min"


def steps_table(records: dict[str, list[Record]]) -> str:
    """Training steps compared with PyTorch's."""

    def side_by_side(step: Record, unit: str, *names: str) -> str:
        return f"{' / '.join(f'{step[name]:.3g}' for name in names)} {unit}" if names[0] in step else ""

    rows = [
        (f"`{step['model']}`, {'×'.join(map(str, step['image']))}, batch {step['batch']}",
         f"**{step['ratio']['median']:.2f}** ({step['ratio']['least']:.2f} to {step['ratio']['most']:.2f})",
         str(step["pairs"]), side_by_side(step, "s", "seconds", "torch_seconds", "products_seconds"),
         side_by_side(step, "GiB", "gib", "torch_gib"),
         f"{measured_on([step])}; PyTorch {step['torch_version']}", f"`{step['command']}`")
        for step in records["steps"]
    ]
    return markdown(
        ("model", "ratio", "pairs", "step here / PyTorch / our matrix products alone", "peak memory here / PyTorch",
         "measured on", "command"), rows,
    )


def against_table(records: dict[str, list[Record]]) -> str:
    """The rows of bench_table.py, with their targets."""

    def ratio(one: Record, key: str) -> str:
        if key not in one:
            return ""
        found, target = one[key], one["targets"].get(key)
        between = f" ({found['least']:.2f} to {found['most']:.2f})" if found["least"] < found["most"] else ""
        return f"**{found['median']:.2f}**{between}{f', wanted {target:.2f}' if target else ''}"

    def quotient(one: Record, above: str, below: str) -> str:
        return f"{one[above] / one[below]:.2f}" if below in one else ""

    rows = [
        (one["row"], ratio(one, "ratio") or f"{one['seconds']:.2f} s, wanted {one['targets']['seconds']:.2f} s",
         ratio(one, "inference_ratio"), quotient(one, "seconds", "products_seconds"), quotient(one, "gib", "torch_gib"),
         f"{measured_on([one])}{f'; PyTorch {version}' if (version := one.get('torch_version')) else ''}",
         f"`{one['command']}`")
        for one in records["against"]
    ]
    return markdown(
        ("work", "training ÷ PyTorch", "inference ÷ PyTorch", "step ÷ its products in NumPy", "memory ÷ PyTorch",
         "measured on", "command"), rows,
    )


def loader_table(records: dict[str, list[Record]]) -> str:
    """The loader alone, and in front of the models that bench_loader.py trains."""

    def shown(values: dict[str, float], form: str) -> str:
        if "median" not in values:      # an older record, of which only the largest value is known
            return f"at most {values['most']:{form}}"
        between = f" ({values['least']:{form}} to {values['most']:{form}})" if "least" in values else ""
        return f"{values['median']:{form}}{between}"

    rows = [
        (f"{one['data']}, {'×'.join(map(str, one['image']))}", str(row["workers"]), shown(row["alone"], ",.0f"),
         "<br>".join(f"{name}: {shown(found['rate'], ',.0f')}, waiting {shown(found['waiting'], '.1%')}"
                     for name, found in row["training"].items()),
         measured_on([one]), f"`{one['command']}`")
        for one in records["loader"] for row in one["rows"]
    ]
    return markdown(
        ("data", "workers", "loader alone, images/s", "training: images/s, share of the time spent waiting",
         "measured on", "command"), rows,
    )


def noted_table(section: str) -> Callable[[dict[str, list[Record]]], str]:
    """What commands printed that write no records."""

    def table(records: dict[str, list[Record]]) -> str:
        return markdown(("what", "result", "measured on", "command"), [
            (one["what"], one["result"], measured_on([one]), f"`{one['command']}`")
            for one in records["noted"] if one["section"] == section
        ])

    return table


def machines_table(records: dict[str, list[Record]]) -> str:
    """The machines of all records. GFLOP/s are those of the slowest and of the fastest measurement."""
    gflops = defaultdict(set)
    for one in (record for kind in records.values() for record in kind):
        about = one["machine"]
        versions = f"Python {about['python']}, NumPy {about['numpy']}"
        versions += f", BLAS for {about['blas']}" if about["blas"] else ""
        gflops[about["processor"], str(about["cores"]), versions].update({about["gflops"]} - {None})
    return markdown(("processor", "cores", "versions", "GFLOP/s of a core"), [
        (*name, " to ".join(map(str, sorted({min(found), max(found)}))) if found else "not measured")
        for name, found in gflops.items()
    ])


TABLES = {
    "machines": machines_table,
    "classification": runs_table("accuracy"),
    "precision": runs_table("accuracy", "precision"),
    "generation": runs_table("bits_per_pixel"),
    "detection": runs_table("AP"),
    "against": against_table,
    "steps": steps_table,
    "memory": noted_table("memory"),
    "loader": loader_table,
    "agreement": noted_table("agreement"),
}


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8"), read()), encoding="utf-8")
