"""Layer-wise learning rates: the layers and scales of timm, and steps with them (as timm's: test_hundred_steps)."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, optim
from scratchvit.errors import ScratchvitError
from scratchvit.optim.groups import layers_by_name
from scratchvit.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.support.optimizer_settings import settings_by_name
from tests.support.peers import import_timm
from tests.support.seeds import seeded

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
DECAY, WEIGHT_DECAY = 0.75, 0.05


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224",
     "resnet18", "resnet50", "resnetv2_50x1_bit"],
)
def test_scales_by_name_as_in_timm(name):
    timm = import_timm()
    torch, groups = pytest.importorskip("torch"), pytest.importorskip("timm.optim")
    with torch.device("meta"):
        theirs = timm.create_model(name)
    exempt = theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()
    reference = groups.param_groups_layer_decay(theirs, WEIGHT_DECAY, exempt, layer_decay=DECAY)
    with nn.init.without_weights():
        ours = sv.create_model(name)
    found = settings_by_name(ours, optim.param_groups(ours, WEIGHT_DECAY, DECAY))
    assert found == settings_by_name(theirs, reference)


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("vit_tiny_patch16_224", TINY, {
            0: {"cls_token", "pos_embed", "patch_embed.proj.weight"}, 1: {"blocks.0.attn.qkv.weight"},
            3: {"blocks.2.mlp.fc2.bias", "norm.weight"}, 4: {"head.weight"},
        }),
        ("vit_tiny_patch16_224", {**TINY, "global_pool": "avg"}, {4: {"fc_norm.weight", "head.bias"}}),
        ("vit_tiny_patch16_224", {**TINY, "num_classes": 0}, {0: {"pos_embed"}, 3: {"norm.weight"}}),
        ("deit_tiny_distilled_patch16_224", TINY, {0: {"dist_token"}, 4: {"head.weight", "head_dist.weight"}}),
        ("vit_tiny_r_s16_p8_224", {"depth": 2, "img_size": 64}, {
            0: {"patch_embed.backbone.conv.weight", "patch_embed.proj.bias"}, 3: {"head.bias"},
        }),
        ("resnet18", {}, {0: {"conv1.weight", "bn1.bias"}, 3: {"layer2.0.downsample.0.weight"}, 9: {"fc.weight"}}),
        ("resnet18", {"features_only": True, "out_indices": (1,)}, {2: {"layer1.1.conv2.weight"}}),
        ("resnetv2_50x1_bit", {"layers": (1, 2)}, {
            0: {"stem.conv.weight"}, 2: {"stages.1.blocks.0.downsample.conv.weight"},
            3: {"stages.1.blocks.1.conv3.weight", "norm.weight"}, 4: {"head.fc.weight"},
        }),
        ("resnetv2_50x1_bit", {"features_only": True, "out_indices": (0,)}, {0: {"stem.conv.weight"}}),
    ],
)
def test_layers_of_a_model(name, options, layers):
    with nn.init.without_weights():
        model = sv.create_model(name, **options)
    found = layers_by_name(model)
    assert list(found) != [] and max(found.values()) == max(layers)
    for number, names in layers.items():
        assert {found[name] for name in names} == {number}
    scales = settings_by_name(model, optim.param_groups(model, WEIGHT_DECAY, 0.5))
    assert {name: scale for name, (scale, _) in scales.items()} == {
        name: 0.5 ** (max(layers) - number) for name, number in found.items()
    }


LAST = ("head", "fc.", "lm_head", "class_embed.", "bbox_embed.")


def test_every_model_tells_its_layers():
    with nn.init.without_weights():
        for name in sv.list_models():
            layers = layers_by_name(sv.create_model(name))
            last = {parameter for parameter, layer in layers.items() if layer == max(layers.values())}
            assert max(layers.values()) > 4 and all(p.startswith(LAST) for p in last), name


def test_what_decays_is_the_same_with_and_without_layers():
    model = sv.create_model("deit_tiny_distilled_patch16_224", **TINY)
    alike = settings_by_name(model, optim.param_groups(model, WEIGHT_DECAY))
    layered = settings_by_name(model, optim.param_groups(model, WEIGHT_DECAY, DECAY))
    assert {name: decay for name, (_, decay) in alike.items()} == {name: decay for name, (_, decay) in layered.items()}
    assert {scale for scale, _ in alike.values()} == {1.0}
    assert {name for name, (_, decay) in alike.items() if decay and model.state_dict()[name].ndim < 2} == set()
    assert all(alike[name] == (1.0, 0.0) for name in ("cls_token", "pos_embed", "dist_token"))


class Layerless(nn.Module):
    def __init__(self):
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)


class Forgetful(Layerless):
    def layer_names(self):
        return [("fir",), ("second",)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: optim.param_groups(Layerless(), 0.1, 0.0), r"\(0, 1\].*not 0.0"),
        (lambda: optim.param_groups(Layerless(), 0.1, 1.1), r"\(0, 1\].*not 1.1"),
        (lambda: optim.param_groups(Layerless(), 0.1, 0.5), "Layerless has no layer_names()"),
        (lambda: optim.param_groups(Forgetful(), 0.1, 0.5), "has no layer for first.weight, first.bias"),
        (lambda: optim.SGD([{"params": Layerless().parameters(), "lr_scale": -1}], 0.1), "lr_scale -1 must not"),
        (lambda: optim.SGD([{"params": Layerless().parameters(), "lr": 1}], 0.1), '"lr_scale", not lr'),
    ],
)
def test_what_cannot_be_grouped_is_refused(make, says):
    with pytest.raises(ScratchvitError, match=says):
        make()


# --- steps ---


def give_gradients(model, step):
    rng = seeded((1, step))
    for parameter in model.parameters():
        parameter.grad = sv.backend.asarray(rng.standard_normal(parameter.shape, dtype=np.float32))


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam, optim.AdamW])
def test_a_scale_is_a_learning_rate_of_its_own(device, optimizer):
    """One optimiser with scales does what an optimiser for each layer does at its own rate."""
    together, apart = (sv.create_model("vit_tiny_patch16_224", **TINY) for _ in range(2))
    one = optimizer(optim.param_groups(together, WEIGHT_DECAY, 0.5), lr=0.1)
    groups = optim.param_groups(apart, WEIGHT_DECAY, 0.5)
    many = [(optimizer([{**group, "lr_scale": 1.0}], lr=0.1), group["lr_scale"]) for group in groups]
    assert len({scale for _, scale in many}) == TINY["depth"] + 2
    for step, lr in enumerate((0.1, 0.05, 0.02)):
        give_gradients(together, step)
        give_gradients(apart, step)
        one.lr = lr
        one.step()
        for each, scale in many:
            each.lr = lr * scale
            each.step()
    expected = apart.state_dict()
    for name, value in together.state_dict().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_run_with_layers_goes_on_from_its_checkpoint(device, tmp_path):
    def begin():
        model = sv.create_model("vit_tiny_patch16_224", **TINY)
        return model, optim.AdamW(optim.param_groups(model, WEIGHT_DECAY, DECAY), lr=0.01)

    straight, first = begin()
    broken, second = begin()
    for step in range(6):
        if step == 3:
            path = tmp_path / "last.safetensors"
            state = {"model": broken.state_dict(), "optimizer": second.state_dict()}
            save_checkpoint(path, Checkpoint(config={}, model_name="", model_args={}, data={}, progress={}, **state))
            saved = load_checkpoint(path)
            broken, second = begin()
            broken.load_state_dict(saved.model)
            second.load_state_dict(saved.optimizer)
        for model, optimizer in ((straight, first), (broken, second)):
            give_gradients(model, step)
            optimizer.step()
    expected = straight.state_dict()
    for name, value in broken.state_dict().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
