"""What losses say when they cannot, and the edges that a row of the op table cannot express."""

from __future__ import annotations

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.tensor import Tensor
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded
from tests.support.strict_array import no_transfers

x = Tensor(seeded(0).standard_normal((3, 4)).astype(np.float32), requires_grad=True)
other = Tensor(np.zeros((4, 3), np.float32))


@pytest.mark.parametrize(("call", "says"), [
    (lambda: ops.cross_entropy(x, [0, 7, 4]), "label 7 is not one of the 4 classes"),
    (lambda: ops.cross_entropy(x, [0, -1, 9]), "label -1 is not one of the 4 classes"),
    (lambda: ops.cross_entropy(x, [0, 1]), r"\(3, 4\).*class indices must have shape \(3,\), not \(2,\)"),
    (lambda: ops.cross_entropy(x, [0.5, 0.5, 0.0]), r"x's shape \(3, 4\), not \(3,\)"),
    (lambda: ops.cross_entropy(x, [True, False, True]), "integers .* or floats"),
    (lambda: ops.cross_entropy(x, [0, 1, 2], weight=[1, 2, 3]), r"weight has shape \(3,\).*4 classes"),
    (lambda: ops.cross_entropy(x, [0, 1, 2], label_smoothing=1.5), "label_smoothing must be in"),
    (lambda: ops.cross_entropy(x, [0, 1, 2], reduction="avg"), "'mean', 'sum', 'none', not 'avg'"),
    (lambda: ops.cross_entropy(x[0], 1), r"\(B, C\).*not \(4,\)"),
    (lambda: ops.mse_loss(x, other), r"mse_loss: target has shape \(4, 3\), x has shape \(3, 4\)"),
    (lambda: ops.smooth_l1_loss(x, x, beta=-1), "beta must be 0 or more"),
    (lambda: ops.binary_cross_entropy(x, x), "binary_cross_entropy_with_logits"),
    (lambda: ops.sigmoid_focal_loss(x, [[0, 1]]), r"focal_loss: target has shape \(1, 2\), x has shape \(3, 4\)"),
    (lambda: ops.sigmoid_focal_loss(x, x, reduction="avg"), "'none', 'mean', 'sum', not 'avg'"),
])
def test_errors_name_what_was_given(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("wrong", [4, -1, -101, 2**40])
def test_a_label_out_of_range_is_never_silent(wrong: int, device: str) -> None:
    """In a NumPy array it is refused on every device. Elsewhere, a GPU would have to wait: there the loss is NaN."""
    labels, weight = np.array([0, wrong, 3, -100]), np.array([1, 2, 3, 4], np.float32)
    scores = Tensor(seeded(0).standard_normal((4, 4)).astype(np.float32), requires_grad=True)
    with pytest.raises(ValueError, match=f"label {wrong} is not one of the 4 classes 0…3"):
        ops.cross_entropy(scores, labels)
    on_device = asarray(labels)
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"weight": weight, "label_smoothing": 0.1}):
        if device == "cpu":
            with pytest.raises(ValueError, match=f"label {wrong} is not one of the 4 classes 0…3"):
                ops.cross_entropy(scores, on_device, **options)
            continue
        for reduction in ("mean", "sum"):
            scores.grad = None
            with no_transfers():
                loss = ops.cross_entropy(scores, on_device, reduction=reduction, **options)
                loss.backward()
            gradient = asnumpy(scores.grad)
            assert np.isnan(loss.item()) and np.isnan(gradient[1]).all()
        rows = ops.cross_entropy(scores, on_device, reduction="none", **options).numpy()
        expected = ops.cross_entropy(scores, np.array([0, 1, 3, -100]), reduction="none", **options).numpy()
        assert np.isnan(rows[1]) and np.array_equal(rows[[0, 2, 3]], expected[[0, 2, 3]])


def test_labels_of_every_integer_type_on_every_device(device: str) -> None:
    scores = Tensor(seeded(0).standard_normal((3, 4)).astype(np.float32))
    expected = ops.cross_entropy(scores, np.array([0, 3, 1])).item()
    for dtype in (np.int8, np.uint8, np.int32, np.uint64):
        labels = np.array([0, 3, 1], dtype)
        assert ops.cross_entropy(scores, labels).item() == ops.cross_entropy(scores, asarray(labels)).item() == expected
    with pytest.raises(ValueError, match="label 200 is not one"):
        ops.cross_entropy(scores, np.array([0, 200, 1], np.uint8))


def test_when_every_label_is_ignored_the_sum_is_zero_and_the_mean_undefined() -> None:
    labels = [-100, -100, -100]
    loss = ops.cross_entropy(x, labels, reduction="sum")
    loss.backward()
    assert loss.item() == 0 and not x.grad.any()
    with np.errstate(invalid="ignore"):
        assert np.isnan(ops.cross_entropy(x, labels).item())


def test_large_and_infinite_scores_give_finite_losses() -> None:
    scores = Tensor(np.array([[1e4, -1e4, 0.0], [-np.inf, 2.0, 2.0]], np.float32), requires_grad=True)
    loss = ops.cross_entropy(scores, [0, 1], reduction="none")
    loss.backward(np.ones(2, np.float32))
    assert_close(loss, np.log([1, 2]), ulps(np.log(2), 2))
    assert_close(scores.grad, np.array([[0, 0, 0], [0, -0.5, 0.5]]), ulps(1.0, 1))
    logits = Tensor(np.array([1e4, -1e4], np.float32))
    np.testing.assert_array_equal(
        ops.binary_cross_entropy_with_logits(logits, np.array([1.0, 1.0]), reduction="none").numpy(), [0, 1e4]
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_large_scores_is_finite_and_nothing_where_they_are_right(gamma) -> None:
    scores = Tensor(np.array([1e4, -1e4, 1e4, -1e4], np.float32), requires_grad=True)
    loss = ops.sigmoid_focal_loss(scores, np.array([1.0, 1.0, 0.0, 0.0]), gamma=gamma)
    loss.sum().backward()
    np.testing.assert_array_equal(loss.numpy(), [0, 0.25e4, 0.75e4, 0])
    np.testing.assert_array_equal(scores.grad, [0, -0.25, 0.75, 0])


def test_probabilities_of_zero_and_one_cost_at_most_a_hundred() -> None:
    p = Tensor(np.array([0.0, 1.0, 0.0], np.float32))
    loss = ops.binary_cross_entropy(p, np.array([0.0, 0.0, 1.0]), reduction="none")
    np.testing.assert_array_equal(loss.numpy(), [0, 100, 100])


def test_a_distribution_with_zeros_has_a_finite_divergence() -> None:
    log_p = Tensor(np.log(np.array([[0.25, 0.75]], np.float32)), requires_grad=True)
    loss = ops.kl_div(log_p, np.array([[0.0, 1.0]], np.float32), reduction="batchmean")
    loss.backward()
    assert_close(loss, -np.log(0.75), ulps(np.log(0.75), 2))
    np.testing.assert_array_equal(log_p.grad, [[0, -1]])


def test_what_is_ignored_may_be_nan_or_infinite(device) -> None:
    """The padding of a batch may hold anything; PyTorch leaves it out of the sum."""
    scores, labels = np.array([[1, 2], [np.nan, 0], [np.inf, 0], [0, 0]], np.float32), [0, -100, -100, 1]
    for smoothing in (0.0, 0.1):
        with np.errstate(invalid="ignore"):     # ∞ - ∞
            loss = ops.cross_entropy(Tensor(scores), labels, label_smoothing=smoothing, reduction="none").numpy()
        assert loss[1] == loss[2] == 0 and np.isfinite(loss).all()
    x = Tensor(np.array([[1, 2], [3, 4]], np.float32), requires_grad=True)
    ops.cross_entropy(x, [-100, 0], reduction="none").backward(np.array([np.inf, 1], np.float32))
    assert not asnumpy(x.grad)[0].any() and np.isfinite(asnumpy(x.grad)).all()


def test_targets_are_probabilities(device) -> None:
    x = np.zeros(2, np.float32)
    for op in (ops.sigmoid_focal_loss, ops.binary_cross_entropy):
        for wrong in ([0.0, 2.0], [-0.1, 0.0], [np.nan, 0.0]):
            if device == "cpu":
                with pytest.raises(ValueError, match=rf"^{op.__name__}: target holds probabilities, but lies in"):
                    op(x, np.array(wrong, np.float32))
