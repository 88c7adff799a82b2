"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

import scratchvit as sv

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


def example(epochs):
    """The README's second block with another number of epochs: what it prints, and its variables."""
    block = python_blocks()[1]
    assert block.count("range(10)") == 1
    scope = {"sv": sv}
    exec(block.replace("range(10)", f"range({epochs})"), scope)     # noqa: S102
    return scope


def test_the_model_of_the_readme_trains(capsys):
    scope = example(epochs=1)
    assert np.isfinite(scope["loss"].item())
    assert re.fullmatch(r"[\d.]+% of 360 test digits\n", capsys.readouterr().out)


@pytest.mark.slow
def test_the_model_of_the_readme_reaches_its_accuracy():
    """To within a few digits: rounding differs between processors."""
    printed = float(re.search(r"# ([\d.]+)% of 360 test digits", python_blocks()[1]).group(1))
    assert abs(100 * example(epochs=10)["test"].accuracy - printed) < 4
