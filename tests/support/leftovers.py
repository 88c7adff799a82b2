"""What a test may change in its process and must put back: a test that leaves something behind decides about the next.

`state()` is taken before and after every test (tests/conftest.py), and `differences` names what is not as it was.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

import scratchvit as sv
from scratchvit import tensor
from scratchvit.nn import init

# Written by libraries on their first import, and by pytest while a test runs.
NOT_OURS = ("PYTEST_", "COVERAGE", "KMP_", "TORCH", "TRITON", "OMP_", "TF_", "GRPC_", "HF_", "CUPY_")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]


def state() -> dict[str, Any]:
    """{what: how it is now}."""
    found = {
        "the device in use": sv.device(),
        "whether ops record": tensor.is_recording(),
        "whether initial weights are drawn": init.is_drawing(),
        "a stand-in for ops": tensor._stand_in,
        "records of random draws": len(sv.random._records),
        "the working directory": Path.cwd(),
        "environment variables": {k: v for k, v in os.environ.items() if not k.startswith(NOT_OURS)},
        "NumPy's error handling": np.geterr(),
        "NumPy's print options": np.get_printoptions(),
        "NumPy's global random state": np.random.get_state()[1:3],         # noqa: NPY002
        "Python's global random state": hash(random.getstate()),
        "sys.path": list(sys.path),
        "handlers of signals": [signal.getsignal(number) for number in SIGNALS],
        "files in the working directory": sorted(path.name for path in Path().iterdir()),
        "files in the folder for temporary files": sorted(
            path.name for path in Path(tempfile.gettempdir()).iterdir() if not path.name.startswith("torchinductor")
        ),
        "threads that are not daemons": sorted(t.name for t in threading.enumerate() if _is_a_tests(t)),
    }
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        found["open figures"] = pyplot.get_fignums()
        found["Matplotlib's settings"] = dict(pyplot.rcParams)
    if torch := sys.modules.get("torch"):
        found["PyTorch's dtype, threads and gradients"] = (
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        )  # fmt: skip
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for everything that was there before and is not as it was."""
    return [
        f"{what}: {before[what]!r:.300} became {after[what]!r:.300}"
        for what in before
        if what in after and not _same(before[what], after[what])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


def _is_a_tests(thread: threading.Thread) -> bool:
    """Not the pool of the package, which is made once and kept, nor pytest-xdist's own."""
    return not thread.daemon and not thread.name.startswith(("scratchvit", "MainThread", "execnet"))
