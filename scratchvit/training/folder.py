"""Run folders: config.json, metrics.csv, last.safetensors and best.safetensors."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from scratchvit.errors import NoSuchData, ScratchvitError
from scratchvit.files import write_atomically
from scratchvit.training.config import RunConfig, TrainConfig
from scratchvit.training.lock import FolderLock

ConfigT = TypeVar("ConfigT", bound=RunConfig)

# The command that a run was started with, saved in config.json with the settings. Older versions had only one command.
_COMMAND, _FIRST_COMMAND = "command", TrainConfig.command

# Settings that may change when a run is resumed.
_MAY_CHANGE = {"epochs", "data_dir", "download", "workers", "shard_optimizer", "rank_timeout", "timeline"}


class RunFolder:
    """The folder of a run. Only one process at a time may write to it: see `claim`, `begin` and `release`."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.timeline = self.path / "timeline.json"
        self.config, self.metrics = self.path / "config.json", self.path / "metrics.csv"
        self.last, self.best = self.path / "last.safetensors", self.path / "best.safetensors"
        self._lock = FolderLock(self.path)

    def claim(self, config: RunConfig, resume: bool) -> None:
        """Lock the folder if it exists. Nothing is created yet, because the settings may still be invalid.

        Raises ScratchvitError if another process uses the folder; with resume, if it contains no run with these
        settings; without resume, if it contains a run.
        """
        if self.path.is_dir():
            self._lock.acquire()
        if resume:
            self.require_same(config)
        else:
            self.require_unused()

    def release(self) -> None:
        """Release the lock on the folder."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def require_unused(self) -> None:
        """Raise ScratchvitError if the folder already contains a run."""
        if self.config.exists() or self.last.exists():
            try:
                command = command_of(self.path)
            except ScratchvitError:     # its command is unknown: assume the usual one
                command = _FIRST_COMMAND
            raise ScratchvitError(
                f"{self.path} already contains a run: resume it with {resuming(command, self.path)}, or name another "
                "folder"
            )

    def begin(self, config: RunConfig) -> None:
        """Create the folder and save the settings. Raises ScratchvitError if that fails, or if there is another run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScratchvitError(
                f"the folder {self.path} cannot be created ({error.strerror}): name another one"
            ) from error
        if self._lock.acquire():        # the folder did not exist when claim() was called
            self.require_unused()       # another run may have been faster
        settings = {_COMMAND: config.command, **dataclasses.asdict(config)}
        _write_text(self.config, json.dumps(settings, indent=2) + "\n")

    def require_same(self, config: RunConfig) -> None:
        """Raise ScratchvitError if the folder contains no run, or one with other settings."""
        before = read_config(self.path, type(config))
        config = config.as_read_back()
        if before.device.startswith("gpu") and config.device.startswith("gpu"):     # on whichever GPU
            before = before.replace(device=config.device)
        changed = [
            f"{field.name} ({getattr(before, field.name)!r} → {getattr(config, field.name)!r})"
            for field in dataclasses.fields(config)
            if field.name not in _MAY_CHANGE and getattr(before, field.name) != getattr(config, field.name)
        ]
        if config.epochs < before.epochs:
            changed.append(f"epochs ({before.epochs} → {config.epochs}: can only increase)")
        if changed:
            raise ScratchvitError(
                f"{self.path} was started with other settings: {', '.join(changed)}; resume with the old ones, "
                "or start a new run in another folder"
            )

    def write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        """Write all rows again, so that every epoch occurs once, even after a run was killed and resumed."""
        text = io.StringIO()
        rows = [row | {"skipped": row.get("skipped", 0)} for row in history]        # older ones do not have it
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write_text(self.metrics, text.getvalue())


def read_config(run_dir: str | Path, kind: type[ConfigT] = TrainConfig) -> ConfigT:  # type: ignore[assignment]
    """The settings of the run in a folder, as a configuration of the given kind.

    Raises ScratchvitError if there is no run, or if it is of another kind or an incompatible version.
    """
    path = Path(run_dir) / "config.json"
    command, settings = _read(path)
    if command != kind.command:
        found, expected = (f"`scratchvit {name}`" if name else "a custom task" for name in (command, kind.command))
        raise ScratchvitError(
            f"{run_dir} contains a run of {found}, not of {expected}: resume it with "
            f"{resuming(command, Path(run_dir))}, or name another folder"
        )
    try:
        return kind(**settings)
    except TypeError as error:
        raise _damaged(path, error) from error


def command_of(run_dir: str | Path) -> str:
    """The command that started the run in a folder: "train" or "detect-train"; "" if it was none.

    Raises as `read_config` does.
    """
    return _read(Path(run_dir) / "config.json")[0]


@contextlib.contextmanager
def data_of_run(named: str | None = None, way_out: str = "name the data with --data FOLDER") -> Iterator[None]:
    """While the data of a run are loaded: if they are not there, the error says whose path that is.

    named: other data that are loaded instead of the run's, whose path needs no explanation. Raises ScratchvitError.
    """
    try:
        yield
    except NoSuchData as error:
        if named is not None:
            raise
        seen_from = "" if Path(error.path).is_absolute() else ", relative to the folder in which the run was started"
        raise ScratchvitError(f"{error}. That is the path of the run's data{seen_from}: {way_out}") from error


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """(command, settings) of a config.json."""
    try:
        settings = dict(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ScratchvitError(f"{path.parent} contains no run: there is no readable {path.name} in it") from error
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    return str(settings.pop(_COMMAND, _FIRST_COMMAND)), settings


def _damaged(path: Path, error: Exception) -> ScratchvitError:
    return ScratchvitError(f"{path} is damaged or from another version of scratchvit ({error})")


def resuming(command: str, run_dir: Path) -> str:
    """The command line that resumes the run in a folder or, if no command started it, the call."""
    return f"scratchvit {command} --resume {run_dir}" if command else f"TrainingLoop(…, {str(run_dir)!r}, resume=True)"


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
