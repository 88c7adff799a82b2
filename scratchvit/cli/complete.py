"""`scratchvit complete`: the upper halves of pictures, and how a model of pixels goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchvit import backend
from scratchvit.cli._options import Parser, add_device, number
from scratchvit.cli._splits import splits_of
from scratchvit.errors import ScratchvitError
from scratchvit.inspect import first_of_each_class
from scratchvit.inspect.completions import draw_completions
from scratchvit.models.interface import generates
from scratchvit.training.checkpoint import model_from_checkpoint


def complete(argv: Sequence[str]) -> int:
    """Draw a sheet of completions into a file."""
    parser = Parser(
        prog="scratchvit complete",
        description="What does an iGPT make of half a picture? A sheet with a row for each picture: itself, the half\n"
        "that the model is given, and ways to go on from there, drawn pixel by pixel.\n\n"
        "  scratchvit train --recipe igpt_digits --out runs/pixels\n"
        "  scratchvit complete runs/pixels --images 10 --samples 6 --temperature 0.9",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of an iGPT: a file, or a run's folder")
    parser.add_argument("--data", help="other pictures (default: the test pictures of the data it was trained on)")
    parser.add_argument("--data-dir", metavar="DIR", help="where the files of a named data set are")
    parser.add_argument("--images", type=int, default=10, metavar="N", help="pictures, by class in turn (default: 10)")
    parser.add_argument("--samples", type=int, default=4, metavar="K", help="completions of each (default: 4)")
    parser.add_argument(
        "--temperature", type=number, default=1.0, metavar="T",
        help="below 1 likelier colours get likelier; 0: the likeliest alone (default: 1)",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest colours alone")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("complete.png"), metavar="FILE", help="a PNG file (default: complete.png)"
    )
    add_device(parser)
    given = parser.parse_strictly(argv)
    if given.images < 1 or given.samples < 1 or given.seed < 0:
        parser.error("--images and --samples are at least 1, --seed at least 0")

    backend.use(given.device)
    model: Any
    model, checkpoint = model_from_checkpoint(given.checkpoint)
    if not generates(model):
        raise ScratchvitError(
            f"{given.checkpoint} is of {checkpoint.model_name}, which learned classes and not pixels: take a run of "
            "`scratchvit train --model igpt_…` (--recipe igpt_digits)"
        )
    test = splits_of(checkpoint, given.data, given.data_dir).test
    if len(test) == 0:
        raise ScratchvitError(f"{test.name} has no test pictures to complete")
    pictures = test.images(_classes_in_turn(test.labels, given.images))
    rng = np.random.default_rng(given.seed)
    draw_completions(model, pictures, given.out, rng, given.samples, given.temperature, given.top_k)
    print(given.out)
    return 0


def _classes_in_turn(labels: np.ndarray, count: int) -> np.ndarray:
    """Places in labels (N,), at most `count`: the first of each class, then the others in their order."""
    first = first_of_each_class(labels, count)
    return np.concatenate([first, np.setdiff1d(np.arange(len(labels)), first)])[:count]
