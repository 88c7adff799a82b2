"""Completing words of a command line in the shell, by argcomplete:

    pip install argcomplete && eval "$(register-python-argcomplete scratchvit)"

The shell then runs `scratchvit` with the line so far in COMP_LINE. A command's parser is made by the command itself, so
the command is called, and `Parser.parse_strictly` prints the completions instead of parsing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

COMPLETING = "_ARGCOMPLETE"     # set by argcomplete's line in the shell: the number of the word that is the program


def complete_words(commands: Collection[str], find: Callable[[str], Callable[[Sequence[str]], int]]) -> int:
    """Print the completions of the line in COMP_LINE. Ends the process, unless there are none."""
    from argcomplete.lexers import split_line

    start = int(os.environ[COMPLETING])
    *_, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))   # without the unfinished one
    words = words[start:]
    if not words:
        parser = argparse.ArgumentParser(prog="scratchvit")
        parser.add_argument("command", choices=list(commands))
        complete_with(parser)
    elif words[0] in commands:
        os.environ[COMPLETING] = str(start + 1)     # for argcomplete, the command is the program
        finished = words[1:-1] if words[-1].startswith("-") else words[1:]      # --model without its value is not
        find(words[0])(finished)
    return 1


def complete_with(parser: argparse.ArgumentParser) -> None:
    """Print the completions that a parser allows, and end the process."""
    import argcomplete

    argcomplete.autocomplete(parser)


def completed_by(action: argparse.Action, values: Callable[[], Collection[str]]) -> None:
    """Let the value of an option or argument be completed from these values."""

    def completer(**_: Any) -> Collection[str]:
        return values()

    action.completer = completer        # type: ignore[attr-defined]    # argcomplete's own way
