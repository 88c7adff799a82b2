"""What the page of a detector shows: for a scene of digits or a picture, boxes, the matching, and attention.

    scene (JSON) → picture and true boxes → DETR → for every decoder layer: boxes, classes, scores, the matching with
                                                   its costs; cross-attention of each query; the encoder's attention

Everything is computed by what training, evaluation and `scratchvit inspect` use, in one pass of the model. The answer
to a scene or a picture is this JSON; boxes are [left, top, right, bottom] in 0 … 1 of the picture:

    picture     what the model sees, after resizing: see `pixels_of`
    scene       the scene with all of its numbers, see play/scenes.py; null for a picture
    objects     [{"label", "name", "box"}]: the true boxes; null for a picture, of which they are not known
    matchable   the objects whose class the model has: indices into `objects`, one for each row of the costs below
    note        why there is no matching, or why not of all objects; null if there is nothing to say
    start       (N, 4): the boxes that the queries start from, before the first decoder layer; null for DETR, whose
                queries are no boxes
    layers      for every decoder layer with predictions, the last one of which is the model's answer:
                  number        of the layer, from 1
                  boxes, labels, scores     of each of the N queries, of its most probable class
                  nothing       probability of "no object" of each query; null with focal loss, which has none
                  detections    [{"query", "label", "score", "box"}] of `postprocess`, best first
                  matching      {"queries": the query of each row, -1 for none; "costs": {"total", "class", "bbox",
                                "giou"}, (rows, N) each}; null if nothing can be matched
    cross       the decoder's cross-attention, `packed`: (L, heads, N, H·W); if that is more than MOST_NUMBERS, its mean
                over heads, (L, 1, N, H·W)
    encoder     the encoder's self-attention, the mean over heads, `packed`: (layers, H·W, H·W), for each feature where
                it looks; null if there is no encoder, or more than MOST_NUMBERS
    size        [H, W] of the feature map
    milliseconds    how long all of it took
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit.backend import asnumpy
from scratchvit.data.images import decode_image
from scratchvit.detection.boxes import box_cxcywh_to_xyxy
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.annotations import Annotations, Target
from scratchvit.detection.data.scenes import MOST_DIGITS, Scenes, load_scenes
from scratchvit.detection.data.transforms import View
from scratchvit.detection.detector import Detector, encoder_tokens
from scratchvit.detection.matcher import HungarianMatcher, Objects
from scratchvit.detection.postprocess import class_probabilities, postprocess
from scratchvit.detection.task import make_criterion
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, listed
from scratchvit.inspect.detection import Inside, Matching, as_seen, look_inside, matchings_of_layers
from scratchvit.models.dab_detr import DABDETR
from scratchvit.play import scenes as described_scenes
from scratchvit.play.attention import packed
from scratchvit.play.classifier import pixels_of
from scratchvit.play.server import Question, Routes

MOST_TOKENS = 1_400         # of a picture of one's own: DETR's 25 × 42 for 800 × 1333 pixels, and room
MOST_NUMBERS = 1 << 20      # of the maps of all heads, and of those of the encoder
DIGITS = 5                  # decimals of the numbers that are sent


@dataclass(frozen=True)
class DetectorPage:
    """The page of a detector.

    title       what the reader calls it, such as the name of its run
    matcher     that of the run, or of the paper for third-party weights
    scenes      the test scenes; None without scikit-learn, whose digits they are made of
    no_scenes   the sentence about that
    """

    detector: Detector
    title: str
    matcher: HungarianMatcher
    scenes: Scenes | None
    no_scenes: str = ""

    @classmethod
    def of(cls, detector: Detector, title: str = "") -> DetectorPage:
        settings = detector.checkpoint.config if detector.checkpoint else {}
        costs = {name: settings[name] for name in ("cost_class", "cost_bbox", "cost_giou") if name in settings}
        matcher = make_criterion(DetectConfig(**costs), detector.model).matcher
        try:
            scenes = load_scenes().test
        except ScratchvitError as error:
            return cls(detector, title or detector.name, matcher, None, str(error))
        assert isinstance(scenes, Scenes)
        return cls(detector, title or detector.name, matcher, scenes)

    def about(self) -> dict[str, Any]:
        """What the page asks first."""
        detector, config = self.detector, self.detector.model.config
        layers = f"{counted(config.enc_layers, 'encoder layer')}, {counted(config.dec_layers, 'decoder layer')}"
        queries = counted(config.num_queries, "query", "queries")
        name = detector.name if self.title == detector.name else f"{self.title}: {detector.name}"
        return {
            "kind": "detector", "name": self.title,
            "about": f"{name} with {queries}, {layers}; finds {listed(detector.classes, 10)}",
            "classes": detector.classes, "encoder_layers": config.enc_layers, "layers": config.dec_layers,
            "heads": config.nheads, "focal": config.focal, "two_stage": getattr(config, "two_stage", False),
            "pictures": detector.prepares, "side": self._usual_side(),
            "weights": {name: getattr(self.matcher, f"cost_{name}") for name in ("class", "bbox", "giou")},
            "scenes": None if self.scenes is None else {
                "side": self.scenes.img_size, "count": len(self.scenes), "most_digits": MOST_DIGITS,
                "ranges": described_scenes.RANGES,
            },
            "no_scenes": self.no_scenes,
        }

    def _usual_side(self) -> int:
        """The shorter side that the page proposes for a picture; 0: as in training.

        Scenes have one size, in which digits have those of training; a photograph has any.
        """
        about = self.detector.checkpoint.data if self.detector.checkpoint else {}
        is_of_scenes = str(about.get("name", "")).startswith("scenes") and not about.get("short_side")
        return self.scenes.img_size if self.scenes and is_of_scenes else 0

    def scene(self, number: int) -> dict[str, Any]:
        """Test scene `number`, as JSON. Raises ScratchvitError if there is none."""
        return described_scenes.described(described_scenes.generated(self._scenes(), number))

    def of_scene(self, given: Any) -> dict[str, Any]:
        """The answer to a scene in JSON. Raises ScratchvitError as `scenes.read` does."""
        scene = described_scenes.read(self._scenes(), given)
        picture, annotations = described_scenes.painted(self._scenes(), scene)
        return self._answer(picture, annotations) | {"scene": described_scenes.described(scene)}

    def of_picture(self, picture: Image.Image, side: int = 0) -> dict[str, Any]:
        """The answer to an RGB picture, of which the true boxes are not known.

        side: its shorter side is resized to this many pixels; 0: as in training. A picture with more than MOST_TOKENS
        features is reduced further. Raises ScratchvitError for sides out of range.
        """
        detector = self.detector.at(side) if side else self.detector

        def step(view: View, rng: np.random.Generator) -> View:
            view = detector.step(view, rng)
            while (tokens := encoder_tokens(detector.model.config, view.size)) > MOST_TOKENS:
                view = view.resized(*(max(1, int(length * math.sqrt(MOST_TOKENS / tokens))) for length in view.size))
            return view

        reduced = dataclasses.replace(self, detector=dataclasses.replace(detector, step=step))
        return reduced._answer(picture, None) | {"scene": None}

    def _scenes(self) -> Scenes:
        if self.scenes is None:
            raise ScratchvitError(self.no_scenes)
        return self.scenes

    def _answer(self, picture: Image.Image, truth: Annotations | None) -> dict[str, Any]:
        started = time.perf_counter()
        pixels, image = as_seen(self.detector, picture)
        inside = look_inside(self.detector.model, image)
        layers = [*inside.outputs["aux_outputs"], inside.outputs]
        objects, target, note = self._truth(truth, picture)
        matchings: Sequence[Matching | None] = [None] * len(layers)
        if target is not None:
            of_images = matchings_of_layers(layers, self.matcher, Objects.of([target], len(self.detector.classes)))
            matchings = [matching for (matching,) in of_images]
        first = self.detector.model.config.dec_layers - len(layers) + 1
        answer = {
            "picture": pixels_of(pixels), "objects": objects, "note": note,
            "matchable": None if target is None else target["objects"],
            "start": self._start(inside),
            "layers": [
                {"number": number} | self._layer(outputs, matching)
                for number, (outputs, matching) in enumerate(zip(layers, matchings, strict=True), first)
            ],
            "cross": _cross(inside.cross), "encoder": _encoder(inside.encoder), "size": inside.size,
        }
        return answer | {"milliseconds": round(1000 * (time.perf_counter() - started), 1)}

    def _truth(
        self, truth: Annotations | None, picture: Image.Image
    ) -> tuple[list[dict[str, Any]] | None, Target | None, str | None]:
        """(the objects, the target for the matcher with the indices of its objects, a sentence)."""
        if truth is None:
            return None, None, "The true boxes of this picture are not known, so nothing is matched."
        names = [self._scenes().classes[label] for label in truth.labels.tolist()]
        target = truth.target(self.detector.view((picture.height, picture.width)))
        boxes = box_cxcywh_to_xyxy(target["boxes"])
        known = {name: label for label, name in enumerate(self.detector.classes)}
        objects = [
            {"label": known.get(name), "name": name, "box": _rounded(box)}
            for name, box in zip(names, boxes, strict=True)
        ]
        kept = [place for place, each in enumerate(objects) if each["label"] is not None]
        others = sorted({each["name"] for each in objects if each["label"] is None})
        note = f"The model has no class {listed(others, 10)}, so these digits are not matched." if others else None
        if not kept:
            return objects, None, note or "The scene has no digits, so nothing is matched."
        labels = np.array([objects[place]["label"] for place in kept], np.int64)
        return objects, {"labels": labels, "boxes": target["boxes"][kept], "objects": kept}, note

    def _start(self, inside: Inside) -> list[list[float]] | None:
        model, queries = self.detector.model, inside.outputs["pred_boxes"].shape[1]
        if not isinstance(model, DABDETR):
            return None
        return _rounded(box_cxcywh_to_xyxy(asnumpy(model.anchors(1, queries, inside.outputs).data)[0]))

    def _layer(self, outputs: Mapping[str, Any], matching: Matching | None) -> dict[str, Any]:
        """What one decoder layer says, {"pred_logits" (1, N, num_logits), "pred_boxes" (1, N, 4)}."""
        focal = self.detector.model.config.focal
        probabilities = class_probabilities(asnumpy(outputs["pred_logits"].data)[0], focal)     # (N, classes)
        (found,) = postprocess(outputs, [(1, 1)], focal)
        best = np.argsort(-found["scores"], kind="stable").tolist()
        costs = None if matching is None else {
            name: _rounded(part) for name, part in {"total": matching.costs, **matching.parts}.items()
        }
        return {
            "boxes": _rounded(box_cxcywh_to_xyxy(asnumpy(outputs["pred_boxes"].data)[0])),
            "labels": probabilities.argmax(axis=1).tolist(), "scores": _rounded(probabilities.max(axis=1)),
            "nothing": None if focal else _rounded(1 - probabilities.sum(axis=1)),
            "detections": [
                {"query": int(found["queries"][row]), "label": int(found["labels"][row]),
                 "score": _rounded(found["scores"][row]), "box": _rounded(found["boxes"][row])}
                for row in best
            ],
            "matching": None if matching is None else {"queries": matching.queries.tolist(), "costs": costs},
        }


def detector_routes(detector: Detector, title: str = "") -> Routes:
    """The questions that the page of a detector asks. title: see `DetectorPage`."""
    page = DetectorPage.of(detector, title)
    if page.scenes:     # SciPy's optimisers are imported now, and not while a reader waits for the first answer
        page.of_scene(page.scene(0))

    def of_scene(question: Question) -> dict[str, Any]:
        try:
            given = json.loads(question.body)
        except ValueError as error:
            raise ScratchvitError(f"the scene is not JSON ({error})") from None
        return page.of_scene(given)

    return {
        "GET model": lambda _: page.about(),
        "GET scene": lambda question: page.scene(question.number("number", 0)),
        "POST scene": of_scene,
        "POST picture": lambda question: page.of_picture(decode_image(question.body), question.number("side", 0)),
    }


def _cross(layers: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    if sum(maps.size for maps in layers) <= MOST_NUMBERS:
        return packed(np.stack(layers))
    return packed(np.stack([maps.mean(axis=0, keepdims=True) for maps in layers]))


def _encoder(layers: Sequence[NDArray[np.float32]]) -> dict[str, Any] | None:
    if not layers or sum(maps[0].size for maps in layers) > MOST_NUMBERS:
        return None
    return packed(np.stack([maps.mean(axis=0) for maps in layers]))


def _rounded(numbers: Any) -> Any:
    """An array as lists, or a number, with DIGITS decimals."""
    return np.asarray(numbers, np.float64).round(DIGITS).tolist()
