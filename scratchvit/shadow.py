"""The shadow of a parameter: its values in 16 bits, kept for the products inside `autocast`.

A cast for every use would read each weight once more in every forward pass. So a parameter keeps the copy, with the
count of its version (graph.py) at which it was made, and casts again when it is used after a change: by an optimiser's
step, `load_state_dict`, averaged weights that were swapped in. It is overwritten in place, since a step that was
captured as a CUDA graph (replay.py) keeps its address; before every replay, it is looked at again.
"""

from __future__ import annotations

from typing import Any

from scratchvit.backend import Array
from scratchvit.precision import Half
from scratchvit.replay import every_time
from scratchvit.rounding import store_into, stored


class Shadow:
    """A 16-bit copy of a Tensor's array.

    array: the copy. _source, _count: the array of which it is a copy, and the count of the Tensor's version then.
    """

    __slots__ = ("_count", "_source", "array", "half")

    def __init__(self, x: Any, half: Half):
        self.half, self.array = half, stored(x.data, half)
        self.note(x)

    def note(self, x: Any) -> None:
        """Take for granted that the copy has the present values of the Tensor x."""
        self._source, self._count = x.data, x.version.count

    def fits(self, x: Any) -> bool:
        """Whether the copy can be overwritten with the array of x: it has its shape, and is on its device."""
        return type(self.array) is type(x.data) and self.array.shape == x.data.shape

    def refresh(self, x: Any) -> None:
        """Cast again if x was changed."""
        if self._source is not x.data or self._count != x.version.count:
            store_into(self.array, x.data, self.half)
            self.note(x)


class Shadows:
    """The shadows of a Tensor, one for each type of 16-bit numbers that was asked for."""

    __slots__ = ("_last", "_of")

    def __init__(self) -> None:
        self._of: dict[str, Shadow] = {}
        self._last: Shadow | None = None

    def get(self, x: Any, half: Half) -> Array:
        """The values of the Tensor x, up to date now and before every replay."""
        shadow = self._of.get(half.name)
        if shadow is None or not shadow.fits(x):
            shadow = self._of[half.name] = Shadow(x, half)
        kept = shadow
        every_time(lambda: kept.refresh(x))
        self._last = kept
        return kept.array

    def written_by_steps(self) -> Shadow | None:
        """The shadow that an optimiser's step on a GPU writes with the parameter: the last that was used, if any."""
        return self._last if self._last is not None and self._last.array.itemsize == 2 else None
