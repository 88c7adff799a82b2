"""Google's .npz files, built from random arrays: every tensor is where timm's own reader puts it."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.weights import model_from_weights
from scratchvit.weights.files import read_weights
from tests.support import peers
from tests.support.seeds import seeded


def google_vit(D, heads, depth, patch, grid, classes, stages=None, big_vision=False, stacked=False, prefix=""):
    """Random arrays in the layout of Google's ViTs; stages: blocks of a hybrid's CNN, () for its stem alone."""
    rng, arrays, d = seeded(0), {}, D // heads
    mha, mlp, norm2 = ("_0", "_0", "_1") if big_vision else ("_1", "_3", "_2")

    def add(name, *shape):
        arrays[prefix + name] = rng.standard_normal(shape, dtype=np.float32)

    channels = 3
    if stages is not None:
        add("conv_root/kernel", 7, 7, 3, 64)
        for leaf in ("scale", "bias"):
            add(f"gn_root/{leaf}", 1, 1, 1, 64)
        channels = 64
        for i, blocks in enumerate(stages):
            width = 64 << i
            for j in range(blocks):
                unit = f"block{i + 1}/unit{j + 1}/"
                convolutions = [("1", 1, channels, width), ("2", 3, width, width), ("3", 1, width, 4 * width)]
                for which, k, inputs, outputs in [*convolutions, ("_proj", 1, channels, 4 * width)][: 3 + (j == 0)]:
                    add(f"{unit}conv{which}/kernel", k, k, inputs, outputs)
                    add(f"{unit}gn{which}/scale", 1, 1, 1, outputs)
                    add(f"{unit}gn{which}/bias", 1, 1, 1, outputs)
                channels = 4 * width
    add("embedding/kernel", patch, patch, channels, D)
    add("embedding/bias", D)
    add("cls", 1, 1, D)
    add("pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding", 1, 1 + grid[0] * grid[1], D)
    lead = (depth,) if stacked else ()
    for i in ("",) if stacked else [f"_{i}" for i in range(depth)]:
        block = f"Transformer/encoderblock{i}/"
        for norm in ("_0", norm2):
            add(f"{block}LayerNorm{norm}/scale", *lead, D)
            add(f"{block}LayerNorm{norm}/bias", *lead, D)
        attention = f"{block}MultiHeadDotProductAttention{mha}/"
        for name in ("query", "key", "value"):
            add(f"{attention}{name}/kernel", *lead, D, heads, d)
            add(f"{attention}{name}/bias", *lead, heads, d)
        add(f"{attention}out/kernel", *lead, heads, d, D)
        add(f"{attention}out/bias", *lead, D)
        for layer, inputs, outputs in (("0", D, 4 * D), ("1", 4 * D, D)):
            add(f"{block}MlpBlock{mlp}/Dense_{layer}/kernel", *lead, inputs, outputs)
            add(f"{block}MlpBlock{mlp}/Dense_{layer}/bias", *lead, outputs)
    for leaf in ("scale", "bias"):
        add(f"Transformer/encoder_norm/{leaf}", D)
    add("head/kernel", D, classes)
    add("head/bias", classes)
    return arrays


def google_bit(layers, width, classes):
    """Random arrays in the layout of Google's BiT-ResNetV2."""
    rng, arrays = seeded(0), {}

    def add(name, *shape):
        arrays["resnet/" + name] = rng.standard_normal(shape, dtype=np.float32)

    def add_norm(name, channels):
        add(f"{name}group_norm/gamma", channels)
        add(f"{name}group_norm/beta", channels)

    channels = 64 * width
    add("root_block/standardized_conv2d/kernel", 7, 7, 3, channels)
    for i, blocks in enumerate(layers):
        inner = 64 * width << i
        for j in range(blocks):
            unit = f"block{i + 1}/unit{j + 1:02d}/"
            if j == 0:
                add(f"{unit}a/proj/standardized_conv2d/kernel", 1, 1, channels, 4 * inner)
            convolutions = [("a", 1, channels, inner), ("b", 3, inner, inner), ("c", 1, inner, 4 * inner)]
            for name, k, inputs, outputs in convolutions:
                add_norm(f"{unit}{name}/", inputs)
                add(f"{unit}{name}/standardized_conv2d/kernel", k, k, inputs, outputs)
            channels = 4 * inner
    add_norm("", channels)
    add("head/conv2d/kernel", 1, 1, channels, classes)
    add("head/conv2d/bias", classes)
    return arrays


TINY_VIT = {"D": 192, "heads": 3, "depth": 2, "patch": 16, "grid": (4, 4), "classes": 9}
GOOGLE = {
    "ViT": ("vit_tiny_patch16_224", TINY_VIT, {"img_size": 64}),
    "ViT, optimiser beside": ("vit_tiny_patch16_224", {**TINY_VIT, "prefix": "opt/target/"}, {"img_size": 64}),
    "big_vision": ("vit_tiny_patch16_224", {**TINY_VIT, "big_vision": True, "prefix": "params/"}, {"img_size": 64}),
    "big_vision, stacked": (
        "vit_tiny_patch16_224", {**TINY_VIT, "big_vision": True, "stacked": True, "prefix": "params/img/"},
        {"img_size": 64},
    ),
    "R+Ti/16": ("vit_tiny_r_s16_p8_224", {**TINY_VIT, "patch": 8, "grid": (2, 2), "stages": ()}, {"img_size": 64}),
    "R26+S/32": (
        "vit_small_r26_s32_224",
        {"D": 384, "heads": 6, "depth": 2, "patch": 1, "grid": (2, 2), "classes": 9, "stages": (2, 2, 2, 2)},
        {"img_size": 64},
    ),
    "R50+B/16": (
        "vit_base_r50_s16_224",
        {"D": 768, "heads": 12, "depth": 2, "patch": 1, "grid": (4, 4), "classes": 9, "stages": (3, 4, 9)},
        {"img_size": 64},
    ),
}


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("case", GOOGLE)
def test_googles_vits_give_the_tensors_that_timm_reads(case, tmp_path):
    timm = peers.import_timm()
    name, sizes, options = GOOGLE[case]
    np.savez(tmp_path / "model.npz", **google_vit(**sizes))
    options = {**options, "depth": 2}
    peer = timm.create_model(name, num_classes=9, **options)
    peer.load_pretrained(str(tmp_path / "model.npz"))
    model, _ = model_from_weights(tmp_path / "model.npz", name, **options)
    assert_same_tensors(model, peer)


@pytest.mark.parity
def test_googles_bit_gives_the_tensors_that_timm_reads(tmp_path):
    timm = peers.import_timm()
    np.savez(tmp_path / "model.npz", **google_bit((3, 4, 6, 3), width=1, classes=9))
    peer = timm.create_model("resnetv2_50x1_bit", num_classes=9)
    peer.load_pretrained(str(tmp_path / "model.npz"))
    model, _ = model_from_weights(tmp_path / "model.npz", "resnetv2_50x1_bit")
    assert_same_tensors(model, peer)


def assert_same_tensors(model, peer):
    ours, theirs = model.state_dict(), peer.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.array_equal(ours[name], value.numpy()), name


def test_big_visions_table_of_patches_alone_means_no_position_for_the_class_token(tmp_path):
    arrays = google_vit(**TINY_VIT, big_vision=True)
    arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    np.savez(tmp_path / "model.npz", **arrays)
    model = sv.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=9)
    report = sv.load_weights(model, tmp_path / "model.npz")
    assert np.array_equal(model.pos_embed.numpy()[:, 1:], arrays["pos_embedding"])
    assert not model.pos_embed.numpy()[:, 0].any()
    assert "zeros for the class token" in str(report)


def test_the_stand_ins_hold_what_read_weights_reads(tmp_path):
    arrays = google_vit(**TINY_VIT, stages=(1,))
    np.savez(tmp_path / "model.npz", **arrays)
    assert read_weights(tmp_path / "model.npz").keys() == arrays.keys()
