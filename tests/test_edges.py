"""Numbers without axes, arrays of one entry, empty batches, wrong dtypes, and contexts inside contexts."""


import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.random import Generator
from tests.support.margins import assert_close, ulps
from tests.support.seeds import moved, seeded


def leaf(values, dtype=np.float32):
    return sv.Tensor(np.asarray(values, dtype), requires_grad=True)


@pytest.mark.parametrize("loss", [ops.mse_loss, ops.l1_loss, ops.smooth_l1_loss, ops.binary_cross_entropy_with_logits])
def test_losses_of_single_numbers(device, loss):
    x = leaf(3.0)
    loss(x, sv.Tensor(1.0)).backward()
    assert x.grad.shape == ()


def test_gradients_of_one_entry_are_arrays_of_their_own(device):
    x = leaf([2.0])
    x.mean().backward()
    x.mean().backward()
    h = x * 1
    (h.mean() + h.mean() + ops.einsum("i->", x)).backward()
    assert sv.backend.asnumpy(x.grad).tolist() == [5.0]
    sv.optim.clip_grad_norm([nn.Parameter(np.ones(1, np.float32))], 1.0)


def test_a_sum_of_a_single_number(device):
    assert sv.Tensor(2.0).sum(-1).item() == 2.0
    with pytest.raises(IndexError, match=r"dim 5 is not an axis of an array of shape \(2, 3\)"):
        leaf(np.ones((2, 3))).sum(5)


def test_powers(device):
    x = leaf([0.0, 2.0])
    (x**0 + x**3).sum().backward()
    assert sv.backend.asnumpy(x.grad).tolist() == [0.0, 12.0]
    with pytest.raises(TypeError, match="plain number"):
        x**x


def test_sigmoid_keeps_small_values(device):
    x = leaf([-20.0, -1000.0, 0.0, 1000.0])
    small, *others = ops.sigmoid(x).numpy()
    assert_close(small, 1 / (1 + np.exp(20.0)), ulps(2.06e-9, 4))
    assert others == [0, 0.5, 1]


def test_host_conditions_and_scalars_on_either_side(device):
    x = leaf([-1.0, 2.0])
    assert ops.where(np.array([True, False]), x, 0.0).numpy().tolist() == [-1, 0]
    assert ops.maximum(0.0, x).numpy().tolist() == [0, 2]


def test_small_integer_indices(device):
    weight = leaf(np.zeros((300, 2)))
    ops.embedding(np.array([1, 1, 255], np.uint8), weight).sum().backward()
    assert sv.backend.asnumpy(weight.grad)[[1, 255], 0].tolist() == [2, 1]


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg", "pos_embed": "sincos"}], ids=str)
def test_an_empty_batch_goes_through_and_back(device, options):
    model = sv.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3, **options
    )
    logits = model(np.zeros((0, 3, 8, 8), np.float32))
    logits.sum().backward()
    assert logits.shape == (0, 3)
    assert all(p.grad is not None and not sv.backend.asnumpy(p.grad).any() for p in model.parameters())
    for norm in (nn.GroupNorm(2, 4), nn.BatchNorm2d(4).eval()):
        norm(leaf(np.zeros((0, 4, 2, 2)))).sum().backward()


def test_images_of_another_dtype():
    model = sv.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    images = seeded(0).integers(0, 256, (2, 3, 8, 8))
    expected = model(images.astype(np.float32)).numpy()
    for dtype in (np.int64, np.float64):
        assert np.array_equal(model(images.astype(dtype)).numpy(), expected)
    with pytest.raises(sv.ScratchvitError, match="images as floats, it was given uint8: normalise them"):
        model(images.astype(np.uint8))
    with pytest.raises(TypeError, match="x is uint8, but conv2d takes floating-point numbers"):
        ops.conv2d(images.astype(np.uint8), np.ones((1, 3, 2, 2), np.float32))


def test_a_tensor_does_not_become_an_array_unasked():
    with pytest.raises(TypeError, match=r"use \.numpy\(\)"):
        np.asarray(leaf([1.0]))


def test_data_stays_on_its_device():
    from tests.support.strict_array import STRICT, StrictArray

    x = sv.Tensor([1.0])
    sv.use(STRICT)
    try:
        assert isinstance((x * 2.0).data, np.ndarray)
        y = sv.Tensor([1.0])
    finally:
        sv.use("cpu")
    assert isinstance((y * 2.0).data, StrictArray)


# --- contexts inside contexts ---


def test_checkpoint_draws_again_what_ops_without_a_generator_drew():
    x = leaf(np.ones(64))
    y = sv.checkpoint(lambda x: ops.dropout(x, 0.5), x)
    y.sum().backward()
    assert np.array_equal(x.grad, y.numpy())


def test_checkpoints_inside_checkpoints_draw_again():
    one, two = Generator(moved(1)), Generator(moved(2))

    def inner(x):
        return ops.dropout(x, 0.5, generator=one) if x.shape[0] == 64 else x

    def outer(x):
        return ops.dropout(sv.checkpoint(inner, x), 0.5, generator=two)

    x = leaf(np.ones(64))
    y = sv.checkpoint(outer, x)
    y.sum().backward()
    assert np.array_equal(x.grad, y.numpy())


def test_recording_inside_recording():
    q = leaf(np.ones((1, 2, 3, 4)))
    with ops.record_attention() as outside:
        with ops.record_attention() as inside:
            ops.attention(q, q, q)
        ops.attention(q, q, q)
    assert (len(outside), len(inside)) == (2, 1)
