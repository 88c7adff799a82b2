"""The task of training a detector, for the loop in `training.loop`.

    outputs = model(images, mask, targets)
    losses = criterion(outputs, targets)        # of every output, see losses.py; metrics.csv has their means
    criterion.total(losses).backward(); …

The best epoch is the one with the highest AP on val. After every epoch, the detections in the first few pictures of val
are drawn: predictions/epoch_001.png, ….
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scratchvit import optim
from scratchvit.backend import Array, asarray
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.criterion import FOCAL_WEIGHTS, WEIGHTS, FocalCriterion, Matched, Predictions, SetCriterion
from scratchvit.detection.data.annotations import DetectionDataset, Target
from scratchvit.detection.data.batches import DetectionBatch
from scratchvit.detection.draw_boxes import write_predictions
from scratchvit.detection.evaluation import CocoFigures, can_evaluate, evaluate_boxes, results_of
from scratchvit.detection.losses import Losses, to_columns
from scratchvit.detection.matcher import HungarianMatcher, ObjectArrays, Objects
from scratchvit.detection.postprocess import joined, postprocess
from scratchvit.detection.run_data import DetectionData, load_data, why_not_replayed
from scratchvit.errors import ScratchvitError
from scratchvit.models import model_config
from scratchvit.models.checks import check_detects
from scratchvit.nn import evaluating
from scratchvit.parallel import ALONE, Communicator
from scratchvit.tensor import Tensor
from scratchvit.training.build import check_least, check_shares
from scratchvit.training.loop import TrainingLoop
from scratchvit.training.meter import Means, over_ranks
from scratchvit.training.step import NotFinite
from scratchvit.training.task import Batches, Course, Row, Task

MEANINGFUL_AP = 0.05    # below it, AP is decided by a few lucky boxes: the best epoch is then that of the lowest loss
PICTURED = 8        # the number of pictures of val that are drawn after every epoch

STEM = ("conv1", "bn1", "layer1")       # the layers of a pretrained ResNet that the authors freeze


@dataclass(frozen=True)
class DetectionResult(Course):
    """The result of a run. The test split is evaluated once, with the best weights."""

    test: CocoFigures               # COCO's twelve figures, and AP of each class
    test_loss: float
    val_AP: float | None            # of the best epoch; None if val has no objects
    val_AP50: float | None
    val_loss: float


def train_detector(
    config: DetectConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write
) -> DetectionResult:
    """Train a detector, or resume the run in `run_dir`. `log` is called with one line per epoch.

    Raises ScratchvitError for invalid settings, a folder that contains another run or is in use, data, a loss or a
    gradient that is not finite, and a full disk. Raises Interrupted after Ctrl-C or SIGTERM, once the run has been
    saved.
    """
    loop = prepare_detector(config, run_dir, resume, log)
    with loop.folder:
        return loop.run()


def prepare_detector(
    config: DetectConfig, run_dir: str | Path, resume: bool = False, log: Callable[[str], None] = tqdm.write,
    ranks: Communicator = ALONE,
) -> TrainingLoop[DetectionTask]:
    """The first half of `train_detector`: a run that is ready to start, see `TrainingLoop`."""
    return TrainingLoop(DetectionTask(config), config, run_dir, resume, log, ranks)


class DetectionTask(Task[DetectionResult]):
    """Predict the boxes and classes of the objects in images.

    data        the data, set by `load_data`
    criterion   the loss, set by `prepare_loss`
    found       the detections of the last validation in the first `PICTURED` images of val, from `postprocess`
    """

    data: DetectionData
    criterion: SetCriterion

    def __init__(self, config: DetectConfig):
        self.config = config
        self.found: list[dict[str, Any]] = []
        self._latest: tuple[list[Target], Objects] | None = None        # of the last batch, see `objects`

    def check(self) -> None:
        """Raise ScratchvitError for a setting out of range."""
        config = self.config
        check_detects(config.model, model_config(config.model))
        check_least(config, dict.fromkeys(("epoch_images", "short_side", "longest", "lr_backbone"), 0))
        check_least(config, {"pad_to": 1})
        check_shares(config, ("color_jitter",))
        for name in ("longest", "multi_scale"):
            if getattr(config, name) and not config.short_side:
                raise ScratchvitError(
                    f"{name} needs the size of the shorter side: set short_side, or leave {name} out"
                )
        if config.longest and config.longest < config.short_side:
            raise ScratchvitError(f"longest must be at least short_side, {config.short_side}, not {config.longest}")
        if config.epoch_images and config.data != "scenes":
            raise ScratchvitError("epoch_images is for generated scenes: leave it out, an epoch is all pictures")
        if config.freeze_stem and not config.init:
            raise ScratchvitError("freeze_stem is for a pretrained backbone: name its weights with init")

    def load_data(self, init: str | Path | None) -> DetectionData:
        self.data = load_data(self.config, init, (self.ranks.rank, self.ranks.size))
        return self.data

    def model_args(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the model. Classes and channels are those of the data."""
        config = self.config
        from_data = {"in_chans": 3, "num_classes": len(about["classes"])}
        for name, number in from_data.items():
            if config.model_args.get(name, number) != number:
                raise ScratchvitError(
                    f"{name} is {number} for {about['name']}, not {config.model_args[name]}: leave {name} out"
                )
        return from_data | config.model_args

    def prepare_loss(self, model: Any) -> None:
        self.criterion = make_criterion(self.config, model)

    def param_groups(self, model: Any) -> list[dict[str, Any]]:
        """Weight decay for matrices only, a learning rate for the backbone, and a frozen stem if asked for."""
        groups = optim.param_groups(model, self.config.weight_decay, self.config.layer_decay)
        if self.config.freeze_stem:
            freeze_stem(model)
        return with_share(groups, list(model.backbone.parameters()), self.config.lr_backbone)

    def inputs(self, batch: DetectionBatch) -> dict[str, Any]:
        return _inputs(batch, self.objects(batch))

    def loss(
        self, model: Any, batch: DetectionBatch, inputs: Mapping[str, Any], step: int
    ) -> tuple[Tensor, tuple[Any, ...]]:
        return self._loss(model, batch.images, inputs, self.objects(batch))

    def objects(self, batch: DetectionBatch) -> Objects:
        """The objects of a batch, and the numbers of those that other ranks have.

        Made once for a batch, however often it is called, because all ranks have to call it as often.
        """
        if self._latest is None or self._latest[0] is not batch.targets:
            own = Objects.of(batch.targets, self.criterion.num_classes)
            self._latest = batch.targets, dataclasses.replace(own, whole=self._over_ranks(own.counts))
        return self._latest[1]

    def _over_ranks(self, counts: list[int]) -> list[int]:
        return self.ranks.gather_rows(np.array(counts, np.int64)).tolist()

    def _loss(
        self, model: Any, images: Array, inputs: Mapping[str, Any], objects: Objects
    ) -> tuple[Tensor, tuple[Any, ...]]:
        return self._noted(self.criterion.of_objects(model(images, **inputs), objects), len(images))

    def loss_of_part(
        self, model: Any, batch: DetectionBatch, part: slice, step: int
    ) -> tuple[Tensor, tuple[Any, ...]]:
        images = DetectionBatch(batch.images[part], batch.mask[part], batch.targets[part])
        objects = Objects.of(images.targets, self.criterion.num_classes, self.objects(batch).whole)
        return self._loss(model, images.images, _inputs(images, objects), objects)

    def _noted(self, losses: Losses, images: int) -> tuple[Tensor, tuple[Any, ...]]:
        """The total, a Tensor (), and the losses of a batch by their names in metrics.csv."""
        total = self.criterion.total(losses)
        return total, ({"loss": total, **to_columns(losses)}, images)

    # The same in halves, as functions of arrays: queries and objects are matched between them.

    in_halves = True

    def why_not_replayed(self, model: Any) -> str:
        if self.config.accumulate > 1:
            return "the parts of a batch have different numbers of objects"
        return why_not_replayed(vars(model.config))

    def arrays(self, model: Any, batch: DetectionBatch, step: int) -> tuple[Array, ...]:
        """(images, boxes, labels, image of each object, counts), see `ObjectArrays`, and the padding mask if any."""
        if self.why_not_replayed(model):
            return ()
        objects, mask = self.objects(batch).arrays(batch.images.dtype), _padding(batch)
        return batch.images, *objects, *(() if mask is None else (asarray(mask),))

    def forward_of(self, model: Any, *arrays: Array) -> tuple[tuple[Predictions, ObjectArrays], Array]:
        images, objects, mask = arrays[0], ObjectArrays(*arrays[1:5]), arrays[5:]
        predictions = self.criterion.predictions([model(images, mask=mask[0] if mask else None)])
        return (predictions, objects), self.criterion.costs(predictions, objects)

    def match(self, batch: DetectionBatch, asked: Any) -> Matched:
        return self.criterion.matched(asked, self.objects(batch))

    def loss_of(
        self, model: Any, kept: tuple[Predictions, ObjectArrays], *matched: Array
    ) -> tuple[Tensor, tuple[Any, ...]]:
        predictions, objects = kept
        losses = self.criterion.decoder_losses(predictions, objects, Matched(*matched))
        return self._noted(losses, predictions.boxes.shape[1])

    def validate(self, model: Any, batches: Batches) -> Row:
        val = self.data.splits.val
        meter, found, figures = self._evaluate(model, val, batches)
        self.found = [found[val.annotations(index).image_id] for index in range(min(PICTURED, len(val)))]
        return meter.columns("val_") | {"AP": figures.AP, "AP50": figures.AP50, "AP75": figures.AP75}

    def _evaluate(
        self, model: Any, dataset: DetectionDataset, batches: Batches
    ) -> tuple[Means, dict[int, Any], CocoFigures]:
        """The losses on a split, the detections in each image by its id, and COCO's figures."""
        meter = Means()
        found: dict[int, Any] = {}
        loader = self.data.eval_loader(dataset, self.config.batch_size)
        left = len(loader)
        with evaluating(model):
            for batch in batches(loader):
                left -= 1
                objects = self.objects(batch)
                outputs = model(batch.images, mask=_padding(batch))
                losses = self.criterion.of_objects(outputs, objects)
                meter.add(*self._noted(losses, len(batch.images))[1])
                sizes = [target["orig_size"] for target in batch.targets]
                boxes = postprocess(outputs, sizes, focal=self.criterion.matcher.focal)
                found |= {target["image_id"]: of_image for target, of_image in zip(batch.targets, boxes)}
        for _ in range(left):
            self._over_ranks([])        # of a batch of which this rank has no image, the others ask for the objects
        meter, found = over_ranks(meter.read(), self.ranks), joined(found, self.ranks)
        if not math.isfinite(meter.loss):
            raise NotFinite(f"the loss on {dataset.name} is not finite")
        return meter, found, self._figures(dataset, found)

    def _figures(self, dataset: DetectionDataset, found: Mapping[int, Any]) -> CocoFigures:
        """COCO's figures of the detections in each image by its id. Rank 0 computes them for all."""
        figures = None
        if self.ranks.rank == 0 and can_evaluate():
            results = results_of(list(found.values()), list(found), dataset.category_ids)
            figures = dataclasses.asdict(evaluate_boxes(dataset.ground_truth(), results))
        figures = self.ranks.gather(figures)[0]
        return CocoFigures.of(figures) if figures else CocoFigures.unknown()

    def draw(self, folder: Path, epoch: int) -> None:
        """Draw the detections in the first pictures of val: predictions/epoch_001.png, …."""
        path, val = folder / "predictions" / f"epoch_{epoch:03}.png", self.data.splits.val
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise ScratchvitError(
                f"the folder {path.parent} cannot be created ({error.strerror}): free some space"
            ) from error
        write_predictions(path, [val.example(index) for index in range(len(self.found))], self.found, val.classes)

    def merit(self, row: Row) -> tuple[float, ...]:
        """AP on val, once it is more than chance; before that, and where AP is unknown, the loss."""
        AP = row["AP"] or 0.0
        return AP if AP >= MEANINGFUL_AP else 0.0, -row["val_loss"]

    @property
    def legend(self) -> str:
        return "loss on train and val; average precision on val (AP, and at an IoU of 0.5: AP50), 0 to 1"

    def line(self, row: Row) -> str:
        AP, AP50 = ("–" if figure is None else f"{figure:.3f}" for figure in (row["AP"], row["AP50"]))
        return f"train {row['train_loss']:.3f}  val {row['val_loss']:.3f}, AP {AP}, AP50 {AP50}"

    def test(self, model: Any, batches: Batches, row: Row, course: Course) -> DetectionResult:
        meter, _, figures = self._evaluate(model, self.data.splits.test, batches)
        return DetectionResult(
            **vars(course),
            test=figures,
            test_loss=meter.loss,
            val_AP=row["AP"],
            val_AP50=row["AP50"],
            val_loss=row["val_loss"],
        )


def _inputs(batch: DetectionBatch, objects: Objects) -> dict[str, Any]:
    return {"mask": _padding(batch), "targets": batch.targets, "most": max(objects.whole)}


def _padding(batch: DetectionBatch) -> Any:
    """The padding mask (B, H, W), or None if no image is padded, which is faster."""
    return batch.mask if batch.mask.any() else None


def make_criterion(config: DetectConfig, model: Any) -> SetCriterion:
    """The criterion, with its matcher, for a model with softmax or, if its configuration has focal=True, sigmoids."""
    focal, num_classes = model.config.focal, model.config.num_classes
    # The default weights differ because cross-entropy and focal loss differ in scale.
    default = (FOCAL_WEIGHTS if focal else WEIGHTS)["ce"]
    cost_class = default if config.cost_class is None else config.cost_class
    weight_ce = default if config.weight_ce is None else config.weight_ce
    matcher = HungarianMatcher(cost_class, config.cost_bbox, config.cost_giou, focal)
    weights = {"ce": weight_ce, "bbox": config.weight_bbox, "giou": config.weight_giou}
    if focal:
        return FocalCriterion(num_classes, matcher, weights)
    return SetCriterion(num_classes, matcher, weights, config.eos_coef)


def freeze_stem(model: Any) -> None:
    """Freeze the parameters of the backbone's first layers. (Running statistics of batch norms are still updated.)"""
    body = model.backbone[0].body
    for name in STEM:
        for parameter in getattr(body, name).parameters():
            parameter.requires_grad = False


def with_share(groups: Sequence[dict[str, Any]], chosen: Sequence[Any], share: float) -> list[dict[str, Any]]:
    """Groups of `optim.param_groups` in which the learning rate of the chosen parameters is multiplied by `share`."""
    chosen_ids = {id(parameter) for parameter in chosen}
    split: list[dict[str, Any]] = []
    for group in groups:
        inside = [parameter for parameter in group["params"] if id(parameter) in chosen_ids]
        outside = [parameter for parameter in group["params"] if id(parameter) not in chosen_ids]
        split += [group | {"params": inside, "lr_scale": group["lr_scale"] * share}, group | {"params": outside}]
    return [group for group in split if group["params"]]
