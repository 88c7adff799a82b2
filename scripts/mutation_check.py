"""Would the tests notice? Small errors on purpose, one at a time, each of which the quick part has to catch.

    python scripts/mutation_check.py                                    # all of them: a quarter of an hour
    python scripts/mutation_check.py --only "attention: scale of d + 1"
    python scripts/mutation_check.py --list
    python scripts/mutation_check.py --out docs/testing/mutants.md      # and write the table
    python scripts/mutation_check.py --log mutants.jsonl                # goes on where an earlier call was stopped

A mutant is a piece of the package's text and what stands there instead (mutants.py; for CUDA, kernel_mutants.py,
update_mutants.py, map_mutants.py, half_mutants.py and flash_mutants.py). Each is put into a copy of the checkout in a
temporary folder, where first the test modules run that are most likely to catch it and then, if they all pass, the
whole quick part. Errors in CUDA text are for the modules alone, which run on tests/fakegpu. A mutant is

    caught      when a test fails, and fails again
    survived    when the modules and the whole quick part pass: a test is missing
    broken      when the tests do not get that far (the package cannot be imported, a fixture fails): a bad mutant

The exit status is 1 unless all are caught.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flash_mutants import FLASH_MUTANTS
from half_mutants import HALF_MUTANTS
from kernel_mutants import KERNEL_MUTANTS
from map_mutants import MAP_MUTANTS
from mutants import MUTANTS as OTHER_MUTANTS
from mutants import Mutant
from update_mutants import UPDATE_MUTANTS

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "runs")
OWN_TEST = "test_mutation_check.py"     # compares the table with the code, so it would catch every mutant
MUTANTS = [*OTHER_MUTANTS, *KERNEL_MUTANTS, *UPDATE_MUTANTS, *MAP_MUTANTS, *HALF_MUTANTS, *FLASH_MUTANTS]
CHANGED = " with changes"
TIMEOUT = 3600                          # seconds for one run of the tests


# --- the table and the code -----------------------------------------------------------------------------------------


def problems(mutants: Sequence[Mutant], root: Path) -> list[str]:
    """A sentence for every row that does not fit the code under `root`."""
    found = [f"{name}: two rows have this name" for name, n in Counter(m.name for m in mutants).items() if n > 1]
    for mutant in mutants:
        file = root / "scratchvit" / mutant.file
        if not file.is_file():
            found.append(f"{mutant.name}: there is no file {mutant.file} in the package")
            continue
        source = file.read_text(encoding="utf-8")
        if (count := source.count(mutant.text)) != 1:
            found.append(f"{mutant.name}: its text stands {count} times in {mutant.file}, not once: {mutant.text!r}")
        else:
            try:
                compile(source.replace(mutant.text, mutant.instead), mutant.file, "exec")
            except SyntaxError as error:
                found.append(f"{mutant.name}: {mutant.file} is no Python any more: {error}")
        if mutant.text == mutant.instead:
            found.append(f"{mutant.name}: it changes nothing")
        missing = [module for module in mutant.tests if not (root / "tests" / module).is_file()]
        found += [f"{mutant.name}: there is no tests/{module}" for module in missing]
    return found


@contextlib.contextmanager
def copy_of(root: Path, mutant: Mutant | None = None) -> Iterator[Path]:
    """A copy of the checkout, with the mutant in it; a new one each time, so that no bytecode of another is left."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*NOT_COPIED, OWN_TEST))
        if mutant is not None:
            file = copy / "scratchvit" / mutant.file
            file.write_text(file.read_text(encoding="utf-8").replace(mutant.text, mutant.instead), encoding="utf-8")
        yield copy


# --- running the tests ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """outcome: caught, survived or broken.  test: the first that failed.  why: its message, or why nothing ran."""

    outcome: str
    test: str = ""
    why: str = ""
    seconds: float = 0.0


def run_mutant(mutant: Mutant, root: Path = ROOT) -> Result:
    """Put the mutant into a copy, run its modules and, if they pass, the whole quick part."""
    start = time.perf_counter()
    with copy_of(root, mutant) as copy:
        result = steady_failure(copy, [f"tests/{module}" for module in mutant.tests], mutant.on_gpu)
        if result.outcome == "survived" and not mutant.on_gpu:
            unchanged = quick_part(root)
            if unchanged.outcome == "survived":
                result = steady_failure(copy)
            else:
                result = Result("broken", why=f"without it, the quick part fails: {unchanged.test}\n{unchanged.why}")
    return dataclasses.replace(result, seconds=time.perf_counter() - start)


@functools.cache
def quick_part(root: Path) -> Result:
    """What becomes of the quick part without a mutant."""
    with copy_of(root) as copy:
        return steady_failure(copy)


def steady_failure(copy: Path, tests: Sequence[str] = (), on_gpu: bool = False) -> Result:
    """The first test that fails twice: one that passes the second time fails by chance, and catches nothing."""
    by_chance: list[str] = []
    while True:
        result = run_tests(copy, tests, by_chance, on_gpu)
        if result.outcome != "caught" or run_tests(copy, [result.test], on_gpu=on_gpu).outcome != "survived":
            return result
        by_chance.append(result.test)


def run_tests(
    copy: Path, tests: Sequence[str] = (), leave_out: Sequence[str] = (), on_gpu: bool = False
) -> Result:
    """These tests of a copy, in one process; if none are named the quick part, as `pytest` runs it."""
    report = copy.parent / "report.xml"
    report.unlink(missing_ok=True)
    python = [str(copy / "tests/fakegpu/run"), "python"] if on_gpu else [sys.executable]
    command = [*python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *["--device=gpu"] * on_gpu]
    command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]            # this one names files
    command += [f"--deselect={test}" for test in leave_out]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(copy), os.environ.get("PYTHONPATH")]))
    if tests:
        command += ["-n", "0", *tests]
        environment["OMP_NUM_THREADS"] = "1"
    if on_gpu:
        environment["FAKEGPU_GUARD"] = "2"      # an access beyond an array stops the process, and
        command.append("--capture=sys")         # leaves a line that pytest would have captured;
        command += ["-p", "no:faulthandler"]    # this and the stand-in would hand the signal to each other for ever
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, encoding="utf-8", errors="replace",
            timeout=TIMEOUT, check=False,
        )
    except subprocess.TimeoutExpired:
        return Result("broken", why=f"the tests did not end within {TIMEOUT / 60:g} minutes")
    if done.returncode == 0:
        return Result("survived")
    if done.returncode == 1 and report.is_file():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            if (failure := case.find("failure")) is not None:
                return Result("caught", f"{case.get('file')}::{case.get('name')}", failure.get("message", ""))
    if stopped := re.search("^fakegpu: .*", done.stderr, re.MULTILINE):
        return Result("caught", " ".join(tests), stopped.group())
    return Result("broken", why="\n".join((done.stdout + done.stderr).strip().splitlines()[-15:]))


def logged(log: Path, root: Path = ROOT) -> dict[str, Result]:
    """The results in a log that are of this commit, {name: result}; none if files have been changed since."""
    rows = map(json.loads, log.read_text(encoding="utf-8").splitlines() if log.exists() else [])
    commit = _commit(root)
    if commit.endswith(CHANGED):
        return {}
    return {row.pop("name"): Result(**row) for row in rows if row.pop("commit") == commit}


def add_to_log(log: Path, mutant: Mutant, result: Result, root: Path = ROOT) -> None:
    row = {"commit": _commit(root), "name": mutant.name, **dataclasses.asdict(result)}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


# --- what is said ---------------------------------------------------------------------------------------------------


def markdown(results: Sequence[tuple[Mutant, Result]], root: Path = ROOT) -> str:
    """The table, with when and with what it was made."""
    caught = sum(result.outcome == "caught" for _, result in results)
    lines = [
        "# Small errors on purpose",
        "",
        "Each row is one error put into a copy of the package. It has to make a test of the quick part fail; the first",
        "that did is named. Made by `python scripts/mutation_check.py --out docs/testing/mutants.md`.",
        "",
        f"**{caught} of {len(results)} caught** on {datetime.date.today()}, at commit {_commit(root)}, with Python "
        f"{platform.python_version()} and NumPy {np.__version__}.",
        "",
        "| error | kind | file | caught by | seconds |",
        "|---|---|---|---|--:|",
    ]
    for mutant, result in results:
        by = f"`{result.test}`" if result.outcome == "caught" else f"**{result.outcome}**"
        cells = [mutant.name, mutant.kind, f"`{mutant.file}`", by, f"{result.seconds:.0f}"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _commit(root: Path) -> str:
    """The checkout's commit, and whether files differ from it."""
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True, stderr=subprocess.DEVNULL)
        changed = subprocess.check_output([*git, "status", "--porcelain", "--", "scratchvit", "tests"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + (CHANGED if changed else "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Put small errors into the package, one at a time: do tests fail?")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this mutant; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the results as a Markdown table")
    parser.add_argument("--log", type=Path, metavar="FILE.jsonl", help="add each result to this file at once; those "
                        "in it that are of this commit are not run again")
    options = parser.parse_args(arguments)
    if unknown := set(options.only or ()) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"no mutant is named {', '.join(map(repr, sorted(unknown)))}: see --list")
    mutants = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    if wrong := problems(mutants, ROOT):
        sys.exit("bring the table in scripts/mutants.py up to date with the code:\n" + "\n".join(wrong))
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}  ({mutant.kind}, {mutant.file})")
        return 0

    known = logged(options.log) if options.log else {}
    left = [mutant for mutant in mutants if mutant.name not in known]
    for on_gpu in sorted({mutant.on_gpu for mutant in left}):
        modules = {f"tests/{module}" for mutant in left if mutant.on_gpu == on_gpu for module in mutant.tests}
        with copy_of(ROOT) as copy:
            unchanged = steady_failure(copy, sorted(modules), on_gpu)
        if unchanged.outcome != "survived":
            sys.exit(f"the tests fail without any mutant: {unchanged.test}\n{unchanged.why}")
    results = []
    for mutant in mutants:
        result = known.get(mutant.name) or run_mutant(mutant)
        results.append((mutant, result))
        if options.log and mutant.name not in known:
            add_to_log(options.log, mutant, result)
        print(f"{result.outcome:8} {result.seconds:5.0f} s  {mutant.name}  {result.test}", flush=True)
        if result.outcome == "broken":
            print(result.why, flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(markdown(results), encoding="utf-8")
    caught = sum(result.outcome == "caught" for _, result in results)
    print(f"{caught} of {len(results)} caught")
    return 0 if caught == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
