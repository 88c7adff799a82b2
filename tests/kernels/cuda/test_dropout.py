"""Dropout by its CUDA kernel: the mask of the CPU, bit for bit, drawn again in backward."""

import math

import numpy as np
import pytest

from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy, current
from scratchvit.kernels.dropout import drop_entries
from scratchvit.random import Draw, Generator
from tests.support import cuda_kernels
from tests.support.seeds import moved, seeded

pytestmark = pytest.mark.usefixtures("cuda")

DROPPING = {"dropout": ops.dropout, "drop_path": ops.drop_path}
SHAPES = [(1,), (3, 5), (255,), (4, 8, 8), (257,), (1000, 3), (0, 3)]


@pytest.mark.parametrize("name", DROPPING)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype, name):
    cuda_kernels.check_shapes(lambda x: DROPPING[name](x, 0.3, generator=Generator(moved(7))), [shape], dtype)


@pytest.mark.parametrize("name", DROPPING)
def test_an_array_that_is_not_contiguous_has_the_mask_of_its_shape(name):
    cuda_kernels.check_shapes(
        lambda x: DROPPING[name](x.permute((1, 0)), 0.3, generator=Generator(moved(7))), [(70, 9)], np.float32
    )


def mask_on_the_cpu(draw):
    return draw.at(np.arange(math.prod(draw.shape), dtype=np.uint32)).reshape(draw.shape)


@pytest.mark.parametrize("probability", [0.001, 0.5, 0.9, 1.0])
def test_what_is_kept_is_what_the_cpu_keeps(probability):
    draw = Generator(moved(3)).draw(probability, (100, 300))
    y, backward = drop_entries(asarray(np.ones(draw.shape, np.float32)), draw)
    expected = mask_on_the_cpu(draw) * np.float32(1 / probability)
    np.testing.assert_array_equal(asnumpy(y), expected)
    np.testing.assert_array_equal(asnumpy(backward(asarray(np.ones(draw.shape, np.float32)))), expected)


def test_keys_may_lie_on_the_device():
    draw = Generator(moved(4)).draw(0.4, (1000,))
    numbers = np.array([*draw.keys, 0, 0], np.uint32)
    on_device = Draw(current().xp.asarray(numbers), draw.probability, draw.shape)
    x = asarray(seeded(0).standard_normal(draw.shape).astype(np.float32))
    assert drop_entries(x, on_device)[0].tobytes() == drop_entries(x, draw)[0].tobytes()
    on_device.keys[0] ^= 1                       # as a replayed step gets others
    assert drop_entries(x, on_device)[0].tobytes() != drop_entries(x, draw)[0].tobytes()


def test_what_is_not_a_number_is_not_hidden():
    x = np.array([np.inf, np.nan] * 50, np.float32)
    y = ops.dropout(Tensor(asarray(x)), 0.5, generator=Generator(moved(1))).numpy()
    assert set(map(str, y[::2])) == {"inf", "nan"} and np.isnan(y[1::2]).all()
