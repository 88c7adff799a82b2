"""Writing the rows of metrics.csv as event files for TensorBoard: `tensorboard --logdir runs`.

This needs the package `tensorboard`; without it nothing is written. An event file is read while it grows, so each
session appends one row per epoch to its own file. The file begins with all earlier rows, and the files of earlier
sessions are removed: so every epoch occurs once, however often a run was killed and resumed.
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

# Tags with the same group are shown together. Other figures of training and validation get similar tags in `_tags`.
TAGS = {
    "train_loss": "train/loss", "train_accuracy": "train/accuracy",
    "val_loss": "val/loss", "val_accuracy": "val/accuracy",
    "lr": "run/lr", "images_per_second": "run/images_per_second", "epoch": "run/epoch",
    "gpu_peak_bytes": "run/gpu_peak_bytes",
}


class EventFile:
    """The event file of a run, FOLDER/events.out.tfevents.*, which is created with the first row."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._path: Path | None = None      # the file of this session
        self._written = 0                   # number of rows in it

    def write(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Append the missing rows of metrics.csv to the file. Raises ScratchvitError if it cannot be written."""
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except Exception:       # not installed, or not compatible with the installed protobuf (various exceptions)
            return
        records = io.BytesIO()
        writer = RecordWriter(records)
        if self._path is None:
            # The version and the start event make a running TensorBoard discard the data of earlier files.
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
            # TensorBoard continues with the next file by name, so the name of a session must come after all others.
            number = max([time.time_ns(), *(1 + _number(path) for path in earlier)])
            path = self.folder / f"events.out.tfevents.{number}.scratchvit"
            write_atomically(path, content)
            self._path = path
            for replaced in earlier:
                with contextlib.suppress(PermissionError):      # on Windows, while TensorBoard has it open
                    replaced.unlink()
        except OSError as error:
            raise ScratchvitError(
                f"{self._path or self.folder} could not be written ({error.strerror}): free some space; nothing else "
                "is lost"
            ) from error


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    """The TensorBoard tag of each column: {"train_loss_ce": "train/loss_ce", "AP50": "val/AP50"}."""
    tags = {}
    for name, value in row.items():
        group, _, figure = name.partition("_")
        if value is None:       # a figure that does not exist for these data
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
    """The time at which an epoch ended, as if the run had never been interrupted: now minus all later epochs."""
    return time.time() - sum(row["seconds"] for row in history[place + 1 :])
