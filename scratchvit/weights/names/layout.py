"""What a layout is: a table from somebody's names to ours, and what it takes beside renaming.

A tensor that a model here keeps in one piece may come in several, q, k and v. Then each piece goes to the whole's name
with its place behind a colon, `blocks.0.attn.qkv.weight:0`, and the pieces are joined along the first axis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import readable

Weights = dict[str, np.ndarray]


def _same_value(name: str, value: np.ndarray) -> np.ndarray:
    return value


def _same(given: Any) -> Any:
    return given


def _nothing(weights: Weights) -> str:
    return ""


def merged_at_the_start(name: str) -> str:
    """A Swin's name by another count: its patches are merged at the start of a stage here, elsewhere at the end."""
    return re.sub(r"\blayers\.(\d{1,9})\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", name)


# Tables that follow from the sizes, and are computed here.
COMPUTED = r"(?:.+\.)?(?:relative_position_index|relative_coords_table|attn_mask)"


@dataclass(frozen=True)
class Layout:
    """Somebody's way to name and store weights. Patterns are regular expressions that must match a whole name.

    owner       who writes such files, for reports
    mark        a name that only this layout has
    names       (their pattern, our name), the first that matches; what none matches keeps its whole name
    prefix      what may stand before every name
    left_out    names of what the models here have no use for
    prepare     what must be done to all of the file before its names are looked at
    spell       (their name) → the spelling that `names` expects
    store       (their name, value) → the value as PyTorch stores it
    finish      what must be done, in place, to all of it once it has our names; says in words what a user should know
    """

    owner: str
    mark: str
    names: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    prepare: Callable[[Weights], Weights] = _same
    spell: Callable[[str], str] = _same
    store: Callable[[str, np.ndarray], np.ndarray] = _same_value
    finish: Callable[[Weights], str] = _nothing

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether one of the names is this layout's mark, with or without the prefix."""
        return any(re.fullmatch(f"(?:{self.prefix})?(?:{self.mark})", name) for name in names)

    def rename(self, weights: Mapping[str, np.ndarray]) -> Renamed:
        """The same weights under timm's names. Raises ScratchvitError if two come to one name."""
        renamed: Weights = {}
        theirs: dict[str, str] = {}
        left_out = []
        for full_name, value in self.prepare(dict(weights)).items():
            name = re.sub(f"^(?:{self.prefix})", "", full_name)
            if any(re.fullmatch(pattern, name) for pattern in self.left_out):
                left_out.append(full_name)
                continue
            ours = self._our_name(name) or full_name
            if ours in renamed:
                both = f"{readable(theirs[ours])} and {readable(full_name)}"
                raise ScratchvitError(f"{both} are both {readable(ours)} here: the file holds two models")
            renamed[ours], theirs[ours] = self.store(name, value), full_name
        joined = _joined(renamed, theirs)
        note = self.finish(joined)
        return Renamed(self.owner, joined, left_out, note)

    def _our_name(self, name: str) -> str | None:
        spelled = self.spell(name)
        for pattern, replacement in self.names:
            if match := re.fullmatch(pattern, spelled):
                return match.expand(replacement)
        return None


@dataclass
class Renamed:
    """Weights under timm's names: whose they were, which of the file's tensors were left out, what else was done."""

    owner: str
    weights: Weights
    left_out: list[str] = field(default_factory=list)
    note: str = ""


def _joined(weights: Weights, theirs: Mapping[str, str]) -> Weights:
    """q, k and v become qkv. Where one of the three is missing, the others keep the names that they came with."""
    joined: Weights = {}
    pieces: dict[str, Weights] = {}
    for name, value in weights.items():
        whole, colon, place = name.partition(":")
        if colon:
            pieces.setdefault(whole, {})[place] = value
        else:
            joined[name] = value
    for whole, parts in pieces.items():
        alike = len({(part.ndim, part.shape[1:]) for part in parts.values()}) == 1
        if parts.keys() == {"0", "1", "2"} and alike and parts["0"].ndim:
            joined[whole] = np.concatenate([parts[place] for place in "012"])
        else:
            joined |= {theirs[f"{whole}:{place}"]: part for place, part in parts.items()}
    return joined
