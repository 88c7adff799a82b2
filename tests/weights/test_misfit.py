"""What an error says of names that somebody chose to do harm, and of a model of another family."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scratchvit as sv
from scratchvit.errors import ScratchvitError
from scratchvit.weights.fit import LoadReport, fit
from scratchvit.weights.misfit import MOST_NAMED, grouped
from scratchvit.weights.names import TIMM, recognise
from tests.support.peers import import_timm
from tests.support.processes import alone, peak_bytes

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 4}
MODEL = sv.create_model("vit_tiny_patch16_224", **TINY)


def complaint(*names):
    """What is said of a file with these names beside those of a model."""
    weights = MODEL.state_dict() | {name: np.zeros(1, np.float32) for name in names}
    with pytest.raises(ScratchvitError) as caught:
        fit(MODEL, recognise(weights).rename(weights))
    return str(caught.value)


def test_names_are_grouped_by_their_first_number():
    names = [f"blocks.{i}.norm1.bias" for i in (3, 1, 2)] + ["a.7.b", "a.5.b", "c"]
    assert grouped(names) == ["blocks.1…3.norm1.bias", "a.5,7.b", "c"]


FAR_APART = ["blocks.0.x", "blocks.900000000.x"]


def peak_of_grouping():
    return peak_bytes(lambda: grouped(FAR_APART))


def test_numbers_far_apart_cost_no_memory():
    assert grouped(FAR_APART) == ["blocks.0,900000000.x"]
    assert alone(peak_of_grouping) < 1 << 20


@pytest.mark.parametrize("name", [f"blocks.{'9' * 5000}.x", "two\nlines", "\x1b[2J", "x" * 99_999], ids=lambda n: n[:8])
def test_names_that_would_harm_are_told_escaped_and_short(name):
    text = complaint(name)
    assert "unexpected: " in text and len(text) < 500
    assert text.replace("\n  ", "").isprintable()


@pytest.mark.parametrize("names", [
    ["embedding/kernel", f"block{'9' * 5000}/unit1/conv1/kernel"],
    ["embedder.embedder.convolution.weight", f"encoder.stages.{'9' * 5000}.x"],
])
def test_a_number_beyond_all_measure_is_part_of_the_name(names):
    weights = {name: np.zeros((1, 1, 1, 1)) for name in names}
    assert any("9" * 5000 in name for name in recognise(weights).rename(weights).weights)


def test_a_list_of_names_ends():
    texts = grouped(f"n{i}" for i in range(MOST_NAMED + 2))
    assert len(texts) == MOST_NAMED + 1 and texts[-1] == "and 2 more"


def test_a_file_of_another_family_is_told_as_one():
    """The counters of batch norm, which are added to what the file has, are no common names."""
    file, model = sv.create_model("resnet18").state_dict(), sv.create_model("resnet18", num_classes=3)
    with pytest.raises(ScratchvitError, match="this file looks like resnet18\n"):
        fit(MODEL, TIMM.rename(file))
    vit = MODEL.state_dict()
    with pytest.raises(ScratchvitError, match="no name matches the model's; the file has cls_token, pos_embed"):
        fit(model, TIMM.rename(vit))
    with pytest.raises(ScratchvitError, match="only the names of norm and head match the model's"):
        fit(sv.create_model("resnetv2_50x1_bit", layers=(1, 1, 1, 1)), TIMM.rename(vit))


def test_a_report_groups_what_was_not_used():
    report = LoadReport("timm", left_out=[f"blocks.{i}.attn_mask" for i in range(12)])
    assert str(report) == "names: timm\nnot used: blocks.0…11.attn_mask"


HINTS = ("create the model with", "create this model", "create it with", "new_head", "of another size")

#  what is changed in the names of a ViT; what is said
STRANGERS = {
    "q, k and v apart, as in EVA": (
        lambda name: name.replace("qkv.weight", "q_proj.weight"), {"blocks.0.attn.qkv.bias"},
        "it has blocks.N.attn.q_proj.weight, which the model lacks, and lacks blocks.N.attn.qkv.weight",
    ),
    "other norms": (lambda name: name.replace("norm1", "ln_pre"), {"cls_token"}, "it has blocks.N.ln_pre.weight"),
    "other MLPs": (lambda name: name.replace("mlp.fc1", "mlp.w12"), {"pos_embed"}, "it has blocks.N.mlp.w12"),
    "other projections": (lambda name: name.replace("attn.proj", "attn.out"), {"head.weight"}, "blocks.N.attn.out"),
    "without attention": (lambda name: name, {name for name in MODEL.state_dict() if ".attn." in name},
                          "it lacks blocks.N.attn.qkv.weight, blocks.N.attn.proj.weight"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_no_advice_is_given_where_the_blocks_are_of_another_kind(kind):
    """It would be wrong, however well it fits one of the differences."""
    rename, without, said = STRANGERS[kind]
    weights = {rename(name): value for name, value in MODEL.state_dict().items() if name not in without}
    with pytest.raises(ScratchvitError) as caught:
        fit(MODEL, TIMM.rename(weights))
    cause = str(caught.value).splitlines()[0]
    assert said in cause and "this file is from another kind of model: " in cause
    assert not any(hint in cause for hint in HINTS), cause


def test_parts_beside_the_blocks_that_only_one_has():
    weights = MODEL.state_dict() | {name: np.zeros(16, np.float32) for name in ("norm_pre.weight", "blocks.0.x.gamma")}
    with pytest.raises(ScratchvitError, match=r"it has norm_pre\.weight, blocks\.N\.x\.gamma, which the model"):
        fit(MODEL, TIMM.rename(weights))


@pytest.mark.parity
@pytest.mark.parametrize(("name", "said"), [
    ("eva02_tiny_patch14_224", "is from another kind"), ("vit_base_patch16_siglip_224", "is from another kind"),
    ("vit_tiny_patch16_224.augreg", "of another size: D = 192"), ("beit_base_patch16_224", "is from another kind"),
    ("vit_small_patch14_dinov2", "is from another kind"), ("vit_base_patch32_clip_224", "is from another kind"),
    ("cait_xxs24_224", "is from another kind"), ("xcit_nano_12_p16_224", "is from another kind"),
])
def test_what_is_said_of_timms_other_vits(name, said):
    peer = import_timm().create_model(name.partition(".")[0], pretrained=False, depth=2)
    weights = {key: value.numpy() for key, value in peer.state_dict().items()}
    with pytest.raises(ScratchvitError) as caught:
        fit(MODEL, recognise(weights).rename(weights))
    cause = str(caught.value).splitlines()[0]
    assert said in cause
    assert said == "of another size: D = 192" or not any(hint in cause for hint in HINTS), cause


PIECES = st.sampled_from([
    "blocks", "0", "9" * 11, "embedding", "kernel", "encoderblock", "Transformer", "MultiHeadDotProductAttention_1",
    "query", "block1", "unit01", "embedder", "convolution", "weight", "bias", "embeddings", "cls_token", "head",
    "pos_embed", "patch_embed", "proj", "\n", "\x00", "é", "", "ema", "model", "layers", "num_batches_tracked",
])
NAMES = st.builds(lambda pieces, by: by.join(pieces), st.lists(PIECES, min_size=1, max_size=4), st.sampled_from("./:_"))
MARKS = st.sampled_from([
    "embedding/kernel", "embeddings.cls_token", "encoder.pos_embedding", "embedder.convolution.weight",
    "embedder.embedder.convolution.weight", "resnet/root_block/standardized_conv2d/kernel", "ema.a", "cls_token",
])
SHAPES = st.lists(st.integers(0, 3), max_size=5).map(tuple)


@settings(max_examples=200, deadline=None)
@given(MARKS, st.dictionaries(NAMES | MARKS, SHAPES, max_size=8), st.booleans())
def test_any_names_and_shapes_are_refused_with_a_sentence(mark, shapes, new_head):
    weights = {name: np.zeros(shape, np.float32) for name, shape in ({mark: (1, 1, 16)} | shapes).items()}
    with pytest.raises(ScratchvitError):
        fit(MODEL, recognise(weights).rename(weights), new_head)


DETR = {
    "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "hidden_dim": 16, "nheads": 2, "enc_layers": 1, "dec_layers": 1,
    "dim_feedforward": 16, "num_queries": 3, "num_classes": 2,
}


@pytest.mark.parametrize(("theirs", "change", "ours", "other", "said"), [
    ("dab_detr_tiny", {}, "dab_detr_tiny", {"hidden_dim": 32, "dec_layers": 2},
     "of another size: it has hidden_dim 16, dec_layers 1, the model has hidden_dim 32, dec_layers 2"),
    ("detr_tiny", {"channels": (8, 4, 8, 8)}, "detr_tiny", {"stages": 4},
     "it has channels (8, 4, 8), the model has channels (8, 8, 8, 8)"),
    ("detr_tiny", {}, "detr_tiny", {"num_queries": 9, "num_classes": 4}, "it has queries 3, the model has queries 9"),
    ("dab_detr_tiny", {}, "detr_tiny", {}, "the file has anchors as queries, the model has none: dab_detr_"),
    ("dab_detr_tiny", {}, "dab_detr_tiny", {"two_stage": True}, "encoder proposals, .* with two_stage=False"),
    ("dab_detr_tiny", {"two_stage": True}, "dab_detr_tiny", {"two_stage": True, "num_classes": 5},
     "its head has 2 classes, the model's 5"),
])
def test_how_two_detectors_differ(tmp_path, theirs, change, ours, other, said):
    np.savez(tmp_path / "weights.npz", **sv.create_model(theirs, **DETR | change).state_dict())
    with pytest.raises(ScratchvitError) as caught:
        sv.load_weights(sv.create_model(ours, **DETR | other), tmp_path / "weights.npz")
    assert re.search(said if ".*" in said else re.escape(said), str(caught.value).splitlines()[0])
