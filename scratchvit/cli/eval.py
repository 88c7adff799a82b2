"""`scratchvit eval`: accuracy and loss of a checkpoint on a split of its data, overall and per class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scratchvit import data, progress
from scratchvit.cli._options import Parser, add_device, add_run, positive, run_of
from scratchvit.cli._output import add_output, note_result
from scratchvit.cli._precision import add_precision, precision_text
from scratchvit.cli._splits import splits_of
from scratchvit.cli._text import labelled_lines, table
from scratchvit.cli._weights import add_entry
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted, printable
from scratchvit.precision import computing_in, use_device
from scratchvit.training.checkpoint import model_from_checkpoint
from scratchvit.training.classification.evaluate import Meter
from scratchvit.training.classification.evaluate import evaluate as measure
from scratchvit.weights.pretrained import run_or_trained

RUN = (
    "a run folder of `scratchvit train`, a checkpoint in it, or the name of a trained model (`scratchvit models "
    "--trained`)"
)


def evaluate(argv: Sequence[str]) -> int:
    """Print accuracy and loss of a checkpoint on a split, overall and per class."""
    parser = Parser(
        prog="scratchvit eval",
        description="Evaluate a checkpoint: accuracy and loss on a split of its data, overall and per class.\n\n"
        "  scratchvit eval runs/NAME\n"
        "  scratchvit eval vit_digits\n"
        "  scratchvit eval runs/NAME --data photos --split val",
    )
    add_run(parser, RUN)
    parser.add_argument("--data", help="other data with the same classes (default: the data of the run)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the files of a named data set")
    parser.add_argument(
        "--split", choices=("train", "val", "test"),
        help="the split to evaluate on (default: test, or val if there is no test split)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="skip pictures that cannot be decoded")
    parser.add_argument(
        "--batch-size", type=positive, default=256, metavar="SIZE", help="pictures per batch (default: 256)"
    )
    add_entry(parser)
    add_device(parser)
    add_precision(parser)
    add_output(parser)
    given = parser.parse_strictly(argv)
    path = run_of(parser, given)

    use_device(given.device, given.precision)
    model, checkpoint = model_from_checkpoint(run_or_trained(path), entry=given.entry)
    trained_on = checkpoint.data
    splits = splits_of(checkpoint, given.data, given.data_dir, given.skip_bad)
    part = given.split or splits.held_out[0]
    dataset = getattr(splits, part)
    if not len(dataset):
        raise ScratchvitError(f"{dataset.name} has no {part} pictures: choose another --split")
    if list(dataset.classes) != list(trained_on["classes"]):
        raise ScratchvitError(
            f"{path} was trained on the classes {', '.join(trained_on['classes'])}; "
            f"{dataset.name} has {', '.join(dataset.classes)}"
        )
    normalize = data.Normalize(trained_on["mean"], trained_on["std"])
    meters = []     # one for each class
    for label in range(len(dataset.classes)):
        of_class = dataset.subset(np.flatnonzero(dataset.labels == label))
        meters.append(Meter())
        if len(of_class):
            batches = data.Loader(of_class, given.batch_size, normalize)
            with computing_in(given.precision):
                meters[-1] = measure(model, progress.over(batches, len(of_class), printable(dataset.classes[label])))
    total = Meter(*(sum(getattr(meter, name) for meter in meters) for name in ("loss_sum", "correct", "images")))

    rows = [("class", "images", "accuracy", "loss")]
    for name, meter in zip((*dataset.classes, "all"), (*meters, total)):
        figures = (f"{meter.accuracy:.2%}", f"{meter.loss:.4f}") if meter.images else ("none", "none")
        rows.append((printable(name), f"{meter.images:,}", *figures))
    about = [
        ("model", f"{checkpoint.model_name} from {printable(path)}"),
        ("data", f"{counted(total.images, f'{part} picture')} of {printable(dataset.name)}"),
        *(("", printable(note)) for note in (splits.notes if splits.inventory else ())),
        ("precision", precision_text(given.precision, given.device)),
        ("", f"{counted(len(splits.skipped), 'picture')} skipped: cannot be decoded" if splits.skipped else ""),
    ]
    print(f"{labelled_lines(about)}\n")
    print(table(rows))
    each = {name: meter for name, meter in zip(dataset.classes, meters) if meter.images}
    note_result(
        checkpoint=path, data=dataset.name, split=part, precision=given.precision, images=total.images,
        accuracy=total.accuracy, loss=total.loss,
        classes={name: {"images": one.images, "accuracy": one.accuracy} for name, one in each.items()},
    )
    return 0
