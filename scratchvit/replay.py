"""Replaying a step on a GPU: a function of arrays is captured once, as a CUDA graph, and then repeated by one launch.

To start an operation costs the host about 10 µs, however small it is, and a training step of a small model has hundreds
of them. A graph holds the operations of a step with their arguments, and starts them all at once. It repeats exactly
those: the same kernels, on the same memory. So the function may not read a value of the device or depend on one, its
arrays must keep their shapes, and what is different in every step needs a way in:

    its arguments               are copied to where the captured ones lie
    numbers made by the host    such as a learning rate or the keys of a random draw: `numbers(make)`
    what else the host does     such as counting steps: `every_time(action)`

Outside of a capture, `numbers` and `every_time` do at once what they are given, so a function reads the same whether it
is replayed or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from scratchvit.backend import Array, asarray, current
from scratchvit.errors import WrongState
from scratchvit.plain import is_plain
from scratchvit.precision import autocast_dtype, matmul_precision
from scratchvit.recording import setting

MOST = 16               # captured calls of a function: each keeps its kernels' arguments and what it returns
WARM_UP = 2             # steps before the capture: they compile the kernels, and the pool gets the memory of a step
NUMBERS_BYTES = 1 << 15 # for all numbers of a step. The driver copies so few at once, without waiting for the device

ResultT = TypeVar("ResultT")


@dataclass
class _Capture:
    """What must be done before every replay."""

    block: Array                            # uint8 (NUMBERS_BYTES,) on the device: the numbers of a step
    host: np.ndarray                        # the same on the host
    used: int = 0
    actions: list[Callable[[], None]] = field(default_factory=list)

    def add(self, make: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: Any) -> Array:
        """An array in the block, which gets make() before every replay."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        place = slice(self.used, self.used + size)
        if place.stop > NUMBERS_BYTES:
            raise WrongState(f"a captured step has more than {NUMBERS_BYTES} bytes of numbers that the host makes")
        self.used = (place.stop + 15) // 16 * 16
        here = self.host[place].view(dtype).reshape(shape)

        def fill() -> None:
            here[...] = make()

        self.actions.append(fill)
        return self.block[place].view(dtype).reshape(shape)

    def prepare(self) -> None:
        """Make the numbers of the next replay, and copy them to the device."""
        for action in self.actions:
            action()
        if self.used:
            self.block.set(self.host)


_capture: ContextVar[_Capture | None] = ContextVar("capture", default=None)


def is_capturing() -> bool:
    """Whether the calling thread captures a function: its operations are then noted, not done."""
    return _capture.get() is not None


def numbers(make: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: Any) -> Array:
    """make(), an array of this shape and dtype on the host, as an array on the device in use, new in every replay."""
    capture = _capture.get()
    return asarray(make(), dtype) if capture is None else capture.add(make, shape, dtype)


def every_time(action: Callable[[], None]) -> None:
    """Call action() now or, in a capture, before every replay."""
    capture = _capture.get()
    if capture is None:
        action()
    else:
        capture.actions.append(action)


@dataclass
class _Captured(Generic[ResultT]):
    capture: _Capture
    graph: Any                  # cupy.cuda.Graph
    arguments: tuple[Array, ...]
    result: ResultT


class NotContinued(Exception):
    """The second half of a step could not be captured, so the step has to begin again."""


class Replay(Generic[ResultT]):
    """A function of arrays on the GPU that is captured after some calls, and replayed from then on.

        step = Replay(function)
        loss = step(images, labels)

    function   gets arrays and returns arrays, in any structure. It is captured once for every combination of shapes,
               dtypes, `key`, precision of products, autocast and plain forms, after WARM_UP calls with it. The arrays
               that it returns are the same ones in every replay: use or copy them before the next call. Arrays that
               it keeps from one call to the next must be changed in place.
    failed     is called with the error if the function cannot be captured; it is then always called, never replayed
    beside     a Replay that is never called at the same time: both use the same memory
    full       is called once, when MOST calls are captured: further ones are called, not replayed

    *Two halves.* If the host has to read something in the middle of a step, both halves are captured, in the order in
    which they are replayed, and the second finds what the first returned where it lies:

        first = Replay(forward, failed)
        second = Replay(backward, failed, beside=first)
        second.after = first
        outputs = first(images); …; second(targets)

    The second half is captured at its first call after a replay of the first, since what that returned can be
    differentiated once; it is replayed after that replay only. If it cannot be captured, it raises NotContinued, and
    both are from then on always called: begin the step again.

    The function is captured in a stream of its own and in a memory pool of its own, which keeps the memory of a step.
    replayed: the key of the last call if that was a replay, else None.
    """

    def __init__(
        self, function: Callable[..., ResultT], failed: Callable[[Exception], None],
        beside: Replay[Any] | None = None, full: Callable[[], None] = lambda: None,
    ):
        self.function, self.failed, self.full = function, failed, full
        self.after: Replay[Any] | None = None
        self.can_capture = True
        self.replayed: Hashable = None
        self._calls: dict[Hashable, int] = {}
        self._captured: dict[Hashable, _Captured[ResultT]] = {}
        cuda = current().xp.cuda
        self._stream: Any = beside._stream if beside else cuda.Stream(non_blocking=True)
        self._pool: Any = beside._pool if beside else cuda.MemoryPool()
        self._event = cuda.Event(disable_timing=True)

    def __call__(self, *arguments: Array, key: Hashable = None) -> ResultT:
        """function(*arguments). key: whatever else, besides shapes and dtypes, decides what it does."""
        self.replayed = None
        if not self.can_capture:
            return self.function(*arguments)
        before = self.after and self.after.replayed
        shapes = ((x.shape, x.dtype.char) for x in arguments)
        key = (key, before, is_plain(), matmul_precision(), autocast_dtype(), *shapes)
        captured = self._captured.get(key)
        if captured is None:
            if self._is_called(key, before):
                with self._in_stream():
                    return self.function(*arguments)
            places = tuple(x.copy() for x in arguments)
            capture = _Capture(current().xp.empty(NUMBERS_BYTES, np.uint8), np.zeros(NUMBERS_BYTES, np.uint8))
            try:
                with self._in_stream():
                    captured = self._captured[key] = self._capture_call(capture, places)
            except Exception as error:
                self.can_capture = False
                self.failed(error)
                if self.after:
                    self.after.can_capture = False
                    raise NotContinued from error
                return self.function(*arguments)
        xp, self.replayed = current().xp, key
        for place, argument in zip(captured.arguments, arguments):
            xp.copyto(place, argument)
        captured.capture.prepare()
        captured.graph.launch(xp.cuda.get_current_stream())
        return captured.result

    def _is_called(self, key: Hashable, before: Hashable) -> bool:
        """Whether a call that has not been captured is called again, instead of being captured now."""
        if self.after:
            return before is None
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls == WARM_UP + 1 and len(self._captured) == MOST:
            full, self.full = self.full, lambda: None
            full()
        return calls <= WARM_UP or len(self._captured) == MOST

    @property
    def was_replayed(self) -> bool:
        """Whether the last call was a replay."""
        return self.replayed is not None

    @property
    def held(self) -> int:
        """Bytes of the GPU's memory that the pool of its own has taken."""
        return int(self._pool.total_bytes())

    def _capture_call(self, capture: _Capture, places: tuple[Array, ...]) -> _Captured[ResultT]:
        self._stream.begin_capture()
        try:
            with setting(_capture, capture):
                result = self.function(*places)
        except BaseException:
            with contextlib.suppress(Exception):    # the first error says why
                self._stream.end_capture()
            raise
        return _Captured(capture, self._stream.end_capture(), places, result)

    @contextlib.contextmanager
    def _in_stream(self) -> Iterator[None]:
        """Inside, the current stream is our own, which begins when the one outside is done, and the other way round."""
        cuda = current().xp.cuda
        outside = cuda.get_current_stream()
        self._event.record(outside)
        self._stream.wait_event(self._event)
        with self._stream, cuda.using_allocator(self._pool.malloc):
            yield
        self._event.record(self._stream)
        outside.wait_event(self._event)
