"""`scratchvit detect`: finds objects in pictures and writes them as drawings, a table, and COCO results."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from scratchvit.cli._detector import RUN, add_detector, print_detector
from scratchvit.cli._options import Parser, add_device, add_run_and_images, number, positive, run_and_images
from scratchvit.cli._output import note_result
from scratchvit.cli._precision import add_precision, precision_text
from scratchvit.cli._text import filled, table
from scratchvit.data.folder import SUFFIXES
from scratchvit.data.images import open_image, without_advice
from scratchvit.detection.data.coco import read_image_ids
from scratchvit.detection.detector import (
    MANY_TOKENS,
    Detector,
    Found,
    matching_categories,
    open_detector,
    results_in,
)
from scratchvit.detection.draw_boxes import draw_boxes
from scratchvit.detection.evaluation import write_results
from scratchvit.errors import ScratchvitError
from scratchvit.files import check_can_be_written, counted, printable
from scratchvit.precision import computing_in, use_device
from scratchvit.weights.pretrained import run_or_trained

READABLE = 512      # a picture whose longer side is below this is enlarged, so that the names on it can be read


class Picture(NamedTuple):
    """A picture file of the command line, its image id in the results, and the file that it is drawn into."""

    path: Path
    image_id: int
    drawn: Path


def detect(argv: Sequence[str]) -> int:
    """Print, draw and write the objects that a detector finds in picture files."""
    given = _parse(argv)
    paths = given.images
    use_device(given.device, given.precision)
    detector = open_detector(
        run_or_trained(given.checkpoint), given.model, given.labels, entry=given.entry, label_order=given.label_order
    )
    if given.short_side is not None:
        detector = detector.at(given.short_side)
    image_ids, categories = _ids(given.annotations, paths, detector)
    pictures = [Picture(*each) for each in zip(paths, image_ids, _drawn_as(paths, given.out), strict=True)]
    _make(given.out)
    print_detector(detector, given.checkpoint, precision_text(given.precision, given.device))

    results: list[dict[str, Any]] = []
    read = objects = 0
    try:
        for picture, image, found in _find(
            detector, pictures, given.batch_size, given.skip_bad, given.precision
        ):
            found = _clipped(found, image.size)
            entries = results_in([found], [picture.image_id], categories)
            name = picture.path.as_posix()
            results += [{**entry, "file_name": name} for entry in entries if entry["score"] >= given.threshold]
            side = max(READABLE, *image.size)
            _save(draw_boxes(image, detector.classes, found, threshold=given.threshold, side=side), picture.drawn)
            read, objects = read + 1, objects + int((found["scores"] >= given.threshold).sum())
            print(f"{printable(picture.path)} ({image.width}×{image.height})")
            print(f"  drawn into {printable(picture.drawn)}")
            print(_detection_table(found, detector.classes, given.threshold), flush=True)
    except ScratchvitError as error:
        if not (given.json and read):
            raise
        write_results(given.json, results)
        before = f"in the {counted(read, 'picture')} before it"
        raise ScratchvitError(f"{error} ({given.json} has the detections {before})") from error
    if not read:
        raise ScratchvitError("none of the pictures can be decoded")
    print(
        f"{counted(objects, 'object')} in {counted(read, 'picture')}, with a score of at least {given.threshold:g}"
    )
    if given.json:
        write_results(given.json, results)
        boxes = counted(len(results), "box", "boxes")
        print(filled(f"wrote {given.json}: {boxes}{_left_out(objects - len(results), given.annotations)}"))
    if read < len(pictures):
        print(f"{len(pictures) - read} of {len(pictures)} pictures left out")
    note_result(
        checkpoint=given.checkpoint, precision=given.precision, pictures=read, left_out=len(pictures) - read,
        detections=results,
    )
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="scratchvit detect",
        description="Find objects in pictures: boxes with classes and scores, drawn, as a table, and as JSON.\n\n"
        "  scratchvit detect runs/NAME street.jpg\n"
        "  scratchvit detect detr_scenes scene.png\n"
        "  scratchvit detect detr/model.safetensors holidays --json found.json\n"
        "  scratchvit detect runs/NAME test2017 --annotations image_info_test2017.json \\\n"
        "      --threshold 0 --json results.json\n\n"
        "The last one writes what an evaluation needs. The JSON has COCO's results format: a list of {image_id,\n"
        "category_id, bbox: [left, top, width, height], score}, with file_name added. Image ids count from 1 in the\n"
        "order of the arguments, unless --annotations gives them. Category ids are those of the annotations that the\n"
        "detector was trained on.",
    )
    add_run_and_images(parser, RUN)
    add_detector(parser)
    parser.add_argument(
        "--threshold", type=number, default=0.5, metavar="SCORE",
        help="lowest score, from 0 to 1, that is drawn and written; use 0 for evaluation (default: 0.5)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("detected"), metavar="DIR",
        help="folder for the drawn pictures, NAME-boxes.png; created if it does not exist (default: detected)",
    )
    parser.add_argument(
        "--json", type=Path, nargs="?", const=True, metavar="FILE",
        help="write the detections in COCO's results format; without FILE, print them as JSON, in the last line",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE",
        help="a COCO annotation file that lists these pictures: take image and category ids from it",
    )
    parser.add_argument(
        "--short-side", type=positive, metavar="PIXELS",
        help="resize the shorter side of pictures to this; objects should be about as large as in training "
        "(default: as in training, or from the preprocessor_config.json of the weights)",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=1, metavar="SIZE",
        help="pictures per batch, padded to the largest of them; more than 1 helps on a GPU (default: 1)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="skip pictures that cannot be decoded, and count them"
    )
    add_device(parser)
    add_precision(parser)
    given = parser.parse_strictly(argv)
    if not 0 <= given.threshold <= 1:
        parser.error(f"--threshold must be from 0 to 1, not {given.threshold:g}")
    given.checkpoint, given.images = run_and_images(parser, given)
    if given.json is True:          # heed() has seen it
        given.json = None
    elif given.json and given.json.suffix.lower() in SUFFIXES:
        parser.error(f"--json {given.json} would write over a picture: name a file, or put --json last")
    check_can_be_written(given.json)
    return given


def _left_out(boxes: int, annotations: Path | None) -> str:
    return f"; {boxes} are of classes that {annotations} does not have" if boxes else ""


def _ids(annotations: Path | None, paths: Sequence[Path], detector: Detector) -> tuple[list[int], list[int | None]]:
    """The image id of each picture and the category id of each class of the detector, as used in the results.

    Raises ScratchvitError for a picture that the annotation file does not list.
    """
    if annotations is None:
        return list(range(1, len(paths) + 1)), [*detector.category_ids]
    listed, categories = read_image_ids(annotations)
    by_name: dict[str, list[str]] = {}      # file_name may have folders before it
    for file_name in listed:
        by_name.setdefault(Path(file_name).name, []).append(file_name)
    ids = []
    for path in paths:
        ends = f"/{path.absolute().as_posix()}"
        fitting = [name for name in by_name.get(path.name, ()) if ends.endswith(f"/{name}")]
        if not fitting:
            raise ScratchvitError(f"{annotations} does not list the picture {path}: name only pictures that it lists")
        ids.append(listed[max(fitting, key=len)])
    return ids, matching_categories([*categories.values()], [*categories], detector, str(annotations))


def _drawn_as(paths: Sequence[Path], folder: Path) -> list[Path]:
    """A file in the folder for each picture; no name occurs twice, and none overwrites an input picture."""

    def key(path: Path) -> str:
        return str(path.resolve()).casefold()       # some file systems ignore case

    taken = {key(path) for path in paths}
    drawn = []
    for path in paths:
        endings = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
        names = (folder / f"{path.stem}-boxes{ending}.png" for ending in endings)
        free = next(name for name in names if key(name) not in taken)
        taken.add(key(free))
        drawn.append(free)
    return drawn


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScratchvitError(f"{folder}: cannot create this folder ({error.strerror}); choose another") from error


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise ScratchvitError(f"{path}: cannot write ({error}); free some space or choose another folder") from error


def _find(
    detector: Detector, pictures: Sequence[Picture], batch_size: int, skip_bad: bool, precision: str
) -> Iterator[tuple[Picture, Image.Image, Found]]:
    """Yield each picture with its detections, in order; with skip_bad, pictures left out are named on stderr."""
    warned = False
    for start in range(0, len(pictures), batch_size):
        read = []
        for picture in pictures[start : start + batch_size]:
            try:
                read.append((picture, open_image(picture.path)))
            except ScratchvitError as error:
                if not skip_bad:
                    raise
                print(f"left out: {without_advice(error)}", file=sys.stderr)
        most = max((detector.tokens((image.height, image.width)) for _, image in read), default=0)
        if most > MANY_TOKENS and not warned:
            print(f"{most:,} tokens will take long: a smaller --short-side makes fewer", file=sys.stderr)
            warned = True
        if read:
            with computing_in(precision):
                all_found = detector.in_pictures([image for _, image in read])
            for (picture, image), found in zip(read, all_found):
                yield picture, image, found


def _clipped(found: Found, size: tuple[int, int]) -> Found:
    """Detections with their boxes clipped to a picture of size (width, height); those outside of it are left out."""
    boxes = found["boxes"].clip(0, np.array([*size, *size], np.float32))
    inside = ~(boxes[:, 2:] <= boxes[:, :2]).any(axis=1)        # so that NaN stays, and is noticed later
    return {name: array[inside] for name, array in (found | {"boxes": boxes}).items()}


def _detection_table(found: Found, classes: Sequence[str], threshold: float) -> str:
    """A table of the detections, best first; if there are none above the threshold, the best one below it."""
    order = np.argsort(-found["scores"], kind="stable")
    names, scores, boxes = [printable(classes[label]) for label in found["labels"]], found["scores"], found["boxes"]
    chosen = [i for i in order if scores[i] >= threshold]
    if not len(order):
        return "  nothing: all boxes lie outside of the picture\n"
    if not chosen:
        return f"  nothing above the threshold; the best is {names[order[0]]} with {scores[order[0]]:.2f}\n"
    rows = [(names[i], f"{scores[i]:.2f}", *(f"{edge:.0f}" for edge in boxes[i])) for i in chosen]
    text = table([("class", "score", "left", "top", "right", "bottom"), *rows])
    return "".join(f"  {line}\n" for line in text.splitlines())
