"""Products of a warp by tensor cores, entry by entry."""

import numpy as np
import pytest

from scratchvit.backend import current
from scripts.gpu_parts.tensor_cores import products
from tests.support import tensor_cores


@pytest.mark.parametrize("char", tensor_cores.CHARS)
def test_products_of_integers_are_exact(char, cuda):
    if int(current().xp.cuda.Device().compute_capability) < 80:
        pytest.skip("this GPU has no such instructions")
    for found, expected in products(current().xp, tensor_cores.dtype_of(char)).values():
        assert np.array_equal(found, expected)
