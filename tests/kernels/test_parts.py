"""Parts of one array: gradients of parts are allocated as parts, so that joining them copies nothing."""

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels.parts import empty_parts, joined, whole_of
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("kernels")


def of_a_projection(B=2, N=5, heads=3, d=4):
    qkv = np.arange(B * N * 3 * heads * d, dtype=np.float32).reshape(B, N, 3, heads, d)
    return qkv, qkv.transpose(2, 0, 3, 1, 4)            # (3, B, heads, N, d)


def test_parts_of_one_array_stay_together():
    qkv, parts = of_a_projection()
    new = empty_parts(*parts)
    for ours, given in zip(new, parts):
        ours[...] = given
    whole = whole_of(new, parts, [(i, ...) for i in range(3)])
    assert whole is not None and whole.base is None
    back = whole.transpose(1, 3, 0, 2, 4)
    assert back.flags.c_contiguous and np.array_equal(back, qkv)


@pytest.mark.parametrize("separate", [
    lambda q, k, v: (q, k.copy(), v),               # not of the same memory
    lambda q, k, v: (q, v, k),                      # not at equal distances
    lambda q, k, v: (v, k, q),                      # backwards
    lambda q, k, v: (q, k[:, :, :2], v),            # of another shape
    lambda q, k, v: (q, q, q),
])
def test_other_arrays_are_allocated_separately(separate):
    parts = separate(*of_a_projection()[1])
    new = empty_parts(*parts)
    assert all(x.base is None and x.shape == part.shape for x, part in zip(new, parts))
    assert whole_of(new, of_a_projection()[1], [(i, ...) for i in range(3)]) is None


def test_neighbours_of_one_array_stay_together():
    """As q and k of self-attention, whose inputs are not v's."""
    q, k, v = of_a_projection()[1]
    *new, alone = empty_parts(q, k, v.copy())
    assert alone.base is None and alone.shape == v.shape
    both = np.stack([q, k])
    whole = whole_of(new, both, [(i, ...) for i in range(2)])
    assert whole is not None and whole.transpose(1, 3, 0, 2, 4).flags.c_contiguous


def test_a_part_that_is_missing_or_out_of_place_is_joined_as_usual():
    _, parts = of_a_projection()
    q, k, v = empty_parts(*parts)
    indices = [(i, ...) for i in range(3)]
    for wrong in ((q, None, v), (None, k, v), (k, q, v), (q, k, v.copy()), (q, k, v[..., ::-1])):
        assert whole_of(wrong, parts, indices) is None


def test_the_gradient_of_a_projection_is_joined_without_a_copy(monkeypatch):
    joined = []
    whole = ops.shape.whole_of
    monkeypatch.setattr(ops.shape, "whole_of", lambda *given: joined.append(whole(*given)) or joined[-1])
    rng = seeded(0)
    qkv = Tensor(rng.standard_normal((2, 5, 3, 3, 4)).astype(np.float32), requires_grad=True)
    q, k, v = (qkv * 1).permute((2, 0, 3, 1, 4)).unbind(0)
    ops.attention(q, k, v).sum().backward()
    assert joined.pop() is not None
    found = qkv.grad

    qkv.grad = None
    q, k, v = (qkv * 1).permute((2, 0, 3, 1, 4)).unbind(0)
    ops.attention(q, k, v * 1).sum().backward()             # v's gradient comes from another op
    assert joined == [None] and np.array_equal(found, qkv.grad)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtypes", [("f4", "f4", "f4"), ("i8", "i8", "i8"), ("?", "?", "?"), ("f4", "f8", "f4")])
def test_joined(axis, dtypes, device):
    """Also with arrays that are empty, not contiguous, or of several dtypes."""
    shapes = [(2, 3), (0, 3), (4, 3)] if axis == 0 else [(3, 2), (3, 0), (3, 4)]
    parts = [(10 * seeded(0).standard_normal(shape)).astype(dtype) for shape, dtype in zip(shapes, dtypes)]
    on_device = [asarray(part) for part in parts]
    on_device[2] = asarray(np.ascontiguousarray(parts[2].T)).T
    found = asnumpy(joined(on_device, axis))
    expected = np.concatenate(parts, axis)
    assert found.dtype == expected.dtype and np.array_equal(found, expected)
