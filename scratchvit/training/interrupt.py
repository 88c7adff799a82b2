"""Ctrl-C and SIGTERM end a run between two steps, after saving."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

from scratchvit.errors import ScratchvitError


class Interrupted(ScratchvitError):
    """A run that was stopped from outside and saved; the text says how to go on. `exit_status` as shells have it."""

    def __init__(self, text: str, received: int):
        super().__init__(text)
        self.exit_status = 128 + received

    def __reduce__(self) -> Any:        # out of a worker process, as a figure's runs may be
        return type(self), (self.args[0], self.exit_status - 128)


class StopRequested(Exception):
    """Raised at the next safe place after a signal."""


class SignalWatch:
    """Inside `with SignalWatch() as watch`, a SIGINT or SIGTERM waits for `watch.check()`; a second one does not."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():       # elsewhere Python forbids handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested if a signal has come."""
        if self.received is not None:
            raise StopRequested

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
