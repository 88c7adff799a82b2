"""A plugin of pytest: a line for each test as soon as it is done, and no further tests after a device has failed.

    GPU_CHECK_TESTS=FILE pytest -p scripts.gpu_parts.pytest_rows …

After a kernel with an illegal access, every further call of CUDA in that process fails, so every later test would. Such
a process ends at once. Started again with GPU_CHECK_DONE=LINES, the same command goes on: tests of which the first
LINES lines of FILE tell are left out. (pytest-xdist replaces a worker that has ended, but loses some of its tests.)
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Generator
from typing import Any

import pytest

from scratchvit import gpu
from scripts.gpu_parts.suite import DONE, LOST, NOT_COLLECTED, STARTED, VARIABLE

LONGEST = 1500                      # characters of an error


def write(test: str, outcome: str, seconds: float = 0.0, error: str = "") -> None:
    row = {"test": test, "outcome": outcome, "seconds": round(seconds, 3)}
    if error:
        row["error"] = error[-LONGEST:]
    with open(os.environ[VARIABLE], "a", encoding="utf-8") as file:      # noqa: PTH123 (as fast as can be)
        file.write(json.dumps(row) + "\n")


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


class Rows:
    """The hooks of the process that reports: the only one, or that which distributes tests to workers."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        write(nodeid, STARTED)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            write(report.nodeid, report.outcome, report.duration, report.longreprtext if report.failed else "")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            write(report.nodeid, NOT_COLLECTED, error=report.longreprtext)


def pytest_configure(config: pytest.Config) -> None:
    if not _is_worker(config):
        config.pluginmanager.register(Rows(), "gpu-check-rows")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was done, or begun, before. All workers collect the same, though the file grows meanwhile."""
    if lines := int(os.environ.get(DONE, "0")):
        with open(os.environ[VARIABLE], encoding="utf-8") as file:      # noqa: PTH123
            done = {json.loads(line)["test"] for line in itertools.islice(file, lines)}
        items[:] = [item for item in items if item.nodeid not in done]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    report = yield
    if call.excinfo is not None and gpu.has_failed_for_good(call.excinfo.value):
        write(item.nodeid, LOST, report.duration, report.longreprtext)
        os._exit(3)
    return report
