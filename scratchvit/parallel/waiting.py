"""Waiting for other ranks, with a limit; and how a rank that cannot go on ends the job.

MPI itself waits for ever: if one of the processes hangs, all hang, silently, and each of them occupies its core. Here
all waiting is one loop, which asks MPI whether the collective is done, sleeps a moment, and has a limit.

A rank that has reached the limit asks all others. Those that wait too answer, from this same loop; a rank that hangs,
or computes for ever, does not. So the ranks that do not answer are those that the others wait for, and the lowest of
those that did answer says so and ends the job. This takes no message before the limit, and nothing from the rank that
hangs.

An error on one rank leaves the others waiting, so it has to end them. But most errors are those of all ranks (a wrong
option, a missing folder), and are then printed once. So a rank with an error tells rank 0. If that soon knows of the
same error from all ranks, it prints it and answers; otherwise it prints those that it knows, with their ranks, and ends
the job. A rank that gets no answer, because rank 0 computes or hangs, prints its own error and ends the job.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

BUSY_SECONDS = 0.002        # at first the loop does not sleep, because most waits are short
NAP = 0.05                  # then it sleeps for this fraction of the time it has waited,
LONGEST_NAP = 0.002         # but no longer: large arrays arrive in pieces, each of which needs a call
LOOK_EVERY = 0.2            # seconds between looks for messages
ANSWER_SECONDS = 2.0        # within which a rank that waits answers
ALIKE_SECONDS = 3.0         # within which an error that all ranks have shows on all of them

ASK, HERE, ERROR, TOLD = 1, 2, 3, 4         # tags of messages


def named(rank: int, hosts: Sequence[str]) -> str:
    """How errors name a rank: "rank 1 of 2 on node3". Before its host is known, "rank 1 of 2"."""
    return f"rank {rank} of {len(hosts)}" + (f" on {hosts[rank]}" if hosts[rank] else "")


class Waiting:
    """Waits of one rank for the others.

    mpi     mpi4py's module MPI
    comm    its communicator for these messages alone
    hosts   the names of all ranks' machines, "" where it is not known yet
    """

    def __init__(self, mpi: Any, comm: Any, hosts: Sequence[str]) -> None:
        self._mpi, self._comm, self.hosts = mpi, comm, list(hosts)
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._sent: list[Any] = []      # messages under way, which must not be freed
        self._errors: dict[int, Any] = {}       # on rank 0: of the ranks that have told it,
        self._failed = 0.0                      # and when it heard of the first while it waited

    def until(self, done: Callable[[], bool], name: str, number: int, limit: float | None) -> None:
        """Return when done(), which is asked again and again, or end the job after `limit` seconds.

        name, number: of the collective that is waited for, as the error says it. limit: None, to wait for ever.
        """
        begun, looked = time.perf_counter(), 0.0
        search: _Search | None = None
        while not done():
            waited = time.perf_counter() - begun
            time.sleep(min(LONGEST_NAP, NAP * waited) if waited > BUSY_SECONDS else 0)
            if waited - looked < LOOK_EVERY:
                continue
            looked = waited
            self._answer(name, number)
            self._end_if_one_failed()
            if limit is not None and waited > limit:
                search = search or _Search(self, name, number, limit)
                if found := search.result():
                    self.end(f"{found}; the job ends, and --resume continues from the last checkpoint", 1)

    def stopped_by(self, text: str, key: str, status: int) -> None:
        """End the job because of an error of this rank. Returns if all ranks have the same error; rank 0 prints it.

        text: what is printed, after the rank's name if it is not the error of all; "" if it has been printed already.
        key: what is compared, because texts may name files of this rank. status: the exit status.
        """
        error = {"text": text, "key": key, "status": status}
        if self.rank:
            self._send(0, ERROR, error)
            if not self._within(2 * ALIKE_SECONDS, lambda: self._receive(TOLD)):     # rank 0 computes, or hangs
                self.end(f"{named(self.rank, self.hosts)}: {text}", status)
            return
        self._errors[0] = error
        self._within(ALIKE_SECONDS, lambda: len(self._errors_so_far()) == self.size)
        if len(self._errors) < self.size or any(other["key"] != key for other in self._errors.values()):
            self._end_by_errors()
        _print(text)
        for other in range(1, self.size):
            self._send(other, TOLD, {})
        self._within(ALIKE_SECONDS, lambda: self._mpi.Request.Testall([request for request, _ in self._sent]))

    def _errors_so_far(self) -> dict[int, Any]:
        """The errors of which rank 0 knows: {rank: error}."""
        self._errors |= self._receive(ERROR)
        return self._errors

    def _end_if_one_failed(self) -> None:
        """On rank 0, while it waits: end the job if another rank has an error that does not show here too."""
        if not self.rank and self._errors_so_far():
            self._failed = self._failed or time.perf_counter()
            if time.perf_counter() - self._failed > ALIKE_SECONDS:
                self._end_by_errors()

    def _end_by_errors(self) -> None:
        texts = [f"{named(rank, self.hosts)}: {error['text']}" for rank, error in sorted(self._errors.items())]
        self.end("\nscratchvit: ".join(texts), max(error["status"] for error in self._errors.values()))

    def end(self, text: str, status: int) -> None:
        """Print a sentence, and end the processes of all ranks."""
        _print(text)
        time.sleep(0.1)         # so that mpiexec has passed the sentence on, before it ends
        self._comm.Abort(status)

    # --- messages ---

    def ask(self, number: int) -> None:
        """Ask all other ranks whether they are waiting."""
        for other in range(self.size):
            if other != self.rank:
                self._send(other, ASK, {"number": number})

    def answers(self, number: int) -> dict[int, str]:
        """What ranks have answered to `ask(number)` since the last call: {rank: where it waits}."""
        found = self._receive(HERE)
        return {rank: said["where"] for rank, said in found.items() if said["number"] == number}

    def _answer(self, name: str, number: int) -> None:
        for rank, asked in self._receive(ASK).items():
            self._send(rank, HERE, {"number": asked["number"], "where": f"{name} {number}"})

    def _send(self, rank: int, tag: int, thing: Any) -> None:
        text = bytearray(json.dumps(thing).encode())
        self._sent.append((self._comm.Isend([text, self._mpi.BYTE], rank, tag), text))

    def _receive(self, tag: int) -> dict[int, Any]:
        """The messages with a tag that have come: {rank: the last one}."""
        found, status = {}, self._mpi.Status()
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, tag, status):
            text = bytearray(status.Get_count(self._mpi.BYTE))
            self._comm.Recv([text, self._mpi.BYTE], status.Get_source(), tag)
            found[status.Get_source()] = json.loads(bytes(text))
        return found

    def _within(self, seconds: float, happened: Callable[[], Any]) -> bool:
        begun = time.perf_counter()
        while not happened():
            if time.perf_counter() - begun > seconds:
                return False
            time.sleep(LONGEST_NAP)
        return True


class _Search:
    """The search of a rank that has reached the limit for the ranks that do not answer."""

    def __init__(self, waiting: Waiting, name: str, number: int, limit: float) -> None:
        self._waiting, self._number, self._limit, self._begun = waiting, number, limit, time.perf_counter()
        self._where = {waiting.rank: f"{name} {number}"}
        waiting.ask(number)

    def result(self) -> str | None:
        """A sentence about the ranks that are missing; None as long as others may answer, or have to say it."""
        waiting = self._waiting
        self._where |= waiting.answers(self._number)
        seconds = time.perf_counter() - self._begun
        is_lowest = waiting.rank == min(self._where)
        if seconds < (ANSWER_SECONDS if is_lowest else 2 * ANSWER_SECONDS):     # the lowest may have been killed
            return None
        missing = [rank for rank in range(waiting.size) if rank not in self._where]
        if missing:
            names = "; ".join(named(rank, waiting.hosts) for rank in missing)
            have, do, them = ("has", "does", "it") if len(missing) == 1 else ("have", "do", "them")
            return (
                f"{names} {have} not arrived within {self._limit:g} s (--rank-timeout) and {do} not answer; "
                f"{named(waiting.rank, waiting.hosts)} has waited for {them} in {self._where[waiting.rank]}"
            )
        places = ", ".join(f"rank {rank} in {where}" for rank, where in sorted(self._where.items()))
        return (
            f"all ranks have waited for each other for {self._limit:g} s (--rank-timeout), {places}: either the "
            "network between them only carries short messages, or this is a bug in scratchvit"
        )


def _print(text: str) -> None:
    if text:
        print(f"scratchvit: {text}", file=sys.stderr, flush=True)
