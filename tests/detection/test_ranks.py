"""A detector of several processes computes what one process computes of the whole batch. Ranks are threads."""

import numpy as np
import pytest

from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.batches import DetectionBatch
from scratchvit.detection.task import DetectionTask
from scratchvit.parallel.communicator import ALONE
from scratchvit.random import Generator, part_of_batch
from scratchvit.training.config import RunConfig
from scratchvit.training.meter import over_ranks
from scratchvit.training.step import parts_of
from tests.support.model_parity import in_float64
from tests.support.ranks import run_ranks
from tests.support.seeds import moved, seeded
from tests.support.set_prediction import random_targets
from tests.support.small_detr import CLASSES, random_head, small

B = 7
COUNTS = {      # of objects; a model has four queries for an image
    "some": (3, 0, 1, 9, 2, 0, 1), "only the last rank": (0, 0, 0, 0, 0, 0, 2), "none": (0,) * 7,
}
MODELS = {
    "softmax": ("detr_resnet18", {}), "focal": ("detr_resnet18", {"focal": True}),
    "groups": ("detr_resnet18", {"query_groups": 2}),
    "denoising": ("detr_resnet18", {"denoising": 2, "dropout": 0.1}),
    "dab, denoising": ("dab_detr_tiny", {"denoising": 2, "query_groups": 2, "dropout": 0.1}),
    "two stages": ("dab_detr_tiny", {"two_stage": True}),
    "two stages, softmax": ("dab_detr_tiny", {"two_stage": True, "focal": False}),
}


def batch_of(counts, sizes=((64, 64),)):
    """Random images in float64, padded to the largest of `sizes`, which are repeated."""
    rng, sizes = seeded(0), [sizes[i % len(sizes)] for i in range(B)]
    images, mask = rng.standard_normal((B, 3, *np.max(sizes, axis=0))), np.ones((B, *np.max(sizes, axis=0)), bool)
    for one, hidden, (height, width) in zip(images, mask, sizes):
        hidden[:height, :width] = False
        one[:, hidden] = 0
    return DetectionBatch(images, mask, random_targets(counts, 1, CLASSES))


def step_of(ranks, name, batch, accumulate=1, halves=False):
    """A rank's part of a step: its loss times its share of the images, the gradients, and its meter."""
    kind, options = MODELS[name]
    model = in_float64(random_head(small(kind, **options))).train()
    task = DetectionTask(DetectConfig(accumulate=accumulate, batch_size=B))
    task.ranks = ranks
    task.prepare_loss(model)
    own = slice(B * ranks.rank // ranks.size, B * (ranks.rank + 1) // ranks.size)
    batch, meter, total = DetectionBatch(*(field[own] for field in batch)), task.meter(), 0.0
    images = own.stop - own.start
    for part in parts_of(images, RunConfig(batch_size=images, accumulate=min(accumulate, images))):
        model.set_generator(Generator(moved(5)))
        with part_of_batch(slice(own.start + part.start, own.start + part.stop), B):
            if halves:
                kept, costs = task.forward_of(model, *task.arrays(model, batch, 0))
                loss, noted = task.loss_of(model, kept, *task.match(batch, costs))
            elif accumulate > 1:
                loss, noted = task.loss_of_part(model, batch, part, 0)
            else:
                loss, noted = task.loss(model, batch, task.inputs(batch), 0)
        loss = loss * ((part.stop - part.start) / B)
        loss.backward()
        meter.add(*noted)
        total += loss.item()
    gradients = {parameter: tensor.grad for parameter, tensor in model.named_parameters()}
    return total, gradients, over_ranks(meter.read(), ranks)


def assert_same_step(found, expected):
    """The sums over ranks of losses and gradients, and the meter of each, are those of one process."""
    loss, gradients, meter = expected
    np.testing.assert_allclose(sum(of_rank[0] for of_rank in found), loss, rtol=1e-9)
    for name, gradient in gradients.items():
        added = sum(0 if of_rank[1][name] is None else of_rank[1][name] for of_rank in found)
        np.testing.assert_allclose(added, 0 if gradient is None else gradient, rtol=1e-6, atol=1e-9, err_msg=name)
    for _, _, other in found:
        assert other.images == B and other.sums.keys() == meter.sums.keys()
        for name, value in meter.sums.items():
            np.testing.assert_allclose(other.sums[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_one_process(name, counts, size):
    batch = batch_of(counts)
    assert_same_step(run_ranks(size, lambda ranks: step_of(ranks, name, batch)), step_of(ALONE, name, batch))


@pytest.mark.parametrize("name", ["softmax", "focal", "denoising", "dab, denoising"])
def test_with_accumulated_gradients(name):
    """Ranks of three and four images, each in parts of one and two."""
    batch = batch_of(COUNTS["some"])
    assert_same_step(run_ranks(2, lambda ranks: step_of(ranks, name, batch, 3)), step_of(ALONE, name, batch))


@pytest.mark.parametrize("name", ["softmax", "focal"])
def test_in_halves_with_padding(name):
    """As steps are replayed on a GPU. The second rank's images have no padding of their own."""
    batch = batch_of(COUNTS["some"], [(64, 96)] * 3 + [(64, 64)] * 3)
    assert_same_step(run_ranks(2, lambda ranks: step_of(ranks, name, batch, halves=True)), step_of(ALONE, name, batch))


def test_predictions_of_one_rank_that_are_not_finite_are_the_loss_of_all():
    """No rank raises an error, so none waits for a gradient that does not come."""
    batch = batch_of(COUNTS["some"])
    batch.images[-1, 0, 0, 0] = np.nan
    with np.errstate(all="ignore"):
        found = run_ranks(2, lambda ranks: step_of(ranks, "softmax", batch))
    assert np.isfinite(found[0][0]) and np.isnan(found[1][0])
    assert all(np.isnan(meter.loss) for *_, meter in found)
    assert any(np.isnan(gradient).any() for gradient in found[1][1].values())


def test_a_step_asks_the_other_ranks_once():
    def calls(ranks):
        step_of(ranks, "softmax", batch_of(COUNTS["some"]), accumulate=3)
        return ranks.calls

    assert run_ranks(2, calls) == [["gather_rows", "gather"]] * 2       # the last is the meter's
