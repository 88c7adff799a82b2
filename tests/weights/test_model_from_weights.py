"""model_from_weights: which model a file is of, by name or by the config.json beside it."""

import contextlib
import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scratchvit as sv
from scratchvit.errors import ScratchvitError
from scratchvit.nn import init
from scratchvit.weights import load, model_from_weights
from scratchvit.weights.load import open_model

NAME = "vit_tiny_patch16_224"
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def tiny(seed=0, **options):
    return sv.create_model(NAME, seed=seed, **{**TINY, **options})


@pytest.fixture
def saved(tmp_path):
    """Write the tensors of a model into a file and return its path."""

    def save(model):
        safetensors.numpy.save_file(model.state_dict(), tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return save


def test_without_a_configuration_the_model_must_be_named(saved):
    path = saved(sv.create_model("vit_tiny_patch16_224", num_classes=3))
    with pytest.raises(ScratchvitError, match="name the model: --model vit_tiny_patch16_224"):
        model_from_weights(path)
    with pytest.raises(ScratchvitError, match="name the model: --model NAME"):
        model_from_weights(saved(tiny(seed=1)))
    model, name = model_from_weights(saved(tiny(seed=1, in_chans=1)), NAME, **{**TINY, "num_classes": 5})
    assert name == NAME and model.config.in_chans == 1 and not model.training


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"architecture": NAME, "num_classes": 5, "model_args": {"patch_size": 4, "embed_dim": 24, "depth": 2,
          "num_heads": 2}, "pretrained_cfg": {"input_size": [3, 16, 16]}}, {}),
        ({"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 96, "image_size": 16, "patch_size": 4}, {}),
        ({"architecture": "vit_tiny_patch16_384.some_tag", "model_args": {"patch_size": 4, "embed_dim": 24, "depth": 2,
          "num_heads": 2, "img_size": 16}}, {}),
    ],
    ids=["timm", "Hugging Face", "another size's name"],
)
def test_the_configuration_beside_the_file_says_it(saved, tmp_path, config, options):
    donor = tiny(seed=1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, _ = model_from_weights(saved(donor))
    assert all(np.array_equal(value, donor.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.config.num_heads == 2 and model.config.img_size == 16


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"architecture": "swin_huge"}, "there is no model 'swin_huge' here"),
        ({"model_type": "llama"}, "'llama' is not supported"),
        ({"model_type": "vit", "hidden_act": "quick_gelu"}, "its hidden_act is quick_gelu; .* only support gelu"),
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, "downsample_in_bottleneck is True"),
        ({"model_type": "vit", "hidden_size": "wide"}, "cannot be used"),
        ({"model_type": "vit", "hidden_size": 0}, "cannot be used"),
        ({"architecture": NAME, "model_args": {"depth": "twelve"}}, "its depth is .twelve., expected one like the 12"),
        ({"architecture": NAME, "pretrained_cfg": {"input_size": [3]}}, "cannot be used"),
        ({"architecture": NAME, "model_args": {"init_values": 1e-5}}, "its init_values is 1e-05; .* only support None"),
    ],
    ids=str,
)
def test_a_configuration_of_another_model_is_refused(saved, tmp_path, config, text):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScratchvitError, match=text):
        model_from_weights(saved(tiny(seed=1)))


def test_a_name_wins_over_the_configuration(saved, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swin_huge"}))
    _, name = model_from_weights(saved(tiny(seed=1)), NAME, **TINY)
    assert name == NAME


def test_timm_writes_down_what_a_resnet_always_does(saved, tmp_path):
    donor = sv.create_model("resnet18", layers=(1, 1, 1, 1), num_classes=3, seed=1)
    args = {"layers": [1, 1, 1, 1], "global_pool": "avg", "num_classes": 3, "in_chans": 3}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "model_args": args}))
    model, _ = model_from_weights(saved(donor))
    assert np.array_equal(model.fc.weight.numpy(), donor.fc.weight.numpy())
    text = json.dumps({"architecture": "resnet18", "model_args": {"global_pool": "max"}})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ScratchvitError, match=r"its global_pool is max; .* only support avg"):
        model_from_weights(tmp_path)


# --- the file's own sizes ---


@pytest.mark.parametrize("config", [None, {"architecture": NAME, "model_args": TINY}], ids=["bare", "configured"])
def test_the_model_takes_the_files_sizes_and_says_so(saved, tmp_path, config):
    """Under a name, or a configuration, of another image and patch size nothing is resized in silence."""
    options = {**TINY, "img_size": 48, "patch_size": 8}
    donor = tiny(seed=1, **options)
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    more = {key: TINY[key] for key in ("embed_dim", "depth", "num_heads")}
    model, _, report = open_model(saved(donor), NAME, **more)
    assert (model.config.img_size, model.config.patch_size) == (48, 8)
    assert all(np.array_equal(value, donor.state_dict()[key]) for key, value in model.state_dict().items())
    assert f"the file's patch_size 8 ({NAME} has {4 if config else 16})" in str(report)
    assert f"the file's img_size 48 ({NAME} has {16 if config else 224})" in str(report)


def test_a_size_that_is_asked_for_wins(saved):
    more = {key: TINY[key] for key in ("embed_dim", "depth", "num_heads")}
    model, _, report = open_model(saved(tiny(seed=1)), NAME, img_size=32, **more)
    assert model.config.img_size == 32 and "a grid of 4×4 → 8×8" in str(report)


def test_a_hybrid_takes_the_files_image_size(saved):
    options = {"depth": 1, "num_heads": 2, "embed_dim": 24}
    donor = sv.create_model("vit_tiny_r_s16_p8_224", img_size=96, **options)
    model, _, _ = open_model(saved(donor), "vit_tiny_r_s16_p8_224", **options)
    assert model.config.img_size == 96
    assert np.array_equal(model.pos_embed.numpy(), donor.pos_embed.numpy())


def test_nothing_is_drawn_and_the_weights_are_the_models_own(saved, monkeypatch):
    path = saved(tiny(seed=1))
    before, drawing = path.read_bytes(), []

    def create(name, **options):
        drawing.append(init.is_drawing())
        return sv.create_model(name, **options)

    monkeypatch.setattr(load, "create_model", create)
    model, *_ = open_model(path, NAME, **TINY)
    model.head.weight.assign(7)
    assert drawing and not any(drawing)
    assert (model.head.weight.numpy() == 7).all() and path.read_bytes() == before


# --- configurations that lie ---

JUNK = st.sampled_from([
    -1, 0, 10**8, 10**400, 1e-320, 1e308, float("nan"), float("inf"), None, True, "x", "", [], [1], [0, 0],
    [1, 10**400], [16, 16, 16], [None, None], ["a"] * 3, {}, {"a": 1},
])
TIMM_KEYS = ["architecture", "model_args", "pretrained_cfg", "num_classes", "input_size"]
VIT_KEYS = ["image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "qkv_bias", "hidden_act"]
HUGGING_FACE = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 96, "image_size": 16, "patch_size": 4}


@st.composite
def configurations(draw):
    kind = draw(st.sampled_from(["timm", "model_args", "vit", "resnet", "bit"]))
    if kind == "timm":
        return {"architecture": NAME, "model_args": TINY} | draw(st.dictionaries(st.sampled_from(TIMM_KEYS), JUNK))
    if kind == "model_args":
        return {"architecture": NAME, "model_args": TINY | draw(st.dictionaries(st.sampled_from([*TINY]), JUNK))}
    if kind == "vit":
        return HUGGING_FACE | draw(st.dictionaries(st.sampled_from(VIT_KEYS), JUNK))
    keys = st.sampled_from(["depths", "hidden_sizes", "layer_type", "width_factor", "global_padding"])
    return {"model_type": kind} | draw(st.dictionaries(keys, JUNK | st.just([10**5] * 4)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configurations(), st.booleans())
def test_any_configuration_gives_a_model_or_a_sentence(saved, tmp_path, config, named):
    path = saved(tiny(seed=1))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(ScratchvitError):
        model, *_ = open_model(path, NAME if named else None)
        assert model(np.zeros((1, 3, *model.patch_embed.img_size), np.float32)).shape == (1, 5)


@pytest.mark.parametrize("weights", [(), (1,)], ids=str)
def test_a_head_without_axes_is_refused(saved, tmp_path, weights):
    donor = tiny(seed=1)
    state = donor.state_dict() | {"head.weight": np.zeros(weights, np.float32)}
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ScratchvitError, match=r"model\.safetensors: the weights"):
        open_model(tmp_path / "model.safetensors", NAME, **TINY)
