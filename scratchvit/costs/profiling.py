"""How long each op of a model takes, forward and backward, and how fast the machine would allow it to be.

    model = create_model("vit_tiny_patch16_224")
    found = profile(model, batch_size=8)
    found.rows(measure())               # a row for each op: calls, seconds, multiply-adds, bytes, time by the roofline

The model computes as always, but `replace_ops` puts a stopwatch around each op and its backward. On a GPU, the profiler
waits for the device before and after each op. So the time of an op includes the launch of its kernels, and ops do not
overlap. Therefore as many steps run without the stopwatch, in turn with the others: `plain_seconds` is the time that a
step really takes.

The stopwatch stops while the profiler does its own accounts. So the time of a timed step is that of its ops, of the
optimiser's update, and of what lies between: the engine, sums of gradients, and Python. A model that is not profiled is
not slowed down, since an op looks for a stand-in anyway.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from scratchvit import backend, progress
from scratchvit.backend import Array, asarray
from scratchvit.costs.counting import configured_shape, standing_in
from scratchvit.costs.machine import Machine
from scratchvit.costs.step import training_loss
from scratchvit.costs.work import Works
from scratchvit.nn import Module
from scratchvit.optim import AdamW
from scratchvit.recording import is_recording, no_grad, replace_ops
from scratchvit.signature import takes_need
from scratchvit.tensor import Tensor

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"


@dataclass(frozen=True)
class Span:
    """A stretch of a timed step. Times are in seconds; `start` counts from the beginning of the profile."""

    name: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Call(Span):
    """A call of an op or of its backward. name: that of the op."""

    module: str             # path of the innermost module that called the op: "blocks.0.attn.qkv"
    direction: str          # FORWARD or BACKWARD
    macs: int               # multiply-adds; see work.py for those of a backward
    nbytes: int             # read and written at least; see work.py


@dataclass(frozen=True)
class Step(Span):
    """A timed step. phases: FORWARD, BACKWARD and UPDATE, that of the optimiser; in inference FORWARD alone."""

    phases: tuple[Span, ...]
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Row:
    """All calls of an op in a step, in one direction, or of several ops. All figures are medians over the steps."""

    op: str
    direction: str
    calls: int
    seconds: float
    macs: int
    nbytes: int
    at_best: float          # seconds in which the roofline allows all these calls

    @property
    def flops(self) -> float:
        """Floating-point operations per second. A multiply-add is two; nothing else is counted."""
        return 2 * self.macs / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """The timed steps of a model, and the median time of its steps without a stopwatch around each op."""

    steps: tuple[Step, ...]
    plain_seconds: float

    @property
    def timed_seconds(self) -> float:
        """The median time of a step in which each op was timed."""
        return median(step.seconds for step in self.steps)

    @property
    def share_of_ops(self) -> float:
        """The share of a timed step that lies in ops."""
        return median(sum(call.seconds for call in step.calls) / step.seconds for step in self.steps)

    @property
    def share_of_update(self) -> float:
        """The share of a timed step that lies in the optimiser's update; 0 in inference."""
        return median(
            sum(phase.seconds for phase in step.phases if phase.name == UPDATE) / step.seconds for step in self.steps
        )

    def rows(self, machine: Machine) -> list[Row]:
        """A row for each op and direction, the one that takes longest first."""
        totals: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
        for step in self.steps:
            of_step: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
            for call in step.calls:
                at_best = machine.at_best(2 * call.macs, call.nbytes)
                of_step[call.name, call.direction].append((1, call.seconds, call.macs, call.nbytes, at_best))
            for key, figures in of_step.items():
                totals[key].append([sum(column) for column in zip(*figures)])
        rows = []
        for (op, direction), steps in totals.items():
            calls, seconds, macs, nbytes, at_best = (median(column) for column in zip(*steps))
            rows.append(Row(op, direction, round(calls), seconds, round(macs), round(nbytes), at_best))
        return sorted(rows, key=lambda row: -row.seconds)


def summed(rows: Sequence[Row], direction: str) -> Row:
    """One row for several."""
    calls, seconds, macs, nbytes, at_best = (
        sum(getattr(row, what) for row in rows) for what in ("calls", "seconds", "macs", "nbytes", "at_best")
    )
    return Row("", direction, calls, seconds, macs, nbytes, at_best)


def profile(
    model: Module, image_shape: Sequence[int] | None = None, batch_size: int = 1, steps: int = 5,
    inference: bool = False,
) -> Profile:
    """Time the ops of a model in training steps with AdamW on random images, on the device in use.

    After one step to warm up, `steps` steps are timed, and as many run without timing the ops. Weights, buffers,
    gradients and mode are afterwards as before; random generators of the model go on.
    image_shape: as for `cost`. inference: forward only, in evaluation mode, without recording a graph.
    The loss of a detector is without matching. Raises the errors of `cost`.
    """
    shape = configured_shape(model) if image_shape is None else image_shape
    parameters = list(model.parameters())
    dtype = next((parameter.dtype for parameter in parameters), np.dtype(np.float32))
    images = asarray(np.random.default_rng(0).standard_normal((batch_size, *shape)).astype(dtype))
    weights = [parameter.data for parameter in parameters]
    device = backend.current()
    stopwatch = Stopwatch(device)
    timed, plain = [], []
    try:
        for parameter in parameters:
            parameter.data = parameter.data.copy()
        with (
            standing_in(model, stopwatch.call, training=not inference, device=device),
            progress.bar(2 * steps + 1, "profile", unit="step") as bar,
        ):
            run = _inference(model, images) if inference else _training(model, images)
            stopwatch.step(run)
            bar.update()
            for _ in range(steps):
                timed.append(stopwatch.step(run))
                bar.update()
                plain.append(_seconds_of(run, device))
                bar.update()
    finally:
        for parameter, data in zip(parameters, weights):
            parameter.data = data
    return Profile(tuple(timed), median(plain))


# --- what is timed ----------------------------------------------------------------------------------------------------

Phase = Callable[[str, Callable[[], Any]], Any]     # phase(name, function) calls the function


def _inference(model: Module, images: Array) -> Callable[[Phase], None]:
    def run(phase: Phase) -> None:
        with no_grad():
            phase(FORWARD, lambda: model(Tensor(images)))

    return run


def _training(model: Module, images: Array) -> Callable[[Phase], None]:
    optimizer = AdamW(model.parameters(), lr=1e-4)

    def run(phase: Phase) -> None:
        optimizer.zero_grad()
        loss = phase(FORWARD, lambda: training_loss(model, images))
        phase(BACKWARD, loss.backward)
        phase(UPDATE, optimizer.step)

    return run


def _seconds_of(run: Callable[[Phase], None], device: backend.Backend) -> float:
    """The time of a step whose ops are not timed."""
    device.synchronize()
    start = time.perf_counter()
    with replace_ops(None):
        run(lambda _, function: function())
    device.synchronize()
    return time.perf_counter() - start


class Stopwatch:
    """Times steps, their phases and their ops. It stops while it does its accounts: `away` seconds so far."""

    def __init__(self, device: backend.Backend):
        self.device = device
        self.works = Works()
        self.calls: list[Call] = []
        self.phases: list[Span] = []
        self.away = 0.0
        self.begun = time.perf_counter()

    def step(self, run: Callable[[Phase], None]) -> Step:
        """Run a step and time it."""
        self.calls, self.phases = [], []
        _, start, seconds = self._time(run, self.phase)
        return Step("step", start, seconds, tuple(self.phases), tuple(self.calls))

    def phase(self, name: str, function: Callable[[], Any]) -> Any:
        """Call the function and note the time of this phase."""
        value, start, seconds = self._time(function)
        self.phases.append(Span(name, start, seconds))
        return value

    def call(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], path: str
    ) -> tuple[Any, Callable[..., Any]]:
        """Call an op and note its time; its backward, which is returned, will note its own."""
        (value, backward), start, seconds = self._time(function, *args, **kwargs)
        entered = time.perf_counter()
        name, wants_need = function.__name__, takes_need(backward)
        work = self.works.of(function, args, kwargs, value)
        nbytes = work.forward_bytes((args, kwargs), value, saves=is_recording())
        self.calls.append(Call(name, start, seconds, path, FORWARD, work.macs, nbytes))

        def timed_backward(dy: Any, need: Sequence[bool]) -> Any:
            given = {"need": need} if wants_need else {}
            gradients, start, seconds = self._time(backward, dy, **given)
            entered = time.perf_counter()
            macs, nbytes = work.backward_macs(need), work.backward_bytes(dy, gradients)
            self.calls.append(Call(name, start, seconds, path, BACKWARD, macs, nbytes))
            self.away += time.perf_counter() - entered
            return gradients

        self.away += time.perf_counter() - entered
        return value, timed_backward

    def _time(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float, float]:
        """Call the function; returns its value, when it started, and how long it took on an idle device, in seconds."""
        self.device.synchronize()
        start, away = time.perf_counter(), self.away
        value = function(*args, **kwargs)
        self.device.synchronize()
        seconds = time.perf_counter() - start - (self.away - away)
        return value, start - self.begun - away, seconds
