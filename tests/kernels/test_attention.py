"""Attention over whole rows: scores that would overflow or vanish, and bits that a mask must not change."""

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray
from scratchvit.kernels import attention as kernel
from scratchvit.plain import plain_forms
from tests.support.margins import agree
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("kernels")


def value_and_gradients(arrays, dy, **options):
    inputs = [Tensor(asarray(array), requires_grad=True) for array in arrays]
    y = ops.attention(*inputs, **options)
    y.backward(asarray(dy))
    return [y, *(x.grad for x in inputs)]


@pytest.mark.parametrize("shift", [0.0, 19.0, -19.0, 21.0, -21.0, 1e4, -1e4])
def test_scores_of_any_size(shift, device):
    """The same number is added to all scores of an image, which changes nothing; the second image is left alone."""
    rng = seeded(0)
    q, k, v, dy = (rng.standard_normal((2, 3, n, 5)) for n in (6, 8, 8, 6))
    q[0, ..., 0], k[0, ..., 0] = shift, 1
    with plain_forms():
        expected = value_and_gradients([q, k, v], dy, scale=1.0)
    agree(lambda: value_and_gradients([q, k, v], dy, scale=1.0), expected, dtype=np.float64)


def test_the_maximum_is_subtracted_only_where_it_must_be(monkeypatch):
    asked = []
    is_moderate = kernel._is_moderate
    monkeypatch.setattr(kernel, "_is_moderate", lambda scores: asked.append(is_moderate(scores)) or asked[-1])
    q = seeded(0).standard_normal((1, 2, 6, 5)).astype(np.float32)
    for factor in (1, 100):
        ops.attention(Tensor(q), Tensor(factor * q), Tensor(q))
    ops.attention(Tensor(q), Tensor(np.full_like(q, np.nan)), Tensor(q))
    assert asked == [True, False, False]


def test_scores_that_differ_by_more_than_float32_can_hold():
    """A row of scores around 80 beside one around -80, in one block."""
    q = np.array([[[[80.0], [-80.0]]]], np.float32)
    k = np.array([[[[1.0], [1.01], [0.99]]]], np.float32)
    v = np.eye(3, dtype=np.float32)[None, None]
    y = ops.attention(Tensor(q), Tensor(k), Tensor(v), scale=1.0).numpy()
    scores = q.astype(np.float64) @ k.swapaxes(2, 3)
    expected = np.exp(scores - scores.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    assert np.abs(y - expected).max() < 1e-5       # the scores themselves are rounded, by 80 · 2⁻²⁴


def test_what_a_mask_hides_does_not_change_a_bit():
    rng = seeded(0)
    q, k, v = (rng.standard_normal((2, 3, 7, 5)).astype(np.float32) for _ in range(3))
    mask = rng.random((7, 7)) > 0.3
    mask[:, 2] = False
    dy = rng.standard_normal(q.shape).astype(np.float32)
    before = value_and_gradients([q, k, v], dy, mask=mask)
    k[:, :, 2] *= 1e6
    after = value_and_gradients([q, k, v], dy, mask=mask)
    assert np.array_equal(before[0].data, after[0].data)        # y
    assert np.array_equal(before[1], after[1])                  # dq
