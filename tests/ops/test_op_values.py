"""Values of ops against their definitions, written out number by number, without PyTorch.

The gradient check compares an op's backward with its own forward: where both are wrong together, it passes. So here the
forward alone is compared, in float64, with what the papers' formulas give. Errors that only this finds are among those
of scripts/mutation_check.py.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scratchvit import Tensor, no_grad, ops
from scratchvit.random import Generator
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(seeded(seed).standard_normal(shape))


def assert_equal(found: Tensor, expected: object, ulps_allowed: float = 64) -> None:
    """Equal up to some roundings of float64."""
    expected = np.asarray(expected, np.float64)
    assert_close(found.numpy(), expected, ulps(expected, ulps_allowed, np.float64))


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.array([math.exp(x) for x in row])
    return powers / math.fsum(powers)


# --- softmax, attention, dropping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_and_its_logarithm(dim):
    x = normal(3, 4, 5)
    p = np.apply_along_axis(softmax, dim, x)
    assert_equal(ops.softmax(Tensor(x), dim), p)
    assert_equal(ops.log_softmax(Tensor(x), dim), np.log(p))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_gradient_of_log_softmax_sums_the_axis_it_normalises(dim):
    x, dy = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    tensor = Tensor(x, requires_grad=True)
    ops.log_softmax(tensor, dim).backward(dy)
    assert_equal(Tensor(tensor.grad), dy - np.apply_along_axis(softmax, dim, x) * dy.sum(axis=dim, keepdims=True))


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_equation_1(scale, blocks):
    q, k, v = normal(2, 3, 8), normal(2, 4, 8, seed=1), normal(2, 4, 5, seed=2)
    bias, mask = normal(3, 4, seed=3), normal(2, 3, 4, seed=4) > -1
    mask[..., 0] = True
    expected = np.zeros((2, 3, 5))
    for image, query in np.ndindex(2, 3):
        seen = np.flatnonzero(mask[image, query])
        scores = [q[image, query] @ k[image, key] * (scale or 8**-0.5) + bias[query, key] for key in seen]
        expected[image, query] = softmax(np.array(scores)) @ v[image, seen]
    assert_equal(ops.attention(q, k, v, bias=Tensor(bias), mask=mask, scale=scale, blocks=blocks), expected)


def test_dropout_keeps_single_entries_and_the_mean():
    """Of ones: 0 or 1 / (1 - p), each entry by itself."""
    y = ops.dropout(Tensor(np.ones((100, 200))), 0.2, generator=Generator(7)).numpy()
    assert set(np.unique(y)) == {0, 1 / 0.8}
    assert abs(y.mean() - 1) < 0.02                                     # 5.6 of its deviations
    assert len(np.unique(y.sum(axis=1))) > 10


def test_drop_path_keeps_whole_samples_and_the_mean():
    y = ops.drop_path(Tensor(np.ones((2000, 3, 2))), 0.2, generator=Generator(7)).numpy().reshape(2000, 6)
    assert set(np.unique(y)) == {0, 1 / 0.8}
    assert (y == y[:, :1]).all()
    assert abs(y.mean() - 1) < 0.06                                     # 5.4 of its deviations


# --- activations ----------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "erf": math.erf,
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = np.linspace(-4, 4, 81)
    assert_equal(getattr(ops, name)(Tensor(x)), [ACTIVATIONS[name](number) for number in x])


def test_gelu_with_tanh():
    x = np.linspace(-4, 4, 81)
    expected = [z / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) for z in x]
    assert_equal(ops.gelu(Tensor(x), approximate="tanh"), expected)


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_labels_and_of_distributions(smoothing, weighted):
    x, labels, C = normal(4, 5), np.array([2, -100, 4, 0]), 5
    weight = np.array([0.5, 2.0, 1.0, 0.25, 1.75]) if weighted else np.ones(C)      # of the labels not 3 together
    options = {"weight": weight, "label_smoothing": smoothing}

    def of_row(scores: np.ndarray, target: np.ndarray) -> float:
        q = (1 - smoothing) * target + smoothing / C
        return -math.fsum(weight * q * np.log(softmax(scores)))

    one_hot = np.eye(C)
    rows = [0.0 if label == -100 else of_row(scores, one_hot[label]) for scores, label in zip(x, labels)]
    sums = {"none": rows, "sum": sum(rows), "mean": sum(rows) / (weight[2] + weight[4] + weight[0])}
    for reduction, expected in sums.items():
        assert_equal(ops.cross_entropy(Tensor(x), labels, reduction=reduction, **options), expected)

    target = seeded(1).dirichlet(np.ones(C), 4)
    rows = [of_row(scores, q) for scores, q in zip(x, target)]
    for reduction, expected in {"none": rows, "sum": sum(rows), "mean": sum(rows) / 4}.items():
        assert_equal(ops.cross_entropy(Tensor(x), target, reduction=reduction, **options), expected)


LOSSES = {      # of numbers x and t in (0, 1)
    "l1_loss": lambda x, t: abs(x - t),
    "mse_loss": lambda x, t: (x - t) ** 2,
    "smooth_l1_loss": lambda x, t: (x - t) ** 2 / 0.6 if abs(x - t) < 0.3 else abs(x - t) - 0.15,
    "kl_div": lambda x, t: t * (math.log(t) - x),
    "binary_cross_entropy": lambda x, t: -t * math.log(x) - (1 - t) * math.log(1 - x),
    "binary_cross_entropy_with_logits": lambda x, t: math.log(1 + math.exp(x)) - t * x,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_pairs(name):
    x, t = seeded(0).uniform(0.05, 0.95, (2, 6, 7))
    options = {"beta": 0.3} if name == "smooth_l1_loss" else {}
    expected = np.vectorize(LOSSES[name])(x, t)
    for reduction, value in (("none", expected), ("sum", expected.sum()), ("mean", expected.mean())):
        assert_equal(getattr(ops, name)(Tensor(x), Tensor(t), reduction=reduction, **options), value)
    if name == "kl_div":
        assert_equal(ops.kl_div(Tensor(x), Tensor(t), reduction="batchmean"), expected.sum() / 6)


def test_focal_loss_is_equation_5():
    x, t = normal(4, 5), normal(4, 5, seed=1) > 0
    p = np.where(t, 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x)))
    expected = -np.where(t, 0.25, 0.75) * (1 - p) ** 2 * np.log(p)
    assert_equal(ops.sigmoid_focal_loss(Tensor(x), t), expected)


# --- windows that slide ---------------------------------------------------------------------------------------------


def slide(x, kernel, stride, before, after, dilation, fill):
    """((i, j), window (B, C, kH, kW)) of every place."""
    x = np.pad(x, ((0, 0), (0, 0), *zip(before, after)), constant_values=fill)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    starts = [range(0, n - r, s) for n, r, s in zip(x.shape[2:], reach, stride)]
    for place in itertools.product(*(enumerate(axis) for axis in starts)):
        (i, top), (j, left) = place
        rows, columns = (slice(a, a + r + 1, d) for a, r, d in zip((top, left), reach, dilation))
        yield (i, j), x[:, :, rows, columns]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups", "pads"),
    [
        ((3, 2), (2, 1), (1, 0), (1, 2), 1, ((1, 0), (1, 0))),
        ((3, 3), (1, 2), (2, 1), (1, 1), 2, ((2, 1), (2, 1))),
        ((3, 3), (1, 2), (1, 1), (1, 1), 4, ((1, 1), (1, 1))),
        ((2, 3), (2, 3), (0, 0), (1, 1), 1, ((0, 0), (0, 0))),          # patches
        ((4, 3), (1, 2), "same", (1, 1), 1, ((1, 0), (2, 1))),          # 6 and 8 long: 3 and 1 more, most of it after
    ],
)
def test_conv2d_is_the_sum_over_its_window(kernel, stride, padding, dilation, groups, pads):
    x, weight, bias = normal(2, 4, 6, 8), normal(8, 4 // groups, *kernel, seed=1), normal(8, seed=2)
    found = ops.conv2d(x, Tensor(weight), Tensor(bias), stride, padding, dilation, groups)
    expected = np.full(found.shape, np.nan)
    for (i, j), window in slide(x, kernel, stride, *pads, dilation, 0.0):
        for o in range(8):
            first = o // (8 // groups) * (4 // groups)
            expected[:, o, i, j] = bias[o] + (weight[o] * window[:, first : first + 4 // groups]).sum((1, 2, 3))
    assert_equal(found, expected)


def test_pooling_takes_the_greatest_or_the_mean_of_its_window():
    x, kernel, stride, padding = normal(2, 3, 6, 8), (3, 2), (1, 2), (1, 1)
    greatest = ops.max_pool2d(Tensor(x), kernel, stride, padding)
    mean = ops.avg_pool2d(Tensor(x), kernel, stride, padding)
    inside = ops.avg_pool2d(Tensor(x), kernel, stride, padding, count_include_pad=False)
    expected = np.full((3, *greatest.shape), np.nan)
    for (i, j), window in slide(x, kernel, stride, padding, padding, (1, 1), np.nan):
        expected[0, :, :, i, j] = np.nanmax(window, axis=(2, 3))
        expected[1, :, :, i, j] = np.nansum(window, axis=(2, 3)) / 6
        expected[2, :, :, i, j] = np.nanmean(window, axis=(2, 3))
    for found, value in zip((greatest, mean, inside), expected):
        assert_equal(found, value)


@pytest.mark.parametrize("pool, options", [
    (ops.max_pool2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (ops.max_pool2d, {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)}),
    (ops.max_pool2d, {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    (ops.max_pool2d, {"kernel_size": 2, "stride": 1, "dilation": (3, 2)}),
    (ops.max_pool2d, {"kernel_size": 3, "stride": 2, "padding": "same"}),
    (ops.max_pool3d, {"kernel_size": (2, 3, 1), "stride": (1, 2, 2), "padding": (1, 1, 0)}),
])
def test_maxima_are_the_same_whether_or_not_they_are_recorded(pool, options):
    x = normal(2, 3, 5, 9, 8) if pool is ops.max_pool3d else normal(2, 3, 9, 8)
    x[0, 1, ..., 4, 4], x[1, 2, ..., 6] = np.nan, -np.inf
    recorded = pool(Tensor(x, requires_grad=True), **options).numpy()
    with no_grad():
        found = pool(Tensor(x), **options).numpy()
    assert np.isnan(found).any() and np.array_equal(found, recorded, equal_nan=True)


def test_of_equal_entries_the_first_gets_the_gradient_of_the_maximum():
    x = Tensor(np.zeros((1, 1, 2, 4)), requires_grad=True)
    ops.max_pool2d(x, 2).backward(np.array([[[[3.0, 5.0]]]]))
    assert x.grad.tolist() == [[[[3, 0, 5, 0], [0, 0, 0, 0]]]]


# --- resizing -------------------------------------------------------------------------------------------------------


def keys_cubic(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("after", [3, 5, 8, 13])
def test_resizing_samples_between_the_centres_of_pixels(mode, after):
    """A row of 5: the centre of pixel i of n lies at (i + ½) / n of the length; the border goes on outside."""
    x, before = normal(1, 1, 1, 5), 5
    row, expected = x[0, 0, 0], []
    for i in range(after):
        place = (i + 0.5) * before / after - 0.5
        if mode == "nearest":
            expected.append(row[i * before // after])
            continue
        place = max(place, 0.0) if mode == "bilinear" else place
        kernel = keys_cubic if mode == "bicubic" else lambda d: max(0.0, 1 - abs(d))
        pixels = range(math.floor(place) - 1, math.floor(place) + 3)
        expected.append(sum(kernel(place - pixel) * row[min(max(pixel, 0), before - 1)] for pixel in pixels))
    assert_equal(ops.interpolate(Tensor(x), size=(1, after), mode=mode)[0, 0, 0], expected)


# --- equal entries --------------------------------------------------------------------------------------------------


def test_equal_entries_share_the_gradient_of_the_extreme():
    x = np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    for extreme, shares in ((ops.max, [[0, 4, 4, 0], [1, 1, 1, 1]]), (ops.min, [[0, 0, 0, 8], [1, 1, 1, 1]])):
        tensor = Tensor(x, requires_grad=True)
        extreme(tensor, dim=1).backward(np.array([8.0, 4.0]))
        assert tensor.grad.tolist() == shares
