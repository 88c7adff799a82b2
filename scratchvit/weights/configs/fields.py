"""How each field of a library's configuration is treated: one table per kind of model, also in docs/weights.md.

A field is honoured (the model is built with it), must have one of the values that the models here compute, or has no
effect on what a model computes. Fields that are in no table are reported to the user.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import readable

MOST_NAMED = 20         # unknown fields in one line


@dataclass(frozen=True)
class Described:
    """A model: its name in `list_models`, the options that differ from its preset, and lines for the user."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fields:
    """The fields of one kind of configuration.

    honoured    {field: the library's default}: the model is built with it
    required    {field: values}: any other value is refused. The first is the library's default; all compute the same
    no_effect   fields that do not change what a model computes
    """

    honoured: Mapping[str, Any]
    required: Mapping[str, tuple[Any, ...]]
    no_effect: Collection[str]

    @property
    def names(self) -> set[str]:
        """All fields of the table."""
        return {*self.honoured, *self.required, *self.no_effect}

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The honoured fields, with the library's default for each that is not there.

        Raises ScratchvitError for a field whose value the models here do not compute.
        """
        for name, values in self.required.items():
            require(name, config.get(name, values[0]), *values)
        return {name: config.get(name, default) for name, default in self.honoured.items()}

    def unknown(self, config: Mapping[str, Any]) -> list[str]:
        """The fields of a configuration that are not in the table."""
        return [name for name in config if name not in self.names]


def require(name: str, value: Any, *values: Any) -> None:
    """Raise ScratchvitError, which names the field, unless its value is one of these; True is not 1."""
    if not any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in values):
        supported = " and ".join(str(allowed) for allowed in values)
        raise ScratchvitError(f"its {name} is {readable(str(value))}; the models here only support {supported}")


def unknown_fields(names: Collection[str]) -> tuple[str, ...]:
    """The line about fields that are in no table, or none."""
    listed = ", ".join(map(readable, list(names)[:MOST_NAMED])) + (", …" if len(names) > MOST_NAMED else "")
    return (f"unknown fields of config.json, which are ignored: {listed}",) if names else ()
