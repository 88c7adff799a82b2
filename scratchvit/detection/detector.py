"""Opening a trained detector, from a checkpoint or third-party weights, and running it on pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit import progress
from scratchvit.data import Normalize
from scratchvit.data.images import eight_bit
from scratchvit.detection.data.annotations import DetectionDataset
from scratchvit.detection.data.batches import DetectionBatch, DetectionLoader, pad
from scratchvit.detection.data.transforms import RandomResize, Step, View
from scratchvit.detection.evaluation import Entry, results_of
from scratchvit.detection.postprocess import postprocess
from scratchvit.errors import ScratchvitError
from scratchvit.files import listed
from scratchvit.models.checks import check_detects
from scratchvit.models.vit import pair
from scratchvit.recording import no_grad
from scratchvit.training.checkpoint import Checkpoint, is_checkpoint, model_from_checkpoint
from scratchvit.weights.labels import class_names
from scratchvit.weights.load import open_model
from scratchvit.weights.preprocess import IMAGENET, folder_of, preprocessing_for, read_config

T = TypeVar("T")
Found = dict[str, np.ndarray]       # the detections in one picture, as returned by `postprocess`

LARGEST_SIDE = 1 << 13              # largest side in pixels that a configuration may resize to
MANY_TOKENS = 5_000                 # per image, from which on a warning is printed: DC5 has 3,400 for 800 × 1066 pixels


@dataclass(frozen=True)
class Sizes:
    """Resizing in evaluation: the shorter side to short_side, but the longer side to at most `longest` pixels.

    short_side=0: no resizing; `exact`: (height, width) of all images, whatever their aspect ratio.
    Raises ScratchvitError for sides out of range.
    """

    short_side: int = 0
    longest: int | None = None
    exact: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        sides = [self.short_side or 1, *([self.longest] if self.longest is not None else []), *(self.exact or ())]
        if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sides):
            raise ScratchvitError(f"the sides of a picture must be integers from 1 to {LARGEST_SIDE}, not {sides}")

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        """A deterministic `Step`."""
        if self.exact:
            return view.resized(*self.exact)
        # Limited, because the longer side of a very narrow picture would become huge.
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
    """A trained model with its classes and preprocessing.

    classes         class names; a label is an index into them
    category_ids    category id of each class in results: that of the annotations used in training; for third-party
                    weights the label itself, which for the authors' COCO weights is COCO's id
    classes_from    where the names come from, as text
    prepares        how pictures are preprocessed, as text
    loading         how the weights were loaded, as text
    checkpoint      the checkpoint of a run; None for third-party weights
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
        """A copy that resizes the shorter side of pictures to short_side, and the longer to at most 5/3 of that."""
        sizes = Sizes(short_side, round(short_side * 5 / 3))
        return dataclasses.replace(self, step=sizes, prepares=str(sizes))

    def in_pictures(self, pictures: Sequence[Image.Image]) -> list[Found]:
        """The detections in pictures, with boxes in their pixels. They form one batch, padded to the largest."""
        sizes = [(picture.height, picture.width) for picture in pictures]
        return self._found(*pad([self.prepare(picture) for picture in pictures]), sizes)

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """A picture of any size and mode as the model is given it, float32 (3, H, W): resized and normalised."""
        return self.normalize(np.asarray(self.resized(eight_bit(picture, 3)))[None])[0]

    def resized(self, picture: Image.Image) -> Image.Image:
        """A picture at the size at which the model is given it."""
        return self.view((picture.height, picture.width)).of_picture(picture)

    def view(self, size: tuple[int, int]) -> View:
        """The view of a picture of size (H, W) that the model is given."""
        return self.step(View.whole(size), np.random.default_rng(0))        # the step is deterministic

    def tokens(self, size: tuple[int, int]) -> int:
        """Number of tokens in the encoder for a picture of size (H, W)."""
        return encoder_tokens(self.model.config, self.view(size).size)

    def in_dataset(self, dataset: DetectionDataset, batch_size: int) -> tuple[list[Found], list[int]]:
        """The detections in each picture of a data set, with boxes in pixels of the original, and the image ids."""
        loader = DetectionLoader(dataset, batch_size, self.normalize, steps=self.step)
        return self.in_batches(progress.over(loader, len(dataset), "detection"))

    def in_batches(self, batches: Iterable[DetectionBatch]) -> tuple[list[Found], list[int]]:
        found: list[Found] = []
        image_ids: list[int] = []
        for images, mask, targets in batches:
            found += self._found(images, mask, [target["orig_size"] for target in targets])
            image_ids += [target["image_id"] for target in targets]
        return found, image_ids

    def _found(self, images: Any, mask: Any, sizes: Sequence[tuple[int, int]]) -> list[Found]:
        with no_grad(), np.errstate(all="ignore"):      # `results_of` raises an error for values that are not finite
            outputs = self.model(images, mask=mask if mask.any() else None)     # as in validation: the same numbers
            return postprocess(outputs, sizes, focal=self.model.config.focal)


def encoder_tokens(config: Any, size: tuple[int, int]) -> int:
    """Number of tokens in a DETR's encoder for an image (H, W). config: the configuration of the model."""
    return math.prod(map_size(config, size))


def map_size(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """The size (H, W) of the backbone's last feature map, which the encoder is given, for an image of size (H, W)."""
    stride = 2 ** (config.stages + 1) // (2 if config.dilation else 1)
    return -(-size[0] // stride), -(-size[1] // stride)     # each halving rounds up


def open_detector(
    path: str | Path, name: str | None = None, labels: str | Path | None = None, *, entry: str | None = None,
    label_order: str | None = None,
) -> Detector:
    """Open a detector: a checkpoint of `scratchvit detect-train`, or third-party weights.

    name: name of the model for third-party weights, if they have no config.json. labels: file of class names, see
    `weights.labels.read_labels`; label_order: of the names of a folder. entry: which weights of a file with several.
    Raises ScratchvitError for a file that cannot be read or is not a detector.
    """
    # Unreadable files go to the reader of weights, which says what is wrong with them.
    source = _from_run if is_checkpoint(path) else _from_weights
    return source(Path(path), name, labels, entry, label_order)


def _from_run(
    path: Path, name: str | None, labels: str | Path | None, entry: str | None, label_order: str | None
) -> Detector:
    if name is not None:
        raise ScratchvitError(f"{path} is a checkpoint and says which model it is: leave out --model")
    model: Any
    model, checkpoint = model_from_checkpoint(path, entry=entry)
    check_detects(checkpoint.model_name, model.config)
    about = checkpoint.data
    try:
        classes, classes_from = list(about["classes"]), f"names from {about['name']}"
        category_ids = tuple(map(int, about["category_ids"]))
        sizes = Sizes(about["short_side"], about["longest"] or None)
        normalize = Normalize(about["mean"], about["std"])
    except (KeyError, TypeError, ValueError) as error:
        raise ScratchvitError(f"{path} does not say what it was trained on ({error!r}): use another file") from error
    if not len(classes) == len(category_ids) == model.config.num_classes:
        raise ScratchvitError(
            f"{path} has {model.config.num_classes} classes, {len(classes)} names and {len(category_ids)} ids: use "
            "another file"
        )
    if labels is not None:
        classes, classes_from = class_names(len(classes), labels, order=label_order or "torchvision")
    return Detector(
        model, checkpoint.model_name, tuple(classes), category_ids, classes_from, normalize, sizes,
        f"{sizes}, as in training", checkpoint=checkpoint,
    )


def _from_weights(
    path: Path, name: str | None, labels: str | Path | None, entry: str | None, label_order: str | None
) -> Detector:
    model: Any
    model, name, report = open_model(path, name, entry=entry)
    config = model.config
    check_detects(name, config)
    if config.in_chans != 3:
        raise ScratchvitError(f"{path} takes images of {config.in_chans} channels: detection reads pictures as RGB (3)")
    classes, classes_from = class_names(config.num_classes, labels, path, label_order)
    sizes, normalize, source = _preprocessing(path, config)
    return Detector(
        model, name, tuple(classes), tuple(range(len(classes))), classes_from, normalize, sizes,
        f"{sizes} ({source})", tuple(str(report).splitlines()),
    )


# --- preprocessing of third-party weights ---------------------------------------------------------------------------


def pixels_of(weights: str | Path) -> Normalize:
    """The normalisation for third-party weights: that of the configuration in their folder, or ImageNet's.

    It is Hugging Face's preprocessor_config.json, or timm's config.json of a classifier that becomes a backbone. Raises
    ScratchvitError for an invalid file.
    """
    if found := _followed(weights, _normalize):
        return found
    architecture = (read_config(folder_of(Path(weights)) / "config.json") or {}).get("architecture")
    if isinstance(architecture, str):
        of_classifier = preprocessing_for(architecture.partition(".")[0], weights, in_chans=3, owner="timm")
        return Normalize(of_classifier.mean, of_classifier.std)
    return Normalize(**IMAGENET)


def _preprocessing(weights: Path, config: Any) -> tuple[Sizes, Normalize, str]:
    """(sizes, normalisation, source) from preprocessor_config.json in the folder of the weights or the paper (§A.4)."""
    normalize, sizes = pixels_of(weights), _followed(weights, _sizes)
    if sizes is not None:
        return sizes, normalize, str(_file_beside(weights))
    short = min(pair(config.img_size))
    return Sizes(short, round(short * 5 / 3)), normalize, "the convention for DETR"


def _file_beside(weights: str | Path) -> Path:
    return folder_of(Path(weights)) / "preprocessor_config.json"


def _followed(weights: str | Path, read: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Apply `read` to the DetrImageProcessor configuration in the folder of the weights; None if there is no file."""
    config = read_config(file := _file_beside(weights))
    if config is None:
        return None
    try:
        return read(_HUGGINGFACE | {key: value for key, value in config.items() if value is not None})
    except (ScratchvitError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ScratchvitError(f"{file} cannot be used ({error}): correct it or move it away") from error


def _normalize(given: Mapping[str, Any]) -> Normalize:
    mean, std = (given["image_mean"], given["image_std"]) if given["do_normalize"] else ((0.0,) * 3, (1.0,) * 3)
    unit = 255 * given["rescale_factor"] if given["do_rescale"] else 255     # Normalize uses pixels from 0 to 1
    return Normalize([m / unit for m in mean], [s / unit for s in std])


def _sizes(given: Mapping[str, Any]) -> Sizes:
    if not given["do_resize"]:
        return Sizes()
    if given["resample"] != Image.Resampling.BILINEAR:
        raise ScratchvitError(f"its resample is {given['resample']}; only bilinear (2) is supported")
    size = given["size"]
    if isinstance(size, int):       # old form, of the first DETRs
        return Sizes(size, given["max_size"])
    if set(size) == {"height", "width"}:
        return Sizes(exact=(size["height"], size["width"]))
    if "shortest_edge" in size and set(size) <= {"shortest_edge", "longest_edge"}:
        return Sizes(size["shortest_edge"], size.get("longest_edge"))
    raise ScratchvitError(
        f"a size with {', '.join(map(str, size))} is not supported; shortest_edge and longest_edge are"
    )


_HUGGINGFACE: dict[str, Any] = {        # defaults of the file
    "size": {"shortest_edge": 800, "longest_edge": 1333}, "max_size": 1333, "resample": Image.Resampling.BILINEAR,
    "image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"], "rescale_factor": 1 / 255,
    "do_resize": True, "do_rescale": True, "do_normalize": True,
}


# --- matching the classes of a detector with those of annotations ---------------------------------------------------


def matching_categories(
    classes: Sequence[str], category_ids: Sequence[int], detector: Detector, where: str
) -> list[int | None]:
    """The category id in the annotations for each class of the detector, by name; None if they do not have the class.

    classes, category_ids: those of the annotations; where: their name. Raises ScratchvitError if no name is the same.
    """
    if tuple(classes) == detector.classes:      # by index, as names may occur twice
        return [*category_ids]
    by_name = dict(zip(classes, category_ids))
    matched = [by_name.get(name) for name in detector.classes]
    if all(category is None for category in matched):
        raise ScratchvitError(
            f"{where} has none of the classes of {detector.name}: it has {listed(classes, 5)}, the model "
            f"{listed(detector.classes, 5)}; classes are matched by name, and --labels FILE names those of the model"
        )
    return matched


def results_in(
    found: Sequence[Found], image_ids: Sequence[int], categories: Sequence[int | None]
) -> list[Entry]:
    """Detections in COCO's results format, with these category ids; those without a category (None) are left out."""
    known = np.array([category is not None for category in categories])
    kept = [{key: values[known[one["labels"]]] for key, values in one.items()} for one in found]
    return results_of(kept, image_ids, [-1 if category is None else category for category in categories])
