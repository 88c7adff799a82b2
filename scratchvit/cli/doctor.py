"""`scratchvit doctor`: what is installed, what is missing and how to install it, and how fast this machine is."""

from __future__ import annotations

from collections.abc import Sequence

from scratchvit import doctor as checkup
from scratchvit.cli._options import Parser
from scratchvit.cli._text import labelled_lines


def doctor(argv: Sequence[str]) -> int:
    """Print what is installed on this machine, and how fast it is."""
    parser = Parser(
        prog="scratchvit doctor", usage="scratchvit doctor",
        description="Print what is installed on this machine, what is missing and how to install it, and how fast\n"
        "the machine computes.",
    )
    parser.parse_strictly(argv)
    for what, finding in checkup.report():
        print(labelled_lines([(what, finding)], width=12), flush=True)
    return 0
