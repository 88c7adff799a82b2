"""Ranks that are threads of this process: a communicator to test with, where no MPI is needed.

    results = run_ranks(2, lambda ranks: train(…, ranks))           # what each rank returned, in their order

Collectives add in the order of ranks, on the host or the device, so that they are the same on all ranks bit for bit.
"""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scratchvit import backend
from scratchvit.backend import Array
from scratchvit.parallel.communicator import DONE, Communicator, Request

SECONDS = 60        # after which a rank that waits for others gives up


class RankFailed(Exception):
    """A rank raised an exception, which is the cause of this one."""


class _World:
    """What the threads share: a barrier, and a place for what each has brought."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=SECONDS)
        self.brought: list[Any] = [None] * size


class ThreadRank(Communicator):
    """One of the ranks. Its collectives are done when they return."""

    def __init__(self, world: _World, rank: int) -> None:
        self.world, self.rank, self.size = world, rank, world.size
        self.local_rank, self.local_size, self.host = rank, world.size, "threads"
        self.calls: list[str] = []      # the names of the collectives in their order

    def _exchange(self, name: str, mine: Any) -> list[Any]:
        """What all ranks have brought to this collective."""
        self.calls.append(name)
        self.world.brought[self.rank] = (name, mine)
        self.world.barrier.wait()
        brought = list(self.world.brought)
        self.world.barrier.wait()       # nobody writes the next before all have read these
        names = {name for name, _ in brought}
        assert len(names) == 1, f"the ranks are in different collectives: {names}"
        return [thing for _, thing in brought]

    def start_sum(self, array: Array) -> Request:
        arrays = self._exchange("sum", array.copy())
        assert len({(found.shape, str(found.dtype)) for found in arrays}) == 1
        total = arrays[0].copy()
        for other in arrays[1:]:
            total += other
        array[...] = total
        return DONE

    def start_sum_of_part(self, array: Array, part: Array) -> Request:
        whole = array.copy()
        self.start_sum(whole)
        n = len(part)
        assert len(array) == n * self.size
        part[...] = whole[self.rank * n : (self.rank + 1) * n]
        return DONE

    def start_join(self, part: Array, array: Array) -> Request:
        n = len(part)
        assert len(array) == n * self.size
        for rank, found in enumerate(self._exchange("join", part.copy())):
            array[rank * n : (rank + 1) * n] = found
        return DONE

    def broadcast(self, array: Array) -> None:
        array[...] = self._exchange("broadcast", array.copy())[0]

    def gather(self, thing: Any) -> list[Any]:
        return [json.loads(text) for text in self._exchange("gather", json.dumps(thing))]

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(self._exchange("gather_rows", rows.copy()))

    def abort(self, status: int) -> None:
        self.world.barrier.abort()
        raise SystemExit(status)


def run_ranks(size: int, task: Callable[[ThreadRank], Any]) -> list[Any]:
    """Call task(rank) in as many threads, and return what it returned for each rank.

    Skips the test on a GPU, which all threads would share; ranks with a GPU each are processes (fakegpu/test_nccl.py).
    Raises RankFailed for the first rank that raised an exception; the others are then stopped in their next collective.
    """
    if backend.current().name.startswith("gpu"):
        pytest.skip("ranks that are threads would share one GPU, which only one thread may use")
    world = _World(size)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = task(ThreadRank(world, rank))
        except BaseException as error:
            errors[rank] = error
            world.barrier.abort()

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(run, rank), daemon=True) for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [error for error in errors if error and not isinstance(error, threading.BrokenBarrierError)]
    if causes or any(errors):
        first = causes[0] if causes else next(error for error in errors if error)
        raise RankFailed(f"rank {errors.index(first)}: {first}") from first
    return results
