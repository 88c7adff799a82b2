"""The sums of gradients over ranks, computed while the backward pass goes on.

    plain       after the backward pass: for p in parameters: ranks.sum(p.grad)
    problem     150 collectives, each of which takes its time to begin, while the network waits for the gradients and
                then the processors wait for the network
    idea        gradients are copied side by side into *buckets* of about 4 MB. As soon as the last gradient of a bucket
                is complete, its sum is started, and the backward pass goes on with earlier layers

    backward    ██ head ██ block 11 ██ block 10 ██ block 9 ██ … ██ block 0 ██ embedding
    bucket 0                         ├── sum ──┤
    bucket 1                                    ├── sum ──┤
    …
    the last                                                                           ├─ sum ─┤ is waited for

As in PyTorch's DistributedDataParallel (Li et al. 2020, arXiv 2006.15704, §3.2). Every rank has to start the same sums
in the same order. So a bucket is not started before those that precede it in an order which all ranks have from rank 0:
that in which the buckets were complete in its first backward pass. A parameter whose gradient is still missing when the
backward pass has ended contributes zeros.

Sharded, for an optimiser that updates 1/N of every bucket on each of N ranks (optim/sharded.py): a rank gets the sums
of its part only, and `join` sends the updated parameters to all. In bytes, the two are one sum.

    bucket of rank 0    │ w₁ ········ │ w₂ ········│······ w₃ ····│0│        values, gradients: size · n numbers each
                        ├─ rank 0's n ───┤─ rank 1's ───┤─ rank 2's ───┤     own pieces of rank 1: the end of w₂, a part
                                                                             of w₃
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from scratchvit.backend import Array, array_module, asarray, asnumpy, current
from scratchvit.errors import ScratchvitError, WrongState
from scratchvit.graph import telling
from scratchvit.kernels import updates
from scratchvit.parallel.communicator import Communicator, Request
from scratchvit.tensor import Tensor

BUCKET_BYTES = 4 << 20
ALIGNED = 256       # bytes: every parameter begins at a multiple, as in memory of its own


@dataclasses.dataclass(frozen=True)
class Piece:
    """Entries start, …, stop - 1 of a flattened parameter, which are updated by this rank.

    values, gradient: views (stop - start,) of the parameter and of its gradient, summed over ranks. They stay valid.
    """

    parameter: Tensor
    start: int
    stop: int
    values: Array
    gradient: Array


class Buckets:
    """The gradients of parameters, summed over ranks.

        buckets = Buckets(model.parameters(), ranks)
        …
        optimizer.zero_grad()
        with buckets.overlapping():
            loss.backward()
        total, = buckets.finish(loss.data)
        optimizer.step()

    A rank's loss is its share of that of the whole batch, so that the sum over ranks is what one process would compute.
    `p.grad` is then the sum of all ranks, the same bit for bit on all of them, and a view of a bucket. If gradients are
    accumulated over several calls of backward, only the last is inside of `overlapping`; without it, all sums are
    started by `finish`.

    parameters: those that require no gradient are left out. The rest must have the same shapes and dtypes on all ranks,
    in the same order, which should be that of use.
    sharded: the sums are divided among the ranks, see `own` and `join`. `p.grad` stays that of this rank's images, and
    `p.data` becomes a view of a bucket.
    own: if sharded, the pieces of this rank.
    events: a list that gets (what, start, end) for every collective and every backward pass, in seconds of
    `time.perf_counter`; None: it is not recorded. A sum ends when the host learns of it.

    All ranks have to make it, and raise ScratchvitError if their parameters differ.
    """

    def __init__(self, parameters: Iterable[Tensor], ranks: Communicator, sharded: bool = False):
        self.ranks = ranks
        self.own: list[Piece] = []
        self.events: list[tuple[str, float, float]] | None = None
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad][::-1]
        self._check_same()
        self._buckets = [_Bucket(group, ranks, sharded) for group in grouped(self._parameters)]
        for bucket in self._buckets:
            self.own += bucket.own
        self._bucket_of = {id(parameter): bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._order = self._buckets             # in which they are started
        self._is_agreed = False                 # whether this order is that of rank 0's first backward pass
        self._reset()

    def _check_same(self) -> None:
        mine = [[list(parameter.shape), str(parameter.dtype)] for parameter in self._parameters[::-1]]
        first, *others = self.ranks.gather([self.ranks.host, mine])
        for rank, (host, theirs) in enumerate(others, 1):
            if theirs != first[1]:
                place = next((i for i, pair in enumerate(zip(theirs, first[1])) if pair[0] != pair[1]), None)
                what = f"{len(theirs)} parameters, rank 0 {len(first[1])}" if place is None else (
                    f"parameter {place} (from 0) of shape {tuple(theirs[place][0])} {theirs[place][1]}, rank 0 of "
                    f"{tuple(first[1][place][0])} {first[1][place][1]}"
                )
                raise ScratchvitError(f"rank {rank} on {host} has another model than rank 0: {what}")

    def _reset(self) -> None:
        """Before a backward pass."""
        self._complete: list[_Bucket] = []      # in the order in which they were
        self._started = 0                       # so many of the order
        self._running: list[tuple[str, float, Request]] = []
        for bucket in self._buckets:
            bucket.left = len(bucket.parameters)

    @contextlib.contextmanager
    def overlapping(self) -> Iterator[None]:
        """Context manager for the last backward pass of a step, in which sums are started.

        Raises WrongState if `finish` was not called after the last one.
        """
        if self._complete or self._started:
            raise WrongState("Buckets: the sums of the last backward pass were not waited for: call finish() after it")
        begun = time.perf_counter()
        with telling(self._arrived):
            yield
        self._record("backward", begun)

    def _arrived(self, leaf: Any) -> None:
        """The gradient of a leaf is complete."""
        bucket = self._bucket_of.get(id(leaf))
        if bucket is not None:
            bucket.left -= 1
            if not bucket.left:
                self._complete.append(bucket)
                while self._started < len(self._order) and not self._order[self._started].left:
                    self._start()
        self._running = [running for running in self._running if not self._is_done(*running)]

    def _is_done(self, what: str, begun: float, request: Request) -> bool:
        """Whether a collective is done; asking lets MPI go on with it."""
        done = request.done()
        if done:
            self._record(what, begun)
        return done

    def _start(self) -> None:
        """Start the sum of the next bucket."""
        bucket = self._order[self._started]
        self._started += 1
        self._run(bucket.name, bucket.start_sum())

    def _run(self, what: str, request: Request) -> None:
        self._running.append((what, time.perf_counter(), request))

    def finish(self, *numbers: Array) -> list[Array]:
        """Wait for the sums of all gradients, and those of further numbers of each rank, arrays (). Returns the latter.

        A parameter without a gradient on any rank keeps None. On a GPU this waits for the device only if a parameter
        has no gradient on this rank.
        """
        while self._started < len(self._order):
            self._start()
        missing = [is_missing for bucket in self._buckets for is_missing in bucket.missing]
        further = self._further(numbers, missing)
        self._run("numbers", self.ranks.start_sum(further))
        self._wait()
        if any(missing):
            counts = asnumpy(further)[len(numbers) :]
            for parameter, count in zip(self._parameters, counts):
                if count == self.ranks.size:
                    parameter.grad = None
        if not self._is_agreed:
            names = self.ranks.gather([bucket.name for bucket in self._complete])[0]
            first = [bucket for name in names for bucket in self._buckets if bucket.name == name]
            self._order = first + [bucket for bucket in self._buckets if bucket not in first]
            self._is_agreed = True
        self._reset()
        return [further[i : i + 1].reshape(()).astype(number.dtype) for i, number in enumerate(numbers)]

    def _further(self, numbers: Sequence[Array], missing: Sequence[bool]) -> Array:
        """What is summed besides the gradients, float64: the numbers, and for every parameter 1 if it has none."""
        further = current().xp.zeros(len(numbers) + len(missing), dtype="float64")
        for i, number in enumerate(numbers):
            further[i : i + 1] = number
        if any(missing):
            further[len(numbers) :] = asarray(np.array(missing, np.float64))
        return further

    def join(self) -> None:
        """Send the values of the pieces of each rank to all ranks. Only if sharded."""
        for bucket in self._buckets:
            self._run(f"join of {bucket.name}", bucket.start_join())
        self._wait()

    def _wait(self) -> None:
        """Wait for all that was started."""
        for what, begun, request in self._running:
            request.wait()
            self._record(what, begun)
        self._running = []

    def _record(self, what: str, begun: float) -> None:
        if self.events is not None:
            self.events.append((what, begun, time.perf_counter()))


class _Bucket:
    """Gradients side by side in one array, and if sharded, the parameters in another.

    left: how many of the gradients are not complete yet. missing: whether a parameter had no gradient on this rank.
    """

    def __init__(self, group: Group, ranks: Communicator, sharded: bool):
        self.name, self.parameters, self.ranks, self.left = group.name, group.parameters, ranks, 0
        self.missing: list[bool] = []
        first = self.parameters[0].data
        n = -(-group.size // ranks.size)        # entries of a rank
        self.gradients = array_module(first).zeros(n * ranks.size, dtype=first.dtype)
        self._views = [self._view(self.gradients, *place) for place in zip(self.parameters, group.starts)]
        self.own: list[Piece] = []
        self._values: Array | None = None
        if sharded:
            self._summed = array_module(first).zeros(n, dtype=first.dtype)      # the gradients of this rank's part
            self._values = array_module(first).zeros_like(self.gradients)
            self._shard(group.starts, ranks.rank * n, n)

    def _view(self, flat: Array, parameter: Tensor, start: int) -> Array:
        return flat[start : start + parameter.size].reshape(parameter.shape)

    def _shard(self, starts: Sequence[int], first: int, n: int) -> None:
        """Move the parameters into the bucket, of which entries first, …, first + n - 1 are this rank's."""
        assert self._values is not None
        self._part = self._values[first : first + n]
        for parameter, begin in zip(self.parameters, starts):
            view = self._view(self._values, parameter, begin)
            view[...] = parameter.data
            parameter.data = view
            start, stop = max(first, begin), min(first + n, begin + parameter.size)
            if start < stop:
                values, gradient = self._values[start:stop], self._summed[start - first : stop - first]
                self.own.append(Piece(parameter, start - begin, stop - begin, values, gradient))

    def start_sum(self) -> Request:
        """Copy the gradients into the bucket, which they are views of from then on, and start their sum."""
        self.missing = [parameter.grad is None for parameter in self.parameters]
        rows = []
        for view, parameter in zip(self._views, self.parameters):
            if parameter.grad is None:
                view.fill(0)
            elif parameter.grad is not view:
                rows.append((view, parameter.grad))
            parameter.grad = view
        updates.copy(rows)
        if self._values is None:
            return self.ranks.start_sum(self.gradients)
        return self.ranks.start_sum_of_part(self.gradients, self._summed)

    def start_join(self) -> Request:
        if self._values is None:
            raise WrongState("Buckets: only those made with sharded=True are joined")
        return self.ranks.start_join(self._part, self._values)


@dataclasses.dataclass
class Group:
    """The parameters of a bucket, the places in it where they start, and its size without padding."""

    name: str
    parameters: list[Tensor] = dataclasses.field(default_factory=list)
    starts: list[int] = dataclasses.field(default_factory=list)
    size: int = 0


def grouped(parameters: Sequence[Tensor]) -> list[Group]:
    """The parameters in groups of equal dtype and about BUCKET_BYTES; a larger parameter is alone."""
    groups: list[Group] = []
    for parameter in parameters:
        aligned = ALIGNED // parameter.dtype.itemsize
        last = groups[-1] if groups else None
        start = -(-last.size // aligned) * aligned if last else 0
        if (
            last is None or last.parameters[0].dtype != parameter.dtype
            or (start + parameter.size) * parameter.dtype.itemsize > BUCKET_BYTES
        ):
            last, start = Group(f"bucket {len(groups)}"), 0
            groups.append(last)
        last.parameters.append(parameter)
        last.starts.append(start)
        last.size = start + parameter.size
    return groups
