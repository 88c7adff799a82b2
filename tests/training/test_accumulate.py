"""Gradients that are added over parts of a batch are those of the batch, and take the memory of a part."""

import contextlib

import numpy as np
import pytest

from scratchvit import nn, ops, optim
from scratchvit.detection.criterion import FocalCriterion, SetCriterion
from scratchvit.detection.matcher import HungarianMatcher
from scratchvit.detection.task import DetectionTask
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model
from scratchvit.tensor import Tensor
from scratchvit.training import ClassificationTask, Interrupted, TrainingLoop, load_checkpoint, train
from scratchvit.training.config import TrainConfig
from scratchvit.training.step import LearningStep, parts_of
from tests.support import detection_runs
from tests.support.processes import alone, peak_bytes
from tests.support.runs import CONFIG, EVERYTHING, assert_same_run, stop_at
from tests.support.seeds import seeded

STEPS = 10
SWIN = CONFIG.replace(
    model="swin_tiny_patch4_window7_224", batch_size=32,
    model_args={"patch_size": 1, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2),
                "drop_path_rate": 0.0},
)


@pytest.mark.parametrize(("images", "batch_size", "accumulate", "sizes"), [
    (16, 16, 1, [16]), (16, 16, 4, [4] * 4), (10, 10, 4, [2, 3, 2, 3]), (16, 16, 16, [1] * 16), (5, 16, 4, [2, 3]),
    (1, 16, 4, [1]), (9, 9, 4, [3, 3, 3]),
])
def test_parts(images, batch_size, accumulate, sizes):
    parts = parts_of(images, TrainConfig(batch_size=batch_size, accumulate=accumulate))
    assert [part.stop - part.start for part in parts] == sizes
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(images))


def weights_after(task_of, config, folder):
    """Weights, averages, and the sums of the epoch after some steps."""
    loop = TrainingLoop(task_of(config), config, folder, log=lambda line: None)
    with loop.folder, np.errstate(all="ignore"):
        loop.model.train()
        while loop.step < STEPS:
            with contextlib.closing(iter(loop.loader)) as batches:
                for batch, _ in zip(batches, range(STEPS - loop.step)):
                    loop._step(batch, look=True)
    return loop.model.state_dict(), loop.ema.state_dict(), loop.meter.read().columns("")


@pytest.mark.parametrize(("task_of", "config"), [
    (ClassificationTask, CONFIG.replace(batch_size=64)),
    (ClassificationTask, CONFIG.replace(batch_size=30, mixup=0.2, cutmix=1.0, label_smoothing=0.1, flip=True)),
    (ClassificationTask, CONFIG.replace(batch_size=64, loss_scale=2.0**10, optimizer="sgd")),
    (ClassificationTask, SWIN),
], ids=["vit", "vit, mixed, 8 + 7 + 8 + 7", "vit, scaled, sgd", "swin"])
def test_ten_steps_of_a_classifier(task_of, config, tmp_path):
    """Adam divides by the size of a gradient: eps keeps it from making steps of the rounding errors of zeros."""
    whole, parts = (
        weights_after(task_of, config.replace(accumulate=n, ema_decay=0.9, warmup_epochs=0), tmp_path / str(n))
        for n in (1, 4)
    )
    for found, expected in zip(parts, whole):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_ten_steps_of_a_detector(tmp_path):
    """Parts count as they do in the batch, whatever number of objects they have. Its batch norms are frozen."""
    config = detection_runs.CONFIG.replace(
        model_args={**detection_runs.SIZES, "frozen_bn": True}, batch_size=4, warmup_epochs=0, ema_decay=0.9
    )
    with detection_runs.small_scenes():
        whole, parts = (
            weights_after(DetectionTask, config.replace(accumulate=n, seed=1), tmp_path / str(n)) for n in (1, 4)
        )
    for found, expected in zip(parts, whole):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("make", [
    lambda matcher: SetCriterion(3, matcher), lambda matcher: FocalCriterion(3, matcher),
], ids=["softmax", "focal"])
@pytest.mark.parametrize("counts", [(0, 1, 0, 5, 2), (0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (9, 0, 0, 3, 2)], ids=str)
def test_losses_of_parts_add_up_to_those_of_a_batch(make, counts):
    """Their gradients too; in float64. Six queries, so that one image has too many objects; noised objects besides."""
    focal = make(HungarianMatcher()).num_logits == 3
    criterion = make(HungarianMatcher(focal=focal))
    rng, B, N, copies = seeded(0), len(counts), 6, 2
    targets = [
        {"labels": rng.integers(3, size=n), "boxes": rng.uniform(0.2, 0.5, (n, 4)).astype(np.float32)} for n in counts
    ]
    noised = np.full((B, max(1, copies * max(counts))), -1)
    for row, n in zip(noised, counts):
        row[: copies * n] = np.tile(np.arange(n), copies)
    shapes = {"pred": (B, N), "aux": (B, N), "dn": noised.shape, "dn_aux": noised.shape, "proposals": (B, 8)}
    leaves = {
        name: (Tensor(rng.standard_normal((*shape, criterion.num_logits)), requires_grad=True),
               Tensor(rng.uniform(0.2, 0.6, (*shape, 4)), requires_grad=True))
        for name, shape in shapes.items()
    }

    def outputs(part):
        def of(name):
            logits, boxes = leaves[name]
            return {"pred_logits": logits[part], "pred_boxes": boxes[part]}

        return {
            **of("pred"), "aux_outputs": [of("aux")], "proposals": of("proposals"),
            "denoising": {**of("dn"), "aux_outputs": [of("dn_aux")], "objects": noised[part]},
        }

    def gradients(total):
        for each in leaves.values():
            for leaf in each:
                leaf.grad = None
        total.backward()
        return [leaf.grad for each in leaves.values() for leaf in each]

    whole = criterion(outputs(slice(None)), targets)
    parts = [slice(0, 1), slice(1, 3), slice(3, 5)]
    of_parts = [criterion(outputs(part), targets[part], whole=counts) for part in parts]
    shares = [(part.stop - part.start) / B for part in parts]
    for output, losses in whole.items():
        for kind, loss in losses.items():
            added = sum(share * float(of_part[output][kind].item()) for share, of_part in zip(shares, of_parts))
            np.testing.assert_allclose(added, float(loss.item()), rtol=1e-6, atol=1e-9, err_msg=f"{output} {kind}")
    added = sum(criterion.total(losses) * share for losses, share in zip(of_parts, shares))
    for found, expected in zip(gradients(added), gradients(criterion.total(whole))):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def peak_of_a_step(accumulate):
    """The most bytes that a step of a ViT holds at once, beside weights, gradients and moments."""
    config = TrainConfig(batch_size=32, accumulate=accumulate)
    model = create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=2)
    step = LearningStep(config, model, optim.AdamW(model.parameters(), 1e-3), None)
    x, y = np.zeros((32, 3, 32, 32), np.float32), np.zeros(32, np.int64)

    def compute(x, y):
        return ops.cross_entropy(model(Tensor(x)), y), None

    step(compute, (x, y), x, 1e-3, True)
    return peak_bytes(lambda: step(compute, (x, y), x, 1e-3, True))


def test_a_step_takes_the_memory_of_a_part():
    whole, quarter = (alone(peak_of_a_step, accumulate) for accumulate in (1, 4))
    assert quarter < 0.4 * whole


def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    config = EVERYTHING.replace(batch_size=250, accumulate=3, epochs=2, loss_scale=2.0**127, non_finite="skip")
    train(config, tmp_path / "whole", log=lambda line: None)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 7)
        train(config, tmp_path / "resumed", log=lambda line: None)
    train(config, tmp_path / "resumed", resume=True, log=lambda line: None)
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")
    assert load_checkpoint(tmp_path / "whole" / "last.safetensors").progress["history"][0]["train_loss"] < 3


def test_a_part_that_is_not_finite_skips_the_whole_step():
    model = nn.Linear(3, 1)
    before = model.state_dict()
    step = LearningStep(
        TrainConfig(batch_size=4, accumulate=2, non_finite="skip"), model, optim.AdamW(model.parameters(), 0.1), None
    )

    def compute(x):
        return model(Tensor(x)).mean(), None

    x = np.ones((4, 3), np.float32)
    x[1, 0] = np.inf                # in the first part: the second one's gradient is finite
    with np.errstate(all="ignore"):
        step(compute, (x,), x, 0.1, True)
    assert step.skipped == 1
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())
    step(compute, (np.ones((4, 3), np.float32),), x, 0.1, True)
    assert step.skipped == 1 and not np.array_equal(model.weight.numpy(), before["weight"])


def test_more_parts_than_images(tmp_path):
    with pytest.raises(ScratchvitError, match="it must not exceed batch_size, 8: it is 9"):
        train(CONFIG.replace(batch_size=8, accumulate=9), tmp_path / "run")
    with pytest.raises(ScratchvitError, match="accumulate must be at least 1, not 0"):
        train(CONFIG.replace(accumulate=0), tmp_path / "run")
