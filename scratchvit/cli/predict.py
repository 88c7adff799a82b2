"""`scratchvit predict`: classifies pictures with a checkpoint of a run or with third-party weights."""

from __future__ import annotations

import csv
import io
import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.cli._options import Parser, add_device, add_run_and_images, positive, run_and_images
from scratchvit.cli._output import add_output, note_result
from scratchvit.cli._precision import add_precision, precision_text
from scratchvit.cli._text import labelled_lines, table
from scratchvit.cli._weights import add_entry, add_label_order, add_sizes, sizes
from scratchvit.data.images import without_advice
from scratchvit.errors import ScratchvitError
from scratchvit.files import check_can_be_written, counted, printable, write_atomically
from scratchvit.precision import computing_in, use_device
from scratchvit.training.classification.classifier import Classifier, open_classifier
from scratchvit.weights.pretrained import run_or_trained

RUN = (
    "a run folder of `scratchvit train`, a checkpoint in it, the name of a trained model (`scratchvit models "
    "--trained`), or third-party weights (.safetensors, .pth, .bin, .npz)"
)
BATCH = 32

Result = dict[str, Any]     # of a picture: "file_name", and "classes", a list of {"class", "probability"}, best first


def _parse(argv: Sequence[str]) -> Namespace:
    """The options, with the picture files as `images`."""
    parser = Parser(
        prog="scratchvit predict",
        description="Classify pictures: the most probable classes of each, with their probabilities.\n\n"
        "  scratchvit predict runs/NAME cat.jpg dog.png\n"
        "  scratchvit predict vit_digits digit.png\n"
        "  scratchvit predict vit/model.safetensors cat.jpg\n"
        "  scratchvit predict resnet50.pth cat.jpg --model resnet50 --labels names.txt\n\n"
        "Without --model, third-party weights need a config.json in their folder. Pictures are preprocessed as the\n"
        "files in that folder say (timm's config.json, Hugging Face's preprocessor_config.json), or else as is usual\n"
        "for the model. The preprocessing is printed.",
    )
    add_run_and_images(parser, RUN)
    parser.add_argument(
        "--model", metavar="NAME", help="name of the model, for third-party weights (default: read from config.json)"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE",
        help="class names: one per line, JSON, or a folder with a subfolder for each class",
    )
    add_label_order(parser)
    parser.add_argument(
        "--top-k", type=positive, default=5, metavar="K", help="number of classes printed per picture (default: 5)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="also write the classes of every picture to this file, .csv or .json (default: only print them)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="skip pictures that cannot be decoded, and count them"
    )
    add_entry(parser)
    add_sizes(parser, argv)
    add_device(parser)
    add_precision(parser)
    add_output(parser)
    given = parser.parse_strictly(argv)
    given.checkpoint, given.images = run_and_images(parser, given)
    if given.out and given.out.suffix.lower() not in (".csv", ".json"):
        parser.error(f"--out must be a file that ends in .csv or .json, not {given.out}")
    check_can_be_written(given.out)
    return given


def predict(argv: Sequence[str]) -> int:
    """Print the most probable classes of picture files."""
    given = _parse(argv)
    images = given.images
    use_device(given.device, given.precision)
    classifier = open_classifier(
        run_or_trained(given.checkpoint), given.model, given.labels, entry=given.entry, label_order=given.label_order,
        **sizes(given),
    )
    rows = [
        ("model", f"{classifier.name} from {printable(given.checkpoint)}"),
        *(("", line) for line in classifier.loading),
        ("preprocessing", printable(classifier.prepares)),
        ("classes", f"{len(classifier.classes):,}, {printable(classifier.classes_from)}"),
        ("precision", precision_text(given.precision, given.device)),
    ]
    print(f"{labelled_lines(rows, width=13)}\n")

    bad = 0
    results: list[Result] = []
    for start in range(0, len(images), BATCH):
        read = []
        for path in images[start : start + BATCH]:
            try:
                read.append((path, classifier.read(path)))
            except ScratchvitError as error:
                if not given.skip_bad:
                    raise
                bad += 1
                print(f"left out: {without_advice(error)}", file=sys.stderr)
        for path, probabilities in _probabilities(classifier, read, given.precision):
            print(printable(path))
            best = np.argsort(-probabilities, kind="stable")[: given.top_k].tolist()
            for label in best:
                print(f"  {probabilities[label]:8.2%}  {printable(classifier.classes[label])}")
            found = [{"class": classifier.classes[label], "probability": float(probabilities[label])} for label in best]
            results.append({"file_name": path.as_posix(), "classes": found})
    if bad == len(images):
        raise ScratchvitError("none of the pictures can be decoded")
    if len(results) > 1:
        print(f"\n{_summary(results)}")
    if bad:
        print(f"{bad} of {len(images)} pictures left out")
    if given.out:
        write_atomically(given.out, _as_file(results, given.out.suffix.lower()))
        print(f"wrote {printable(given.out)}: {counted(len(results), 'picture')}")
    note_result(
        checkpoint=given.checkpoint, model=classifier.name, precision=given.precision, left_out=bad, pictures=results
    )
    return 0


def _summary(results: Sequence[Result]) -> str:
    """How many pictures have each class as their most probable one, the most frequent class first."""
    counts = Counter(one["classes"][0]["class"] for one in results)
    rows = [("class", "pictures"), *((printable(name), f"{count:,}") for name, count in counts.most_common())]
    return table([*rows, ("all", f"{len(results):,}")])


def _as_file(results: Sequence[Result], suffix: str) -> bytes:
    """The content of a file with the classes of every picture: a list of objects, or a row each."""
    if suffix == ".json":
        return f"{json.dumps(results, indent=1)}\n".encode()
    top_k = len(results[0]["classes"])
    head = [f"{name}_{place}" for place in range(1, top_k + 1) for name in ("class", "probability")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", *head])
    for one in results:
        cells = [cell for found in one["classes"] for cell in (found["class"], f"{found['probability']:.6g}")]
        writer.writerow([one["file_name"], *cells])
    return text.getvalue().encode("utf-8", "backslashreplace")      # names of files may be no UTF-8


def _probabilities(
    classifier: Classifier, pictures: Sequence[tuple[Path, NDArray[np.float32]]], precision: str
) -> Iterator[tuple[Path, NDArray[np.float32]]]:
    """Yield (path, probabilities (classes,)) for a batch of (path, (C, H, W)). Raises ScratchvitError if not finite."""
    if not pictures:
        return
    images = np.stack([array for _, array in pictures])
    with computing_in(precision):
        probabilities = classifier.probabilities(images)
    for (path, _), row in zip(pictures, probabilities):
        if not np.isfinite(row).all():
            raise ScratchvitError(f"{path}: the outputs of {classifier.name} are not finite; its weights are damaged")
        yield path, row
