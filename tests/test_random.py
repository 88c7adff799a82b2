"""The generator: fair, independent from draw to draw, the same on every device, two integers of state."""

from __future__ import annotations

import numpy as np
import pytest

from scratchvit.backend import asnumpy, current
from scratchvit.errors import ScratchvitError
from scratchvit.random import Generator, recorded, replayed
from tests.support.seeds import moved

N = 200_000


def bits(generator: Generator, probability: float = 0.5, count: int = N) -> np.ndarray:
    return asnumpy(generator.bernoulli(probability, (count,)))


@pytest.mark.parametrize("probability", [0.0, 0.001, 0.1, 0.5, 0.9, 1.0])
def test_the_share_of_ones_is_the_probability(probability: float) -> None:
    share = np.mean([bits(Generator(moved(seed)), probability).mean() for seed in range(5)])
    assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / (5 * N))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In standard deviations of what independent fair bits show."""
    return float(((2.0 * a - 1) * (2.0 * b - 1)).mean() * np.sqrt(len(a)))


def test_draws_are_independent() -> None:
    generator = Generator(moved(0))
    draws = [bits(generator) for _ in range(4)] + [bits(Generator(moved(1)))]      # and of another seed
    for i, a in enumerate(draws):
        assert all(abs(_correlation(a, b)) < 5 for b in draws[:i])
        assert all(abs(_correlation(a[lag:], a[:-lag])) < 5 for lag in (1, 2, 7, 64, 197, 1024))


def test_neighbouring_bits_take_all_patterns_equally() -> None:
    patterns = np.packbits(bits(Generator(moved(0))))
    counts = np.bincount(patterns, minlength=256)
    chi_square = ((counts - len(patterns) / 256) ** 2 / (len(patterns) / 256)).sum()
    assert chi_square < 255 + 5 * np.sqrt(2 * 255)


def test_a_seed_says_it_all() -> None:
    assert np.array_equal(bits(Generator(moved(5))), bits(Generator(moved(5))))
    assert not np.array_equal(bits(Generator(moved(5))), bits(Generator(moved(6))))
    assert Generator().seed != Generator().seed


def test_a_saved_state_goes_on_where_it_was() -> None:
    generator = Generator(7)
    bits(generator)
    state = generator.state_dict()
    expected = [bits(generator), bits(generator)]
    other = Generator()
    other.load_state_dict(state)
    assert state == {"seed": 7, "draws": 1} and [type(v) for v in state.values()] == [int, int]
    assert all(np.array_equal(a, bits(other)) for a in expected)


def test_every_device_draws_the_same_bits(device: str) -> None:
    drawn = Generator(11).bernoulli(0.3, (7, 11, 13))
    assert type(drawn) is current().array_type and drawn.dtype == bool and drawn.shape == (7, 11, 13)
    # Written down once: a saved run must not change its masks with a version, a machine or a number of threads.
    assert np.packbits(asnumpy(drawn).reshape(-1))[:8].tolist() == [72, 7, 44, 130, 172, 32, 40, 165]


def test_large_draws_do_not_depend_on_how_rows_are_dealt_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bits(Generator(moved(2)), count=10 * N)
    monkeypatch.setattr("scratchvit.threads.PARALLEL_BYTES", 1 << 40)
    assert np.array_equal(whole, bits(Generator(moved(2)), count=10 * N))


def test_replay_draws_again_and_then_goes_on() -> None:
    a, b = Generator(0), Generator(1)
    bits(a)
    with recorded() as record:
        first = [bits(a), bits(b), bits(a)]
    after = a.draws, b.draws
    with replayed(record):
        again = [bits(a), bits(b), bits(a)]
    assert all(np.array_equal(x, y) for x, y in zip(first, again)) and (a.draws, b.draws) == after


def test_a_draw_too_large_for_its_counter_is_refused() -> None:
    with pytest.raises(ScratchvitError, match="fewer than 2³² entries"):
        Generator(0).bernoulli(0.5, (2**16, 2**16))
