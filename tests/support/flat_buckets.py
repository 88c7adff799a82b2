"""Buckets as in parallel/buckets.py, plain: nothing overlaps, and a bucket is three parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scratchvit.backend import Array, array_module
from scratchvit.parallel.communicator import Communicator
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class Piece:
    parameter: Tensor
    start: int
    stop: int
    values: Array
    gradient: Array


class Buckets:
    def __init__(self, parameters: Iterable[Tensor], ranks: Communicator, sharded: bool = False):
        assert sharded
        self.ranks, self.own = ranks, []
        self._buckets = []
        parameters = [parameter for parameter in parameters if parameter.requires_grad][::-1]
        for first in range(0, len(parameters), 3):
            self._add(parameters[first : first + 3])

    def _add(self, parameters: list[Tensor]) -> None:
        xp, dtype = array_module(parameters[0].data), parameters[0].dtype
        n = -(-sum(parameter.size for parameter in parameters) // self.ranks.size)
        values, gradients = (xp.zeros(n * self.ranks.size, dtype=dtype) for _ in range(2))
        part = xp.zeros(n, dtype=dtype)
        first, done = self.ranks.rank * n, 0
        for parameter in parameters:
            place = values[done : done + parameter.size]
            place[...] = parameter.data.reshape(-1)
            parameter.data = place.reshape(parameter.shape)
            start, stop = max(first, done), min(first + n, done + parameter.size)
            if start < stop:
                self.own.append(Piece(
                    parameter, start - done, stop - done, values[start:stop], part[start - first : stop - first]
                ))
            done += parameter.size
        self._buckets.append((parameters, values, gradients, part))

    def finish(self) -> None:
        """Sum the gradients over ranks."""
        for parameters, _, gradients, part in self._buckets:
            gradients[...] = 0
            done = 0
            for parameter in parameters:
                if parameter.grad is not None:
                    gradients[done : done + parameter.size] = parameter.grad.reshape(-1)
                done += parameter.size
            self.ranks.start_sum_of_part(gradients, part).wait()

    def join(self) -> None:
        """All ranks get all parameters."""
        for _, values, _, part in self._buckets:
            start = self.ranks.rank * len(part)
            self.ranks.start_join(values[start : start + len(part)].copy(), values).wait()
