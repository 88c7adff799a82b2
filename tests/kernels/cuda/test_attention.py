"""Attention by its CUDA kernels: masks and biases of all shapes, dropout's mask, long rows, rows without a key."""

import math

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy, current
from scratchvit.kernels.attention import attention_over_rows
from scratchvit.random import Draw, Generator
from tests.support import cuda_kernels
from tests.support.one_op import run
from tests.support.seeds import moved, seeded

pytestmark = pytest.mark.usefixtures("cuda")


def shapes(B, H, N, M, d, e):
    return [(B, H, N, d), (B, H, M, d), (B, H, M, e)]


# A warp for a row, with rows that do not fill a block; two warps and more; all threads; more keys than a block has.
SIZES = [
    (1, 1, 1, 1, 1, 1), (2, 3, 5, 7, 4, 6), (3, 2, 33, 49, 8, 8), (1, 2, 9, 256, 3, 5), (2, 1, 3, 257, 4, 4),
    (1, 1, 2, 1500, 4, 3), (1, 1, 2, 4096, 2, 2), (1, 1, 2, 4097, 2, 2), (0, 2, 3, 4, 5, 6), (2, 2, 0, 4, 5, 6),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_shapes(sizes, dtype):
    cuda_kernels.check_shapes(ops.attention, shapes(*sizes), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("M", [7, 300])
def test_with_dropout(M, dtype):
    cuda_kernels.check_shapes(
        lambda q, k, v: ops.attention(q, k, v, dropout=0.3, generator=Generator(moved(7))),
        shapes(2, 3, 5, M, 4, 6), dtype,
    )


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 5, 7), (5, 7), (7,), (2, 1, 5, 7), (3, 1, 7)], ids=str)
def test_a_bias_and_its_gradient(shape):
    cuda_kernels.check_shapes(ops.attention, [*shapes(2, 3, 5, 7, 4, 6), shape], np.float32)


# Of a bias that is the same for all keys, the gradient is 0.
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (5, 7), (7,), (), (3, 1, 7), (5, 1), (2, 3, 1, 1), (3, 1, 1)], ids=str)
def test_a_mask_and_a_constant_bias(shape):
    mask, bias = seeded(1).random(shape) > 0.4, asarray(seeded(2).standard_normal(shape))
    cuda_kernels.check_shapes(
        lambda q, k, v: ops.attention(q, k, v, bias, mask, scale=0.3), shapes(2, 3, 5, 7, 4, 6), np.float32
    )


@pytest.mark.parametrize("bias_shape", [(2, 4, 3, 5, 7), (4, 1, 5, 7), (2, 1, 3, 5, 7), (1, 4, 3, 1, 7)], ids=str)
def test_five_axes(bias_shape):
    q, k, v = ((2, 4, 3, n, 4) for n in (5, 7, 7))
    mask = seeded(1).random((4, 1, 1, 7)) > 0.4
    cuda_kernels.check_shapes(
        lambda q, k, v, bias: ops.attention(q, k, v, bias, mask), [q, k, v, bias_shape], np.float32
    )


def test_three_axes():
    cuda_kernels.check_shapes(ops.attention, [(2, 5, 4), (2, 7, 4), (2, 7, 4), (2, 1, 7)], np.float32)


def test_a_bias_and_a_mask_that_are_not_contiguous():
    mask = np.asfortranarray(seeded(1).random((5, 7)) > 0.4)
    cuda_kernels.check_shapes(
        lambda q, k, v, table: ops.attention(q, k, v, table.permute((2, 0, 1)), mask),
        [*shapes(2, 3, 5, 7, 4, 6), (5, 7, 3)], np.float32,
    )


def test_slices_of_one_projection(monkeypatch):
    """Their gradients are parts of one array, so that joining them copies nothing."""
    def packed(qkv):
        q, k, v = qkv.reshape(2, 9, 3, 2, 4).permute((2, 0, 3, 1, 4)).unbind(0)
        return ops.attention(q, k, v).transpose(1, 2).reshape(2, 9, 8)

    cuda_kernels.check_shapes(packed, [(2, 9, 24)], np.float32)
    joined, whole_of = [], ops.shape.whole_of
    monkeypatch.setattr(ops.shape, "whole_of", lambda *given: joined.append(whole_of(*given)) or joined[-1])
    run(packed, [seeded(0).standard_normal((2, 9, 24)).astype(np.float32)])
    assert len(joined) == 1 and joined[0] is not None


@pytest.mark.parametrize("M", [7, 300])
def test_a_query_that_may_look_nowhere_gets_zeros_and_gives_none(M):
    mask = np.ones((5, M), bool)
    mask[2] = False
    arrays = [seeded(0).standard_normal(shape).astype(np.float32) for shape in shapes(2, 3, 5, M, 4, 6)]
    found = run(lambda q, k, v: ops.attention(q, k, v, mask=mask), arrays)
    assert not found["value"][0][:, :, 2].any() and not found["gradient"][0][:, :, 2].any()
    assert all(np.isfinite(x).all() for x in (*found["value"], *found["gradient"]))
    cuda_kernels.check(lambda q, k, v: ops.attention(q, k, v, mask=mask), arrays)


def test_what_a_mask_hides_may_be_anything():
    rng = seeded(0)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes(1, 2, 3, 5, 4, 4))
    mask = np.array([True, True, False, True, False])
    before = ops.attention(*(Tensor(asarray(x)) for x in (q, k, v)), mask=mask).data
    k[:, :, 2], k[:, :, 4] = np.nan, 1e30
    after = ops.attention(*(Tensor(asarray(x)) for x in (q, k, v)), mask=mask).data
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("level", [-1e9, -3e38, 1e9])
def test_a_query_whose_scores_are_all_far_from_zero_attends_to_all_keys_alike(level):
    """Where a bias of -10⁹ serves as a mask. What is added to it is lost in float32."""
    bias = asarray(np.full((5, 7), level, np.float32))
    q, k, v = (seeded(0).standard_normal(shape).astype(np.float32) for shape in shapes(2, 3, 5, 7, 4, 6))
    y = ops.attention(*(Tensor(asarray(x)) for x in (q, k, v)), bias).numpy()
    np.testing.assert_allclose(y, np.broadcast_to(v.mean(2, keepdims=True), y.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keys_on_device", [False, True])
def test_dropout_keeps_what_the_cpu_keeps(keys_on_device):
    """With q = 0, P is 1/M, and with v = 1 (M, M) the values are the probabilities that are left."""
    B, H, N, M = 2, 3, 40, 300
    draw = Generator(moved(5)).draw(0.6, (B, H, N, M))
    expected = draw.at(np.arange(math.prod(draw.shape), dtype=np.uint32)).reshape(draw.shape)
    if keys_on_device:
        draw = Draw(current().xp.asarray(np.array([*draw.keys, 0, 0], np.uint32)), draw.probability, draw.shape)
    q, k = (asarray(np.zeros((B, H, n, 1), np.float32)) for n in (N, M))
    v = asarray(np.broadcast_to(np.eye(M, dtype=np.float32), (B, H, M, M)).copy())
    y, backward = attention_over_rows(q, k, v, None, None, draw, 1.0)
    assert np.array_equal(asnumpy(y) != 0, expected)
    dv = backward(y, [True] * 4)[2]              # Pᵀ y
    p = asnumpy(y).astype(np.float64)
    np.testing.assert_allclose(asnumpy(dv), p.swapaxes(2, 3) @ p, rtol=1e-5, atol=1e-9)


def test_heads_and_images_are_not_confused():
    """Each image and head has a mask and a bias of its own, so that every exchange of indices shows."""
    rng = seeded(0)
    mask = rng.random((3, 2, 4, 5)) > 0.3
    cuda_kernels.check_shapes(
        lambda q, k, v, bias: ops.attention(q, k, v, bias, mask), [*shapes(3, 2, 4, 5, 3, 3), (3, 2, 4, 5)], np.float32
    )
