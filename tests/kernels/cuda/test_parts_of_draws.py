"""The CUDA kernels' draws for a part of a batch, also where a captured step is replayed for another part."""

import dataclasses

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy, current
from scratchvit.kernels.cuda import flash
from scratchvit.kernels.dropout import drop_entries
from scratchvit.random import Generator, part_of_batch
from scratchvit.replay import WARM_UP, Replay
from tests.support.seeds import moved, seeded

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize("first", [0, 77, 2**32 - 500, 2**32, 2**45 + 2**32 - 900], ids=str)
@pytest.mark.parametrize("on_device", [False, True], ids=["arguments", "on the device"])
def test_positions_have_64_bits(first, on_device):
    draw = dataclasses.replace(Generator(moved(1)).draw(0.3, (40, 25)), first=first)
    expected = asnumpy(draw.array()) / np.float32(0.3)      # by operations on arrays
    if on_device:
        beyond, low = divmod(first, 2**32)
        keys = current().xp.asarray(np.array([*draw.keys, low, beyond], np.uint32))
        draw = dataclasses.replace(draw, keys=keys, first=0)
    y, backward = drop_entries(asarray(np.ones(draw.shape, np.float32)), draw)
    np.testing.assert_allclose(asnumpy(y), expected, rtol=1e-6)
    np.testing.assert_allclose(asnumpy(backward(asarray(np.ones(draw.shape, np.float32)))), expected, rtol=1e-6)


def test_attention_that_never_writes_its_matrix():
    """flash.py, in 16 bits: the images of a part drop what they drop in the batch."""
    if int(current().xp.cuda.Device().compute_capability) < 80:
        pytest.skip("this GPU has no tensor cores for it")
    q, k, v, dy = (asarray(seeded(i).standard_normal((5, 2, 70, 16)).astype(np.float16)) for i in range(4))
    assert flash.takes(q, k, v, None)

    def run(rows):
        tensors = [Tensor(x[rows], requires_grad=True) for x in (q, k, v)]
        y = ops.attention(*tensors, dropout=0.5, generator=Generator(moved(2)))
        y.backward(dy[rows])
        return [y.numpy(), *(asnumpy(tensor.grad) for tensor in tensors)]

    with sv.autocast("float16"):
        whole = run(slice(0, 5))
        for part in (slice(0, 2), slice(2, 5)):
            with part_of_batch(part, 5):
                found = run(part)
            assert all(np.array_equal(one, other[part]) for one, other in zip(found, whole, strict=True))
        assert not np.array_equal(run(slice(2, 5))[0], whole[0][2:5])


def unexpected(error):
    raise AssertionError("the function could not be captured") from error


@pytest.mark.parametrize("recompute", [False, True], ids=["as it is", "of a checkpoint"])
def test_a_captured_step_is_replayed_for_parts_that_begin_elsewhere(recompute):
    """Shares of equal size of batches of unequal size have other rows, but need no other capture."""
    generator, x = Generator(moved(3)), seeded(0).standard_normal((3, 4, 8)).astype(np.float32)

    def layers(x):
        x = ops.dropout(x, 0.5, generator=generator)
        return ops.add_layer_norm(x, ops.drop_path(x, 0.3, generator=generator), 8, p=0.5, generator=generator)

    def step(array):
        leaf = Tensor(array, requires_grad=True)
        y = sv.checkpoint(layers, leaf) if recompute else layers(leaf)
        (y * y.detach()).sum().backward()
        return y.data, leaf.grad

    replay = Replay(step, unexpected)
    places = (3, 6), (3, 6), (3, 6), (4, 7), (0, 5), (9, 12), (3, 6)
    parts = [(slice(start, start + 3), whole) for start, whole in places]
    found = []
    for part, whole in parts:
        with part_of_batch(part, whole):
            found.append([asnumpy(array).copy() for array in replay(asarray(x))])
    assert replay.was_replayed and len(parts) > WARM_UP + 2

    generator.load_state_dict({"seed": generator.seed, "draws": 0})
    for (part, whole), results in zip(parts, found, strict=True):
        with part_of_batch(part, whole):
            expected = [asnumpy(array) for array in step(asarray(x))]
        assert all(np.array_equal(one, two) for one, two in zip(results, expected, strict=True))
