"""Attention that takes keys a block at a time equals attention with its whole matrix."""

import sys

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.backend import asarray
from scratchvit.kernels import attention_blocks
from scratchvit.random import Generator
from tests.support.margins import agree, assert_close, ulps
from tests.support.processes import alone, peak_bytes
from tests.support.seeds import moved, seeded

Q, K, V = (2, 3, 7, 4), (2, 3, 9, 4), (2, 3, 9, 5)
BIASES = (None, (2, 3, 7, 9), (1, 3, 7, 9), (3, 1, 9), (7, 9), (2, 1, 1, 9))
MASKS = (None, (7, 9), (2, 1, 7, 9), (1, 9))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 3×4 on the CPU, 3×3 on a GPU, so that both axes are cut, with a rest."""
    monkeypatch.setattr(attention_blocks, "SCORES", {"cpu": 12, "gpu": 54})


def attention(dtype, bias_shape=None, mask_shape=None, dropout=0.0, **kwargs):
    """A function of `blocks` to value and gradients."""
    rng = seeded(0)
    arrays = [asarray(rng.standard_normal(shape).astype(dtype)) for shape in (Q, K, V)]
    if bias_shape is not None:
        arrays.append(asarray(rng.standard_normal(bias_shape).astype(dtype)))
    mask = None if mask_shape is None else rng.random(mask_shape) > 0.4
    dy = asarray(rng.standard_normal((2, 3, 7, 5)).astype(dtype))

    def run(blocks):
        inputs = [sv.Tensor(array, requires_grad=True) for array in arrays]
        y = ops.attention(*inputs, mask=mask, dropout=dropout, generator=Generator(moved(3)), blocks=blocks, **kwargs)
        y.backward(dy)
        return [y, *(x.grad for x in inputs)]

    return run


@pytest.mark.parametrize("mask_shape", MASKS)
@pytest.mark.parametrize("bias_shape", BIASES)
def test_it_is_the_same(bias_shape, mask_shape, device):
    run = attention(np.float64, bias_shape, mask_shape)
    agree(lambda: run(blocks=True), run(blocks=False), dtype=np.float64)


def test_one_number_for_a_bias_gets_no_gradient(device):
    run = attention(np.float64, (1,))
    agree(lambda: run(blocks=True)[:-1], run(blocks=False)[:-1], dtype=np.float64)
    for blocks in (False, True):
        gradient = run(blocks)[-1]
        assert_close(gradient, np.zeros(1), ulps(1.0, 2 * 3 * 7, np.float64), "gradient")     # a rounding for every row


@pytest.mark.parametrize("bias_shape", [None, (1, 3, 7, 9)])
def test_with_dropout_the_same_probabilities_are_dropped(bias_shape, device):
    run = attention(np.float64, bias_shape, dropout=0.4)
    agree(lambda: run(blocks=True), run(blocks=False), dtype=np.float64)


def test_float32_stays_float32(device):
    run = attention(np.float32, (1, 3, 7, 9), (7, 9), scale=0.7)
    assert all(found.dtype == np.float32 for found in run(blocks=True))
    agree(lambda: run(blocks=True), run(blocks=False))


def test_scores_that_would_overflow():
    q = sv.Tensor(np.full((1, 1, 5, 2), 100.0, np.float32))
    k = sv.Tensor(np.linspace(-100, 100, 14, dtype=np.float32).reshape(1, 1, 7, 2))
    v = sv.Tensor(np.eye(7, dtype=np.float32)[None, None])
    y = ops.attention(q, k, v, blocks=True).numpy()
    np.testing.assert_array_equal(y, np.broadcast_to(np.eye(7)[-1], (1, 1, 5, 7)))


def test_a_query_that_may_look_nowhere_gets_zeros_and_gives_none():
    rng = seeded(1)
    q, k, v = (sv.Tensor(rng.standard_normal(s).astype(np.float32), requires_grad=True) for s in (Q, K, V))
    mask = np.ones((7, 9), bool)
    mask[2] = False
    y = ops.attention(q, k, v, mask=mask, blocks=True)
    y.backward(np.ones(y.shape, np.float32))
    assert not y.numpy()[:, :, 2].any() and not q.grad[:, :, 2].any()
    assert all(np.isfinite(x.grad).all() for x in (q, k, v))


@pytest.mark.parametrize("shape", [(12, 9), (5, 2, 3, 7, 9), (7, 10)])
def test_a_mask_or_bias_of_another_shape_is_refused(shape):
    q, k, v = (sv.Tensor(np.zeros(s, np.float32)) for s in (Q, K, V))
    for kwargs in ({"mask": np.ones(shape, bool)}, {"bias": np.ones(shape, np.float32)}):
        with pytest.raises(ValueError, match="broadcast"):
            ops.attention(q, k, v, blocks=True, **kwargs)


@pytest.mark.usefixtures("kernels")
def test_it_is_chosen_by_size_and_not_while_probabilities_are_recorded(monkeypatch):
    chosen = []

    def watched(q, *args):
        chosen.append(q.shape)
        return attention_blocks.attention_in_blocks(q, *args)

    module = sys.modules["scratchvit.ops.attention"]        # the name itself is the function's
    monkeypatch.setattr(module, "attention_in_blocks", watched)
    small, large = (sv.Tensor(np.zeros((1, 1, n, 1), np.float32)) for n in (1000, 1100))
    ops.attention(small, small, small)
    assert not chosen
    ops.attention(large, large, large)
    assert chosen == [(1, 1, 1100, 1)]
    with ops.record_attention() as maps:
        ops.attention(large, large, large)
    assert len(chosen) == 1 and maps[0].shape == (1, 1, 1100, 1100)
    with ops.record_attention(), pytest.raises(ValueError, match="leave out blocks=True"):
        ops.attention(small, small, small, blocks=True)


def peak_of_a_step(blocks):
    rng = seeded(0)
    q, k, v = (sv.Tensor(rng.standard_normal((1, 2, 4096, 16), dtype=np.float32), requires_grad=True) for _ in range(3))
    return peak_bytes(lambda: ops.attention(q, k, v, blocks=blocks).sum().backward())


@pytest.mark.slow
def test_memory_does_not_hold_a_matrix():
    matrices = 2 * 4096**2 * 4          # of two heads
    assert alone(peak_of_a_step, True) < matrices / 4
    assert alone(peak_of_a_step, False) > matrices
