"""Training a detector: what the loop of `training.loop` is to know of boxes.

    outputs = model(images, mask, targets)
    losses = criterion(outputs, targets)        # of every output, see losses.py; their means go to metrics.csv
    criterion.total(losses).backward(); …

The best epoch is the one of the highest AP on val. After every epoch the same few pictures of val are drawn with what
was found in them: predictions/epoch_001.png, ….
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scratchvit import optim
from scratchvit.detection import setup
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.criterion import SetCriterion
from scratchvit.detection.data.annotations import DetectionDataset
from scratchvit.detection.evaluation import CocoFigures, evaluate_boxes, results_of
from scratchvit.detection.losses import Losses, from_columns, layers_of, to_columns
from scratchvit.detection.matcher import NonFiniteCosts
from scratchvit.detection.pictures import write_predictions
from scratchvit.detection.postprocess import postprocess
from scratchvit.errors import ScratchvitError
from scratchvit.nn import evaluating
from scratchvit.tensor import Tensor
from scratchvit.training.loop import Course, Row, TrainingLoop, prepare_run
from scratchvit.training.step import NoLoss

PICTURED = 8        # of val, the first ones: those drawn after every epoch


@dataclass(frozen=True)
class DetectionResult(Course):
    """What a run came to. The test split was evaluated once, with the best weights."""

    test: CocoFigures               # COCO's twelve figures, and those of each class
    test_loss: float
    val_AP: float | None            # of the best epoch; None where val has no object
    val_AP50: float | None
    val_loss: float


@dataclass
class LossMeter:
    """Sums over images of every loss, under its name in metrics.csv; the total is "loss".

    The sums stay on the device until they are read.
    """

    sums: dict[str, Any] = field(default_factory=dict)
    images: int = 0

    def add(self, total: Tensor, losses: Losses, images: int) -> None:
        """Add a batch: what a criterion gives, its total, and the number of images."""
        for name, value in {"loss": total, **to_columns(losses)}.items():
            number = value.data if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + number * images
        self.images += images

    def read(self) -> LossMeter:
        """The sums as Python floats. On the GPU this waits for the device."""
        return LossMeter({name: float(value) for name, value in self.sums.items()}, self.images)

    def columns(self, prefix: str) -> Row:
        """{prefix + name: mean over the images}."""
        return {prefix + name: float(value) / self.images for name, value in self.sums.items()}

    loss = property(lambda self: float(self.sums.get("loss", 0.0)) / max(1, self.images), doc="the total's mean")


def train_detector(
    config: DetectConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> DetectionResult:
    """Train a detector, or go on with the run in `run_dir`; `log` gets one line per epoch.

    Raises ScratchvitError for settings that make no sense, a folder that holds another run or in which one is going on,
    data, a loss or a gradient that is not finite, and a disk that is full; Interrupted after Ctrl-C or SIGTERM, when
    the run has been saved.
    """
    trainer = prepare_detector(config, run_dir, resume, log)
    with trainer.folder:
        return trainer.run()


def prepare_detector(
    config: DetectConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> DetectionTrainer:
    """The first half of `train_detector`: see `training.loop.prepare_run`."""
    setup.check(config)
    return prepare_run(DetectionTrainer, config, run_dir, resume, log)


class DetectionTrainer(TrainingLoop[DetectionResult]):
    """A run that learns boxes."""

    config: DetectConfig
    data: setup.DetectionData
    objective: SetCriterion
    meter: LossMeter

    def load_data(self, init: str | Path | None) -> setup.DetectionData:
        return setup.load_data(self.config, init)

    def make_model_args(self) -> dict[str, Any]:
        return setup.model_args(self.config, self.about)

    def make_objective(self) -> SetCriterion:
        return setup.make_criterion(self.config, self.model)

    def make_optimizer(self) -> optim.Optimizer:
        return setup.make_optimizer(self.config, self.model)

    def make_meter(self, **sums: Any) -> LossMeter:
        return LossMeter(**sums)

    def compute(self, images: np.ndarray, *rest: Any) -> tuple[Tensor, tuple[Any, ...]]:
        inputs = self.inputs(*rest)
        outputs = self.model(images, **inputs)
        try:
            losses = self.objective(outputs, inputs["targets"])
        except NonFiniteCosts:
            raise NoLoss("the predictions are not finite") from None
        total = self.objective.total(losses)
        return total, (total, losses, len(images))

    def inputs(self, *rest: Any) -> Mapping[str, Any]:
        mask, targets = rest
        return {"mask": _where_padded(mask), "targets": targets}

    def shown(self, meter: LossMeter) -> dict[str, str]:
        return {"loss": f"{meter.loss:.4f}"}

    def train_columns(self, meter: LossMeter) -> Row:
        return meter.columns("train_")

    def evaluate_val(self) -> Row:
        val = self.data.splits.val
        meter, found, figures = self._evaluate(val)
        self._draw(val, found)
        return meter.columns("val_") | {"AP": figures.AP, "AP50": figures.AP50, "AP75": figures.AP75}

    def _evaluate(self, dataset: DetectionDataset) -> tuple[LossMeter, dict[int, Any], CocoFigures]:
        """The losses of a split, what was found in each image by its id, and COCO's figures of that."""
        meter = self.make_meter()
        found: dict[int, Any] = {}
        with evaluating(self.model):
            for images, mask, targets in self.batches(self.data.eval_loader(dataset, self.config.batch_size)):
                outputs = self.model(images, mask=_where_padded(mask))
                try:
                    losses = self.objective(outputs, targets)
                except NonFiniteCosts:
                    raise self.diverged(f"the predictions for {dataset.name} are not finite") from None
                meter.add(self.objective.total(losses), losses, len(images))
                sizes = [target["orig_size"] for target in targets]
                boxes = postprocess(outputs, sizes, focal=self.objective.matcher.focal)
                found |= {target["image_id"]: of_image for target, of_image in zip(targets, boxes)}
                self.watch.check()
        meter = meter.read()
        if not math.isfinite(meter.loss):
            raise self.diverged(f"the loss on {dataset.name} is not finite")
        results = results_of(list(found.values()), list(found), dataset.category_ids)
        return meter, found, evaluate_boxes(dataset.ground_truth(), results)

    def _draw(self, dataset: DetectionDataset, found: Mapping[int, Any]) -> None:
        """The first pictures of a split, with what was found in them."""
        path = self.folder.path / "predictions" / f"epoch_{len(self.history) + 1:03}.png"
        examples = [dataset.example(index) for index in range(min(PICTURED, len(dataset)))]
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise ScratchvitError(f"the folder {path.parent} cannot be made ({error.strerror}): make room") from error
        write_predictions(path, examples, [found[truth.image_id] for _, truth in examples], dataset.classes)

    def merit(self, row: Row) -> tuple[float, ...]:
        """Average precision, which is 0 for a while: then the loss says which epoch was the best."""
        return row["AP"] or 0.0, -row["val_loss"]

    def line(self, row: Row, best: str) -> str:
        weights = self.objective.weights
        decoder = layers_of(from_columns(row, "train_"), "decoder")
        parts = ", ".join(f"{kind} {decoder[-1][kind]:.4f}" for kind in weights)
        sums = (sum(weight * of_layer[kind] for kind, weight in weights.items()) for of_layer in decoder)
        layers = " ".join(f"{loss:.3f}" for loss in sums)
        AP, AP50 = ("–" if figure is None else f"{figure:.3f}" for figure in (row["AP"], row["AP50"]))
        return (
            f"train loss {row['train_loss']:.4f} (last layer: {parts}; by layer: {layers})  "
            f"val loss {row['val_loss']:.4f}, AP {AP}, AP50 {AP50}{best}"
        )

    def test(self, row: Row, course: Course) -> DetectionResult:
        meter, _, figures = self._evaluate(self.data.splits.test)
        return DetectionResult(
            **vars(course),
            test=figures,
            test_loss=meter.loss,
            val_AP=row["AP"],
            val_AP50=row["AP50"],
            val_loss=row["val_loss"],
        )


def _where_padded(mask: Any) -> Any:
    """The mask of a batch, or None where no image is padded: a model has less to do then."""
    return mask if mask.any() else None
