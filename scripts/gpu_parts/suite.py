"""The device tests of the suite, and once more those that failed, to see whose fault it is."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from scripts.gpu_parts.part import ROOT, Row, Setting, not_run, read

TESTS = "tests.jsonl"           # in the folder of results: lines of pytest_rows, which VARIABLE names
LOG = "tests.log"
VARIABLE, DONE = "GPU_CHECK_TESTS", "GPU_CHECK_DONE"
STARTED, LOST, NOT_COLLECTED = "started", "lost the device", "not collected"    # outcomes beside pytest's own
WORKERS = 12                    # processes on the one GPU; most of their time is compiling and comparing on the host
MARGIN, GRACE = 8.0, 5.0        # seconds before the end in which pytest ends, and its workers
FAILED = ("failed", STARTED, LOST)
FINISHED = (0, 1, 5)            # pytest's exit statuses: passed, some failed, none were chosen
REHEARSED = ("tests/ops/test_op_values.py", "tests/kernels/cuda/test_column_sums.py")
MOST_AGAIN = 20                 # failed tests that are run again


def device_tests(setting: Setting) -> Row:
    """All tests that use the device. Where a package is missing, the files that need it are left out, and named."""
    import pytest  # noqa: F401     to be not run without it

    chosen = REHEARSED if setting.small else ()
    options = [f"--junitxml={setting.out / 'tests.xml'}", *workers(setting), *chosen]
    status = run_until_done(setting, options, time.monotonic() + setting.seconds - MARGIN)
    rows = read(setting.out / TESTS)
    found = outcomes(rows)
    counts = Counter(found.values())
    missing = missing_packages(rows)
    failed = [test for test, outcome in found.items() if outcome in FAILED]
    text = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.most_common())
    if missing:
        text += f"; not installed: {', '.join(missing)}"
    if status not in FINISHED:
        text += f"; not finished (pytest's status: {status})"
    broken = counts[NOT_COLLECTED] > sum(map(len, missing.values()))
    return {
        "ok": status in FINISHED and not failed and not broken and counts["passed"] > 0, "counts": dict(counts),
        "failed": failed, "without": missing, "slowest": slowest(rows), "result": text or "no test ran; see tests.log",
    }


def failed_tests_again(setting: Setting) -> Row:
    """The tests that failed, one after another, without CUB and with a wait after every kernel."""
    import pytest  # noqa: F401

    failed = [test for test, outcome in outcomes(read(setting.out / TESTS)).items() if outcome in FAILED]
    if not failed:
        return not_run("no test has failed")
    rows = setting.scratch / "again.jsonl"
    environment = {"CUPY_ACCELERATORS": "", "CUDA_LAUNCH_BLOCKING": "1", VARIABLE: str(rows)}
    end = time.monotonic() + setting.seconds - MARGIN
    run_pytest(setting, failed[:MOST_AGAIN], end, environment, "tests_again.log")
    found = outcomes(read(rows))
    passed = [test for test, outcome in found.items() if outcome == "passed"]
    return {
        "ok": True, "outcomes": found,
        "result": f"{len(passed)} of {len(found)} pass without CUB and with CUDA_LAUNCH_BLOCKING=1"
        + (f": {', '.join(passed)}" if passed else ""),
    }


def workers(setting: Setting) -> list[str]:
    """The options of pytest-xdist and pytest-timeout, as far as they are installed."""
    options = []
    if importlib.util.find_spec("xdist"):
        processes = min(setting.pick(WORKERS, 2), os.cpu_count() or 1)
        options += ["-n", str(processes), "--dist", "loadfile"]
    if importlib.util.find_spec("pytest_timeout"):
        options += ["--timeout", "60"]
    return options


def run_until_done(setting: Setting, options: Sequence[str], end: float) -> int | None:
    """pytest's exit status, after it was started again as often as a process has ended in a test."""
    rows: list[Row] = []
    while True:
        before = len(rows)
        status = run_pytest(setting, options, end, {DONE: str(before)})
        rows = read(setting.out / TESTS)
        ended = status not in FINISHED or any(row["outcome"] == LOST for row in rows[before:])
        if not ended or len(rows) == before or time.monotonic() > end:      # without rows, it does not even begin
            return status


def run_pytest(
    setting: Setting, options: Sequence[str], end: float, environment: dict[str, str], log: str = LOG
) -> int | None:
    """pytest's exit status; None if it was ended. It says what it did in a log and in TESTS."""
    command = [
        sys.executable, "-m", "pytest", "-o", "addopts=", "-o", "filterwarnings=default", "-q", "--strict-markers",
        "-p", "scripts.gpu_parts.pytest_rows", "-p", "no:cacheprovider", "--continue-on-collection-errors",
        "--tb=short", "-rfE", "-m", "not slow and not parity", "--device", setting.device,
        f"--basetemp={setting.scratch / 'tests'}", *options,
    ]
    environment = {**os.environ, VARIABLE: str(setting.out / TESTS), **environment}
    with (setting.out / log).open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            return process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)      # it then writes its report
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return None
        finally:
            process.kill()
            process.wait()


def outcomes(rows: Sequence[Row]) -> dict[str, str]:
    """{test: its last outcome, or the failure of one of its phases}."""
    found: dict[str, str] = {}
    for row in rows:
        if found.get(row["test"]) not in ("failed", LOST):
            found[row["test"]] = row["outcome"]
    return found


def missing_packages(rows: Sequence[Row]) -> dict[str, list[str]]:
    """{package: the test files that cannot be imported without it}."""
    found: dict[str, list[str]] = {}
    for row in rows:
        match = re.search(r"No module named '([\w.]+)'", row.get("error", ""))
        if row["outcome"] == NOT_COLLECTED and match:
            package = match[1].partition(".")[0]
            if package not in ("scratchvit", "tests", "scripts") and row["test"] not in found.get(package, ()):
                found.setdefault(package, []).append(row["test"])
    return found


def slowest(rows: Sequence[Row], most: int = 10) -> list[tuple[float, str]]:
    return sorted(((row["seconds"], row["test"]) for row in rows), reverse=True)[:most]


SUITE: dict[str, Any] = {"device tests": device_tests}
AGAIN: dict[str, Any] = {"without CUB, one kernel at a time": failed_tests_again}
