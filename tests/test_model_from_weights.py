"""model_from_weights: which model a file is of, by name or by the config.json beside it."""

import json

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.errors import ScratchvitError
from scratchvit.weights import model_from_weights

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
)  # fmt: skip
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
        ({"model_type": "llama"}, "'llama' is no model here"),
        ({"model_type": "vit", "hidden_act": "quick_gelu"}, "its hidden_act is quick_gelu, the models here have gelu"),
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, "downsample_in_bottleneck is True"),
        ({"model_type": "vit", "hidden_size": "wide"}, "cannot be followed"),
        ({"model_type": "vit", "hidden_size": 0}, "cannot be followed"),
        ({"architecture": NAME, "model_args": {"depth": "twelve"}}, "no vit_tiny_patch16_224 can be made with"),
        ({"architecture": NAME, "pretrained_cfg": {"input_size": [3]}}, "cannot be followed"),
        ({"architecture": NAME, "model_args": {"init_values": 1e-5}}, "has no option 'init_values'"),
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
