"""Chapter 3: the rows that are shown are the patches in reading order, and their product is the convolution."""

import numpy as np

from scratchvit import ops
from scratchvit.course.patches import patch_rows


def test_rows_are_patches_in_reading_order():
    images = np.random.default_rng(0).standard_normal((2, 3, 6, 8))
    rows = patch_rows(images, 2)
    expected = [images[:, :, y : y + 2, x : x + 2].reshape(2, 12) for y in range(0, 6, 2) for x in range(0, 8, 2)]
    np.testing.assert_array_equal(rows, np.stack(expected, axis=1))


def test_their_product_is_a_convolution_whose_stride_is_its_window():
    rng = np.random.default_rng(1)
    images, weight = rng.standard_normal((2, 3, 6, 8)), rng.standard_normal((5, 3, 2, 2))
    convolved = ops.conv2d(images, weight, stride=2).numpy()
    multiplied = patch_rows(images, 2) @ weight.reshape(5, -1).T
    np.testing.assert_allclose(multiplied, convolved.reshape(2, 5, -1).transpose(0, 2, 1), rtol=1e-12, atol=1e-12)
