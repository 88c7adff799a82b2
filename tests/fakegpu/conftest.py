"""The stand-in's own tests need the stand-in: `tests/fakegpu/run pytest tests/fakegpu`. Elsewhere they are skipped."""

import importlib.util
from pathlib import Path

import pytest

IS_STAND_IN = importlib.util.find_spec("fakegpu") is not None


class Skipped(pytest.Module):
    """A file of tests that cannot be imported here."""

    def collect(self):
        pytest.skip("needs the stand-in for a GPU: tests/fakegpu/run pytest tests/fakegpu", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if IS_STAND_IN else Skipped.from_parent(parent, path=module_path)
