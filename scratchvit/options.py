"""Configuration fields with help texts for the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any


def option(
    default: Any, help: str, choices: tuple[str, ...] = (), check: Callable[[str], object] | None = None
) -> Any:
    """A dataclass field with a default, a help text and, for strings, the allowed values.

    check: where these cannot be listed: raises ScratchvitError for a value that is not allowed.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "check": check})
