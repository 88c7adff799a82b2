"""What a model costs: hand formulas, the course's figures, shapes of real runs, and PyTorch's counter."""

import math

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.backend import Array
from scratchvit.costs import cost, peak_memory
from scratchvit.costs.counting import readable_bytes, tracing
from scratchvit.facts import Facts, facts_of, like, nothing
from scratchvit.models import create_model, list_models, model_paper
from scratchvit.recording import no_grad, replace_ops
from scratchvit.tensor import OPS, Tensor, op
from tests.cases import CASES
from tests.support.peers import import_timm
from tests.support.processes import alone, peak_bytes
from tests.support.seeds import moved, seeded

by_case = pytest.mark.parametrize("case", CASES, ids=str)

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
WITHOUT_CLASS_TOKEN = {"class_token": False, "global_pool": "avg"}


def without_weights(name, **options):
    with nn.init.without_weights():
        return create_model(name, **options)


class Calling(nn.Module):
    """A function as a model."""

    def __init__(self, function):
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class ConvNet(nn.Module):
    """A little of everything that convolutional models have. x (B, 3, H, W) → (B, 10)."""

    def __init__(self):
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 16, 3, padding="same", dilation=2, groups=8)
        self.grouped = nn.Conv2d(16, 12, (1, 3), stride=(1, 2), groups=4)
        self.norm = nn.GroupNorm(3, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = ops.max_pool2d(ops.relu(self.stem(x)), 3, stride=2, padding=1)
        x = ops.avg_pool2d(self.depthwise(x), 2, ceil_mode=True)
        x = self.norm(ops.conv2d(x, ops.weight_standardization(self.grouped.weight), None, (1, 2), 0, 1, 4))
        x = ops.interpolate(ops.pad(x, (1, 1, 0, 1)), size=(5, 7), mode="bilinear")
        return self.head(x.mean(dim=(2, 3)))


def shapes_of_a_real_run(model, *inputs):
    """(op, shapes of its outputs) of every op that is called, computed for real in evaluation mode."""
    seen = []

    def observe(function, args, kwargs):
        value, backward = function(*args, **kwargs)
        outputs = value if isinstance(value, tuple) else (value,)
        seen.append((function.__name__, tuple(np.shape(y) for y in outputs)))
        return value, backward

    model.eval()
    with no_grad(), replace_ops(observe):
        model(*inputs)
    return seen


# --- what it says ---


def test_vit_base_equals_the_formula_by_hand():
    """Shapes of the paper: 196 patches of 768 numbers, 12 blocks of 4 D² weights for attention and 8 D² for the MLP."""
    N, D, L, heads = 197, 768, 12, 12
    found = cost(without_weights("vit_base_patch16_224"))
    assert found.parameters == 86_567_656
    assert found.macs == 196 * 768 * D + L * (12 * N * D * D + 2 * N * N * D) + 1000 * D == 17_563_828_224
    assert found.attention_entries == L * heads * N * N
    assert found.attention_bytes == 4 * L * heads * N * N
    assert found.tokens == N


def test_a_convnet_equals_the_formula_by_hand():
    found = cost(ConvNet(), (3, 33, 30))                # 33×30 → 17×15 → 9×8 → 9×8 → 5×4 → 5×1
    assert [row.outputs[0] for row in found.layers if row.macs] == [
        (1, 8, 17, 15), (1, 16, 9, 8), (1, 12, 5, 1), (1, 10)
    ]
    assert found.macs == 8 * 17 * 15 * (3 * 49) + 16 * 9 * 8 * (1 * 9) + 12 * 5 * 1 * (4 * 3) + 12 * 10
    assert found.parameters == 8 * 3 * 49 + 2 * 8 + (16 * 9 + 16) + (12 * 4 * 3 + 12) + 2 * 12 + (120 + 10)
    assert found.tokens is None and found.attention_bytes == 0


def test_the_courses_figures():
    """Pixels at R=128 in 48 layers of 16 heads: 768 GiB for one image. 196 patches: 38,416 entries, 150 KiB."""
    pixels = cost(without_weights(
        "vit_tiny_patch16_224", img_size=128, patch_size=1, depth=48, num_heads=16, embed_dim=64, **WITHOUT_CLASS_TOKEN
    ))
    assert pixels.tokens == 128**2
    assert pixels.attention_bytes == 768 << 30
    assert readable_bytes(pixels.attention_bytes) == "768 GiB"
    patches = cost(without_weights("vit_base_patch16_224", **WITHOUT_CLASS_TOKEN))
    assert patches.tokens == 196
    assert patches.attention_entries == 12 * 12 * 38_416
    assert readable_bytes(patches.attention_bytes // (12 * 12)) == "150 KiB"


def test_attention_grows_with_the_fourth_power_of_the_side():
    small, large = (
        cost(without_weights("vit_tiny_patch16_224", img_size=side, **WITHOUT_CLASS_TOKEN)) for side in (224, 448)
    )
    assert large.attention_entries == 16 * small.attention_entries


def test_tokens_count_all_windows_and_only_queries():
    windows = Calling(lambda x: ops.attention(*(x.reshape(4, 2, 9, 8),) * 3))           # 4 windows of 9 tokens
    assert cost(windows, (36, 2, 8)).tokens == 36
    pooled = Calling(lambda x: ops.attention(x, x[:, :, :5], x[:, :, :5, :6]))          # 9 queries, 5 keys
    found = cost(pooled, (2, 9, 8))
    assert (found.tokens, found.attention_entries, found.macs) == (9, 2 * 9 * 5, 2 * 9 * 5 * (8 + 6))


@pytest.mark.parametrize(("function", "shape", "macs"), [
    (lambda x: x @ np.ones((4, 7), np.float32), (2, 3, 4), 2 * 3 * 4 * 7),
    (lambda x: x @ np.ones((5, 1, 4, 7), np.float32), (2, 3, 4), 5 * 2 * 3 * 4 * 7),      # broadcast: (5, 2, 3, 7)
    (lambda x: x @ np.ones(4, np.float32), (2, 3, 4), 2 * 3 * 4),
    (lambda x: ops.einsum("bhwc,hkc->bhwk", x, np.ones((2, 7, 4), np.float32)), (2, 3, 4), 2 * 3 * 4 * 7),
    (lambda x: ops.einsum("bhwc->bc", x), (2, 3, 4), 0),
    (lambda x: ops.linear(x, np.ones((7, 4), np.float32)), (2, 3, 4), 2 * 3 * 4 * 7),
    (lambda x: ops.gelu(ops.layer_norm(x * 2 + x, 4)).softmax(-1).mean(1), (2, 3, 4), 0),
])
def test_multiply_adds_of_products_by_hand(function, shape, macs):
    assert cost(Calling(function), shape).macs == macs


def test_rows_say_which_module_called_what():
    found = cost(create_model("vit_tiny_patch16_224", **TINY))
    rows = {(row.module, row.op): row for row in found.layers}
    qkv = rows["blocks.1.attn.qkv", "linear"]
    assert (qkv.inputs, qkv.outputs) == (((1, 17, 32), (96, 32), (96,)), ((1, 17, 96),))
    assert qkv.macs == 17 * 32 * 96
    assert rows["blocks.1.attn", "attention"].attention_entries == 2 * 17 * 17
    assert rows["blocks.1.attn", "unbind"].outputs == ((1, 2, 17, 16),) * 3
    assert rows["", "concatenate"].outputs == ((1, 17, 32),)
    assert found.macs == sum(row.macs for row in found.layers)


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (153_664, "150 KiB"), (22_353_984, "21.3 MiB"),
    ((1 << 30) - 1, "1024 MiB"), (768 << 30, "768 GiB"), (5 << 50, "5120 TiB"),
])
def test_readable_bytes(count, text):
    assert readable_bytes(count) == text


# --- it is what a real run would be ---


@by_case
def test_every_op_gets_the_shape_of_a_real_run(case):
    inputs = [Tensor(array) for array in case.make()]
    model = Calling(case.ours)
    real = model(*inputs)
    with tracing(model) as layers:
        traced = model(*inputs)
    assert [(row.op, row.outputs) for row in layers] == shapes_of_a_real_run(model, *inputs)
    for ours, theirs in zip(*(y if isinstance(y, tuple) else (y,) for y in (traced, real)), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


FIRST_OF_EACH_FAMILY = list({model_paper(name): name for name in reversed(list_models())}.values())


@pytest.mark.parametrize("name", FIRST_OF_EACH_FAMILY)
def test_every_family_gets_the_shapes_of_a_real_run(name):
    model = create_model(name, img_size=64)
    images = Tensor(np.zeros((1, 3, 64, 64), np.float32))
    assert [(row.op, row.outputs) for row in cost(model).layers] == shapes_of_a_real_run(model, images)


def test_a_convnet_gets_the_shapes_of_a_real_run():
    model = ConvNet()
    images = Tensor(seeded(0).standard_normal((1, 3, 33, 30), dtype=np.float32))
    found = cost(model, (3, 33, 30))
    assert [(row.op, row.outputs) for row in found.layers] == shapes_of_a_real_run(model, images)


def test_products_that_do_not_fit_are_refused_as_in_a_real_run():
    for function, shape in (
        (lambda x: x @ np.ones((5, 3), np.float32), (2, 4)),
        (lambda x: ops.linear(x, np.ones((3, 5), np.float32)), (2, 4)),
        (lambda x: ops.einsum("bij,jk->bik", x, np.ones((5, 3), np.float32)), (2, 4)),
        (lambda x: x + np.ones((5,), np.float32), (2, 4)),
        (lambda x: ops.attention(x, x[..., :3], x), (2, 4)),
        (lambda x: ops.conv2d(x, np.ones((1, 3, 5, 5), np.float32)), (3, 4, 4)),
    ):
        for run in (lambda: cost(Calling(function), shape), lambda: function(np.ones((1, *shape), np.float32))):  # noqa: B023
            with pytest.raises(ValueError):
                run()


@op
def doubled(x: Array):
    """An op of somebody's own, which says nothing of its cost."""
    return 2 * x, lambda dy: 2 * dy


@op(facts=Facts(shape=like("x"), saves=nothing, macs=lambda x: 7 * x.size))
def doubled_at_a_cost(x: Array):
    return 2 * x, lambda dy: 2 * dy


def test_an_op_that_does_not_say_what_it_costs_is_not_counted_as_nothing():
    weight = nn.Parameter(np.ones((4, 3), np.float32))
    for ask in (cost, peak_memory):
        with pytest.raises(sv.ScratchvitError, match=r"the op 'doubled' has no facts, so its cost is .*facts=Facts\("):
            ask(Calling(lambda x: doubled(ops.linear(x, weight)).sum(dim=2)), (2, 3))
        ask(Calling(lambda x: doubled_at_a_cost(ops.linear(x, weight)).sum(dim=2)), (2, 3))
    assert cost(Calling(doubled_at_a_cost), (2, 3)).macs == 7 * 2 * 3
    assert doubled(np.float32([1, 2])).numpy().tolist() == [2, 4]


def test_an_op_of_the_project_without_facts_is_refused_where_it_is_defined():
    def halved(x: Array):
        return x / 2, lambda dy: dy / 2

    halved.__module__ = "scratchvit.ops.elementwise"
    with pytest.raises(TypeError, match=r"op 'halved' has no facts: declare it with @op\(facts=…\)"):
        op(halved)


def test_facts_are_found_from_the_op_and_from_what_stands_in_for_it():
    """Also where float16 is computed in float32, by a function around the op's."""
    seen = []

    def observe(function, args, kwargs):
        seen.append(facts_of(function))
        return function(*args, **kwargs)

    with replace_ops(observe):
        for dtype in (np.float32, np.float16):
            ops.softmax(np.ones((2, 3), dtype))
    assert seen == [facts_of(ops.softmax)] * 2
    assert all(facts_of(op) for op in OPS.values())


def test_integers_keep_their_values(device):
    """They decide shapes: as indices, as masks. Sums of them are computed."""
    table, positions = Tensor(np.zeros((4, 3), np.float32)), Tensor(np.array([[0, 2]]))
    for function, given, expected in (
        (lambda x: ops.embedding(positions + 1, table) + x, (2, 3), (1, 2, 3)),
        (lambda x: x[:, positions] + table[np.array([0, 3])], (3, 3), (1, 1, 2, 3)),
        (lambda x: x[:, np.array([True, False, True])], (3, 3), (1, 2, 3)),
        (lambda x: ops.gather(table, 0, np.array([[1, 3, 2]])) + x, (3,), (1, 3)),
    ):
        assert cost(Calling(function), given).layers[-1].outputs == (expected,)


# --- without running, without a trace ---


def peak_of_counting(name):
    """Bytes that `cost` holds at once, and those of the largest activation."""
    model = without_weights(name)
    found = cost(model)         # what is made once is made: imports, caches
    return peak_bytes(lambda: cost(model)), 4 * max(math.prod(y) for row in found.layers for y in row.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_huge_patch14_224", "resnet152", "resnetv2_152x4_bit"])
def test_nothing_of_the_size_of_an_activation_is_allocated(name):
    peak, largest = alone(peak_of_counting, name)
    assert peak < 1 << 20 and largest > 3 << 20


def test_the_model_is_left_as_it_was():
    model = ConvNet()
    model.depthwise.eval()                              # a frozen part in a model that trains
    before = model.state_dict()
    attributes = [dict(vars(module)) for module in model.modules()]
    for shape in ((3, 33, 30), (4, 33, 30)):            # the second fails inside the model
        try:
            cost(model, shape)
        except ValueError as error:
            assert shape[0] == 4 and "4 channels" in str(error)
        for name, values in model.state_dict().items():
            np.testing.assert_array_equal(values, before[name], err_msg=name)
        assert [module.training for module in model.modules()] == [
            module is not model.depthwise for module in model.modules()
        ]
        assert [dict(vars(module)) for module in model.modules()] == attributes
    assert ops.relu(np.float32([-1, 2])).numpy().tolist() == [0, 2]         # ops compute again


def test_dropout_counts_as_in_evaluation_and_draws_nothing():
    model = create_model("vit_tiny_patch16_224", **TINY, drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5)
    images = np.zeros((2, 3, 16, 16), np.float32)
    generator = sv.random.Generator(moved(3))
    model.set_generator(generator)
    state = generator.state_dict()
    with tracing(model) as layers:
        assert not model(images[:1]).requires_grad
    assert tuple(layers) == cost(create_model("vit_tiny_patch16_224", **TINY)).layers
    assert generator.state_dict() == state
    assert model.training and model(images).requires_grad


def test_a_model_on_any_device(device):
    model, in_use = create_model("vit_tiny_patch16_224", **TINY), sv.device()
    found = cost(model)
    assert sv.device() == in_use
    assert type(model.head.weight.data) is type(Tensor([0.0]).data)
    sv.use("cpu")
    assert found == cost(without_weights("vit_tiny_patch16_224", **TINY))


def test_a_float64_model():
    model = nn.Conv2d(3, 4, 3)
    model.weight.data, model.bias.data = model.weight.data.astype(np.float64), model.bias.data.astype(np.float64)
    assert cost(model, (3, 8, 8)).macs == 4 * 6 * 6 * 27


def test_a_model_without_a_configuration_needs_a_shape():
    with pytest.raises(sv.ScratchvitError, match=r"ConvNet has no configuration .* pass image_shape=\(C, H, W\)"):
        cost(ConvNet())


# --- against the field's own counts ---


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", list_models())
def test_parameters_and_multiply_adds_equal_timms(name):
    """timm's model on PyTorch's meta device, counted by FlopCounterMode: a multiply-add is two of its operations."""
    timm = import_timm()
    if name not in timm.list_models():
        pytest.skip("a size that timm does not have")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ours = without_weights(name)
    size = ours.config.img_size
    with torch.device("meta"), torch.no_grad():
        theirs = timm.create_model(name, num_classes=ours.config.num_classes).eval()
        with FlopCounterMode(display=False) as counter:
            theirs(torch.empty(1, ours.config.in_chans, *((size, size) if isinstance(size, int) else size)))
    found = cost(ours)
    assert found.parameters == sum(parameter.numel() for parameter in theirs.parameters())
    # MViTv2's relative positions lie in the product q kᵀ, so that q is wider than v; timm adds them to what comes out.
    added = sum(row.attention_entries * (row.inputs[0][-1] - row.inputs[2][-1]) for row in found.layers if row.tokens)
    assert 2 * (found.macs - added) == counter.get_total_flops()


# What PyTorch computes without a product of matrices, and therefore does not count.
UNCOUNTED = {"matmul-vectors": 4, "matmul-vector on the right": 2 * 3 * 4, "einsum-i,j,k->ijk": 2 * 3 * 4}


@pytest.mark.parity
@pytest.mark.parametrize("case", [case for case in CASES if case.theirs], ids=str)
def test_multiply_adds_of_every_op_equal_pytorchs(case):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    inputs = case.make()
    model = Calling(case.ours)
    with tracing(model) as layers:
        model(*map(Tensor, inputs))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        case.theirs(torch, *map(torch.as_tensor, inputs))
    macs = sum(row.macs for row in layers)
    assert 2 * (macs - UNCOUNTED.get(str(case), 0)) == counter.get_total_flops()
    assert macs > 0 or not any(row.op in ("linear", "matmul", "conv2d", "conv3d", "attention") for row in layers)
