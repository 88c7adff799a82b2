"""Evaluation of detections: COCO's average precision (AP) and average recall (AR), computed by pycocotools.

For one class and one IoU threshold t, the detections of all images are taken in order of score. Each is matched with an
object that is not yet matched and that it overlaps with IoU ≥ t; without one it is a false positive. This gives a curve
of precision over recall, and its mean at 101 recalls is the average precision. COCO's figures (cocodataset.org,
"Detection Evaluation") are means over classes:

    AP                  mean over t = 0.50, 0.55, … 0.95        AR1, AR10, AR100    largest recall, mean over t, with
    AP50, AP75          t = 0.50, t = 0.75                                          1, 10, 100 detections per image
    APs, APm, APl       small, medium and large objects         ARs, ARm, ARl       AR100 by size of the objects
                        (area under 32², to 96², above)

Detections in a crowd box (iscrowd = 1) are ignored: they are neither right nor wrong.
"""

from __future__ import annotations

import contextlib
import io
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from scratchvit.detection.data.reading import read_json
from scratchvit.errors import ScratchvitError, is_installed, missing
from scratchvit.files import write_atomically

Entry = dict[str, Any]

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")    # COCOeval's order


@dataclass(frozen=True)
class ClassFigures:
    """The figures of one class and its number of objects, without crowds. AP is None if the class has no objects."""

    name: str
    category_id: int
    objects: int
    AP: float | None
    AP50: float | None


@dataclass(frozen=True)
class CocoFigures:
    """COCO's twelve figures, 0 … 1, each None if there are no objects, and the figures of each class by category id.

    `rows` and `class_rows` are the cells of two tables, with the header first.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    ARs: float | None
    ARm: float | None
    ARl: float | None
    classes: tuple[ClassFigures, ...]

    @classmethod
    def unknown(cls) -> Self:
        """The figures where pycocotools is not installed: each None, and no classes."""
        return cls(None, None, None, None, None, None, None, None, None, None, None, None, ())

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From their `dataclasses.asdict`, which may have passed through JSON."""
        return cls(**{**values, "classes": tuple(ClassFigures(**each) for each in values["classes"])})

    def rows(self) -> list[list[str]]:
        return [
            ["", "all", "small", "medium", "large"],
            ["AP", *map(_shown, (self.AP, self.APs, self.APm, self.APl))],
            ["AP50", _shown(self.AP50), "", "", ""],
            ["AP75", _shown(self.AP75), "", "", ""],
            ["AR1", _shown(self.AR1), "", "", ""],
            ["AR10", _shown(self.AR10), "", "", ""],
            ["AR100", *map(_shown, (self.AR100, self.ARs, self.ARm, self.ARl))],
        ]

    def class_rows(self) -> list[list[str]]:
        each = ([one.name, str(one.objects), _shown(one.AP), _shown(one.AP50)] for one in self.classes)
        return [["class", "objects", "AP", "AP50"], *each]


def _shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.3f}"


# --- results in COCO's format ---------------------------------------------------------------------------------------


def results_of(
    detections: Sequence[Mapping[str, np.ndarray]], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[Entry]:
    """Convert detections to COCO's results format: a list of {"image_id", "category_id", "bbox", "score"}.

    detections: as returned by `postprocess`, for each image {"scores" (n,), "labels" (n,), "boxes" (n, 4) left, top,
    right, bottom in its pixels}. category_ids: category id of each label. bbox: left, top, width and height.
    Raises ScratchvitError for numbers that are not finite, which a model gives after it has diverged.
    """
    results = []
    for found, image_id in zip(detections, image_ids, strict=True):
        scores, boxes = np.asarray(found["scores"], np.float64), np.asarray(found["boxes"], np.float64)
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise ScratchvitError(
                f"image {image_id}: the scores or boxes are not finite because training has diverged; use an earlier "
                "checkpoint, or train with a lower learning rate"
            )
        left_top, right_bottom = boxes[:, :2], boxes[:, 2:]
        xywh = np.hstack([left_top, right_bottom - left_top])
        labels = np.asarray(found["labels"])
        for label, score, bbox in zip(labels.tolist(), scores.tolist(), xywh.tolist(), strict=True):
            category = int(category_ids[label])
            results.append({"image_id": int(image_id), "category_id": category, "bbox": bbox, "score": score})
    return results


def write_results(path: str | Path, results: Sequence[Entry]) -> None:
    """Write COCO's results as JSON, one detection per line. Raises ScratchvitError if the file cannot be written."""
    lines = ",\n".join(json.dumps(entry, allow_nan=False) for entry in results)
    write_atomically(Path(path), f"[\n{lines}\n]\n".encode())


# --- evaluation -----------------------------------------------------------------------------------------------------


def can_evaluate() -> bool:
    """Whether pycocotools is installed."""
    return is_installed("pycocotools")


def evaluate_boxes(
    ground_truth: Mapping[str, Any] | str | Path, results: Sequence[Mapping[str, Any]] | str | Path
) -> CocoFigures:
    """COCO's figures of detection results over all images of the ground truth. Both can be objects or JSON files.

    ground_truth: COCO annotations, see `DetectionDataset.ground_truth`. An annotation without an area gets that of its
    box; one without iscrowd is not a crowd. Ids of annotations are ignored, since pycocotools treats a match with id 0
    as no match.
    results: in COCO's results format, see `results_of`; may be empty.
    Raises ScratchvitError for a file that cannot be read, for a bad entry, and without pycocotools: see `can_evaluate`.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise missing("average precision is computed by pycocotools", "pycocotools") from error
    truth = _checked_truth(ground_truth)
    entries = _checked_results(results, truth)

    def coco(content: Entry) -> Any:
        api = COCO()
        api.dataset = content
        api.createIndex()
        return api

    with contextlib.redirect_stdout(io.StringIO()):     # pycocotools prints its progress
        expected = coco(truth)
        # loadRes does not accept an empty list.
        found = expected.loadRes(entries) if entries else coco({**truth, "annotations": []})
        evaluation = COCOeval(expected, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return CocoFigures(**dict(zip(STATS, map(_figure, evaluation.stats))), classes=_each_class(evaluation, truth))


def _figure(value: float) -> float | None:
    return None if value == -1 else float(value)


def _each_class(evaluation: Any, truth: Entry) -> tuple[ClassFigures, ...]:
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    images = {entry["id"] for entry in truth["images"]}
    objects = dict.fromkeys(names, 0)
    for entry in truth["annotations"]:
        if entry["image_id"] in images and entry["category_id"] in objects and not entry["iscrowd"]:
            objects[entry["category_id"]] += 1
    # (thresholds, recalls, classes) of all sizes and 100 detections; -1 where a class has no objects
    precision = evaluation.eval["precision"][..., 0, -1]
    return tuple(
        ClassFigures(
            names[number], int(number), objects[number],
            _figure(precision[:, :, k].mean()), _figure(precision[0, :, k].mean()),
        )
        for k, number in enumerate(evaluation.params.catIds)
    )


# --- checking files -------------------------------------------------------------------------------------------------


def _checked_truth(given: Mapping[str, Any] | str | Path) -> Entry:
    """The checked ground truth, with copies of the annotations, because pycocotools writes into them."""
    name, content = _content(given, "ground truth")
    needed = {"images": ("id",), "categories": ("id", "name"), "annotations": ("image_id", "category_id")}
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in needed):
        raise ScratchvitError(
            f"{name}: expected COCO annotations, an object with the lists images, annotations and categories"
        )
    for key, keys in needed.items():
        for place, entry in enumerate(content[key]):
            _check_keys(f"{name}: {key}[{place}]", entry, keys)
    annotations = []
    for place, entry in enumerate(content["annotations"]):
        _check_box(f"{name}: annotations[{place}]", entry)
        area = entry.get("area")
        area = area if _is_finite(area) else entry["bbox"][2] * entry["bbox"][3]
        annotations.append({**entry, "id": place + 1, "area": area, "iscrowd": int(entry.get("iscrowd") == 1)})
    return {"images": content["images"], "annotations": annotations, "categories": content["categories"]}


def _checked_results(given: Sequence[Mapping[str, Any]] | str | Path, truth: Entry) -> list[Entry]:
    """The checked results, with the relevant keys in new dicts, because pycocotools writes into them."""
    name, content = _content(given, "results")
    if not isinstance(content, Sequence):
        raise ScratchvitError(f"{name}: expected COCO results, a list of {{image_id, category_id, bbox, score}}")
    images = {entry["id"] for entry in truth["images"]}
    categories = {entry["id"] for entry in truth["categories"]}
    keys = ("image_id", "category_id", "bbox", "score")
    for place, entry in enumerate(content):
        where = f"{name}: results[{place}]"
        _check_keys(where, entry, keys)
        if entry["image_id"] not in images:
            raise ScratchvitError(
                f"{where}: the ground truth has no image with the id {entry['image_id']}; evaluate results with the "
                "annotations of their own images"
            )
        if entry["category_id"] not in categories:
            raise ScratchvitError(
                f"{where}: the ground truth has no category with the id {entry['category_id']}, only "
                f"{reprlib.repr(sorted(categories))}; use the ids of the annotation file, not labels from 0"
            )
        if not _is_finite(entry["score"]):
            raise ScratchvitError(f"{where}: score is {reprlib.repr(entry['score'])}, expected a finite number")
        _check_box(where, entry)
    return [{key: entry[key] for key in keys} for entry in content]


def _content(given: Any, what: str) -> tuple[str, Any]:
    """(name for error messages, content) of an object or a JSON file."""
    if not isinstance(given, str | Path):
        return f"the {what}", given
    return str(given), read_json(Path(given), f"{what} file", "write")


def _check_keys(where: str, entry: Any, keys: tuple[str, ...]) -> None:
    """Raise ScratchvitError unless the entry has all keys, with integers as ids."""
    if not isinstance(entry, Mapping) or any(key not in entry for key in keys):
        raise ScratchvitError(f"{where} is {reprlib.repr(entry)}, expected an object with {', '.join(keys)}")
    for key in keys:
        if key.endswith("id") and (not isinstance(entry[key], int | np.integer) or isinstance(entry[key], bool)):
            raise ScratchvitError(f"{where}: {key} is {reprlib.repr(entry[key])}, expected an integer")


def _check_box(where: str, entry: Mapping[str, Any]) -> None:
    box = entry.get("bbox")
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_finite, box)):
        raise ScratchvitError(
            f"{where}: bbox is {reprlib.repr(box)}, expected four finite numbers: left, top, width, height"
        )
    if box[2] < 0 or box[3] < 0:
        raise ScratchvitError(
            f"{where}: bbox {reprlib.repr(box)} has a negative size; expected left, top, width, height, not corners"
        )


def _is_finite(thing: Any) -> bool:
    # JSON integers can be too large for a float; comparisons with NaN are False.
    is_number = isinstance(thing, int | float | np.integer | np.floating) and not isinstance(thing, bool)
    return is_number and abs(thing) < 1 << 53
