"""Hybrids: sizes, token grids, bad input; against timm: names, logits and every gradient."""

import functools

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.inspect.attention import attention_maps
from scratchvit.models.hybrid import PRESETS
from tests.support.model_parity import (
    assert_learns,
    assert_same_cnn,
    assert_same_model,
    full_size,
    images,
    pair,
    timms,
)
from tests.support.peers import import_timm

NAME = "vit_base_r50_s16_224"
TINY = {"img_size": 32, "layers": (1, 1), "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}

SIZES = {        # parameters, tokens with the class token
    "vit_tiny_r_s16_p8_224": (6_337_704, 50), "vit_tiny_r_s16_p8_384": (6_355_944, 145),
    "vit_small_r26_s32_224": (36_431_912, 50), "vit_small_r26_s32_384": (36_468_392, 145),
    "vit_base_r26_s32_224": (101_383_976, 50),
    "vit_base_r50_s16_224": (98_659_112, 197), "vit_base_r50_s16_384": (98_950_952, 577),
    "vit_large_r50_s32_224": (328_994_856, 50), "vit_large_r50_s32_384": (329_092_136, 145),
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_and_tokens(name):
    with sv.nn.init.without_weights():
        model = sv.create_model(name)
    assert (model.num_parameters(), model.num_tokens) == SIZES[name]


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": (), "patch_size": 4}, {"layers": (2, 1, 1)}, {"layers": (1,), "patch_size": (2, 4)},
     {"img_size": (16, 40)}, {"in_chans": 1}, {"global_pool": "avg", "class_token": False}, {"pos_embed": "sincos"},
     {"width_factor": 2}, {"drop_path_rate": 0.1, "proj_drop_rate": 0.1}],
    ids=str,
)
def test_options_train_and_reach_every_parameter(device, options):
    model = sv.create_model(NAME, **{**TINY, **options})
    assert_learns(model, images(2, model.config.in_chans, *model.patch_embed.img_size), np.array([0, 4]), lr=0.05)


@pytest.mark.parametrize(
    ("img_size", "layers", "patch_size", "grid"),
    [(32, (), 8, (1, 1)), (64, (1,), 1, (16, 16)), ((64, 96), (1, 1, 1), 1, (4, 6)),
     ((32, 96), (1, 1, 1, 1), 1, (1, 3)), (33, (1, 1), 1, (5, 5)), ((50, 61), (1, 1, 1), 2, (2, 2)),
     (1, (1, 1), 1, (1, 1))],
    ids=str,
)
def test_every_stride_rounds_the_grid_up(img_size, layers, patch_size, grid):
    model = sv.create_model(NAME, **{**TINY, "img_size": img_size, "layers": layers, "patch_size": patch_size})
    embed = model.patch_embed
    assert embed.grid_size == grid and embed.num_patches == grid[0] * grid[1] == model.num_tokens - 1
    x = images(2, 3, *embed.img_size)
    assert embed(sv.Tensor(x)).shape == (2, embed.num_patches, 32)
    assert model(x).shape == (2, 5)


def test_it_is_seen_through_like_a_vit():
    model = sv.create_model(NAME, **TINY)
    maps = attention_maps(model, images(2, 3, 32, 32))
    assert maps.shape == (2, 2, 2, model.num_tokens, model.num_tokens)
    assert model.num_tokens - model.num_prefix_tokens == np.prod(model.patch_embed.grid_size) == 16
    assert model.no_weight_decay() == {"cls_token", "pos_embed"}


def test_weights_are_the_seeds_and_blocks_of_the_cnn_begin_as_their_shortcuts():
    a, b, c = (sv.create_model(NAME, seed=seed, **TINY).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    kernel = "patch_embed.backbone.stages.1.blocks.0.conv2.weight"              # (128, 128, 3, 3)
    assert not np.array_equal(a[kernel], c[kernel])
    assert a[kernel].std() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert not a["patch_embed.backbone.stages.0.blocks.0.norm3.weight"].any()
    stem = sv.create_model(NAME, seed=1, **{**TINY, "layers": ()}).state_dict()["patch_embed.backbone.conv.weight"]
    again = sv.create_model(NAME, seed=1, **{**TINY, "layers": ()}).state_dict()["patch_embed.backbone.conv.weight"]
    assert np.array_equal(stem, again) and np.abs(stem).max() <= (3 * 7 * 7) ** -0.5


@pytest.mark.parametrize(
    ("options", "text"),
    [({"patch_size": 3}, "an image of 32×32 the CNN gives 4×4 features.*patches of 3×3.*multiple of 24 and width"),
     ({"img_size": (32, 40), "patch_size": 2}, "4×5 features"),
     ({"layers": (1, 1, 1, 1, 1)}, "one to 4 numbers of blocks"), ({"layers": (0,)}, "at least 1"),
     ({"width_factor": 0}, "width_factor must be positive"), ({"in_chans": 0}, "in_chans must be positive"),
     ({"num_heads": 5}, "embed_dim 32 is not divisible by 5 heads"), ({"layer": (1,)}, "did you mean 'layers'")],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(options, text):
    with pytest.raises(sv.ScratchvitError, match=text):
        sv.create_model(NAME, **{**TINY, **options})


@pytest.mark.parametrize("shape", [(2, 3, 31, 32), (2, 1, 32, 32), (3, 32, 32)])
def test_an_image_of_another_shape_is_refused(shape):
    """31 pixels would make as many features as 32: refused all the same."""
    with pytest.raises(sv.ScratchvitError, match=r"\(B, 3, 32, 32\), it was given|given one image \(3, 32, 32\)"):
        sv.create_model(NAME, **TINY)(images(*shape))


# --- against timm ---------------------------------------------------------------------------------------------------


def timms_of(layers, in_chans=3, **sizes):
    """timm's model of these sizes, put together from its parts: its presets do not take `layers`."""
    timm = import_timm()
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer_hybrid import _resnetv2

    def make():
        embed_layer = functools.partial(HybridEmbed, backbone=_resnetv2(layers, in_chans=in_chans))
        return timm.models.VisionTransformer(embed_layer=embed_layer, in_chans=in_chans, **sizes)

    return make


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", PRESETS)
def test_names_and_shapes_are_timms(name):
    torch, timm = pytest.importorskip("torch"), import_timm()
    with torch.device("meta"):
        peer = timm.create_model(name, num_classes=1000)        # one preset of timm's has no head
    with sv.nn.init.without_weights():
        model = sv.create_model(name)
    theirs = {name: tuple(p.shape) for name, p in peer.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == theirs
    assert model.config.img_size == peer.default_cfg["input_size"][1]
    assert model.patch_embed.grid_size == tuple(peer.patch_embed.grid_size)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_r_s16_p8_224", 224), ("vit_tiny_r_s16_p8_384", (64, 125)), full_size("vit_small_r26_s32_224", 224),
        full_size("vit_small_r26_s32_384", (96, 70)), full_size("vit_base_r26_s32_224", (33, 64)),
        full_size("vit_base_r50_s16_224", 224), full_size("vit_base_r50_s16_384", (64, 90)),
    ],
    ids=str,
)
def test_logits_and_gradients_equal_timms(name, size):
    """A preset for 384 pixels is that for 224 at another size. Of all depth in test_weight_names.py."""
    options = {"num_classes": 1000, "img_size": size, "depth": 3}
    model, peer = pair(timms(name, **options), name, **options)
    H, W = model.patch_embed.img_size
    assert_same_cnn(model, peer, images(1 if H >= 224 else 2, 3, H, W), modes=(False,))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [{"layers": (1, 2, 1), "embed_dim": 96, "num_heads": 4, "depth": 3, "in_chans": 1, "img_size": (80, 112)},
     {"layers": (2,), "embed_dim": 64, "num_heads": 2, "depth": 2, "img_size": (61, 48), "patch_size": 4}],
    ids=str,
)
def test_sizes_of_ones_own_equal_timms(options):
    model, peer = pair(timms_of(**{"patch_size": 1, **options}), NAME, **options)
    x = images(2, model.config.in_chans, *model.patch_embed.img_size)
    assert_same_cnn(model, peer, x, modes=(False,))


@pytest.mark.slow
@pytest.mark.parity
def test_float32_gradients_equal_timms():
    """With one ReLU, in the stem, few enough of its inputs are near 0 for float32 to be compared."""
    name = "vit_tiny_r_s16_p8_224"
    model, peer = pair(timms(name), name)
    assert_same_model(model, peer, images(1, 3, 224, 224))
