"""The right values at the edges: long sums, nothing at all, infinities, small integers, half precision.

What PyTorch gives is written beside the value; tests/ops/test_op_db.py compares with PyTorch itself.
"""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.backend import asnumpy
from scratchvit.kernels.masks import masked
from scratchvit.kernels.sums import total
from scratchvit.tensor import Tensor
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

INF, NAN = math.inf, math.nan


def leaf(values, dtype=np.float32) -> Tensor:
    return Tensor(np.asarray(values, dtype), requires_grad=True)


def gradient(t: Tensor) -> np.ndarray:
    assert t.grad is not None
    return asnumpy(t.grad)


# --- sums ------------------------------------------------------------------------------------------------------------

LONG = [
    ((300_000, 2), (0,)), ((1_000_000, 10), (0,)), ((25_216, 192), (0,)), ((64, 196, 192), (0, 1)),
    ((64, 196, 48), (1,)), ((2, 64, 60, 60), (0, 2, 3)), ((40, 5, 3000, 7), (0, 2)), ((100_000, 4, 3), (0, 2)),
    ((1 << 21,), (0,)),
]


@pytest.mark.parametrize(("shape", "axes"), LONG, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_long_sums_keep_their_digits(shape, axes, offset) -> None:
    """PyTorch: 1e-7 to 7e-7. A running sum is off by 6e-6 to 1e-2 here, and by more with the offset."""
    x = seeded(0).random(shape, dtype=np.float32) + np.float32(offset)
    exact = x.astype(np.float64).sum(axis=axes)
    assert_close(ops.sum(x, axes), exact, ulps(exact, 6))
    assert_close(ops.mean(x, axes, True), x.astype(np.float64).mean(axis=axes, keepdims=True), ulps(x.mean(), 6))


def test_a_sum_as_long_as_a_batch_of_clips() -> None:
    x = np.full((10_000_000, 2), 0.1, np.float32)
    exact = x.astype(np.float64).sum(axis=0)
    # Equal numbers are all rounded the same way. 128 of them, one by one, are off by at most 32 units: half a unit of
    # partial sums that grow. It is 5 in most of OpenBLAS's kernels, 8.3 in the oldest, 8 in PyTorch; 4e5 if all are.
    assert_close(ops.sum(x, 0), exact, ulps(exact, 32))
    assert ops.mean(np.ones((2**25, 2), np.float32), 0).numpy().tolist() == [1, 1]      # a running sum stays at 2²⁴


@pytest.mark.parametrize("axes", [axes for n in range(5) for axes in itertools.combinations(range(4), n)], ids=str)
@pytest.mark.parametrize("layout", ["C", "transposed", "every other", "reversed"])
def test_sums_over_any_axes_of_any_layout(axes, layout) -> None:
    x = seeded(1).standard_normal((6, 40, 7, 30)).astype(np.float32)
    layouts = {
        "C": x, "transposed": x.transpose(2, 0, 3, 1), "every other": x[::2, :, :, ::2], "reversed": x[:, ::-1],
    }
    x = layouts[layout]
    for keepdims in (False, True):
        found, expected = total(x, axes, keepdims), x.astype(np.float64).sum(axis=axes, keepdims=keepdims)
        assert found.dtype == np.float32
        assert_close(found, expected, ulps(np.abs(x.astype(np.float64)).sum(axis=axes).max(), 4))


@pytest.mark.parametrize("noise", [1.0, 0.1, 0.01])
def test_a_variance_far_from_zero(noise) -> None:
    """PyTorch: 4e-8 off. By a rounded mean it was 56 instead of 1, and with less noise 5e5 times too large."""
    x = (1e4 + noise * seeded(0).standard_normal((100_000, 10))).astype(np.float32)
    exact = x.astype(np.float64).var(axis=0, ddof=1)
    assert_close(ops.var(x, 0), exact, ulps(exact, 6))
    t = Tensor(x, requires_grad=True)
    ops.var(t, 0).sum().backward()
    slope = 2 * (x.astype(np.float64) - x.astype(np.float64).mean(axis=0)) / (len(x) - 1)
    assert_close(gradient(t), slope, ulps(slope, 6))


@pytest.mark.parametrize("rows", [25_216, 1_000_000])
def test_the_gradient_of_what_was_broadcast_over_many_rows(rows) -> None:
    """PyTorch: 1.5e-7; a running sum 7e-6 and 1.9e-5."""
    dy = seeded(0).random((rows, 8), dtype=np.float32)
    bias, scale = leaf(np.ones(8)), leaf(np.ones(1))
    (np.ones((rows, 8), np.float32) * scale + bias).backward(dy)
    exact = dy.astype(np.float64).sum(axis=0)
    assert_close(gradient(bias), exact, ulps(exact, 4))
    assert_close(gradient(scale), exact.sum(keepdims=True), ulps(exact.sum(), 4))


def test_sums_need_no_copy_of_what_is_summed() -> None:
    x = np.ones((100_000, 64), np.float32)
    total(x, (0,))
    tracemalloc.start()
    total(x, (0,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 20


@pytest.mark.parametrize("name", ["sum", "mean", "var", "max", "min"])
def test_dims_as_in_pytorch(name, device) -> None:
    x = leaf(seeded(0).standard_normal((2, 3, 4)))
    op = getattr(ops, name)
    assert op(x, ()).shape == op(x).shape == () and op(x, (-1, 0)).shape == (3,)
    with pytest.raises(IndexError, match=rf"{name}: dim 3 is not an axis of an array of shape \(2, 3, 4\)"):
        op(x, 3)
    with pytest.raises(ValueError, match=rf"{name}: dims \(1, -2\) name an axis .* twice"):
        op(x, (1, -2))


# --- nothing at all --------------------------------------------------------------------------------------------------


def test_means_of_nothing_are_nan_and_have_no_gradient(device) -> None:
    for op in (ops.mean, ops.var):
        x = leaf(np.zeros((2, 0)))
        y = op(x, 1)
        assert np.isnan(y.numpy()).all() and y.shape == (2,)
        y.backward(np.ones(2, np.float32))
        assert gradient(x).shape == (2, 0)
    with pytest.raises(ValueError, match=r"max: x of shape \(2, 0\) has no entries"):
        ops.max(leaf(np.zeros((2, 0))), 1)


@pytest.mark.parametrize(("n", "correction", "expected"), [(1, 1, NAN), (2, 3, INF), (2, 2, INF), (0, 0, NAN)])
def test_a_variance_without_degrees_of_freedom(n, correction, expected) -> None:
    """As PyTorch: a division by 0, never negative. The gradient is no error."""
    x = leaf(np.arange(n))
    y = ops.var(x, 0, correction)
    np.testing.assert_array_equal(y.numpy(), np.float32(expected))
    y.backward()
    assert not np.isfinite(gradient(x)).any()


@pytest.mark.parametrize("weighted", [False, True])
def test_labels_that_are_all_ignored_give_no_gradient(weighted, device) -> None:
    """PyTorch: the mean is NaN, its gradient 0. One such crop must not end a training."""
    x = leaf(seeded(0).standard_normal((2, 3, 4)))
    weight = np.array([1, 2, 3], np.float32) if weighted else None
    loss = ops.cross_entropy(x, np.full((2, 4), -100), weight, label_smoothing=0.1)
    loss.backward()
    assert math.isnan(loss.item()) and not gradient(x).any()
    assert ops.cross_entropy(x, np.full((2, 4), -100), reduction="sum").item() == 0


LOSSES = ["l1_loss", "mse_loss", "smooth_l1_loss", "kl_div", "binary_cross_entropy", "binary_cross_entropy_with_logits",
          "sigmoid_focal_loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_over_nothing(name, device) -> None:
    for reduction, expected in (("mean", NAN), ("sum", 0.0)):
        x = leaf(np.zeros((0, 3)))
        loss = getattr(ops, name)(x, np.zeros((0, 3), np.float32), reduction=reduction)
        np.testing.assert_array_equal(loss.numpy(), np.float32(expected))
        loss.backward()
        assert gradient(x).shape == (0, 3)


def test_cross_entropy_over_no_rows(device) -> None:
    for target in (np.zeros(0, np.int64), np.zeros((0, 3), np.float32)):
        x = leaf(np.zeros((0, 3)))
        loss = ops.cross_entropy(x, target)
        loss.backward()
        assert math.isnan(loss.item()) and gradient(x).shape == (0, 3)
    with pytest.raises(ValueError, match="with C ≥ 1 classes"):
        ops.cross_entropy(np.zeros((2, 0), np.float32), np.zeros(2, np.int64))


def test_softmax_and_attention_of_nothing(device) -> None:
    for op in (ops.softmax, ops.log_softmax):
        x = leaf(np.zeros((3, 0)))
        y = op(x)
        y.backward(np.zeros((3, 0), np.float32))
        assert y.shape == gradient(x).shape == (3, 0)
        with pytest.raises(IndexError, match=r"softmax: dim 2 is not an axis of an array of shape \(3, 0\)"):
            op(x, 2)
    for N, M, d in ((0, 4, 2), (3, 0, 2), (3, 4, 0)):
        q, k, v = leaf(np.ones((1, N, d))), leaf(np.ones((1, M, d))), leaf(np.ones((1, M, 5)))
        for blocks in (False, True):
            y = ops.attention(q, k, v, blocks=blocks)
            y.backward(np.ones(y.shape, np.float32))
            assert y.shape == (1, N, 5) and bool(y.numpy().any()) == (N * M > 0) and gradient(v).shape == (1, M, 5)


@pytest.mark.parametrize("low", [1e20, 2e38])
def test_a_row_whose_squares_overflow_is_nan_and_not_zero(low, device) -> None:
    """PyTorch's layer_norm: NaN. A row of equal numbers has no squares, and is 0."""
    rows = np.array([[low, -low, low, 0], [1, 2, 3, 4], [low] * 4], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for y in (ops.layer_norm(rows, 4), ops.group_norm(rows, 1), ops.weight_standardization(rows)):
            y = y.numpy()
            assert np.isnan(y[0]).all() and np.isfinite(y[1]).all() and not (low == 1e20 and y[2].any())
    with pytest.raises(ValueError, match="4 channels cannot be divided into 0 groups"):
        ops.group_norm(rows, 0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_a_sum_without_entries_is_normalised_to_nothing(shape, device) -> None:
    x, weight = leaf(np.ones(shape)), leaf(np.ones(shape[-1:]))
    ops.add_layer_norm(x, x, shape[-1], weight, weight, p=0.5).sum().backward()
    assert gradient(x).shape == shape and not gradient(weight).any()


def test_an_output_of_linear_parts_that_nobody_uses_has_no_gradient(device) -> None:
    x, y, weight, bias = (leaf(np.ones(shape)) for shape in ((2, 3), (2, 3), (4, 3), (4,)))
    _, second = ops.linear_parts([x, y], weight, bias, (3, 1))
    second.sum().backward()
    assert x.grad is None or not gradient(x).any()
    assert gradient(y).tolist() == [[1, 1, 1]] * 2
    assert gradient(weight).tolist() == [[0, 0, 0]] * 3 + [[2, 2, 2]] and gradient(bias).tolist() == [0, 0, 0, 2]


def test_the_power_zero_has_no_gradient(device) -> None:
    x = leaf([0.0, 2.0])
    ops.pow(x, 0).backward(np.full(2, INF, np.float32))
    assert gradient(x).tolist() == [0, 0]


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [-1e4, -1e9, -1e30, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("rows", ["one", "all"])
def test_blocks_with_a_large_finite_bias_in_the_place_of_a_mask(low, rows, device) -> None:
    """A query whose scores are all very negative looks everywhere alike: P is 1/M, where m + log l made 1 of it."""
    rng = seeded(0)
    q, k, v, dy = (rng.standard_normal((1, 2, 600, 4)).astype(np.float32) for _ in range(4))
    bias = np.zeros((600, 600), np.float32)
    bias[slice(1) if rows == "one" else slice(None)] = low
    gradients = []
    for blocks in (False, True):
        inputs = [leaf(x) for x in (q, k, v)]
        ops.attention(*inputs, bias=Tensor(bias), blocks=blocks).backward(dy)
        gradients.append([gradient(x) for x in inputs])
    for plain, in_blocks in zip(*gradients):
        assert_close(in_blocks, plain, ulps(plain, 100))


def test_a_mask_is_not_taken_for_a_bias_nor_a_bias_for_a_mask(device) -> None:
    x, mask = leaf(np.ones((1, 3, 2))), np.ones((3, 3), bool)
    for blocks in (False, True):
        with pytest.raises(TypeError, match=r"bias is bool.* pass a mask as mask="):
            ops.attention(x, x, x, mask, blocks=blocks)
        with pytest.raises(TypeError, match="mask is float32, it must be bool"):
            ops.attention(x, x, x, mask=mask.astype(np.float32), blocks=blocks)
        with pytest.raises(ValueError, match=r"attention: mask \(4, 3\) does not broadcast to the scores \(1, 3, 3\)"):
            ops.attention(x, x, x, mask=np.ones((4, 3), bool), blocks=blocks)


@pytest.mark.parametrize("rate", [1.5, 1.0, -0.5])
def test_a_share_to_drop_that_is_none(rate) -> None:
    x = leaf(np.ones((1, 3, 2)))
    for call in (lambda: ops.attention(x, x, x, dropout=rate), lambda: ops.dropout(x, rate)):
        with pytest.raises(ValueError, match=rf"\[0, 1\), not {rate}"):
            call()


# --- infinities, and exactly zero ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "inputs", "expected"),
    [(lambda x: ops.relu(x), ([-1.0, 2.0],), [[0, INF]]), (lambda x: ops.clip(x, 0, 1), ([-1.0, 0.5],), [[0, INF]]),
     (ops.maximum, ([1.0, 2.0], [3.0, 1.0]), [[0, INF], [INF, 0]]),
     (ops.minimum, ([1.0, 2.0], [3.0, 1.0]), [[INF, 0], [0, INF]]),
     (ops.maximum, ([1.0], [1.0]), [[INF], [INF]]),
     (lambda x: ops.max(x, 0, True).expand((2,)), ([1.0, 2.0],), [[0, INF]])],
)
def test_an_infinite_gradient_goes_nowhere_else(op, inputs, expected, device) -> None:
    """PyTorch picks; a product with a mask makes NaN of ∞ · 0."""
    tensors = [leaf(x) for x in inputs]
    y = op(*tensors)
    y.backward(np.full(y.shape, INF, np.float32))
    assert [gradient(t).tolist() for t in tensors] == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_masks_pick_exactly(dtype, device) -> None:
    x = np.array([[1, -2, INF, NAN], [-0.0, INF, -INF, NAN]], dtype)
    mask = np.array([[True, False, True, False], [False, False, True, True]])
    many, mask_of_many = np.tile(x, (40, 20)), np.tile(mask, (40, 20))
    views = [lambda a: a, lambda a: a.T, lambda a: a[:, ::-1], lambda a: a[0], lambda a: a[0, 0]]
    for array, m in ((view(a), view(b)) for a, b in ((x, mask), (many, mask_of_many)) for view in views):
        found = masked(Tensor(array).data, Tensor(m).data)
        np.testing.assert_array_equal(asnumpy(found), np.where(m, array, 0))
        assert found.dtype == dtype


def test_prelu_at_zero_has_the_negative_slope(device) -> None:
    x, weight = leaf([-1.0, 0.0, 2.0]), leaf([0.25])
    ops.prelu(x, weight).backward(np.ones(3, np.float32))
    assert gradient(x).tolist() == [0.25, 0.25, 1] and gradient(weight).tolist() == [-1]
    assert ops.prelu(leaf(3.0), weight).shape == ()


def test_binary_cross_entropy_near_zero() -> None:
    """-log(1 - x) of 1e-6 is 1.0000005e-6 and of 1e-8 it is 1e-8; 1 - x in float32 has lost both."""
    for x in (1e-6, 1e-8):
        loss = ops.binary_cross_entropy(leaf([x]), np.zeros(1, np.float32))
        assert_close(loss, -math.log1p(-np.float32(x)), ulps(x, 2))
    with pytest.raises(ValueError, match=r"target holds probabilities, but lies in \[3, 3\]"):
        ops.binary_cross_entropy(leaf([0.5]), np.full(1, 3, np.float32))


def test_the_focal_loss_of_soft_targets() -> None:
    """torchvision's formula, which is linear in the target where it weighs."""
    x, t = seeded(0).standard_normal((3, 4)), seeded(1).uniform(0.05, 0.95, (3, 4))   # differences stay in 0 … 1
    p = 1 / (1 + np.exp(-x))
    ce = -t * np.log(p) - (1 - t) * np.log(1 - p)
    expected = (0.25 * t + 0.75 * (1 - t)) * (1 - (p * t + (1 - p) * (1 - t))) ** 2 * ce
    assert_close(ops.sigmoid_focal_loss(x, t), expected, ulps(expected, 16, np.float64))
    for gamma, alpha in ((2.0, 0.25), (0.0, 0.5), (1.5, -1.0)):
        sv.gradcheck(lambda x, t, g=gamma, a=alpha: ops.sigmoid_focal_loss(x, t, a, g), x, t)


def test_kl_div_of_a_negative_target_is_nan() -> None:
    assert math.isnan(ops.kl_div(np.zeros(1, np.float32), np.full(1, -0.1, np.float32)).item())


# --- dtypes ----------------------------------------------------------------------------------------------------------

NUMBERS = ["exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "erf"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_functions_of_integers_are_float32(name, dtype, device) -> None:
    x = np.array([1, 0, 1], dtype)
    with np.errstate(divide="ignore"):
        found, expected = getattr(ops, name)(x), getattr(ops, name)(x.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_a_picture_of_uint8_divided_is_float32(device) -> None:
    y = Tensor(np.array([0, 51, 255], np.uint8)) / 255
    assert y.dtype == np.float32 and y.numpy().tolist() == [0, np.float32(0.2), 1]


def test_integers_beside_fractions_are_float32(device) -> None:
    """As in PyTorch; in NumPy they are float64, and so would be all that follows."""
    for dtype in (np.uint8, np.int64):
        x = Tensor(np.array([1, 2], dtype))
        for y in (x - 0.5, 0.5 * x, x * [0.5, 1], ops.clip(x, 0.5, 1.5), ops.maximum(x, 0.5), x * np.float64(0.5)):
            assert y.dtype == np.float32, y
        assert (x * 2).dtype == dtype and (x + 1).numpy().tolist() == [2, 3]
    assert (Tensor(np.array([1, 2], np.uint8)) - 0.5).numpy().tolist() == [0.5, 1.5]


def test_a_padding_that_integers_do_not_have_is_refused(device) -> None:
    x = np.array([200], np.uint8)
    for value in (300, -1, 0.5, NAN, INF):
        with pytest.raises(ValueError, match=rf"^pad: value {value} does not fit into x, which is uint8"):
            ops.pad(x, (1, 1), value=value)
    assert ops.pad(x, (1, 0), value=255.0).numpy().tolist() == [255, 200]


REFUSING = [
    lambda x: ops.softmax(x), lambda x: ops.log_softmax(x), lambda x: ops.gelu(x), lambda x: ops.silu(x),
    lambda x: ops.layer_norm(x, 4), lambda x: ops.add_layer_norm(x, x, 4), lambda x: ops.group_norm(x, 2),
    lambda x: ops.mean(x), lambda x: ops.var(x),
    lambda x: ops.l1_loss(x, x), lambda x: ops.mse_loss(x, x), lambda x: ops.cross_entropy(x, np.zeros(4, np.int64)),
    lambda x: ops.binary_cross_entropy_with_logits(x, x), lambda x: ops.attention(x[None], x[None], x[None]),
    lambda x: ops.interpolate(x[None, None], 2, mode="bilinear"),
    lambda x: ops.avg_pool2d(x[None, None], 2), lambda x: ops.dropout(x),
    lambda x: ops.linear(x, leaf(np.ones((2, 4)))), lambda x: ops.conv2d(x[None, None], leaf(np.ones((1, 1, 2, 2)))),
]


@pytest.mark.parametrize("call", REFUSING)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_other_ops_refuse_integers_and_say_what_to_do(call, dtype, device) -> None:
    with pytest.raises(TypeError, match=rf'^\w+: \w+ is {np.dtype(dtype)}, but .* astype\("float32"\)'):
        call(Tensor(np.ones((4, 4), dtype)))


def test_integers_and_single_numbers_do_not_make_float64(device) -> None:
    x = leaf([1.0, 2.0])
    for other in (np.array([1, 2]), np.array(3.0), np.float64(3), [1.0, 2.0], np.array([True, True])):
        other = Tensor(other) if isinstance(other, np.ndarray) else other
        for y in (x * other, other + x, ops.maximum(x, other), x / other):
            assert y.dtype == np.float32, (other, y)
    assert ops.concatenate([x, Tensor([1])]).dtype == np.float32
    assert ops.where(np.array([True, False]), x, Tensor(np.array(0.5))).dtype == np.float32


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "erf", "relu", "abs"])
def test_functions_of_float16_stay_float16(name, device) -> None:
    x = leaf([0.5, 2.0], np.float16)
    y = getattr(ops, name)(x)
    y.backward(np.ones(2, np.float16))
    assert y.dtype == gradient(x).dtype == np.float16


HALF = {
    "layer_norm": lambda x: ops.layer_norm(x, x.shape[-1]),
    "add_layer_norm": lambda x: ops.add_layer_norm(x, x.detach(), x.shape[-1]),
    "group_norm": lambda x: ops.group_norm(x, 1),
    "softmax": lambda x: ops.softmax(x),
    "log_softmax": lambda x: ops.log_softmax(x),
    "sum": lambda x: ops.sum(x, 0),
    "mean": lambda x: ops.mean(x, 0),
    "var": lambda x: ops.var(x, 1) / 100,
    "gelu": lambda x: ops.gelu(x),
    "mse_loss": lambda x: ops.mse_loss(x / 50, x * 0),
    "cross_entropy": lambda x: ops.cross_entropy(x, np.zeros(len(x), np.int64)),
}


@pytest.mark.parametrize("name", HALF)
def test_float16_adds_up_in_float32(name, device) -> None:
    """N(0, 20) over 768 features: a sum of squares in float16 overflows."""
    x = (20 * seeded(0).standard_normal((32, 768))).astype(np.float16)
    results = []
    for dtype in (np.float16, np.float32):
        t = leaf(x, dtype)
        y = HALF[name](t)
        y.backward(np.full(y.shape, 8, dtype))
        assert y.dtype == t.grad.dtype == dtype
        results.append((y.numpy().astype(np.float64), gradient(t).astype(np.float64)))
    for half, single in zip(*results):
        assert_close(half, single, ulps(single, 4, np.float16) + 1e-7)


def test_nothing_that_an_op_takes_is_unknown() -> None:
    with pytest.raises(ValueError, match="takes must be one of any, numbers, floats, sums, not 'all'"):
        sv.tensor.op(takes="all")(lambda x: x)
