"""`scratchvit detect-eval`: COCO's figures of a detector, or of a file of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scratchvit import backend
from scratchvit.cli._detector import add_detector, print_detector, print_figures, print_skipped
from scratchvit.cli._options import Parser, add_device
from scratchvit.detection.data.annotations import DetectionDataset, DetectionSplits
from scratchvit.detection.data.source import load_detection
from scratchvit.detection.detector import Detector, matching_categories, open_detector, results_in
from scratchvit.detection.evaluation import evaluate_boxes, write_results
from scratchvit.errors import ScratchvitError
from scratchvit.files import check_can_be_written, printable


def detect_eval(argv: Sequence[str]) -> int:
    """Average precision and recall on a split, and class by class."""
    parser = Parser(
        prog="scratchvit detect-eval",
        description="How good is a detector? COCO's twelve figures on a split of its data, and AP class by class.\n\n"
        "  scratchvit detect-eval --checkpoint runs/scenes-detr_tiny-1/best.safetensors\n"
        "  scratchvit detect-eval --checkpoint detr/model.safetensors --data coco --split val --results found.json\n"
        "  scratchvit detect-eval --results-of found.json --annotations coco/annotations/instances_val2017.json\n\n"
        "Classes of the detector and of the data are matched by name; results are written with the ids of the\n"
        "annotation file. pycocotools computes the figures.",
    )
    add_detector(parser, required=False)
    parser.add_argument(
        "--data", help="other pictures with boxes: a folder of COCO, VOC or YOLO, or scenes (default: the run's own)"
    )
    parser.add_argument("--split", choices=("val", "test"), default="test", help="(default: test)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out, and count, bad annotations and pictures")
    parser.add_argument("--batch-size", type=int, metavar="SIZE", help="(default: as in the run's validation, or 8)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write what was found as COCO's results")
    parser.add_argument(
        "--results-of", type=Path, metavar="FILE",
        help="evaluate these results, in COCO's JSON and written by any program, instead of a detector's",
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="for --results-of: what is there, COCO's JSON")
    add_device(parser)
    given = parser.parse_strictly(argv)
    if (given.checkpoint is None) == (given.results_of is None):
        parser.error("name a detector with --checkpoint, or a file of results with --results-of, one of them")
    if (given.results_of is None) != (given.annotations is None):
        parser.error("--results-of FILE and --annotations FILE go together")
    if given.batch_size is not None and given.batch_size < 1:
        parser.error(f"--batch-size {given.batch_size}: at least one picture at a time")

    if given.results_of:
        print(f"{printable(given.results_of)} on {printable(given.annotations)}")
        print_figures(evaluate_boxes(given.annotations, given.results_of))
        return 0
    check_can_be_written(given.results)
    backend.use(given.device)
    detector = open_detector(given.checkpoint, given.model, given.labels)
    splits = _splits(detector, given.data, given.skip_bad)
    dataset: DetectionDataset = getattr(splits, given.split)
    categories = matching_categories(dataset.classes, dataset.category_ids, detector, dataset.name)
    print_detector(detector, given.checkpoint)
    config = detector.checkpoint.config if detector.checkpoint else {}
    found, image_ids = detector.in_dataset(dataset, given.batch_size or config.get("batch_size", 8))
    results = results_in(found, image_ids, categories)
    print(f"{given.split} pictures of {printable(dataset.name)}: {len(dataset):,}")
    for note in (*splits.drawn, *dataset.notes):
        print(f"  {printable(note)}")
    print_figures(evaluate_boxes(dataset.ground_truth(), results))
    for line in _unmatched(detector, dataset, categories):
        print(printable(line))
    print_skipped(splits.skipped)
    if given.results:
        write_results(given.results, results)
        print(f"wrote {given.results}: {len(results):,} boxes")
    return 0


def _splits(detector: Detector, name: str | None, skip_bad: bool) -> DetectionSplits:
    """Of the data that is named or, of a run, its own, split as for its training."""
    if detector.checkpoint is None:
        if name is None:
            raise ScratchvitError(f"these weights of {detector.name} are of no run here: name pictures with --data")
        return load_detection(name, skip_bad=skip_bad)
    config = detector.checkpoint.config
    return load_detection(
        name or config["data"], val_fraction=config["val_fraction"], seed=config["seed"],
        skip_bad=skip_bad or (name is None and config["skip_bad"]),
    )


def _unmatched(detector: Detector, dataset: DetectionDataset, categories: Sequence[int | None]) -> list[str]:
    """Sentences on classes that only one of the two has."""
    unknown = [name for name, number in zip(dataset.classes, dataset.category_ids) if number not in categories]
    left_out = sum(category is None for category in categories)
    sentences = []
    if unknown:
        sentences.append(f"the detector does not know {', '.join(unknown)}: of these it finds nothing")
    if left_out:
        sentences.append(f"{left_out} of its {len(categories)} classes are none of the data's, and were left out")
    return sentences
