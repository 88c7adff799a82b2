"""The notebooks of the course as programs: what one of them defines when it runs to its end."""

import functools
import importlib.util

import pytest

from scratchvit.course.folder import folder


@functools.cache
def defined_by(stem):
    """Everything that the notebook docs/course/{stem}.py defines: {name: value}. Skips the test without marimo."""
    pytest.importorskip("marimo", reason="marimo is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")
    spec = importlib.util.spec_from_file_location(f"chapter_{stem}", folder() / f"{stem}.py")
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    return notebook.app.run()[1]
