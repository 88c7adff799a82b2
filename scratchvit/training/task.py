"""A task: what a run learns. `loop.TrainingLoop` asks the questions below, a task answers them.

    the data            load_data, model_args, init_from_data
    learning            prepare_loss, param_groups, meter, before_training, inputs, loss
    judging             validate, draw, merit, line, test

The loop owns the model, the optimiser and the place in the run; it passes the model to every answer that needs it. A
task owns its data and whatever it computes its loss by.

`classification.ClassificationTask` and `detection.task.DetectionTask` are tasks. A third, in about sixty lines, is in
tests/training/test_third_task.py; CONTRIBUTING.md has the checklist.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from scratchvit.data import Loader
from scratchvit.tensor import Tensor
from scratchvit.training.meter import Means

Row: TypeAlias = dict[str, Any]
"""What metrics.csv says of an epoch: names of columns and numbers, None where there is none."""

Batches: TypeAlias = Callable[[Loader], Iterator[Any]]
"""Iterates over a loader's batches, inside a run: a signal, or a picture that cannot be read, then ends it safely."""


class Data(Protocol):
    """What a task is trained and evaluated on."""

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of it: plain numbers, strings, lists and dictionaries.

        Commands that open a checkpoint, and a `Teacher`, expect "classes", "mean" and "std".
        """

    def fingerprint(self) -> dict[str, int]:
        """Numbers that change if pictures are added, removed or reordered. A run with other ones is not resumed."""

    def train_loader(self, config: Any) -> Loader:
        """The batches of an epoch: named tuples with a field `images`, float32 (B, C, H, W), NumPy."""


class Sums(Protocol):
    """A meter: a dataclass of sums over the images of an epoch. They stay on the device until they are read."""

    images: int

    def add(self, *noted: Any) -> None:
        """Add a batch: what `Task.loss` returned beside the loss."""

    def read(self) -> Any:
        """The same with plain numbers, which a checkpoint can hold. On the GPU this waits for the device."""

    def columns(self, prefix: str) -> Row:
        """{prefix + name: mean over the images}, "loss" among the names."""

    def shown(self) -> dict[str, str]:
        """What the progress bar shows."""


@dataclass(frozen=True)
class Course:
    """How a run went. The result of a task is this and its own figures."""

    run_dir: Path
    checkpoint: Path            # of the best weights
    best_epoch: int             # from 1
    epochs: int
    seconds: float              # of training and validation, all sessions together
    images_per_second: float    # of training, on average
    skipped: int                # steps left out, since their numbers were not finite
    parameters: int


class Task(Protocol):
    """What the loop asks, in this order. Inherit from it: what is not abstract has a default.

    In all answers, `model` is the run's, and a loader's batches are asked for by `batches(loader)`, see `Batches`.
    """

    # --- once, at the beginning ---

    def check(self) -> None:
        """Raise ScratchvitError for settings that make no sense. Called first, after the checks of every run."""
        return

    @abstractmethod
    def load_data(self, init: str | Path | None) -> Data:
        """The data. init: the weights to begin with, if any; normalise pixels as these expect them."""

    @abstractmethod
    def model_args(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `create_model`: what the data decide, and what the run asks for. about: of `Data.about`."""

    def init_from_data(self, model: Any) -> None:
        """Give a new model what it takes from the data. Called before weights are loaded; not when a run resumes."""
        return

    def prepare_loss(self, model: Any) -> None:
        """Build what the loss needs. The model has its initial weights; those of a resumed run come later."""
        return

    @abstractmethod
    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        """The parameters in groups, as `optim.param_groups` makes them."""

    def meter(self, **sums: Any) -> Sums:
        """An empty meter, or with the fields of one that was read. Asked for in every epoch. By default `Means`."""
        return Means(**sums)

    def before_training(self, batches: Batches) -> None:
        """Compute what is not saved. Called in every session that has steps to make, before the first."""
        return

    # --- every step ---

    def inputs(self, batch: Any) -> Mapping[str, Any]:
        """Keyword arguments of the model beside the images, such as a padding mask."""
        return {}

    @abstractmethod
    def loss(self, model: Any, batch: Any, inputs: Mapping[str, Any], step: int) -> tuple[Tensor, tuple[Any, ...]]:
        """The forward: (the loss, a Tensor (); arguments of the meter's `add`, which is called if the step is made).

        batch: as the loader gives it, arrays on the host. inputs: what `inputs` returned for it. step: from 0; random
        numbers that come from (seed, step) alone are the same in a resumed run. Nothing should be read from the device
        here. Raises `step.NoLoss` if the outputs are so far from finite that there is no loss.
        """

    # --- every epoch ---

    @abstractmethod
    def validate(self, model: Any, batches: Batches) -> Row:
        """The epoch's columns about the validation split, "val_loss" among them. The model has its averaged weights.

        Raises `step.NotFinite` if there is no such figure; also if "val_loss" is not finite, the run ends.
        """

    def draw(self, folder: Path, epoch: int) -> None:
        """Write pictures of the validation that was just made into the run's folder. epoch: from 1."""
        return

    def merit(self, row: Row) -> tuple[float, ...]:
        """How good an epoch was: the best has the largest tuple, the first of equals. By default, minus val_loss."""
        return (-row["val_loss"],)

    def line(self, row: Row) -> str:
        """The log's text about an epoch: its losses and figures."""
        return f"train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}"

    # --- once, at the end ---

    @abstractmethod
    def test(self, model: Any, batches: Batches, row: Row, course: Course) -> Any:
        """The run's result, with figures of the test split. The model has the best epoch's weights; row: that epoch's.

        Raises `step.NotFinite` as `validate` does.
        """
