"""What of a machine belongs to a rank: its share of the CPU's cores, or a GPU of its own."""

from __future__ import annotations

import os

from scratchvit import backend, gpu
from scratchvit.errors import ScratchvitError
from scratchvit.parallel.communicator import Communicator
from scratchvit.threads import cpu_cores, limit_cpu_threads


def take_cores(ranks: Communicator) -> None:
    """Limit this rank's threads to its share of the cores that it may use. All ranks have to call it.

    Fewer threads, by OMP_NUM_THREADS, stay fewer.
    """
    if ranks.size > 1:
        own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cpu_cores()))
        limit_cpu_threads(share_of_cores(ranks, own))


def share_of_cores(ranks: Communicator, own: list[int]) -> int:
    """How many of the cores that this rank may use are its share, at least one. own: their numbers.

    Ranks that a launcher has bound to cores of their own (Open MPI does so, srun on many clusters) keep all of these;
    those that may use the same ones divide them.
    """
    places = ranks.gather([ranks.host, own])
    sharing = sum(host == ranks.host and not set(own).isdisjoint(cores) for host, cores in places)
    return max(1, len(own) // sharing)


def device_of_rank(device: str, ranks: Communicator) -> str:
    """The device of this rank, of a run on `device`: of several ranks on "gpu", each has a GPU of its own.

    Where a launcher shows each process one GPU only, that is the rank's. Raises ScratchvitError if there are fewer GPUs
    than ranks on this machine, or if `device` names one of them.
    """
    if ranks.size == 1 or device == "cpu":
        return device
    if device != "gpu":
        raise ScratchvitError(f"{device} is one GPU, and each of {ranks.size} ranks needs its own: use --device gpu")
    count = gpu.number_of_gpus()
    if 1 < count < ranks.local_size:
        raise ScratchvitError(
            f"{ranks.host} has {count} GPUs for {ranks.local_size} ranks: start at most {count} ranks there"
        )
    number = ranks.local_rank % count
    return f"gpu:{number}" if number else device


def ranks_of_device(ranks: Communicator) -> Communicator:
    """The communicator for arrays on the device in use: with several ranks on GPUs, that of NCCL.

    All ranks have to call it. Raises as `NCCL` does.
    """
    if ranks.size == 1 or not backend.current().has_cuda:
        return ranks
    from scratchvit.parallel.nccl import NCCL  # here, because it needs CuPy

    return NCCL(ranks)
