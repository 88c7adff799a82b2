"""Starts the parts, each in a process of its own; ends those that are late; goes on after a failure.

An item that raises is a row, and the next one runs in the same process. If the process ends (a crash, an illegal
access, a limit), the item that it was at has failed, and a new process does those that follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.gpu_parts.child import BEGUN, DEVICE_FAILED
from scripts.gpu_parts.part import ROOT, ROWS, Part, Row, Setting, append, not_run, read

SHORTEST = 3.0          # seconds below which a part is not begun
GRACE = 5.0             # seconds in which a process that was asked to end can write what it has
POLL = 0.1
LONGEST_LOG = 2000      # characters of what a process printed, in the row of an item that ended it
OWN_GROUP: Any = {"process_group": 0} if os.name == "posix" else {}        # so that all of its processes can be ended
CUT = "ended at the limit of the whole run"     # which is not the fault of the item


@dataclass
class Runner:
    """Runs parts until a deadline, and writes their rows.

    deadline: of `time.monotonic`. scale: what the limits of parts and items are multiplied by. plan: the module whose
    `find` gives a part by its name.
    """

    setting: Setting
    mode: str
    deadline: float
    scale: float = 1.0
    tell: Callable[[str], None] = print
    plan: str = "scripts.gpu_parts.plan"

    def run(self, part: Part) -> list[Row]:
        """The rows of a part, which are on the disk, too."""
        self.tell(f"… {part.name}: {part.about}")
        begin, known = time.monotonic(), len(self.rows())
        end = min(self.deadline, begin + part.seconds * self.scale)
        left = list(part.items)
        while left:
            if end - time.monotonic() < SHORTEST:
                why = "no time was left" if end >= self.deadline else "the part's time was over"
                for name in left:
                    self.write(part, name, not_run(why))
                break
            left = left[self.start(part, left[:1] if part.alone else left, end):]
        rows = self.rows()[known:]
        for line in report(part.name, rows, time.monotonic() - begin):
            self.tell(line)
        return rows

    def start(self, part: Part, items: Sequence[str], end: float) -> int:
        """Run items in one process, until it has done them or has ended otherwise. Returns how many have rows now."""
        known = len(self.rows())
        log = self.setting.out / "log.txt"
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n=== {part.name}: {', '.join(items)}\n")
            file.flush()
            begin = file.tell()
            setting = replace(self.setting, seconds=end - time.monotonic()).to_json()
            order = {
                "mode": self.mode, "plan": self.plan, "part": part.name, "items": list(items), "setting": setting,
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "scripts.gpu_parts.child", json.dumps(order)],
                cwd=ROOT, env=child_environment(self.setting), stdout=file, stderr=file, **OWN_GROUP,
            )
            with ended_at_exit(process):
                late = self.watch(process, part, lambda: _read(log, begin).count(BEGUN), end)
        done = len(self.rows()) - known
        if done == len(items) or (process.returncode == DEVICE_FAILED and done):
            return done
        self.write(part, items[done], {
            "ok": None if late == CUT else False, "result": f"{late or _ending(process.returncode)}; see log.txt",
            "log": _read(log, begin)[-LONGEST_LOG:],
        })
        if not late and BEGUN not in _read(log, begin):         # it fails outside of its items, as in an import
            for name in items[1:]:
                self.write(part, name, not_run("the process of the part does not start"))
            return len(items)
        return done + 1

    def watch(self, process: subprocess.Popen[bytes], part: Part, begun: Callable[[], int], end: float) -> str:
        """Wait for a process. What was late, if it had to be ended, or "". begun: how many items have begun."""
        count, since = 0, time.monotonic()
        while process.poll() is None:
            time.sleep(POLL)
            now = time.monotonic()
            if (found := begun()) != count:
                count, since = found, now
            if count and now - since > part.item_seconds * self.scale:
                return f"ended after its {part.item_seconds * self.scale:.0f} s"
            if now > end:
                return CUT if end >= self.deadline else "ended at the part's limit"
        return ""

    def write(self, part: Part, item: str, row: Row) -> None:
        append(self.setting.out / ROWS, {"mode": self.mode, "part": part.name, "item": item, **row})

    def rows(self) -> list[Row]:
        return read(self.setting.out / ROWS)


def child_environment(setting: Setting) -> dict[str, str]:
    """The environment of a part: this checkout first, and compiled kernels kept from part to part, but not longer."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {
        "CUPY_CACHE_DIR": str(setting.scratch / "cupy"), **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }


@contextlib.contextmanager
def ended_at_exit(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens inside, the process and those that it started have ended afterwards."""
    try:
        yield
    finally:
        if process.poll() is None:
            _end(process, "SIGINT")             # pytest then writes its report
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        _end(process, "SIGKILL")                # also what it left running
        process.wait()


def _end(process: subprocess.Popen[bytes], name: str) -> None:
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, getattr(signal, name))
    else:
        process.kill()


def _ending(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


def _read(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")


def report(name: str, rows: Sequence[Row], seconds: float) -> list[str]:
    """What is printed of a part: a line, and one for each item that failed."""
    counts = {what: sum(row["ok"] is ok for row in rows) for what, ok in
              (("passed", True), ("FAILED", False), ("not run", None))}
    text = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return [f"  {name}: {text}, {seconds:.1f} s",
            *(f"    FAILED {row['item']}: {row['result']}" for row in rows if row["ok"] is False)]
