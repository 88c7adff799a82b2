"""The collectives of several processes, by MPI: mpi4py's buffer interface, on arrays of the CPU.

All of them are the non-blocking ones of MPI, so that all waiting is that of waiting.py, with its limit. Nothing is
pickled: arrays travel as they lie in memory, small things as JSON.

MPI has no sum of float16 and bfloat16. Such arrays are added in float32 and rounded once, and travel as float32.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import numpy as np

from scratchvit.backend import Array
from scratchvit.errors import ScratchvitError, WrongType, WrongValue
from scratchvit.parallel.communicator import Communicator, Request
from scratchvit.parallel.waiting import Waiting

ADDED_IN_FLOAT32 = ("float16", "bfloat16")
FRAME = 256         # bytes of the first collective of `gather`; longer things need a second one


class MpiRequest(Request):
    """A collective that was started. `finish` is called once, when it is done."""

    def __init__(self, ranks: MpiRanks, request: Any, name: str, finish: Callable[[], None] | None = None) -> None:
        self._ranks, self._request, self._finish = ranks, request, finish
        self.name, self.number = name, ranks.started

    def done(self) -> bool:
        """Whether it is done. Raises ScratchvitError if MPI reports an error, such as a lost connection."""
        if self._request is None:
            return True
        if not self._ranks.checked(self.name, self._request.Test):
            return False
        self._request = None
        if self._finish is not None:
            self._finish()
        return True

    def wait(self) -> None:
        self._ranks.waiting.until(self.done, self.name, self.number, self._ranks.timeout)


class MpiRanks(Communicator):
    """One of the ranks of an MPI communicator. mpi: mpi4py's module MPI."""

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi, self._comm = mpi, comm.Dup()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        local = comm.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = local.Get_rank(), local.Get_size()
        local.Free()
        self.host = socket.gethostname()
        self.started = 0                # number of collectives so far
        self.waiting = Waiting(mpi, comm.Dup(), [self.host if rank == self.rank else "" for rank in range(self.size)])
        self.waiting.hosts = self.gather(self.host)

    # --- arrays ---

    def start_sum(self, array: Array) -> Request:
        _check("sum", array)
        if str(array.dtype) not in ADDED_IN_FLOAT32:
            return self._start("sum", self._comm.Iallreduce, self._mpi.IN_PLACE, array, self._adding(array))
        wide = array.astype(np.float32)

        def finish() -> None:
            array[...] = wide

        return self._start("sum", self._comm.Iallreduce, self._mpi.IN_PLACE, wide, self._mpi.SUM, finish=finish)

    def start_sum_of_part(self, array: Array, part: Array) -> Request:
        self._check_parts("sum_of_part", part, array)
        is_wide = str(array.dtype) not in ADDED_IN_FLOAT32
        given = array if is_wide else array.astype(np.float32)
        # MPI forbids that the result overwrites what is added, as a `part` that is a view of `array` would.
        apart = is_wide and not np.may_share_memory(array, part)
        result = part if apart else np.empty(part.shape, given.dtype)

        def finish() -> None:
            part[...] = result

        return self._start(
            "sum_of_part", self._comm.Ireduce_scatter_block, given, result, self._adding(given),
            finish=None if apart else finish,
        )

    def start_join(self, part: Array, array: Array) -> Request:
        self._check_parts("join", part, array)
        n = len(part)
        own = array[self.rank * n : (self.rank + 1) * n]
        if np.may_share_memory(array, part):
            if part.__array_interface__["data"] != own.__array_interface__["data"]:
                raise WrongValue("join: the part is a view of another place of the array than its own")
            return self._start("join", self._comm.Iallgather, self._mpi.IN_PLACE, self._bytes(array))
        return self._start("join", self._comm.Iallgather, self._bytes(part), self._bytes(array))

    def broadcast(self, array: Array) -> None:
        _check("broadcast", array)
        self._start("broadcast", self._comm.Ibcast, self._bytes(array), 0).wait()

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        _check("gather_rows", rows)
        found = self.gather([list(rows.shape), str(rows.dtype)])
        if any((shape[1:], dtype) != (found[0][0][1:], found[0][1]) for shape, dtype in found):
            raise WrongValue(
                "gather_rows: the ranks have different rows: "
                + ", ".join(f"rank {rank} {tuple(shape)} {dtype}" for rank, (shape, dtype) in enumerate(found))
            )
        row = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
        lengths = [shape[0] for shape, _ in found]
        joined = np.empty((sum(lengths), *rows.shape[1:]), rows.dtype)
        counts = [length * row for length in lengths]
        self._start(
            "gather_rows", self._comm.Iallgatherv, self._bytes(rows), [joined, counts, None, self._mpi.BYTE]
        ).wait()
        return joined

    # --- small things ---

    def gather(self, thing: Any) -> list[Any]:
        text = json.dumps(thing).encode()
        # Most things are short: one collective of frames, which begin with the length of the text.
        frame = np.zeros(FRAME, np.uint8)
        frame[:8].view(np.int64)[0] = len(text)
        begin = text[: FRAME - 8]
        frame[8 : 8 + len(begin)] = np.frombuffer(begin, np.uint8)
        frames = np.empty((self.size, FRAME), np.uint8)
        self._start("gather", self._comm.Iallgather, frame, frames).wait()
        lengths = [int(each[:8].view(np.int64)[0]) for each in frames]
        if max(lengths) <= FRAME - 8:
            return [json.loads(bytes(each[8 : 8 + length])) for each, length in zip(frames, lengths)]
        whole = np.empty(sum(lengths), np.uint8)
        self._start(
            "gather", self._comm.Iallgatherv, np.frombuffer(text, np.uint8), [whole, lengths, None, self._mpi.BYTE]
        ).wait()
        ends = np.cumsum(lengths)
        return [json.loads(bytes(whole[end - length : end])) for end, length in zip(ends, lengths)]

    # --- the end ---

    def close(self) -> None:
        """Wait until all ranks have come to their end, for as long as it takes: rank 0 draws pictures meanwhile."""
        request = self._start("the end", self._comm.Ibarrier)
        self.waiting.until(request.done, request.name, request.number, None)

    def abort(self, status: int) -> None:
        self._comm.Abort(status)

    # --- how they are started ---

    def _start(self, name: str, start: Any, *arguments: Any, finish: Callable[[], None] | None = None) -> MpiRequest:
        self.started += 1
        return MpiRequest(self, self.checked(name, start, *arguments), name, finish)

    def checked(self, name: str, call: Any, *arguments: Any) -> Any:
        """call(*arguments), whose MPI.Exception becomes a ScratchvitError that names the rank, which it raises."""
        try:
            return call(*arguments)
        except self._mpi.Exception as error:
            raise ScratchvitError(f"MPI failed in {name} ({error.Get_error_string()})") from error

    def _adding(self, array: Array) -> Any:
        return self._mpi.LOR if array.dtype == bool else self._mpi.SUM     # as NumPy adds booleans

    def _bytes(self, array: Array) -> list[Any]:
        """An array as bytes, so that MPI need not know its dtype."""
        return [array.reshape(-1).view(np.uint8), self._mpi.BYTE]

    def _check_parts(self, name: str, part: Array, array: Array) -> None:
        _check(name, part)
        _check(name, array)
        if part.dtype != array.dtype or array.shape != (self.size * len(part), *part.shape[1:]):
            raise WrongValue(
                f"{name}: the array of {self.size} ranks must be as long as {self.size} parts, and have their dtype; "
                f"given {array.shape} {array.dtype} and a part {part.shape} {part.dtype}"
            )


def _check(name: str, array: Array) -> None:
    """Raise for an array that MPI cannot send from where it lies."""
    if not isinstance(array, np.ndarray):
        raise ScratchvitError(
            f"{name}: MPI sends arrays of the CPU, and this one is on a GPU: call the collective of "
            "parallel.place.ranks_of_device(ranks), which is NCCL's"
        )
    if array.dtype.hasobject:
        raise WrongType(f"{name}: numbers are needed, not {array.dtype}")
    if not array.flags.c_contiguous:
        raise WrongValue(f"{name}: a contiguous array is needed; given one of shape {array.shape} with gaps")
