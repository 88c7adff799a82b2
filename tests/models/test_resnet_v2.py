"""ResNetV2: padding, standardised kernels, feature maps, bad input; against timm: names, logits and every gradient."""

import functools
import math

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.models.resnet_v2 import PRESETS, StdConv2d
from tests.support.margins import agree
from tests.support.model_parity import (
    assert_learns,
    assert_same_cnn,
    assert_same_model,
    full_size,
    images,
    open_relus,
    pair,
    timms,
)
from tests.support.peers import import_timm
from tests.support.seeds import seeded

NAME = "resnetv2_50x1_bit"
TINY = {"layers": (1, 2), "channels": (128, 256), "num_classes": 5}

PARAMETERS = {
    "resnetv2_50x1_bit": 25_549_352, "resnetv2_50x3_bit": 217_319_080, "resnetv2_101x1_bit": 44_541_480,
    "resnetv2_101x3_bit": 387_934_888, "resnetv2_152x2_bit": 236_335_208, "resnetv2_152x4_bit": 936_533_224,
}


# --- padding="same" -------------------------------------------------------------------------------------------------


def same_by_definition(x, kernel, stride, outside, reduce):
    """⌈n / stride⌉ windows an axis, the middle of all they cover over the middle of x, rather half a place to the left.

    x (H, W) → (H', W') of reduce(window).
    """
    places = [math.ceil(n / stride) for n in x.shape]
    covered = [(m - 1) * stride + k for m, k in zip(places, kernel)]
    start = [-(max(0, c - n) // 2) for c, n in zip(covered, x.shape)]
    y = np.empty(places)
    for i, j in np.ndindex(*places):
        top, left = start[0] + i * stride, start[1] + j * stride
        window = [
            [x[r, c] if 0 <= r < x.shape[0] and 0 <= c < x.shape[1] else outside for c in range(left, left + kernel[1])]
            for r in range(top, top + kernel[0])
        ]
        y[i, j] = reduce(np.array(window))
    return y


SAME = [
    (size, kernel, stride)
    for size in [(1, 2), (5, 6), (7, 7), (8, 11)]
    for kernel in [(1, 1), (2, 3), (3, 3), (7, 4)]
    for stride in (1, 2, 3)
]


@pytest.mark.parametrize(("size", "kernel", "stride"), SAME, ids=str)
def test_same_padding_is_what_it_is_defined_as(device, size, kernel, stride):
    x, weight = images(*size) - 3, images(*kernel, seed=1)          # mostly below 0: padding must not win the maximum
    agree(
        lambda: sv.ops.conv2d(sv.Tensor(x[None, None]), sv.Tensor(weight[None, None]), stride=stride, padding="same"),
        same_by_definition(x, kernel, stride, 0, lambda window: (window * weight).sum(dtype=np.float64))[None, None],
    )
    largest = sv.ops.max_pool2d(sv.Tensor(x[None, None]), kernel, stride=stride, padding="same")
    np.testing.assert_array_equal(largest.numpy()[0, 0], same_by_definition(x, kernel, stride, -np.inf, np.max))


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), 2), ((7, 2), 3), ((2, 2), 2), ((1, 1), 2)], ids=str)
def test_gradients_with_same_padding(kernel, stride):
    rng = seeded(0)
    x, weight = rng.permutation(2 * 2 * 7 * 6).reshape(2, 2, 7, 6) / 10 - 8, rng.standard_normal((3, 2, *kernel))
    sv.gradcheck(lambda x, weight: sv.ops.conv2d(x, weight, stride=stride, padding="same"), x, weight)
    sv.gradcheck(lambda x: sv.ops.max_pool2d(x, kernel, stride=stride, padding="same"), x)
    depthwise = rng.standard_normal((2, 1, *kernel))
    sv.gradcheck(lambda x, w: sv.ops.conv2d(x, w, stride=stride, padding="same", groups=2), x, depthwise)


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
    with sv.nn.init.without_weights():
        assert sv.create_model(name).num_parameters() == PARAMETERS[name]


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, (32, 32)), ({"in_chans": 1}, (21, 34)), ({"preact": False, "padding_same": True}, (21, 34)),
     ({"padding_same": True}, (33, 33)), ({"drop_rate": 0.1, "drop_path_rate": 0.1}, (32, 32)),
     ({"width_factor": 2, "channels": (64, 128)}, (16, 16))],
    ids=str,
)
def test_options_train_and_reach_every_parameter(device, options, size):
    model = sv.create_model(NAME, **{**TINY, **options})
    assert_learns(model, images(2, model.config.in_chans, *size), np.array([0, 4]))


def test_the_scale_and_mean_of_a_kernel_do_not_matter():
    model = sv.create_model(NAME, **TINY)
    x = images(2, 3, 32, 32)
    before = model(x).numpy()
    for module in model.modules():
        if isinstance(module, StdConv2d):
            module.weight.assign(3 * module.weight.numpy() + 0.5)
    agree(lambda: model(x), before)


def test_batch_mates_do_not_matter():
    model = sv.create_model(NAME, **TINY)
    x = images(3, 3, 24, 24)
    agree(lambda: model(x)[:1], model(x[:1]))


def test_stochastic_depth_grows_from_block_to_block_also_where_stages_are_left_out():
    for options in ({}, {"features_only": True, "out_indices": (2,)}):
        model = sv.create_model(NAME, layers=(1, 2, 1, 1), drop_path_rate=0.4, **options)
        rates = [block.drop_path.p for stage in model.stages for block in stage.blocks]
        assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4][: len(rates)]) and len(rates) in (3, 5)


def test_without_a_head_features_come_out():
    x = images(2, 3, 20, 40)
    model = sv.create_model(NAME, **{**TINY, "num_classes": 0})
    features = sv.create_model(NAME, **{**TINY, "num_classes": 0, "global_pool": ""})(x)
    assert features.shape == (2, 256, 3, 5)
    agree(lambda: model(x), features.numpy().mean((2, 3), dtype=np.float64))


@pytest.mark.parametrize("options", [{}, {"preact": False, "padding_same": True}], ids=str)
def test_feature_maps_have_their_channels_and_strides(options):
    x = images(2, 3, 37, 50)
    model = sv.create_model(NAME, **TINY, **options, features_only=True, out_indices=(0, 1, 2))
    maps = model(x)
    assert model.feature_channels == [64, 128, 256] and model.feature_strides == [2, 4, 8]
    for feature, channels, stride in zip(maps, model.feature_channels, model.feature_strides, strict=True):
        assert feature.shape == (2, channels, math.ceil(37 / stride), math.ceil(50 / stride))
    sum(feature.mean() for feature in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_stages_beyond_the_last_feature_map_are_not_built():
    model = sv.create_model(NAME, features_only=True, out_indices=(1,))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"stem", "stages"}
    assert len(model.stages) == 1 and len(model.stages[0].blocks) == 3
    x = images(2, 3, 37, 50)
    assert np.array_equal(model.forward_features(x).numpy(), model(x)[0].numpy())


def test_the_seed_decides_the_weights():
    a, b, c = (sv.create_model(NAME, seed=seed, **TINY).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["stem.conv.weight"], c["stem.conv.weight"])


@pytest.mark.parametrize(
    ("options", "text"),
    [({"layers": ()}, "one to 2 numbers of blocks"), ({"layers": (1, 0)}, "at least 1, not"),
     ({"layers": (1, 1, 1)}, "one to 2 numbers"), ({"channels": (128, 200)}, r"multiples of 128, not \(128, 200\) × 1"),
     ({"num_classes": -1}, "num_classes must be positive, or 0"),
     ({"width_factor": 0}, "width_factor must be positive"), ({"in_chans": 0}, "in_chans must be positive"),
     ({"drop_path_rate": 1.0}, "drop_path_rate is a probability"),
     ({"global_pool": "max"}, "global_pool"), ({"global_pool": ""}, 'or "" with num_classes=0'),
     ({"features_only": True}, "out_indices must be in 0…2"),
     ({"features_only": True, "out_indices": ()}, "out_indices"),
     ({"features_only": True, "out_indices": (1, 0)}, "increasing order"),
     ({"out_indices": (1,)}, "features_only=True"),
     ({"layer": (1,)}, "did you mean 'layers'")],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, text):
    with pytest.raises(sv.ScratchvitError, match=text):
        sv.create_model(NAME, **{**TINY, **options})


def test_images_of_other_channels_are_refused():
    model = sv.create_model(NAME, **TINY)
    for shape in ((2, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(sv.ScratchvitError, match=r"\(B, 3, height, width\), it was given|given one image \(3"):
            model(images(*shape))
        with pytest.raises(sv.ScratchvitError, match=r"\(B, 3, height, width\), it was given|given one image \(3"):
            model.forward_features(images(*shape))


# --- against timm ---------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("name", PRESETS)
def test_names_and_shapes_are_timms(name):
    torch, timm = pytest.importorskip("torch"), import_timm()
    with torch.device("meta"):
        peer = timm.create_model(name)
    with sv.nn.init.without_weights():
        model = sv.create_model(name)
    theirs = {name: tuple(p.shape) for name, p in peer.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == theirs
    assert model.config.img_size == peer.default_cfg["input_size"][1]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "shape"),
    [full_size("resnetv2_50x1_bit", (1, 3, 224, 224)), full_size("resnetv2_50x1_bit", (2, 3, 75, 64)),
     full_size("resnetv2_101x1_bit", (2, 3, 75, 64))],
    ids=str,
)
def test_logits_and_gradients_equal_timms(name, shape):
    """Training is the same function as evaluation: nothing here depends on the batch."""
    model, peer = pair(timms(name), name)
    assert_same_cnn(model, peer, images(*shape), modes=(False,))


@pytest.mark.slow
@pytest.mark.parity
def test_where_every_relu_is_open_float32_gradients_equal_timms():
    model, peer = open_relus(*pair(timms(NAME), NAME))
    assert_same_model(model, peer, images(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parity
def test_three_times_the_width_equals_timms():
    timm = import_timm()
    from timm.layers import StdConv2d as TimmsStdConv2d

    def wide():                                                 # timm's presets do not take `layers`
        return timm.models.ResNetV2(
            (1, 1), width_factor=3, stem_type="fixed", conv_layer=functools.partial(TimmsStdConv2d, eps=1e-8)
        )

    model, peer = pair(wide, "resnetv2_50x3_bit", layers=(1, 1))
    assert_same_cnn(model, peer, images(2, 3, 33, 48), modes=(False,))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("preact", [True, False])
def test_feature_maps_equal_timms(preact):
    torch = pytest.importorskip("torch")
    whole, peer = pair(timms(NAME, preact=preact), NAME, preact=preact)
    model = sv.create_model(NAME, preact=preact, features_only=True)
    state = whole.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    assert model.feature_strides == [info["reduction"] for info in peer.feature_info]
    assert model.feature_channels == [info["num_chs"] for info in peer.feature_info]
    x = images(2, 3, 64, 96)
    with sv.no_grad(), torch.no_grad():
        theirs = peer.forward_intermediates(torch.from_numpy(x), intermediates_only=True)
        agree(lambda: model(x), theirs, "feature map", samples=1)


@pytest.mark.parity
def test_stochastic_depth_lies_where_timms_does():
    model, peer = (make(NAME, drop_path_rate=0.3) for make in (sv.create_model, import_timm().create_model))
    theirs = [getattr(block.drop_path, "drop_prob", 0.0) for stage in peer.stages for block in stage.blocks]
    assert theirs == pytest.approx([block.drop_path.p for stage in model.stages for block in stage.blocks])
