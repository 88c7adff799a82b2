"""The norm of all gradients, and the factor that clips it, by their CUDA kernels."""

import itertools

import numpy as np
import pytest

from scratchvit import optim
from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels.total_norm import clip_factor, total_norm
from scratchvit.plain import plain_forms
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

SHAPES = [(0,), (1,), (), (7,), (257,), (4095,), (4096,), (4097,), (8193,), (61, 137), (0,)]


def arrays(dtype, count):
    rng = seeded(0)
    shapes = itertools.islice(itertools.cycle(SHAPES), count)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 64, 65, 150])
def test_many_arrays(count, dtype):
    host = arrays(dtype, count)
    found, again = (total_norm([asarray(x) for x in host]) for _ in range(2))
    expected = np.sqrt(sum(np.square(x.astype(np.longdouble)).sum() for x in host))
    assert found.shape == () and found.dtype == dtype and asnumpy(found).tobytes() == asnumpy(again).tobytes()
    assert_close(found, expected.astype(dtype), ulps(expected, 4, dtype))


def test_each_entry_counts():
    """In turn, one entry of many arrays is 3 and the others are 0."""
    for size in (1, 255, 256, 257, 4096, 4097, 8193):
        for place in {0, size // 2, size - 1}:
            x = np.zeros(size, np.float32)
            x[place] = 3
            assert float(total_norm([asarray(np.zeros(5000, np.float32)), asarray(x)])) == 3, (size, place)


def test_it_is_not_finite_if_an_entry_or_the_sum_of_squares_is_not():
    for value in (np.nan, np.inf, -np.inf, 2e19):
        for place in (0, 4095, 4096, 9999):
            x = np.ones(10_000, np.float32)
            x[place] = value
            assert not np.isfinite(float(total_norm([asarray(x)]))), (value, place)
    many = asarray(np.full(1_000_000, 1e17, np.float32))        # each part is finite, and the sum is 1e40
    assert np.isinf(float(total_norm([many])))


def test_the_error_does_not_grow_with_the_entries():
    x = np.full(1 << 22, np.float32(0.1))
    assert_close(total_norm([asarray(x)]), float(np.float32(0.1)) * 2**11, ulps(205, 4))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factors(dtype):
    for norm in (0.0, 1e-7, 0.5, 1.0, 3.0, 1e15, np.inf, np.nan):
        given = asarray(np.asarray(norm, dtype))
        found = clip_factor(given, 1.0)
        with plain_forms():
            expected = asnumpy(clip_factor(given, 1.0))
        assert found.shape == () and found.dtype == dtype
        np.testing.assert_allclose(asnumpy(found), expected, rtol=2 * np.finfo(dtype).eps)
    assert np.isnan(asnumpy(clip_factor(asarray(np.float32(np.nan)), 1.0)))
    assert float(clip_factor(asarray(np.float32(0)), 5.0)) == 1


def test_the_plain_norm_of_arrays_without_a_kernel():
    half = [asarray(np.full(1000, 30, np.float16)), asarray(np.full(44, 30, np.float32))]
    assert_close(total_norm(half), 30 * 1044**0.5, ulps(30 * 1044**0.5, 4))


def test_nobody_has_a_gradient():
    assert float(optim.grad_norm([])) == 0
