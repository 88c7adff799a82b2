"""Chapter 11: the steps that are shown end at what the ops compute. Times are not tested."""

import numpy as np
import pytest

from scratchvit.costs.machine import Machine
from scratchvit.course import speed
from scratchvit.threads import parallel_rows


@pytest.mark.parametrize("block", [1, 2, 3, 7, 17, 100])
@pytest.mark.parametrize("scale", [1, 30, 1e4])
def test_softmax_by_blocks_is_softmax(block, scale):
    rng = np.random.default_rng(0)
    scores, values = scale * rng.standard_normal(17), rng.standard_normal((17, 3))
    p = np.exp(scores - scores.max())
    last = speed.online(scores, values, block)[-1]
    np.testing.assert_allclose(last.y / last.l, p @ values / p.sum(), rtol=1e-10, atol=1e-12)
    assert last.end == 17 and last.m == scores.max()


def test_blocks_may_be_joined_in_any_order():
    scores = np.random.default_rng(1).standard_normal(10)
    parts = [(part.max(), np.exp(part - part.max()).sum()) for part in (scores[:3], scores[3:])]
    m, l = speed.joined(*parts)
    assert (m, l) == pytest.approx((scores.max(), np.exp(scores - scores.max()).sum()))
    assert speed.joined(*parts[::-1]) == pytest.approx((m, l))


def test_every_lane_gets_the_sum():
    values = np.random.default_rng(0).standard_normal(speed.LANES).astype(np.float32)
    steps = speed.warp_steps(values)
    assert len(steps) == 6 and (steps[0] == values).all()
    np.testing.assert_allclose(steps[-1], np.full(speed.LANES, values.sum()), rtol=1e-4, atol=1e-5)
    assert len({float(value) for value in steps[2].round(4)}) == 8          # after two exchanges


def test_an_update_in_blocks_is_the_update():
    rng = np.random.default_rng(0)
    whole = [rng.random((64, 8), np.float32) for _ in range(5)]
    blocks = [array.copy() for array in whole]
    speed.update(*whole)
    parallel_rows(speed.update, *blocks, block_bytes=256)
    assert all((a == b).all() for a, b in zip(whole, blocks))
    assert (whole[0] != blocks[1]).any()


def test_both_forms_agree():
    assert speed.in_blocks_and_whole(300) < 1e-5
    compared = speed.plain_and_fast(rows=64, dim=96, images=1, tokens=20)
    assert [one.name for one in compared] == ["gelu", "layer_norm", "attention"]
    assert all(one.difference < 1e-5 and one.plain > 0 and one.fast > 0 for one in compared)


def test_memory_decides_below_the_corner():
    machine = Machine(flops=100e9, bandwidth=10e9)
    assert [speed.share_of_peak(machine, intensity) for intensity in (1, 5, 10, 100)] == pytest.approx([0.1, 0.5, 1, 1])
    assert speed.attention_bytes(4096, heads=8) == (512 * speed.MEBIBYTE, speed.MEBIBYTE // 4)
