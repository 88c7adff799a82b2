"""What convolution, pooling and resizing say when they cannot, and what a row of the op table cannot express."""

from __future__ import annotations

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.backend import asnumpy
from scratchvit.kernels import depthwise
from scratchvit.tensor import Tensor
from tests.cases import pool
from tests.support.margins import agree, assert_all_close, rounding
from tests.support.seeds import seeded


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize(("call", "says"), [
    (lambda: ops.conv2d(zeros(3, 8, 8), zeros(4, 3, 3, 3)), r"\(B, C, H, W\).*\(3, 8, 8\).*\(4, 3, 3, 3\)"),
    (lambda: ops.conv3d(zeros(1, 3, 8, 8), zeros(4, 3, 3, 3)), r"\(B, C, T, H, W\)"),
    (lambda: ops.conv2d(zeros(1, 3, 8, 8), zeros(4, 5, 3, 3)), r"\(1, 3, 8, 8\) has 3 channels.*takes 5"),
    (lambda: ops.conv2d(zeros(1, 4, 8, 8), zeros(3, 2, 3, 3), groups=2), "groups must divide both"),
    (lambda: ops.conv2d(zeros(1, 3, 8, 8), zeros(4, 3, 3, 3), zeros(3)), r"bias has shape \(3,\).*gives 4 channels"),
    (lambda: ops.conv2d(zeros(1, 3, 2, 8), zeros(4, 3, 3, 3)), r"kernel \(3, 3\).*larger than the input \(2, 8\)"),
    (lambda: ops.conv2d(zeros(1, 3, 8, 8), zeros(4, 3, 3, 3), stride=0), "stride must be an integer of at least 1"),
    (lambda: ops.conv2d(zeros(1, 3, 8, 8), zeros(4, 3, 3, 3), padding=(1, 1, 1)), "padding must be .* 2 of them"),
    (lambda: ops.conv2d(zeros(1, 3, 8, 8), zeros(4, 3, 3, 3), padding="full"), '"same", "valid" or numbers'),
    (lambda: ops.max_pool2d(zeros(3, 8, 8), 2), r"max_pool2d: x must be \(B, C, H, W\), not \(3, 8, 8\)"),
    (lambda: ops.max_pool2d(zeros(1, 3, 8, 8), 2, padding=2), "at most half of kernel_size"),
    (lambda: ops.max_pool2d(zeros(1, 3, 8, 8), 2, padding="same", dilation=2), "needs dilation 1"),
    (lambda: ops.avg_pool2d(zeros(1, 3, 8, 8), 2, padding="same"), "padding must be an integer"),
    (lambda: ops.avg_pool2d(zeros(1, 3, 2, 8), 3), r"window \(3, 3\).*larger than x of shape \(1, 3, 2, 8\)"),
    (lambda: ops.interpolate(zeros(3, 8, 8), 4, mode="bilinear"), r"x must be \(B, C, H, W\).*not \(3, 8, 8\)"),
    (lambda: ops.interpolate(zeros(1, 3, 8, 8)), "give either size or scale_factor"),
    (lambda: ops.interpolate(zeros(1, 3, 8, 8), 4, 2.0), "give either size or scale_factor"),
    (lambda: ops.interpolate(zeros(1, 3, 8, 8), 4, mode="area"), "mode must be one of 'nearest', .*not 'area'"),
    (lambda: ops.interpolate(zeros(1, 3, 8, 8), 4, mode="nearest", antialias=True), "cannot be used .* 'nearest'"),
    (lambda: ops.interpolate(zeros(1, 3, 8, 8), scale_factor=0.1), "sizes must be at least 1"),
])
def test_errors_name_what_was_given(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parity
@pytest.mark.parametrize("case", pool.TIES, ids=str)
def test_at_a_tie_the_first_maximum_gets_the_gradient(case) -> None:
    torch = pytest.importorskip("torch")
    x = case.make()[0]
    theirs = torch.tensor(x, requires_grad=True)
    y = case.theirs(torch, theirs)
    dy = seeded(0).standard_normal(tuple(y.shape))
    y.backward(torch.tensor(dy))

    def gradient():
        ours = Tensor(x, requires_grad=True)
        case.ours(ours).backward(dy)
        return ours.grad

    agree(gradient, theirs.grad, dtype=np.float64)


def test_a_nan_is_the_maximum_of_its_windows() -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    x[0, 0, 1, 0] = np.nan
    y = ops.max_pool2d(Tensor(x), 2).numpy()
    np.testing.assert_array_equal(y[0, 0], [[np.nan, 7], [13, 15]])


def big(*shape: int, seed: int = 0) -> np.ndarray:
    return seeded(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("x", "weight", "options"), [
    ((6, 32, 40, 40), (48, 32, 3, 3), {"padding": 1}),
    ((6, 32, 40, 40), (48, 32, 3, 3), {"stride": 2, "padding": 1}),
    ((1, 64, 90, 90), (32, 64, 3, 3), {"padding": 1}),
    ((5, 64, 40, 40), (160, 64, 3, 3), {"stride": 2, "padding": 1}),
    ((40, 128, 8, 8), (64, 64, 3, 3), {"padding": 1, "groups": 2}),
    ((7, 64, 40, 40), (128, 64, 1, 1), {}),
    ((6, 96, 40, 40), (96, 1, 3, 3), {"padding": 1, "groups": 96}),
    ((9, 3, 96, 96), (64, 3, 16, 16), {"stride": 16}),
], ids=str)
def test_blocks_and_threads_change_nothing(x, weight, options) -> None:
    """Sizes at which the work is cut into blocks and dealt to threads; twice, to see the same sums both times."""
    torch = pytest.importorskip("torch")
    arrays = [big(*x), big(*weight), big(weight[0])]

    def run() -> list[np.ndarray]:
        tensors = [Tensor(array, requires_grad=True) for array in arrays]
        y = ops.conv2d(*tensors, **options)
        y.backward(big(*y.shape, seed=1))
        return [y.numpy(), *(t.grad for t in tensors)]

    found, again = run(), run()
    assert all(np.array_equal(a, b) for a, b in zip(found, again))
    theirs = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    y = torch.nn.functional.conv2d(*theirs, **options)
    y.backward(torch.tensor(big(*y.shape, seed=1)).double())
    assert_all_close(found, [y, *(t.grad for t in theirs)], rounding(run, samples=1))


@pytest.mark.parametrize("fn", [
    lambda x, w: ops.conv2d(x, w, padding=1),
    lambda x, w: ops.conv2d(x, w, stride=3),
    lambda x, w: ops.conv2d(x, w[:, :1], groups=3),
    lambda x, w: ops.max_pool2d(x, 2) * w.sum(),
    lambda x, w: ops.avg_pool2d(x, 2) * w.sum(),
    lambda x, w: ops.interpolate(x, 4, mode="bilinear") * w.sum(),
])
def test_a_batch_of_no_images(fn) -> None:
    x, w = Tensor(big(0, 3, 6, 6), requires_grad=True), Tensor(big(3, 3, 3, 3), requires_grad=True)
    y = fn(x, w)
    y.backward(np.zeros(y.shape, np.float32))
    assert len(y) == 0 and x.grad.shape == x.shape and not w.grad.any()


def test_depthwise_in_blocks_of_images(device, monkeypatch) -> None:
    """As on a GPU, where memory limits them."""
    x, w = big(5, 4, 6, 6), big(4, 1, 3, 3)

    def run() -> list[np.ndarray]:
        tensors = [Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)]
        y = ops.conv2d(*tensors, stride=2, padding=1, groups=4)
        (y * y).sum().backward()
        return [y.numpy(), *(asnumpy(t.grad) for t in tensors)]

    whole, bounds = run(), rounding(run)
    monkeypatch.setattr(depthwise, "BLOCK_BYTES", 2 * 4 * 4 * 36)
    monkeypatch.setattr(depthwise, "BLOCK_BYTES_GPU", 2 * 9 * 4 * 4 * 36)       # two images
    assert_all_close(run(), whole, bounds)
