"""Ranks that are processes, by the MPI of the wheels: the same results as ranks that are threads; limits and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.parallel import ALONE, world
from scratchvit.parallel.world import Launch, launch, open_mpi
from tests.support.mpi_programs import collectives
from tests.support.mpiexec import needs_mpi, run_mpi
from tests.support.ranks import run_ranks

PROGRAM = ["-m", "tests.support.mpi_programs"]


def ran(size: int, *words: object) -> subprocess.CompletedProcess[str]:
    return run_mpi(size, [*PROGRAM, *words])


def results(size: int, *words: object) -> list[Any]:
    """What the program returned on each rank."""
    done = ran(size, *words)
    assert done.returncode == 0, done.stderr
    return [result for _, result in sorted(map(json.loads, done.stdout.splitlines()))]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that no mpiexec started."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


# --- the collectives ------------------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize("size", [2, 4])
def test_processes_exchange_what_threads_exchange(size: int) -> None:
    expected = json.loads(json.dumps(run_ranks(size, collectives)))
    assert results(size, "collectives") == expected
    assert expected[0]["float16"]["sum"] == expected[0]["float64"]["sum"]       # the table does not round
    assert expected[0]["in place"]["scalar"] == size * (size + 1) / 2


@needs_mpi
def test_nothing_is_pickled() -> None:
    first, second = results(2, "unpickled")
    assert first["long"] == second["long"] == 1000 * "x"


@needs_mpi
def test_rows_that_do_not_fit_are_an_error_of_all_ranks() -> None:
    first, second = results(2, "unlike_rows")
    assert first == second
    assert "rank 0 (2, 3) float64, rank 1 (2, 4) float64" in first


# --- limits and errors ----------------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize(("size", "hangs"), [(2, 0), (2, 1), (4, 2)])
def test_a_rank_that_hangs_is_named_by_the_lowest_of_the_others(size: int, hangs: int) -> None:
    done = ran(size, "hang", hangs)
    assert done.returncode != 0     # 1, or 9 if mpiexec has ended it first
    assert done.stderr.count("scratchvit: ") == 1
    host = run_mpi(1, ["-c", "import socket; print(socket.gethostname())"]).stdout.strip()
    assert f"rank {hangs} of {size} on {host} has not arrived within 0.5 s (--rank-timeout)" in done.stderr
    assert f"rank {0 if hangs else 1} of {size} on {host} has waited for it in sum " in done.stderr


@needs_mpi
def test_ranks_in_different_collectives_wait_for_each_other() -> None:
    done = ran(2, "mixed_up")
    assert done.returncode != 0
    assert done.stderr.count("all ranks have waited for each other") == 1
    assert "rank 0 in sum 2, rank 1 in broadcast 2" in done.stderr


@needs_mpi
def test_a_rank_that_comes_while_it_is_asked_for_is_waited_for() -> None:
    assert results(2, "late") == [6, 6]


# --- what the environment says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, Launch("", 0, 1)),
    ({"PMI_SIZE": "4", "PMI_RANK": "3"}, Launch("mpiexec", 3, 4)),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}, Launch("Open MPI's mpirun", 1, 2)),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Launch("", 0, 1)),      # the script of a job, outside of srun
    ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, Launch("srun", 5, 8)),
    ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "PMI_SIZE": "2", "PMI_RANK": "1"}, Launch("mpiexec", 1, 2)),
    ({"PMIX_RANK": "2"}, Launch("a launcher with PMIx", 2, None)),
    ({"PMI_SIZE": "many"}, Launch("", 0, 1)),
])
def test_what_started_a_process_is_in_its_environment(environment: dict[str, str], expected: Launch) -> None:
    assert launch(environment) == expected


def test_a_process_that_was_started_by_itself_is_alone_without_mpi4py() -> None:
    code = "import sys; from scratchvit.parallel import world; print(world().size, 'mpi4py' in sys.modules)"
    done = python(code)
    assert done.stdout == "1 False\n", done.stderr
    assert world() is ALONE


def test_without_mpi4py_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[launch.__module__], "is_installed", lambda name: False)
    with pytest.raises(ScratchvitError, match=r"mpiexec has started 2 processes.*pip install mpi4py mpich"):
        open_mpi(Launch("mpiexec", 0, 2))


@needs_mpi
def test_the_launcher_of_another_mpi_is_noticed() -> None:
    """Open MPI's mpirun sets these variables; this process, started by itself, is rank 0 of 1 for MPICH."""
    code = "from scratchvit.parallel import world; world()"
    done = python(code, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert "Open MPI's mpirun has started 2 processes, but in the MPI that mpi4py uses here (MPICH" in done.stderr
    assert "sees only itself: the launcher belongs to another MPI. Start it with" in done.stderr
