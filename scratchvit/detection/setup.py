"""From a DetectConfig to the things that a run is made of."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from scratchvit import optim
from scratchvit.data import ColorJitter, Normalize
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.criterion import FOCAL_WEIGHTS, WEIGHTS, FocalCriterion, SetCriterion
from scratchvit.detection.data.annotations import Annotations, DetectionDataset, DetectionSplits
from scratchvit.detection.data.batches import DetectionLoader
from scratchvit.detection.data.scenes import Scenes, load_scenes
from scratchvit.detection.data.source import load_detection
from scratchvit.detection.data.transforms import RandomHorizontalFlip, Step, Steps, detr_steps
from scratchvit.detection.evaluation import evaluate_boxes
from scratchvit.detection.matcher import HungarianMatcher
from scratchvit.detection.trained import Sizes, pixels_of
from scratchvit.errors import ScratchvitError
from scratchvit.models import model_config
from scratchvit.models.checks import check_detects
from scratchvit.training.checkpoint import is_checkpoint
from scratchvit.training.setup import check_least, check_run, check_shares, normalisation, optimizer_of

MEASURED = 500          # pictures at most, spread over the training split, that mean and deviation are taken of
OVERFIT_STEPS = 50      # of overfit_one_batch in an epoch, which a validation follows

STEM = ("conv1", "bn1", "layer1")       # of a ResNet: what the authors keep of a pretrained one


@dataclass(frozen=True)
class DetectionData:
    """The splits, how their pictures are shown, and the statistics of the training pictures.

    numbers: of each split, see `fingerprint`.
    """

    splits: DetectionSplits
    sizes: Sizes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    numbers: dict[str, int]

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        train = self.splits.train
        return {
            "name": train.name,
            "classes": list(train.classes),
            "category_ids": list(train.category_ids),
            "mean": list(self.mean),
            "std": list(self.std),
            "short_side": self.sizes.short_side,
            "longest": self.sizes.longest or 0,
        }

    def fingerprint(self) -> dict[str, int]:
        """A number for each split, which changes if pictures or their boxes come, go, or take other places."""
        return self.numbers

    def train_loader(self, config: DetectConfig) -> DetectionLoader:
        """Shuffled, and changed as the run asks for; one batch alone stays as it is."""
        normalize, jitter = Normalize(self.mean, self.std), config.color_jitter
        if config.overfit_one_batch:
            return DetectionLoader(
                self.splits.train, config.batch_size, normalize, steps=self.sizes, stretch=1, seed=config.seed,
                workers=config.workers,
            )
        return DetectionLoader(
            self.splits.train, config.batch_size, normalize, steps=self._training_steps(config),
            colours=ColorJitter(jitter, jitter, jitter) if jitter else None, shuffle=True, seed=config.seed,
            workers=config.workers,
        )

    def _training_steps(self, config: DetectConfig) -> Step:
        flip = [RandomHorizontalFlip()] if config.flip else []
        if not config.multi_scale:
            return Steps(*flip, self.sizes)
        _, resizing = cast(Steps, detr_steps(config.short_side, self.sizes.longest)).steps      # its flip is asked for
        return Steps(*flip, resizing)

    def eval_loader(self, dataset: DetectionDataset, batch_size: int) -> DetectionLoader:
        """Every picture once, as it is, batched by shape."""
        return DetectionLoader(dataset, batch_size, Normalize(self.mean, self.std), steps=self.sizes)


class FirstPictures(DetectionDataset):
    """The first `count` pictures of a data set, `times` over."""

    def __init__(self, source: DetectionDataset, count: int, times: int = 1):
        self.source, self.count, self.times = source, count, times
        self.name, self.classes, self.category_ids = source.name, source.classes, source.category_ids
        self.notes, self.skipped = source.notes, source.skipped

    def __len__(self) -> int:
        return self.count * self.times

    def size(self, index: int) -> tuple[int, int]:
        return self.source.size(index % self.count)

    def annotations(self, index: int) -> Annotations:
        return self.source.annotations(index % self.count)

    def picture(self, index: int) -> Image.Image:
        return self.source.picture(index % self.count)

    def example(self, index: int) -> tuple[Image.Image, Annotations]:
        return self.source.example(index % self.count)


def load_data(config: DetectConfig, init: str | Path | None = None) -> DetectionData:
    """Load and measure the data.

    init: weights to begin with; pixels are then normalised as these are used to, not by the training images.
    """
    if config.data == "scenes" and config.epoch_images:
        splits = load_scenes(seed=config.seed, train=config.epoch_images)
    else:
        splits = load_detection(
            config.data, val_fraction=config.val_fraction, seed=config.seed, skip_bad=config.skip_bad
        )
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    numbers = {name: _fingerprint(part) for name, part in parts.items()}
    if config.overfit_one_batch:
        splits = one_batch(splits, config.batch_size)
    longest = config.longest or round(config.short_side * 5 / 3) or None
    mean, std = (init and pixels_expected(config.model, init)) or channel_stats(splits.train)
    # A channel that never changes carries nothing; any deviation will do.
    std = tuple(deviation or 1.0 for deviation in std)
    return DetectionData(splits, Sizes(config.short_side, longest), mean, std, numbers)


def pixels_expected(model: str, init: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) of red, green and blue, as the weights in `init` expect them; None of a run on pictures in grey."""
    if is_checkpoint(init):
        return normalisation(model, init, 3)
    normalize = pixels_of(init)
    return normalize.mean, normalize.std


def one_batch(splits: DetectionSplits, batch_size: int) -> DetectionSplits:
    """The first batch of train, again and again, and the same pictures for val and test."""
    train = splits.train
    count = min(batch_size, len(train))
    few = FirstPictures(train, count)
    said = f"train, val and test are all the first {count} pictures of {train.name}, an epoch {OVERFIT_STEPS} steps."
    return DetectionSplits(FirstPictures(train, count, OVERFIT_STEPS), few, few, (*splits.drawn, said))


def channel_stats(dataset: DetectionDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of red, green and blue in units of 0 … 1, over all pixels of at most `MEASURED` pictures."""
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for index in np.unique(np.linspace(0, len(dataset) - 1, MEASURED).round().astype(int)).tolist():
        pixels = np.asarray(dataset.picture(index), np.float64).reshape(-1, 3) / 255
        count += len(pixels)
        total += pixels.sum(axis=0)
        squares += (pixels**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return tuple(mean.tolist()), tuple(std.tolist())


def _fingerprint(dataset: DetectionDataset) -> int:
    if isinstance(dataset, Scenes):     # made, and always alike
        return zlib.crc32(f"{dataset.name} {dataset.img_size} {len(dataset)}".encode())
    number = 0
    for index in range(len(dataset)):
        one = dataset.annotations(index)
        number = zlib.crc32(f"{one.file_name} {one.size}".encode(errors="surrogateescape"), number)
        number = zlib.crc32(one.boxes.tobytes() + one.labels.tobytes() + one.crowd.tobytes(), number)
    return number


def model_args(config: DetectConfig, about: dict[str, Any]) -> dict[str, Any]:
    """The options of the model. The data decide on classes and channels."""
    decided = {"in_chans": 3, "num_classes": len(about["classes"])}
    for name, number in decided.items():
        if config.model_args.get(name, number) != number:
            raise ScratchvitError(
                f"{name} is {number} for {about['name']}, not {config.model_args[name]}: leave {name} out"
            )
    return decided | config.model_args


def make_criterion(config: DetectConfig, model: Any) -> SetCriterion:
    """The criterion, with its matcher, for the model's kind of class scores: softmax or sigmoids."""
    focal, num_classes = model.config.focal, model.config.num_classes
    # The class terms of softmax and focal loss differ in scale, so that their default weights differ too.
    usual = (FOCAL_WEIGHTS if focal else WEIGHTS)["ce"]
    cost_class = usual if config.cost_class is None else config.cost_class
    weight_ce = usual if config.weight_ce is None else config.weight_ce
    matcher = HungarianMatcher(cost_class, config.cost_bbox, config.cost_giou, focal)
    weights = {"ce": weight_ce, "bbox": config.weight_bbox, "giou": config.weight_giou}
    if focal:
        return FocalCriterion(num_classes, matcher, weights)
    return SetCriterion(num_classes, matcher, weights, config.eos_coef)


def make_optimizer(config: DetectConfig, model: Any) -> optim.Optimizer:
    """The optimiser: decay on matrices only, a learning rate of its own for the backbone, a stem that may be frozen."""
    groups = optim.param_groups(model, config.weight_decay, config.layer_decay)
    if config.freeze_stem:
        freeze_stem(model)
    return optimizer_of(config, with_share(groups, list(model.backbone.parameters()), config.lr_backbone))


def freeze_stem(model: Any) -> None:
    """Let what the backbone begins with learn no more. (Statistics of batch norms that are live go on.)"""
    body = model.backbone[0].body
    for name in STEM:
        for parameter in getattr(body, name).parameters():
            parameter.requires_grad = False


def with_share(groups: Sequence[dict[str, Any]], chosen: Sequence[Any], share: float) -> list[dict[str, Any]]:
    """Groups of `optim.param_groups`, in which the chosen parameters learn with that share of their learning rate."""
    inside = {id(parameter) for parameter in chosen}
    split: list[dict[str, Any]] = []
    for group in groups:
        theirs = [parameter for parameter in group["params"] if id(parameter) in inside]
        others = [parameter for parameter in group["params"] if id(parameter) not in inside]
        split += [group | {"params": theirs, "lr_scale": group["lr_scale"] * share}, group | {"params": others}]
    return [group for group in split if group["params"]]


def check(config: DetectConfig) -> None:
    """Raise ScratchvitError for a setting out of its range, and without pycocotools, before anything is loaded."""
    check_detects(config.model, model_config(config.model))
    check_run(config)
    check_least(config, dict.fromkeys(("epoch_images", "short_side", "longest", "lr_backbone"), 0))
    check_shares(config, ("color_jitter",))
    for name in ("longest", "multi_scale"):
        if getattr(config, name) and not config.short_side:
            raise ScratchvitError(f"{name} goes with a size of the shorter side: give short_side, or leave {name} out")
    if config.longest and config.longest < config.short_side:
        raise ScratchvitError(f"longest is at least short_side, {config.short_side}, not {config.longest}")
    if config.epoch_images and config.data != "scenes":
        raise ScratchvitError("epoch_images is for scenes, which never end: leave it out, an epoch is all pictures")
    if config.freeze_stem and not config.init:
        raise ScratchvitError("freeze_stem keeps what a backbone has learned: name its weights with init")
    evaluate_boxes({"images": [], "annotations": [], "categories": []}, [])     # is there what computes AP?
