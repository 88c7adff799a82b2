"""The state of a run between two steps: what a checkpoint contains, and how it is taken over from one."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from scratchvit import optim
from scratchvit.data import Loader
from scratchvit.errors import ScratchvitError
from scratchvit.nn import Module
from scratchvit.parallel.communicator import Communicator
from scratchvit.random import Generator
from scratchvit.training.checkpoint import Checkpoint, current_versions, load_into
from scratchvit.training.config import RunConfig
from scratchvit.training.folder import RunFolder
from scratchvit.training.meter import added_up
from scratchvit.training.step import LearningStep
from scratchvit.training.task import Row


class Run(Protocol):
    """What of a `TrainingLoop` is saved, and what is needed for it."""

    config: RunConfig
    folder: RunFolder
    ranks: Communicator
    model: Module
    model_args: dict[str, Any]
    about: dict[str, Any]           # the data
    fingerprint: dict[str, int]     # of the data
    optimizer: optim.Optimizer | optim.Sharded
    ema: optim.EMA | None
    loader: Loader
    generator: Generator
    learn: LearningStep
    meter: Any                      # of this epoch, and of this rank's images
    history: list[Row]
    step: int
    epoch_seconds: float

    @property
    def task(self) -> Any: ...


def checkpoint_of(run: Run, with_optimizer: bool) -> Checkpoint:
    """The state of a run. All ranks have to call it; it is complete on rank 0."""
    meters = run.ranks.gather(dataclasses.asdict(run.meter.read()))
    return Checkpoint(
        config=dataclasses.asdict(run.config),
        model_name=run.config.model,
        model_args=run.model_args,
        data=run.about,
        progress={
            "epoch": len(run.history),
            "step": run.step,
            "loader": run.loader.state_dict(),
            "generator": run.generator.state_dict(),
            "meter": added_up(meters),
            **({"meters": meters} if run.ranks.size > 1 else {}),
            "epoch_seconds": run.epoch_seconds,
            "learn": run.learn.state_dict(),
            "history": run.history,
            "pictures": run.fingerprint,
        },
        model=run.model.state_dict(),
        ema=run.ema.state_dict() if run.ema else {},
        optimizer=run.optimizer.state_dict() if with_optimizer else {},
        versions=current_versions(),
    )


def restore(run: Run, saved: Checkpoint) -> None:
    """Take over the state that was saved in last.safetensors. Raises ScratchvitError if it does not fit the run."""
    same = saved.progress.get("pictures", run.fingerprint) == run.fingerprint       # older versions have none
    if saved.data != run.about or not same:
        raise ScratchvitError(
            f"{run.config.data}: these are not the pictures that the run in {run.folder.path} was started with: "
            "restore them, or start a new run; if they are the same, an earlier version of scratchvit started it, "
            "which read fewer files of a folder (CHANGELOG.md)"
        )
    load_into(run.model, saved.model, run.folder.last)
    run.optimizer.load_state_dict(saved.optimizer)
    if run.ema:
        run.ema.load_state_dict(saved.ema)
    progress = saved.progress
    run.loader.load_state_dict(progress["loader"])
    run.generator.load_state_dict(progress["generator"])
    meters = progress.get("meters", [])
    if len(meters) == run.ranks.size:       # its sums are then added up in the same order
        run.meter = run.task.meter(**meters[run.ranks.rank])
    elif run.ranks.rank == 0:
        run.meter = run.task.meter(**progress["meter"])
    run.step, run.epoch_seconds = progress["step"], progress["epoch_seconds"]
    run.history = progress["history"]
    if "learn" in progress:     # older versions did not skip steps
        run.learn.load_state_dict(progress["learn"])
