"""The folder of a run: config.json, metrics.csv, last.safetensors and best.safetensors."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from scratchvit.errors import ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.training.config import RunConfig, TrainConfig
from scratchvit.training.lock import FolderLock

ConfigT = TypeVar("ConfigT", bound=RunConfig)

# The command of scratchvit that a run was begun with; in config.json beside the settings. Older versions had one.
_COMMAND, _FIRST_COMMAND = "command", TrainConfig.command

# What may differ when a run goes on: how long it is, where its files are, and who reads them.
_MAY_CHANGE = {"epochs", "data_dir", "download", "workers"}


class RunFolder:
    """Where a run keeps what it found. Only one process at a time may write there: `claim`, `begin`, `release`."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config, self.metrics = self.path / "config.json", self.path / "metrics.csv"
        self.last, self.best = self.path / "last.safetensors", self.path / "best.safetensors"
        self._lock = FolderLock(self.path)

    def claim(self, config: RunConfig, resume: bool) -> None:
        """Keep other runs out of a folder that is there. Nothing is made yet, so that settings may still be refused.

        Raises ScratchvitError if a run is going on in it; to resume, if it holds none with these settings; otherwise,
        if it holds one.
        """
        if self.path.is_dir():
            self._lock.acquire()
        if resume:
            self.require_same(config)
        else:
            self.require_unused()

    def release(self) -> None:
        """Let others write here."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def require_unused(self) -> None:
        """Raise ScratchvitError if the folder holds a run already."""
        if self.config.exists() or self.last.exists():
            try:
                command = command_of(self.path)
            except ScratchvitError:     # nothing says which: the usual one
                command = _FIRST_COMMAND
            raise ScratchvitError(
                f"{self.path} already holds a run: go on with it, {resuming(command, self.path)}, "
                "or name another folder"
            )

    def begin(self, config: RunConfig) -> None:
        """Make the folder and note the settings. Raises ScratchvitError if it cannot be made, or is another run's."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScratchvitError(
                f"the folder {self.path} cannot be made ({error.strerror}): name another one"
            ) from error
        if self._lock.acquire():        # a folder that was not there to be claimed
            self.require_unused()       # another run may have been quicker, and may have ended
        settings = {_COMMAND: config.command, **dataclasses.asdict(config)}
        _write_text(self.config, json.dumps(settings, indent=2) + "\n")

    def require_same(self, config: RunConfig) -> None:
        """Raise ScratchvitError if the folder holds no run, or one with other settings."""
        before = read_config(self.path, type(config))
        config = config.as_read_back()
        changed = [
            f"{field.name} ({getattr(before, field.name)!r} → {getattr(config, field.name)!r})"
            for field in dataclasses.fields(config)
            if field.name not in _MAY_CHANGE and getattr(before, field.name) != getattr(config, field.name)
        ]
        if config.epochs < before.epochs:
            changed.append(f"epochs ({before.epochs} → {config.epochs}: may only grow)")
        if changed:
            raise ScratchvitError(
                f"{self.path} was begun with other settings: {', '.join(changed)}; resume with the old ones, "
                "or begin a new run in another folder"
            )

    def write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        """All rows anew: so a run that was killed and resumed has each epoch once."""
        text = io.StringIO()
        rows = [row | {"skipped": row.get("skipped", 0)} for row in history]        # older ones do not have it
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write_text(self.metrics, text.getvalue())


def read_config(run_dir: str | Path, kind: type[ConfigT] = TrainConfig) -> ConfigT:  # type: ignore[assignment]
    """The settings of the run in a folder, which is to be of that kind.

    Raises ScratchvitError if there is none, if it is of another kind, or not of this version.
    """
    path = Path(run_dir) / "config.json"
    command, settings = _read(path)
    if command != kind.command:
        theirs, asked = (f"`scratchvit {name}`" if name else "a task of its own" for name in (command, kind.command))
        raise ScratchvitError(
            f"{run_dir} holds a run of {theirs}, not of {asked}: go on with it, {resuming(command, Path(run_dir))}, or "
            "name another folder"
        )
    try:
        return kind(**settings)
    except TypeError as error:
        raise _damaged(path, error) from error


def command_of(run_dir: str | Path) -> str:
    """Which command of scratchvit began the run in a folder: "train", "detect-train"; "" if it was none.

    Raises as `read_config` does.
    """
    return _read(Path(run_dir) / "config.json")[0]


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """(command, settings) of a config.json."""
    try:
        settings = dict(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ScratchvitError(f"{path.parent} holds no run: there is no readable {path.name} in it") from error
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    return str(settings.pop(_COMMAND, _FIRST_COMMAND)), settings


def _damaged(path: Path, error: Exception) -> ScratchvitError:
    return ScratchvitError(f"{path} is damaged or of another version of scratchvit ({error})")


def resuming(command: str, run_dir: Path) -> str:
    """How to go on with the run in a folder: the command line, or the call where no command began it."""
    return f"scratchvit {command} --resume {run_dir}" if command else f"TrainingLoop(…, {str(run_dir)!r}, resume=True)"


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
