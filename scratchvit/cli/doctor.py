"""`scratchvit doctor`: what is installed, what is missing and how to install it, and how fast this machine is."""

from __future__ import annotations

from collections.abc import Sequence

from scratchvit import doctor as checkup
from scratchvit.cli._options import Parser
from scratchvit.cli._text import filled, labelled_lines
from scratchvit.models import model_config
from scratchvit.training import TrainConfig


def doctor(argv: Sequence[str]) -> int:
    """Print what is installed on this machine, and how fast it is; with --warm, compile the kernels of a model."""
    parser = Parser(
        prog="scratchvit doctor", usage="scratchvit doctor [--warm [MODEL]]",
        description="Print what is installed on this machine, what is missing and how to install it, and how fast\n"
        "the machine computes.",
    )
    parser.add_argument(
        "--warm", nargs="?", const=TrainConfig.model, metavar="MODEL",
        help="only compile the GPU kernels that training this model needs, which the first training step does "
        f"otherwise (default: {TrainConfig.model})",
    )
    given = parser.parse_strictly(argv)
    if given.warm:
        model_config(given.warm)            # raises for a name that is no model's, before the imports below
        from scratchvit.cli._warm import warm

        print(filled(warm(given.warm, "gpu")))
        return 0
    for what, finding in checkup.report():
        print(labelled_lines([(what, finding)], width=12), flush=True)
    return 0
