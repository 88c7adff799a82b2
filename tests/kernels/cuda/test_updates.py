"""Updates of many arrays by their CUDA kernels: against the plain forms on the same device, and against themselves."""

import itertools

import numpy as np
import pytest

from scratchvit import Tensor, nn, optim
from scratchvit.backend import array_module, asarray, asnumpy
from scratchvit.kernels import updates
from scratchvit.plain import plain_forms
from scratchvit.replay import WARM_UP, Replay
from scratchvit.training import Means
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

# Empty, one entry, odd, just below and above the entries of a block of threads and twice them, and a shape of two axes.
SHAPES = [(0,), (1,), (), (7,), (255,), (4095,), (4096,), (4097,), (8192,), (61, 137), (0,)]
MANY = [shape for shape, _ in zip(itertools.cycle(SHAPES), range(150))]     # three launches, the last of 22 arrays
GROUPS = [i % 3 for i in range(150)]

ADAM = [
    updates.AdamNumbers(0.1, 1e-3, 0.99, 0.0, 0.9, 0.999, 1),
    updates.AdamNumbers(0.03, 1e-2, 1.0, 0.2, 0.8, 0.95, 7),
    updates.AdamNumbers(0.2, 1e-3, 0.9, 0.0, 0.5, 0.99, 20_000),
]
SGD = [
    updates.SGDNumbers(0.1, 0.0, 0.9, False), updates.SGDNumbers(0.03, 0.2, 0.8, True),
    updates.SGDNumbers(0.2, 0.1, 0.5, False),
]


def arrays(columns, dtype, shapes=MANY):
    """Rows of random arrays on the device; the last column is positive, as second moments are."""
    rng = seeded(0)
    lowest = [-2.0] * (columns - 1) + [0.5]
    return [tuple(asarray(rng.uniform(low, 2, shape).astype(dtype)) for low in lowest) for shape in shapes]


def check(update, columns, dtype, allowed=4):
    """Assert that update(rows) changes rows as its plain form does, up to so many ulps, and to the same bits twice."""
    found, again, expected = (arrays(columns, dtype) for _ in range(3))
    update(found)
    update(again)
    with plain_forms():
        update(expected)
    for i, rows in enumerate(zip(found, again, expected)):
        for column, (ours, twice, theirs) in enumerate(zip(*rows)):
            ours, theirs = asnumpy(ours), asnumpy(theirs)
            assert ours.tobytes() == asnumpy(twice).tobytes()
            bound = ulps(theirs, allowed, dtype) if theirs.size else 0
            assert_close(ours, theirs, bound, f"row {i} {ours.shape}, column {column}")


@pytest.mark.parametrize("factor", [None, 0.37])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("update", "columns", "groups"), [(updates.adam, 4, ADAM), (updates.sgd, 3, SGD), (updates.sgd, 2, SGD)],
    ids=["adam", "sgd", "sgd without momentum"],
)
def test_steps_of_groups_with_numbers_of_their_own(update, columns, groups, dtype, factor):
    scale = None if factor is None else asarray(np.asarray(factor, dtype))

    def step(rows):
        update(rows, GROUPS, lambda: groups, scale)

    check(step, columns, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_gradients_and_averages(dtype):
    check(lambda rows: updates.scale([x for x, in rows], asarray(np.asarray(0.37, dtype))), 1, dtype)
    check(lambda rows: updates.scale([x for x, in rows], 0.37), 1, dtype)
    check(lambda rows: updates.average(rows, 0.3), 2, dtype)
    check(lambda rows: updates.accumulate(rows, 0.3), 2, dtype)


@pytest.mark.parametrize("char", ["f", "d", "e", "i", "q", "?"])
def test_copies_of_numbers_of_any_size(char):
    rng = seeded(0)
    sources = [asarray(rng.integers(-30_000, 30_000, shape).astype(char)) for shape in MANY]
    targets = [array_module(x).zeros_like(x) for x in sources]
    updates.copy(list(zip(targets, sources)))
    for x, y in zip(sources, targets):
        assert y.dtype == x.dtype and asnumpy(y).tobytes() == asnumpy(x).tobytes()


FLAGGED = {
    "adam": (lambda rows, when: updates.adam(rows, GROUPS, lambda: ADAM, None, when), 4),
    "sgd": (lambda rows, when: updates.sgd(rows, GROUPS, lambda: SGD, None, when), 3),
    "average": (lambda rows, when: updates.average(rows, 0.3, when), 2),
    "accumulate": (lambda rows, when: updates.accumulate(rows, 0.3, when), 2),
    "copy": (updates.copy, 2),
}


@pytest.mark.parametrize("name", FLAGGED)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])     # float16 has no kernels
def test_nothing_changes_without_the_flag(name, dtype):
    """Not even by a NaN, which a factor of 0 would not hold back. With the flag, it is as without `when`."""
    update, columns = FLAGGED[name]
    kept, changed, expected = (arrays(columns, dtype) for _ in range(3))
    for rows in (kept, changed, expected):
        for row in rows:
            row[1][...] = np.nan
    before = [[asnumpy(x).tobytes() for x in row] for row in kept]
    update(kept, asarray(np.zeros((), bool)))
    assert [[asnumpy(x).tobytes() for x in row] for row in kept] == before
    update(changed, asarray(np.ones((), bool)))
    update(expected, None)
    after = [[asnumpy(x).tobytes() for x in row] for row in changed]
    assert after == [[asnumpy(x).tobytes() for x in row] for row in expected] != before


def test_corrections_are_those_of_steps_that_were_made():
    unmade = asarray(np.array(3))
    more, fewer = ([numbers._replace(steps=steps) for numbers in ADAM] for steps in (9, 6))
    found, expected = (arrays(4, np.float64, SHAPES * 3) for _ in range(2))
    groups = GROUPS[: len(found)]
    updates.adam(found, groups, lambda: more, None, asarray(np.ones((), bool)), unmade)
    updates.adam(expected, groups, lambda: fewer)
    for row, other in zip(found, expected):
        assert all(asnumpy(x).tobytes() == asnumpy(y).tobytes() for x, y in zip(row, other))


def test_copies_keep_every_bit_of_a_nan_and_of_a_denormal():
    bits = np.array([0x7FC01234, 0xFFA00001, 0x00000001, 0x80000000], np.uint32)
    y = asarray(np.zeros(4, np.float32))
    updates.copy([(y, asarray(bits.view(np.float32)))])
    assert (asnumpy(y).view(np.uint32) == bits).all()


def test_a_parameter_of_zeros_stays_finite_without_a_gradient():
    """Adam divides by √v + eps: with v = 0, by eps."""
    rows = [tuple(asarray(np.zeros(5, np.float32)) for _ in range(4))]
    updates.adam(rows, [0], lambda: ADAM[:1])
    assert not any(asnumpy(x).any() for x in rows[0])


def test_rows_of_other_dtypes_are_updated_by_the_plain_forms():
    """float16 has no kernel, and float32 beside float64 has none."""
    check(lambda rows: updates.average(rows, 0.3), 2, np.float16)
    mixed = [*arrays(2, np.float32, [(9,)]), *arrays(2, np.float64, [(9,)])]
    start = [[asnumpy(x).copy() for x in row] for row in mixed]
    updates.average(mixed, 0.5)
    for (a, x), (average, _) in zip(start, mixed):
        assert_close(average, (a + x) / 2, ulps(2, 1, a.dtype.type))


# --- optimisers -------------------------------------------------------------------------------------------------------


class Many(nn.Module):
    """150 parameters and 20 buffers of two dtypes."""

    def __init__(self):
        rng = seeded(0)
        for i, shape in enumerate(MANY):
            setattr(self, f"p{i}", nn.Parameter(rng.standard_normal(shape).astype(np.float32)))
        for i in range(10):
            setattr(self, f"mean{i}", nn.Buffer(np.zeros(i, np.float32)))
            setattr(self, f"count{i}", nn.Buffer(np.asarray(i)))

    def give_gradients(self, step, skip=None):
        rng = seeded((1, step))
        for i, parameter in enumerate(self.parameters()):
            gradient = asarray(rng.uniform(0.5, 2, parameter.shape).astype(np.float32))
            parameter.grad = None if skip is not None and i % 7 == skip else gradient


OPTIMIZERS = [
    lambda groups: optim.SGD(groups, 0.1, momentum=0.9, nesterov=True), lambda groups: optim.Adam(groups, 0.01),
    lambda groups: optim.AdamW(groups, 0.01),
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["SGD", "Adam", "AdamW"])
def test_parameters_that_miss_steps_keep_their_own_count(make):
    """Four steps, in each of which other parameters have no gradient: Adam's corrections then differ."""
    def weights():
        model = Many()
        optimizer = make(optim.param_groups(model, 0.01))
        for step in range(4):
            model.give_gradients(step, skip=step % 3)
            optimizer.step(optim.clip_factor(optim.grad_norm(model.parameters()), 400.0))
        return model.state_dict()

    found, again = weights(), weights()
    with plain_forms():
        expected = weights()
    for name, value in found.items():
        assert value.tobytes() == again[name].tobytes()
        if value.size and value.dtype.kind == "f":
            assert_close(value, expected[name], ulps(expected[name], 8), name)


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["SGD", "Adam", "AdamW"])
def test_a_replayed_step_is_that_of_an_eager_one(make):
    """What a kernel was launched with stays in the graph. Learning rates and Adam's corrections must not."""
    gradients = [seeded((1, i)).uniform(0.5, 2, (4099,)).astype(np.float32) for i in range(WARM_UP + 4)]

    def weights(steps_of):
        parameters = [nn.Parameter(np.ones(4099, np.float32)) for _ in range(2)]
        optimizer = make([
            {"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "weight_decay": 0.0},
        ])

        def step(g):
            for parameter in parameters:
                parameter.grad = g
            norm = optim.grad_norm(parameters)
            optimizer.step(optim.clip_factor(norm, 1.0))
            return norm

        step, versions = steps_of(step), []
        for i, gradient in enumerate(gradients):
            optimizer.lr = 0.1 / (1 + i)
            step(asarray(gradient))
            versions.append(parameters[0].version.count)
        assert len(set(versions)) == len(gradients)
        return [parameter.numpy() for parameter in parameters] + list(optimizer.state_dict().values())

    def unexpected(error):
        raise error

    for eager, replayed in zip(weights(lambda step: step), weights(lambda step: Replay(step, unexpected))):
        np.testing.assert_array_equal(eager, replayed)


def test_gradients_that_are_not_contiguous():
    p = [nn.Parameter(np.zeros((30, 20))) for _ in range(2)]
    gradient = seeded(0).standard_normal((20, 30))
    p[0].grad, p[1].grad = asarray(gradient).T, asarray(gradient.T.copy())
    for parameter in p:
        optim.AdamW([parameter], 0.1).step(optim.clip_factor(optim.grad_norm([parameter]), 1.0))
    assert p[0].data.any() and p[0].numpy().tobytes() == p[1].numpy().tobytes()


def test_a_meter_adds_all_of_its_numbers_in_a_launch_for_each_dtype():
    """And makes an array of each number of the host: here "d", and the number of images."""
    device = pytest.importorskip("fakegpu.device")
    rng = seeded(0)
    meter, expected = Means({"c": 3.0}), {name: 3.0 * (name == "c") for name in "abcd"}
    for images in (4, 4, 3):
        host = dict(zip("abc", rng.uniform(size=3).astype(np.float32)))
        given = {name: asarray(np.asarray(value)) for name, value in host.items()}
        given["c"] = given["c"].astype(np.float64)
        before = device.counts()["launches"]
        meter.add({**given, "a": Tensor(given["a"]), "d": 0.5}, images)
        launches = device.counts()["launches"] - before
        for name, value in {**host, "d": 0.5}.items():
            expected[name] += float(value) * images
    assert launches == 2 + 2
    found = meter.read()
    assert found.images == 11
    for name, value in expected.items():
        assert_close(found.sums[name], value, ulps(value, 4), name)


def test_a_gradient_of_another_size_is_not_read_beyond_its_end():
    parameter = nn.Parameter(np.ones(5))
    parameter.grad = asarray(np.ones(3))
    with pytest.raises(ValueError, match="broadcast"):
        optim.AdamW([parameter], 0.1).step()


def test_a_step_of_150_parameters_is_fourteen_launches_and_a_copy():
    """Norm 3 + 1, factor 1, step 1 + 3 with a copy of its numbers, averages 3, buffers of 4 and of 8 bytes 2."""
    device = pytest.importorskip("fakegpu.device")
    model = Many()
    optimizer, ema = optim.AdamW(optim.param_groups(model, 0.05, 1.0), 0.01), optim.EMA(model, 0.9)
    parameters = list(model.parameters())
    for step in range(2):       # the first one makes the moments
        model.give_gradients(step)
        before = device.counts()
        optimizer.step(optim.clip_factor(optim.grad_norm(parameters), 1.0))
        ema.update()
        after = device.counts()
    done = [after[what] - before[what] for what in ("launches", "gemms", "memsets", "d2d", "h2d", "d2h", "syncs")]
    assert done == [14, 0, 0, 0, 1, 0, 0]
