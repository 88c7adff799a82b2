"""The chapters of the course, and a server that shows them."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.processes import SECONDS


@pytest.fixture(scope="package")
def course_address():
    """The address at which `scratchvit course` shows the chapters."""
    pytest.importorskip("marimo", reason="marimo is not installed")
    pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    command = [sys.executable, "-m", "scratchvit", "course", "--no-browser"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        line = server.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"{command} printed {line!r}"
        yield found[0]
    finally:
        server.terminate()
        server.wait(timeout=SECONDS)
