"""Maps of tokens, cut into windows and joined again."""

import re

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops


def numbered(*shape):
    return sv.Tensor(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))


def test_windows_are_cut_row_by_row_and_joined_again(device):
    x = numbered(2, 4, 6, 1)
    windows = ops.window_partition(x, (2, 3))
    assert windows.shape == (8, 6, 1)
    assert windows.numpy()[:2, :, 0].tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert windows.numpy()[4, 0] == 24                          # the next image
    assert np.array_equal(ops.window_reverse(windows, (2, 3), (4, 6)).numpy(), x.numpy())


def test_the_drawing_of_shifted_windows(device):
    """The map of 4×4 tokens a … p in models/windows.py, in windows of 2×2 that are shifted by 1."""
    windows = ops.window_partition(numbered(1, 4, 4, 1), (2, 2), (1, 1)).numpy()[..., 0]
    assert ["".join(chr(ord("a") + int(i)) for i in window) for window in windows] == ["fgjk", "heli", "nobc", "pmda"]


def test_rows_and_columns_outside_of_what_is_rolled_stay(device):
    x = numbered(1, 4, 4, 1)
    windows = ops.window_partition(x, (4, 4), (1, 2), (3, 3)).numpy().reshape(4, 4)
    assert windows.tolist() == [[6, 4, 5, 3], [10, 8, 9, 7], [2, 0, 1, 11], [12, 13, 14, 15]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int8, bool])
@pytest.mark.parametrize("B", [0, 1, 70])
def test_joining_undoes_cutting(B, dtype, device):
    x = sv.Tensor(np.random.default_rng(0).integers(100, size=(B, 12, 9, 5)).astype(dtype), dtype=dtype)
    windows = ops.window_partition(x, (4, 3), (2, 1), (10, 9))
    assert windows.shape == (9 * B, 12, 5) and windows.dtype == dtype
    assert np.array_equal(ops.window_reverse(windows, (4, 3), (12, 9), (2, 1), (10, 9)).numpy(), x.numpy())


def test_a_map_that_is_not_contiguous(device):
    x = numbered(2, 4, 6, 5)
    expected = ops.window_partition(x, (2, 3), (1, 1))
    turned = sv.Tensor(x.data.transpose(3, 0, 1, 2).copy()).permute((1, 2, 3, 0))
    assert np.array_equal(ops.window_partition(turned, (2, 3), (1, 1)).numpy(), expected.numpy())


@pytest.mark.parametrize(("call", "text"), [
    (lambda x: ops.window_partition(x, (3, 2)),
     "window_partition: windows of 3×2 do not divide a map of 4×6: pad it first"),
    (lambda x: ops.window_partition(x, (0, 2)), "windows of 0×2 do not divide"),
    (lambda x: ops.window_reverse(x[0], (2, 3), (4, 7)), "window_reverse: windows of 2×3 do not divide a map of 4×7"),
    (lambda x: ops.window_reverse(x[0], (2, 3), (6, 6)), "(4, 6, 5) of 2×3 tokens do not form whole maps of 6×6"),
    (lambda x: ops.window_reverse(x[0], (2, 2), (4, 4)), "(4, 6, 5) of 2×2 tokens do not form whole maps of 4×4"),
])
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call(numbered(1, 4, 6, 5))
