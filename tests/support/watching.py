"""What a run of `scratchvit train` does, told from outside by the files that it replaces."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

KILLS = int(os.environ.get("SCRATCHVIT_KILLS", "2"))       # of every kind; nightly: 10


class Watch:
    """A run in a folder, by a process, of so many epochs."""

    def __init__(self, process: subprocess.Popen[str], run: Path, epochs: int) -> None:
        self.process, self.run, self.epochs = process, run, epochs
        self.seen = self.last_saved()

    def last_saved(self) -> int:
        try:
            return (self.run / "last.safetensors").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def has_all_epochs(self) -> bool:
        metrics = self.run / "metrics.csv"
        return metrics.exists() and len(metrics.read_text().splitlines()) == 1 + self.epochs

    def wait(self, happened: Callable[[], bool]) -> None:
        """Look until it has happened, or it cannot any more."""
        while self.process.poll() is None and not happened() and not self.has_all_epochs():
            time.sleep(0.0003)

    def wait_for_saves(self, count: int) -> None:
        for _ in range(count):
            self.wait(lambda: self.last_saved() != self.seen)
            self.seen = self.last_saved()
