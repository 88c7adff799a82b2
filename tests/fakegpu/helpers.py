"""What the stand-in's own tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cupy
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120           # only to end a process that hangs


def agree(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """A CuPy array and what NumPy computes: the same shape, dtype, and values up to the tolerance."""
    found, expected = cupy.asnumpy(found), np.asarray(expected)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments and environment variables, in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=SECONDS, cwd=ROOT,
        env={**os.environ, **environment},
    )
