"""One step of every rank as a trace for https://ui.perfetto.dev: when ops ran, when sums of gradients, who waited.

    rank 0   step      | next batch | forward | backward          | wait | update |
             ops       …
             network                               | bucket 0 |
                                                        | bucket 1 |
    rank 1   …

The third step of a session is recorded: memory has been taken by then, and the ranks have agreed on the order of their
buckets. A sum is shown from when it was started to when this rank learned that it was done, which it asks after every
gradient. On a GPU, times are those of the host, which only starts the work there.

Every machine has its own clock. Nobody returns from a `gather` before everybody has called it. So if rank r calls it at
the time c_r of its clock and returns at e_r, and d is what r's clock is ahead of rank 0's:

    c_0 ≤ e_r - d   and   c_r - d ≤ e_0,      that is   c_r - e_0 ≤ d ≤ e_r - c_0

Of some rounds, the largest lower bound and the smallest upper one hold. The file has their middle taken off the times
of rank r, and says half their distance, by which they may still be wrong.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scratchvit.costs.counting import noting_paths
from scratchvit.costs.profiling import BACKWARD, FORWARD, UPDATE
from scratchvit.costs.trace import lasting, named, trace_file
from scratchvit.files import write_atomically
from scratchvit.nn import Module
from scratchvit.parallel.buckets import Buckets
from scratchvit.parallel.communicator import Communicator
from scratchvit.recording import replace_ops
from scratchvit.signature import takes_need
from scratchvit.training.agreement import on_rank_0

RECORDED = 3        # which step of a session
ROUNDS = 50         # of the exchange of clocks
STEP, OPS, NETWORK = 1, 2, 3        # tracks; sums at the same time take further ones

Event = tuple[str, str, float, float]       # name, module, start and end in seconds of time.perf_counter


class Timeline:
    """Records a step of a run, if that is wanted. buckets: None in one process. path: of the file, rank 0 writes it."""

    def __init__(self, wanted: bool, model: Module, ranks: Communicator, buckets: Buckets | None, path: Path):
        self.wanted, self.model, self.ranks, self.buckets, self.path = wanted, model, ranks, buckets, path
        self.count = 0                      # steps so far
        self.ended = 0.0                    # when the last one did

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Context manager for each step, which have numbers from 0. Raises ScratchvitError if the disk is full."""
        self.count += 1
        if not self.wanted or self.count != RECORDED:
            yield
            self.ended = time.perf_counter()
            return
        ops: dict[str, list[Event]] = {FORWARD: [], BACKWARD: []}
        if self.buckets:
            self.buckets.events = []
        begun = time.perf_counter()
        noting = noting_paths(self.model)
        with _no_collection(), noting as running, replace_ops(lambda *what: _timed(ops, running[-1], *what)):
            yield
        end = time.perf_counter()
        sums: list[tuple[str, float, float]] = []
        if self.buckets:
            sums, self.buckets.events = self.buckets.events or [], None
        phases = [("next batch", self.ended, begun), *_phases(begun, end, ops, sums)]
        network = [event for event in sums if event[0] != "backward"]
        self._write(number, {"host": self.ranks.host, "phases": phases, "ops": ops, "network": network})

    def _write(self, number: int, own: dict[str, Any]) -> None:
        offsets = clock_offsets(self.ranks)
        everyone = self.ranks.gather(own)
        on_rank_0(self.ranks, lambda: write_atomically(self.path, timeline(number, everyone, offsets)))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Context manager without Python's garbage collector, which what is noted would start: 0.2 s with all libraries."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _timed(
    ops: dict[str, list[Event]], path: str, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Any, Callable[..., Any]]:
    """Call an op and note when; its backward, which is returned, will note its own time."""
    start = time.perf_counter()
    value, backward = function(*args, **kwargs)
    ops[FORWARD].append((function.__name__, path, start, time.perf_counter()))
    wants_need = takes_need(backward)

    def timed_backward(dy: Any, need: Sequence[bool]) -> Any:
        start = time.perf_counter()
        gradients = backward(dy, need=need) if wants_need else backward(dy)
        ops[BACKWARD].append((function.__name__, path, start, time.perf_counter()))
        return gradients

    return value, timed_backward


def _phases(
    begun: float, end: float, ops: dict[str, list[Event]], sums: Sequence[tuple[str, float, float]]
) -> Iterator[tuple[str, float, float]]:
    """(name, start, end) of what a step consists of."""
    calls = sorted((start, stop, name) for name, events in ops.items() for _, _, start, stop in events)
    computed = begun
    for name, alike in itertools.groupby(calls, key=lambda call: call[2]):      # one of each, or more with parts
        of_phase = list(alike)
        yield name, of_phase[0][0], of_phase[-1][1]
        computed = of_phase[-1][1]
    # The sums of gradients end before the update, those of parameters, "join …", begin after it.
    joins = [event for event in sums if event[0].startswith("join")]
    summed = max((stop for what, _, stop in sums if not what.startswith("join")), default=computed)
    updated = min((start for _, start, _ in joins), default=end)
    if sums:
        yield "wait for sums", computed, summed
    yield UPDATE, summed, updated
    if joins:
        yield "wait for parameters", updated, max(stop for _, _, stop in joins)


def clock_offsets(ranks: Communicator, clock: Callable[[], float] = time.perf_counter) -> list[tuple[float, float]]:
    """For each rank, by how many seconds its clock is ahead of rank 0's, and by how many that may be wrong.

    The top of this file says how. All ranks call this. clock: that of this rank.
    """
    rounds = []
    for _ in range(ROUNDS):
        called = clock()
        ranks.gather(None)
        rounds.append((called, clock()))
    first, *others = ranks.gather(rounds)
    offsets = [(0.0, 0.0)]
    for of_rank in others:
        least = max(called - ended for (called, _), (_, ended) in zip(of_rank, first))
        most = min(ended - called for (_, ended), (called, _) in zip(of_rank, first))
        offsets.append(((least + most) / 2, (most - least) / 2))
    return offsets


def timeline(number: int, everyone: Sequence[dict[str, Any]], offsets: Sequence[tuple[float, float]]) -> bytes:
    """The trace file of a step. everyone: for each rank its host, and its phases, ops and network in its own time."""
    begun = min(of_rank["phases"][0][1] - offset for of_rank, (offset, _) in zip(everyone, offsets))
    events = []
    for rank, (of_rank, (offset, _)) in enumerate(zip(everyone, offsets)):
        zero = begun + offset
        events.append(named("process_name", f"rank {rank} on {of_rank['host']}", rank))
        events += [named("thread_name", text, rank, track) for text, track in (("step", STEP), ("ops", OPS))]
        for name, start, end in of_rank["phases"]:
            events.append(lasting(name, "phase", (rank, STEP), start - zero, end - start))
        for direction, calls in of_rank["ops"].items():
            for name, module, start, end in calls:
                events.append(lasting(name, direction, (rank, OPS), start - zero, end - start, module=module))
        for track, (name, start, end) in _tracks(of_rank["network"]):
            events.append(lasting(name, "network", (rank, track), start - zero, end - start))
            events.append(named("thread_name", "network", rank, track))
    uncertain = [round(1e6 * seconds, 1) for _, seconds in offsets]
    return trace_file(events, {"step": number, "clocks_of_ranks_may_be_wrong_by_us": uncertain})


def _tracks(events: Sequence[tuple[str, float, float]]) -> Iterator[tuple[int, tuple[str, float, float]]]:
    """Events with the number of a track each, so that no two on a track overlap."""
    free: list[float] = []          # when the last event of each track ends
    for event in sorted(events, key=lambda event: event[1]):
        track = next((track for track, end in enumerate(free) if end <= event[1]), len(free))
        free[track : track + 1] = [event[2]]
        yield NETWORK + track, event
