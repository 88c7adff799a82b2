"""Sums of columns by their CUDA kernels."""

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.kernels.sums import total
from tests.support import cuda_kernels

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("N", "D"), [(1, 2), (7, 33), (512, 5), (513, 32), (5000, 40), (70_000, 2), (0, 4), (3, 0)],
)
def test_shapes(N, D, dtype):
    cuda_kernels.check_shapes(lambda x: ops.sum(x, 0), [(N, D)], dtype)


def test_the_error_does_not_grow_with_the_rows():
    """2²⁰ times 0.1: one after another, in float32, they would give 105 too much, a share of 1e-3."""
    tenth = np.float32(0.1)
    found = asnumpy(total(asarray(np.full((1 << 20, 3), tenth)), (0,)))
    np.testing.assert_allclose(found, float(tenth) * 2**20, rtol=64 * 2**-24)
