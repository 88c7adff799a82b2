"""Layouts: tables that map the parameter names of other libraries to ours, with conversions of their values.

A tensor that is one here can be several in a file, such as q, k and v. Then each piece gets our name with its number
after a colon, `blocks.0.attn.qkv.weight:0`, and the pieces are concatenated along the first axis.
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
    """Renumber the patch merging of a Swin: here it is at the start of a stage, elsewhere at the end of one."""
    return re.sub(r"\blayers\.(\d{1,9})\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", name)


# Tables that follow from the sizes; here they are computed.
COMPUTED = r"(?:.+\.)?(?:relative_position_index|relative_coords_table|attn_mask)"


@dataclass(frozen=True)
class Layout:
    """The names and array layouts of one library. Patterns are regular expressions that must match a whole name.

    owner       the library or project, for reports
    mark        a name that only this layout has; where it begins, the prefix of a wrapper ends (`wrappers`)
    names       (their pattern, our name); the first match is used, and a name without a match stays as it is
    prefix      a prefix that all names may have
    left_out    names that the models here do not need
    options     what this library computes differently, as options of our models, if no configuration says otherwise
    prepare     applied to all weights before the names are converted
    spell       (their name) → the spelling that `names` expects
    store       (their name, value) → the value as PyTorch stores it
    finish      applied in place to all weights under our names; returns a note for the user, or ""
    """

    owner: str
    mark: str
    names: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Weights], Weights] = _same
    spell: Callable[[str], str] = _same
    store: Callable[[str, np.ndarray], np.ndarray] = _same_value
    finish: Callable[[Weights], str] = _nothing

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether one of the names is the mark of this layout, with or without the prefix."""
        return any(re.fullmatch(f"(?:{self.prefix})?(?:{self.mark})", name) for name in names)

    def rename(self, weights: Mapping[str, np.ndarray]) -> Renamed:
        """Convert weights to timm's names. Raises ScratchvitError if two of them get the same name."""
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
                raise ScratchvitError(f"{both} are both {readable(ours)} here: the file contains two models")
            renamed[ours], theirs[ours] = self.store(name, value), full_name
        joined = _joined(renamed, theirs)
        note = self.finish(joined)
        return Renamed(self.owner, joined, left_out, note, options=dict(self.options))

    def _our_name(self, name: str) -> str | None:
        spelled = self.spell(name)
        for pattern, replacement in self.names:
            if match := re.fullmatch(pattern, spelled):
                return match.expand(replacement)
        return None


@dataclass
class Renamed:
    """Weights under timm's names, the owner of their layout, the names that were left out, and notes for the user.

    entry: which of the sets of weights in the file these are, as text; "" if there is only one.
    options: those of `Layout`.
    """

    owner: str
    weights: Weights
    left_out: list[str] = field(default_factory=list)
    note: str = ""
    entry: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def _joined(weights: Weights, theirs: Mapping[str, str]) -> Weights:
    """Concatenate q, k and v to qkv. If one of the three is missing, the others keep their names in the file."""
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
