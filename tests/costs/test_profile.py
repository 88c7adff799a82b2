"""The profile of a model: what each op takes and moves, the roofline, and that the model stays as it was."""

import dataclasses
import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import backend, nn, ops
from scratchvit.backend import Array
from scratchvit.costs import cost, profiling, work
from scratchvit.costs import machine as machines
from scratchvit.costs.machine import Machine
from scratchvit.costs.profiling import BACKWARD, FORWARD, UPDATE, Stopwatch, profile
from scratchvit.costs.trace import chrome_trace
from scratchvit.costs.work import Works
from scratchvit.facts import Facts, like, nothing
from scratchvit.models import create_model
from scratchvit.recording import NORMAL, mode, no_grad, replace_ops
from scratchvit.tensor import Tensor, op
from tests.support.seeds import seeded
from tests.support.strict_array import STRICT

MACHINE = Machine(flops=100e9, bandwidth=10e9)
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
FAMILIES = {
    "vit_tiny_patch16_224": VIT,
    "igpt_tiny": {"img_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "resnet18": {"img_size": 32, "layers": (1, 1, 1, 1), "num_classes": 5},
    "swin_tiny_patch4_window7_224": {
        "img_size": 28, "embed_dim": 12, "depths": (2,), "num_heads": (3,), "window_size": 7, "num_classes": 5,
    },
    "mvit_v2_s": {"img_size": 32, "num_frames": 4, "depths": (1, 1), "num_classes": 5},
    "detr_tiny": {"img_size": 64, "enc_layers": 1, "dec_layers": 2},
}


def vit(**options):
    return create_model("vit_tiny_patch16_224", **{**VIT, **options})


def row_of(found, op, direction):
    return next(row for row in found.rows(MACHINE) if (row.op, row.direction) == (op, direction))


def test_the_roofline():
    """min(peak, intensity · bandwidth), as a time."""
    for flops, nbytes in ((1e9, 10**6), (1e6, 10**9), (1e9, 10**8)):
        allowed = min(MACHINE.flops, flops / nbytes * MACHINE.bandwidth)
        assert MACHINE.at_best(flops, nbytes) == pytest.approx(flops / allowed)
    assert MACHINE.at_best(0, 10**7) == pytest.approx(1e-3)


def test_a_machine_is_measured_on_any_device(device, monkeypatch):
    for name, value in (("SECONDS", 0.001), ("COPY_BYTES", 1 << 20), ("SIDES", (16, 32)), ("LONG_ENOUGH", 10)):
        monkeypatch.setattr(machines, name, value)
    found = machines.measure()
    assert 0 < found.flops < 1e16 and 0 < found.bandwidth < 1e14


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_multiply_adds_are_those_of_the_cost(device, name, inference):
    found = profile(create_model(name, **FAMILIES[name]), batch_size=2, steps=1, inference=inference)
    sv.use("cpu")
    expected = cost(create_model(name, **FAMILIES[name])).macs
    assert sum(row.macs for row in found.rows(MACHINE) if row.direction == FORWARD) == 2 * expected
    assert {row.direction for row in found.rows(MACHINE)} == ({FORWARD} if inference else {FORWARD, BACKWARD})
    assert [phase.name for phase in found.steps[0].phases] == [FORWARD] if inference else [FORWARD, BACKWARD, UPDATE]


def test_the_backward_of_a_product_makes_twice_those_of_its_forward():
    found = profile(vit(), batch_size=2, steps=1)
    for name in ("linear", "attention"):
        assert row_of(found, name, BACKWARD).macs == 2 * row_of(found, name, FORWARD).macs > 0
    # Images need no gradient, so the patch embedding has no product for it.
    assert row_of(found, "conv2d", BACKWARD).macs == row_of(found, "conv2d", FORWARD).macs > 0


def calls_of(function, *shapes):
    """The calls of a function of Tensors and of its backward, {(op, direction): Call}."""
    stopwatch = Stopwatch(backend.current())
    tensors = [Tensor(seeded(0).standard_normal(shape, dtype=np.float32), requires_grad=True) for shape in shapes]
    with replace_ops(lambda *what: stopwatch.call(*what, "")):
        y = function(*tensors)
        y.backward(backend.asarray(np.ones(y.shape, np.float32)))
    return {(call.name, call.direction): call for call in stopwatch.calls}


@pytest.mark.parametrize(
    "name, function, shapes, forward, backward",
    [
        # x (4, 8), W (6, 8), b (6,) → y (4, 6); dy, x, W → dx, dW, db
        ("linear", ops.linear, [(4, 8), (6, 8), (6,)], 32 + 48 + 6 + 24, 24 + 32 + 48 + 32 + 48 + 6),
        ("add", lambda x, y: x + y, [(4, 8), (4, 8)], 3 * 32, 0),       # dy is passed on
        ("add", lambda x, y: x + y, [(4, 8), (8,)], 32 + 8 + 32, 32 + 8),      # and summed for y
        ("exp", lambda x: x.exp(), [(4, 8)], 2 * 32, 3 * 32),           # dy and y → dx
        ("transpose", lambda x: x.T, [(4, 8)], 0, 0),
        ("expand", lambda x: x.expand(4, 8), [(1, 8)], 0, 32 + 8),
        ("mul", lambda x: x * x.expand(4, 8), [(1, 8)], 2 * 8 + 32, 32 + 2 * 8 + 8 + 32),
    ],
)
def test_bytes_are_inputs_results_and_what_is_saved(device, name, function, shapes, forward, backward):
    found = calls_of(function, *shapes)
    assert found[name, FORWARD].nbytes == 4 * forward
    assert found[name, BACKWARD].nbytes == 4 * backward


def test_what_is_saved_beside_inputs_and_results_is_written_only_if_it_is_recorded():
    stopwatch, x = Stopwatch(backend.CPU), np.ones((4, 8), np.float32)
    with replace_ops(lambda *what: stopwatch.call(*what, "")):
        y = ops.gelu(Tensor(x, requires_grad=True))
        with no_grad():
            ops.gelu(Tensor(x))
        y.sum().backward()
    recorded, plain, *_ = [call.nbytes for call in stopwatch.calls if call.name == "gelu"]
    assert plain == 2 * x.nbytes and recorded == 3 * x.nbytes       # the derivative


def test_gradients_are_the_same_under_the_stopwatch(device):
    model, images = vit(), seeded(1).standard_normal((2, 3, 16, 16), dtype=np.float32)

    def gradients():
        for parameter in model.parameters():
            parameter.grad = None
        ops.cross_entropy(model(images), np.array([1, 2])).backward()
        return [backend.asnumpy(parameter.grad) for parameter in model.parameters()]

    expected, stopwatch = gradients(), Stopwatch(backend.current())
    with replace_ops(lambda *what: stopwatch.call(*what, "")):
        found = gradients()
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)
    counts = Counter(call.direction for call in stopwatch.calls)
    assert counts[FORWARD] == counts[BACKWARD] > 30


def test_the_model_stays_as_it_was(device):
    """Weights, running statistics, gradients, mode, the device in use, and the engine."""
    model = create_model("resnet18", img_size=32, layers=(1, 1, 1, 1), num_classes=5).eval()
    images = seeded(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    ops.cross_entropy(model(images), np.array([1, 2])).backward()
    state, gradients, used = model.state_dict(), [p.grad for p in model.parameters()], sv.device()
    profile(model, batch_size=2, steps=2)
    assert sv.device() == used and not model.training and mode.get() == NORMAL
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients))
    for name, values in model.state_dict().items():
        np.testing.assert_array_equal(values, state[name], err_msg=name)


def test_an_error_restores_the_model_too():
    model = vit()
    weights = [parameter.data for parameter in model.parameters()]
    with pytest.raises(sv.ScratchvitError, match="images of shape"):
        profile(model, image_shape=(3, 8, 8))
    assert all(p.data is data for p, data in zip(model.parameters(), weights)) and mode.get() == NORMAL


# --- the stopwatch, by a clock that the test moves --------------------------------------------------------------------


class Clock:
    """time.perf_counter for the profiler. `queued`: seconds of work for which the device still has to be waited."""

    def __init__(self):
        self.now = self.queued = 0.0

    def perf_counter(self):
        return self.now

    def synchronize(self):
        self.now, self.queued = self.now + self.queued, 0.0


CLOCK = Clock()


@op(facts=Facts(shape=like("x"), saves=nothing, macs=0))
def slow(x: Array):
    """x, after 1 s on the host and 2 s on the device; its backward takes 4 s on the device."""
    CLOCK.now += 1
    CLOCK.queued += 2

    def backward(dy):
        CLOCK.queued += 4
        return dy * 1

    return x + 0, backward


class Slow(nn.Module):
    """Two calls of `slow`, and 10 s on the device between them, which belong to no op."""

    def __init__(self):
        self.weight = nn.Parameter(np.ones((1, 5), np.float32))

    def forward(self, x):
        x = slow(x.reshape(1, -1)[:, :5] * self.weight)
        CLOCK.queued += 10
        return slow(x)


@pytest.fixture
def clock(monkeypatch):
    """The profiler's clock, a device that has to be waited for, and accounts that take 1000 s each."""
    CLOCK.__init__()
    of = Works.of

    def accounted(*args):
        CLOCK.now += 1000
        return of(*args)

    monkeypatch.setattr(Works, "of", accounted)
    monkeypatch.setattr(profiling, "time", CLOCK)
    sv.use(dataclasses.replace(STRICT, synchronize=CLOCK.synchronize))
    yield CLOCK
    sv.use(STRICT)
    sv.use("cpu")


def test_the_stopwatch_waits_for_the_device_and_stops_for_its_accounts(clock):
    found = profile(Slow(), image_shape=(3, 4, 4), batch_size=1, steps=3)
    assert row_of(found, "slow", FORWARD).seconds == 2 * (1 + 2)
    assert row_of(found, "slow", BACKWARD).seconds == 2 * 4
    assert row_of(found, "slow", FORWARD).calls == 2 and len(found.steps) == 3
    assert sum(row.seconds for row in found.rows(MACHINE)) == 6 + 8
    assert found.timed_seconds == found.plain_seconds == 6 + 8 + 10
    assert found.share_of_ops == pytest.approx(14 / 24) and found.share_of_update == 0
    forward, backward, update = found.steps[0].phases
    assert (forward.seconds, backward.seconds, update.seconds) == (16, 8, 0)
    assert backward.start == forward.start + 16
    assert found.steps[1].start == found.steps[0].start + 24 + 24       # one between them is not timed


def test_figures_are_medians_over_the_steps(clock):
    found = profile(Slow(), image_shape=(3, 4, 4), steps=3)
    steps = [
        dataclasses.replace(step, calls=tuple(dataclasses.replace(call, seconds=seconds) for call in step.calls))
        for step, seconds in zip(found.steps, (1.0, 2.0, 100.0))
    ]
    assert row_of(dataclasses.replace(found, steps=tuple(steps)), "slow", FORWARD).seconds == 2 * 2.0


def test_an_op_without_facts_is_named():
    @op
    def mine(x: Array):
        return x * 1, lambda dy: dy

    class Own(nn.Module):
        def forward(self, x):
            return mine(x)

    with pytest.raises(sv.ScratchvitError, match="the op 'mine' has no facts"):
        profile(Own(), image_shape=(3, 4, 4), inference=True)


# --- the trace --------------------------------------------------------------------------------------------------------


def test_a_trace_has_calls_in_phases_in_steps():
    found = profile(vit(), batch_size=2, steps=2)
    content = json.loads(chrome_trace(found, MACHINE, "my track"))
    named, events = content["traceEvents"][:2], content["traceEvents"][2:]
    assert [event["args"]["name"] for event in named] == ["scratchvit", "my track"]
    assert {event["ph"] for event in events} == {"X"} and min(event["ts"] for event in events) == 0
    assert [event["name"] for event in events if event["cat"] == "step"] == ["step 1", "step 2"]

    def within(inner, outer, slack=1e-3):       # µs, since differences of floating-point numbers are rounded
        return outer["ts"] - slack <= inner["ts"] <= inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + slack

    steps, phases = ([e for e in events if e["cat"] == kind] for kind in ("step", "phase"))
    assert [phase["name"] for phase in phases] == 2 * [FORWARD, BACKWARD, UPDATE]
    assert all(sum(within(phase, step) for step in steps) == 1 for phase in phases)
    calls = [event for event in events if event["cat"] in (FORWARD, BACKWARD)]
    assert len(calls) == sum(len(step.calls) for step in found.steps)
    for call in calls:
        assert sum(within(call, phase) and phase["name"] == call["cat"] for phase in phases) == 1
    assert all(one["ts"] + one["dur"] <= other["ts"] + 1e-3 for one, other in pairwise(calls))
    qkv = next(call for call in calls if call["args"]["module"] == "blocks.0.attn.qkv")
    assert qkv["name"] == "linear" and qkv["args"]["multiply_adds"] == 2 * 17 * 32 * 96
    assert qkv["args"]["at_best_us"] > 0


def test_a_call_is_accounted_for_once(monkeypatch):
    """Later calls with arrays of the same shapes find their work, so that the accounts take little time."""
    asked = []
    monkeypatch.setattr(work, "saved", lambda *what: asked.append(what) or [])
    found = profile(vit(depth=4), batch_size=2, steps=2)
    assert len(asked) < len(found.steps[0].calls) / 4
