"""Swin: sizes, windows, masks, what attention costs; against timm: names, logits and every gradient."""

import itertools

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn
from scratchvit.costs.counting import cost
from scratchvit.models.swin import Block, SwinConfig, neighbours
from scratchvit.models.windows import (
    bias_of_pairs,
    relative_position_index,
    window_and_shift,
)
from scratchvit.optim.groups import layers_by_name
from tests.support.margins import agree
from tests.support.model_parity import assert_learns, assert_same_model, full_size, images, pair, timms
from tests.support.optimizer_settings import settings_by_name
from tests.support.window_blocks import assert_gradients, dense_block, randomised

NAME = "swin_tiny_patch4_window7_224"
TINY = {
    "img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4), "window_size": 3,
    "num_classes": 5,
}


@pytest.mark.parametrize(
    ("name", "parameters"),       # Table 1 of the paper (29, 50, 88, 197 M) and timm's counts
    [("swin_tiny_patch4_window7_224", 28_288_354), ("swin_small_patch4_window7_224", 49_606_258),
     ("swin_base_patch4_window7_224", 87_768_224), ("swin_base_patch4_window12_384", 87_903_584),
     ("swin_large_patch4_window7_224", 196_532_476), ("swin_large_patch4_window12_384", 196_735_516)],
)
def test_parameter_counts(name, parameters):
    with nn.init.without_weights():
        assert sv.create_model(name).num_parameters() == parameters


@pytest.mark.parametrize(
    "options",
    [{}, {"img_size": (24, 36)}, {"patch_size": (4, 8)}, {"window_size": (2, 4)}, {"window_size": 8},
     {"window_size": (9, 3)}, {"img_size": 20, "depths": (2, 2, 1), "num_heads": (1, 1, 2)},
     {"in_chans": 1}, {"qkv_bias": False}, {"mlp_ratio": 0.5}, {"weight_init": "xavier"},
     {"drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}],
    ids=str,
)
def test_options_train_and_reach_every_parameter(device, options):
    model = sv.create_model(NAME, **{**TINY, **options})
    assert_learns(model, images(2, model.config.in_chans, *model.patch_embed.img_size), np.array([0, 4]))


def test_without_a_head_features_come_out():
    model = sv.create_model(NAME, **{**TINY, "num_classes": 0, "img_size": (32, 40)})
    x = images(2, 3, 32, 40)
    assert model(x).shape == (2, 16)
    assert model.forward_features(x).shape == (2, 4, 5, 16)     # 8×10, halved; 10 / 2


def test_an_odd_map_is_halved_upwards():
    model = sv.create_model(NAME, **{**TINY, "img_size": (20, 28)})
    assert model.forward_features(images(1, 3, 20, 28)).shape == (1, 3, 4, 16)


def test_the_seed_decides_the_weights():
    a, b, c = (sv.create_model(NAME, seed=seed, **TINY).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    for name in ("head.fc.weight", "layers.0.blocks.1.attn.relative_position_bias_table"):
        assert not np.array_equal(a[name], c[name]) and 0.01 < a[name].std() < 0.03


def test_small_models_may_begin_by_width():
    matrix = "layers.0.blocks.0.attn.qkv.weight"
    narrow, by_width = (
        sv.create_model(NAME, **TINY, weight_init=how).state_dict()[matrix] for how in ("timm", "xavier")
    )
    assert np.abs(narrow).max() < 0.1 and 0.3 < np.abs(by_width).max() < (6 / 32) ** 0.5       # 8 in, 24 out


def test_what_is_computed_is_not_saved():
    names = {name.rsplit(".", 1)[-1] for name in sv.create_model(NAME, **TINY).state_dict()}
    assert names == {"weight", "bias", "relative_position_bias_table"}


@pytest.mark.parametrize(
    ("options", "text"),
    [({"img_size": 30}, "30×30 cannot be cut into patches of 4×4"), ({"window_size": 0}, "window_size is at least 1"),
     ({"window_size": (3, -1)}, "window_size is at least 1"), ({"depths": ()}, "one number per stage"),
     ({"depths": (2, 2, 2)}, r"per stage, not \(2, 2, 2\) and \(2, 4\)"),
     ({"depths": (2, 0)}, "at least 1 block"), ({"num_heads": (2, 0)}, "num_heads must be positive"),
     ({"num_heads": (2, 3)}, "16 numbers in a token of stage 2 cannot be shared by 3 heads"),
     ({"embed_dim": 0}, "embed_dim must be positive"), ({"mlp_ratio": 0.01}, "no hidden layer"),
     ({"drop_path_rate": 1.0}, "drop_path_rate is a probability"), ({"num_classes": -1}, "num_classes must be"),
     ({"weight_init": "jax"}, 'weight_init is "timm" or "xavier"'),
     ({"depths": 2}, "several numbers"), ({"window": 3}, "did you mean 'window_size'")],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(options, text):
    with pytest.raises(sv.ScratchvitError, match=text):
        sv.create_model(NAME, **{**TINY, **options})


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(sv.ScratchvitError, match=r"\(B, 3, 32, 32\), it was given \(2, 3, 32, 28\)"):
        sv.create_model(NAME, **TINY)(images(2, 3, 32, 28))


# --- windows ---


@pytest.mark.parametrize(
    ("size", "window", "shifted", "expected"),
    [((8, 8), (7, 7), True, ((7, 7), (3, 3))), ((8, 8), (7, 7), False, ((7, 7), (0, 0))),
     ((7, 7), (7, 7), True, ((7, 7), (0, 0))), ((4, 14), (7, 7), True, ((4, 7), (0, 3))),
     ((5, 5), (2, 9), True, ((2, 5), (1, 0))), ((5, 5), (1, 1), True, ((1, 1), (0, 0)))],
)
def test_a_window_never_exceeds_the_map(size, window, shifted, expected):
    assert window_and_shift(size, window, shifted) == expected


def test_the_index_of_a_pair_is_that_of_its_offset():
    window = (2, 3)
    index, places = relative_position_index(window), list(itertools.product(range(2), range(3)))
    offsets = list(itertools.product(range(-1, 2), range(-2, 3)))           # the rows of the table
    for i, j in itertools.product(range(6), range(6)):
        assert offsets[index[i, j]] == (places[i][0] - places[j][0], places[i][1] - places[j][1])


def test_the_bias_table_gets_the_sum_of_its_pairs(device):
    index = sv.Tensor(relative_position_index((2, 2)))
    table = sv.Tensor(np.arange(18, dtype=np.float32).reshape(9, 2), requires_grad=True)
    bias = bias_of_pairs(table, index)
    assert bias.shape == (2, 4, 4) and bias.data.flags.c_contiguous
    assert bias.numpy()[1, 0, 0] == 9                                       # the middle row, (0, 0), of head 1
    bias.sum().backward()
    assert sv.backend.asnumpy(table.grad)[:, 0].tolist() == [1, 2, 1, 2, 4, 2, 1, 2, 1]


def test_four_neighbours_become_one_token(device):
    x = np.arange(3 * 2 * 2, dtype=np.float32).reshape(1, 3, 2, 2)
    merged = neighbours(sv.Tensor(x)).numpy()
    assert merged.tolist() == [[[[0, 1, 4, 5, 2, 3, 6, 7]], [[8, 9, 0, 0, 10, 11, 0, 0]]]]


class Double(nn.Module):
    """Stands in for a block's attention."""

    def forward(self, tokens, mask):
        return tokens * 2


def test_what_is_done_in_windows_comes_back_to_its_place(device):
    x = sv.Tensor(images(2, 5, 7, 3))
    for window, shifted, shift in (((2, 3), False, (0, 0)), ((2, 3), True, (1, 1)), ((5, 3), True, (0, 1))):
        block = Block(SwinConfig(embed_dim=3, num_heads=(1,), window_size=window), 0, (5, 7), shifted, 0.0)
        block.attn = Double()
        assert block.shift == shift
        assert np.array_equal(block.attend(x).numpy(), 2 * x.numpy())


# --- a block is dense attention with a mask, found without windows ---


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("size", "window"),
    [((6, 6), (3, 3)), ((8, 6), (4, 3)), ((4, 9), (4, 3)), ((3, 3), (7, 7)), ((6, 4), (2, 4)), ((2, 3), (1, 1))],
)
def test_a_block_equals_dense_attention_with_a_mask(device, size, window, shifted):
    """Over all tokens of the map at once. Who may look at whom is told by the tokens' places alone."""
    config = SwinConfig(embed_dim=32, num_heads=(2,), depths=(2,), window_size=window)
    block = randomised(Block(config, 0, size, shifted, 0.0))
    x = images(2, *size, 32)
    agree(lambda: block(sv.Tensor(x)), dense_block(block, x, window, shifted))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("size", "window"), [((5, 7), (3, 3)), ((7, 4), (4, 4))])
def test_padding_is_looked_at_as_in_timm(device, size, window, shifted):
    """A map that windows do not divide: tokens of padding are keys with k and v of their biases alone."""
    config = SwinConfig(embed_dim=32, num_heads=(2,), depths=(2,), window_size=window)
    block = randomised(Block(config, 0, size, shifted, 0.0))
    x = images(2, *size, 32)
    agree(lambda: block(sv.Tensor(x)), dense_block(block, x, window, shifted))


def test_shifted_windows_do_not_join_the_edges_of_the_picture():
    """What stands at the left edge has no effect on the right one, however the map is rolled."""
    config = SwinConfig(embed_dim=8, num_heads=(2,), depths=(2,), window_size=4)
    block = randomised(Block(config, 0, (8, 8), True, 0.0))
    x = images(1, 8, 8, 8)
    before = block(sv.Tensor(x)).numpy()
    x[:, :, 0] += 1                                     # the left column
    changed = np.abs(block(sv.Tensor(x)).numpy() - before).max(axis=(0, 1, 3)) > 0
    assert changed.tolist() == [True] * 2 + [False] * 6         # the half window at the edge, and no more


@pytest.mark.parametrize("shifted", [False, True])
def test_gradients_of_a_block(device, shifted):
    config = SwinConfig(embed_dim=4, num_heads=(2,), depths=(2,), window_size=(2, 3), mlp_ratio=1.0)
    assert_gradients(randomised(Block(config, 0, (3, 5), shifted, 0.0)), images(2, 3, 5, 4))


# --- layers, costs ---


def test_layers_from_the_image_to_the_head():
    layers = layers_by_name(sv.create_model(NAME, **TINY))
    assert layers["patch_embed.norm.weight"] == 0 and layers["layers.0.blocks.1.attn.qkv.weight"] == 2
    assert layers["layers.1.downsample.reduction.weight"] == layers["layers.1.blocks.0.norm1.bias"] == 3
    assert layers["norm.weight"] == 3 and layers["head.fc.bias"] == 4


def test_bias_tables_do_not_decay():
    model = sv.create_model(NAME, **TINY)
    assert model.no_weight_decay() == {
        f"layers.{path}.attn.relative_position_bias_table" for path in ("0.blocks.0", "0.blocks.1", "1.blocks.0")
    }


def test_attention_entries_grow_with_the_number_of_tokens():
    """M²·h·w a head and block (eq. 2), where attention over everything has (h·w)²."""
    for side in (224, 448):
        with nn.init.without_weights():
            found = cost(sv.create_model(NAME, img_size=side))
        for stage, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24))):
            h = w = side // 4 // 2**stage
            of_stage = [r.attention_entries for r in found.layers if r.module.startswith(f"layers.{stage}.")]
            assert [n for n in of_stage if n] == [49 * h * w * heads] * depth
    assert 49 * 56 * 56 == 153_664 and (56 * 56) ** 2 == 9_834_496


# --- timm ---


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(full_size(f"swin_{size}_patch4_window7_224", {}) for size in ("tiny", "small")),
        full_size("swin_base_patch4_window7_224", {"depths": (2, 2, 2, 2)}),
        *(("swin_tiny_patch4_window7_224", {"img_size": img_size, "depths": (2, 2, 2), "num_heads": (3, 6, 12)})
          for img_size in (96, (76, 132))),             # padded windows; odd maps, windows that shrink
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": (4, 6), "in_chans": 1, "qkv_bias": False,
                                          "depths": (2, 2), "num_heads": (3, 6), "mlp_ratio": 2.0, "num_classes": 0}),
    ],
    ids=str,
)
def test_logits_and_gradients_equal_timms(name, options):
    model, peer = pair(timms(name, **options), name, **options)
    assert_same_model(model, peer, images(1, model.config.in_chans, *model.patch_embed.img_size))


@pytest.mark.parity
@pytest.mark.parametrize("name", [NAME, "swinv2_tiny_window8_256"])
def test_layers_learn_and_decay_as_in_timm(name):
    theirs_of = timms(name)
    torch, groups = pytest.importorskip("torch"), pytest.importorskip("timm.optim")
    with torch.device("meta"):
        theirs = theirs_of()
    reference = groups.param_groups_layer_decay(theirs, 0.05, theirs.no_weight_decay(), layer_decay=0.75)
    with nn.init.without_weights():
        ours = sv.create_model(name)
    found = settings_by_name(ours, sv.optim.param_groups(ours, 0.05, 0.75))
    assert found == settings_by_name(theirs, reference)
