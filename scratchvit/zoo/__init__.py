"""The trained models of the package, with what a program needs to use them on pictures.

    trained = zoo.load("vit_digits")
    image = trained.prepare(picture)                            # a Pillow image → float32 (C, H, W)
    chances = trained.opened.probabilities(image[None])         # (1, classes)
    print(trained.classes[chances[0].argmax()], trained.card.quality)

    found, = zoo.load("detr_scenes").opened.in_pictures([scene])    # boxes, labels and scores

This folder has a file of weights and a card for each; `weights.pretrained` reads both, and docs/zoo.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit.detection.detector import Detector, open_detector
from scratchvit.training.classification.classifier import Classifier, open_classifier
from scratchvit.weights.pretrained import Card, card_of, checked_file, trained

__all__ = ["Card", "Trained", "card_of", "load", "trained"]


@dataclass(frozen=True)
class Trained:
    """A trained model of the package.

    card        what it was trained on, how, and how good it is
    opened      what `scratchvit predict` or `detect` makes of a run: the model, its classes and its preprocessing
    """

    card: Card
    opened: Classifier | Detector

    @property
    def model(self) -> Any:
        """The model, in evaluation mode."""
        return self.opened.model

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; a label is an index into them."""
        return self.opened.classes

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """A picture of any size and mode as the model is given it, float32 (C, H, W)."""
        return self.opened.prepare(picture)


def load(name: str) -> Trained:
    """Load a trained model of the package; each call makes a new one.

    Raises ScratchvitError for a name that none has, and for a file that was changed.
    """
    card, path = card_of(name), checked_file(name)
    return Trained(card, open_detector(path) if card.task == "detection" else open_classifier(path))
