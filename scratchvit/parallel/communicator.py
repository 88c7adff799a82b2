"""What the processes of a run exchange. A process of N is called a *rank*, and its number, from 0 to N - 1, too.

    collective                  before, on rank r               after, on every rank
    sum                         x_r                             Σ x_r
    sum_of_part                 x_r = (x_r0, …, x_rN-1)         rank r has Σ_s x_sr only     (reduce-scatter)
    join                        its part x_r                    (x_0, …, x_N-1)              (all-gather)
    broadcast                   x_0 on rank 0                   x_0
    gather                      a small thing                   [thing_0, …, thing_N-1]

Every rank has to call the same collectives in the same order, with arrays of the same shape and dtype. A sum is that of
one part, followed by joining the parts: "sum" is as much communication as the next two rows together.

`ALONE` is the communicator of a run of one process, in which nothing is sent. mpi.py has that of several processes.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from typing import Any, Protocol

import numpy as np

from scratchvit.backend import Array


class Request(Protocol):
    """A collective that has been started. Its arrays must not be used before it is done."""

    def done(self) -> bool:
        """Whether it is done. Asking also lets the library go on with it, if it has no thread for that."""

    def wait(self) -> None:
        """Return when it is done. Of arrays on a GPU: when the device will not go on before it is done."""


class Communicator(Protocol):
    """The collectives of a run. Arrays are contiguous, and changed in place.

    rank, size              the number of this process, and how many there are
    local_rank, local_size  the same among the processes on this machine
    host                    the name of this machine
    timeout                 seconds to wait for other ranks; then the job ends
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    timeout: float = 300.0

    @abstractmethod
    def start_sum(self, array: Array) -> Request:
        """Replace an array by its sum over all ranks. The result is the same on all of them, bit for bit."""

    @abstractmethod
    def start_sum_of_part(self, array: Array, part: Array) -> Request:
        """Write to `part` (n,) the sum of rows [rank · n, (rank + 1) · n) of `array` (size · n,) over all ranks."""

    @abstractmethod
    def start_join(self, part: Array, array: Array) -> Request:
        """Write the parts (n,) of all ranks to `array` (size · n,). `part` may be a view of its place in it."""

    @abstractmethod
    def broadcast(self, array: Array) -> None:
        """Replace an array by that of rank 0."""

    @abstractmethod
    def gather(self, thing: Any) -> list[Any]:
        """The things of all ranks, on every rank. A thing is what JSON can say: numbers, strings, lists, dictionaries
        with strings as keys, None. It stays on the host."""

    @abstractmethod
    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """Arrays (n_r, …) of the host, joined along their first axis in the order of ranks. n_r may be 0."""

    @abstractmethod
    def abort(self, status: int) -> None:
        """End the processes of all ranks at once. Does not return, unless there is only one rank."""

    def sum(self, array: Array) -> None:
        """`start_sum`, and wait for it."""
        self.start_sum(array).wait()


class _Done(Request):
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return


DONE = _Done()


class Alone(Communicator):
    """The communicator of a run of one process."""

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def __init__(self) -> None:
        self.host = socket.gethostname()

    def start_sum(self, array: Array) -> Request:
        return DONE

    def start_sum_of_part(self, array: Array, part: Array) -> Request:
        part[...] = array
        return DONE

    def start_join(self, part: Array, array: Array) -> Request:
        array[...] = part
        return DONE

    def broadcast(self, array: Array) -> None:
        return

    def gather(self, thing: Any) -> list[Any]:
        return [thing]

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def abort(self, status: int) -> None:
        return


ALONE = Alone()
