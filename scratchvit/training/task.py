"""What the training loop asks of a task: its data, its model's options, its loss, and what is told of an epoch.

`classification.Trainer` and `detection.trainer.DetectionTrainer` answer; `loop.TrainingLoop` asks, in the order below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from scratchvit import optim
from scratchvit.data import Loader
from scratchvit.tensor import Tensor

Row = dict[str, Any]
"""What metrics.csv says of an epoch: names of columns and numbers, None where there is none."""

ResultT = TypeVar("ResultT")


class Data(Protocol):
    """What a task is trained and evaluated on."""

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of it."""

    def fingerprint(self) -> dict[str, int]:
        """Numbers that change if pictures come, go, or take other places."""

    def train_loader(self, config: Any) -> Loader:
        """Of tuples that begin with the images (B, C, H, W)."""


class Sums(Protocol):
    """A meter: a dataclass of sums over the images of an epoch, which stay on the device until they are read."""

    images: int

    def add(self, *noted: Any) -> None:
        """Count a batch: what `Task.compute` gave for it."""

    def read(self) -> Any:
        """The same as plain numbers, which a checkpoint can hold. On the GPU this waits for the device."""


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


class Task(ABC, Generic[ResultT]):
    """The questions. Who answers is a `TrainingLoop`, and so has config, data, about, model, objective and history."""

    # --- once, at the beginning ---

    @abstractmethod
    def load_data(self, init: str | Path | None) -> Data:
        """init: weights to begin with; pixels are then normalised as these are used to."""

    @abstractmethod
    def make_model_args(self) -> dict[str, Any]:
        """The options of the model: what `self.about` says of the data, unless the run says otherwise."""

    def show_data(self) -> None:
        """Let a new model take from the data what it needs, before any weights are loaded."""
        return

    @abstractmethod
    def make_objective(self) -> Any:
        """What a model's answers are judged by."""

    @abstractmethod
    def make_optimizer(self) -> optim.Optimizer: ...

    @abstractmethod
    def make_meter(self, **sums: Any) -> Sums:
        """An empty one, or with the sums of one that was read. Asked for anew in every epoch."""

    def before_training(self) -> None:
        """Do what takes time, and has to be done again when a run goes on."""
        return

    # --- every step ---

    @abstractmethod
    def compute(self, images: np.ndarray, *rest: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """The forward: a batch as the loader gives it → its loss, and what the meter adds once the step has been made.

        Raises NoLoss for answers so far from finite that there is none.
        """

    def inputs(self, *rest: Any) -> Mapping[str, Any]:
        """What the model is called with beside the images."""
        return {}

    @abstractmethod
    def shown(self, meter: Any) -> dict[str, str]:
        """What the progress bar says, now and then."""

    # --- every epoch ---

    @abstractmethod
    def train_columns(self, meter: Any) -> Row:
        """Those columns of the epoch's row that tell of its training; meter: read."""

    @abstractmethod
    def evaluate_val(self) -> Row:
        """Those that tell of the validation, "val_loss" among them, with the weights that the model has now."""

    @abstractmethod
    def merit(self, row: Row) -> tuple[float, ...]:
        """What the best epoch has most of."""

    @abstractmethod
    def line(self, row: Row, best: str) -> str:
        """What the log says of an epoch's learning; best: " (best)", or nothing."""

    # --- once, at the end ---

    @abstractmethod
    def test(self, row: Row, course: Course) -> ResultT:
        """Evaluate on the test split; the model has the weights of the best epoch, whose row this is."""
