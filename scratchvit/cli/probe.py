"""`scratchvit probe`: accuracy of a linear classifier on the features of each layer of an iGPT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scratchvit import backend, progress
from scratchvit.cli._options import Parser, add_device, positive
from scratchvit.cli._splits import splits_of
from scratchvit.cli._text import filled, labelled_lines, table
from scratchvit.cli._weights import add_entry
from scratchvit.data import Loader, Normalize
from scratchvit.errors import ScratchvitError
from scratchvit.inspect.probe import features, linear_probe
from scratchvit.training.checkpoint import model_from_checkpoint


def probe(argv: Sequence[str]) -> int:
    """Print the accuracy of a linear classifier on the features of every layer."""
    parser = Parser(
        prog="scratchvit probe", usage="scratchvit probe RUN [options]",
        description="Linear probe of an iGPT, which was trained without labels: softmax regression on the mean\n"
        "features of each layer, with the weight decay chosen on the validation split. Prints the accuracy on the\n"
        "validation and test splits.\n\n"
        "  scratchvit train --recipe igpt_digits --out runs/pixels\n"
        "  scratchvit probe runs/pixels",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="RUN", help="a run folder of an iGPT, or a checkpoint in it"
    )
    parser.add_argument("--data", help="data set (default: the one that the model was trained on)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the files of a named data set")
    parser.add_argument(
        "--batch-size", type=positive, default=64, metavar="SIZE", help="pictures per batch (default: 64)"
    )
    add_entry(parser)
    add_device(parser)
    given = parser.parse_strictly(argv)

    backend.use(given.device)
    model, checkpoint = model_from_checkpoint(given.checkpoint, entry=given.entry)
    splits = splits_of(checkpoint, given.data, given.data_dir)
    normalize = Normalize(checkpoint.data["mean"], checkpoint.data["std"])
    found = {}
    for name in ("train", "val", "test"):
        split = getattr(splits, name)
        if len(split) == 0:
            raise ScratchvitError(f"{split.name} has no {name} pictures: a probe needs train, val and test")
        with progress.bar(len(split), f"features of {name}") as bar:
            found[name] = features(model, Loader(split, given.batch_size, normalize), bar.update)
    layers = linear_probe(found["train"], found["val"], found["test"], len(splits.train.classes))

    rows = [("layer", "decay", "val", "test")]
    for layer in layers:
        rows.append((f"{layer.layer}", f"{layer.decay:g}", f"{layer.val_accuracy:.2%}", f"{layer.test_accuracy:.2%}"))
    about = [("model", f"{checkpoint.model_name} from {given.checkpoint}"), ("data", splits.train.name)]
    print(f"{labelled_lines(about)}\n")
    print(f"{table(rows)}\n")
    best = max(layers, key=lambda layer: layer.val_accuracy)
    print(filled(f"best layer on the validation split: {best.layer}, with {best.test_accuracy:.2%} test accuracy"))
    return 0
