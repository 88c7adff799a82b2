"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

import scratchvit as sv
from tests.support.seeds import seeded

README = Path(__file__).parents[2] / "README.md"


def python_blocks():
    return re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_op_of_the_readme_is_right_and_its_wrong_backward_is_caught(capsys):
    block = python_blocks()[0]
    exec(block, {})     # noqa: S102
    printed = re.search(r"# (\[.*\])", block).group(1)
    assert capsys.readouterr().out.strip() == printed
    with pytest.raises(sv.GradientError):
        exec(block.replace("xp.exp(-x))", "xp.exp(x))"), {})        # noqa: S102


def test_the_model_of_the_readme_trains():
    rng = seeded(0)
    images, labels = rng.standard_normal((2, 3, 32, 32), dtype=np.float32), np.array([3, 7])
    scope = {"sv": sv, "images": images, "labels": labels}
    exec(python_blocks()[1], scope)     # noqa: S102
    assert np.isfinite(scope["loss"].item())
