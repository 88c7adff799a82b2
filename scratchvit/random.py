"""A random number generator that gives the same numbers on every device and whose state is two integers.

The entries of the n-th draw are hashes of (seed, n, position). So there is no state on the GPU, a checkpoint of a run
saves (seed, n), and `checkpoint` repeats a dropout mask from its n. The generator is used for masks that are drawn in
every step; weights are initialised with NumPy's generators on the host.

Processes that share a batch draw as one would: inside `part_of_batch`, a mask for some images begins at the position
that it has in the mask for the whole batch.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from scratchvit.backend import Array, array_module, current
from scratchvit.errors import ScratchvitError, WrongState, WrongValue
from scratchvit.files import counted
from scratchvit.recording import setting
from scratchvit.replay import is_capturing, numbers
from scratchvit.threads import parallel_rows

_BEYOND = 0x7FEB352D    # added to the second key for every 2³² positions, after which a hash of a uint32 repeats itself


@dataclass(frozen=True)
class Draw:
    """The entries of a random bool array, each True with the given probability: a function of their positions.

    keys: of the hash, two integers; or an array uint32 (4,) of a GPU, the keys and the lower and upper half of `first`,
    which only CUDA kernels read.
    first: the position of the first entry in the mask for the whole batch.
    """

    keys: tuple[int, int] | Array
    probability: float
    shape: tuple[int, ...]
    first: int = 0

    @property
    def threshold(self) -> int:
        """What the hash of a position is less than where the entry is True."""
        return min(round(self.probability * 2**32), 2**32 - 1)

    def at(self, positions: Array) -> Array:
        """The entries at flat positions in `shape`, an array of uint32, which is overwritten."""
        first_key, second_key = self.keys
        beyond, low = divmod(self.first, 2**32)
        if low:
            positions += low
        if low + math.prod(self.shape) > 2**32:     # where they have wrapped, they are beyond 2³² once more
            keys = ((second_key + (beyond + wrapped) * _BEYOND) % 2**32 for wrapped in (True, False))
            second_key = array_module(positions).where(positions < low, *map(np.uint32, keys))
        else:
            second_key = (second_key + beyond * _BEYOND) % 2**32
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

        Raises ScratchvitError for 2³² entries or more; inside `part_of_batch`, ValueError for a shape whose first axis
        is not a multiple of the number of images.
        """
        count = math.prod(shape)
        if count >= 2**32:
            raise ScratchvitError(
                f"a random mask can have fewer than 2³² entries, but {shape} has {count}: use smaller batches, or no "
                "dropout there (attn_drop_rate 0)"
            )
        keys, first = self._keys(shape)
        return Draw(keys, probability, shape, first)

    def of_images(self, count: int) -> list[np.random.Generator]:
        """The next draw as NumPy generators, one for each of `count` images, for random numbers on the host.

        Inside `part_of_batch`, an image has the generator that it has in the whole batch.
        Raises RuntimeError in a capture (replay.py), since every replay would use the same ones.
        """
        if is_capturing():
            raise WrongState("random numbers are drawn on the host, which is not possible in a captured step")
        keys, first = self._keys((count,))
        return [np.random.default_rng((*keys, image)) for image in range(first, first + count)]

    def _keys(self, shape: tuple[int, ...]) -> tuple[Any, int]:
        """The keys of the current draw, and where it begins in that of the whole batch: `keys` and `first` of `Draw`.

        In a capture, keys are where a replay finds both of its own draw.
        """
        number = self._next(shape)
        if not isinstance(number, int):
            return number, 0
        keys = self._keys_of(number)
        return (int(keys[0]), int(keys[1])), _first_of(shape)

    def _keys_of(self, number: int) -> np.ndarray:
        return np.random.SeedSequence((self.seed, number)).generate_state(2)

    def _count(self) -> int:
        with _counting:
            self.draws += 1
            return self.draws - 1

    def _next(self, shape: tuple[int, ...]) -> int | Array:
        """The number of the current draw: the next one or, under `replayed`, the recorded one. In a capture, its keys
        and where it begins, an array that gets those of the next draw in every replay."""
        again = _replay.get()
        if again is not None and self in again:
            number = next(again[self], None)
            if number is None:
                raise WrongState(
                    "more random numbers are drawn than in the forward pass: a function that is recomputed (see "
                    "checkpoint) must draw the same ones"
                )
        elif is_capturing():
            number = numbers(lambda: self._keys_in_replay(shape), (4,), np.uint32)
        else:
            number = self._count()
        for record in _records.get():
            record.numbers.setdefault(self, []).append(number)
        return number

    def _keys_in_replay(self, shape: tuple[int, ...]) -> np.ndarray:
        """The keys of the next draw, and the lower and upper half of where it begins."""
        beyond, low = divmod(_first_of(shape), 2**32)
        return np.array([*self._keys_of(self._count()), low, beyond], np.uint32)


DEFAULT = Generator()
"""The generator that ops use if none is passed."""


def _mix(x: Array) -> None:
    """Hash every uint32 in place: two rounds of xor-shift and multiply ("lowbias32", C. Wellons 2018)."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16


class _Part(NamedTuple):
    """Which images of a batch draws are for: from `start` on, so many."""

    start: int
    images: int


@dataclass(frozen=True)
class Record:
    """numbers: for every generator that was used, the numbers n of its draws; in a capture, their keys.
    part: the part of a batch that they are for, None: the whole."""

    part: _Part | None
    numbers: dict[Generator, list[int | Array]] = field(default_factory=dict)


# Context variables, so that recording and replaying in one thread does not affect another.
_part: ContextVar[_Part | None] = ContextVar("part", default=None)
_records: ContextVar[tuple[Record, ...]] = ContextVar("records", default=())
_replay: ContextVar[dict[Generator, Iterator[int | Array]] | None] = ContextVar("replay", default=None)
_counting = threading.Lock()        # two threads that share a generator get different draws


@contextlib.contextmanager
def part_of_batch(part: slice, whole: int) -> Iterator[None]:
    """Context manager in which draws give some images of a batch the numbers that they get in the whole batch.

    part: the rows of these images, start … stop; whole: the number of images of the batch. Nested, it is a part of the
    part, and `whole` the number of images in that.
    The first axis of a draw must be these images, or pieces of them: (B, …), windows (B · nW, …), tokens (B · N, D).
    The n-th draws of all parts make one mask, so generators must be in the same state before each part.
    Raises ValueError for a part that is empty or not within the batch, and for a nested one of another number of images
    than the part around it has.
    """
    outer = _part.get() or _Part(0, whole)
    if not 0 <= part.start < part.stop <= whole or whole != outer.images:
        raise WrongValue(
            f"part_of_batch: {part.start} … {part.stop} of {whole} must be a row or more of {outer.images} images"
        )
    with setting(_part, _Part(outer.start + part.start, part.stop - part.start)):
        yield


def _first_of(shape: tuple[int, ...]) -> int:
    """The position of the first entry of a draw in the draw for the whole batch."""
    part = _part.get()
    if part is None or not shape:
        return 0
    if shape[0] % part.images:
        raise WrongValue(
            f"a random mask of shape {shape} is drawn for {counted(part.images, 'image')} of a batch, but its first "
            "axis is not a multiple of them: put the images first, or draw it outside of part_of_batch"
        )
    return part.start * (math.prod(shape) // part.images)


@contextlib.contextmanager
def recorded() -> Iterator[Record]:
    """Context manager that records the numbers n of all draws."""
    record = Record(_part.get())
    with setting(_records, (*_records.get(), record)):
        yield record


@contextlib.contextmanager
def replayed(record: Record) -> Iterator[None]:
    """Context manager that repeats the draws made under `recorded`, for the same part of a batch. The state of the
    generators does not change.

    Raises RuntimeError if a generator is used for more draws than were recorded.
    """
    again = {generator: iter(numbers) for generator, numbers in record.numbers.items()}
    with setting(_replay, again), setting(_part, record.part):
        yield
