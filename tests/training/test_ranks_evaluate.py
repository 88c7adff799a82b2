"""Several processes evaluate a split in parts, and all of them have what one process has. Ranks are threads."""

import dataclasses

import numpy as np
import pytest

from scratchvit.models import create_model
from scratchvit.parallel.communicator import ALONE
from scratchvit.training.classification import ClassificationTask
from scratchvit.training.classification.distill import Teacher
from scratchvit.training.task import Course
from tests.support.margins import agree, assert_all_close, rounding
from tests.support.ranks import run_ranks
from tests.support.runs import CONFIG

IGPT = CONFIG.replace(
    model="igpt_small", model_args={"num_colors": 5, "embed_dim": 16, "depth": 1, "num_heads": 2}, train_fraction=0.1,
)


def task_of(ranks, config, images):
    """A task and its model; of the splits val and test, so many images are used."""
    task = ClassificationTask(config)
    task.ranks = ranks
    data = task.load_data(None)
    few = {name: getattr(data.splits, name).subset(np.arange(images)) for name in ("val", "test")}
    task.data = dataclasses.replace(data, splits=dataclasses.replace(data.splits, **few))
    model = create_model(config.model, **task.model_args(data.about()))
    task.init_from_data(model)
    task.prepare_loss(model)
    return task, model


def evaluated(ranks, config, images):
    """The row of a validation, and the figures and predictions of the test."""
    task, model = task_of(ranks, config, images)
    row = task.validate(model, iter)
    result = task.test(model, iter, row, Course("run", "best", 1, 1, 1.0, 1.0, 0, 1))
    said = result.predictions
    assert said.meter.images == images
    return {
        **row, "test_loss": result.test_loss, "test_accuracy": result.test_accuracy, "labels": said.labels,
        "predicted": said.predicted, "probability": said.probability,
    }


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("images", [3, 50])
@pytest.mark.parametrize("config", [CONFIG.replace(batch_size=32), IGPT.replace(batch_size=8)], ids=["vit", "igpt"])
def test_results_are_those_of_one_process(config, images, size):
    """Predictions in the order of the split. Three images are fewer than ranks: one has none."""
    found, *others = run_ranks(size, lambda ranks: evaluated(ranks, config, images))
    for other in others:
        assert all(np.array_equal(other[name], value) for name, value in found.items())
    whole = evaluated(ALONE, config, images)
    assert all(np.asarray(found[name]).dtype == np.asarray(value).dtype for name, value in whole.items())
    assert all(np.array_equal(found[name], whole[name]) for name in ("labels", "predicted"))
    assert_all_close(found, whole, rounding(lambda: evaluated(ALONE, config, images), samples=1))


def test_a_rank_computes_its_part_of_a_teachers_logits():
    """All ranks have the logits for all training images, which are asked for in the order of a shuffled epoch."""
    asked = []

    class Counting(Teacher):
        def __call__(self, images):
            asked.append(len(images))
            return super().__call__(images)

    def logits(ranks):
        task, _ = task_of(ranks, CONFIG, 8)
        about = task.data.about()
        mean, std = about["mean"], about["std"]
        pixels = {"mean": mean, "std": std, "student_mean": mean, "student_std": std}
        task.objective.teacher = Counting(create_model(CONFIG.model, **task.model_args(about), seed=1), **pixels)
        task.before_training(iter)
        n = len(task.data.splits.train)
        order = np.random.default_rng(0).permutation(n)
        images, labels = np.zeros((n, 1, 8, 8), np.float32), np.zeros(n, np.int64)
        return task.objective.given(images, labels, order, 0)[2]

    first, second = run_ranks(2, logits)
    n, largest = sum(asked), max(asked)
    assert n == len(first) and largest == CONFIG.batch_size / 2
    np.testing.assert_array_equal(first, second)
    agree(lambda: logits(ALONE), first)
