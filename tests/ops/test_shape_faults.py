"""Ops that move, pick, pad, pool, resize and multiply: what was once silently wrong, or raised in NumPy's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.backend import asnumpy
from scratchvit.tensor import Tensor
from tests.support.seeds import seeded
from tests.support.strict_array import STRICT, no_transfers

INF = np.inf


def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32), requires_grad=True)


def counting(*shape: int) -> Tensor:
    return Tensor(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), requires_grad=True)


def gradient(x: Tensor, y: Tensor, dy: Any) -> np.ndarray:
    y.backward(np.asarray(dy, np.float32))
    return asnumpy(x.grad)


# --- resizing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "infinite"), [("nearest", 4), ("nearest-exact", 4), ("bilinear", 16)])
def test_an_infinite_pixel_spoils_only_what_it_is_a_part_of(device, mode, infinite) -> None:
    image = np.ones((1, 1, 4, 4), np.float32)
    image[0, 0, 1, 2] = INF
    y = ops.interpolate(Tensor(image), 8, mode=mode).numpy()
    assert np.isinf(y).sum() == infinite and not np.isnan(y).any()
    assert (y[np.isfinite(y)] == 1).all()


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_an_infinite_cotangent_goes_where_its_pixel_came_from(device, mode, size) -> None:
    x = ones(1, 1, 5, 5)
    dy = np.ones((1, 1, size, size), np.float32)
    finite = gradient(x, ops.interpolate(x, size, mode=mode), dy)
    dy[0, 0, 0, 0], x.grad = INF, None
    found = gradient(x, ops.interpolate(x, size, mode=mode), dy)
    assert not np.isnan(found).any()
    assert np.array_equal(found[0, 0, -1], finite[0, 0, -1])            # far away, as if nothing had been


def test_an_axis_that_keeps_its_size_is_copied_whatever_the_factor(device) -> None:
    x = seeded(0).standard_normal((1, 2, 14, 7)).astype(np.float32)
    same = ops.interpolate(Tensor(x), scale_factor=(14.1 / 14, 1.0), mode="bilinear")
    assert np.array_equal(same.numpy(), x)
    one_axis = ops.interpolate(Tensor(x), scale_factor=(14.1 / 14, 2.0), mode="bilinear").numpy()
    assert np.array_equal(one_axis, ops.interpolate(Tensor(x), (14, 14), mode="bilinear").numpy())


def test_integers_are_resized_by_nearest_and_refused_by_the_others(device) -> None:
    image = np.arange(200, 204, dtype=np.uint8).reshape(1, 1, 2, 2)
    y = ops.interpolate(Tensor(image), 4)
    assert y.dtype == np.uint8 and y.numpy()[0, 0, 0].tolist() == [200, 200, 201, 201]
    for mode in ("bilinear", "bicubic"):
        with pytest.raises(TypeError, match=r"interpolate: x is uint8.*astype\(\"float32\"\)"):
            ops.interpolate(Tensor(image), 4, mode=mode)


# --- picking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [
    lambda index: ops.embedding([[0, index]], ones(3, 2)),
    lambda index: ops.gather(ones(3, 3), 1, [[0, index]]),
])
def test_negative_and_too_large_indices_name_the_index_and_the_range(call) -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match=rf"(embedding|gather): index {index} is out of range.*0…2"):
            call(index)
    assert call(2).shape in ((1, 2), (1, 2, 2))


def test_masks_are_no_indices_of_rows() -> None:
    with pytest.raises(TypeError, match="embedding: index must hold integers, not bool"):
        ops.embedding([True, False, True], ones(3, 2))
    with pytest.raises(TypeError, match="gather: index must hold integers, not bool"):
        ops.gather(ones(2), 0, [True, False])


def test_checking_indices_waits_for_no_device() -> None:
    sv.use(STRICT)
    try:
        table, index = ones(3, 2), Tensor(np.array([[2, 0]]))
        with no_transfers():
            ops.embedding(index, table)
            ops.gather(table, 0, index)
    finally:
        sv.use("cpu")


def test_integers_beside_arrays_are_applied_first(device) -> None:
    """As in PyTorch; NumPy gives (2, 3)."""
    x = counting(2, 3, 4)
    y = x[1, :, [0, 2]]
    assert y.numpy().tolist() == [[12, 14], [16, 18], [20, 22]]
    expected = np.zeros((2, 3, 4))
    expected[1][:, [0, 2]] = [[1, 2], [3, 4], [5, 6]]
    assert np.array_equal(gradient(x, y, [[1, 2], [3, 4], [5, 6]]), expected)
    assert x[np.int64(1), None, ..., np.array([0, 0, 2])].shape == (1, 3, 3)
    assert x[:, 1, [True, False, True, True]].shape == (2, 3)
    assert x[np.eye(2, 3, dtype=bool), 1].numpy().tolist() == [1, 17]


def test_an_empty_list_picks_nothing(device) -> None:
    x = counting(3, 2)
    y = x[[]]
    assert y.shape == (0, 2) and x[:, []].shape == (3, 0)
    assert not gradient(x, y, np.zeros((0, 2))).any()


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_dims_count_from_the_end(device) -> None:
    x = counting(2, 3)
    assert ops.permute(x, (-1, -2)).numpy().tolist() == [[0, 3], [1, 4], [2, 5]]
    assert ops.roll(x, 1, -1).numpy().tolist() == [[2, 0, 1], [5, 3, 4]]
    assert ops.roll(x, (1, 1), (0, -2)).numpy().tolist() == x.numpy().tolist()
    assert ops.roll(x, 1).numpy().tolist() == [[5, 0, 1], [2, 3, 4]]
    assert ops.flip(x, (-1,)).numpy().tolist() == [[2, 1, 0], [5, 4, 3]]
    assert ops.gather(x, -1, [[2, 2, 0]]).numpy().tolist() == [[2, 2, 0]]
    assert [part.shape for part in ops.split(x, [1, 2], -1)] == [(2, 1), (2, 2)]
    assert ops.stack([x, x], -1).shape == (2, 3, 2)


def test_expand_keeps_axes_of_minus_one(device) -> None:
    token = ones(1, 1, 3)
    y = ops.expand(token, (5, -1, -1))
    assert y.shape == (5, 1, 3)
    assert gradient(token, y, np.ones((5, 1, 3))).tolist() == [[[5, 5, 5]]]


def test_empty_arrays_are_joined_and_split(device) -> None:
    empty, two = Tensor(np.zeros((0, 3), np.float32)), ones(2, 3)
    assert ops.concatenate([empty, two]).shape == (2, 3) and ops.concatenate([empty, empty]).shape == (0, 3)
    assert ops.concatenate([Tensor(np.zeros(0, np.float32)), two]).shape == (2, 3)
    assert ops.stack([empty, empty]).shape == (2, 0, 3)
    assert [part.shape for part in ops.split(empty, 2)] == [(0, 3)]


def test_a_concatenation_of_two_dtypes_gives_each_its_gradient() -> None:
    x, y = Tensor(np.ones(2, np.float32), requires_grad=True), Tensor(np.ones(1, np.float64), requires_grad=True)
    ops.concatenate([x, y]).backward(np.arange(3.0))
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [0, 1] and y.grad.tolist() == [2]


# --- masks and infinities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max_pool_sends_an_infinite_cotangent_to_the_maximum_alone(device, dtype) -> None:
    x = Tensor(np.array([[[[1, 3], [2, 0]]]], dtype), requires_grad=True)
    ops.max_pool2d(x, 2).backward(np.array([[[[INF]]]]))
    assert asnumpy(x.grad).tolist() == [[[[0, INF], [0, 0]]]]


def test_windows_that_hang_over_the_end_may_be_larger_than_the_image(device) -> None:
    x = counting(1, 1, 2, 2)
    assert ops.max_pool2d(x, 3, 2, ceil_mode=True).numpy().tolist() == [[[[3]]]]
    assert ops.avg_pool2d(x, 3, 2, ceil_mode=True).numpy().tolist() == [[[[1.5]]]]


# --- sums over many rows ----------------------------------------------------------------------------------------------


def worst(found: Any, exact: np.ndarray) -> float:
    return float((np.abs(asnumpy(found) - exact) / exact).max())


def test_the_bias_of_linear_sums_a_million_rows() -> None:
    """PyTorch's error is 1.3e-7 of the sum; adding row upon row, 1.9e-5."""
    dy = seeded(0).random((1_000_000, 10), dtype=np.float32)
    bias = ones(10)
    ops.linear(Tensor(np.ones((1_000_000, 1), np.float32)), np.ones((10, 1), np.float32), bias).backward(dy)
    assert worst(bias.grad, dy.sum(axis=0, dtype=np.float64)) < 4e-7


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_bias_of_a_convolution_sums_all_places(channels_last) -> None:
    dy = seeded(0).random((4, 8, 200, 200), dtype=np.float32)
    if channels_last:
        dy = np.ascontiguousarray(dy.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    bias = ones(8)
    ops.conv2d(ones(4, 1, 200, 200), ones(8, 1, 1, 1), bias).backward(dy)
    assert worst(bias.grad, dy.sum(axis=(0, 2, 3), dtype=np.float64)) < 4e-7


def test_depthwise_weights_sum_all_places() -> None:
    """PyTorch's error is 1.9e-5; adding place upon place, 7.8e-6."""
    x, dy = seeded(0).random((2, 2, 8, 224, 224), dtype=np.float32)
    weight = ones(8, 1, 1, 1)
    ops.conv2d(Tensor(x), weight, groups=8).backward(dy)
    exact = np.einsum("bchw,bchw->c", x.astype(np.float64), dy.astype(np.float64))
    assert worst(weight.grad.reshape(8), exact) < 1e-6


# --- wrong calls ------------------------------------------------------------------------------------------------------

INTEGERS = Tensor(np.ones((1, 1, 4, 4), np.int64))

WRONG: list[tuple[type[Exception], str, Callable[[], Any]]] = [
    (ValueError, r"reshape: x of shape \(2, 3\) has 6 entries.*\(4, 2\)", lambda: ones(2, 3).reshape(4, 2)),
    (ValueError, r"reshape: .*\(-1, -1\)", lambda: ones(2, 3).reshape(-1, -1)),
    (ValueError, r"permute: dims \(0,\) must contain every axis of x, of shape", lambda: ops.permute(ones(2, 3), (0,))),
    (ValueError, r"permute: dims \(0, -2\) name an axis .*twice", lambda: ops.permute(ones(2, 3), (0, -2))),
    (IndexError, r"permute: dim 2 is not an axis of .* shape \(2, 3\)", lambda: ops.permute(ones(2, 3), (0, 2))),
    (IndexError, "transpose: dim 2 is not an axis", lambda: ops.transpose(ones(2, 3), 0, 2)),
    (ValueError, r"expand: x of shape \(2,\) cannot be expanded to \(3,\)", lambda: ops.expand(ones(2), (3,))),
    (ValueError, r"expand: x of shape \(2,\) cannot be expanded to \(-1, 2\)", lambda: ops.expand(ones(2), (-1, 2))),
    (ValueError, r"expand: x of shape \(1, 2\) cannot be expanded to \(2,\)", lambda: ops.expand(ones(1, 2), (2,))),
    (ValueError, "concatenate: .*the list is empty", lambda: ops.concatenate([])),
    (TypeError, "concatenate: a list of arrays", lambda: ops.concatenate([ones(2), None])),
    (ValueError, r"concatenate: shapes .*only along dim 0, not \(2, 3\), \(2, 4\)",
     lambda: ops.concatenate([ones(2, 3), ones(2, 4)])),
    (ValueError, r"concatenate: shapes .*\(2, 3\), \(2,\)", lambda: ops.concatenate([ones(2, 3), ones(2)])),
    (IndexError, "concatenate: dim 1 is not an axis", lambda: ops.concatenate([ones(2), ones(2)], 1)),
    (ValueError, "stack: .*the list is empty", lambda: ops.stack([])),
    (ValueError, r"stack: .*the same shape, not \(2,\), \(3,\)", lambda: ops.stack([ones(2), ones(3)])),
    (IndexError, "stack: dim 2 is not an axis", lambda: ops.stack([ones(2), ones(2)], 2)),
    (ValueError, "split: split_size must be at least 1, not 0", lambda: ops.split(ones(3), 0)),
    (ValueError, "split: split_size must be at least 1, not -1", lambda: ops.split(ones(3), -1)),
    (ValueError, r"split: sizes \[3, -1\] must be 0 or more", lambda: ops.split(ones(2), [3, -1])),
    (ValueError, r"split: sizes \[1, 1\].*add up to 3", lambda: ops.split(ones(3), [1, 1])),
    (IndexError, "split: dim 1 is not an axis", lambda: ops.split(ones(3), 1, 1)),
    (IndexError, r"unbind: dim 0 is not an axis of an array of shape \(\)", lambda: ops.unbind(ones())),
    (ValueError, r"roll: as many shifts as dims are needed, not \(1, 1\)", lambda: ops.roll(ones(2), (1, 1), 0)),
    (ValueError, "roll: as many shifts as dims", lambda: ops.roll(ones(2, 2), 1, (0, 1))),
    (IndexError, "roll: dim 1 is not an axis", lambda: ops.roll(ones(2), 1, 1)),
    (ValueError, "flip: dims .*twice", lambda: ops.flip(ones(2, 2), (0, -2))),
    (IndexError, "flip: dim 3 is not an axis", lambda: ops.flip(ones(2, 2), 3)),
    (ValueError, r"pad: pad must hold two integers .*not \(1, 2, 3\)", lambda: ops.pad(ones(2, 2), (1, 2, 3))),
    (ValueError, "pad: pad must hold two integers", lambda: ops.pad(ones(2), (1, 1, 1, 1))),
    (ValueError, r"pad: \(-2, -1\) crops more than the 2 entries", lambda: ops.pad(ones(2), (-2, -1))),
    (ValueError, "pad: mode 'reflect' with .* needs at least 3 entries", lambda: ops.pad(ones(2), (2, 0), "reflect")),
    (ValueError, "pad: mode 'circular' with .* needs at least 3", lambda: ops.pad(ones(2), (0, 3), "circular")),
    (ValueError, "pad: mode must be one of 'constant'", lambda: ops.pad(ones(2), (1, 1), "mirror")),
    (ValueError, 'pad: a value is for mode "constant"', lambda: ops.pad(ones(2), (1, 1), "reflect", 1.0)),
    (IndexError, r"getitem: x of shape \(2,\): index 5 is out of bounds", lambda: ones(2)[5]),
    (IndexError, r"getitem: x of shape \(2,\): index 5", lambda: ones(2)[[5]]),
    (IndexError, "getitem: .*boolean", lambda: ones(2)[np.array([True])]),
    (ValueError, r"gather: index of shape \(1,\) must have as many axes", lambda: ops.gather(ones(2, 2), 0, [0])),
    (ValueError, "gather: .*none longer", lambda: ops.gather(ones(2, 2), 0, [[0, 0, 0]])),
    (ValueError, r"embedding: weight must be \(V, D\), not \(3,\)", lambda: ops.embedding([0], ones(3))),
    (ValueError, r"matmul: x of shape \(2, 3\) and y of shape \(4, 2\)", lambda: ones(2, 3) @ ones(4, 2)),
    (ValueError, r"matmul: x of shape \(2, 1, 1\) and y of shape \(3, 1, 1\)", lambda: ones(2, 1, 1) @ ones(3, 1, 1)),
    (ValueError, r"matmul: x of shape \(\) and", lambda: ops.matmul(ones(), ones(2))),
    (ValueError, r"linear: .*\(2, 3\) and \(4, 2\)", lambda: ops.linear(ones(2, 3), ones(4, 2))),
    (ValueError, r"linear: .*\(out, in\), not \(2, 3\) and \(4, 3, 1\)", lambda: ops.linear(ones(2, 3), ones(4, 3, 1))),
    (ValueError, r"linear: bias must be \(4,\).*not \(1,\)", lambda: ops.linear(ones(2, 3), ones(4, 3), ones(1))),
    (ValueError, r"linear: bias must be \(4,\).*not \(2, 4\)", lambda: ops.linear(ones(2, 3), ones(4, 3), ones(2, 4))),
    (ValueError, r"linear_parts: there must be a size for each of 1 inputs.*not sizes \(2, 2\) for a weight \(4, 3\)",
     lambda: ops.linear_parts([ones(2, 3)], ones(4, 3), ones(4), (2, 2))),
    (ValueError, r"linear_parts: .*not sizes \(3,\)",
     lambda: ops.linear_parts([ones(2, 3)], ones(4, 3), ones(4), (3,))),
    (ValueError, r"linear_parts: .*not sizes \(5, -1\)",
     lambda: ops.linear_parts([ones(2, 3)] * 2, ones(4, 3), ones(4), (5, -1))),
    (ValueError, r"linear_parts: the inputs must be.*not \(2, 3\), \(2, 4\), \(4, 3\) and \(4,\)",
     lambda: ops.linear_parts([ones(2, 3), ones(2, 4)], ones(4, 3), ones(4), (2, 2))),
    (ValueError, r"linear_parts: .*and \(3,\)", lambda: ops.linear_parts([ones(2, 3)], ones(4, 3), ones(3), (4,))),
    (TypeError, "linear_parts: a list of arrays", lambda: ops.linear_parts(ones(2, 3), ones(4, 3), ones(4), (4,))),
    (ValueError, r"linear_gelu: x must be.*not \(2, 3\) and \(4, 2\)",
     lambda: ops.linear_gelu(ones(2, 3), ones(4, 2), ones(4))),
    (ValueError, r"linear_gelu: bias must be \(4,\).*not \(3,\)",
     lambda: ops.linear_gelu(ones(2, 3), ones(4, 3), ones(3))),
    (ValueError, r"add_layer_norm: x \(2, 3\) and added \(3,\) must have one shape",
     lambda: ops.add_layer_norm(ones(2, 3), ones(3), 3)),
    (ValueError, r"add_layer_norm: x has shape \(2, 3\), which does not end in normalized_shape \(2,\)",
     lambda: ops.add_layer_norm(ones(2, 3), ones(2, 3), 2)),
    (ValueError, r"add_layer_norm: weight has shape \(2,\)",
     lambda: ops.add_layer_norm(ones(2, 3), ones(2, 3), 3, ones(2))),
    (ValueError, r"add_layer_norm: the dropout probability must be in \[0, 1\), not 1",
     lambda: ops.add_layer_norm(ones(2, 3), ones(2, 3), 3, p=1)),
    (TypeError, "linear: x is int64", lambda: ops.linear(np.ones((2, 3), np.int64), ones(4, 3))),
    (ValueError, r"einsum: 'ij,jk->ik' does not fit operands of shapes \(2, 3\), \(4, 5\)",
     lambda: ops.einsum("ij,jk->ik", ones(2, 3), ones(4, 5))),
    (ValueError, "einsum: 'ij->k' does not fit", lambda: ops.einsum("ij->k", ones(2, 3))),
    (ValueError, "einsum: 'ij' has 1 operands, but 0 were given", lambda: ops.einsum("ij")),
    (TypeError, "conv2d: x is int64", lambda: ops.conv2d(INTEGERS, Tensor(np.ones((1, 1, 2, 2), np.int64)))),
    (ValueError, r"conv2d: weight of shape \(2, 0, 3, 3\) has no entries",
     lambda: ops.conv2d(ones(1, 0, 4, 4), ones(2, 0, 3, 3))),
    (TypeError, "max_pool2d: x is int64", lambda: ops.max_pool2d(INTEGERS, 2)),
    (TypeError, "avg_pool2d: x is int64", lambda: ops.avg_pool2d(INTEGERS, 2)),
    (ValueError, "max_pool2d: kernel_size must be", lambda: ops.max_pool2d(ones(1, 1, 4, 4), 2.5)),
    (ValueError, r"interpolate: x must be \(B, C, W\) for mode 'linear'",
     lambda: ops.interpolate(ones(1, 1, 4, 4), 2, mode="linear")),
    (ValueError, "interpolate: size must be an integer .*2 axes", lambda: ops.interpolate(ones(1, 1, 4, 4), (2, 2, 2))),
    (ValueError, "interpolate: size must be an integer", lambda: ops.interpolate(ones(1, 1, 4, 4), 2.5)),
    (ValueError, r"interpolate: cannot resize \(4, 0\) to", lambda: ops.interpolate(ones(1, 1, 4, 0), 2)),
    (ValueError, "interpolate: antialias is for",
     lambda: ops.interpolate(ones(1, 1, 4), 2, mode="linear", antialias=True)),
]


@pytest.mark.parametrize(("kind", "says", "call"), WRONG, ids=[says for _, says, _ in WRONG])
def test_wrong_calls_say_what_was_given_and_what_is_expected(kind, says, call) -> None:
    with pytest.raises(kind, match=f"^{says}"):
        call()


# --- nothing at all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [
    lambda x: ops.linear(x, ones(4, 3), ones(4)),
    lambda x: ops.interpolate(x[:, None], 5, mode="linear"),
    lambda x: ops.interpolate(x[:, None, None], 5, mode="bicubic", antialias=True),
    lambda x: ops.interpolate(x[:, None, None, None], (1, 2, 5), mode="trilinear"),
    lambda x: ops.pad(x, (1, 2), "reflect"),
    lambda x: ops.pad(x, (1, -2), "circular"),
    lambda x: ops.roll(x, 1, 0),
    lambda x: ops.flip(x, (0, 1)),
    lambda x: ops.expand(x[:, None], (-1, 4, -1)),
    lambda x: ops.gather(x, 0, np.zeros((0, 3), np.int64)),
    lambda x: ops.matmul(x, ones(3, 2)),
    lambda x: ops.einsum("bi,bj->bij", x, x),
    lambda x: ops.conv2d(x[:, :, None, None], ones(2, 3, 1, 1), ones(2)),
    lambda x: ops.max_pool3d(x[:, :, None, None, None], 1),
])
def test_an_empty_batch_goes_through_and_back(device, fn) -> None:
    x = ones(0, 3)
    y = fn(x)
    y.backward(np.zeros(y.shape, np.float32))
    assert x.grad is not None and x.grad.shape == (0, 3)


def test_linear_of_no_features(device) -> None:
    bias = ones(2)
    y = ops.linear(ones(3, 0), ones(2, 0), bias)
    assert y.numpy().tolist() == [[1, 1]] * 3
    assert gradient(bias, y, np.ones((3, 2))).tolist() == [3, 3]
