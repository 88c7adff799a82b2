"""Examples in docstrings are computed, so that their numbers stay true."""

import doctest
import importlib
from pathlib import Path

import pytest

import scratchvit

PACKAGE = Path(scratchvit.__file__).parent
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_examples_give_what_they_say(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    failed, attempted = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    assert attempted and not failed
