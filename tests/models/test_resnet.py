"""ResNet: sizes, options, feature maps, bad input; against timm and torchvision: names, values and every gradient."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.models.resnet import BasicBlock, Bottleneck
from tests.support.model_parity import (
    assert_learns,
    assert_same_cnn,
    assert_same_model,
    give,
    images,
    in_float64,
    open_relus,
    pair,
    timms,
)
from tests.support.peers import import_timm, import_torchvision

PARAMETERS = {  # timm's and torchvision's counts
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
SMALL = {"num_classes": 5, "small_stem": True, "channels": (8, 16, 24, 32)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    with sv.nn.init.without_weights():
        assert sv.create_model(name).num_parameters() == PARAMETERS[name]


def test_table_1_of_the_paper():
    """Sizes of the maps of ResNet-34 and ResNet-50 at 224×224."""
    for name, expected in (("resnet34", [64, 64, 128, 256, 512]), ("resnet50", [64, 256, 512, 1024, 2048])):
        with sv.nn.init.without_weights():
            model = sv.create_model(name, features_only=True)
        assert model.feature_channels == expected
        assert model.feature_strides == [2, 4, 8, 16, 32]
        depths = [len(stage) for stage in model.stages()]
        assert depths == [3, 4, 6, 3]


@pytest.mark.parametrize(
    "options",
    [{}, {"bottleneck": True}, {"in_chans": 1}, {"zero_init_last": False}, {"output_stride": 8, "small_stem": False},
     {"drop_rate": 0.2, "drop_path_rate": 0.3}],
    ids=str,
)
def test_a_step_of_training_lowers_the_loss_and_reaches_every_parameter(device, options):
    model = sv.create_model("resnet18", **{**SMALL, "layers": (1, 1, 1, 2), **options})
    assert_learns(model, images(4, model.config.in_chans, 10, 14), np.array([0, 4, 2, 2]))
    assert all(m.num_batches_tracked.item() == 3 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_every_block_starts_as_an_identity():
    for bottleneck, Block in ((False, BasicBlock), (True, Bottleneck)):
        model = sv.create_model("resnet18", bottleneck=bottleneck, **SMALL)
        block = model.layer2[1]
        x = np.abs(images(2, model.layer2[0].last_norm().weight.size, 4, 4))
        assert isinstance(block, Block) and np.array_equal(block(sv.Tensor(x)).numpy(), x)
        model = sv.create_model("resnet18", bottleneck=bottleneck, zero_init_last=False, **SMALL)
        assert not np.array_equal(model.layer2[1](sv.Tensor(x)).numpy(), x)


def test_without_a_head_features_come_out():
    model = sv.create_model("resnet18", num_classes=0, channels=(8, 8, 8, 16))
    assert model(images(2, 3, 32, 40)).shape == (2, 16) and "fc.weight" not in model.state_dict()
    assert model.forward_features(images(2, 3, 32, 40)).shape == (2, 16, 1, 2)


NARROW_BUT_ONE = (8, 8, 256, 8)        # wide enough for a standard deviation


def test_the_seed_decides_the_weights():
    a, b, c = (sv.create_model("resnet18", seed=seed, channels=NARROW_BUT_ONE).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    for name in ("conv1.weight", "layer4.0.downsample.0.weight", "fc.weight", "fc.bias"):
        assert not np.array_equal(a[name], c[name])
    assert a["layer3.1.conv2.weight"].std() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("options", "strides"),
    [({}, [2, 4, 8, 16, 32]), ({"output_stride": 16}, [2, 4, 8, 16, 16]), ({"output_stride": 8}, [2, 4, 8, 8, 8]),
     ({"small_stem": True}, [1, 1, 2, 4, 8]), ({"out_indices": (1, 3)}, [4, 16]), ({"out_indices": [0]}, [2])],
    ids=str,
)
def test_feature_maps_have_the_strides_and_channels_that_are_promised(options, strides):
    model = sv.create_model("resnet18", features_only=True, layers=(1, 1, 1, 1), channels=(8, 16, 24, 32), **options)
    maps = model(images(2, 3, 64, 96))
    assert model.feature_strides == strides
    assert [x.shape for x in maps] == [
        (2, channels, 64 // stride, 96 // stride) for channels, stride in zip(model.feature_channels, strides)
    ]
    assert len(model.stages()) == max(options.get("out_indices", [4])) and "fc.weight" not in model.state_dict()


def test_the_relu_may_come_after_the_max_pool():
    """As it does where nobody asks for the map in between. Maps and gradients are the same, bit for bit."""
    found = []
    for out_indices in ((0, 4), (4,)):
        options = {"channels": (8, 16, 24, 32), "zero_init_last": False}
        model = sv.create_model("resnet18", features_only=True, out_indices=out_indices, **options)
        last = model(images(2, 3, 45, 64))[-1]
        last.sum().backward()
        found.append([last.numpy(), *(parameter.grad for parameter in model.parameters())])
    for first, second in zip(*found):
        assert np.any(first)
        np.testing.assert_array_equal(first, second)


def test_dilation_changes_where_the_kernels_look_and_no_weight():
    narrow = (8, 16, 24, 32)
    plain, dilated = (sv.create_model("resnet18", output_stride=stride, channels=narrow) for stride in (32, 8))
    weights = dilated.state_dict()
    assert all(np.array_equal(value, weights[name]) for name, value in plain.state_dict().items())
    dilations = [[block.conv1.dilation, block.conv2.dilation] for stage in dilated.stages() for block in stage]
    assert dilations == [[1, 1]] * 4 + [[1, 2], [2, 2], [2, 4], [4, 4]]


def test_a_frozen_norm_stays_and_the_rest_learns(device):
    live = sv.create_model("resnet18", layers=(1, 1, 1, 1), **SMALL)
    frozen = sv.create_model("resnet18", layers=(1, 1, 1, 1), frozen_bn=True, **SMALL)
    assert not any("bn" in name or "downsample.1" in name for name, _ in frozen.named_parameters())
    assert frozen.layer1[0].bn2.weight.numpy().all()            # zero would be for ever
    frozen.load_state_dict({**live.state_dict(), "layer1.0.bn2.weight": np.ones(8, np.float32)})
    before = frozen.state_dict()
    optimizer = sv.optim.SGD(frozen.parameters(), lr=0.1)
    ops.cross_entropy(frozen(images(2, 3, 8, 8)), np.array([1, 2])).backward()
    optimizer.step()
    for name, value in frozen.state_dict().items():
        is_norm = "bn" in name or "downsample.1" in name
        # The other blocks' last norms were loaded as zeros.
        assert np.array_equal(value, before[name]) == (is_norm or name.startswith(BEHIND_A_ZERO)), name
    x = images(2, 3, 8, 8)
    assert np.array_equal(frozen.train()(x).numpy(), frozen.eval()(x).numpy())


BEHIND_A_ZERO = tuple(f"layer{stage}.0.conv" for stage in (2, 3, 4))


def test_norms_and_biases_do_not_decay():
    decayed, kept = sv.optim.param_groups(sv.create_model("resnet18", channels=(8, 8, 8, 8)), 0.1)
    assert {p.ndim for p in decayed["params"]} == {2, 4} and {p.ndim for p in kept["params"]} == {1}


@pytest.mark.parametrize(
    ("options", "text"),
    [({"layers": (1, 2)}, "four stages"), ({"layers": (1, 2, 0, 1)}, "four stages"), ({"in_chans": 0}, "in_chans"),
     ({"channels": (8, 16)}, "widths of four stages"), ({"channels": (8, 8, 0, 8)}, "each at least 1, not"),
     ({"num_classes": -1}, "num_classes"), ({"output_stride": 4}, "output_stride must be 32, 16 or 8, not 4"),
     ({"small_stem": True, "output_stride": 16}, "the last map has stride 8"),
     ({"features_only": True, "out_indices": (2, 1)}, "increasing order"),
     ({"features_only": True, "out_indices": ()}, "in increasing order"),
     ({"features_only": True, "out_indices": (5,)}, "increasing order"),
     ({"layers": 3}, "several numbers, such as .* not 3"),
     ({"features_only": True, "out_indices": 2}, "several numbers, .* not 2"),
     ({"out_indices": (4,)}, "features_only=True"), ({"drop_rate": 1.0}, "drop_rate"),
     ({"drop_path_rate": -0.1}, "drop_path_rate"), ({"frozen": True}, "did you mean 'frozen_bn'")],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, text):
    with pytest.raises(sv.ScratchvitError, match=text):
        sv.create_model("resnet18", **options)


def test_lists_as_json_has_them_are_tuples():
    for name, options in (("resnet34", {"layers": [2, 2, 2, 2]}), ("resnetv2_50x1_bit", {"layers": [3, 4]}),
                          ("vit_base_r50_s16_224", {"layers": [1], "img_size": [32, 64]})):
        as_tuples = {key: tuple(value) for key, value in options.items()}
        assert sv.models.model_config(name, **options) == sv.models.model_config(name, **as_tuples)


def test_images_that_do_not_fit_are_refused():
    model = sv.create_model("resnet18", **SMALL)
    for shape in ((2, 1, 8, 8), (3, 8, 8)):
        with pytest.raises(sv.ScratchvitError, match=r"\(B, 3, height, width\), it was given|given one image \(3"):
            model(images(*shape))
    with pytest.raises(ValueError, match="one value per channel"):
        sv.create_model("resnet18", channels=(8, 8, 8, 8))(images(1, 3, 32, 32))    # the last map is 1×1, of one image


# --- the same models of timm and torchvision ------------------------------------------------------------------------

# Of a tenth of the parameters, in every other way as the presets.
NARROW = {"layers": (1, 2, 2, 2), "channels": (24, 32, 40, 48)}     # dilated stages have a first block and a later one


@pytest.mark.parity
@pytest.mark.parametrize("name", PARAMETERS)
def test_names_and_shapes_are_timms_and_torchvisions(name):
    torch, timm, torchvision = pytest.importorskip("torch"), import_timm(), import_torchvision()
    with sv.nn.init.without_weights():
        ours = {key: tensor.shape for key, tensor in sv.create_model(name).state_dict().items()}
    with torch.device("meta"):
        for peer in (timm.create_model(name), getattr(torchvision.models, name)()):
            assert {key: tuple(tensor.shape) for key, tensor in peer.state_dict().items()} == ours


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", PARAMETERS)
def test_values_and_gradients_equal_timms(name):
    model, peer = pair(timms(name), name)
    assert_same_cnn(model, peer, images(2, 3, 64, 96))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_values_and_gradients_equal_timms_at_224(name):
    """Where gradients of evaluation take another way than those of training, the smaller images have shown it."""
    model, peer = pair(timms(name), name)
    x = images(1, 3, 224, 224)
    assert_same_model(model, peer, x, train=True, gradients=False)
    assert_same_model(model, peer, x, train=False, gradients=False)
    give(in_float64(model), peer.double())
    assert_same_model(model, peer, x, train=True)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_where_every_relu_is_open_float32_gradients_equal_timms(name):
    """And where nothing is pooled: a maximum of two that are equal but for rounding may send its gradient to either.

    A batch norm undoes a shift of its input, so that the gradient of a bias before it is a sum that cancels.
    """
    torch = pytest.importorskip("torch")
    make = timms(name, **NARROW)

    def of_a_small_stem():
        peer = make()
        peer.conv1, peer.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
        return peer

    model, peer = open_relus(*pair(of_a_small_stem, name, small_stem=True, **NARROW))
    for train in (True, False):
        assert_same_model(model, peer, images(2, 3, 16, 24), train, idle=(".bias",))


@pytest.mark.slow
@pytest.mark.parity
def test_torchvisions_resnet50_too():
    model, peer = pair(import_torchvision().models.resnet50, "resnet50")
    assert_same_cnn(model, peer, images(2, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("resnet50", {}), ("resnet50", {"features_only": True}),
     ("resnet18", {"features_only": True, "out_indices": (2, 3)}),
     ("resnet18", {"output_stride": 16}), ("resnet50", {"output_stride": 16, "features_only": True}),
     ("resnet18", {"output_stride": 8, "features_only": True, "out_indices": (4,)}), ("resnet50", {"output_stride": 8}),
     ("resnet18", {"in_chans": 1, "num_classes": 0})],
    ids=str,
)
def test_options_equal_timms(name, options):
    options = {**NARROW, **options}
    model, peer = pair(timms(name, **options), name, **options)
    if "features_only" in options:
        assert model.feature_strides == peer.feature_info.reduction()
        assert model.feature_channels == peer.feature_info.channels()
    assert_same_cnn(model, peer, images(2, options.get("in_chans", 3), 64, 96))


@pytest.mark.parity
@pytest.mark.parametrize(("size", "modes"), [((33, 45), (True, False)), ((1, 7), (False,))], ids=str)
def test_odd_sizes_equal_timms(size, modes):
    model, peer = pair(timms("resnet18", **NARROW), "resnet18", **NARROW)
    assert_same_cnn(model, peer, images(3, 3, *size), modes)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("stride", "replaced", "layers"),
    [(16, [False, False, True], (3, 4, 6, 3)), (8, [False, True, True], (1, 1, 2, 2))],
)
def test_frozen_and_dilated_equals_torchvisions_backbone_of_detr(stride, replaced, layers):
    torchvision = import_torchvision()

    def backbone():
        return torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, layers, replace_stride_with_dilation=replaced,
            norm_layer=torchvision.ops.misc.FrozenBatchNorm2d,
        )

    model, peer = pair(backbone, "resnet50", layers=layers, frozen_bn=True, output_stride=stride)
    assert_same_cnn(model, peer, images(1, 3, 64, 96), modes=(True,))


@pytest.mark.parity
def test_stochastic_depth_and_zero_last_norms_lie_where_timms_do():
    peer = import_timm().create_model("resnet34", drop_path_rate=0.3)
    model = sv.create_model("resnet34", drop_path_rate=0.3)
    theirs = [0.0 if block.drop_path is None else block.drop_path.drop_prob for block in peer_blocks(peer)]
    assert theirs == pytest.approx([block.drop_path.p for block in peer_blocks(model)])
    zeros = [name for name, p in model.named_parameters() if not p.numpy().any()]
    assert zeros == [name for name, p in peer.named_parameters() if not p.detach().numpy().any()]


def peer_blocks(model):
    return [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
