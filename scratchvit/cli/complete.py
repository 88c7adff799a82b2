"""`scratchvit complete`: the upper halves of pictures, completed by an iGPT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchvit import backend
from scratchvit.cli._options import Parser, add_device, number, positive
from scratchvit.cli._splits import splits_of
from scratchvit.errors import ScratchvitError
from scratchvit.inspect import first_of_each_class
from scratchvit.inspect.completions import draw_completions
from scratchvit.models.interface import generates
from scratchvit.training.checkpoint import model_from_checkpoint


def complete(argv: Sequence[str]) -> int:
    """Draw completions of test pictures into a PNG file."""
    parser = Parser(
        prog="scratchvit complete", usage="scratchvit complete RUN [options]",
        description="Complete the upper halves of pictures with an iGPT. The sheet has a row for each picture: the\n"
        "original, the half that the model is given, and completions that it samples pixel by pixel.\n\n"
        "  scratchvit train --recipe igpt_digits --out runs/pixels\n"
        "  scratchvit complete runs/pixels --images 10 --samples 6 --temperature 0.9",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="RUN", help="a run folder of an iGPT, or a checkpoint in it"
    )
    parser.add_argument("--data", help="data set (default: the one that the model was trained on)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the files of a named data set")
    parser.add_argument(
        "--images", type=positive, default=10, metavar="N",
        help="number of pictures, one of each class first (default: 10)",
    )
    parser.add_argument("--samples", type=positive, default=4, metavar="K", help="completions per picture (default: 4)")
    parser.add_argument(
        "--temperature", type=number, default=1.0, metavar="T",
        help="sampling temperature; below 1 prefers likely colours, 0 always takes the likeliest (default: 1)",
    )
    parser.add_argument("--top-k", type=positive, metavar="K", help="sample only from the K likeliest colours")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("complete.png"), metavar="FILE",
        help="the PNG file to write (default: complete.png)",
    )
    add_device(parser)
    given = parser.parse_strictly(argv)
    if given.seed < 0:
        parser.error(f"--seed must be at least 0, not {given.seed}")

    backend.use(given.device)
    model: Any
    model, checkpoint = model_from_checkpoint(given.checkpoint)
    if not generates(model):
        raise ScratchvitError(
            f"{given.checkpoint} is a {checkpoint.model_name}, which classifies and does not generate pixels: use a "
            "run of `scratchvit train --model igpt_…` (--recipe igpt_digits)"
        )
    part, held_out = splits_of(checkpoint, given.data, given.data_dir).held_out
    if len(held_out) == 0:
        raise ScratchvitError(f"{held_out.name} has no {part} pictures to complete")
    pictures = held_out.images(_classes_in_turn(held_out.labels, given.images))
    rng = np.random.default_rng(given.seed)
    draw_completions(model, pictures, given.out, rng, given.samples, given.temperature, given.top_k)
    print(given.out)
    return 0


def _classes_in_turn(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices into labels (N,), at most `count`: the first of each class, then the others in their order."""
    first = first_of_each_class(labels, count)
    return np.concatenate([first, np.setdiff1d(np.arange(len(labels)), first)])[:count]
