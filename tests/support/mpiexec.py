"""Real ranks: processes that the mpiexec beside this Python starts. Tests that need it are skipped where it is absent.

    done = run_mpi(2, "tests.parallel.mpi_programs", "collectives")
    assert done.returncode == 0, done.stderr
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from scratchvit.errors import is_installed
from scratchvit.parallel.world import mpiexec_of_wheel

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "SCRATCHVIT_DEVICE": "cpu"}     # MPI is for arrays of the CPU
SECONDS = 120       # only to end ranks that hang: machines differ

needs_mpi = pytest.mark.skipif(
    not is_installed("mpi4py") or mpiexec_of_wheel() is None,
    reason="real ranks need mpi4py, and an mpiexec beside this Python: pip install mpi4py mpich",
)


def start_mpi(
    size: int, words: Sequence[object], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python *words` on so many ranks, on the CPU, one BLAS thread each; stdout and stderr are pipes."""
    return subprocess.Popen(
        [str(mpiexec_of_wheel()), "-n", str(size), sys.executable, *map(str, words)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str], seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """What the ranks printed, and mpiexec's exit status. Raises TimeoutExpired after ending ranks that hang."""
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)     # mpiexec ends its ranks, which a kill would leave behind
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def run_mpi(
    size: int, words: Sequence[object], environment: Mapping[str, str] | None = None, seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    """`python *words` on so many ranks: what they printed, and mpiexec's exit status."""
    return finished(start_mpi(size, words, environment), seconds)
