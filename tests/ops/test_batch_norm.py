"""Batch norm step by step: outputs, gradients and running statistics; the frozen one; what is refused."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from tests.support.margins import assert_all_close, assert_close, rounding
from tests.support.seeds import seeded

# Small; planes of several blocks; images of several blocks; small planes in several blocks; no plane at all.
SHAPES = [(3, 4, 5, 7), (2, 12, 120, 120), (6, 64, 40, 40), (70, 64, 8, 8), (16, 40, 1, 1)]


def batches(shape, steps=4):
    """Activations whose channels differ in mean and, by a factor of 100, in deviation."""
    rng = seeded(0)
    C = shape[1]
    mean, std = np.linspace(-3, 3, C).reshape(C, 1, 1), np.logspace(-1, 1, C).reshape(C, 1, 1)
    for _ in range(steps):
        yield (mean + std * rng.standard_normal(shape)).astype(np.float32), rng.standard_normal(shape, np.float32)


def randomise(norm, seed=1):
    rng = seeded(seed)
    for name, tensor in vars(norm).items():
        if name in ("weight", "bias", "running_mean"):
            tensor.data[...] = sv.backend.asarray(rng.standard_normal(tensor.shape), np.float32)
        elif name == "running_var":
            tensor.data[...] = sv.backend.asarray(rng.uniform(0.5, 2, tensor.shape), np.float32)
    return norm


def forward_and_backward(norm, x, dy):
    """(y, dx, dweight, dbias) as NumPy arrays."""
    norm.zero_grad()
    x = sv.Tensor(x, requires_grad=True)
    y = norm(x)
    y.backward(dy)
    return [y.numpy(), *(sv.backend.asnumpy(t.grad) for t in (x, *norm.parameters()))]


def exact(x, dy, weight, bias, eps=1e-5):
    """The same for training by the definition, in float64, going back through mean and variance one by one."""
    x, dy, weight, bias = (np.asarray(a, np.float64) for a in (x, dy, weight, bias))
    n, over = x.size / x.shape[1], (0, 2, 3)
    weight, bias = weight[:, None, None], bias[:, None, None]
    centred = x - x.mean(over, keepdims=True)
    var = (centred**2).mean(over, keepdims=True)
    r = (var + eps) ** -0.5
    d_centred = dy * weight * r
    d_var = (dy * weight * centred).sum(over, keepdims=True) * -0.5 * r**3
    d_centred += d_var * 2 * centred / n
    dx = d_centred - d_centred.mean(over, keepdims=True)
    return [weight * centred * r + bias, dx, (dy * centred * r).sum(over), dy.sum(over)]


def statistics(mean, var, images, momentum=0.1):
    """The running mean and variance after these batches, op by op: for their error bounds."""
    mean, var = sv.Tensor(mean), sv.Tensor(var)
    for step, x in enumerate(map(sv.Tensor, images), start=1):
        share = momentum or 1 / step
        mean = mean * (1 - share) + x.mean((0, 2, 3)) * share
        var = var * (1 - share) + x.var((0, 2, 3)) * share
    return [mean, var]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_is_the_definition(device, shape):
    norm = randomise(nn.BatchNorm2d(shape[1]))
    x, dy = next(batches(shape))
    mean, var = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    results = forward_and_backward(norm, x, dy)
    assert all(array.dtype == np.float32 for array in results)
    assert norm.num_batches_tracked.item() == 1
    found, wide = [norm.running_mean, norm.running_var], x.astype(np.float64)
    expected = [0.9 * mean + 0.1 * wide.mean((0, 2, 3)), 0.9 * var + 0.1 * wide.var((0, 2, 3), ddof=1)]
    assert_all_close(found, expected, rounding(lambda: statistics(mean, var, [x])), "statistics")
    bounds = rounding(lambda: forward_and_backward(norm, x, dy))
    assert_all_close(results, exact(x, dy, norm.weight.numpy(), norm.bias.numpy()), bounds)


def test_a_variance_far_below_eps_keeps_its_digits(device):
    norm = nn.BatchNorm2d(1, momentum=1.0)
    x = seeded(0).normal(0, 1e-6, (8, 1, 4, 4)).astype(np.float32)
    norm(sv.Tensor(x))
    expected = x.astype(np.float64).var((0, 2, 3), ddof=1)
    assert_close(norm.running_var, expected, rounding(lambda: sv.Tensor(x).var((0, 2, 3)))[""])


def test_without_momentum_the_statistics_are_the_mean_of_all_batches(device):
    norm = nn.BatchNorm2d(3, momentum=None)
    images = [x for x, _ in batches((4, 3, 5, 5))]
    for x in images:
        norm(sv.Tensor(x))
    expected = [
        np.mean([x.mean((0, 2, 3), dtype=np.float64) for x in images], axis=0),
        np.mean([x.var((0, 2, 3), dtype=np.float64, ddof=1) for x in images], axis=0),
    ]
    bounds = rounding(lambda: statistics(np.zeros(3, np.float32), np.ones(3, np.float32), images, momentum=None))
    assert_all_close([norm.running_mean, norm.running_var], expected, bounds)


def test_memory_order_does_not_matter():
    x, dy = next(batches((6, 64, 40, 40)))
    norm = randomise(nn.BatchNorm2d(64))
    last = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, dy)]
    for mode in (True, False):
        norm.train(mode)
        expected = forward_and_backward(norm, x, dy)
        bounds = rounding(lambda: forward_and_backward(norm, x, dy))
        assert_all_close(forward_and_backward(norm, *last), expected, bounds, f"train={mode}")


def test_a_gradient_that_is_one_number_a_plane_is_as_its_copy():
    """As an average of the map sends it back. A small map: over 40×40 equal terms, sums are off by 46 ε (issue 13)."""
    x, dy = next(batches((6, 64, 4, 4)))
    norm = randomise(nn.BatchNorm2d(64))
    repeated = np.broadcast_to(dy[:, :, :1, :1], dy.shape)
    for mode in (True, False):
        norm.train(mode)
        expected = forward_and_backward(norm, x, repeated.copy())
        bounds = rounding(lambda: forward_and_backward(norm, x, repeated))
        assert_all_close(forward_and_backward(norm, x, repeated), expected, bounds, f"train={mode}")


def test_what_a_step_saved_survives_the_next():
    """Two batches go forward before the first goes back, in evaluation with training between them."""
    norm = randomise(nn.BatchNorm2d(4)).eval()
    (x, dy), (other, _) = batches((3, 4, 5, 7), steps=2)
    expected = forward_and_backward(norm, x, dy)
    norm.zero_grad()
    tensor = sv.Tensor(x, requires_grad=True)
    y = norm(tensor)
    norm.train()(other)
    y.backward(dy)
    found = [y.numpy(), tensor.grad, norm.weight.grad, norm.bias.grad]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frozen_is_evaluation_with_constants(device, shape):
    live, frozen = randomise(nn.BatchNorm2d(shape[1])).eval(), nn.FrozenBatchNorm2d(shape[1])
    frozen.load_state_dict(live.state_dict())               # with num_batches_tracked, which it has no use for
    before = frozen.state_dict()
    assert list(before) == ["weight", "bias", "running_mean", "running_var"] and not list(frozen.parameters())
    x, dy = next(batches(shape))
    y, dx, *_ = forward_and_backward(live, x, dy)
    bounds = rounding(lambda: forward_and_backward(frozen, x, dy))
    for mode in (True, False):
        assert_all_close(forward_and_backward(frozen.train(mode), x, dy), [y, dx], bounds)
    assert all(np.array_equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_frozen_keeps_nothing_of_its_input():
    import weakref

    norm = randomise(nn.FrozenBatchNorm2d(4))
    x = sv.Tensor(next(batches((3, 4, 5, 7)))[0], requires_grad=True)
    between = x * 2
    kept = weakref.ref(between.data)
    y = norm(between)
    del between
    assert kept() is None
    y.sum().backward()
    assert x.grad.shape == (3, 4, 5, 7)


def test_a_state_may_lack_the_counter_and_nothing_else():
    norm, frozen = nn.BatchNorm2d(3), randomise(nn.FrozenBatchNorm2d(3))
    assert norm.load_state_dict(frozen.state_dict()) == ([], [])
    assert np.array_equal(norm.weight.numpy(), frozen.weight.numpy())
    state = {**frozen.state_dict(), "extra": np.zeros(1)}
    del state["running_var"]
    with pytest.raises(sv.ScratchvitError, match=r"1 missing: running_var; 1 unexpected: extra"):
        norm.load_state_dict(state)


def test_one_value_per_channel_is_refused_and_not_counted():
    norm = nn.BatchNorm2d(4)
    with pytest.raises(ValueError, match=r"more than one value per channel, but .* \(1, 4, 1, 1\): use more than one"):
        norm(np.ones((1, 4, 1, 1), np.float32))
    assert norm.num_batches_tracked.item() == 0 and not norm.running_mean.numpy().any()
    assert norm.eval()(np.ones((1, 4, 1, 1), np.float32)).shape == (1, 4, 1, 1)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, nn.FrozenBatchNorm2d])
def test_another_number_of_channels_is_refused(layer):
    with pytest.raises(ValueError, match=r"x \(2, 3, 2, 2\) has 3 channels, but .* has shape \(4,\)"):
        layer(4)(np.ones((2, 3, 2, 2), np.float32))


def test_without_statistics_there_is_only_training():
    x = np.ones((2, 3, 2, 2), np.float32)
    assert ops.batch_norm(x, None, None, training=True).shape == x.shape
    with pytest.raises(ValueError, match="needs running statistics"):
        ops.batch_norm(x, None, None)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pytorch_gives_the_same_step_by_step(shape, momentum):
    torch = pytest.importorskip("torch")
    norm = randomise(nn.BatchNorm2d(shape[1], momentum=momentum))
    peer = torch.nn.BatchNorm2d(shape[1], momentum=momentum)
    first = norm.state_dict()
    peer.load_state_dict({name: torch.from_numpy(value) for name, value in first.items()})
    peer.double()
    images = []
    for step, (x, dy) in enumerate(batches(shape)):
        if step == 3:
            norm.eval(), peer.eval()
        else:
            images.append(x)
        peer.zero_grad()
        x_peer = torch.from_numpy(x).double().requires_grad_()
        y_peer = peer(x_peer)
        y_peer.backward(torch.from_numpy(dy).double())
        theirs = [y_peer.detach(), x_peer.grad, peer.weight.grad, peer.bias.grad]
        found = forward_and_backward(norm, x, dy)
        state = norm.state_dict()
        assert state["num_batches_tracked"] == peer.num_batches_tracked.item() == min(step + 1, 3)
        bounds = rounding(lambda: statistics(first["running_mean"], first["running_var"], images, momentum))
        ours, peers = ([s["running_mean"], s["running_var"]] for s in (state, peer.state_dict()))
        assert_all_close(ours, peers, bounds, f"statistics after step {step}")
        reached = {name: value.copy() for name, value in state.items()}
        bounds = rounding(lambda x=x, dy=dy: forward_and_backward(norm, x, dy))
        norm.load_state_dict(reached)
        assert_all_close(found, theirs, bounds, f"step {step}")
