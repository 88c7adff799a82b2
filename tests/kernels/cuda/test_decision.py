"""What is decided about a step on the device: against the plain forms, for every way in which steps go."""

import itertools

import numpy as np
import pytest

from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels.decision import GRADIENT, LARGEST, LOSS, MADE, OVERFLOW, Counts, adapt_scale, judge
from scratchvit.plain import plain_forms
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

BAD = (np.nan, np.inf, -np.inf)


def judged(steps, factor, dtype=np.float32, other=np.float32):
    """How each of these steps (norm, loss) goes: its flags, the counts, and the scale of the loss after it."""
    scale = None if factor is None else asarray(np.array([factor, 1 / factor, 0.0]))
    flags, counts = [asarray(np.ones((), bool)) for _ in range(2)], asarray(np.zeros(7, np.int64))
    found = []
    for norm, loss in steps:
        judge(asarray(dtype(norm)), asarray(other(loss)), scale, *flags, counts)
        if scale is not None:
            adapt_scale(scale, flags[0], 3)
        numbers = () if scale is None else tuple(asnumpy(scale).tolist())
        found.append((*map(bool, flags), Counts(*asnumpy(counts).tolist()), numbers))
    return found


@pytest.mark.parametrize(("dtype", "other"), [(np.float32, np.float32), (np.float64, np.float64), (np.float32, float)])
@pytest.mark.parametrize("factor", [None, 1.0, 2.0, 1024.0, 3e38])
def test_a_hundred_steps(factor, dtype, other):
    rng = seeded(0)
    pool = [(1.0, 2.0)] * 12 + [*((bad, 1.0) for bad in BAD), *((1.0, bad) for bad in BAD), (np.nan, np.nan)]
    steps = [pool[i] for i in rng.integers(len(pool), size=100)]
    found = judged(steps, factor, dtype, other)
    with plain_forms():
        assert found == judged(steps, factor, dtype, other)
    for (made, skipped, counts, _), (norm, loss) in zip(found, steps):
        assert made == (not skipped) == bool(np.isfinite(norm) and np.isfinite(loss))
        assert (counts.last == MADE) == made and (counts.last != LOSS or not np.isfinite(loss))


def test_what_is_counted():
    """Overflows are skipped but not bad. What is bad is counted in a row, whatever kind it is of."""
    steps = [(np.inf, 1), (np.inf, 1), (np.inf, np.nan), (np.inf, 1), (1, 1), (np.nan, 1)]
    counts = [counts for *_, counts, _ in judged(steps, 4.0)]
    assert [c.last for c in counts] == [OVERFLOW, OVERFLOW, LOSS, GRADIENT, MADE, GRADIENT]     # factors 4, 2, 1, …
    assert [c.skipped for c in counts] == [1, 2, 3, 4, 4, 5]
    assert [c.bad for c in counts] == [0, 0, 1, 2, 2, 3]
    assert [c.in_a_row for c in counts] == [0, 0, 1, 2, 0, 1]
    assert [c.longest for c in counts] == [0, 0, 1, 2, 2, 2]
    assert [c.unmade for c in counts] == [1, 2, 3, 4, 4, 5]       # until the optimiser takes them back
    assert counts[4].kind == GRADIENT and counts[2].kind == LOSS


def test_the_scale_of_the_loss_grows_shrinks_and_stays_in_float32():
    for start, made in itertools.product((8.0, 3.0, LARGEST, 2.0**127), ([True] * 7, [True, True, False] * 3)):
        def factors(start=start, made=made):
            scale = asarray(np.array([start, 1 / start, 0.0]))
            for flag in made:
                adapt_scale(scale, asarray(np.asarray(flag)), 3)
            return asnumpy(scale).tolist()

        with plain_forms():
            expected = factors()
        assert factors() == expected
        grown = start if all(made) and 2 * start > LARGEST else start * 4 if all(made) else start / 8
        assert expected[:2] == [grown, 1 / grown]
