"""The task of training a classifier, or a generative model of images (iGPT).

    task = ClassificationTask(config)
    result = TrainingLoop(task, config, "runs/mine").run()      # the same as train(config, "runs/mine")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scratchvit import optim, progress
from scratchvit.backend import Array
from scratchvit.data import Batch, Dataset
from scratchvit.data.palette import fit_palette
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted
from scratchvit.models import model_config
from scratchvit.models.checks import check_classifies
from scratchvit.models.interface import PatchModel, PixelModel, frames_of, generates
from scratchvit.models.vit import pair
from scratchvit.parallel import ALONE, Communicator, share_of
from scratchvit.tensor import Tensor
from scratchvit.training.build import check_least, check_shares
from scratchvit.training.checkpoint import Checkpoint, load_checkpoint
from scratchvit.training.classification.data import TrainingData, augments, check_pictures, load_splits, measured
from scratchvit.training.classification.evaluate import Meter, Predictions, evaluate, predict, truth
from scratchvit.training.classification.objective import Objective
from scratchvit.training.config import TrainConfig
from scratchvit.training.folder import RunFolder
from scratchvit.training.loop import TrainingLoop
from scratchvit.training.task import Batches, Course, Row, Task

# The rates that the augreg paper sets in a ViT: stochastic depth, and dropout after every dense layer except those of
# q, k and v, and after the positional embedding is added (ViT, arXiv 2010.11929, §B.1).
_DROPPING = {"pos_drop_rate", "proj_drop_rate", "drop_path_rate"}


@dataclass(frozen=True)
class Result(Course):
    """The result of a run. Accuracies are from 0 to 1. The test split is evaluated once, with the best weights."""

    test_loss: float | None     # None: the data have no test split
    test_accuracy: float | None
    val_loss: float             # of the best epoch
    val_accuracy: float
    predictions: Predictions = field(repr=False, compare=False)     # on the test split or, without one, on val


def train(
    config: TrainConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> Result:
    """Train a model, or resume the run in `run_dir`. `log` is called with one line per epoch.

    Raises ScratchvitError for invalid settings, a folder that contains another run or is in use, data, a loss or a
    gradient that is not finite, and a full disk. Raises Interrupted after Ctrl-C or SIGTERM, once the run has been
    saved.
    """
    loop = prepare(config, run_dir, resume, log)
    with loop.folder:
        return loop.run()


def prepare(
    config: TrainConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write,
    ranks: Communicator = ALONE,
) -> TrainingLoop[ClassificationTask]:
    """The first half of `train`: a run that is ready to start, see `TrainingLoop`."""
    last = RunFolder(Path(run_dir)).last
    began = load_checkpoint(last) if resume and last.exists() else None
    return TrainingLoop(ClassificationTask(config, began), config, run_dir, resume, log, ranks)


class ClassificationTask(Task[Result]):
    """Predict the labels of images or, with a generative model, their pixels.

    data         the data, set by `load_data`
    objective    the loss, set by `prepare_loss`
    generative   whether the model predicts pixels, set by `prepare_loss`
    """

    data: TrainingData
    objective: Objective
    generative: bool

    def __init__(self, config: TrainConfig, began: Checkpoint | None = None):
        """began: the last checkpoint of a run that goes on; its data are split as they were."""
        self.config, self._began = config, began

    def check(self) -> None:
        config = self.config
        check_classifies(config.model, model_config(config.model))
        check_least(config, dict.fromkeys(("epoch_images", "crop_padding", "mixup", "cutmix"), 0))
        check_shares(config, ("label_smoothing", "regularisation", "color_jitter"))
        if config.teacher_model and not config.teacher:
            raise ScratchvitError("teacher_model is the model of a teacher's weights: name the file with teacher")
        if config.teacher_entry and not config.teacher:
            raise ScratchvitError(
                "teacher_entry chooses one of the sets of weights in a teacher's file: name the file with teacher"
            )
        if not config.distill_temperature > 0:
            raise ScratchvitError(f"distill_temperature must be positive, not {config.distill_temperature}")
        if config.distill_weight is not None and not config.teacher:
            raise ScratchvitError("distill_weight is the weight of a teacher: name the teacher, or leave it out")
        if config.distill_weight is not None and not 0 <= config.distill_weight <= 1:
            raise ScratchvitError(f"distill_weight must lie in [0, 1], not {config.distill_weight}")
        if not 0 < config.train_fraction <= 1:
            raise ScratchvitError(f"train_fraction must lie in (0, 1], not {config.train_fraction}")

    def load_data(self, init: str | Path | None) -> TrainingData:
        splits = load_splits(self.config, self._began)
        check_pictures(splits)      # a broken one would end the run at its first validation, or at its end
        self.data = measured(splits, self.config, init, (self.ranks.rank, self.ranks.size))
        return self.data

    def model_args(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the model: size, channels and classes of the data, unless the settings say otherwise."""
        config = self.config
        height, width, channels = about["image_shape"]
        classes = len(about["classes"])
        from_data = {
            "img_size": height if height == width else (height, width),
            "in_chans": channels,
            "num_classes": classes,
        }
        preset = model_config(config.model)
        known = {field.name for field in dataclasses.fields(preset)}
        if not preset.num_classes:      # a generative model, unless the settings ask for classes
            known.remove("num_classes")
        if config.regularisation:
            rates = (_DROPPING if "proj_drop_rate" in known else {"drop_rate", "drop_path_rate"}) & known
            from_data |= dict.fromkeys(rates, config.regularisation)
        if frames_of(preset) > 1:
            from_data["num_frames"] = 1     # an image is a clip of one frame
            known.add("num_frames")
        args = {name: value for name, value in from_data.items() if name in known} | config.model_args
        if args.get("num_classes", classes) < classes:
            raise ScratchvitError(
                f"a head of {args['num_classes']} classes is too small for the {classes} classes of {about['name']}: "
                "leave num_classes out"
            )
        return args

    def init_from_data(self, model: Any) -> None:
        """Fit the palette of a generative model to the training images."""
        if isinstance(model, PixelModel):
            model.palette.overwrite(fit_palette(self.data.splits.train, len(model.palette), self.config.seed))

    def prepare_loss(self, model: Any) -> None:
        self.generative = generates(model)
        self.objective = Objective(self.config, model, self.data.about(), self.ranks)

    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        return optim.param_groups(model, self.config.weight_decay, self.config.layer_decay)

    def meter(self, **sums: Any) -> Meter:
        return Meter(**sums)

    def before_training(self, batches: Batches) -> None:
        """Compute the teacher's logits for all training images once, if these are the same in every epoch."""
        if self.objective.teacher is None or augments(self.config):
            return
        split = self.data.splits.train
        with progress.bar(len(split), "teacher's logits") as bar:

            def counted() -> Iterator[Batch]:
                for batch in self._own_batches(split, batches):
                    yield batch
                    bar.update(len(batch.labels) * self.ranks.size)

            self.objective.ask_once(counted(), self.ranks)

    def _own_batches(self, split: Dataset, batches: Batches) -> Iterator[Batch]:
        """The images of a split in order, without augmentation; of several ranks, the part of this one.

        Parts are consecutive and may be empty. So the results of all ranks, joined, are in the order of the split.
        """
        rank, size = self.ranks.rank, self.ranks.size
        part = share_of(len(split), rank, size)
        if part.start == part.stop:
            return iter(())
        own = split.subset(np.arange(part.start, part.stop)) if size > 1 else split
        return batches(self.data.eval_loader(own, -(-self.config.batch_size // size)))

    def loss(
        self, model: Any, batch: Batch, inputs: Mapping[str, Any], step: int
    ) -> tuple[Tensor, tuple[Any, ...]]:
        return self.loss_of(model, *self.arrays(model, batch, step))

    def arrays(self, model: Any, batch: Batch, step: int) -> tuple[Array, ...]:
        target = truth(model, batch.images, batch.labels)
        return target, *self.objective.given(batch.images, target, batch.indices, step)

    def loss_of(self, model: Any, *arrays: Array) -> tuple[Tensor, tuple[Any, ...]]:
        target, *given = arrays
        loss, logits = self.objective.loss(model, *given)
        return loss, (loss, logits, target)

    def validate(self, model: Any, batches: Batches) -> Row:
        own = self._own_batches(self.data.splits.val, batches)
        return evaluate(model, own, ranks=self.ranks).columns("val_")

    def merit(self, row: Row) -> tuple[float, ...]:
        """The validation accuracy; the loss breaks ties, which are frequent with few images.

        For a generative model, the loss: it says more than how often the most probable colour is right.
        """
        return (-row["val_loss"],) if self.generative else (row["val_accuracy"], -row["val_loss"])

    def line(self, row: Row) -> str:
        return (
            f"train {row['train_loss']:.4f}, {row['train_accuracy']:.1%}  "
            f"val {row['val_loss']:.4f}, {row['val_accuracy']:.1%}"
        )

    @property
    def legend(self) -> str:
        return "loss and accuracy on train and val"

    def test(self, model: Any, batches: Batches, row: Row, course: Course) -> Result:
        name, split = self.data.splits.held_out
        said = predict(model, self._own_batches(split, batches), self.ranks)
        is_test = name == "test"
        return Result(
            **vars(course),
            test_loss=said.meter.loss if is_test else None,
            test_accuracy=said.meter.accuracy if is_test else None,
            val_loss=row["val_loss"],
            val_accuracy=row["val_accuracy"],
            predictions=said,
        )


def coarse_patches(model: Any) -> str | None:
    """A warning if the model divides images into few patches, the usual reason for a poor ViT on small images.

    Few means less than 16 patches, or patches whose side is more than an eighth of the image's. Otherwise None.
    """
    if not isinstance(model, PatchModel):
        return None
    embed = model.patch_embed
    (H, W), (*_, rows, columns) = embed.img_size, embed.grid_size
    if rows * columns >= 16 and min(rows, columns) >= 8:
        return None
    finer = next((P for P in range(min(H, W) // 8, 0, -1) if H % P == W % P == 0), None)
    patch_size = getattr(model.config, "patch_size", None)      # in a hybrid, in pixels of the feature map
    if finer and patch_size and pair(patch_size) == (H // rows, W // columns):
        way_out = f"--patch-size {finer} gives {H // finer * (W // finer)}"
    else:
        way_out = "larger images give more"
    return (
        f"only {counted(rows * columns, 'patch', 'patches')} of {H // rows}×{W // columns} pixels in an image of "
        f"{H}×{W}: a patch is one token, so it should span at most an eighth of a side; {way_out}"
    )
