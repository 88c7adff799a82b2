"""What is imported when: `import scratchvit` and `scratchvit --help` are quick, so slow modules wait for their use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scratchvit.cli import COMMANDS

OPTIONAL = ("cupy", "matplotlib", "mpi4py", "pooch", "pycocotools", "sklearn", "torch", "yaml", "starlette", "uvicorn")
SLOW = ("scipy", "multiprocessing.pool", "unittest", "asyncio")
ON_DEMAND = tuple(f"scratchvit.{name}" for name in (
    "cli", "costs", "data", "detection", "inspect", "recipes", "reports", "training", "zoo",
))
HELP = "from scratchvit.cli import main; main({!r})"
A_STEP = """
import numpy as np, scratchvit as sv
model = sv.create_model("vit_tiny_patch16_224", num_classes=2, img_size=16, patch_size=8, depth=1)
optimizer = sv.optim.AdamW(model.parameters(), lr=1e-3)
sv.ops.cross_entropy(model(np.zeros((2, 3, 16, 16), np.float32)), np.array([0, 1])).backward()
optimizer.step()
"""


def loaded(code: str, *modules: str) -> list[str]:
    """Which of these modules a new process has loaded after running the code."""
    check = f"{code}\nimport sys; print('loaded', *[name for name in {modules} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_the_check_sees_what_is_loaded() -> None:
    assert loaded("import scipy.special", *OPTIONAL, "scipy", "scratchvit") == ["scipy"]


def test_importing_the_package_loads_what_every_program_needs_and_no_more() -> None:
    assert not loaded("import scratchvit", *OPTIONAL, *SLOW, "PIL", "tqdm", *ON_DEMAND)


def test_a_step_of_training_in_float32_needs_no_scipy() -> None:
    """SciPy's erf is for GELU in float64 only: importing it takes longer than importing scratchvit."""
    assert not loaded(f"import os; os.environ['SCRATCHVIT_PLAIN'] = '0'{A_STEP}", *OPTIONAL, *SLOW)


def test_the_list_of_commands_is_printed_without_the_packages_that_commands_use() -> None:
    assert not loaded(HELP.format(["--help"]), *OPTIONAL, *SLOW, "PIL", *(set(ON_DEMAND) - {"scratchvit.cli"}))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_nothing_slow(command: str) -> None:
    assert not loaded(HELP.format([command, "--help"]), *OPTIONAL, *SLOW)
