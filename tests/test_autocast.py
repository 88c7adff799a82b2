"""Mixed precision: what is rounded to 16 bits inside `autocast`, what stays in float32, and how far results move."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.backend import asnumpy
from scratchvit.casting import RULES
from scratchvit.costs import cost, peak_memory
from scratchvit.costs.counting import configured_shape
from scratchvit.costs.profiling import profile
from scratchvit.errors import WrongState, WrongValue
from scratchvit.models import create_model
from scratchvit.precision import HALVES
from scratchvit.random import Generator
from scratchvit.rounding import stored
from scratchvit.tensor import OPS, Tensor, op
from tests.cases import CASES
from tests.cases.case import Case
from tests.support.margins import EPSILON, assert_all_close, rounding
from tests.support.one_op import run
from tests.support.seeds import seeded

by_half = pytest.mark.parametrize("name", HALVES)


def numpy_type(name: str) -> Any:
    """NumPy's or ml_dtypes' type of 16-bit numbers."""
    if name == "float16":
        return np.float16
    import ml_dtypes

    return ml_dtypes.bfloat16


def rounded(x: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(numpy_type(name)).astype(np.float32)


def holds_16_bits(x: Tensor | np.ndarray, name: str) -> bool:
    """Whether all entries are 16-bit numbers."""
    array = asnumpy(x.data) if isinstance(x, Tensor) else x
    return bool(np.array_equal(rounded(array.astype(np.float32), name), array.astype(np.float32), equal_nan=True))


def in_16_bits(x: Any) -> Tensor:
    """x, cast down inside autocast: multiplied by a matrix that is a 1, which changes no other bit."""
    return ops.linear(ops.reshape(x, (*x.shape, 1)), Tensor(np.ones((1, 1), np.float32))).reshape(x.shape)


# --- rounding ---------------------------------------------------------------------------------------------------------


@by_half
def test_rounding_is_that_of_the_device_bit_for_bit(name):
    rng = seeded(0)
    upper = np.arange(1 << 16, dtype=np.uint32) << 16          # every bfloat16, with lower halves around every tie
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    every = (upper[:, None] | lower).reshape(-1).view(np.float32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    ties = (halves[:-1].astype(np.float64) + halves[1:]) / 2    # between neighbours in float16, exact in float32
    near_ties = [np.nextafter(ties.astype(np.float32), np.float32(side)) for side in (-np.inf, np.inf)]
    random = rng.integers(0, 1 << 32, 300_000, dtype=np.uint32).view(np.float32)
    for x in (every, ties.astype(np.float32), *near_ties, random):
        found, expected = stored(x, HALVES[name]), rounded(x, name)
        assert found.dtype == np.float32
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
        assert np.array_equal(stored(found, HALVES[name]).view(np.uint32), expected.view(np.uint32))


@by_half
def test_rounding_takes_any_memory_layout_and_keeps_what_it_must_not_overwrite(name):
    x = seeded(1).standard_normal((5, 6, 7), dtype=np.float32)
    before = x.copy()
    for view in (x, x[::2], x.T, x[:, ::-1, 1:3], x[:0], x[0, 0, 0, ...], np.broadcast_to(x[0], x.shape)):
        assert np.array_equal(stored(view, HALVES[name]), rounded(view, name))
    assert np.array_equal(x, before)
    fixed = np.broadcast_to(x[0], x.shape)
    assert np.array_equal(stored(fixed, HALVES[name], in_place=True), rounded(fixed, name))
    assert np.array_equal(x, before)
    assert stored(x, HALVES[name], in_place=True) is x
    assert np.array_equal(x, rounded(before, name))


# --- ops --------------------------------------------------------------------------------------------------------------


def in_autocast(case: Case, name: str) -> Callable[..., Any]:
    def fn(*tensors: Tensor) -> Any:
        with sv.autocast(name):
            return case.ours(*map(in_16_bits, tensors))

    return fn


@pytest.mark.filterwarnings("ignore")           # of overflow in float16
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_op_gives_16_bits_or_float32_as_its_rule_says(case: Case, device: str):
    for name, half in HALVES.items():
        arrays = [rounded(array, name) for array in case.make(np.float32)]
        found = run(in_autocast(case, name), arrays)
        with sv.autocast(name):
            values = case.ours(*(in_16_bits(Tensor(array)) for array in arrays))
        for value, array in zip(values if isinstance(values, tuple) else (values,), found["value"]):
            is_half = getattr(value, "_half", None) is half
            assert array.dtype == (half.dtype if is_half and device != "cpu" else np.float32)
            assert holds_16_bits(array, name) or not is_half
            assert not is_half or OPS[case.op].autocast != "loss"
        for gradient in found["gradient"]:
            assert gradient is None or gradient.dtype == np.float32
        found["value"] = [array.astype(np.float32) for array in found["value"]]
        compute = functools.partial(run, case.ours, arrays)
        assert_all_close(found, compute(), rounding(compute, dtype=name, samples=1))


def test_every_op_has_a_rule_and_losses_are_losses():
    rules = {name: function.autocast for name, function in OPS.items()}
    assert set(rules.values()) == set(RULES)
    assert {name for name, rule in rules.items() if rule == "casts"} == {
        "matmul", "linear", "linear_gelu", "linear_parts", "einsum", "attention", "conv2d", "conv3d", "prelu",
    }
    assert {name for name, rule in rules.items() if rule == "loss"} == {
        "cross_entropy", "kl_div", "binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss",
        "l1_loss", "smooth_l1_loss", "mse_loss", "log_softmax", "to_float32",
    }
    with pytest.raises(WrongValue, match="autocast must be one of casts"):
        op(lambda x: None, autocast="always")


@by_half
def test_what_each_rule_does(device, name):
    rng, half = seeded(2), HALVES[name]
    x, w = (Tensor(rng.standard_normal((4, 4), dtype=np.float32), requires_grad=True) for _ in range(2))
    with sv.autocast(name):
        narrow = ops.linear(x, w)

        def is_16_bit(t: Tensor) -> bool:
            if device == "cpu":
                return t.dtype == np.float32 and getattr(t, "_half", None) is half and holds_16_bits(t, name)
            return t.dtype.char == half.char

        assert is_16_bit(narrow)
        assert not is_16_bit(x + w)                                         # float32 alone stays
        assert is_16_bit(narrow + x) and is_16_bit(x * narrow) and is_16_bit(narrow * 2.0)
        assert is_16_bit(narrow.reshape(2, 8).T[0]) and all(map(is_16_bit, narrow.split(2)))
        assert is_16_bit(ops.layer_norm(narrow, 4)) and is_16_bit(narrow.softmax())
        assert not is_16_bit(ops.layer_norm(x, 4))
        assert is_16_bit(narrow.mean(dim=0)) and is_16_bit(narrow.sum(dim=0))
        assert not is_16_bit(narrow.mean()) and not is_16_bit(narrow.sum())     # one number
        assert not is_16_bit(ops.mse_loss(narrow, np.zeros((4, 4), np.float32), reduction="none"))
        assert not is_16_bit(ops.to_float32(narrow))
        assert is_16_bit(narrow.detach())
        with sv.autocast("float32"):
            assert not is_16_bit(ops.linear(x, w))
        with sv.no_grad():
            assert is_16_bit(ops.linear(x, w))
    assert not is_16_bit(ops.linear(x, w))
    exact = ops.to_float32(narrow)
    assert exact is not narrow


@by_half
def test_the_device_stores_the_bits_that_the_cpu_simulates(name):
    """On the strict double, 16-bit values are arrays of 16-bit numbers; on the CPU they are rounded."""
    from tests.support.strict_array import STRICT

    def results() -> dict[str, np.ndarray]:
        rng = seeded(3)
        x = rng.standard_normal((2, 3, 16, 16), dtype=np.float32)
        model = create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
                             num_classes=5, drop_path_rate=0.2)
        model.set_generator(Generator(0))
        with sv.autocast(name):
            logits = model(Tensor(x))
            loss = ops.cross_entropy(logits, sv.backend.asarray(np.array([1, 3])))
        loss.backward()
        gradients = {key: asnumpy(p.grad) for key, p in model.named_parameters()}
        return {"logits": asnumpy(logits.data).astype(np.float32), "loss": asnumpy(loss.data), **gradients}

    simulated = results()
    sv.use(STRICT)
    try:
        found = results()
    finally:
        sv.use("cpu")
    for key, expected in simulated.items():
        assert found[key].dtype == expected.dtype == np.float32
        difference = np.abs(found[key] - expected).max() / np.abs(expected).max()
        assert difference <= 2e-3, key


def test_float64_and_integers_are_left_alone():
    x = Tensor(seeded(4).standard_normal((3, 3)), dtype=np.float64, requires_grad=True)
    with sv.autocast("bfloat16"):
        y = (x @ x + x).softmax().sum()
        assert ops.matmul(np.arange(4).reshape(2, 2), np.arange(2)).dtype == np.int64
        with pytest.raises(TypeError, match="linear: x is int64"):
            ops.linear(np.ones((2, 2), np.int64), np.ones((2, 2), np.float32))
    y.backward()
    outside = Tensor(x.numpy(), dtype=np.float64, requires_grad=True)
    (outside @ outside + outside).softmax().sum().backward()
    assert y.dtype == np.float64 and np.array_equal(x.grad, outside.grad)


def test_a_gradient_that_others_still_need_is_not_rounded_in_place():
    """The engine hands one array to both inputs of a sum; to_float32 rounds the gradient of its own input only."""
    x = Tensor(np.full(3, 1 + 2.0**-6, np.float32), requires_grad=True)
    other = Tensor(np.zeros(3, np.float32), requires_grad=True)
    with sv.autocast("bfloat16"):
        narrow = in_16_bits(x)
        y = ops.to_float32(narrow) + other                 # both get the same dy
    gradient = np.full(3, 1 + 2.0**-20, np.float32)
    y.backward(gradient)
    assert np.array_equal(other.grad, gradient) and np.array_equal(x.grad, np.ones(3, np.float32))


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(WrongValue, match="autocast: 'half' is unknown: choose one of bfloat16, float16, or float32"):
        sv.autocast("half").__enter__()
    assert sv.autocast_dtype() == "float32"
    with sv.autocast("float16"):
        assert sv.autocast_dtype() == "float16"


# --- parameters -------------------------------------------------------------------------------------------------------


@by_half
def test_a_parameter_stays_in_float32_and_its_shadow_follows_every_change(device, name):
    layer = nn.Linear(8, 4, rng=np.random.default_rng(seeded(5).integers(1 << 30)))
    x, half = Tensor(seeded(6).standard_normal((3, 8), dtype=np.float32)), HALVES[name]

    def used() -> np.ndarray:
        with sv.autocast(name):
            layer(x)
        return asnumpy(layer.weight.shadows.get(layer.weight, half)).astype(np.float32)

    def current() -> np.ndarray:
        return rounded(layer.weight.numpy(), name)

    assert layer.weight.shadows is None
    assert np.array_equal(used(), current())
    assert layer.weight.dtype == np.float32
    place = layer.weight.shadow(half)
    with sv.no_grad():
        layer.weight *= 1.37
    assert np.array_equal(used(), current())
    layer.load_state_dict({"weight": 2 * layer.weight.numpy(), "bias": layer.bias.numpy()})
    assert np.array_equal(used(), current())
    with sv.autocast(name):
        loss = layer(x).sum()
    loss.backward()
    assert asnumpy(layer.weight.grad).dtype == np.float32
    sv.optim.AdamW(layer.parameters(), lr=0.1).step()
    assert np.array_equal(used(), current())
    ema = sv.optim.EMA(layer, 0.5)
    sv.optim.AdamW(layer.parameters(), lr=0.1).step()
    ema.update()
    own = current()
    with ema.applied():
        averaged = current()
        assert np.array_equal(used(), averaged) and not np.array_equal(own, averaged)
    assert np.array_equal(used(), own)
    assert layer.weight.shadow(half) is place               # overwritten in place: a captured graph keeps its address


def test_a_copy_of_a_module_has_shadows_of_its_own():
    layer = nn.Linear(3, 3)
    with sv.autocast("bfloat16"):
        layer(np.ones((1, 3), np.float32))
        other = copy.deepcopy(layer)
        assert other.weight.shadows is None
        with sv.no_grad():
            other.weight *= 3
        y, z = layer(np.ones((1, 3), np.float32)), other(np.ones((1, 3), np.float32))
    assert not np.array_equal(y.numpy(), z.numpy())


def test_a_graph_whose_shadows_were_overwritten_is_refused():
    layer, x = nn.Linear(3, 3), Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    ema = sv.optim.EMA(layer, 0.9)
    with sv.autocast("bfloat16"):
        loss = layer(x).sum()
        with ema.applied(), sv.no_grad():
            layer(x)
    with pytest.raises(WrongState, match="changed in place"):
        loss.backward()


def test_gradients_of_parameters_are_accumulated_in_float32():
    weight = nn.Parameter(np.zeros((1, 1), np.float32))
    for step in range(512):                                 # in bfloat16, 256 + 1 is 256
        with sv.autocast("bfloat16"):
            y = ops.linear(Tensor(np.ones((1, 1), np.float32)), weight)
        y.backward(np.ones((1, 1), np.float32))
        assert weight.grad[0, 0] == step + 1


# --- models -----------------------------------------------------------------------------------------------------------


FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
    "pixel_transformer_tiny": {"img_size": 8, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "resnet18": {"img_size": 64, "layers": (1, 1, 1, 1)},
    "resnet50": {"img_size": 64, "layers": (1, 1, 1, 1)},
    "resnetv2_50x1_bit": {"img_size": 64, "layers": (1, 1)},
    "vit_tiny_r_s16_p8_224": {"depth": 1},
    "igpt_tiny": {"img_size": 8},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (2, 2), "num_heads": (3, 6)},
    "swinv2_tiny_window8_256": {"img_size": 64, "depths": (2, 2), "num_heads": (3, 6)},
    "mvit_v1_b_image": {"img_size": 64, "depths": (1, 1)},
    "mvitv2_tiny": {"img_size": 64, "depths": (1, 1)},
    "detr_tiny": {"img_size": 64, "enc_layers": 1},
    "dab_detr_tiny": {"img_size": 64},
}


# Their gradients jump where a rounded number makes ReLU or max pooling choose another branch. Measured: at most 0.08
# of their length in bfloat16, 0.04 in float16.
KINKED = {
    "resnet18", "resnet50", "resnetv2_50x1_bit", "mvit_v1_b_image", "mvitv2_tiny", "detr_tiny", "dab_detr_tiny",
}


def loss_of(model: Any, images: np.ndarray, labels: Any) -> Tensor:
    answers = model(images)
    if isinstance(answers, dict):
        layers = [answers, *answers["aux_outputs"]]
        return sum(
            ops.cross_entropy(layer["pred_logits"].transpose(1, 2), np.zeros(layer["pred_boxes"].shape[:2], np.int64))
            + abs(layer["pred_boxes"]).mean()
            for layer in layers
        )
    return ops.cross_entropy(sum(answers[1:], answers[0]) if isinstance(answers, tuple) else answers, labels)


@pytest.mark.filterwarnings("ignore")
@by_half
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_of_every_model_are_near_those_of_float32(family, name):
    model = create_model(family, **FAMILIES[family])
    images = seeded(7).standard_normal((2, *configured_shape(model)), dtype=np.float32)
    labels = model.tokens(images) if getattr(model, "generative", False) else np.zeros(2, np.int64)
    buffers = {path: buffer.data.copy() for path, buffer in model.named_buffers()}

    def compute() -> dict[str, Any]:
        model.zero_grad()
        model.set_generator(Generator(0))
        for path, buffer in model.named_buffers():
            buffer.overwrite(buffers[path])
        loss = loss_of(model, images, labels)
        loss.backward()
        gradients = [p.grad.ravel() for p in model.parameters() if p.grad is not None]
        return {"loss": loss.numpy(), "gradient": np.concatenate(gradients)}

    exact = compute()
    with sv.autocast(name):
        found = compute()
    if family not in KINKED:
        assert_all_close(found, exact, rounding(compute, dtype=name, factor=2.0, samples=1))
        return
    error = np.linalg.norm(found["gradient"] - exact["gradient"]) / np.linalg.norm(exact["gradient"])
    assert error < {"bfloat16": 0.15, "float16": 0.08}[name]
    assert abs(found["loss"] - exact["loss"]) < 4 * EPSILON[name] * abs(exact["loss"])


def digits_like(name: str, steps: int, loss_scale: float = 0.0) -> list[float]:
    """The losses of a small ViT that learns to tell four patterns apart."""
    rng = seeded(8)
    patterns = 2 * rng.standard_normal((4, 1, 8, 8), dtype=np.float32)
    model = create_model("vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=4, embed_dim=32,
                         depth=2, num_heads=2)
    optimizer = sv.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = sv.optim.LossScaler(loss_scale) if loss_scale else None
    losses = []
    for _ in range(steps):
        labels = rng.integers(0, 4, 32)
        images = patterns[labels] + rng.standard_normal((32, 1, 8, 8), dtype=np.float32)
        with sv.autocast(name):
            loss = ops.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        (scaler.scale(loss) if scaler else loss).backward()
        finite = True
        if scaler:
            scaler.unscale(model.parameters())
            finite = bool(np.isfinite(sv.optim.grad_norm(model.parameters())))
            scaler.update(finite)
        if finite:
            optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_model_learns_in_bfloat16_and_with_loss_scaling_in_float16():
    exact = np.mean(digits_like("float32", 60)[-10:])
    assert exact < 0.2
    assert np.mean(digits_like("bfloat16", 60)[-10:]) == pytest.approx(exact, abs=0.1)
    assert np.mean(digits_like("float16", 60, loss_scale=2.0**20)[-10:]) == pytest.approx(exact, abs=0.1)


def test_float16_overflows_as_on_a_device_and_the_scaler_sees_it():
    w = nn.Parameter(np.full((1, 1), 300, np.float32))
    with sv.autocast("float16"):
        y = ops.linear(Tensor(np.full((1, 1), 300, np.float32)), w)     # 90,000 > 65,504
        assert np.isinf(y.numpy()).all()
    with sv.autocast("bfloat16"):
        assert np.isfinite(ops.linear(Tensor(np.full((1, 1), 300, np.float32)), w).numpy()).all()
    w = nn.Parameter(np.ones((1, 1), np.float32))
    with sv.autocast("float16"):
        y = ops.to_float32(ops.linear(Tensor(np.ones((1, 1), np.float32)), w) * 1.0)
    y.backward(np.full((1, 1), 2.0**-30, np.float32))                   # underflows between mul and linear
    assert w.grad.item() == 0
    with sv.autocast("float16"):
        y = ops.to_float32(ops.linear(Tensor(np.ones((1, 1), np.float32)), w) * 1.0)
    y.backward(np.full((1, 1), 2.0**-30 * 2.0**16, np.float32))
    assert w.grad.item() == 2.0**-14


# --- other parts of the engine ----------------------------------------------------------------------------------------


def test_a_checkpointed_function_is_recomputed_in_the_same_numbers():
    rng = seeded(9)
    layer = nn.Mlp(8, 16, drop=0.3)
    layer.drop.generator = Generator(1)
    array = rng.standard_normal((4, 8), dtype=np.float32)

    def gradients(wrapped: Callable[..., Any]) -> list[np.ndarray]:
        layer.zero_grad()
        layer.drop.generator = Generator(1)
        x = Tensor(array, requires_grad=True)
        with sv.autocast("bfloat16"):
            y = ops.layer_norm(wrapped(in_16_bits(x)), 8)
            assert getattr(wrapped(in_16_bits(x)), "_half", None) is HALVES["bfloat16"]
            loss = (y * y).mean()
        loss.backward()
        return [x.grad, *(p.grad for p in layer.parameters())]

    def checkpointed(x: Tensor) -> Tensor:
        return sv.checkpoint(layer, x)

    for found, expected in zip(gradients(checkpointed), gradients(layer)):
        assert np.array_equal(found, expected)


def test_gradcheck_refuses_and_costs_count_float32():
    with sv.autocast("bfloat16"), pytest.raises(WrongState, match="gradcheck: inside autocast"):
        sv.gradcheck(ops.exp, np.ones(3))
    model = create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    outside = cost(model), peak_memory(model, batch_size=2)
    with sv.autocast("bfloat16"):
        assert (cost(model), peak_memory(model, batch_size=2)) == outside


def test_profile_and_record_attention_work():
    model = create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    with sv.autocast("bfloat16"):
        found = profile(model, batch_size=2, steps=1)
        assert {"linear", "attention"} <= {call.name for call in found.steps[0].calls}
        with ops.record_attention() as maps, sv.no_grad():
            model(np.zeros((1, 3, 32, 32), np.float32))
    (p,) = maps
    assert p.dtype == np.float32 and np.allclose(p.sum(axis=-1), 1, atol=1e-6)


def test_autocast_belongs_to_a_thread_and_ends_with_its_block():
    import threading

    seen = []
    with sv.autocast("bfloat16"):
        with pytest.raises(ZeroDivisionError), sv.autocast("float16"), sv.no_grad(), sv.enable_grad():
            assert sv.autocast_dtype() == "float16"
            raise ZeroDivisionError
        assert sv.autocast_dtype() == "bfloat16"
        thread = threading.Thread(target=lambda: seen.append(sv.autocast_dtype()))
        thread.start()
        thread.join()
    assert seen == ["float32"] and sv.autocast_dtype() == "float32"


@pytest.mark.parity
def test_a_vit_is_as_near_to_float32_as_pytorchs_autocast():
    import torch

    from tests.support.model_parity import pair, timms

    options = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 10}
    ours, theirs = pair(timms("vit_tiny_patch16_224", **options), "vit_tiny_patch16_224", **options)
    images, labels = seeded(10).standard_normal((4, 3, 32, 32), dtype=np.float32), np.array([1, 5, 9, 0])

    def of_ours() -> dict[str, np.ndarray]:
        ours.zero_grad()
        loss = ops.cross_entropy(ours(images), labels)
        loss.backward()
        return {"loss": loss.numpy(), **{name: p.grad for name, p in ours.named_parameters()}}

    def of_theirs(enabled: bool) -> dict[str, np.ndarray]:
        theirs.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(images)).float(), torch.tensor(labels))
        loss.backward()
        return {"loss": loss.detach().numpy(), **{name: p.grad.numpy() for name, p in theirs.named_parameters()}}

    exact, rounded_theirs = of_theirs(False), of_theirs(True)
    with sv.autocast("bfloat16"):
        found = of_ours()
    assert found.keys() == exact.keys()

    def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
        length = np.sqrt(sum(np.square(array).sum() for array in exact.values()))
        return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in exact)) / length)

    print(distance(found, exact), distance(rounded_theirs, exact), distance(found, rounded_theirs))
    assert distance(found, exact) < 1.5 * distance(rounded_theirs, exact)
    assert distance(found, rounded_theirs) < 2 * distance(rounded_theirs, exact)
    for name in exact:
        assert np.abs(found[name] - exact[name]).max() <= 24 * EPSILON["bfloat16"] * np.abs(exact[name]).max(), name
