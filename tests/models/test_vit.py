"""ViT: sizes, options, bad input; against timm: names, logits and every gradient."""

import re

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.models.vit import sincos_positions
from tests.support.model_parity import assert_same_model, full_size, images, pair, timms

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
NAME = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("name", "parameters"),       # Table 1 of the paper (86 M, 307 M) and timm's counts
    [("vit_tiny_patch16_224", 5_717_416), ("vit_small_patch16_224", 22_050_664), ("vit_base_patch16_224", 86_567_656),
     ("vit_base_patch32_224", 88_224_232)],
)
def test_parameter_counts(name, parameters):
    with sv.nn.init.without_weights():
        assert sv.create_model(name).num_parameters() == parameters


def test_counting_without_weights_is_exact_and_undone():
    for name in ("vit_tiny_patch16_224", "vit_small_patch32_224"):
        built = sv.create_model(name)
        with sv.nn.init.without_weights():
            counted = sv.create_model(name)
        assert counted.num_parameters() == built.num_parameters()
        assert counted.head.weight.data.strides == (0, 0)       # one number behind the whole matrix
    assert sv.create_model("vit_tiny_patch16_224").head.weight.numpy().std() > 0.01


def test_every_size_and_patch_is_listed():
    assert len(sv.list_models("vit_*_patch*_224")) == 15
    assert {"vit_huge_patch14_224", "vit_large_patch32_224"} <= set(sv.list_models())


@pytest.mark.parametrize(
    "options",
    [{}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}, {"pos_embed": "sincos"},
     {"img_size": (16, 24)}, {"patch_size": (4, 8)}, {"in_chans": 1}, {"qkv_bias": False},
     {"drop_rate": 0.1, "pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1}],
    ids=str,
)
def test_options_train_and_reach_every_parameter(device, options):
    model = sv.create_model(NAME, **{**TINY, **options})
    H, W = model.patch_embed.img_size
    logits = model(images(2, model.config.in_chans, H, W))
    assert logits.shape == (2, 5) and logits.dtype == np.float32
    sv.ops.cross_entropy(logits, np.array([0, 4])).backward()
    assert all(p.grad is not None and p.grad.dtype == np.float32 for p in model.parameters())


def test_without_a_head_features_come_out():
    model = sv.create_model(NAME, **{**TINY, "num_classes": 0})
    assert model(images(2, 3, 16, 16)).shape == (2, 32)
    assert model.forward_features(images(2, 3, 16, 16)).shape == (2, 17, 32)


def test_the_seed_decides_the_weights():
    a, b, c = (sv.create_model(NAME, seed=seed, **TINY).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["head.weight"], c["head.weight"])


def test_sincos_positions_tell_every_place_apart():
    table = sincos_positions((3, 5), 16, num_prefix_tokens=1)[0]
    assert table.shape == (16, 16) and table.dtype == np.float32
    assert not table[0].any()
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1) + np.eye(16)
    assert distances.min() > 0.1
    assert "pos_embed" not in sv.create_model(NAME, **TINY, pos_embed="sincos").state_dict()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"img_size": 0}, "img_size must be at least 1 pixel"), ({"patch_size": (4, -1)}, "patch_size must be at least 1"),
     ({"img_size": 18}, "18×18 cannot be cut into patches of 4×4"),
     ({"num_heads": 5}, "embed_dim 32 is not divisible by 5 heads"),
     ({"global_pool": "max"}, "global_pool"), ({"class_token": False}, "needs a class token"),
     ({"pos_embed": "none"}, "pos_embed"), ({"num_classes": -1}, "num_classes must be positive, or 0"),
     ({"in_chans": 0}, "in_chans must be positive"), ({"pos_drop_rate": 1.0}, "pos_drop_rate is a probability"),
     ({"mlp_ratio": 0.01}, "no hidden units"), ({"weight_init": "jax"}, "weight_init"),
     ({"pos_embed": "sincos", "embed_dim": 30, "num_heads": 3}, "a multiple of 4"),
     ({"emded_dim": 3}, "did you mean 'embed_dim'")],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(options, text):
    with pytest.raises(sv.ScratchvitError, match=text):
        sv.create_model(NAME, **{**TINY, **options})


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(sv.ScratchvitError, match="did you mean 'vit_tiny_patch16_224'"):
        sv.create_model("vit_tny_patch16_224")


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(sv.ScratchvitError, match=r"\(B, 3, 16, 16\), it was given \(2, 3, 20, 16\)"):
        sv.create_model(NAME, **TINY)(images(2, 3, 20, 16))


def test_checkpointed_blocks_give_the_same_gradients():
    x, y = images(4, 3, 16, 16), np.arange(4)
    gradients = []
    for wrap in (False, True):
        model = sv.create_model(NAME, **TINY, proj_drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2)
        if wrap:
            for i, block in enumerate(model.blocks):
                setattr(model.blocks, str(i), Checkpointed(block))
        loss = sv.ops.cross_entropy(model(x), y)
        loss.backward()
        gradients.append([loss.item(), *(p.grad for p in model.parameters())])
    assert all(np.array_equal(a, b) for a, b in zip(*gradients, strict=True))


class Checkpointed(sv.nn.Module):
    def __init__(self, block):
        self.block = block

    def forward(self, x):
        return sv.checkpoint(self.block, x)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((f"vit_tiny_patch{patch}_224", {}) for patch in (32, 16, 14)),
        ("vit_tiny_patch16_224", {"img_size": 48}),
        *(case(f"vit_{size}_{patch}_224", {"img_size": img_size, "depth": 3})   # of all depth in test_weight_names.py
          for patch, img_size in (("patch32", (64, 96)), ("patch16", 224), ("patch14", (84, 42)))
          for size, case in (("tiny", pytest.param), ("small", pytest.param), ("base", full_size))),
        ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg", "depth": 2}),
        ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg", "class_token": False, "depth": 2}),
        ("vit_tiny_patch16_224", {"img_size": 28, "patch_size": 7, "in_chans": 1, "qkv_bias": False, "depth": 2}),
        ("vit_tiny_patch16_224", {"img_size": 32, "num_classes": 0, "depth": 2}),
    ],
    ids=str,
)
def test_logits_and_gradients_equal_timms(name, options):
    timm_name = re.sub("patch(32|14)", "patch16", name)         # timm has not every size with every patch
    patch_size = sv.models.model_config(name, **options).patch_size
    model, peer = pair(timms(timm_name, **{"patch_size": patch_size, **options}), name, **options)
    H, W = model.patch_embed.img_size
    assert_same_model(model, peer, images(2 if H < 224 else 1, model.config.in_chans, H, W))
