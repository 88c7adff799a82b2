"""The worked examples of the package's docstrings (`>>>`) are run, so that they stay true."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import scratchvit

PACKAGE = Path(scratchvit.__file__).parent
# As NumPy prints when nobody has asked for anything else.
PRINTED = {
    "precision": 8, "threshold": 1000, "edgeitems": 3, "linewidth": 75, "suppress": False, "nanstr": "nan",
    "infstr": "inf", "sign": "-", "floatmode": "maxprec", "formatter": None, "legacy": False,
}
# Where readers stop: these have an example.
EXPECTED = (
    "scratchvit.tensor", "scratchvit.graph", "scratchvit.learn.engine", "scratchvit.models.windows",
    "scratchvit.models.mvit_v2", "scratchvit.ops.norm", "scratchvit.detection.matcher",
    "scratchvit.detection.criterion",
)


def lines_with_examples(path: Path) -> int:
    return len(re.findall(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if lines_with_examples(path)}


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    """Its docstrings' examples. An op is defined by the decorator's module: doctest looks only at what it wraps."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {test.name: test for test in finder.find(module, module.__name__)}
    for name, value in vars(module).items():
        wrapped = inspect.unwrap(value) if callable(value) else value
        if wrapped is not value and getattr(wrapped, "__module__", None) == module.__name__:
            of_op = finder.find(wrapped, f"{module.__name__}.{name}", module=module)
            found |= {test.name: test for test in of_op}
    return [test for test in found.values() if test.examples]


@pytest.mark.parametrize("name", EXPECTED)
def test_where_readers_stop_there_is_an_example(name: str) -> None:
    assert name in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_true(name: str) -> None:
    tests = examples_of(importlib.import_module(name))
    assert sum(len(test.examples) for test in tests) == lines_with_examples(MODULES[name]), "some would not be run"
    said: list[str] = []
    with np.printoptions(**PRINTED):
        for test in tests:
            doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "".join(said)
