"""The optimiser whose state is divided among ranks (ZeRO-1) makes the steps of one process."""

from __future__ import annotations

import re

import numpy as np
import pytest

from scratchvit import nn, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.errors import ScratchvitError, WrongState, WrongValue
from scratchvit.models import create_model
from scratchvit.optim import EMA, SGD, Adam, AdamW, Decision, LossScaler, Sharded, clip_factor, grad_norm, param_groups
from scratchvit.parallel.buckets import Buckets
from scratchvit.precision import autocast
from tests.support.margins import assert_close, ulps
from tests.support.ranks import RankFailed, run_ranks
from tests.support.seeds import seeded

# Parameters of one entry, parts of a piece, larger than one, and alone in a bucket; pieces below and above the size at
# which arrays are joined for a step, and more than a block of one.
SHAPES = [(1,), (7, 5), (3,), (64, 65), (1,), (2, 3, 5), (40, 1000), (5,)]
FROZEN = 5
MAKERS = {
    "adamw": lambda groups: AdamW(groups, 0.01),
    "adam": lambda groups: Adam(groups, 0.01, betas=(0.8, 0.9), weight_decay=0.1),
    "sgd": lambda groups: SGD(groups, 0.01),
    "nesterov": lambda groups: SGD(groups, 0.01, 0.9, 0.1, nesterov=True),
}


@pytest.fixture(autouse=True)
def three_buckets(monkeypatch):
    """Not one of 4 MB, which would have all of these parameters."""
    monkeypatch.setattr("scratchvit.parallel.buckets.BUCKET_BYTES", 1 << 16)


def parameters(dtype=np.float32):
    rng = seeded(0)
    found = [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    found[FROZEN].requires_grad = False
    return found


def groups_of(params):
    """Groups with their own decay and rate, in another order than the parameters."""
    return [
        {"params": params[4:], "weight_decay": 0.2, "lr_scale": 0.5},
        {"params": params[:2], "weight_decay": 0.0},
        {"params": params[2:4]},
    ]


def give_gradients(params, step, rank):
    """What a rank adds to the gradients. The parameter before the last has one in every other step only."""
    rng = seeded((1, step, rank))
    for number, p in enumerate(params):
        p.grad = asarray(rng.standard_normal(p.shape).astype(p.dtype)) if number != FROZEN else None
    if step % 2:
        params[-2].grad = None
    if step == 2 and rank == 1:
        params[0].grad[...] = np.inf


def steps_of_one(make, ranks, count, params, optimizer, decision):
    """The same in one process, with the gradients of all ranks, added in their order."""
    for step in range(count):
        sums = None
        for rank in range(ranks):
            give_gradients(params, step, rank)
            mine = [p.grad for p in params]
            sums = mine if sums is None else [None if a is None else a + b for a, b in zip(sums, mine)]
        for p, gradient in zip(params, sums):
            p.grad = gradient
        decision.judge(grad_norm(params), asarray(np.float32(0)))
        optimizer.lr = 0.01 / (1 + step)
        optimizer.step(asarray(np.asarray(0.5, params[0].dtype)), decision)


def steps_of_ranks(ranks, count, params, buckets, optimizer, decision):
    for step in range(count):
        give_gradients(params, step, ranks.rank)
        buckets.finish()
        decision.judge(optimizer.grad_norm(), asarray(np.float32(0)))
        optimizer.lr = 0.01 / (1 + step)
        optimizer.step(asarray(np.asarray(0.5, params[0].dtype)), decision)


def same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name
        assert np.shape(found[name]) == np.shape(expected[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", MAKERS)
def test_bit_for_bit_the_steps_of_one_process(device, name, size, dtype):
    """With groups, a frozen parameter, one without a gradient in some steps, a skipped step, and a factor."""
    def steps(ranks):
        params, decision = parameters(dtype), Decision()
        buckets = Buckets(params, ranks, sharded=True)
        optimizer = Sharded(MAKERS[name], groups_of(params), buckets)
        steps_of_ranks(ranks, 5, params, buckets, optimizer, decision)
        return [p.numpy() for p in params], optimizer.state_dict(), decision.read().skipped

    params, decision = parameters(dtype), Decision()
    alone = MAKERS[name](groups_of(params))
    steps_of_one(MAKERS[name], size, 5, params, alone, decision)
    results = run_ranks(size, steps)
    for values, _, skipped in results:
        assert skipped == decision.read().skipped == 1
        for found, p in zip(values, params):
            assert np.array_equal(found, p.numpy()) and found.dtype == dtype
    same(results[0][1], alone.state_dict())
    assert [state for _, state, _ in results[1:]] == [{}] * (size - 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_norm_is_that_of_one_process(device, dtype):
    def norm(ranks):
        params = parameters(dtype)
        buckets = Buckets(params, ranks, sharded=True)
        optimizer = Sharded(MAKERS["sgd"], groups_of(params), buckets)
        give_gradients(params, 1, ranks.rank)
        buckets.finish()
        return optimizer.grad_norm()

    exact = []
    for rank in range(3):
        params = parameters(dtype)
        give_gradients(params, 1, rank)
        exact.append([asnumpy(p.grad).astype(np.float64) for p in params if p.grad is not None])
    expected = np.sqrt(sum(np.square(sum(of_ranks)).sum() for of_ranks in zip(*exact)))
    found = run_ranks(3, norm)
    assert all(one.shape == () and one.dtype == dtype and one == found[0] for one in found)
    # Sums of two rounded numbers, of which √(Σ x²) averages the errors; squares, their sum (16 ulps as in
    # test_clipping_as_in_pytorch), and the root and square of a rank's part.
    assert_close(found[0], expected, ulps(expected, 18, dtype))


def test_the_sum_over_ranks_adds_no_rounding_to_the_norm():
    """Of a rank with one entry v, the norm is v itself."""
    def norms(ranks):
        parameter = nn.Parameter(np.zeros(2, np.float32))
        buckets = Buckets([parameter], ranks, sharded=True)
        optimizer, found = Sharded(MAKERS["sgd"], [parameter], buckets), []
        for gradient in gradients:
            parameter.grad = gradient * (ranks.rank == 0)
            buckets.finish()
            found.append(float(optimizer.grad_norm()))
        return found

    gradients = seeded(0).uniform(1, 2, (50, 2)).astype(np.float32)
    expected = np.hypot(*gradients.T.astype(np.float64)).astype(np.float32).tolist()
    assert run_ranks(2, norms) == [expected] * 2


def test_a_norm_that_is_not_finite_is_so_on_all_ranks():
    def norm(ranks):
        params = parameters()
        buckets = Buckets(params, ranks, sharded=True)
        optimizer = Sharded(MAKERS["sgd"], groups_of(params), buckets)
        give_gradients(params, 0, ranks.rank)
        if ranks.rank == 2:
            params[3].grad[5, 7] = np.nan
        buckets.finish()
        return float(optimizer.grad_norm())

    assert np.isnan(run_ranks(4, norm)).all()


def test_ranks_without_a_piece():
    """Four ranks, three numbers: the last rank has padding alone."""
    def step(ranks):
        params = [nn.Parameter(np.arange(3, dtype=np.float32))]
        buckets = Buckets(params, ranks, sharded=True)
        optimizer = Sharded(lambda groups: SGD(groups, 0.5, momentum=0.9), params, buckets)
        params[0].grad = np.full(3, ranks.rank, np.float32)
        buckets.finish()
        norm = float(optimizer.grad_norm())
        optimizer.step()
        return params[0].numpy().tolist(), norm, optimizer.state_dict()

    results = run_ranks(4, step)
    assert all(values == [-3, -2, -1] and np.isclose(norm, 6 * np.sqrt(3)) for values, norm, _ in results)
    assert results[0][2]["momentum_buffer.0"].tolist() == [6, 6, 6]


def test_each_rank_keeps_its_share_of_the_moments():
    def bytes_of(ranks):
        params = parameters()
        buckets = Buckets(params, ranks, sharded=True)
        optimizer = Sharded(MAKERS["adamw"], groups_of(params), buckets)
        steps_of_ranks(ranks, 1, params, buckets, optimizer, Decision())
        slots = [*optimizer._whole._slots, *optimizer._part._slots]
        arrays = [moment for slot in slots for moment in slot.moments]
        assert all(moment.base is None for moment in arrays)      # no view of something larger
        return sum(moment.nbytes for moment in arrays), repr(optimizer)

    learned = sum(int(np.prod(shape)) for number, shape in enumerate(SHAPES) if number != FROZEN)
    for size in (1, 2, 4):
        found = run_ranks(size, bytes_of)
        assert sum(count for count, _ in found) == 2 * 4 * learned
        # Parameters begin at multiples of 64 numbers, so a rank's part of the three buckets may have fewer gaps.
        assert max(count for count, _ in found) <= 2 * 4 * ((learned + 63 * len(SHAPES)) / size + 3)
        own = [int(re.search(r"of which ([\d,]+) are those of rank", text)[1].replace(",", "")) for _, text in found]
        assert [count for count, _ in found] == [8 * number for number in own]


def test_from_three_ranks_to_four_to_one_process_to_two():
    """The state is the same, bit for bit, and so are the steps that follow."""
    make = MAKERS["adamw"]

    def session(state, values, first, count):
        def of_rank(ranks):
            params, decision = parameters(), Decision()
            for p, value in zip(params, values or []):
                p.overwrite(value)
            buckets = Buckets(params, ranks, sharded=True)
            optimizer = Sharded(make, groups_of(params), buckets)
            if state is not None:
                optimizer.load_state_dict(state)
                again = optimizer.state_dict()
                if ranks.rank == 0:
                    same(again, state)
            for step in range(first, first + count):
                give_gradients(params, step, rank=0)
                for p in params:
                    if p.grad is not None:
                        p.grad *= ranks.rank == 0        # the sum is the same on any number of ranks
                buckets.finish()
                decision.judge(optimizer.grad_norm(), np.float32(0))
                optimizer.step(None, decision)
            return optimizer.state_dict(), [p.numpy() for p in params]
        return of_rank

    params, decision = parameters(), Decision()
    alone = make(groups_of(params))

    def step_alone(step):
        give_gradients(params, step, rank=0)
        decision.judge(grad_norm(params), np.float32(0))
        alone.step(None, decision)

    state, values = run_ranks(3, session(None, None, 0, 2))[0]
    state, values = run_ranks(4, session(state, values, 2, 2))[0]
    for step in range(4):
        step_alone(step)
    same(state, alone.state_dict())
    assert all(np.array_equal(value, p.numpy()) for value, p in zip(values, params))
    other = make(groups_of(parameters()))
    other.load_state_dict(state)
    same(other.state_dict(), state)
    state, values = run_ranks(2, session(other.state_dict(), values, 4, 2))[0]
    for step in range(4, 6):
        step_alone(step)
    same(state, alone.state_dict())
    assert all(np.array_equal(value, p.numpy()) for value, p in zip(values, params))


def test_states_that_are_refused():
    def load(state_of):
        def of_rank(ranks):
            params = parameters()
            optimizer = Sharded(MAKERS["adamw"], groups_of(params), Buckets(params, ranks, sharded=True))
            optimizer.load_state_dict(state_of(ranks.rank))
        return of_rank

    params = parameters()
    alone = MAKERS["adamw"](groups_of(params))
    steps_of_one(MAKERS["adamw"], 1, 1, params, alone, Decision())
    state = alone.state_dict()
    with pytest.raises(RankFailed, match="the ranks were given different states of the optimiser"):
        run_ranks(2, load(lambda rank: {} if rank else state))
    with pytest.raises(RankFailed, match=r"does not fit AdamW and its 8 parameters \(first difference: exp_avg.0\)"):
        run_ranks(2, load(lambda rank: {**state, "exp_avg.0": np.zeros(2)}))


def test_calls_that_are_refused():
    def without(ranks):
        params = parameters()
        Sharded(MAKERS["adamw"], params, Buckets(params[1:], ranks, sharded=True))

    def replaced(ranks):
        params = parameters()
        optimizer = Sharded(MAKERS["adamw"], params, Buckets(params, ranks, sharded=True))
        params[2].data = params[2].data.copy()
        optimizer.step()

    def twice(ranks):
        params = parameters()
        Sharded(MAKERS["adamw"], [*params, params[0]], Buckets(params, ranks, sharded=True))

    for wrong, kind, sentence in [
        (without, WrongValue, "Sharded: parameter 0 of its groups, of shape (1,), is not in the buckets"),
        (replaced, WrongState, "Sharded: a parameter was given another array after the optimiser was made"),
        (twice, ScratchvitError, "a parameter occurs twice in the optimiser's groups"),
    ]:
        with pytest.raises(RankFailed, match=re.escape(sentence)) as error:
            run_ranks(2, wrong)
        assert isinstance(error.value.__cause__, kind)


# --- a model ----------------------------------------------------------------------------------------------------------

STEPS, BATCH = 30, 12


def vit():
    return create_model(
        "vit_tiny_patch16_224", img_size=8, in_chans=1, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=4
    )


def thirty_steps(ranks, sharded, clip):
    """Weights, averages and norms of a ViT whose batches are divided among the ranks."""
    model, rng, decision = vit(), seeded(3), Decision()
    groups = param_groups(model, weight_decay=0.3, layer_decay=0.8)
    buckets = Buckets(model.parameters(), ranks, sharded=True)
    make = lambda groups: AdamW(groups, 3e-3, eps=1e-4)     # noqa: E731
    optimizer = Sharded(make, groups, buckets) if sharded else make(groups)
    ema, scaler, norms = EMA(model, 0.9), LossScaler(2.0**10), []
    for step in range(STEPS):
        images, labels = rng.standard_normal((BATCH, 1, 8, 8)).astype(np.float32), rng.integers(0, 4, BATCH)
        rows = slice(BATCH * ranks.rank // ranks.size, BATCH * (ranks.rank + 1) // ranks.size)
        optimizer.lr = 3e-3 * (1 - step / STEPS)
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(images[rows]), labels[rows]) * ((rows.stop - rows.start) / BATCH)
        scaler.scale(loss).backward()
        if sharded:
            buckets.finish()
            scaler.unscale(optimizer.pieces)
            norm = optimizer.grad_norm()
        else:
            for parameter in model.parameters():
                parameter.grad = np.ascontiguousarray(parameter.grad)
                ranks.sum(parameter.grad)
            scaler.unscale(model.parameters())
            norm = grad_norm(model.parameters())
        decision.judge(norm, np.float32(0), scaler)
        optimizer.step(clip_factor(norm, clip) if clip else None, decision)
        ema.update(decision.made)
        scaler.update(decision.made)
        norms.append(float(norm))
    return model.state_dict(), ema.state_dict(), norms


@pytest.mark.parametrize("size", [2, 4])
def test_thirty_steps_of_a_vit(size):
    """AdamW, clipping, EMA, groups of weight decay, layer decay, a scaled loss: as one process, to rounding."""
    expected = run_ranks(1, lambda ranks: thirty_steps(ranks, sharded=False, clip=0.1))[0]
    assert min(expected[2]) > 0.1          # all steps are clipped
    results = run_ranks(size, lambda ranks: thirty_steps(ranks, sharded=True, clip=0.1))
    for weights, averages, norms in results:
        assert np.allclose(norms, expected[2], rtol=1e-5, atol=0)
        for found, wanted in ((weights, expected[0]), (averages, expected[1])):
            assert all(np.abs(found[name] - wanted[name]).max() <= 1e-5 * np.abs(wanted[name]).max() for name in wanted)
        same(weights, results[0][0])
        same(averages, results[0][1])
    # Not clipped, the sums of gradients are all that is rounded: sharded or not, bit for bit.
    one, other = (run_ranks(size, lambda ranks, s=s: thirty_steps(ranks, s, clip=0.0))[0] for s in (False, True))
    same(other[0], one[0])
    same(other[1], one[1])


def test_sixteen_bit_copies_of_parameters_follow_a_step():
    """A product inside autocast takes the new weights of all ranks, not the ones it has rounded before."""
    def step(ranks):
        layer, rng = nn.Linear(3, 5), seeded(0)
        for parameter in layer.parameters():
            parameter.overwrite(rng.standard_normal(parameter.shape))
        buckets = Buckets(layer.parameters(), ranks, sharded=True)
        optimizer = Sharded(lambda groups: SGD(groups, 1.0), layer.parameters(), buckets)
        with autocast("bfloat16"):
            before = layer(x).numpy()
        for parameter in layer.parameters():
            parameter.grad = np.ones(parameter.shape, np.float32)
        buckets.finish()
        optimizer.step()
        with autocast("bfloat16"):
            return before, layer(x).numpy()

    x = np.ones((1, 3), np.float32)
    for before, after in run_ranks(2, step):
        assert_close(after, before - 8, 0.25)      # each of 3 weights and a bias is less by 1 for each rank
