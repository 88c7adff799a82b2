"""Training a classifier, or a model that learns the images themselves: what the loop is to know of labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scratchvit import optim
from scratchvit.models.interface import generates
from scratchvit.tensor import Tensor
from scratchvit.training import setup
from scratchvit.training.config import TrainConfig
from scratchvit.training.evaluate import Meter, Predictions, evaluate, predict, truth
from scratchvit.training.loop import Course, Row, TrainingLoop, prepare_run
from scratchvit.training.objective import Objective


@dataclass(frozen=True)
class Result(Course):
    """What a run came to. Accuracies are shares, 0 … 1; the test split was evaluated once, with the best weights."""

    test_loss: float
    test_accuracy: float
    val_loss: float             # of the best epoch
    val_accuracy: float
    test_predictions: Predictions = field(repr=False, compare=False)


def train(
    config: TrainConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> Result:
    """Train a model, or go on with the run in `run_dir`; `log` gets one line per epoch.

    Raises ScratchvitError for settings that make no sense, a folder that holds another run or in which one is going on,
    data, a loss or a gradient that is not finite, and a disk that is full; Interrupted after Ctrl-C or SIGTERM, when
    the run has been saved.
    """
    trainer = prepare(config, run_dir, resume, log)
    with trainer.folder:
        return trainer.run()


def prepare(
    config: TrainConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> Trainer:
    """The first half of `train`: see `loop.prepare_run`."""
    setup.check(config)
    return prepare_run(Trainer, config, run_dir, resume, log)


class Trainer(TrainingLoop[Result]):
    """A run that learns labels."""

    config: TrainConfig
    data: setup.TrainingData
    objective: Objective

    def load_data(self, init: str | Path | None) -> setup.TrainingData:
        return setup.load_data(self.config, init)

    def make_model_args(self) -> dict[str, Any]:
        return setup.model_args(self.config, self.about)

    def show_data(self) -> None:
        setup.show_data(self.model, self.data, self.config.seed)

    def make_objective(self) -> Objective:
        return Objective(self.config, self.model, self.about)

    def make_optimizer(self) -> optim.Optimizer:
        return setup.make_optimizer(self.config, self.model)

    def make_meter(self, **sums: Any) -> Meter:
        return Meter(**sums)

    def before_training(self) -> None:
        self.ask_the_teacher()

    def ask_the_teacher(self) -> None:
        """Once for every picture, if it looks the same in every epoch."""
        if self.objective.teacher is None or setup.augments(self.config) or len(self.history) == self.config.epochs:
            return
        split = self.data.splits.train
        with tqdm(total=len(split), desc="the teacher's answers", unit="img", leave=False) as bar:

            def watched() -> Iterator[Any]:
                for images, labels in self.data.eval_loader(split, self.config.batch_size):
                    self.watch.check()
                    yield images, labels
                    bar.update(len(labels))

            self.objective.ask_once(watched())

    def compute(self, images: np.ndarray, *rest: Any) -> tuple[Tensor, tuple[Any, ...]]:
        (labels,) = rest
        target = truth(self.model, images, labels)
        loss, logits = self.objective(self.model, images, target, self.loader.indices, self.step)
        return loss, (loss, logits, target)

    def shown(self, meter: Meter) -> dict[str, str]:
        return {"loss": f"{meter.loss:.4f}", "acc": f"{meter.accuracy:.1%}"}

    def train_columns(self, meter: Meter) -> Row:
        return {"train_loss": meter.loss, "train_accuracy": meter.accuracy}

    def evaluate_val(self) -> Row:
        batches = self.batches(self.data.eval_loader(self.data.splits.val, self.config.batch_size))
        val = evaluate(self.model, batches, self.watch.check)
        return {"val_loss": val.loss, "val_accuracy": val.accuracy}

    def merit(self, row: Row) -> tuple[float, ...]:
        """Accuracy. Few images give many ties, which the loss breaks.

        A model of pixels is to give them probability; how often its likeliest colour is right says less.
        """
        return (-row["val_loss"],) if generates(self.model) else (row["val_accuracy"], -row["val_loss"])

    def line(self, row: Row, best: str) -> str:
        return (
            f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}  "
            f"val loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.2%}{best}"
        )

    def test(self, row: Row, course: Course) -> Result:
        batches = self.batches(self.data.eval_loader(self.data.splits.test, self.config.batch_size))
        test = predict(self.model, batches, self.watch.check)
        return Result(
            **vars(course),
            test_loss=test.meter.loss,
            test_accuracy=test.meter.accuracy,
            val_loss=row["val_loss"],
            val_accuracy=row["val_accuracy"],
            test_predictions=test,
        )
