"""`scratchvit detect-eval`: COCO's AP and AR of a detector, or of a results file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from scratchvit.cli._detector import RUN, add_detector, print_detector, print_figures, print_skipped
from scratchvit.cli._options import Parser, add_device, add_run, positive, run_of
from scratchvit.cli._output import add_output, note_result
from scratchvit.cli._precision import add_precision, precision_text
from scratchvit.cli._text import filled, labelled_lines
from scratchvit.detection.data.annotations import DetectionDataset, DetectionSplits
from scratchvit.detection.data.source import load_detection
from scratchvit.detection.detector import Detector, matching_categories, open_detector, results_in
from scratchvit.detection.evaluation import evaluate_boxes, write_results
from scratchvit.errors import ScratchvitError
from scratchvit.files import check_can_be_written, counted, printable
from scratchvit.precision import computing_in, use_device
from scratchvit.training.folder import data_of_run
from scratchvit.weights.pretrained import run_or_trained


def detect_eval(argv: Sequence[str]) -> int:
    """Print average precision and recall on a split, overall and per class."""
    parser = Parser(
        prog="scratchvit detect-eval",
        description="Evaluate a detector: COCO's twelve AP and AR figures on a split of its data, and AP per class.\n\n"
        "  scratchvit detect-eval runs/NAME\n"
        "  scratchvit detect-eval detr_scenes\n"
        "  scratchvit detect-eval detr/model.safetensors --data coco --split val\n"
        "  scratchvit detect-eval --results-of found.json --annotations test.json\n\n"
        "Classes of the detector and of the data are matched by name; results are written with the category ids of\n"
        "the annotation file. The figures are computed by pycocotools.",
    )
    add_run(parser, RUN)
    add_detector(parser)
    parser.add_argument(
        "--data", help="a folder in COCO, VOC, YOLO or CSV format, or scenes (default: the data of the run)"
    )
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="the split to evaluate on (default: test)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="skip bad annotations and pictures, and list them")
    parser.add_argument(
        "--batch-size", type=positive, metavar="SIZE", help="pictures per batch (default: that of the run, or 8)"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the detections in COCO's results format")
    parser.add_argument(
        "--results-of", type=Path, metavar="FILE",
        help="evaluate this file in COCO's results format, written by any program, instead of a detector",
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="for --results-of: the ground truth, as COCO annotations"
    )
    add_device(parser)
    add_precision(parser)
    add_output(parser)
    given = parser.parse_strictly(argv)
    if given.results_of and (given.run or given.checkpoint):
        parser.error("name either a detector, RUN, or a results file, --results-of FILE")
    if (given.results_of is None) != (given.annotations is None):
        parser.error("--results-of FILE and --annotations FILE must be given together")

    if given.results_of:
        print(f"{printable(given.results_of)} on {printable(given.annotations)}")
        figures = evaluate_boxes(given.annotations, given.results_of)
        print_figures(figures)
        note_result(results=given.results_of, **dataclasses.asdict(figures))
        return 0
    path = run_of(parser, given)
    check_can_be_written(given.results)
    use_device(given.device, given.precision)
    detector = open_detector(
        run_or_trained(path), given.model, given.labels, entry=given.entry, label_order=given.label_order
    )
    splits = _splits(detector, given.data, given.skip_bad)
    dataset: DetectionDataset = getattr(splits, given.split)
    categories = matching_categories(dataset.classes, dataset.category_ids, detector, dataset.name)
    print_detector(detector, path, precision_text(given.precision, given.device))
    config = detector.checkpoint.config if detector.checkpoint else {}
    with computing_in(given.precision):
        found, image_ids = detector.in_dataset(dataset, given.batch_size or config.get("batch_size", 8))
    results = results_in(found, image_ids, categories)
    print(labelled_lines([
        ("data", f"{counted(len(dataset), f'{given.split} picture')} of {printable(dataset.name)}"),
        *(("", printable(note)) for note in (*splits.drawn, *dataset.notes)),
    ]))
    figures = evaluate_boxes(dataset.ground_truth(), results)
    print_figures(figures)
    for line in _unmatched(detector, dataset, categories):
        print(f"\n{filled(printable(line))}")
    print_skipped(splits.skipped)
    if given.results:
        write_results(given.results, results)
        print(f"\nwrote {given.results}: {counted(len(results), 'box', 'boxes')}")
    note_result(
        checkpoint=path, data=dataset.name, split=given.split, precision=given.precision, images=len(dataset),
        **dataclasses.asdict(figures),
    )
    return 0


def _splits(detector: Detector, name: str | None, skip_bad: bool) -> DetectionSplits:
    """The splits of the named data or, without a name, of the data of the run, split as for its training."""
    if detector.checkpoint is None:
        if name is None:
            raise ScratchvitError(
                f"these weights of {detector.name} are not from a run, so their data are unknown: name data with --data"
            )
        return load_detection(name, skip_bad=skip_bad)
    config = detector.checkpoint.config
    with data_of_run(name):
        return load_detection(
            name or config["data"], val_fraction=config["val_fraction"], seed=config["seed"],
            skip_bad=skip_bad or (name is None and config["skip_bad"]),
        )


def _unmatched(detector: Detector, dataset: DetectionDataset, categories: Sequence[int | None]) -> list[str]:
    """Sentences about the classes that only the detector or only the data set has."""
    unknown = [name for name, number in zip(dataset.classes, dataset.category_ids) if number not in categories]
    left_out = sum(category is None for category in categories)
    sentences = []
    if unknown:
        sentences.append(f"the detector does not know {', '.join(unknown)}, so it cannot find them")
    if left_out:
        sentences.append(f"{left_out} of its {len(categories)} classes are not in the data and were left out")
    return sentences
