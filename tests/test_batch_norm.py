"""Batch norm step by step: outputs, gradients and running statistics; the frozen one; what is refused."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from tests.support import model_parity
from tests.support.seeds import seeded

# Small; planes of several blocks; images of several blocks; small planes in several blocks; no plane at all.
SHAPES = [(3, 4, 5, 7), (2, 6, 200, 200), (6, 64, 40, 40), (70, 64, 8, 8), (16, 40, 1, 1)]


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


def assert_close(ours, theirs, tolerance):
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        model_parity.assert_close(a, b, tolerance, f"array {number}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_is_the_definition(device, shape):
    norm = randomise(nn.BatchNorm2d(shape[1]))
    x, dy = next(batches(shape))
    mean, var = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    results = forward_and_backward(norm, x, dy)
    assert_close(results, exact(x, dy, norm.weight.numpy(), norm.bias.numpy()), 1e-5)
    assert all(array.dtype == np.float32 for array in results)
    x = x.astype(np.float64)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.9 * mean + 0.1 * x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 * var + 0.1 * x.var((0, 2, 3), ddof=1), rtol=1e-5)
    assert norm.num_batches_tracked.item() == 1


def test_a_variance_far_below_eps_keeps_its_digits(device):
    norm = nn.BatchNorm2d(1, momentum=1.0)
    x = seeded(0).normal(0, 1e-6, (8, 1, 4, 4)).astype(np.float32)
    norm(sv.Tensor(x))
    np.testing.assert_allclose(norm.running_var.numpy(), x.astype(np.float64).var(ddof=1), rtol=1e-5)


def test_without_momentum_the_statistics_are_the_mean_of_all_batches(device):
    norm = nn.BatchNorm2d(3, momentum=None)
    images = [x for x, _ in batches((4, 3, 5, 5))]
    for x in images:
        norm(sv.Tensor(x))
    expected = np.mean([x.mean((0, 2, 3), dtype=np.float64) for x in images], axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), expected, rtol=1e-5, atol=1e-6)
    expected = np.mean([x.var((0, 2, 3), dtype=np.float64, ddof=1) for x in images], axis=0)
    np.testing.assert_allclose(norm.running_var.numpy(), expected, rtol=1e-5)


def test_memory_order_does_not_matter():
    x, dy = next(batches((6, 64, 40, 40)))
    norm = randomise(nn.BatchNorm2d(64))
    for mode in (True, False):
        norm.train(mode)
        expected = forward_and_backward(norm, x, dy)
        last = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, dy)]
        assert_close(forward_and_backward(norm, *last), expected, 1e-5)
        repeated = np.broadcast_to(dy[:, :, :1, :1], dy.shape)
        assert_close(forward_and_backward(norm, x, repeated), forward_and_backward(norm, x, repeated.copy()), 1e-4)


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
    assert_close([y.numpy(), tensor.grad, norm.weight.grad, norm.bias.grad], expected, 0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frozen_is_evaluation_with_constants(device, shape):
    live, frozen = randomise(nn.BatchNorm2d(shape[1])).eval(), nn.FrozenBatchNorm2d(shape[1])
    frozen.load_state_dict(live.state_dict())               # with num_batches_tracked, which it has no use for
    before = frozen.state_dict()
    assert list(before) == ["weight", "bias", "running_mean", "running_var"] and not list(frozen.parameters())
    x, dy = next(batches(shape))
    y, dx, *_ = forward_and_backward(live, x, dy)
    for mode in (True, False):
        assert_close(forward_and_backward(frozen.train(mode), x, dy), [y, dx], 1e-6)
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
    with pytest.raises(ValueError, match=r"one value per channel \(x \(1, 4, 1, 1\)\).*more than one image"):
        norm(np.ones((1, 4, 1, 1), np.float32))
    assert norm.num_batches_tracked.item() == 0 and not norm.running_mean.numpy().any()
    assert norm.eval()(np.ones((1, 4, 1, 1), np.float32)).shape == (1, 4, 1, 1)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, nn.FrozenBatchNorm2d])
def test_another_number_of_channels_is_refused(layer):
    with pytest.raises(ValueError, match=r"x \(2, 3, 2, 2\) has 3 channels, the norm's arrays have shape \(4,\)"):
        layer(4)(np.ones((2, 3, 2, 2), np.float32))


def test_without_statistics_there_is_only_training():
    x = np.ones((2, 3, 2, 2), np.float32)
    assert ops.batch_norm(x, None, None, training=True).shape == x.shape
    with pytest.raises(ValueError, match="without running statistics"):
        ops.batch_norm(x, None, None)


@pytest.mark.parity
@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pytorch_gives_the_same_step_by_step(shape, momentum):
    torch = pytest.importorskip("torch")
    norm = randomise(nn.BatchNorm2d(shape[1], momentum=momentum))
    peer = torch.nn.BatchNorm2d(shape[1], momentum=momentum)
    peer.load_state_dict({name: torch.from_numpy(value) for name, value in norm.state_dict().items()})
    for step, (x, dy) in enumerate(batches(shape)):
        if step == 3:
            norm.eval(), peer.eval()
        peer.zero_grad()
        x_peer = torch.from_numpy(x).requires_grad_()
        y_peer = peer(x_peer)
        y_peer.backward(torch.from_numpy(dy))
        theirs = [y_peer.detach(), x_peer.grad, peer.weight.grad, peer.bias.grad]
        assert_close(forward_and_backward(norm, x, dy), [t.numpy() for t in theirs], 1e-5)
        state = norm.state_dict()
        assert state["num_batches_tracked"] == peer.num_batches_tracked.item() == min(step + 1, 3)
        for name in ("running_mean", "running_var"):
            np.testing.assert_allclose(state[name], getattr(peer, name).numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
