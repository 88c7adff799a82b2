"""Batch norms that are synchronised over processes: what one process computes for the whole batch."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import Tensor, nn, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.parallel.communicator import ALONE
from scratchvit.training.classification.task import ClassificationTask
from scratchvit.training.config import TrainConfig
from scratchvit.training.loop import TrainingLoop
from tests.support.ranks import RankFailed, run_ranks
from tests.support.seeds import seeded

SHARES = {2: (3, 4), 4: (1, 3, 2, 1)}       # images of the ranks
SHAPES = {"planes": (7, 3, 5, 4), "large planes": (7, 2, 40, 30), "no planes": (7, 6)}
TOLERANCE = {np.float64: 1e-12, np.float32: 3e-6}


def parts(size):
    ends = np.cumsum(SHARES[size]).tolist()
    return [slice(stop - count, stop) for stop, count in zip(ends, SHARES[size])]


def state(shape, dtype):
    """weight, bias and running statistics, far from what they are at first."""
    rng = seeded(1)
    return [rng.uniform(0.5, 2, shape[1]).astype(dtype) for _ in range(4)]


def normalise(x, dy, dtype, add_up=None):
    """y, dx, dweight, dbias and the running statistics after a step."""
    x, dy, weight, bias, mean, var = (asarray(array.astype(dtype)) for array in (x, dy, *state(x.shape, dtype)))
    inputs = [Tensor(array, requires_grad=True) for array in (x, weight, bias)]
    y = ops.batch_norm(
        inputs[0], mean, var, *inputs[1:], training=True, momentum=0.3, **({"add_up": add_up} if add_up else {})
    )
    y.backward(dy)
    return [asnumpy(array) for array in (y.data, *(leaf.grad for leaf in inputs), mean, var)]


def joined(results):
    """What the ranks computed as what one process would: rows joined, gradients of parameters added."""
    y, dx, dweight, dbias, mean, var = zip(*results)
    for found in (mean, var):
        assert all(np.array_equal(found[0], other) for other in found)
    return [np.concatenate(y), np.concatenate(dx), sum(dweight), sum(dbias), mean[0], var[0]]


def given(name):
    rng = seeded(0)
    return rng.standard_normal(SHAPES[name]) * 3 + 100, rng.standard_normal(SHAPES[name])


@pytest.mark.parametrize("size", SHARES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "plain forms"])
def test_unequal_shares_are_normalised_as_one_batch(device, plain, name, dtype, size):
    x, dy = given(name)
    if dtype == np.float32:
        x = x - 95          # 100 ± 3 has lost two digits of float32 before anything is computed
    rows = parts(size)
    with sv.plain_forms(plain):
        normalise(x, dy, dtype, lambda array: None)     # compiles what a GPU needs, which threads would do at once
        expected = normalise(x, dy, dtype)
        found = joined(run_ranks(size, lambda r: normalise(x[rows[r.rank]], dy[rows[r.rank]], dtype, r.sum)))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.abs(other).max())


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_batch_norm_of_pytorch_over_the_whole_batch(name):
    """torch.nn.SyncBatchNorm itself takes no arrays of a CPU."""
    torch = pytest.importorskip("torch")
    x, dy = given(name)
    leaves = [torch.tensor(array, requires_grad=True) for array in (x, *state(x.shape, np.float64)[:2])]
    statistics = [torch.tensor(array) for array in state(x.shape, np.float64)[2:]]
    y = torch.nn.functional.batch_norm(leaves[0], *statistics, *leaves[1:], training=True, momentum=0.3)
    y.backward(torch.tensor(dy))
    rows = parts(4)
    found = joined(run_ranks(4, lambda r: normalise(x[rows[r.rank]], dy[rows[r.rank]], np.float64, r.sum)))
    theirs = [y.detach(), *(leaf.grad for leaf in leaves), *statistics]
    for one, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-9, atol=1e-11)


def test_16_bits():
    x, dy = given("planes")
    rows = parts(2)
    expected = normalise(x, dy, np.float16)
    found = joined(run_ranks(2, lambda r: normalise(x[rows[r.rank]], dy[rows[r.rank]], np.float16, r.sum)))
    assert found[0].dtype == np.float16
    for one, other in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3 * np.abs(other).max())


def test_without_it_processes_differ_from_one():
    x, dy = given("planes")
    rows = parts(2)
    expected = normalise(x, dy, np.float64)[0]
    alone = np.concatenate([normalise(x[part], dy[part], np.float64)[0] for part in rows])
    assert not np.allclose(alone, expected, atol=1e-2)


def test_small_sums_are_exchanged_as_often_as_is_said():
    """Twice forward and once backward; not in evaluation, and not for the gradient of the parameters alone."""
    def task(ranks):
        layer = nn.BatchNorm2d(3)
        nn.synchronise_batch_norms(layer, ranks)
        x = Tensor(seeded(ranks.rank).standard_normal((2, 3, 4, 4)).astype(np.float32), requires_grad=True)
        counts = []
        for call in (lambda: layer(x), lambda: layer(x).sum().backward(), lambda: layer(x.detach()).sum().backward()):
            call()
            counts.append(len(ranks.calls))
        layer.eval()
        with sv.no_grad():
            layer(x)
        layer(x).sum().backward()
        return [*np.diff([0, *counts]).tolist(), len(ranks.calls) - counts[-1]]

    assert run_ranks(2, task) == [[2, 3, 2, 0]] * 2


def test_one_image_in_each_process_is_enough():
    def step(ranks):
        layer = nn.BatchNorm2d(4)
        nn.synchronise_batch_norms(layer, ranks)
        return layer(Tensor(seeded(ranks.rank).standard_normal((1, 4)).astype(np.float32))).numpy()

    np.testing.assert_allclose(np.concatenate(run_ranks(2, step)).mean(axis=0), 0, atol=1e-6)
    with pytest.raises(ValueError, match="more than one value per channel"):
        step(ALONE)
    with pytest.raises(RankFailed, match="more than one value per channel"):
        run_ranks(2, lambda ranks: nn.BatchNorm2d(4)(Tensor(np.zeros((1, 4), np.float32))))


# Training


class Small(nn.Module):
    """Two convolutions, each with a batch norm, and a head."""

    def __init__(self, rng):
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False, rng=rng), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3, rng=rng)

    def forward(self, x):
        x = ops.relu(self.bn1(self.conv1(x)))
        return self.head(ops.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def steps(ranks, rows, x, labels):
    """Weights and running statistics after ten steps in float64."""
    model = Small(seeded(5))
    for tensor in (*model.parameters(), *(buffer for _, buffer in model.named_buffers())):
        if tensor.data.dtype == np.float32:
            tensor.data = tensor.data.astype(np.float64)
    nn.synchronise_batch_norms(model, ranks)
    optimizer = sv.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(x[rows]), labels[rows]) * (len(x[rows]) / len(x))
        loss.backward()
        for parameter in model.parameters():
            ranks.sum(parameter.grad)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("size", SHARES)
def test_a_model_learns_what_one_process_learns(size):
    x, labels = seeded(0).standard_normal((7, 3, 8, 8)), np.arange(7) % 3
    rows = parts(size)
    expected = steps(ALONE, slice(0, 7), x, labels)
    for found in run_ranks(size, lambda ranks: steps(ranks, rows[ranks.rank], x, labels)):
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-11, err_msg=name)


def test_the_option_of_a_run(tmp_path):
    config = TrainConfig(model="resnet18", model_args={"layers": (1, 1, 1, 1)}, sync_bn=True)
    task = ClassificationTask(config)
    loop = TrainingLoop(task, config, tmp_path / "run")
    with loop.folder:
        layers = [layer for layer in loop.model.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert layers and all(vars(layer)["ranks"] is task.ranks for layer in layers)
    config = TrainConfig(model_args={"depth": 1, "patch_size": 2}, sync_bn=True)
    with pytest.raises(ScratchvitError, match="VisionTransformer has no batch norms to synchronise: leave sync_bn out"):
        TrainingLoop(ClassificationTask(config), config, tmp_path / "other")


def test_a_model_without_batch_norms_is_refused():
    with pytest.raises(ScratchvitError, match="LayerNorm has no batch norms to synchronise: leave sync_bn out"):
        nn.synchronise_batch_norms(nn.LayerNorm(4), ALONE)
    with pytest.raises(ScratchvitError, match="has no batch norms"):     # frozen ones have no statistics of a batch
        nn.synchronise_batch_norms(nn.FrozenBatchNorm2d(4), ALONE)
