"""ResNet: sizes, options, feature maps, bad input; against timm and torchvision: names, values and every gradient."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.models.resnet import BasicBlock, Bottleneck

PARAMETERS = {  # timm's and torchvision's counts
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}  # fmt: skip
SMALL = {"num_classes": 5, "small_stem": True}


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


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
)  # fmt: skip
def test_a_step_of_training_lowers_the_loss_and_reaches_every_parameter(device, options):
    model = sv.create_model("resnet18", **{**SMALL, "layers": (1, 1, 1, 2), **options})
    x, y = images(4, model.config.in_chans, 10, 14), np.array([0, 4, 2, 2])
    optimizer = sv.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(3):
        model.set_generator(sv.random.Generator(3))             # the same masks, so that losses can be compared
        logits = model(x)
        assert logits.shape == (4, 5) and logits.dtype == np.float32
        loss = ops.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and p.grad.dtype == np.float32 for p in model.parameters())
        optimizer.step()
    assert losses[2] < losses[0]
    # From the second step on: a block passes no gradient to its convolutions while its last norm is zero.
    assert [name for name, p in model.named_parameters() if not sv.backend.asnumpy(p.grad).any()] == []
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
    model = sv.create_model("resnet18", num_classes=0)
    assert model(images(2, 3, 32, 40)).shape == (2, 512) and "fc.weight" not in model.state_dict()
    assert model.forward_features(images(2, 3, 32, 40)).shape == (2, 512, 1, 2)


def test_the_seed_decides_the_weights():
    a, b, c = (sv.create_model("resnet18", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    for name in ("conv1.weight", "layer4.0.downsample.0.weight", "fc.weight", "fc.bias"):
        assert not np.array_equal(a[name], c[name])
    assert a["layer3.1.conv2.weight"].std() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("options", "strides"),
    [({}, [2, 4, 8, 16, 32]), ({"output_stride": 16}, [2, 4, 8, 16, 16]), ({"output_stride": 8}, [2, 4, 8, 8, 8]),
     ({"small_stem": True}, [1, 1, 2, 4, 8]), ({"out_indices": (1, 3)}, [4, 16]), ({"out_indices": [0]}, [2])],
    ids=str,
)  # fmt: skip
def test_feature_maps_have_the_strides_and_channels_that_are_promised(options, strides):
    model = sv.create_model("resnet18", features_only=True, layers=(1, 1, 1, 1), **options)
    maps = model(images(2, 3, 64, 96))
    assert model.feature_strides == strides
    assert [x.shape for x in maps] == [
        (2, channels, 64 // stride, 96 // stride) for channels, stride in zip(model.feature_channels, strides)
    ]
    assert len(model.stages()) == max(options.get("out_indices", [4])) and "fc.weight" not in model.state_dict()


def test_dilation_changes_where_the_kernels_look_and_no_weight():
    plain, dilated = (sv.create_model("resnet18", output_stride=stride) for stride in (32, 8))
    assert all(np.array_equal(value, dilated.state_dict()[name]) for name, value in plain.state_dict().items())
    dilations = [[block.conv1.dilation, block.conv2.dilation] for stage in dilated.stages() for block in stage]
    assert dilations == [[1, 1]] * 4 + [[1, 2], [2, 2], [2, 4], [4, 4]]


def test_a_frozen_norm_stays_and_the_rest_learns(device):
    live = sv.create_model("resnet18", layers=(1, 1, 1, 1), **SMALL)
    frozen = sv.create_model("resnet18", layers=(1, 1, 1, 1), frozen_bn=True, **SMALL)
    assert not any("bn" in name or "downsample.1" in name for name, _ in frozen.named_parameters())
    assert frozen.layer1[0].bn2.weight.numpy().all()            # zero would be for ever
    frozen.load_state_dict({**live.state_dict(), "layer1.0.bn2.weight": np.ones(64, np.float32)})
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
    decayed, kept = sv.optim.param_groups(sv.create_model("resnet18"), 0.1)
    assert {p.ndim for p in decayed["params"]} == {2, 4} and {p.ndim for p in kept["params"]} == {1}


@pytest.mark.parametrize(
    ("options", "text"),
    [({"layers": (1, 2)}, "four stages"), ({"layers": (1, 2, 0, 1)}, "four stages"), ({"in_chans": 0}, "in_chans"),
     ({"num_classes": -1}, "num_classes"), ({"output_stride": 4}, "output_stride is 32, 16 or 8, not 4"),
     ({"small_stem": True, "output_stride": 16}, "the last map has stride 8"),
     ({"features_only": True, "out_indices": (2, 1)}, "rising"), ({"features_only": True, "out_indices": ()}, "rising"),
     ({"features_only": True, "out_indices": (5,)}, "rising"), ({"features_only": True, "out_indices": 2}, "not 2"),
     ({"out_indices": (4,)}, "features_only=True"), ({"drop_rate": 1.0}, "drop_rate"),
     ({"drop_path_rate": -0.1}, "drop_path_rate"), ({"frozen": True}, "did you mean 'frozen_bn'")],
    ids=str,
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(options, text):
    with pytest.raises(sv.ScratchvitError, match=text):
        sv.create_model("resnet18", **options)


def test_images_that_do_not_fit_are_refused():
    model = sv.create_model("resnet18", **SMALL)
    for shape in ((2, 1, 8, 8), (3, 8, 8)):
        with pytest.raises(sv.ScratchvitError, match=r"\(B, 3, height, width\), it was given"):
            model(images(*shape))
    with pytest.raises(ValueError, match="one value per channel"):
        sv.create_model("resnet18")(images(1, 3, 32, 32))       # the last map is 1×1, of one image


# --- the same models of timm and torchvision ------------------------------------------------------------------------


def lively(model, kinks=True, seed=7):
    """The model with norms like a trained network's; as created, most blocks are identities and pass no gradient.

    kinks=False: nearly all activations positive (norms with bias 4). Where a float32 rounding error carries one of a
    million activations across ReLU's kink, its whole gradient comes or goes: in ResNet-50 PyTorch's own float32 is up
    to 9% away from its float64 in some parameter, and so are we. So gradients are compared in float64 with
    the kinks, and in float32 without. There, the shift of a channel is undone by the next batch norm: a sum of large
    terms that cancel is the gradient of a bias, and what it is compared with is the gradient of its norm's weight.
    """
    rng = np.random.default_rng(seed)
    last = {id(m.last_norm()) for m in model.modules() if isinstance(m, BasicBlock | Bottleneck)}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.FrozenBatchNorm2d):
            channels = module.weight.shape
            is_last = id(module) in last
            module.weight.data[...] = rng.uniform(0.05, 0.2, channels) if is_last else rng.uniform(0.5, 1.2, channels)
            module.bias.data[...] = 0.1 * rng.standard_normal(channels) + (0 if kinks or is_last else 4)
            module.running_mean.data[...] = 0.1 * rng.standard_normal(channels)
            module.running_var.data[...] = rng.uniform(0.5, 2, channels)
    return model


def with_statistics_of(model, x):
    """The model with running statistics that fit x, as after training: the momentum of one pass is 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with sv.no_grad():
        model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return model


def in_float64(model):
    for tensors in (model.named_parameters(), model.named_buffers()):
        for _, tensor in tensors:
            if tensor.dtype == np.float32:
                tensor.data = tensor.data.astype(np.float64)
    return model


def compare(model, peer, x, logits=1e-4, gradients=1e-3, statistics=1e-5, same_layer=False):
    """Load ours there (strictly) and theirs back; then values, gradients and statistics in train() and eval().

    same_layer: differences of gradients relative to the largest gradient of the layer, not of each parameter.
    """
    torch = pytest.importorskip("torch")
    peer = peer.to(torch.float64 if model.conv1.weight.dtype == np.float64 else torch.float32)
    peer.load_state_dict({name: torch.from_numpy(value) for name, value in model.state_dict().items()}, strict=True)
    assert model.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()}) == ([], [])
    rng = np.random.default_rng(3)
    x = x.astype(model.conv1.weight.dtype)
    for mode in (True, False):
        model.train(mode), peer.train(mode), model.zero_grad(), peer.zero_grad()
        ours, theirs = model(x), peer(torch.from_numpy(x))
        if not isinstance(theirs, list):
            ours, theirs = [ours], [theirs]
        cotangents = [rng.standard_normal(y.shape).astype(x.dtype) for y in ours]
        sum((y * v).sum() for y, v in zip(ours, cotangents)).backward()
        sum((y * torch.from_numpy(v)).sum() for y, v in zip(theirs, cotangents)).backward()
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(a.numpy(), b.detach().numpy(), logits, f"output {number}, train({mode})")
        peers = {name: p.grad.numpy() for name, p in peer.named_parameters()}
        assert peers.keys() == {name for name, _ in model.named_parameters()}
        for name, parameter in model.named_parameters():
            layer = name.rpartition(".")[0] + "."
            scale = max(np.abs(g).max() for key, g in peers.items() if key.startswith(layer)) if same_layer else None
            assert_close(parameter.grad, peers[name], gradients, f"{name}, train({mode})", scale)
        state = model.state_dict()
        for name, buffer in peer.named_buffers():
            assert_close(state[name], buffer.numpy(), statistics, f"{name}, train({mode})")


def assert_close(ours, theirs, tolerance, what, scale=None):
    difference = np.abs(ours - theirs).max() / (scale or np.abs(theirs).max())
    assert difference <= tolerance, f"{what}: {difference:.1e} of the largest entry"


EXACTLY = {"logits": 1e-8, "gradients": 1e-7, "statistics": 1e-9}


@pytest.fixture(scope="module")
def timm():
    from tests.peers import import_timm

    return import_timm()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", (224, 224)), ("resnet18", (64, 96)), ("resnet34", (224, 224)), ("resnet50", (224, 224)),
     ("resnet50", (64, 96)), ("resnet101", (64, 96)), ("resnet152", (64, 96))],
)  # fmt: skip
def test_values_and_gradients_equal_timms_in_float64(timm, name, size):
    x = images(2, 3, *size)
    model = with_statistics_of(lively(sv.create_model(name, seed=5)), x)
    compare(in_float64(model), timm.create_model(name), x, **EXACTLY)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(224, 224), (64, 96)], ids=str)
@pytest.mark.parametrize("name", PARAMETERS)
def test_values_and_gradients_equal_timms_in_float32(timm, name, size):
    x = images(2, 3, *size)
    model = with_statistics_of(lively(sv.create_model(name, seed=5), kinks=False), x)
    compare(model, timm.create_model(name), x, same_layer=True)


@pytest.mark.parity
@pytest.mark.parametrize("name", PARAMETERS)
def test_logits_of_fresh_and_of_lively_models_equal_timms(timm, name):
    torch = pytest.importorskip("torch")
    x, peer = images(2, 3, 64, 96), timm.create_model(name)
    for model in (sv.create_model(name), with_statistics_of(lively(sv.create_model(name)), x)):
        peer.load_state_dict({key: torch.from_numpy(value) for key, value in model.state_dict().items()}, strict=True)
        for mode in (True, False):
            theirs = peer.train(mode)(torch.from_numpy(x)).detach().numpy()
            assert_close(model.train(mode)(x).numpy(), theirs, 1e-4, name)


@pytest.mark.parity
def test_torchvisions_resnet50_too(timm):
    torchvision = pytest.importorskip("torchvision")
    x = images(2, 3, 64, 96)
    model = with_statistics_of(lively(sv.create_model("resnet50")), x)
    compare(in_float64(model), torchvision.models.resnet50(), x, **EXACTLY)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet50", {"features_only": True}), ("resnet18", {"features_only": True, "out_indices": (2, 3)}),
     ("resnet18", {"output_stride": 16}), ("resnet50", {"output_stride": 16, "features_only": True}),
     ("resnet18", {"output_stride": 8, "features_only": True, "out_indices": (4,)}), ("resnet50", {"output_stride": 8}),
     ("resnet18", {"in_chans": 1, "num_classes": 0})],
    ids=str,
)  # fmt: skip
def test_options_equal_timms(timm, name, options):
    x = images(2, options.get("in_chans", 3), 64, 96)
    model, peer = sv.create_model(name, **options), timm.create_model(name, **options)
    if "features_only" in options:
        assert model.feature_strides == peer.feature_info.reduction()
        assert model.feature_channels == peer.feature_info.channels()
    compare(in_float64(with_statistics_of(lively(model), x)), peer, x, **EXACTLY)


@pytest.mark.parity
@pytest.mark.parametrize(("stride", "replaced"), [(16, [False, False, True]), (8, [False, True, True])])
def test_frozen_and_dilated_equals_torchvisions_backbone_of_detr(timm, stride, replaced):
    torchvision = pytest.importorskip("torchvision")
    peer = torchvision.models.resnet50(
        replace_stride_with_dilation=replaced, norm_layer=torchvision.ops.misc.FrozenBatchNorm2d
    )
    model = lively(sv.create_model("resnet50", frozen_bn=True, output_stride=stride))
    compare(in_float64(model), peer, images(1, 3, 64, 96), **EXACTLY)


@pytest.mark.parity
def test_stochastic_depth_and_zero_last_norms_lie_where_timms_do(timm):
    peer = timm.create_model("resnet34", drop_path_rate=0.3)
    model = sv.create_model("resnet34", drop_path_rate=0.3)
    theirs = [0.0 if block.drop_path is None else block.drop_path.drop_prob for block in peer_blocks(peer)]
    assert theirs == pytest.approx([block.drop_path.p for block in peer_blocks(model)])
    zeros = [name for name, p in model.named_parameters() if not p.numpy().any()]
    assert zeros == [name for name, p in peer.named_parameters() if not p.detach().numpy().any()]


def peer_blocks(model):
    return [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
