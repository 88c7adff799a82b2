"""DeiT: two tokens, two heads; against timm: names, logits and every gradient."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.models.deit import DISTILLED_PRESETS, PRESETS
from tests.support.margins import agree
from tests.support.model_parity import assert_same_model, full_size, images, pair, timms

NAME = "deit_tiny_distilled_patch16_224"
NAMES = [*PRESETS, *DISTILLED_PRESETS]
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    ("name", "parameters"),      # Table 1 of the paper: 5 M, 22 M, 86 M; timm's counts
    [("deit_tiny_patch16_224", 5_717_416), ("deit_small_patch16_224", 22_050_664),
     ("deit_base_patch16_224", 86_567_656), ("deit_base_patch16_384", 86_859_496),
     ("deit_tiny_distilled_patch16_224", 5_910_800), ("deit_small_distilled_patch16_224", 22_436_432),
     ("deit_base_distilled_patch16_224", 87_338_192), ("deit_base_distilled_patch16_384", 87_630_032)],
)
def test_parameter_counts(name, parameters):
    with sv.nn.init.without_weights():
        assert sv.create_model(name).num_parameters() == parameters


def test_both_heads_learn_and_inference_is_their_mean(device):
    model = sv.create_model(NAME, **TINY, proj_drop_rate=0.1)
    x = images(2, 3, 16, 16)
    model.distilled_training = True
    to_labels, to_teacher = model.train()(x)
    loss = sv.ops.cross_entropy(to_labels, np.array([0, 4])) + sv.ops.cross_entropy(to_teacher, np.array([1, 2]))
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == np.float32 for p in model.parameters())

    model.eval()
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 2 + 16, 32) and model.num_tokens == 18
    mean = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    agree(lambda: model(x), mean)


def test_trained_without_a_teacher_it_gives_one_answer():
    model = sv.create_model(NAME, **TINY).train()
    assert model(images(2, 3, 16, 16)).shape == (2, 5)


def test_without_heads_the_mean_of_both_tokens_comes_out():
    model = sv.create_model(NAME, **{**TINY, "num_classes": 0})
    assert model(images(2, 3, 16, 16)).shape == (2, 32)


def test_the_distillation_token_is_drawn_and_never_decays():
    model = sv.create_model(NAME, **TINY)
    assert 0.01 < model.dist_token.numpy().std() < 0.03
    assert "dist_token" in model.no_weight_decay()


@pytest.mark.parametrize(
    "options",
    [{"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}, {"class_token": False}],
    ids=str,
)
def test_a_head_without_its_token_is_refused(options):
    with pytest.raises(sv.ScratchvitError, match="needs class_token"):
        sv.create_model(NAME, **TINY, **options)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, options) for name in NAMES if "tiny" in name for options in ({}, {"img_size": (48, 80)})),
        *((full_size if "base" in name else pytest.param)(name, {"img_size": (48, 80), "depth": 3})
          for name in NAMES if "tiny" not in name),             # of all depth and size in test_weight_names.py
        ("deit_tiny_distilled_patch16_224", {"img_size": 48, "in_chans": 1, "num_classes": 7, "depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 48, "num_classes": 0, "depth": 2}),
    ],
    ids=str,
)
def test_logits_and_gradients_equal_timms(name, options):
    model, peer = pair(timms(name, **options), name, **options)
    H, W = model.patch_embed.img_size
    assert_same_model(model, peer, images(2 if H < 224 else 1, model.config.in_chans, H, W))


@pytest.mark.parity
def test_a_pair_of_answers_equals_timms():
    model, peer = pair(timms(NAME, **TINY), NAME, **TINY)
    peer.set_distilled_training(True)
    model.distilled_training = True
    assert len(model.train()(images(3, 3, 16, 16))) == 2
    assert_same_model(model, peer, images(3, 3, 16, 16), train=True)
