"""What ranks do in tests/parallel/test_mpi.py: `python -m tests.support.mpi_programs NAME`, on each of them.

Each rank prints a line of JSON, with its number.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from typing import Any

import ml_dtypes
import numpy as np

from scratchvit.parallel import Communicator, world
from tests.support.collectives import all_collectives, in_place

DTYPES = {
    "float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64, "bool": bool,
}


def collectives(ranks: Communicator) -> dict[str, Any]:
    """Of all dtypes."""
    return {name: all_collectives(ranks, dtype) for name, dtype in DTYPES.items()} | {"in place": in_place(ranks)}


def unpickled(ranks: Communicator) -> dict[str, Any]:
    """The collectives where pickle would raise."""
    from mpi4py import MPI

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("something is pickled")

    pickle.dumps = pickle.loads = pickle.dump = pickle.load = refuse       # type: ignore[assignment]
    MPI.pickle.__init__(refuse, refuse)         # mpi4py's own, of its methods in lower-case letters
    refused = False
    try:
        MPI.COMM_SELF.sendrecv({}, 0, source=0)
    except AssertionError:
        refused = True
    assert refused, "this test would not see that something is pickled"
    all_collectives(ranks)
    return in_place(ranks)


def hang(ranks: Communicator, number: int) -> None:
    """One rank does nothing any more."""
    ranks.timeout = 0.5
    if ranks.rank == number:
        time.sleep(600)
    ranks.sum(np.zeros(3))


def mixed_up(ranks: Communicator) -> None:
    """The ranks wait in different collectives."""
    ranks.timeout = 0.5
    (ranks.broadcast if ranks.rank else ranks.sum)(np.zeros(3))


def late(ranks: Communicator) -> float:
    """A rank comes later than the limit, but it answers before it is given up."""
    ranks.timeout = 0.5
    if ranks.rank:
        time.sleep(1.5)
    total = np.ones(3)
    ranks.sum(total)
    return total.sum()


def unlike_rows(ranks: Communicator) -> str:
    """The error for rows that do not fit together, the same on all ranks."""
    try:
        ranks.gather_rows(np.zeros((2, 3 + ranks.rank)))
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    """Call the program with the communicator and the numbers that follow its name."""
    name, *numbers = sys.argv[1:]
    ranks = world()
    done = globals()[name](ranks, *map(int, numbers))
    print(json.dumps([ranks.rank, done]) + "\n", end="", flush=True)     # in one write, also where Python has no buffer
    ranks.close()


if __name__ == "__main__":
    main()
