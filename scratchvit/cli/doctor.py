"""`scratchvit doctor`: what this machine has, what is missing with the line that installs it, and how fast it is."""

from __future__ import annotations

from collections.abc import Sequence

from scratchvit import doctor as checkup
from scratchvit.cli._options import Parser


def doctor(argv: Sequence[str]) -> int:
    """Print what this machine has, and how fast it is."""
    parser = Parser(
        prog="scratchvit doctor",
        description="What this machine has for scratchvit, what is missing with the line that installs it, "
        "and how fast it computes.",
    )
    parser.parse_strictly(argv)
    for what, finding in checkup.report():
        print(f"{what:<14}{finding}", flush=True)
    return 0
