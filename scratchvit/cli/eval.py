"""`scratchvit eval`: accuracy and loss of a checkpoint on a split of its data, overall and per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scratchvit import backend, data
from scratchvit.cli._options import Parser, add_device, table
from scratchvit.cli._splits import splits_of
from scratchvit.cli._weights import add_entry
from scratchvit.errors import ScratchvitError
from scratchvit.training.checkpoint import model_from_checkpoint
from scratchvit.training.classification.evaluate import Meter
from scratchvit.training.classification.evaluate import evaluate as measure


def evaluate(argv: Sequence[str]) -> int:
    """Print accuracy and loss of a checkpoint on a split, overall and per class."""
    parser = Parser(
        prog="scratchvit eval",
        description="Evaluate a checkpoint: accuracy and loss on a split of its data, overall and per class.\n\n"
        "  scratchvit eval --checkpoint runs/digits-vit_tiny_patch16_224-1/best.safetensors\n"
        "  scratchvit eval --checkpoint FILE --data photos --split val",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE",
        help="a checkpoint of `scratchvit train`, or its run folder",
    )
    parser.add_argument("--data", help="other data with the same classes (default: the data of the run)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the files of a named data set")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="the split to evaluate on (default: test)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be decoded")
    parser.add_argument("--batch-size", type=int, default=256, metavar="SIZE", help="pictures per batch (default: 256)")
    add_entry(parser)
    add_device(parser)
    given = parser.parse_strictly(argv)

    backend.use(given.device)
    model, checkpoint = model_from_checkpoint(given.checkpoint, entry=given.entry)
    trained_on = checkpoint.data
    splits = splits_of(checkpoint, given.data, given.data_dir, given.skip_bad)
    dataset = getattr(splits, given.split)
    if list(dataset.classes) != list(trained_on["classes"]):
        raise ScratchvitError(
            f"{given.checkpoint} was trained on the classes {', '.join(trained_on['classes'])}; "
            f"{dataset.name} has {', '.join(dataset.classes)}"
        )
    normalize = data.Normalize(trained_on["mean"], trained_on["std"])
    meters = []     # one for each class
    for label in range(len(dataset.classes)):
        of_class = dataset.subset(np.flatnonzero(dataset.labels == label))
        meters.append(measure(model, data.Loader(of_class, given.batch_size, normalize)) if len(of_class) else Meter())
    total = Meter(*(sum(getattr(meter, name) for meter in meters) for name in ("loss_sum", "correct", "images")))

    rows = [("class", "images", "accuracy", "loss")]
    for name, meter in zip((*dataset.classes, "all"), (*meters, total)):
        figures = (f"{meter.accuracy:.2%}", f"{meter.loss:.4f}") if meter.images else ("none", "none")
        rows.append((name, f"{meter.images:,}", *figures))
    print(f"{given.split} pictures of {dataset.name}, {checkpoint.model_name} from {given.checkpoint}")
    print(table(rows))
    if splits.skipped:
        print(f"{len(splits.skipped)} pictures that cannot be decoded were left out")
    return 0
