"""What a configuration says beside the shapes of the weights: followed, refused by name, or told."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.errors import ScratchvitError
from scratchvit.weights.configs import huggingface, timm
from scratchvit.weights.configs.fields import Fields
from scratchvit.weights.describe import describe
from scratchvit.weights.export import export
from scratchvit.weights.load import open_model, unseen_options
from scratchvit.weights.preprocess import preprocessing_for
from tests.support import peers
from tests.support.formula_weights import as_theirs, formula
from tests.support.model_parity import in_float64
from tests.support.scripts import import_script

ROOT = Path(__file__).resolve().parents[2]
VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
CONFIGS = {
    "vit": {
        "model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 2,
    },
    "swin": {
        "model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2],
        "window_size": 4, "num_labels": 2,
    },
    "imagegpt": {
        "model_type": "imagegpt", "vocab_size": 5, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2,
        "num_labels": 2,
    },
}
KINDS = {"vit": ("ViT", VIT), "swin": ("Swin", SWIN), "swinv2": ("Swinv2", "swinv2_tiny_window8_256")}

# The logits of transformers, with the weights of `small`, whose activations are small where ε is; computed again by
# `test_the_numbers_are_transformers`.
LOGITS = {
    ("vit", 1e-12, 0.001): [-0.161927582, -0.172591684],
    ("vit", 1e-06, 0.001): [0.0636300962, -0.544907242],
    ("vit", 0.001, 0.1): [-0.142858447, -0.238801334],
    ("vit", 0.1, 1.0): [0.321766533, 0.249628781],
    ("swin", 1e-05, 0.1): [0.464367741, -0.979181267],
    ("swin", 0.01, 0.1): [0.23603633, -0.908011026],
    ("swinv2", 1e-05, 1.0): [-0.153947204, -2.49019393],
    ("swinv2", 0.01, 1.0): [-0.114248102, -2.48909537],
}
CASES = [
    ("vit", 1e-12, 1e-3), ("vit", 1e-6, 1e-3), ("vit", 1e-3, 0.1), ("vit", 0.1, 1.0),
    ("swin", 1e-5, 0.1), ("swin", 1e-2, 0.1), ("swinv2", 1e-5, 1.0), ("swinv2", 1e-2, 1.0),
]


def config_of(kind, eps):
    return {**CONFIGS["swin" if kind == "swinv2" else kind], "model_type": kind, "layer_norm_eps": eps}


def small(state, scale):
    """The weights of `formula`, all but those of norms and the head times a number."""
    kept = ("norm", "head")
    return {
        name: value if any(part in name for part in kept) else value * np.float32(scale)
        for name, value in formula(state).items()
    }


def picture(side):
    return np.cos(np.arange(3 * side * side) * 0.7).reshape(1, 3, side, side)


def written(folder, kind, eps, scale):
    """A folder with such weights under our names, which say nothing, and the configuration of Hugging Face."""
    config = config_of(kind, eps)
    (folder / "config.json").write_text(json.dumps(config))
    found = describe(folder / "model.safetensors")
    options = found.options | {"num_classes": 2, "window_rule": "huggingface"}
    if kind == "vit":
        del options["window_rule"]
    model = sv.create_model(found.name, **options)
    safetensors.numpy.save_file(small(model.state_dict(), scale), folder / "model.safetensors")
    return model


@pytest.mark.parametrize(("kind", "eps", "scale"), CASES)
def test_layer_norm_eps_is_followed(kind, eps, scale, tmp_path):
    written(tmp_path, kind, eps, scale)
    model, _, _ = open_model(tmp_path)
    assert model.config.norm_eps == eps
    found, expected = in_float64(model)(picture(model.config.img_size)).numpy()[0], np.array(LOGITS[kind, eps, scale])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "eps", "scale"), CASES)
def test_the_numbers_are_transformers(kind, eps, scale, tmp_path):
    transformers = peers.import_transformers()
    import torch

    model, config = written(tmp_path, kind, eps, scale), config_of(kind, eps)
    name, _ = KINDS[kind]
    del config["model_type"]
    peer = getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")(**config))
    made = as_theirs({key: value.numpy() for key, value in peer.state_dict().items()}, small(model.state_dict(), scale))
    peer.load_state_dict({key: torch.from_numpy(value) for key, value in made.items()})
    with torch.no_grad():
        found = peer.double().eval()(torch.from_numpy(picture(config["image_size"]))).logits.numpy()[0]
    expected = np.array(LOGITS[kind, eps, scale])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_image_gpts_epsilon_is_followed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["imagegpt"] | {"layer_norm_epsilon": 0.1}))
    found = describe(tmp_path / "model.safetensors")
    assert found.options["norm_eps"] == 0.1
    model = sv.create_model(found.name, **found.options)
    assert {module.eps for name, module in model.named_modules() if "ln_" in name} == {0.1}


def test_names_alone_say_hugging_faces_epsilon(tmp_path):
    """Without a configuration it is the library's default."""
    donor = sv.create_model(VIT, img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=2)
    state = donor.state_dict()
    q, k, v = np.split(state.pop("blocks.0.attn.qkv.weight"), 3)
    b_q, b_k, b_v = np.split(state.pop("blocks.0.attn.qkv.bias"), 3)
    old = "vit.encoder.layer.0."
    names = {
        "cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.": "vit.embeddings.patch_embeddings.projection.",
        "blocks.0.norm1.": f"{old}layernorm_before.",
        "blocks.0.norm2.": f"{old}layernorm_after.", "blocks.0.attn.proj.": f"{old}attention.output.dense.",
        "blocks.0.mlp.fc1.": f"{old}intermediate.dense.", "blocks.0.mlp.fc2.": f"{old}output.dense.",
        "norm.": "vit.layernorm.", "head.": "classifier.",
    }
    theirs = {}
    for name, value in state.items():
        before = next(part for part in names if name.startswith(part))
        theirs[name.replace(before, names[before], 1)] = value
    for part, weight, bias in (("query", q, b_q), ("key", k, b_k), ("value", v, b_v)):
        theirs |= {f"{old}attention.attention.{part}.weight": weight, f"{old}attention.attention.{part}.bias": bias}
    path = tmp_path / "pytorch.safetensors"
    safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in theirs.items()}, path)
    model, _, report = open_model(path, VIT, embed_dim=16, depth=1, num_heads=2, img_size=16)
    assert model.config.norm_eps == 1e-12 and f"the file's norm_eps 1e-12 ({VIT} has 1e-06)" in str(report)
    assert unseen_options(path, VIT) == {"norm_eps": 1e-12}
    told = sv.load_weights(donor, path).notes
    assert len(told) == 1 and "norm_eps is 1e-06 in this model and 1e-12 in the file's" in told[0]


# --- refused by name, or told ---


def assert_refused(folder, config, name):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScratchvitError, match=f"its {name} is .*; the models here only support"):
        describe(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (_, fields, _) in huggingface.KINDS.items() for name in fields.required]
)
def test_what_no_model_here_computes_is_refused(kind, name, tmp_path):
    for value in ("something else", 77, None if None not in huggingface.KINDS[kind].fields.required[name] else True):
        assert_refused(tmp_path, {"model_type": kind, name: value}, name)


@pytest.mark.parametrize(
    ("config", "name"),
    [({"model_type": "vit", "head_dim": 32}, "head_dim"),
     ({"model_type": "vit", "pruned_heads": {"0": [1]}}, "pruned_heads"),
     ({"model_type": "swin", "quantization_config": {"bits": 4}}, "quantization_config"),
     ({"model_type": "resnet", "layer_type": "wide"}, "layer_type"),
     ({"model_type": "bit", "global_padding": "VALID"}, "global_padding"),
     ({"model_type": "imagegpt", "n_positions": 1000}, "n_positions"),
     ({"model_type": "detr", "decoder_ffn_dim": 1024}, "decoder_ffn_dim"),
     ({"model_type": "detr", "backbone_kwargs": {"output_stride": 8}}, "output_stride"),
     ({"model_type": "detr", "backbone_config": {"out_indices": [1, 2, 3]}}, "out_indices"),
     ({"model_type": "detr", "backbone_config": {"model_type": "resnet", "out_features": ["stage3"]}}, "out_features"),
     ({"model_type": "detr", "backbone_config": {"model_type": "resnet", "hidden_act": "gelu"}}, "hidden_act")],
    ids=str,
)
def test_so_are_fields_that_depend_on_others(config, name, tmp_path):
    assert_refused(tmp_path, config, name)


@pytest.mark.parametrize("kind", timm.FIELDS, ids=lambda kind: kind.__name__)
def test_timms_arguments_that_no_model_here_has_are_refused(kind, tmp_path):
    name = next(name for name in sv.list_models() if type(sv.models.model_config(name)) is kind)
    for argument in timm.FIELDS[kind].required:
        assert_refused(tmp_path, {"architecture": name, "model_args": {argument: "something else"}}, argument)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": {"rope": True}}))
    with pytest.raises(ScratchvitError, match="its model_args have 'rope', which the models here do not know"):
        describe(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["conditional_detr", "deformable_detr", "vit_mae", "dinov2", ["vit"]], ids=str)
def test_other_models_are_refused(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ScratchvitError, match="is not supported; ViT, DeiT"):
        describe(tmp_path / "model.safetensors")


def test_fields_that_nobody_knows_are_named(tmp_path, capsys):
    written(tmp_path, "vit", 1e-12, 1.0)
    config = json.loads((tmp_path / "config.json").read_text()) | {"rotary": True, "scale": 3, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = "unknown fields of config.json, which are ignored: rotary, scale"
    assert open_model(tmp_path)[2].notes == [line]
    assert main(["export", "--weights", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert line in capsys.readouterr().out
    config = {"architecture": VIT, "rotary": 1, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert describe(tmp_path).notes == ("unknown fields of config.json, which are ignored: rotary",)
    found = Fields({}, {}, ()).unknown({f"field {i}": i for i in range(1000)})
    assert len(found) == 1000


def test_classes_that_do_not_exclude_each_other_are_told(tmp_path):
    config = CONFIGS["vit"] | {"problem_type": "multi_label_classification"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "its problem_type is 'multi_label_classification'" in describe(tmp_path).notes[0]


def test_a_configuration_of_something_else_is_told_where_the_model_is_named(tmp_path):
    model = written(tmp_path, "vit", 1e-12, 1.0)
    (tmp_path / "config.json").write_text(json.dumps(config_of("vit", 1e-12) | {"hidden_act": "relu"}))
    with pytest.raises(ScratchvitError, match="its hidden_act is relu"):
        open_model(tmp_path)
    report = sv.load_weights(model, tmp_path)
    assert len(report.notes) == 1 and report.notes[0].startswith("config.json is ignored, because the model was ")
    assert "its hidden_act is relu" in str(report)


def test_options_that_shapes_do_not_show_are_compared(tmp_path):
    model = written(tmp_path, "vit", 1e-12, 1.0)
    config = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
    for name in (VIT, "deit_tiny_patch16_224"):
        other = sv.create_model(name, **config, num_classes=2, norm_eps=1e-12)
        assert sv.load_weights(other, tmp_path).notes == [
            "num_heads is 4 in this model and 2 in the file's, so their outputs differ: for the file's, create the "
            "model with num_heads=2"
        ]
    assert not sv.load_weights(model, tmp_path).notes


def test_options_that_the_named_model_does_not_have_are_no_trap(tmp_path):
    """A configuration by hand, and names of one library beside the configuration of another."""
    small = {"img_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_colors": 4}
    model = sv.create_model("igpt_tiny", **small)
    safetensors.numpy.save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "igpt_tiny", "model_args": small, "scratchvit": {"window_rule": "huggingface"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_model(tmp_path, "igpt_tiny", **small)[0].config == open_model(tmp_path)[0].config == model.config
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": small | {"rope": 1}}))
    assert not sv.load_weights(model, tmp_path).notes
    with pytest.raises(ScratchvitError, match="igpt_tiny has no option 'rope'"):
        open_model(tmp_path)


JUNK = st.sampled_from([
    -1, 0, 2, 10**8, 10**400, 1e-320, 1e308, float("nan"), float("inf"), None, True, "x", "", [], [1], [0, 0],
    [1, 10**400], [None, None], ["a"] * 3, {}, {"a": 1}, [[1]], {"model_type": "resnet"},
    {"out_indices": 3}, {"backbone": ["x"]},
])
EVERY_FIELD = [
    {"model_type": kind, "field": name}
    for kind, (_, fields, _) in huggingface.KINDS.items() for name in sorted(fields.names | huggingface.COMMON.names)
] + [
    {"architecture": name, "field": key}
    for name in (VIT, SWIN, "resnet50", "mvitv2_tiny", "igpt_tiny", "detr_resnet50")
    for key in ("model_args", "pretrained_cfg", "scratchvit", "global_pool", "input_size", "num_classes")
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(EVERY_FIELD), JUNK, JUNK)
def test_any_value_of_any_field_gives_a_model_or_a_sentence(tmp_path, field, value, other):
    config = {key: name for key, name in field.items() if key != "field"} | {field["field"]: value}
    if field["field"] == "model_args":
        config["model_args"] = {"img_size": value, "window_size": other, "global_pool": value}
    if field["field"] == "scratchvit" and isinstance(value, (int, float, str)):
        config["scratchvit"] = {"norm_eps": value, "window_rule": other}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(ScratchvitError):
        found = describe(tmp_path)
        assert found.name in sv.list_models() and all(isinstance(note, str) for note in found.notes)


# --- numbers ---


def test_the_mlps_width_is_exact():
    """int(dim · (hidden / dim)) rounds down for some."""
    wrong = 0
    for dim in range(1, 130):
        for hidden in range(1, 400, 3):
            assert int(dim * huggingface._ratio(hidden, dim)) == hidden
            wrong += int(dim * (hidden / dim)) != hidden
    assert wrong


def test_timms_pool_is_that_of_its_pretrained_cfg(tmp_path):
    """As in timm: what stands at the root is about the model that was saved, and an older file has nothing else."""
    pooled = {"pretrained_cfg": {"global_pool": "avg"}}
    for config, expected in (
        ({"global_pool": "avg", "num_classes": 3}, "avg"),
        ({"global_pool": "avg", "pretrained_cfg": {"num_classes": 3}}, None),
        (pooled, "avg"),
        (pooled | {"model_args": {"global_pool": "token"}}, "token"),
        (pooled | {"architecture": "resnet18"}, None),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": VIT} | config))
        assert describe(tmp_path).options.get("global_pool") == expected


def test_a_resnet_of_other_widths(tmp_path):
    for layer_type, sizes, channels in (("bottleneck", [64, 128, 256, 512], (16, 32, 64, 128)),
                                        ("basic", [16, 32, 48, 64], (16, 32, 48, 64))):
        config = {"model_type": "resnet", "layer_type": layer_type, "hidden_sizes": sizes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert describe(tmp_path).options["channels"] == channels
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "hidden_sizes": [66, 2, 3, 4]}))
    with pytest.raises(ScratchvitError, match="multiples of 4"):
        describe(tmp_path)


def test_a_detr_is_that_of_the_configuration_whatever_preset_is_near(tmp_path):
    """detr_tiny has three stages; no configuration of Hugging Face has."""
    config = {
        "model_type": "detr", "d_model": 128, "decoder_layers": 3, "encoder_layers": 1, "backbone_config": {
            "model_type": "resnet", "layer_type": "basic", "depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 128, 256],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = describe(tmp_path)
    assert found.options["stages"] == 4 and not found.options["dilation"]


def test_two_box_heads_that_differ_are_refused():
    from scratchvit.weights.names import idea

    same = {"bbox_embed.layers.0.weight": np.ones(2), "transformer.decoder.bbox_embed.layers.0.weight": np.ones(2)}
    assert list(idea.one_box_head(same)) == ["bbox_embed.layers.0.weight"]
    with pytest.raises(ScratchvitError, match="the box head of its decoder"):
        idea.one_box_head(same | {"bbox_embed.layers.0.weight": np.zeros(2)})


# --- what is exported ---


def test_an_epsilon_that_timm_has_not_is_kept_and_told(tmp_path, capsys):
    model = sv.create_model(VIT, img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, norm_eps=1e-12)
    export(model, VIT, tmp_path / "a", preprocessing_for(VIT, None, 16))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["scratchvit"] == {"norm_eps": 1e-12} and "norm_eps" not in config["model_args"]
    assert open_model(tmp_path / "a")[0].config == model.config
    assert main(["export", "--weights", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 0
    assert "timm's model has norm_eps 1e-06, this one 1e-12: their outputs differ" in capsys.readouterr().out


# --- the page ---


def test_the_tables_of_the_page_are_the_codes():
    """`python scripts/weights_table.py --out docs/weights.md` writes them."""
    script = import_script("weights_table.py")
    page = (ROOT / "docs" / "weights.md").read_text("utf-8")
    assert page.split(script.BEGIN)[1].split(script.END)[0] == script.make()
