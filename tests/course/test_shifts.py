"""Chapter 8: the windows that are drawn are those of the model, and what is changed for a while is restored."""

import numpy as np
import pytest

from scratchvit.course import shifts
from scratchvit.inspect.swin import window_blocks
from scratchvit.models.swin import SwinConfig, SwinTransformer

MODEL = {
    "img_size": 16, "patch_size": 2, "in_chans": 1, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4,
}


@pytest.mark.parametrize(("side", "window", "shift", "whole", "pieces"), [
    (56, 7, 3, 64, 81), (14, 7, 3, 4, 9), (8, 4, 0, 4, 4), (12, 6, 5, 4, 9),
])
def test_the_roll_keeps_the_number_of_windows(side, window, shift, whole, pieces):
    assert len(shifts.block_of(side, window, shift).places) == whole
    assert shifts.pieces_without_roll(side, window, shift) == pieces


def test_masks_allow_what_belongs_together():
    shares = shifts.shares_allowed(shifts.block_of(8, 4, 2))
    assert shares.tolist() == [1, 0.5, 0.5, 0.25]       # inside, right edge, lower edge, corner
    assert shifts.shares_allowed(shifts.block_of(8, 4, 0)).tolist() == [1, 1, 1, 1]


def test_the_rolled_picture_is_numpys_roll():
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    block = shifts.block_of(12, 4, 3)
    assert (shifts.rolled_picture(picture, block, 2) == np.roll(picture, (-6, -6), (0, 1))).all()


def test_only_what_came_from_another_side_is_tinted():
    picture, block = np.full((16, 16, 3), 7, np.uint8), shifts.block_of(8, 4, 2)
    kinds = block.side_by_side(block.kinds)
    changed = (shifts.tinted(picture, kinds, 2) != picture).any(axis=2)
    assert (changed == (kinds > 0).repeat(2, axis=0).repeat(2, axis=1)).all() and changed.any()


def test_a_model_is_as_before_afterwards():
    model = SwinTransformer(SwinConfig(**MODEL))
    blocks, block = window_blocks(model), model.layers[0].blocks[1]
    table = block.attn.relative_position_bias_table
    before, regions = table.numpy().copy(), block.regions
    with pytest.raises(KeyError), shifts.biases_times(blocks, 2.5), shifts.changed(block, regions=None, shift=(0, 0)):
        assert np.array_equal(table.numpy(), np.float32(2.5) * before)
        assert block.regions is None and block.shift == (0, 0)
        raise KeyError
    assert np.array_equal(table.numpy(), before) and block.regions is regions and block.shift == (2, 2)
