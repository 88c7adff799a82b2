"""Means of named numbers over the images of an epoch, and sums over the processes of a run."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from scratchvit.backend import Array, array_module, current, is_array
from scratchvit.kernels import updates
from scratchvit.parallel.communicator import Communicator
from scratchvit.tensor import Tensor

SumsT = TypeVar("SumsT")


@dataclass
class Means:
    """Running sums of named numbers over images; one of them is "loss". They stay on the device until they are read."""

    sums: dict[str, Any] = field(default_factory=dict)
    images: Any = 0         # their number, an array () as soon as there are any

    def add(self, means: Mapping[str, Any], images: int, made: Array | None = None) -> None:
        """Add a batch: {name: mean over its images, a number or Tensor ()}, and the number of its images.

        made: nothing is added if this is false, bool () on the device.
        """
        rows = []
        for name, value in means.items():
            number = as_array(value.data if isinstance(value, Tensor) else value)
            self.sums[name] = total = as_array(self.sums.get(name, 0.0), like=number)
            rows.append((total, number))
        one = as_array(1.0)
        self.images = as_array(self.images, like=one)
        updates.accumulate([*rows, (self.images, one)], images, made)

    def read(self) -> Means:
        """A copy with Python numbers. On the GPU this waits for the device."""
        if not self.images:
            return Means()
        return Means({name: float(value) for name, value in self.sums.items()}, int(self.images))

    def clear(self) -> None:
        """Begin a new epoch. The arrays stay the same, as a captured step adds to them."""
        self.sums = {name: cleared(total) for name, total in self.sums.items()}
        self.images = cleared(self.images)

    def columns(self, prefix: str) -> dict[str, float]:
        """{prefix + name: mean over the images}."""
        return {prefix + name: float(value) / self.images for name, value in self.sums.items()}

    def shown(self) -> dict[str, str]:
        """What the progress bar shows."""
        return {"loss": f"{self.loss:.4f}"}

    loss = property(lambda self: float(self.sums.get("loss", 0.0)) / max(1, int(self.images)), doc="mean of the loss")


def as_array(number: Any, like: Array | None = None) -> Array:
    """A number as an array () on the device, which can be added to in place: float64, or of the dtype of `like`."""
    if is_array(number):
        return number
    xp, dtype = (current().xp, "float64") if like is None else (array_module(like), like.dtype)
    return xp.full((), number, dtype=dtype)


def cleared(total: Any) -> Any:
    """The number 0; of an array, the same array, in which it is now."""
    if not is_array(total):
        return 0
    total.fill(0)
    return total


def over_ranks(sums: SumsT, ranks: Communicator) -> SumsT:
    """The sums over all ranks of a meter that was read: a dataclass of numbers, and of dictionaries of numbers.

    The numbers of a name that only some ranks have are summed over these. Numbers are added in the order of ranks, so
    that all ranks have the same bits. One collective, which all ranks have to call.
    """
    if ranks.size == 1:
        return sums
    return type(sums)(**added_up(ranks.gather(dataclasses.asdict(sums))))      # type: ignore[call-overload]


def added_up(things: Sequence[Any]) -> Any:
    """The sum of numbers, or of dictionaries name by name, in their order."""
    if not isinstance(things[0], dict):
        return functools.reduce(operator.add, things)       # `sum` compensates rounding in some versions of Python
    names = dict.fromkeys(name for thing in things for name in thing)
    return {name: added_up([thing[name] for thing in things if name in thing]) for name in names}
