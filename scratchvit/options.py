"""Fields of a configuration with the text that the command line shows for them."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of a dataclass, with its help text and, for a string, the values that it may have."""
    return field(default=default, metadata={"help": help, "choices": choices})
