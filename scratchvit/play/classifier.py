"""What the page of a classifier shows: the model, and for a picture its patches, its attention and the answer.

    page = ClassifierPage(open_classifier("runs/NAME"))
    page.model()                    # what does not change
    page.see(picture)               # a Pillow image → what the model makes of it

Both are dictionaries that JSON can hold. `routes` are the questions of the page about them.
"""

from __future__ import annotations

import base64
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from scratchvit import data
from scratchvit.data.images import decode_image, to_picture
from scratchvit.errors import ScratchvitError
from scratchvit.models.interface import PatchModel
from scratchvit.ops import softmax
from scratchvit.play import drawing
from scratchvit.play.attention import (
    MOST_SENT,
    answer_and_attention,
    attention_for_page,
    layers_of,
    numbers_of,
    packed,
    rollout_for_page,
    tokens_of,
)
from scratchvit.play.server import Question, Routes
from scratchvit.recording import no_grad
from scratchvit.training.classification.classifier import Classifier

OF_EACH = 2         # test pictures of each class that can be chosen
PREFIX = ("class token", "distillation token")


class ClassifierPage:
    """A classifier, and what its page asks. title: what the reader calls it, such as the name of its run."""

    def __init__(self, classifier: Classifier, title: str = ""):
        self.classifier, self.title = classifier, title or classifier.name
        self.data_name = classifier.checkpoint.data["name"] if classifier.checkpoint else ""
        self.layers, self.without = layers_of(classifier.model)
        self.draw = drawing.STYLES.get(self.data_name, drawing.as_drawn)
        # Preprocessing is affine in the pixels, whatever its settings. So what it makes of black and of white says all,
        # in the middle of the image: some settings add a border.
        black, white = (classifier.prepare(Image.new("L", (64, 64), grey)) for grey in (0, 255))
        _, height, width = black.shape
        self._black, self._white = (x[:, height // 2, width // 2, None, None] for x in (black, white))      # (C, 1, 1)

    def model(self) -> dict[str, Any]:
        """The model, as far as it is the same for all pictures."""
        model, classifier = self.classifier.model, self.classifier
        name = classifier.name if self.title == classifier.name else f"{self.title}: {classifier.name}"
        grid = model.patch_embed.grid_size if isinstance(model, PatchModel) else None
        if grid is None and self.layers:        # MViT, which has its grid under another name
            grid = self.layers[0].queries
        parameters, classes = sum(parameter.size for parameter in model.parameters()), len(classifier.classes)
        return {
            "kind": "classifier", "name": self.title,
            "about": f"{name} with {parameters:,} parameters and {classes:,} classes",
            "classes": classifier.classes, "prepares": classifier.prepares, "pen": drawing.PEN,
            "redrawn": self.draw is not drawing.as_drawn,
            "grid": grid and list(grid[-2:]),
            "prefix": PREFIX[: self.layers[0].prefix] if self.layers else [],
            "layers": [layer.described() for layer in self.layers], "without": self.without,
            "mean_of_heads": numbers_of(self.layers) > MOST_SENT,
            "examples": [
                {"label": classifier.classes[label], "picture": pixels_of(picture)} for picture, label in self.examples
            ],
        }

    @functools.cached_property
    def examples(self) -> list[tuple[NDArray[np.uint8], int]]:
        """(picture uint8 (H, W, C), label) of digits that the model was not trained on; none for other data."""
        if self.data_name != "digits":
            return []
        try:
            test = data.load("digits").test
        except ScratchvitError:         # scikit-learn is not installed: one can draw without it
            return []
        chosen = np.concatenate([np.flatnonzero(test.labels == label)[:OF_EACH] for label in range(len(test.classes))])
        return list(zip(test.images(chosen), test.labels[chosen].tolist()))

    def see(self, picture: Image.Image) -> dict[str, Any]:
        """What the model makes of a picture. Raises ScratchvitError if its logits are not finite."""
        classifier = self.classifier
        image = classifier.prepare(picture)
        with no_grad(), np.errstate(all="ignore"):      # what is not finite raises an error below
            logits, maps = answer_and_attention(classifier.model, image, self.layers)
            if not np.isfinite(logits).all():
                raise ScratchvitError(f"the outputs of {classifier.name} are not finite; its weights are damaged")
            probabilities = softmax(logits).numpy()
            tokens = tokens_of(classifier.model, image)
            return {
                "picture": pixels_of(self.shown(image)), "logits": logits.tolist(),
                "probabilities": probabilities.tolist(),
                "attention": attention_for_page(self.layers, maps),
                "rollout": rollout_for_page(classifier.model, maps),
                "tokens": None if tokens is None else packed(tokens),
            }

    def shown(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The prepared image (C, H, W) as a picture uint8 (H, W, C)."""
        shares = (image - self._black) / (self._white - self._black)
        return np.rint(shares.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)

    def routes(self) -> Routes:
        """The questions of the page: the model; and see, about strokes (JSON), a picture file, or ?example=NUMBER."""
        def strokes(question: Question) -> dict[str, Any]:
            return self.see(self.draw(drawing.read_strokes(question.body)))

        def picture(question: Question) -> dict[str, Any]:
            opened = decode_image(question.body)
            return self.see(ImageOps.invert(opened) if question.number("inverted", 0) else opened)

        def example(question: Question) -> dict[str, Any]:
            number = question.number("number", 0)
            if not 0 <= number < len(self.examples):
                raise ScratchvitError(f"there is no example {number}: there are {len(self.examples)}")
            return self.see(to_picture(self.examples[number][0]))

        return {
            "GET model": lambda question: self.model(), "POST strokes": strokes, "POST picture": picture,
            "GET example": example,
        }


def pixels_of(picture: NDArray[np.uint8]) -> dict[str, Any]:
    """A picture uint8 (H, W, C) for JSON: its shape, and its bytes in base64."""
    return {"shape": picture.shape, "bytes": base64.b64encode(picture.tobytes()).decode()}
