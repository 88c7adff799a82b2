"""Gradients of a tensor that several ops use, added in one launch."""

import numpy as np
import pytest

from scratchvit import Tensor, graph, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels.cuda.add_up import MOST, add_up
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (255,), (3, 257), (0, 4)], ids=str)
@pytest.mark.parametrize("count", [2, 3, MOST])
def test_the_bits_are_those_of_one_addition_after_the_other(count, shape, dtype):
    given = [np.asarray(seeded(i).standard_normal(shape), dtype) for i in range(count)]
    expected = sum(given[1:], start=given[0])
    for out in (None, count - 1):
        arrays = [asarray(x) for x in given]
        found = add_up(arrays, None if out is None else arrays[out])
        assert found.dtype == dtype and (out is None or found is arrays[out])
        np.testing.assert_array_equal(asnumpy(found), expected)


def test_what_the_kernel_does_not_take():
    x = asarray(np.ones((4, 3), np.float32))
    assert add_up([x, asarray(np.ones((3, 4), np.float32)).T], None) is None
    assert add_up([x, x.astype(np.float64)], None) is None


def test_numbers_of_16_bits_are_rounded_once():
    x, one = asarray(np.full(7, 2048, np.float16)), asarray(np.ones(7, np.float16))
    assert asnumpy(add_up([x, one, one], None)).tolist() == [2050] * 7      # 2048 + 1 is 2048 in float16


# Two are added in place, by CuPy; of 17, the last one to the sum of the others.
@pytest.mark.parametrize(("count", "launches"), [(2, 0), (3, 1), (16, 1), (17, 1), (18, 2), (40, 3)])
@pytest.mark.parametrize("last", [lambda x: x * 1, lambda x: x.transpose(0, 1)], ids=["as it is", "transposed"])
def test_a_tensor_that_many_ops_use(count, launches, last, monkeypatch):
    """In as few launches as there can be, and where a gradient is not contiguous, one after the other."""
    calls = []
    kernel = graph.add_up
    monkeypatch.setattr(graph, "add_up", lambda *given: calls.append(kernel(*given)) or calls[-1])
    rng = seeded(0)
    leaf = Tensor(asarray(rng.standard_normal((5, 7)).astype(np.float32)), requires_grad=True)
    weights = [asarray(rng.standard_normal((5, 7)).astype(np.float32)) for _ in range(count)]
    x = leaf * 1
    uses = [x * w for w in weights[1:]]
    y = last(x) * (weights[0] if last(x).shape == (5, 7) else weights[0].T)
    (sum(uses[1:], start=uses[0]).sum() + y.sum()).backward()
    expected = sum(asnumpy(w).astype(np.float64) for w in weights)
    size = sum(np.abs(asnumpy(w)) for w in weights)
    assert_close(asnumpy(leaf.grad), expected, ulps(size, count))
    mine = [call for call in calls if call is None or call.shape == (5, 7)]
    assert len(mine) == launches
    assert y.shape == (7, 5) or all(call is not None for call in mine)


def test_a_gradient_that_goes_to_two_tensors_is_not_written_to():
    """z = ((x + y) + x) + x: what the last addition sends to x, it sends to the rest too."""
    x, y = (Tensor(asarray(np.ones(3, np.float32)), requires_grad=True) for _ in range(2))
    inner, other = x * 1, y * 1
    ops.add(ops.add(ops.add(inner, other), inner), inner).backward(asarray(np.ones(3, np.float32)))
    assert asnumpy(x.grad).tolist() == [3, 3, 3] and asnumpy(y.grad).tolist() == [1, 1, 1]
