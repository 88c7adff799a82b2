"""Opening a trained classifier, from a checkpoint or third-party weights, and asking it about pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit.data import Normalize
from scratchvit.data.images import MODES, eight_bit, open_image, resize_image
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_classifies
from scratchvit.recording import no_grad
from scratchvit.training.checkpoint import Checkpoint, is_checkpoint, model_from_checkpoint
from scratchvit.training.classification.evaluate import answers_of
from scratchvit.weights.labels import class_names
from scratchvit.weights.load import open_model
from scratchvit.weights.preprocess import preprocessing_for


@dataclass(frozen=True)
class Classifier:
    """A trained model with its classes and preprocessing.

    classes         class names; a label is an index into them
    classes_from    where the names come from, as text
    prepare         a picture of any size and mode → what the model is given, float32 (C, H, W)
    prepares        how pictures are preprocessed, as text
    loading         how the weights were loaded, as text
    checkpoint      the checkpoint of a run; None for third-party weights
    """

    model: Any
    name: str
    classes: tuple[str, ...]
    classes_from: str
    prepare: Callable[[Image.Image], NDArray[np.float32]]
    prepares: str
    loading: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = field(default=None, repr=False)

    def read(self, path: str | Path) -> NDArray[np.float32]:
        """A picture file as the model is given it, float32 (C, H, W). Raises ScratchvitError as `open_image` does."""
        return self.prepare(open_image(path, self.model.config.in_chans))

    def probabilities(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """images (B, C, H, W), as `prepare` makes them → the probability of each class, float32 (B, classes).

        They are not finite if the weights are damaged.
        """
        with no_grad(), np.errstate(all="ignore"):
            return answers_of(self.model, images).softmax(-1).numpy()


def open_classifier(
    path: str | Path, name: str | None = None, labels: str | Path | None = None, *, entry: str | None = None,
    label_order: str | None = None, **sizes: Any,
) -> Classifier:
    """Open a classifier: a checkpoint of `scratchvit train`, or third-party weights.

    name: name of the model for third-party weights, if they have no config.json; sizes: options that replace its own.
    labels: file of class names, see `weights.labels.read_labels`; label_order: of the names of a folder. entry: which
    weights of a file with several. Raises ScratchvitError for a file that cannot be read or is not a classifier.
    """
    # Unreadable files go to the reader of weights, which says what is wrong with them.
    source = _from_run if is_checkpoint(path) else _from_weights
    return source(Path(path), name, labels, entry, label_order, sizes)


def _from_run(
    path: Path, name: str | None, labels: str | Path | None, entry: str | None, label_order: str | None,
    sizes: dict[str, Any],
) -> Classifier:
    """From a checkpoint, which says its model and how pictures were preprocessed in training."""
    for option in (*(["model"] if name is not None else []), *sizes):
        raise ScratchvitError(
            f"{path} is a checkpoint and says which model it is: leave out --{option.replace('_', '-')}"
        )
    model: Any
    model, checkpoint = model_from_checkpoint(path, entry=entry)
    check_classifies(checkpoint.model_name, model.config)
    about, num_classes = checkpoint.data, model.config.num_classes
    if not num_classes:
        raise ScratchvitError(f"{path} is a {checkpoint.model_name} without a classification head: use a classifier")
    classes, classes_from = class_names(num_classes, labels, order=label_order or "torchvision")
    if labels is None and len(about["classes"]) == num_classes:     # a head can be larger than the data
        classes, classes_from = about["classes"], f"names from {about['name']}"
    size, _, channels = about["image_shape"]
    normalize = Normalize(about["mean"], about["std"])

    def prepare(picture: Image.Image) -> NDArray[np.float32]:
        square = resize_image(eight_bit(picture, channels), size)
        return normalize(np.asarray(square).reshape(1, size, size, channels))[0]

    how = f"centre square to {size}×{size} (bicubic), as in training"
    return Classifier(
        model, checkpoint.model_name, tuple(classes), classes_from, prepare, how, checkpoint=checkpoint
    )


def _from_weights(
    path: Path, name: str | None, labels: str | Path | None, entry: str | None, label_order: str | None,
    sizes: dict[str, Any],
) -> Classifier:
    """From third-party weights and the files in their folder: model, preprocessing, class names."""
    model: Any
    model, name, report = open_model(path, name, entry=entry, **sizes)
    config = model.config
    check_classifies(name, config)
    if not config.num_classes:
        raise ScratchvitError(f"{path} has no classification head: use weights that were trained to classify")
    if config.in_chans not in MODES:
        raise ScratchvitError(
            f"{path} takes images of {config.in_chans} channels: picture files have 3 (RGB) or 1 (grey)"
        )
    prepare = preprocessing_for(name, path, config.img_size, config.in_chans, report.owner)
    classes, classes_from = class_names(config.num_classes, labels, path, label_order)
    how = f"{prepare} ({prepare.source})"
    return Classifier(model, name, tuple(classes), classes_from, prepare, how, tuple(str(report).splitlines()))
