"""Optimisers, clipping, schedules and averages: equal to PyTorch's and timm's."""

import math

import numpy as np
import pytest

from scratchvit import Tensor, backend, nn, ops, optim
from scratchvit.errors import ScratchvitError
from tests.support.margins import assert_all_close, assert_close, rounding, ulps
from tests.support.seeds import seeded

# One entry, below and above the size at which arrays are joined, and more than one block.
SHAPES = [(1,), (7, 5), (64, 64), (40, 1000)]


def parameters(dtype=np.float32, seed=0):
    rng = seeded(seed)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]


def give_gradients(params, step):
    """Between 1 and 2 or their negatives: near 0, the sign of Adam's first step would be a matter of rounding."""
    rng = seeded((1, step))
    for p in params:
        p.grad = (rng.uniform(1, 2, p.shape) * rng.choice([-1, 1], p.shape)).astype(p.dtype)


@pytest.mark.slow
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
    theirs = [torch.nn.Parameter(torch.tensor(p.numpy()).double()) for p in ours]
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
            q.grad = None if p.grad is None else torch.tensor(p.grad).double()
        optimizer.step()
        reference.step()
    assert all(p.dtype == dtype for p in ours)
    found, expected = (torch.cat([torch.as_tensor(p.data).ravel() for p in each]) for each in (ours, theirs))
    # A step rounds the decay's factor, the product with it and the update: at most 1¼ ε of the weight together.
    assert_close(found, expected, ulps(expected, 50, dtype))


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_as_in_pytorch(dtype, max_norm):
    torch = pytest.importorskip("torch")
    ours = parameters(dtype)
    give_gradients(ours, 0)
    ours[2].grad = np.asfortranarray(ours[2].grad)
    theirs = [torch.nn.Parameter(torch.tensor(p.numpy()).double()) for p in ours]
    for p, q in zip(ours, theirs):
        q.grad = torch.tensor(np.ascontiguousarray(p.grad)).double()
    norm = optim.clip_grad_norm(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert norm.shape == () and norm.dtype == dtype
    assert_close(norm, expected, ulps(expected, 16, dtype))     # of the sum of 40,000 squares
    for p, q in zip(ours, theirs):
        assert p.grad.dtype == dtype
        assert_close(p.grad, q.grad, ulps(q.grad, 16, dtype))


def by_the_papers(name, theta, gradients, lr, decay, options):
    """What becomes of theta (float64), by the formulas as they are printed."""
    first = second = np.zeros_like(theta)
    mu, (beta1, beta2), eps = options.get("momentum", 0.0), options.get("betas", (0.9, 0.999)), options.get("eps", 1e-8)
    for t, g in enumerate(gradients, start=1):
        if name != "AdamW":
            g = g + decay * theta
        if name == "SGD":
            first = mu * first + g
            theta = theta - lr * (g + mu * first if options.get("nesterov") else first)
            continue
        first = beta1 * first + (1 - beta1) * g
        second = beta2 * second + (1 - beta2) * g**2
        step = first / (1 - beta1**t) / (np.sqrt(second / (1 - beta2**t)) + eps)
        theta = theta - lr * (step + (decay * theta if name == "AdamW" else 0))
    return theta


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.8}),
        ("SGD", {"momentum": 0.8, "nesterov": True}),
        ("Adam", {}),
        ("Adam", {"betas": (0.5, 0.7), "eps": 1e-2}),
        ("AdamW", {}),
        ("AdamW", {"betas": (0.5, 0.7), "eps": 1e-2}),
    ],
)
def test_steps_by_the_papers_formulas(device, name, options, decay):
    rng = seeded(0)
    for shape in SHAPES:
        start, gradients = rng.standard_normal(shape), rng.standard_normal((5, *shape))
        parameter = nn.Parameter(start.copy())
        optimizer = getattr(optim, name)([parameter], lr=0.05, weight_decay=decay, **options)
        for gradient in gradients:
            parameter.grad = backend.asarray(gradient)
            optimizer.step()
        expected = by_the_papers(name, start, gradients, 0.05, decay, options)
        assert_close(parameter, expected, ulps(expected, 8, np.float64))


def test_a_gradient_of_length_five_is_clipped(device):
    """3 and 4 in two parameters: the length is that of all together."""
    for most in (1.0, 2.5, 5.1, 100.0):
        params = [nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros((1, 5000)))]
        for parameter, value in zip(params, (3.0, 4.0)):
            gradient = np.zeros(parameter.shape)
            gradient.ravel()[-1] = value
            parameter.grad = backend.asarray(gradient)
        assert float(optim.clip_grad_norm(params, most)) == 5.0
        found = np.array([backend.asnumpy(parameter.grad).ravel()[-1] for parameter in params])
        assert_close(found, np.array([3, 4]) * min(1, most / (5 + 1e-6)), ulps(4.0, 1, np.float64))
    assert float(optim.clip_grad_norm([nn.Parameter(np.zeros(2))], 1.0)) == 0.0       # nobody has a gradient


@pytest.mark.parametrize("make", [lambda p: optim.AdamW(p, 0.1), lambda p: optim.SGD(p, 0.1, 0.9, 0.1, True)])
def test_a_factor_of_the_step_clips_as_clipping_in_place(device, make):
    in_place, within = ([nn.Parameter(p.data) for p in parameters(np.float64)] for _ in range(2))
    first, second = make(in_place), make(within)
    for step in range(3):
        for params in (in_place, within):
            give_gradients(params, step)
            for p in params:
                p.grad = backend.asarray(p.grad)
        before = [backend.asnumpy(p.grad).copy() for p in within]
        optim.clip_grad_norm(in_place, 1.0)
        first.step()
        second.step(optim.clip_factor(optim.grad_norm(within), 1.0))
        assert all(np.array_equal(backend.asnumpy(p.grad), g) for p, g in zip(within, before))
    for p, q in zip(in_place, within):
        assert np.abs(p.numpy() - q.numpy()).max() <= (0 if device != "gpu" else ulps(p, 8, np.float64))


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
    model = Small(seeded(0))
    decayed, kept = optim.param_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3 and decayed["params"] == [model.fc.weight]
    assert kept["weight_decay"] == 0.0 and len(kept["params"]) == 4


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: optim.SGD([], 0.1), "needs parameters"),
        (lambda p: optim.SGD(nn.Linear(2, 2), 0.1), r"model\.parameters\(\) .*, not Linear"),
        (lambda p: optim.SGD(nn.Linear(2, 2).state_dict(), 0.1), "not str"),
        (lambda p: optim.SGD([{"params": nn.Linear(2, 2)}], 0.1), "not Linear"),
        (lambda p: optim.SGD([{"lr_scale": 2.0}], 0.1), 'has "params"'),
        (lambda p: optim.SGD([np.ones(3)], 0.1), "not ndarray"),
        (lambda p: optim.SGD([*p, p[0]], 0.1), "twice"),
        (lambda p: optim.SGD(p, -0.1), "must not be negative"),
        (lambda p: optim.SGD(p, 0.1, nesterov=True), "momentum > 0"),
        (lambda p: optim.Adam(p, 0.1, betas=(0.9, 1.0)), r"\[0, 1\)"),
        (lambda p: optim.Adam([{"params": p, "decay": 1}], 0.1), "not decay"),
        (lambda p: optim.clip_grad_norm(p, 0), "positive"),
        (lambda p: optim.clip_factor(optim.grad_norm(p), -1), "positive"),
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
        assert schedule.at(20) == schedule.at(25) == pytest.approx(last, rel=1e-12)
    tenths = [optim.Schedule("step", 1.0, 9).at(s) for s in range(9)]
    assert tenths == pytest.approx([1] * 3 + [0.1] * 3 + [0.01] * 3, rel=1e-12)
    assert optim.Schedule("cosine", 2.0, 10).at(5) == pytest.approx(1.0, rel=1e-12)


def test_rates_worked_out_by_hand():
    """From 1.0 to 0.2 over twelve steps after a warm-up of two: a quarter, a half and three quarters of the way."""
    half = math.sqrt(0.5)
    for kind, rates in (
        ("cosine", [1.0, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half, 0.2]),
        ("linear", [1.0, 0.8, 0.6, 0.4, 0.2]),
        ("constant", [1.0] * 5),
    ):
        schedule = optim.Schedule(kind, 1.0, total_steps=14, warmup_steps=2, min_lr=0.2)
        assert [schedule.at(2 + 3 * quarter) for quarter in range(5)] == pytest.approx(rates, rel=1e-12), kind
    for lowest, last in ((0.05, 0.05), (0.0, 0.01)):       # a third tenth would come at the end: there is none
        thirds = optim.Schedule("step", 1.0, total_steps=14, warmup_steps=2, min_lr=lowest)
        found = [thirds.at(step) for step in (5, 6, 9, 10, 13, 14, 20)]
        assert found == pytest.approx([1.0, 0.1, 0.1, last, last, last, last], rel=1e-12)


# --- averages ---


def test_averages_are_applied_for_a_while():
    model = Small(seeded(0))
    average = optim.EMA(model, 0.75)
    first = model.fc.weight.numpy().copy()
    model.fc.weight.assign(first + 4)
    model.norm.running_mean.data += 3
    average.update()
    own = model.state_dict()
    with pytest.raises(ZeroDivisionError), average.applied():
        assert_close(model.fc.weight, first + 1, ulps(first + 4, 2))
        assert model.norm.running_mean.data.tolist() == [3, 3, 3]
        raise ZeroDivisionError
    assert all(np.array_equal(own[name], value) for name, value in model.state_dict().items())

    again = optim.EMA(model, 0.75)
    again.load_state_dict(average.state_dict())
    assert all(np.array_equal(again.averages[name], value) for name, value in average.averages.items())
    with pytest.raises(ScratchvitError, match="does not fit"):
        again.load_state_dict({"fc.weight": np.zeros((3, 4))})


def test_an_average_forgets_by_its_decay(device):
    """After n updates: decayⁿ of the first weights, and (1 - decay) decayᵏ of those of k updates ago."""
    model = Small(seeded(0))
    decay, shape = 0.75, model.fc.weight.shape
    average = optim.EMA(model, decay)
    weights = [model.fc.weight.numpy().copy(), *seeded(1).standard_normal((6, *shape), np.float32)]
    for step, weight in enumerate(weights[1:]):
        model.fc.weight.assign(weight)
        model.norm.running_mean.data += step
        average.update()
    shares = [decay**6, *[(1 - decay) * decay**k for k in range(5, -1, -1)]]
    expected = np.tensordot(shares, np.array(weights, np.float64), 1)
    assert_close(average.state_dict()["fc.weight"], expected, ulps(weights, 4))     # three roundings in an update
    np.testing.assert_array_equal(average.state_dict()["norm.running_mean"], [15] * 3)       # copied


def test_a_step_moves_a_quadratic_to_its_minimum():
    p = nn.Parameter(np.full(5000, 3.0, np.float32))
    optimizer = optim.SGD([p], lr=0.1, momentum=0.5)
    for _ in range(100):
        p.grad = p.data - 1
        optimizer.step()
    optimizer.zero_grad()
    assert p.grad is None
    assert_close(p, np.ones(5000), ulps(1.0, 8))        # nearer, a tenth of the distance is less than half an ulp


# --- both devices ---


def test_training_steps_are_the_same_on_every_device(device):
    def weights_after_steps():
        rng = seeded(0)
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
    assert_all_close(here, weights_after_steps(), rounding(weights_after_steps))
