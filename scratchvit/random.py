"""A random number generator that gives the same numbers on every device and whose state is two integers.

The entries of the n-th draw are hashes of (seed, n, position). So there is no state on the GPU, a checkpoint of a run
saves (seed, n), and `checkpoint` repeats a dropout mask from its n. The generator is used for masks that are drawn in
every step; weights are initialised with NumPy's generators on the host.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from scratchvit.backend import Array, current
from scratchvit.errors import ScratchvitError, WrongState
from scratchvit.recording import setting
from scratchvit.replay import is_capturing, numbers
from scratchvit.threads import parallel_rows


@dataclass(frozen=True)
class Draw:
    """The entries of a random bool array, each True with the given probability: a function of their positions.

    keys: of the hash, two integers; or an array uint32 (2,) of a GPU, which only CUDA kernels read.
    """

    keys: tuple[int, int] | Array
    probability: float
    shape: tuple[int, ...]

    @property
    def threshold(self) -> int:
        """What the hash of a position is less than where the entry is True."""
        return min(round(self.probability * 2**32), 2**32 - 1)

    def at(self, positions: Array) -> Array:
        """The entries at flat positions, an array of uint32, which is overwritten."""
        first_key, second_key = self.keys
        positions ^= first_key
        _mix(positions)
        positions += second_key
        _mix(positions)
        return positions < self.threshold

    def array(self) -> Array:
        """All entries, on the device in use."""
        xp, count = current().xp, math.prod(self.shape)
        chosen = xp.empty(count, dtype=bool)

        def fill(positions: Array, chosen: Array) -> None:
            chosen[...] = self.at(positions)

        parallel_rows(fill, xp.arange(count, dtype=np.uint32), chosen)
        return chosen.reshape(self.shape)


class Generator:
    """A stream of random numbers. Without a seed, one is taken from the operating system."""

    def __init__(self, seed: int | None = None):
        self.seed = secrets.randbits(63) if seed is None else seed
        self.draws = 0

    def state_dict(self) -> dict[str, int]:
        """The state as integers: {"seed", "draws"}."""
        return {"seed": self.seed, "draws": self.draws}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved state."""
        self.seed, self.draws = int(state["seed"]), int(state["draws"])

    def bernoulli(self, probability: float, shape: tuple[int, ...]) -> Array:
        """A random bool array on the device in use, each entry True with the given probability."""
        return self.draw(probability, shape).array()

    def draw(self, probability: float, shape: tuple[int, ...]) -> Draw:
        """`bernoulli` without the array: what its entries are computed from, in parts or inside of a CUDA kernel.

        Raises ScratchvitError for 2³² entries or more.
        """
        count = math.prod(shape)
        if count >= 2**32:
            raise ScratchvitError(
                f"a random mask can have fewer than 2³² entries, but {shape} has {count}: use smaller batches, or no "
                "dropout there (attn_drop_rate 0)"
            )
        return Draw(self._keys(), probability, shape)

    def numpy(self) -> np.random.Generator:
        """The next draw as a NumPy generator, for random numbers on the host.

        Raises RuntimeError in a capture (replay.py), since every replay would use the same ones.
        """
        if is_capturing():
            raise WrongState("random numbers are drawn on the host, which is not possible in a captured step")
        return np.random.default_rng(self._keys())

    def _keys(self) -> tuple[int, int] | Array:
        """The keys of the current draw; in a capture, where a replay finds those of its own draw."""
        number = self._next()
        if not isinstance(number, int):
            return number
        first, second = self._keys_of(number)
        return int(first), int(second)

    def _keys_of(self, number: int) -> np.ndarray:
        return np.random.SeedSequence((self.seed, number)).generate_state(2)

    def _count(self) -> int:
        with _counting:
            self.draws += 1
            return self.draws - 1

    def _next(self) -> int | Array:
        """The number of the current draw: the next one or, under `replayed`, the recorded one. In a capture, its keys,
        an array that gets those of the next draw in every replay."""
        again = _replay.get()
        if again is not None and self in again:
            number = next(again[self], None)
            if number is None:
                raise WrongState(
                    "more random numbers are drawn than in the forward pass: a function that is recomputed (see "
                    "checkpoint) must draw the same ones"
                )
        elif is_capturing():
            number = numbers(lambda: self._keys_of(self._count()), (2,), np.uint32)
        else:
            number = self._count()
        for record in _records.get():
            record.setdefault(self, []).append(number)
        return number


DEFAULT = Generator()
"""The generator that ops use if none is passed."""


def _mix(x: Array) -> None:
    """Hash every uint32 in place: two rounds of xor-shift and multiply ("lowbias32", C. Wellons 2018)."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16


Record: TypeAlias = dict[Generator, list[int | Array]]
"""For every generator that was used, the numbers n of its draws; in a capture, their keys."""

# Context variables, so that recording and replaying in one thread does not affect another.
_records: ContextVar[tuple[Record, ...]] = ContextVar("records", default=())
_replay: ContextVar[dict[Generator, Iterator[int | Array]] | None] = ContextVar("replay", default=None)
_counting = threading.Lock()        # two threads that share a generator get different draws


@contextlib.contextmanager
def recorded() -> Iterator[Record]:
    """Context manager that records the numbers n of all draws."""
    record: Record = {}
    with setting(_records, (*_records.get(), record)):
        yield record


@contextlib.contextmanager
def replayed(record: Record) -> Iterator[None]:
    """Context manager that repeats the draws made under `recorded`. The state of the generators does not change.

    Raises RuntimeError if a generator is used for more draws than were recorded.
    """
    with setting(_replay, {generator: iter(numbers) for generator, numbers in record.items()}):
        yield
