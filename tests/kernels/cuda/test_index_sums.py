"""Sums by an index by their CUDA kernels: with and without a sort, negative numbers, entries that nobody selects."""

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels.cuda import index_sums
from scratchvit.kernels.index_sums import sum_by_index
from tests.support import cuda_kernels
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

SHAPES = [(1, 1, 1), (5, 3, 4), (300, 7, 33), (513, 2, 3), (40, 100, 70), (0, 3, 4), (6, 3, 0)]       # N, size, D


@pytest.fixture(params=[1 << 26, 0], ids=["", "sorted"])
def largest(request, monkeypatch):
    monkeypatch.setattr(index_sums, "LARGEST", request.param)


@pytest.mark.usefixtures("largest")
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("N", "size", "D"), SHAPES)
def test_shapes(N, size, D, dtype, index_dtype):
    index = asarray(seeded(0).integers(size, size=N).astype(index_dtype))
    cuda_kernels.check_shapes(lambda weight: ops.embedding(index, weight), [(size, D)], dtype)


@pytest.mark.usefixtures("largest")
def test_negative_numbers_count_from_the_end():
    index, values = np.array([2, -1, -3, 0, 1, 2]), np.arange(1.0, 7)
    assert asnumpy(sum_by_index(asarray(index), asarray(values), 3)).tolist() == [7, 5, 9]


@pytest.mark.usefixtures("largest")
def test_values_that_are_not_contiguous():
    index = asarray(seeded(0).integers(9, size=(6, 5)))
    cuda_kernels.check_shapes(lambda table: ops.embedding(index, table).permute((2, 0, 1)), [(9, 4)], np.float32)


@pytest.mark.usefixtures("largest")
def test_an_entry_that_is_selected_very_often():
    """2¹⁸ times 0.1: in float32, one after another would be 1e-4 off."""
    tenth = np.float32(0.1)
    found = sum_by_index(asarray(np.ones(1 << 18, np.int32)), asarray(np.full(1 << 18, tenth)), 2)
    np.testing.assert_allclose(asnumpy(found), [0, float(tenth) * 2**18], rtol=1e-7)


@pytest.mark.usefixtures("largest")
def test_other_ops_that_index():
    index = asarray(seeded(0).integers(5, size=(4, 6)))
    cuda_kernels.check_shapes(lambda x: x[:, index], [(3, 5)], np.float32)
    cuda_kernels.check_shapes(lambda x: ops.gather(x, 0, index), [(5, 6)], np.float32)
