"""Training a classifier, or a model that learns the images themselves: what the loop asks about labels.

    task = ClassificationTask(config)
    TrainingLoop(task, config, "runs/mine").run()       # what `train(config, "runs/mine")` does
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scratchvit import optim
from scratchvit.data import Batch
from scratchvit.data.palette import fit_palette
from scratchvit.errors import ScratchvitError
from scratchvit.models import model_config
from scratchvit.models.checks import check_classifies
from scratchvit.models.interface import PatchModel, PixelModel, frames_of, generates
from scratchvit.models.vit import pair
from scratchvit.tensor import Tensor
from scratchvit.training.build import check_least, check_shares
from scratchvit.training.classification.data import TrainingData, augments, check_pictures, load_splits, measured
from scratchvit.training.classification.evaluate import Meter, Predictions, evaluate, predict, truth
from scratchvit.training.classification.objective import Objective
from scratchvit.training.config import TrainConfig
from scratchvit.training.loop import TrainingLoop
from scratchvit.training.task import Batches, Course, Row, Task

# What the augreg paper's dropout and stochastic depth are in a ViT: dropout after every dense layer but those of q, k
# and v, and after the positions are added (ViT, arXiv 2010.11929, §B.1).
_DROPPING = {"pos_drop_rate", "proj_drop_rate", "drop_path_rate"}


@dataclass(frozen=True)
class Result(Course):
    """What a run came to. Accuracies are shares, 0 … 1; the test split was evaluated once, with the best weights."""

    test_loss: float | None     # None: the data have no test split
    test_accuracy: float | None
    val_loss: float             # of the best epoch
    val_accuracy: float
    predictions: Predictions = field(repr=False, compare=False)     # on the test split or, without one, on val


def train(
    config: TrainConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> Result:
    """Train a model, or go on with the run in `run_dir`; `log` gets one line per epoch.

    Raises ScratchvitError for settings that make no sense, a folder that holds another run or in which one is going on,
    data, a loss or a gradient that is not finite, and a disk that is full; Interrupted after Ctrl-C or SIGTERM, when
    the run has been saved.
    """
    loop = prepare(config, run_dir, resume, log)
    with loop.folder:
        result: Result = loop.run()
        return result


def prepare(
    config: TrainConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> TrainingLoop[ClassificationTask]:
    """The first half of `train`: a run that is ready to begin, see `TrainingLoop`."""
    return TrainingLoop(ClassificationTask(config), config, run_dir, resume, log)


class ClassificationTask(Task):
    """Learn labels, or the images themselves.

    data        the splits, once they are loaded
    objective   the loss, once there is a model; generative: whether it is of the images themselves, not of labels
    """

    data: TrainingData
    objective: Objective
    generative: bool

    def __init__(self, config: TrainConfig):
        self.config = config

    def check(self) -> None:
        config = self.config
        check_classifies(config.model, model_config(config.model))
        check_least(config, dict.fromkeys(("epoch_images", "crop_padding", "mixup", "cutmix"), 0))
        check_shares(config, ("label_smoothing", "regularisation", "color_jitter"))
        if config.teacher_model and not config.teacher:
            raise ScratchvitError("teacher_model names the model of a teacher's file: name the file with teacher")
        if not config.distill_temperature > 0:
            raise ScratchvitError(f"distill_temperature must be positive, not {config.distill_temperature}")
        if config.distill_weight is not None and not config.teacher:
            raise ScratchvitError("distill_weight is a teacher's share of the loss: name the teacher, or leave it out")
        if config.distill_weight is not None and not 0 <= config.distill_weight <= 1:
            raise ScratchvitError(f"distill_weight must lie in [0, 1], not {config.distill_weight}")
        if not 0 < config.train_fraction <= 1:
            raise ScratchvitError(f"train_fraction must lie in (0, 1], not {config.train_fraction}")

    def load_data(self, init: str | Path | None) -> TrainingData:
        splits = load_splits(self.config)
        check_pictures(splits)      # a broken one would end the run at its first validation, or at its end
        self.data = measured(splits, self.config, init)
        return self.data

    def model_args(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the model: what the data says (sizes, channels, classes) unless the run says otherwise."""
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
        if not preset.num_classes:      # it learns the images themselves, unless the run asks for classes
            known.remove("num_classes")
        if config.regularisation:
            rates = (_DROPPING if "proj_drop_rate" in known else {"drop_rate", "drop_path_rate"}) & known
            from_data |= dict.fromkeys(rates, config.regularisation)
        if frames_of(preset) > 1:
            from_data["num_frames"] = 1     # the data are pictures
            known.add("num_frames")
        args = {name: value for name, value in from_data.items() if name in known} | config.model_args
        if args.get("num_classes", classes) < classes:
            raise ScratchvitError(
                f"a head of {args['num_classes']} classes is too small for the {classes} classes of {about['name']}: "
                "leave num_classes out"
            )
        return args

    def init_from_data(self, model: Any) -> None:
        """A model that codes pixels with a palette finds its colours in the training images."""
        if isinstance(model, PixelModel):
            model.palette.overwrite(fit_palette(self.data.splits.train, len(model.palette), self.config.seed))

    def prepare_loss(self, model: Any) -> None:
        self.generative = generates(model)
        self.objective = Objective(self.config, model, self.data.about())

    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        return optim.param_groups(model, self.config.weight_decay, self.config.layer_decay)

    def meter(self, **sums: Any) -> Meter:
        return Meter(**sums)

    def before_training(self, batches: Batches) -> None:
        """Ask the teacher about every picture, once, if pictures look the same in every epoch."""
        if self.objective.teacher is None or augments(self.config):
            return
        split = self.data.splits.train
        with tqdm(total=len(split), desc="the teacher's answers", unit="img", leave=False) as bar:

            def counted() -> Iterator[Batch]:
                for batch in batches(self.data.eval_loader(split, self.config.batch_size)):
                    yield batch
                    bar.update(len(batch.labels))

            self.objective.ask_once(counted())

    def loss(
        self, model: Any, batch: Batch, inputs: Mapping[str, Any], step: int
    ) -> tuple[Tensor, tuple[Any, ...]]:
        target = truth(model, batch.images, batch.labels)
        loss, logits = self.objective(model, batch.images, target, batch.indices, step)
        return loss, (loss, logits, target)

    def validate(self, model: Any, batches: Batches) -> Row:
        loader = self.data.eval_loader(self.data.splits.val, self.config.batch_size)
        return evaluate(model, batches(loader)).columns("val_")

    def merit(self, row: Row) -> tuple[float, ...]:
        """Accuracy. Few images give many ties, which the loss breaks.

        A model of pixels is judged by its loss: how often its likeliest colour is right says less than the probability.
        """
        return (-row["val_loss"],) if self.generative else (row["val_accuracy"], -row["val_loss"])

    def line(self, row: Row) -> str:
        return (
            f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}  "
            f"val loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.2%}"
        )

    def test(self, model: Any, batches: Batches, row: Row, course: Course) -> Result:
        name, split = self.data.splits.held_out
        said = predict(model, batches(self.data.eval_loader(split, self.config.batch_size)))
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
    """A sentence if the model cuts images into few patches, the usual reason for a poor ViT on small images.

    Few are under 16 tokens, or patches that span more than an eighth of the image.
    """
    if not isinstance(model, PatchModel):
        return None
    embed = model.patch_embed
    (H, W), (*_, rows, columns) = embed.img_size, embed.grid_size
    if rows * columns >= 16 and min(rows, columns) >= 8:
        return None
    finer = next((P for P in range(min(H, W) // 8, 0, -1) if H % P == W % P == 0), None)
    patch_size = getattr(model.config, "patch_size", None)      # a hybrid's is of the map that its ConvNet gives
    if finer and patch_size and pair(patch_size) == (H // rows, W // columns):
        way_out = f"--patch-size {finer} gives {H // finer * (W // finer)}"
    else:
        way_out = "larger images give more"
    return (
        f"only {rows * columns} patches: one spans {H // rows}×{W // columns} of {H}×{W} pixels, more than an "
        f"eighth of a side, and what is inside one the model sees as one; {way_out}"
    )
