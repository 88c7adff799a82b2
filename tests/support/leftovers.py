"""What a test may change in its process and must put back: a test that leaves something behind decides about the next.

`state()` is taken before and after every test (tests/conftest.py), and `differences` names what is not as it was.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import signal
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

import scratchvit as sv
from scratchvit import recording
from scratchvit.nn import init

attention = importlib.import_module("scratchvit.ops.attention")         # the name itself is the function's

MODULES = "modules"
# Written by libraries when they are first used, and by pytest while a test runs.
NOT_OURS = ("PYTEST_", "COVERAGE", "KMP_", "TORCH", "TRITON", "OMP_", "TF_", "GRPC_", "HF_", "CUPY_")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]
CHANGED_BY_IMPORTS = {
    "environment variables", "Python's global random state", "NumPy's global random state", "sys.path",
}
"""What a library may change when it is imported: Rich, which scikit-learn imports, draws a random number; setuptools,
which PyTorch's internals import, adds the folder of what it vendors to sys.path."""


def state() -> dict[str, Any]:
    """{what: how it is now}."""
    found = {
        MODULES: tuple(sys.modules),
        "the device in use": sv.device(),
        "the precision of products": sv.matmul_precision(),
        "whether ops record": recording.is_recording(),
        "whether initial weights are drawn": init.is_drawing(),
        "a stand-in for ops": recording.mode.get().stand_in,
        "records of random draws": len(sv.random._records.get()),
        "records of attention": len(attention._recordings.get()),
        "whether memory is traced": tracemalloc.is_tracing(),
        "whether garbage is collected": gc.isenabled(),
        "the working directory": Path.cwd(),
        "environment variables": {k: v for k, v in os.environ.items() if not k.startswith(NOT_OURS)},
        "NumPy's error handling": np.geterr(),
        "NumPy's print options": np.get_printoptions(),
        "NumPy's global random state": np.random.get_state()[1:3],         # noqa: NPY002
        "Python's global random state": hash(random.getstate()),
        "sys.path": list(sys.path),
        "handlers of signals": [signal.getsignal(number) for number in SIGNALS],
        "files in the working directory": sorted(os.listdir()),     # noqa: PTH208  (this runs before and after each test)
        "files in the folder for temporary files": sorted(
            name for name in os.listdir(tempfile.gettempdir())      # noqa: PTH208
            if not name.startswith("torchinductor")
        ),
        "threads that are not daemons": sorted(t.name for t in threading.enumerate() if _is_a_tests(t)),
    }
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        found["open figures"] = pyplot.get_fignums()
        found["Matplotlib's settings"] = dict(dict.items(pyplot.rcParams))      # past its own checks of each key
    if torch := sys.modules.get("torch"):
        found["PyTorch's dtype, threads and gradients"] = (
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        )
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for everything that was there before and is not as it was."""
    changed = [what for what in before if what in after and what != MODULES and not _same(before[what], after[what])]
    if CHANGED_BY_IMPORTS.intersection(changed) and _libraries(after) - _libraries(before):
        changed = [what for what in changed if what not in CHANGED_BY_IMPORTS]
    return [f"{what}: {before[what]!r:.300} became {after[what]!r:.300}" for what in changed]


def _libraries(state: dict[str, Any]) -> set[str]:
    """The packages of others that were imported then."""
    return {name.partition(".")[0] for name in state[MODULES]} - sys.stdlib_module_names - {"scratchvit", "tests"}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


def _is_a_tests(thread: threading.Thread) -> bool:
    """Not the pool of the package, which is made once and kept, nor pytest-xdist's own."""
    return not thread.daemon and not thread.name.startswith(("scratchvit_", "MainThread", "execnet"))
