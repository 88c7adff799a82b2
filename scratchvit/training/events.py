"""The rows of metrics.csv once more, as TensorBoard reads them: `tensorboard --logdir runs`.

Only where the package `tensorboard` is installed; without it nothing is written. An event file is a log that is read
while it grows, so a session appends a row an epoch to a file of its own. The session begins that file with all rows so
far and takes the files of earlier sessions away: so an epoch stands there once, however often a run was killed.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically

# Those of one group are drawn beside each other. Other figures of training and validation are named alike: `_tags`.
TAGS = {
    "train_loss": "train/loss", "train_accuracy": "train/accuracy",
    "val_loss": "val/loss", "val_accuracy": "val/accuracy",
    "lr": "run/lr", "images_per_second": "run/images_per_second", "epoch": "run/epoch",
}


class EventFile:
    """Where the rows of a run go: FOLDER/events.out.tfevents.*, which is made with the first row."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._path: Path | None = None      # of this session
        self._written = 0                   # rows in it

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Bring the file up to date with all rows of metrics.csv. Raises ScratchvitError when the disk is full, …"""
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except Exception:       # not installed, or it does not go with this protobuf: it raises what it likes then
            return
        records = io.BytesIO()
        writer = RecordWriter(records)
        if self._path is None:
            # The version and the start tell a TensorBoard that is watching to forget what earlier files said.
            for what in ({"file_version": "brain.Event:2"}, {"session_log": {"status": event_pb2.SessionLog.START}}):
                writer.write(event_pb2.Event(wall_time=_time_of(history, 0), step=0, **what).SerializeToString())
        for place in range(self._written, len(history)):
            row = history[place]
            values = [summary_pb2.Summary.Value(tag=tag, simple_value=row[name]) for name, tag in _tags(row).items()]
            event = event_pb2.Event(
                wall_time=_time_of(history, place), step=row["step"], summary=summary_pb2.Summary(value=values)
            )
            writer.write(event.SerializeToString())
        self._add(records.getvalue())
        self._written = len(history)

    def _add(self, content: bytes) -> None:
        try:
            if self._path is not None:
                with self._path.open("ab") as file:
                    file.write(content)
                return
            self.folder.mkdir(exist_ok=True)
            earlier = list(self.folder.glob("*events.out.tfevents.*.scratchvit*"))     # unfinished ones too
            # TensorBoard goes on to the file whose name comes next, so a session's name is later than all before.
            number = max([time.time_ns(), *(1 + _number(path) for path in earlier)])
            path = self.folder / f"events.out.tfevents.{number}.scratchvit"
            write_atomically(path, content)
            self._path = path
            for replaced in earlier:
                with contextlib.suppress(PermissionError):      # on Windows, while TensorBoard has it open
                    replaced.unlink()
        except OSError as error:
            raise ScratchvitError(
                f"{self._path or self.folder} could not be written ({error.strerror}): make room; nothing else is lost"
            ) from error


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    """{column: tag} of the figures that are drawn: "train_loss_ce" is train/loss_ce, "AP50" is val/AP50."""
    tags = {}
    for name, value in row.items():
        group, _, figure = name.partition("_")
        if value is None:       # a figure that these data do not have
            continue
        if name in TAGS:
            tags[name] = TAGS[name]
        elif group in ("train", "val"):
            tags[name] = f"{group}/{figure}"
        elif name.startswith("AP"):
            tags[name] = f"val/{name}"
    return tags


def _number(path: Path) -> int:
    digits = path.name.split(".")[3]
    return int(digits) if digits.isdecimal() else 0


def _time_of(history: Sequence[Mapping[str, Any]], place: int) -> float:
    """When the epoch at that place ended, had the run never been stopped: now, less what came after it took."""
    return time.time() - sum(row["seconds"] for row in history[place + 1 :])
