"""A detector from a file, of a run here or anybody's weights, with all that it takes to ask it about pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from scratchvit.data import Normalize
from scratchvit.detection.data.annotations import DetectionDataset
from scratchvit.detection.data.batches import DetectionBatch, DetectionLoader, pad
from scratchvit.detection.data.transforms import RandomResize, Step, View
from scratchvit.detection.evaluation import Entry, results_of
from scratchvit.detection.postprocess import postprocess
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_detects
from scratchvit.models.vit import pair
from scratchvit.recording import no_grad
from scratchvit.training.checkpoint import Checkpoint, is_checkpoint, model_from_checkpoint
from scratchvit.weights.labels import class_names
from scratchvit.weights.load import open_model
from scratchvit.weights.preprocess import IMAGENET, folder_of, read_config

T = TypeVar("T")
Found = dict[str, np.ndarray]       # of one picture, as `postprocess` gives it

LARGEST_SIDE = 1 << 13              # of a picture as a configuration may ask for it
MANY_TOKENS = 5_000                 # of an image: the authors' DC5 has about 3,400 for 800 × 1066 pixels


@dataclass(frozen=True)
class Sizes:
    """What size a picture is brought to: its shorter side to short_side, but its longer side to at most `longest`.

    short_side 0 leaves pictures as they are; `exact`, (height, width), squashes all of them to that.
    Raises ScratchvitError for sides that make no sense.
    """

    short_side: int = 0
    longest: int | None = None
    exact: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        sides = [self.short_side or 1, *([self.longest] if self.longest is not None else []), *(self.exact or ())]
        if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sides):
            raise ScratchvitError(f"a side of a picture is a whole number from 1 to {LARGEST_SIDE}, not {sides}")

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        """A `Step` in which nothing is left to chance."""
        if self.exact:
            return view.resized(*self.exact)
        # A sliver's longer side would grow beyond all measure.
        resize = RandomResize((self.short_side,), self.longest or LARGEST_SIDE) if self.short_side else None
        return resize(view, rng) if resize else view

    def __str__(self) -> str:
        if self.exact:
            return f"squashed to {self.exact[0]}×{self.exact[1]}"
        if not self.short_side:
            return "at their own size"
        return f"shorter side to {self.short_side}" + (f", longer to at most {self.longest}" if self.longest else "")


@dataclass(frozen=True)
class Detector:
    """A model with what it was trained for.

    classes         names; a label is a place in them
    category_ids    what results call each of them: as in the annotations that it was trained on; of anybody's weights
                    the labels themselves, which the authors' COCO weights make COCO's own ids
    classes_from    where the names come from, in words
    prepares        how pictures are prepared, in words
    loading         what was done with the weights, in words
    checkpoint      of a run; None for anybody's weights
    """

    model: Any
    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    classes_from: str
    normalize: Normalize
    step: Step
    prepares: str
    loading: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = field(default=None, repr=False)

    def at(self, short_side: int) -> Detector:
        """The same for pictures whose shorter side is brought to that, the longer to at most 5/3 of it."""
        sizes = Sizes(short_side, round(short_side * 5 / 3))
        return dataclasses.replace(self, step=sizes, prepares=str(sizes))

    def in_pictures(self, pictures: Sequence[Image.Image]) -> list[Found]:
        """What it finds in RGB pictures, boxes in their pixels. They make one batch, padded to the largest."""
        sizes = [(picture.height, picture.width) for picture in pictures]
        views = [self.view(size) for size in sizes]
        shown = [self.normalize(np.asarray(view.of_picture(one))[None])[0] for view, one in zip(views, pictures)]
        return self._found(*pad(shown), sizes)

    def view(self, size: tuple[int, int]) -> View:
        """What is shown of a picture of that size (H, W)."""
        return self.step(View.whole(size), np.random.default_rng(0))        # a step that draws nothing

    def tokens(self, size: tuple[int, int]) -> int:
        """Features in the map that the encoder sees of a picture of that size (H, W)."""
        return encoder_tokens(self.model.config, self.view(size).size)

    def in_dataset(self, dataset: DetectionDataset, batch_size: int) -> tuple[list[Found], list[int]]:
        """What it finds in each picture of a data set, boxes in the pixels of the original, and the pictures' ids."""
        loader = DetectionLoader(dataset, batch_size, self.normalize, steps=self.step)
        return self.in_batches(loader)

    def in_batches(self, batches: Iterable[DetectionBatch]) -> tuple[list[Found], list[int]]:
        found: list[Found] = []
        image_ids: list[int] = []
        for images, mask, targets in batches:
            found += self._found(images, mask, [target["orig_size"] for target in targets])
            image_ids += [target["image_id"] for target in targets]
        return found, image_ids

    def _found(self, images: Any, mask: Any, sizes: Sequence[tuple[int, int]]) -> list[Found]:
        with no_grad(), np.errstate(all="ignore"):      # `results_of` tells in a sentence what is not finite
            outputs = self.model(images, mask=mask if mask.any() else None)     # as validation does: the same numbers
            return postprocess(outputs, sizes, focal=self.model.config.focal)


def encoder_tokens(config: Any, size: tuple[int, int]) -> int:
    """Features in the map that a DETR's encoder sees of an image (H, W). config: the model's."""
    return math.prod(map_size(config, size))


def map_size(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of that map."""
    stride = 2 ** (config.stages + 1) // (2 if config.dilation else 1)
    return -(-size[0] // stride), -(-size[1] // stride)     # each halving rounds up


def open_detector(path: str | Path, name: str | None = None, labels: str | Path | None = None) -> Detector:
    """The detector in a file: a checkpoint of `scratchvit detect-train`, or anybody's weights.

    name: the model of anybody's weights, if no config.json beside them says it. labels: names of the classes, as
    `weights.labels.read_labels` takes them. Raises ScratchvitError for a file that cannot be read or holds no detector.
    """
    # What cannot be read is left to the reader of weights, which says why.
    source = _from_run if is_checkpoint(path) else _from_weights
    return source(Path(path), name, labels)


def _from_run(path: Path, name: str | None, labels: str | Path | None) -> Detector:
    if name is not None:
        raise ScratchvitError(f"{path} says itself which model it is of: leave out --model")
    model: Any
    model, checkpoint = model_from_checkpoint(path)
    check_detects(checkpoint.model_name, model.config)
    about = checkpoint.data
    try:
        classes, classes_from = list(about["classes"]), f"names from {about['name']}"
        category_ids = tuple(map(int, about["category_ids"]))
        sizes = Sizes(about["short_side"], about["longest"] or None)
        normalize = Normalize(about["mean"], about["std"])
    except (KeyError, TypeError, ValueError) as error:
        raise ScratchvitError(f"{path} does not say what it was trained on ({error!r}): take another") from error
    if not len(classes) == len(category_ids) == model.config.num_classes:
        raise ScratchvitError(
            f"{path} has {model.config.num_classes} classes, {len(classes)} names and {len(category_ids)} ids: take "
            "another"
        )
    if labels is not None:
        classes, classes_from = class_names(len(classes), labels)
    return Detector(
        model, checkpoint.model_name, tuple(classes), category_ids, classes_from, normalize, sizes,
        f"{sizes}, as in training", checkpoint=checkpoint,
    )


def _from_weights(path: Path, name: str | None, labels: str | Path | None) -> Detector:
    model: Any
    model, name, report = open_model(path, name)
    config = model.config
    check_detects(name, config)
    if config.in_chans != 3:
        raise ScratchvitError(f"{path} wants {config.in_chans} channels: a detector's pictures are read in RGB, with 3")
    classes, classes_from = class_names(config.num_classes, labels, path)
    sizes, normalize, source = _preprocessing(path, config)
    return Detector(
        model, name, tuple(classes), tuple(range(len(classes))), classes_from, normalize, sizes,
        f"{sizes} ({source})", tuple(str(report).splitlines()),
    )


# --- anybody's preprocessing ----------------------------------------------------------------------------------------


def pixels_of(weights: str | Path) -> Normalize:
    """How anybody's weights expect pixels: as the preprocessor_config.json beside them says, or as ImageNet's are.

    Raises ScratchvitError for a file that makes no sense.
    """
    return _followed(weights, _normalize) or Normalize(**IMAGENET)


def _preprocessing(weights: Path, config: Any) -> tuple[Sizes, Normalize, str]:
    """What Hugging Face's preprocessor_config.json beside the weights says or, without one, the paper's (§A.4)."""
    normalize, sizes = pixels_of(weights), _followed(weights, _sizes)
    if sizes is not None:
        return sizes, normalize, str(_file_beside(weights))
    short = min(pair(config.img_size))
    return Sizes(short, round(short * 5 / 3)), normalize, "the convention for DETR"


def _file_beside(weights: str | Path) -> Path:
    return folder_of(Path(weights)) / "preprocessor_config.json"


def _followed(weights: str | Path, read: Callable[[Mapping[str, Any]], T]) -> T | None:
    """What `read` finds in the file beside weights, of transformers' DetrImageProcessor; None if there is no file."""
    config = read_config(file := _file_beside(weights))
    if config is None:
        return None
    try:
        return read(_HUGGINGFACE | {key: value for key, value in config.items() if value is not None})
    except (ScratchvitError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ScratchvitError(f"{file} cannot be followed ({error}): mend it or move it away") from error


def _normalize(given: Mapping[str, Any]) -> Normalize:
    mean, std = (given["image_mean"], given["image_std"]) if given["do_normalize"] else ((0.0,) * 3, (1.0,) * 3)
    unit = 255 * given["rescale_factor"] if given["do_rescale"] else 255     # Normalize counts from 0 to 1
    return Normalize([m / unit for m in mean], [s / unit for s in std])


def _sizes(given: Mapping[str, Any]) -> Sizes:
    if not given["do_resize"]:
        return Sizes()
    if given["resample"] != Image.Resampling.BILINEAR:
        raise ScratchvitError(f"its resample is {given['resample']}, pictures are resized bilinearly (2) here")
    size = given["size"]
    if isinstance(size, int):       # of the first DETRs
        return Sizes(size, given["max_size"])
    if set(size) == {"height", "width"}:
        return Sizes(exact=(size["height"], size["width"]))
    if "shortest_edge" in size and set(size) <= {"shortest_edge", "longest_edge"}:
        return Sizes(size["shortest_edge"], size.get("longest_edge"))
    raise ScratchvitError(f"a size with {', '.join(map(str, size))} is not known; shortest_edge and longest_edge are")


_HUGGINGFACE: dict[str, Any] = {        # what its file leaves out
    "size": {"shortest_edge": 800, "longest_edge": 1333}, "max_size": 1333, "resample": Image.Resampling.BILINEAR,
    "image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"], "rescale_factor": 1 / 255,
    "do_resize": True, "do_rescale": True, "do_normalize": True,
}


# --- from its classes to those of some annotations ------------------------------------------------------------------


def matching_categories(
    classes: Sequence[str], category_ids: Sequence[int], detector: Detector, where: str
) -> list[int | None]:
    """What annotations call each class of the detector: the category of the same name, None for one they do not have.

    classes, category_ids: of the annotations; where: their name. Raises ScratchvitError if no name is the same.
    """
    if tuple(classes) == detector.classes:      # by place: some names may be there twice
        return [*category_ids]
    by_name = dict(zip(classes, category_ids))
    matched = [by_name.get(name) for name in detector.classes]
    if all(category is None for category in matched):
        raise ScratchvitError(
            f"{where} has none of the classes of {detector.name}: it has {_some(classes)}, the model "
            f"{_some(detector.classes)}; classes are matched by name, and --labels FILE names those of the model"
        )
    return matched


def results_in(
    found: Sequence[Found], image_ids: Sequence[int], categories: Sequence[int | None]
) -> list[Entry]:
    """What was found as COCO's results, in these categories; what is of none of them is left out."""
    known = np.array([category is not None for category in categories])
    kept = [{key: values[known[one["labels"]]] for key, values in one.items()} for one in found]
    return results_of(kept, image_ids, [-1 if category is None else category for category in categories])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
