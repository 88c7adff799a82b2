"""Loss scaling: as PyTorch's GradScaler, and of use."""

import contextlib

import numpy as np
import pytest

from scratchvit import Tensor, nn, ops, optim
from scratchvit.backend import Array, array_module, asarray, asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.replay import Replay
from scratchvit.tensor import op
from tests.support import strict_array
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

SHAPES = [(1,), (7, 5), (40, 1000)]


def parameters(seed=0):
    rng = seeded(seed)
    return [nn.Parameter(rng.standard_normal(shape).astype(np.float32)) for shape in SHAPES]


@op
def to(x: Array, dtype):
    """x in another precision; its gradient comes back in x's own: what mixed precision does to a weight."""
    before = x.dtype
    return x.astype(dtype), lambda dy: dy.astype(before)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("start", "interval"), [(2.0**16, 1), (2.0**110, 7), (3e28, 2)])
@np.errstate(all="ignore")
def test_a_hundred_steps_as_pytorchs_gradscaler(start, interval):
    """Gradients that the growing factor makes overflow, and now and then one that is infinite or NaN by itself."""
    torch = pytest.importorskip("torch")
    ours = parameters()
    theirs = [torch.nn.Parameter(torch.tensor(p.numpy())) for p in ours]
    optimizer = optim.AdamW(ours, lr=0.01, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    scaler = optim.LossScaler(start, growth_interval=interval)
    their_scaler = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=interval)
    rng = seeded(1)
    skipped = 0
    for step in range(100):
        gradients = [(1e9 * rng.standard_normal(p.shape)).astype(np.float32) for p in ours]
        if step in (20, 21, 55, 90):
            gradients[step % 3].flat[-1] = np.nan if step == 21 else -np.inf
        optimizer.zero_grad()
        scaler.scale(sum((p * g).sum() for p, g in zip(ours, gradients))).backward()
        scaler.unscale(ours)
        finite = bool(np.isfinite(optim.grad_norm(ours)))
        if finite:
            optim.clip_grad_norm(ours, 5.0)
            optimizer.step()
        scaler.update(finite)
        skipped += not finite

        reference.zero_grad()
        their_scaler.scale(sum((p * torch.tensor(g)).sum() for p, g in zip(theirs, gradients))).backward()
        their_scaler.unscale_(reference)
        torch.nn.utils.clip_grad_norm_(theirs, 5.0)
        their_scaler.step(reference)
        their_scaler.update()
        assert scaler.factor == their_scaler.get_scale(), step
    assert 8 <= skipped <= 60       # the 4 that are infinite, and those of the factor's own making
    # Two programs, and a hundred steps that round a weight twice: four hundred roundings, up and down, are as twenty.
    found, expected = (torch.cat([torch.as_tensor(p.data).ravel() for p in each]) for each in (ours, theirs))
    assert_close(found, expected, ulps(expected, 20))


def test_it_saves_what_float16_loses(device):
    """Two layers in float16 under weights in float32: a gradient of 2e-9 is 0 there, unless it is scaled."""
    rng = seeded(0)
    x, first, second = (rng.uniform(0.5, 1, shape).astype(np.float32) for shape in ((4, 8), (8, 6), (6, 3)))

    def gradients(dtype, scaler=None):
        weights = [nn.Parameter(first), nn.Parameter(second)]
        hidden = Tensor(asarray(x.astype(dtype))) @ to(weights[0], dtype)
        loss = to(hidden @ to(weights[1], dtype), np.float32).sum() * 1e-9
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale(weights)
        assert all(weight.grad.dtype == np.float32 for weight in weights)
        return [Tensor(weight.grad).numpy() for weight in weights]

    exact, lost, saved = gradients(np.float32), gradients(np.float16), gradients(np.float16, optim.LossScaler(2.0**16))
    for expected, without, scaled in zip(exact, lost, saved):
        assert np.abs(expected).min() > 1e-9 and not without.any()
        assert_close(scaled, expected, ulps(expected, 3, np.float16))       # operands, products and sums in float16


def test_it_grows_and_shrinks_and_goes_on_from_its_state():
    scaler = optim.LossScaler(8.0, growth_interval=3)
    factors = []
    for finite in (True, True, False, True, True, True, True, True):
        scaler.update(finite)
        factors.append(scaler.factor)
        again = optim.LossScaler(growth_interval=3)
        again.load_state_dict(scaler.state_dict())
        scaler = again
    assert factors == [8, 8, 4, 4, 4, 8, 8, 8]
    largest = optim.LossScaler(2.0**127, growth_interval=1)
    largest.update(True)
    assert largest.factor == 2.0**127


def test_only_one_flag_is_read(device):
    params = parameters()
    scaler = optim.LossScaler()
    with strict_array.no_transfers() if device == "strict" else contextlib.nullcontext():
        scaler.scale(sum((p * p).sum() for p in params)).backward()
        scaler.unscale(params)
        finite = array_module(params[0].grad).isfinite(optim.grad_norm(params))
    assert bool(finite)
    for p in params:
        np.testing.assert_array_equal(Tensor(p.grad).numpy(), 2 * p.numpy())     # a power of two rounds nothing


def test_the_norm_tells_of_every_entry(device):
    with np.errstate(all="ignore"):
        for value in (np.nan, np.inf, -np.inf, 1e30):
            for place in range(len(SHAPES)):
                params = parameters()
                for p in params:
                    p.grad = ops.mul(p, 1.0).data
                assert np.isfinite(float(optim.grad_norm(params)))
                params[place].grad.reshape(-1)[-1] = value
                assert not np.isfinite(float(optim.grad_norm(params)))
    half = nn.Parameter(np.full(1000, 30, np.float16))
    half.grad = half.data
    assert_close(optim.grad_norm([half]), 30 * 1000**0.5, ulps(30 * 1000**0.5, 4))       # its square is beyond float16


def test_a_replayed_backward_has_the_factor_of_its_own_step(cuda):
    """One that overflows is halved until the gradients are finite, also where all of it is one captured graph."""
    parameter, scaler = nn.Parameter(np.full(5, 3, np.float32)), optim.LossScaler(2.0**126, growth_interval=3)

    def backward(x):
        parameter.grad = None
        scaler.scale((parameter * x).sum()).backward()
        scaled = parameter.grad.copy()
        scaler.unscale([parameter])
        return scaled, parameter.grad, optim.grad_norm([parameter])

    def unexpected(error):
        raise error

    replay, x, powers = Replay(backward, unexpected), asarray(np.full(5, 16, np.float32)), []
    for _ in range(12):
        scaled, gradient, norm = (asnumpy(array) for array in replay(x))
        power = int(np.log2(scaler.factor))
        assert (scaled == (2.0 ** (4 + power) if power < 124 else np.inf)).all()
        assert (gradient == (16 if power < 124 else np.inf)).all()
        powers.append(power)
        scaler.update(bool(np.isfinite(norm)))
    assert powers == [126, 125, 124, 123, 123, 123, 124, 123, 123, 123, 124, 123]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-50])
def test_factors_that_make_no_sense(factor):
    with pytest.raises(ScratchvitError, match="must be positive and in the range of float32"):
        optim.LossScaler(factor)


def test_what_it_cannot_scale():
    with pytest.raises(ScratchvitError, match="growth_interval must be at least 1, not 0"):
        optim.LossScaler(growth_interval=0)
    half = nn.Parameter(np.ones(3, np.float16))
    half.grad = half.data
    with pytest.raises(ScratchvitError, match="parameters in float32"):
        optim.LossScaler().unscale([half])
