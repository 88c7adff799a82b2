"""Sums of gradients over ranks that are threads, against the gradients of each rank added one by one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scratchvit import backend, ops
from scratchvit.backend import array_module, asarray, asnumpy
from scratchvit.errors import WrongState
from scratchvit.parallel import buckets as module
from scratchvit.parallel.buckets import Buckets
from scratchvit.parallel.communicator import ALONE
from scratchvit.parallel.share import share_of
from scratchvit.tensor import Tensor
from tests.support.mpiexec import needs_mpi, run_mpi
from tests.support.ranks import RankFailed, run_ranks
from tests.support.seeds import seeded
from tests.support.strict_array import STRICT, no_transfers

SHAPES = [(5, 7), (7,), (3, 2, 2), (), (1,), (11, 5), (9,)]
SIZES = [1, 2, 3, 4]


@pytest.fixture
def small(monkeypatch):
    """Buckets of 192 bytes, in which parameters begin at every 16: {6}, {5}, {4, 3, 2, 1}, {0}."""
    monkeypatch.setattr(module, "BUCKET_BYTES", 192)
    monkeypatch.setattr(module, "ALIGNED", 16)


def parameters(seed=0, shapes=SHAPES, dtype=np.float32):
    rng = seeded(seed)
    return [Tensor(asarray(rng.standard_normal(shape), dtype), requires_grad=True) for shape in shapes]


def loss_of(params, rank, unused=()):
    """A chain in which parameters are used one after the other; each rank has other numbers."""
    total = Tensor(asarray(np.array(0.0), params[0].dtype))
    for i, parameter in enumerate(params):
        if i not in unused:
            numbers = asarray(seeded(100 * rank + i).standard_normal(parameter.shape), parameter.dtype)
            total = (total * 1.25 + (parameter * Tensor(numbers)).sum() * parameter.sum()).tanh()
    return total


def gradients_of(rank, unused=()):
    """Those of one rank, on the host."""
    params = parameters()
    loss_of(params, rank, unused).backward()
    return [None if parameter.grad is None else asnumpy(parameter.grad) for parameter in params]


def summed(size, unused=lambda rank: ()):
    """The gradients of all ranks, added in their order."""
    total = [0.0] * len(SHAPES)
    for rank in range(size):
        total = [a if b is None else b + a for a, b in zip(total, gradients_of(rank, unused(rank)))]
    return total


def run(size, task):
    """`task` with ranks that are threads, or with the communicator of one process."""
    return [task(ALONE)] if size == 1 else run_ranks(size, task)


@pytest.mark.parametrize("overlapping", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_summed(size, overlapping, small, device):
    expected = summed(size)

    def task(ranks):
        params = parameters()
        buckets = Buckets(params, ranks)
        found = []
        for _ in range(3):      # the order of the first is that of the others
            for parameter in params:
                parameter.grad = None
            loss = loss_of(params, ranks.rank)
            if overlapping:
                with buckets.overlapping():
                    loss.backward()
            else:
                loss.backward()
            total, = buckets.finish(loss.data)
            assert total.dtype == np.float32 and total.shape == ()
            found.append((float(asnumpy(total)), [asnumpy(parameter.grad).copy() for parameter in params]))
        return found

    losses = [float(loss_of(parameters(), rank).item()) for rank in range(size)]
    for of_rank in run(size, task):
        for total, gradients in of_rank:
            assert total == pytest.approx(sum(losses), rel=1e-6)
            for found, wanted in zip(gradients, expected, strict=True):
                assert np.array_equal(found, wanted)


def test_a_bucket_is_started_as_soon_as_it_is_complete(small):
    """And the others are still computed. The first layers are used last, so they come last."""
    def task(ranks):
        params = parameters()
        buckets, names = Buckets(params, ranks), []
        for _ in range(2):
            buckets.events = []
            for parameter in params:
                parameter.grad = None
            loss = loss_of(params, ranks.rank)
            with buckets.overlapping():
                loss.backward()
            buckets.finish(loss.data)
            end = next(end for what, _, end in buckets.events if what == "backward")
            names.append([(what, start < end) for what, start, _ in buckets.events if what != "backward"])
        return names, ranks.calls

    for names, calls in run_ranks(2, task):
        sums = [f"bucket {i}" for i in range(len(names[0]) - 1)]
        assert len(sums) == 4
        assert names[0] == names[1] == [*((what, True) for what in sums), ("numbers", False)]
        assert calls == ["gather", *["sum"] * 5, "gather", *["sum"] * 5]


def test_buckets_are_started_in_the_order_of_rank_0_which_it_learns(small):
    """Parameters are used in another order than they are listed in, and on rank 1 yet in another."""
    def task(ranks):
        params = parameters()
        used = [params[i] for i in ([3, 4, 5, 6, 0, 1, 2], [5, 6, 0, 1, 2, 3, 4])[ranks.rank]]
        buckets, started = Buckets(params, ranks), []
        for _ in range(3):
            buckets.events = []
            for parameter in params:
                parameter.grad = None
            loss = loss_of(used, 0)
            with buckets.overlapping():
                loss.backward()
            buckets.finish()
            started.append([what for what, *_ in sorted(buckets.events, key=lambda event: event[1])])
        return started, [asnumpy(parameter.grad) for parameter in params]

    first, second = run_ranks(2, task)
    for of_rank in (first, second):
        learning, *learned = ([what for what in names if what.startswith("bucket")] for names in of_rank[0])
        assert learning == [f"bucket {i}" for i in range(4)]
        assert learned[0] == learned[1] == ["bucket 3", "bucket 0", "bucket 1", "bucket 2"]
    assert all(np.array_equal(one, two) for one, two in zip(first[1], second[1]))


@pytest.mark.parametrize("size", SIZES)
def test_a_parameter_without_a_gradient_contributes_zeros(size, small):
    """Parameter 1 has none on any rank, 2 on all but the last, 5 on the last only."""
    def unused(rank):
        return (1, 5) if rank == size - 1 else (1, 2)

    def task(ranks):
        params = parameters()
        buckets = Buckets(params, ranks)
        for _ in range(2):
            for parameter in params:
                parameter.grad = None
            with buckets.overlapping():
                loss_of(params, ranks.rank, unused(ranks.rank)).backward()
            buckets.finish()
        return [parameter.grad for parameter in params]

    expected = summed(size, unused)
    for gradients in run(size, task):
        for i, (found, wanted) in enumerate(zip(gradients, expected, strict=True)):
            assert (found is None) == (i == 1 or (size == 1 and i == 5))
            assert found is None or np.array_equal(found, wanted)


def test_gradients_are_accumulated_before_the_last_backward_pass(small):
    def task(ranks):
        params = parameters()
        buckets = Buckets(params, ranks)
        loss_of(params, ranks.rank).backward()
        loss_of(params, ranks.rank + 2, unused=(0, 3)).backward()
        with buckets.overlapping():
            loss_of(params, ranks.rank + 4, unused=(2,)).backward()
        buckets.finish()
        return [parameter.grad for parameter in params], ranks.calls

    parts = [(0, ()), (2, (0, 3)), (4, (2,))]
    expected = []
    for rank in range(2):
        params = parameters()
        for other, unused in parts:
            loss_of(params, rank + other, unused).backward()
        expected.append([parameter.grad for parameter in params])
    for gradients, calls in run_ranks(2, task):
        assert calls.count("sum") == 5      # of four buckets, and of the numbers
        for found, one, two in zip(gradients, *expected, strict=True):
            assert np.array_equal(found, one + two)


@pytest.mark.parametrize("size", SIZES)
def test_sharded_pieces_are_all_entries_once_and_joined(size, small, device):
    """Each rank has the sums of its pieces, and all ranks the values that each has written to its pieces."""
    expected, before = summed(size), [asnumpy(parameter.data).copy() for parameter in parameters()]

    def task(ranks):
        params = parameters()
        frozen = Tensor(asarray(np.ones(3)))
        buckets = Buckets([frozen, *params], ranks, sharded=True)
        assert all(np.array_equal(asnumpy(p.data), b) for p, b in zip(params, before))
        pieces = [(piece, piece.values, piece.gradient) for piece in buckets.own]
        with buckets.overlapping():
            loss_of(params, ranks.rank).backward()
        buckets.finish()
        written = {}
        for piece, values, gradient in pieces:
            i = next(i for i, parameter in enumerate(params) if parameter is piece.parameter)
            wanted = expected[i].reshape(-1)[piece.start : piece.stop]
            assert np.array_equal(asnumpy(gradient), wanted) and piece.gradient is gradient
            assert np.array_equal(asnumpy(values), before[i].reshape(-1)[piece.start : piece.stop])
            values -= 0.5 * gradient
            written[i] = [piece.start, piece.stop]
        buckets.join()
        return written, [asnumpy(parameter.data) for parameter in params]

    results = run(size, task)
    for i, shape in enumerate(SHAPES):
        ends = sorted(tuple(written[i]) for written, _ in results if i in written)
        assert [*sum(ends, ())] == [0, *(x for _, end in ends[:-1] for x in (end, end)), int(np.prod(shape))]
        for _, values in results:
            assert np.array_equal(values[i], before[i] - np.float32(0.5) * expected[i])


def test_parameters_of_two_dtypes_are_in_buckets_of_their_own():
    def task(ranks):
        params = [*parameters(shapes=[(3,)]), *parameters(1, [(2,)], np.float64), *parameters(2, [(4,)])]
        buckets = Buckets(params, ranks)
        for parameter in params:
            (parameter * parameter).sum().backward()
        expected = [2 * 2 * parameter.data for parameter in params]
        buckets.finish()
        assert all(parameter.grad.dtype == parameter.dtype for parameter in params)
        assert all(np.array_equal(parameter.grad, wanted) for parameter, wanted in zip(params, expected))
        return ranks.calls.count("sum")

    assert run_ranks(2, task) == [4, 4]


def test_views_are_aligned_and_a_large_parameter_is_alone(monkeypatch):
    monkeypatch.setattr(module, "BUCKET_BYTES", 1 << 12)
    params = parameters(shapes=[(3,), (70,), (2000,), (5,)])
    Buckets(params, ALONE, sharded=True)
    owners = [parameter.data.base for parameter in params]
    assert owners[0] is owners[1] and len({id(owner) for owner in owners}) == 3
    start = owners[0].__array_interface__["data"][0]
    assert [parameter.data.__array_interface__["data"][0] - start for parameter in params[:2]] == [512, 0]


def test_a_step_does_not_wait_for_the_device():
    """On a stand-in for a GPU that counts what is read from it; no gradient is missing."""
    backend.use(STRICT)
    try:
        params = parameters()
        buckets, loss = Buckets(params, ALONE), loss_of(params, 0)
        buckets.finish()
        with no_transfers():
            with buckets.overlapping():
                loss.backward()
            total, = buckets.finish(loss.data)
        assert array_module(total) is STRICT.xp
    finally:
        backend.use("cpu")


def test_ranks_with_different_models_are_told_apart():
    def other_shape(ranks):
        Buckets(parameters(shapes=[(3,), (2, 2) if ranks.rank < 2 else (4,)]), ranks)

    def other_number(ranks):
        Buckets(parameters(shapes=[(3,)] * (1 + ranks.rank)), ranks)

    with pytest.raises(RankFailed, match=r"rank 2 on threads has another model than rank 0: parameter 1 \(from 0\) of "
                                         r"shape \(4,\) float32, rank 0 of \(2, 2\) float32"):
        run_ranks(3, other_shape)
    with pytest.raises(RankFailed, match="rank 1 on threads has another model than rank 0: 2 parameters, rank 0 1"):
        run_ranks(2, other_number)


def test_what_is_out_of_order_is_an_error():
    params = parameters()
    buckets = Buckets(params, ALONE)
    with buckets.overlapping():
        loss_of(params, 0).backward()
    with pytest.raises(WrongState, match=r"were not waited for: call finish\(\)"), buckets.overlapping():
        pass
    buckets.finish()
    with pytest.raises(WrongState, match="only those made with sharded=True are joined"):
        buckets.join()


def test_no_parameters():
    buckets = Buckets([Tensor(np.ones(3, np.float32))], ALONE)
    assert buckets.finish() == []
    total, = buckets.finish(np.float32(2.5) * np.ones((), np.float32))
    assert total == 2.5


def test_a_softmax_over_shares_is_that_of_the_batch():
    """The rule of the loss: a mean over n images times n / B, summed over ranks, is the mean over B."""
    rng = seeded(3)
    x, labels, B = rng.standard_normal((10, 4)), rng.integers(0, 3, 10), 10

    def task(ranks):
        weight = Tensor(seeded(4).standard_normal((4, 3)), requires_grad=True)
        buckets, rows = Buckets([weight], ranks), share_of(B, ranks.rank, ranks.size)
        loss = ops.cross_entropy(Tensor(x[rows]) @ weight, labels[rows]) * ((rows.stop - rows.start) / B)
        with buckets.overlapping():
            loss.backward()
        return buckets.finish(loss.data)[0], weight.grad

    [(loss, gradient)] = run(1, task)
    for size in (2, 3, 4):
        for of_rank in run(size, task):
            assert of_rank[0] == pytest.approx(loss, rel=1e-12)
            np.testing.assert_allclose(of_rank[1], gradient, rtol=1e-12)


@pytest.mark.parametrize("whole", [1, 7, 8, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_shares_are_all_rows_once(whole, size):
    shares = [share_of(whole, rank, size) for rank in range(size)]
    assert [row for share in shares for row in range(whole)[share]] == list(range(whole))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


# Six layers of 1 MB each, on real ranks; prints [norms of the summed gradients, the order of starts and ends].
_ON_MPI = """
import json
import numpy as np
from scratchvit import ops
from scratchvit.parallel import buckets as module, world
from scratchvit.tensor import Tensor

ranks, rng = world(), np.random.default_rng(0)
module.BUCKET_BYTES = 2 << 20
weights = [Tensor(rng.standard_normal((512, 512), np.float32) / 20, requires_grad=True) for _ in range(6)]
buckets, mine, summed = module.Buckets(weights, ranks), [], []
for step in range(3):
    for weight in weights:
        weight.grad = None
    x = Tensor(np.full((64, 512), 1 + ranks.rank, np.float32))
    for weight in weights:
        x = (x @ weight).tanh()
    loss = (x * x).mean()
    buckets.events = []
    with buckets.overlapping():
        loss.backward()
    buckets.finish(loss.data)
events = [[name, start, end] for name, start, end in buckets.events]
backward = next(end for name, _, end in events if name == "backward")
norms = [float(np.linalg.norm(weight.grad)) for weight in weights]
if ranks.rank == 0:
    print(json.dumps([norms, [[name, start < backward] for name, start, _ in events]]), flush=True)
ranks.close()
"""


@needs_mpi
def test_sums_of_processes_overlap_with_the_backward_pass():
    """The same program on one rank, which sees the input of rank 0 only, gives other gradients."""
    done = run_mpi(2, ["-c", _ON_MPI])
    assert done.returncode == 0, done.stderr
    norms, events = json.loads(done.stdout)

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((512, 512), np.float32) / 20 for _ in range(6)]
    gradients = [0.0] * 6
    for rank in range(2):
        leaves = [Tensor(weight, requires_grad=True) for weight in weights]
        x = Tensor(np.full((64, 512), 1 + rank, np.float32))
        for leaf in leaves:
            x = (x @ leaf).tanh()
        (x * x).mean().backward()
        gradients = [total + leaf.grad for total, leaf in zip(gradients, leaves)]
    np.testing.assert_allclose(norms, [np.linalg.norm(gradient) for gradient in gradients], rtol=1e-5)
    assert dict(events[:-1]) | {"backward": True} == {
        "backward": True, "bucket 0": True, "bucket 1": True, "bucket 2": True
    }
    assert events[-1] == ["numbers", False]
