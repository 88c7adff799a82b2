"""Ending a run between two steps, with a checkpoint, after Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

from scratchvit.errors import ScratchvitError


class Interrupted(ScratchvitError):
    """A run was stopped by a signal, after saving; the text says how to resume it. `exit_status`: 128 + signal."""

    def __init__(self, text: str, received: int):
        super().__init__(text)
        self.exit_status = 128 + received

    def __reduce__(self) -> Any:        # for pickling in worker processes
        return type(self), (self.args[0], self.exit_status - 128)


class StopRequested(Exception):
    """Raised by `SignalWatch.check` after a signal."""


class SignalWatch:
    """Context manager that delays SIGINT and SIGTERM until `check()` is called; a second signal acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():       # other threads cannot set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested if a signal was received."""
        if self.received is not None:
            raise StopRequested

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
