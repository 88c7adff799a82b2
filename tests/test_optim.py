"""Optimisers, clipping, schedules and averages: equal to PyTorch's and timm's."""

import math

import numpy as np
import pytest

from scratchvit import Tensor, backend, nn, ops, optim
from scratchvit.errors import ScratchvitError
from tests.peers import import_timm

# One entry, below and above the size at which arrays are joined, and more than one block.
SHAPES = [(1,), (7, 5), (64, 64), (40, 1000)]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}


def parameters(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]


def give_gradients(params, step):
    rng = np.random.default_rng((1, step))
    for p in params:
        p.grad = rng.standard_normal(p.shape).astype(p.dtype)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
        ("Adam", {"weight_decay": 0.1}),
        ("Adam", {"betas": (0.8, 0.9), "eps": 1e-3}),
        ("AdamW", {"weight_decay": 0.1}),
    ],
)
def test_fifty_steps_as_in_pytorch(name, options, dtype):
    torch = pytest.importorskip("torch")
    ours = parameters(dtype)
    theirs = [torch.nn.Parameter(torch.tensor(p.numpy())) for p in ours]
    decay = options.get("weight_decay", 0.0)
    groups = [{"params": ours[:2], "weight_decay": 0.0}, {"params": ours[2:]}]
    their_groups = [{"params": theirs[:2], "weight_decay": 0.0}, {"params": theirs[2:]}]
    optimizer = getattr(optim, name)(groups, lr=0.01, **{**options, "weight_decay": decay})
    reference = getattr(torch.optim, name)(their_groups, lr=0.01, **{**options, "weight_decay": decay})
    for step in range(50):
        optimizer.lr = reference.param_groups[0]["lr"] = reference.param_groups[1]["lr"] = 0.01 / (1 + step)
        give_gradients(ours, step)
        if step % 3 == 0:
            ours[1].grad = None     # a parameter without a gradient keeps its own count of steps
        for p, q in zip(ours, theirs):
            q.grad = None if p.grad is None else torch.tensor(p.grad)
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs):
        assert p.dtype == dtype
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=0, atol=20 * TOLERANCE[dtype])


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_as_in_pytorch(dtype, max_norm):
    torch = pytest.importorskip("torch")
    ours = parameters(dtype)
    give_gradients(ours, 0)
    ours[2].grad = np.asfortranarray(ours[2].grad)
    theirs = [torch.nn.Parameter(torch.tensor(p.numpy())) for p in ours]
    for p, q in zip(ours, theirs):
        q.grad = torch.tensor(np.ascontiguousarray(p.grad))
    norm = optim.clip_grad_norm(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert norm.shape == () and norm.dtype == dtype
    assert float(norm) == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
    for p, q in zip(ours, theirs):
        assert p.grad.dtype == dtype
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=3 * TOLERANCE[dtype])


def test_going_on_from_a_saved_state_is_going_on():
    straight, broken = parameters(), parameters()
    first, second = optim.AdamW(straight, 0.1), optim.AdamW(broken, 0.1)
    for step in range(6):
        if step == 3:
            state = second.state_dict()
            assert sorted(state)[:2] == ["exp_avg.0", "exp_avg.1"] and state["exp_avg.1"].shape == (7, 5)
            second = optim.AdamW(broken, 0.1)
            second.load_state_dict(state)
        for params, optimizer in ((straight, first), (broken, second)):
            give_gradients(params, step)
            optimizer.step()
    assert all(np.array_equal(p.data, q.data) for p, q in zip(straight, broken))


def test_a_state_of_something_else_is_refused():
    ours = parameters()
    give_gradients(ours, 0)
    adam, sgd = optim.Adam(ours, 0.1), optim.SGD(ours, 0.1, momentum=0.9)
    adam.step()
    with pytest.raises(ScratchvitError, match=r"does not fit SGD.*exp_avg\.0.*another model or optimiser"):
        sgd.load_state_dict(adam.state_dict())
    with pytest.raises(ScratchvitError, match=r"does not fit Adam .* 2 parameters"):
        optim.Adam(ours[:2], 0.1).load_state_dict(adam.state_dict())


def test_state_is_a_copy():
    ours = parameters()
    give_gradients(ours, 0)
    optimizer = optim.Adam(ours, 0.1)
    optimizer.step()
    before = optimizer.state_dict()
    saved = {name: np.copy(value) for name, value in before.items()}
    optimizer.step()
    assert all(np.array_equal(before[name], saved[name]) for name in saved)


class Small(nn.Module):
    def __init__(self, rng):
        self.token = nn.Parameter(np.zeros((1, 1, 4), np.float32))
        self.fc = nn.Linear(4, 3, rng=rng)
        self.norm = nn.BatchNorm2d(3)

    def no_weight_decay(self):
        return {"token"}


def test_decay_only_on_matrices():
    model = Small(np.random.default_rng(0))
    decayed, kept = optim.param_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3 and decayed["params"] == [model.fc.weight]
    assert kept["weight_decay"] == 0.0 and len(kept["params"]) == 4


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: optim.SGD([], 0.1), "needs parameters"),
        (lambda p: optim.SGD([*p, p[0]], 0.1), "twice"),
        (lambda p: optim.SGD(p, -0.1), "must not be negative"),
        (lambda p: optim.SGD(p, 0.1, nesterov=True), "momentum > 0"),
        (lambda p: optim.Adam(p, 0.1, betas=(0.9, 1.0)), r"\[0, 1\)"),
        (lambda p: optim.Adam([{"params": p, "decay": 1}], 0.1), "not decay"),
        (lambda p: optim.clip_grad_norm(p, 0), "positive"),
        (lambda p: optim.Schedule("cosin", 0.1, 10), "cosine, linear, step or constant"),
        (lambda p: optim.Schedule("cosine", 0.1, 10, warmup_steps=11), "does not fit"),
        (lambda p: optim.EMA(Small(None), 1.0), r"\[0, 1\)"),
    ],
)
def test_settings_that_make_no_sense(make, text):
    with pytest.raises(ScratchvitError, match=text):
        make(parameters())


# --- learning rates ---


def test_warm_up_and_ends():
    for kind, last in [("cosine", 0.1), ("linear", 0.1), ("step", 0.1), ("constant", 1.0)]:
        schedule = optim.Schedule(kind, 1.0, total_steps=20, warmup_steps=4, min_lr=0.1)
        assert [schedule.at(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
        assert schedule.at(4) == 1.0
        assert schedule.at(20) == schedule.at(25) == pytest.approx(last)
    tenths = [optim.Schedule("step", 1.0, 9).at(s) for s in range(9)]
    assert tenths == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3)
    assert optim.Schedule("cosine", 2.0, 10).at(5) == pytest.approx(1.0)


@pytest.mark.parity
def test_cosine_as_in_pytorch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.01)
    ours = optim.Schedule("cosine", 0.3, total_steps=50, min_lr=0.01)
    for step in range(50):
        assert ours.at(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parity
def test_cosine_after_warm_up_and_averages_as_in_timm():
    import_timm()
    torch = pytest.importorskip("torch")
    scheduler, utils = pytest.importorskip("timm.scheduler"), pytest.importorskip("timm.utils")
    parameter = torch.nn.Parameter(torch.zeros(1))
    reference = scheduler.CosineLRScheduler(
        torch.optim.SGD([parameter], lr=0.3), t_initial=40, lr_min=0.01, warmup_t=10, warmup_prefix=True
    )
    ours = optim.Schedule("cosine", 0.3, total_steps=50, warmup_steps=10, min_lr=0.01)
    for step in range(10, 50):
        assert ours.at(step) == pytest.approx(reference._get_lr(step)[0], rel=1e-9)
    for step in range(10):      # timm's warm-up starts with a step of nothing; ours ends one step earlier
        assert ours.at(step) == pytest.approx(reference._get_lr(step + 1)[0])

    layer, model = torch.nn.Linear(4, 3), nn.Linear(4, 3)
    model.load_state_dict({name: value.numpy() for name, value in layer.state_dict().items()})
    theirs, average = utils.ModelEmaV2(layer, decay=0.9), optim.EMA(model, 0.9)
    for step in range(5):
        with torch.no_grad():
            layer.weight += step + 1
        model.weight.assign(layer.weight.detach().numpy())
        theirs.update(layer)
        average.update()
    for name, value in theirs.module.state_dict().items():
        np.testing.assert_allclose(average.averages[name], value.numpy(), rtol=1e-5)


# --- averages ---


def test_averages_are_applied_for_a_while():
    model = Small(np.random.default_rng(0))
    average = optim.EMA(model, 0.75)
    first = model.fc.weight.numpy().copy()
    model.fc.weight.assign(first + 4)
    model.norm.running_mean.data += 3
    average.update()
    own = model.state_dict()
    with pytest.raises(ZeroDivisionError), average.applied():
        np.testing.assert_allclose(model.fc.weight.data, first + 1, rtol=1e-6)
        assert model.norm.running_mean.data.tolist() == [3, 3, 3]
        raise ZeroDivisionError
    assert all(np.array_equal(own[name], value) for name, value in model.state_dict().items())

    again = optim.EMA(model, 0.75)
    again.load_state_dict(average.state_dict())
    assert all(np.array_equal(again.averages[name], value) for name, value in average.averages.items())
    with pytest.raises(ScratchvitError, match="does not fit"):
        again.load_state_dict({"fc.weight": np.zeros((3, 4))})


def test_a_step_moves_a_quadratic_to_its_minimum():
    p = nn.Parameter(np.full(5000, 3.0, np.float32))
    optimizer = optim.SGD([p], lr=0.1, momentum=0.5)
    for _ in range(100):
        p.grad = p.data - 1
        optimizer.step()
    optimizer.zero_grad()
    assert p.grad is None and math.isclose(float(p.data.mean()), 1, rel_tol=1e-5)


# --- both devices ---


def test_training_steps_are_the_same_on_every_device(device):
    def weights_after_steps():
        rng = np.random.default_rng(0)
        model = nn.Sequential(nn.Linear(6, 900, rng=rng), nn.LayerNorm(900), nn.Linear(900, 3, rng=rng))
        optimizers = [
            optim.AdamW(optim.param_groups(model, 0.1), 0.01),
            optim.SGD(model.parameters(), 0.1, momentum=0.9),
        ]
        average = optim.EMA(model, 0.5)
        x, y = rng.standard_normal((4, 6), dtype=np.float32), rng.integers(0, 3, 4)
        for optimizer in optimizers:
            optimizer.zero_grad()
            ops.cross_entropy(model(Tensor(x)), y).backward()
            norm = optim.clip_grad_norm(model.parameters(), 0.5)
            assert backend.asnumpy(norm).dtype == np.float32
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            average.update()
        average.load_state_dict(average.state_dict())
        return model.state_dict(), average.state_dict()

    here = weights_after_steps()
    backend.use("cpu")
    for found, expected in zip(here, weights_after_steps()):
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
