"""Configuration fields with help texts for the command line."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with a default, a help text and, for strings, the allowed values."""
    return field(default=default, metadata={"help": help, "choices": choices})
