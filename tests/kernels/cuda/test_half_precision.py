"""Every CUDA kernel on arrays of float16 and bfloat16: as the plain forms in float32, but for a rounding at the end.

The functions of ops are called without the decorator, which would convert the arrays.
"""

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.backend import array_module, asarray, asnumpy
from scratchvit.kernels import updates
from scratchvit.kernels.attention import attention_over_rows
from scratchvit.kernels.conv import algorithm
from scratchvit.kernels.cuda import blas_lt, index_sums
from scratchvit.kernels.cuda.bias_gelu import bias_gelu
from scratchvit.kernels.dropout import drop_entries
from scratchvit.kernels.gelu import gelu_kernel
from scratchvit.kernels.index_sums import sum_by_index
from scratchvit.kernels.logistic import logistic, logistic_dx
from scratchvit.kernels.masks import where_positive
from scratchvit.kernels.products import matmul, product, product_and_sums
from scratchvit.kernels.sums import total
from scratchvit.ops.attention import _plain_attention
from scratchvit.ops.elementwise import gelu_and_slope
from scratchvit.ops.sliding import convolution_windows
from scratchvit.plain import is_plain
from scratchvit.random import Generator
from tests.support.half_precision import CHARS, assert_close, check, dtype_of, random, rounded
from tests.support.seeds import moved, seeded

pytestmark = [pytest.mark.usefixtures("cuda"), pytest.mark.parametrize("char", CHARS)]


def precise(*shapes):
    """Arrays of float32: weights, biases, class weights."""
    rng = seeded(2)
    return [rng.uniform(-2, 2, shape).astype(np.float32) for shape in shapes]


# --- functions of single entries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(3, 5, 67), (0, 4)])
def test_gelu_and_its_derivative(char, shape, approximate):
    def gelu(x):
        if is_plain():
            y, backward = ops.gelu.__wrapped__(x, approximate)
            return y, lambda dy: backward(array_module(x).ones_like(x))
        y, dydx = gelu_kernel(x, approximate)(x, derivative=True)
        return y, lambda dy: dydx

    check(gelu, random(char, shape), char, "TT")


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("shape", [(133, 67), (0, 4), (5, 0)])
def test_bias_and_gelu(char, shape, sums):
    def function(x, bias):
        if is_plain():
            y, slope = gelu_and_slope(x + bias)
            return y, lambda dy: (dy * slope, (dy * slope).sum(0) if sums else None)
        y, backward = bias_gelu(x, bias)

        def dx_and_dbias(dy):
            dx = array_module(x).empty(x.shape, dtype=x.dtype)
            return dx, backward(dy, dx, sums)

        return y, dx_and_dbias

    check(function, random(char, shape, shape[1:]), char, "TTA" if sums else "TT-")


@pytest.mark.parametrize("can_sum", [True, False])
def test_linear_and_gelu(char, can_sum, monkeypatch):
    if not can_sum:
        monkeypatch.setattr(blas_lt, "computes_sums", lambda *_: False)
        monkeypatch.setattr(blas_lt, "product_and_sums", lambda *_: None)
    check(ops.linear_gelu.__wrapped__, random(char, (67, 8), (16, 8), (16,)), char, "TTTT", inner=8)


def test_logistic(char):
    def sigmoid(x, y):
        return logistic(x), lambda dy: (logistic_dx(dy, y), None)

    check(sigmoid, random(char, (7, 67), (7, 67)), char, "TT-")


def test_relu(char):
    x, y = random(char, (7, 67), (7, 67))
    y[0, :4] = [0, -0.0, np.inf, np.nan]
    check(lambda x, y: (where_positive(x, y), lambda dy: (where_positive(dy, y), None)), [x, y], char, "TT-")


def test_dropout_keeps_the_same_entries(char):
    draw = Generator(moved(7)).draw(0.7, (9, 67))
    check(lambda x: drop_entries(x, draw), random(char, (9, 67)), char, "TT")


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(67, 35), (0, 7)])
def test_layer_norm(char, shape):
    def layer_norm(x, weight, bias):
        return ops.layer_norm.__wrapped__(x, shape[1], weight, bias)

    check(layer_norm, [*random(char, shape), *precise(shape[1:], shape[1:])], char, "TTAA")


@pytest.mark.parametrize("shape", [(3, 6145), (4, 6, 3), (0, 6, 4)])
def test_norms_without_a_kernel_are_computed_in_float32(char, shape):
    """Rows that are too long, groups of too few places, an empty batch."""
    def norm(x, weight, bias):
        if x.ndim == 2:
            return ops.layer_norm.__wrapped__(x, shape[1], weight, bias)
        if not len(x):
            return ops.batch_norm.__wrapped__(x, weight, bias * bias, weight, bias)
        return ops.group_norm.__wrapped__(x, 3, weight, bias)

    check(norm, [*random(char, shape), *precise(shape[1:2], shape[1:2])], char, "TTAA")


@pytest.mark.parametrize("shape", [(3, 6, 5, 7), (0, 6, 50)])
def test_group_norm(char, shape):
    def group_norm(x, weight, bias):
        return ops.group_norm.__wrapped__(x, 3, weight, bias)

    check(group_norm, [*random(char, shape), *precise((6,), (6,))], char, "TTAA")


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(char, training):
    """The running statistics stay in float32."""
    def batch_norm(x, weight, bias):
        mean, variance = asarray(np.full(3, 0.5, np.float32)), asarray(np.full(3, 1.5, np.float32))
        y, backward = ops.batch_norm.__wrapped__(x, mean, variance, weight, bias, training)
        return y, lambda dy: [*backward(dy, [True] * 3), mean, variance]

    check(batch_norm, [*random(char, (9, 3, 47, 41)), *precise((3,), (3,))], char, "TTAAAA")


def test_frozen_batch_norm(char):
    mean, variance, weight, bias = map(asarray, precise((5,), (5,), (5,), (5,)))

    def frozen(x):
        return ops.frozen_batch_norm.__wrapped__(x, mean, variance * variance, weight, bias)

    check(frozen, random(char, (2, 5, 7, 9)), char, "TT")


# --- softmax, attention, cross-entropy --------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [ops.softmax, ops.log_softmax], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(5, 31), (3, 700), (0, 7)])
def test_softmax(char, shape, function):
    """The backward reads y, which was rounded."""
    inner = 8 if function is ops.log_softmax else 4
    x, = random(char, shape)
    check(lambda x: (function.__wrapped__(x)[0], lambda dy: None), [x], char, "T-")
    check(function.__wrapped__, [x], char, "TT", inner)


@pytest.mark.parametrize("shape", [(2, 3, 33, 49), (1, 2, 5, 300)])
def test_attention(char, shape):
    """Scores and probabilities are rounded too. A bias may be of float32, and then has a gradient of float32."""
    B, H, N, M = shape
    mask = asarray(seeded(3).uniform(size=(B, 1, 1, M)) < 0.8)

    draw = Generator(moved(7)).draw(0.8, shape)

    def attention(q, k, v, bias):
        if is_plain():
            y, _, backward = _plain_attention(q, k, v, bias, mask, draw, 0.3)
            return y, backward
        return attention_over_rows(q, k, v, bias, mask, draw, 0.3)

    arrays = random(char, (B, H, N, 8), (B, H, M, 8), (B, H, M, 6), (H, 1, M))
    check(attention, arrays, char, "TTTTT", inner=8)
    check(attention, [*arrays[:3], *precise((H, 1, M))], char, "TTTTA", inner=8)


@pytest.mark.parametrize("target", ["labels", "smoothed labels", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cross_entropy(char, target, reduction):
    """The loss is of float32."""
    rng = seeded(3)
    labels = asarray(np.where(rng.uniform(size=(33, 5)) < 0.2, -100, rng.integers(65, size=(33, 5))))
    weight = asarray(rng.uniform(0.5, 2, 65).astype(np.float32))
    given = asarray(rng.dirichlet(np.ones(65), (33, 5)).transpose(0, 2, 1).astype(np.float32))

    def cross_entropy(x):
        soft, smoothing = target == "probabilities", 0.1 if target == "smoothed labels" else 0.0
        value, backward = ops.cross_entropy.__wrapped__(
            x, given if soft else labels, weight.astype(x.dtype).astype(np.float32), smoothing, reduction
        )
        return value, lambda dy: backward(dy, [True, False, False])[0]

    x, = random(char, (33, 65, 5))
    kept = weight.copy()
    weight[...] = asarray(rounded(asnumpy(kept), char).astype(np.float32))
    check(cross_entropy, [x], char, "AT")


# --- convolution, pooling ---------------------------------------------------------------------------------------------

# x, weight, stride, padding, dilation, groups; how many roundings of what is added up in dx
CONVOLUTIONS = {
    "columns": ((2, 6, 13, 11), (4, 3, 3, 2), (2, 1), (1, 2), (1, 2), 2, 4),
    "1x1": ((3, 33, 9, 9), (17, 33, 1, 1), 1, 0, 1, 1, 0),
    "patches": ((2, 3, 9, 8), (5, 3, 2, 2), 2, 0, 1, 1, 0),
    "depth-wise": ((3, 5, 17, 23), (10, 1, 3, 3), 1, 1, 1, 5, 0),
    "an empty batch": ((0, 3, 5, 5), (4, 3, 3, 3), 1, 1, 1, 1, 0),
    "an empty batch, depth-wise": ((0, 3, 5, 5), (3, 1, 3, 3), 1, 1, 1, 3, 0),
}


@pytest.mark.parametrize(
    ("shape", "filters", "stride", "padding", "dilation", "groups", "inner"), CONVOLUTIONS.values(), ids=CONVOLUTIONS
)
def test_convolution(char, shape, filters, stride, padding, dilation, groups, inner):
    """The gradient of the filters is of float32."""
    def conv(x, weight):
        return convolution(x, weight, stride, padding, dilation, groups)

    check(conv, random(char, shape, filters), char, "TTA", inner)


def test_the_gradient_of_an_entry_is_added_up_in_float32(char):
    """With a filter of ones, what its windows send is not rounded before."""
    x, = random(char, (2, 3, 9, 8))
    weight = rounded(np.ones((1, 3, 3, 3)), char)
    check(lambda x, weight: convolution(x, weight, 1, 1, 1, 1), [x, weight], char, "TTA")


def convolution(x, weight, stride, padding, dilation, groups):
    """Value and backward of a convolution by the kernels that `algorithm` chooses."""
    given = "conv2d", 2, x, weight, None, stride, padding, dilation, groups
    windows, _ = convolution_windows(*given).cropped()
    forward, dx, dweight = algorithm(weight, windows, groups)
    return forward(x, weight, None, windows, groups), lambda dy: (
        dx(dy, weight, windows, groups), dweight(dy, x, windows, groups).reshape(weight.shape)
    )


@pytest.mark.parametrize("groups", [1, 6], ids=["columns", "depth-wise"])
def test_convolution_with_a_bias(char, groups):
    """As an op on leaves of 16 bits, whose gradients are of 16 bits."""
    def conv(x, weight, bias):
        return ops.conv2d.__wrapped__(x, weight, bias, 1, 1, 1, groups)

    check(conv, random(char, (2, 6, 9, 7), (6, 6 // groups, 3, 3), (6,)), char, "TTTT", inner=4)


@pytest.mark.parametrize("shape", [(2, 3, 13, 17), (0, 2, 6, 6)])
def test_pooling(char, shape):
    x, = random(char, shape)
    check(lambda x: ops.max_pool2d.__wrapped__(x, 3, 2, 1), [x], char, "TT")
    check(lambda x: ops.avg_pool2d.__wrapped__(x, 3, 2, 1), [x], char, "TT")


# --- sums and products ------------------------------------------------------------------------------------------------


def test_sums_of_columns(char):
    """In float32, and rounded once if they are to be of 16 bits: 5,000 numbers of about 1 would be too many."""
    x, = random(char, (5000, 40))
    x = rounded(x.astype(np.float32) + 1, char)
    check(lambda x: (total(x, (0,), dtype=np.float32), lambda dy: total(x, (0,))), [x], char, "AT")
    check(lambda x: (total(x, (1,), dtype=np.float32), lambda dy: total(x, (1,))), [x], char, "AT")
    check(lambda x: (total(x, (0, 1)), lambda dy: total(x, (0,), True)), [x[:99]], char, "TT")


@pytest.mark.parametrize("largest", [1 << 26, 0], ids=["", "sorted"])
def test_sums_by_an_index(char, largest, monkeypatch):
    monkeypatch.setattr(index_sums, "LARGEST", largest)
    index = asarray(seeded(3).integers(-7, 7, size=300))
    values, = random(char, (300, 33))
    values = rounded(values.astype(np.float32) + 1, char)
    check(lambda values: (sum_by_index(index, values, 7), lambda dy: None), [values], char, "T-")


def test_products(char):
    """Summed in float32; the gradients of weight and bias are not rounded."""
    def linear(x, weight, bias):
        return product(x, weight.T, bias), lambda dy: [product(dy, weight), *product_and_sums(dy, x, (True, True))]

    def one_by_one(x, weight, bias):
        return matmul(x, weight.T, dtype=np.float32), lambda dy: [
            matmul(dy, weight.astype(dy.dtype)), product_and_sums(x, x, (True, False))[0],
            product_and_sums(x, x, (False, True))[1],
        ]

    arrays = random(char, (300, 33), (17, 33), (17,))
    check(linear, arrays, char, "TTAA")
    check(one_by_one, arrays, char, "AAAA")
    x, weight, bias = map(asarray, arrays)
    assert blas_lt.product_with_bias(x, weight.T, bias) is not None         # in one operation
    assert blas_lt.product_and_sums(x.T, x, np.float32) is not None


# --- shadows of parameters --------------------------------------------------------------------------------------------

SHAPES = [(0,), (1,), (7,), (4095,), (4097,), (61, 137)] * 12           # two launches


def same_bits(found, expected):
    """Whether two arrays have the same bytes. If they are compared in an assert, pytest takes minutes to show them."""
    return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def rows_and_shadows(columns, char):
    rng = seeded(0)
    rows = [tuple(asarray(rng.uniform(0.5, 2, s).astype(np.float32)) for _ in range(columns)) for s in SHAPES]
    xp = array_module(rows[0][0])
    return rows, [None if i % 5 == 4 else xp.zeros(s, dtype_of(char)) for i, s in enumerate(SHAPES)]


@pytest.mark.parametrize(("update", "columns", "numbers"), [
    (updates.adam, 4, updates.AdamNumbers(0.1, 1e-3, 0.99, 0.0, 0.9, 0.999, 1)),
    (updates.sgd, 3, updates.SGDNumbers(0.1, 0.2, 0.9, True)), (updates.sgd, 2, updates.SGDNumbers(0.1, 0.2, 0, False)),
], ids=["adam", "sgd", "sgd without momentum"])
def test_a_step_writes_the_shadow_of_each_parameter(char, update, columns, numbers):
    (rows, shadows), (alone, _) = rows_and_shadows(columns, char), rows_and_shadows(columns, char)
    groups = [0] * len(rows)
    update(rows, groups, lambda: [numbers], shadows=shadows)
    update(alone, groups, lambda: [numbers])
    for row, other, shadow in zip(rows, alone, shadows):
        assert all(same_bits(asnumpy(x), asnumpy(y)) for x, y in zip(row, other))
        if shadow is not None:
            assert same_bits(asnumpy(shadow), rounded(asnumpy(row[0]), char))


def test_parameters_are_rounded_into_their_shadows_64_at_once(char):
    device = pytest.importorskip("fakegpu.device")
    rows, shadows = rows_and_shadows(1, char)
    pairs = [(shadow, x) for shadow, (x,) in zip(shadows, rows) if shadow is not None]
    before = device.counts()["launches"]
    updates.round_into(pairs)
    assert device.counts()["launches"] - before == -(-len(pairs) // 64)
    for shadow, x in pairs:
        assert same_bits(asnumpy(shadow), rounded(asnumpy(x), char))
    targets = [array_module(shadow).empty_like(shadow) for shadow, _ in pairs]
    before = device.counts()["launches"]
    updates.copy([(y, shadow) for y, (shadow, _) in zip(targets, pairs)])
    assert device.counts()["launches"] - before == -(-len(pairs) // 64)
    assert all(same_bits(asnumpy(y), asnumpy(shadow)) for y, (shadow, _) in zip(targets, pairs))


def test_other_shadows_are_written_without_a_kernel(char):
    """Of parts of arrays, and of parameters in float64."""
    xp = array_module(asarray(np.zeros(1)))
    x, wide = asarray(np.arange(9, dtype=np.float32)), asarray(np.arange(9.0))
    part, whole = xp.zeros((9, 2), dtype_of(char))[:, 0], xp.zeros(9, dtype_of(char))
    updates.round_into([(part, x), (whole, wide)])
    assert_close(asnumpy(part), np.arange(9), 0, char)
    assert_close(asnumpy(whole), np.arange(9), 0, char)
