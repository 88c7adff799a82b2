"""Several processes evaluate a detector in shares of the same batches, and all have the figures. Ranks are threads."""

import dataclasses

import numpy as np
import pytest

from scratchvit.detection import evaluation
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.annotations import DetectionSplits
from scratchvit.detection.detector import Sizes
from scratchvit.detection.run_data import DetectionData
from scratchvit.detection.task import PICTURED, DetectionTask
from scratchvit.parallel.communicator import ALONE
from scratchvit.training.step import NotFinite
from scratchvit.training.task import Course
from tests.support.margins import assert_all_close, rounding
from tests.support.noise_pictures import NORMALIZE, Several
from tests.support.ranks import run_ranks
from tests.support.seeds import seeded
from tests.support.small_detr import random_head, small

OF_THE_WHOLE = np.log(9)        # logit of 0.9: boxes around most of the picture, which is where the objects are


def task_of(ranks, pictures, focal=False):
    """A task whose pictures differ in size, in batches of four, and its model."""
    task = DetectionTask(DetectConfig(batch_size=4))
    task.ranks = ranks
    part = Several.mixed(pictures)
    task.data = DetectionData(
        DetectionSplits(part, part, part), Sizes(0, None), NORMALIZE.mean, NORMALIZE.std, {}, (ranks.rank, ranks.size)
    )
    model = random_head(small("detr_resnet18", focal=focal, num_classes=2))
    model.bbox_embed.layers[-1].bias.assign(np.array([0, 0, OF_THE_WHOLE, OF_THE_WHOLE], np.float32))
    weight = model.class_embed.weight
    weight.assign(seeded(3).standard_normal(weight.shape, dtype=np.float32))
    task.prepare_loss(model)
    return task, model


def evaluated(ranks, pictures=10, focal=False):
    """The row of a validation, what was found in the pictures that are drawn, and the result of the test."""
    task, model = task_of(ranks, pictures, focal)
    row = task.validate(model, iter)
    result = task.test(model, iter, row, Course("run", "best", 1, 1, 1.0, 1.0, 0, 1))
    return row, task.found, dataclasses.asdict(result.test) | {"loss": result.test_loss}


def numbers(outcome):
    """The same as arrays by their names."""
    row, found, figures = outcome
    classes = {f"{each['name']} {kind}": each[kind] for each in figures.pop("classes") for kind in ("AP", "objects")}
    return {"row": row, "found": found, "figures": figures | classes}


@pytest.mark.parametrize("focal", [False, True], ids=["softmax", "focal"])
@pytest.mark.parametrize(("size", "pictures"), [(2, 10), (4, 10), (4, 3)])
def test_figures_and_detections_are_those_of_one_process(size, pictures, focal):
    """Ten pictures are batches of four, four and two: of the last, and of three pictures, some of four have none."""
    pytest.importorskip("pycocotools")
    first, *others = run_ranks(size, lambda ranks: numbers(evaluated(ranks, pictures, focal)))
    assert all(str(other) == str(first) for other in others)
    whole = numbers(evaluated(ALONE, pictures, focal))
    assert first["figures"]["AP"] > 0.01 and len(first["found"]) == min(PICTURED, pictures)
    assert first["figures"].items() - {("loss", first["figures"]["loss"])} <= whole["figures"].items()
    bounds = rounding(lambda: numbers(evaluated(ALONE, pictures, focal)), samples=1)
    assert_all_close(first, whole, bounds)


def test_only_rank_0_computes_average_precision(monkeypatch):
    """And where pycocotools is missing there, none has the figures."""
    pytest.importorskip("pycocotools")
    calls = []
    evaluate = evaluation.evaluate_boxes
    monkeypatch.setattr(
        "scratchvit.detection.task.evaluate_boxes", lambda *given: calls.append(given) or evaluate(*given)
    )
    assert all(row["AP"] > 0 for row, *_ in run_ranks(2, evaluated))
    assert len(calls) == 2          # a validation and a test
    monkeypatch.setattr("scratchvit.detection.task.can_evaluate", lambda: False)
    assert all(row["AP"] is None and np.isfinite(row["val_loss"]) for row, *_ in run_ranks(2, evaluated))


def test_all_ranks_end_if_the_loss_of_one_is_not_finite():
    def validate(ranks):
        task, model = task_of(ranks, 4)
        if ranks.rank == 1:
            model.class_embed.bias.assign(np.full(3, np.inf, np.float32))
        try:
            task.validate(model, iter)
        except NotFinite as error:
            return str(error)

    with np.errstate(all="ignore"):
        assert run_ranks(2, validate) == ["the loss on plain is not finite"] * 2
