"""MixUp and CutMix in several processes: partners are of the same process, and what is drawn once is drawn once."""

import numpy as np
import pytest

from scratchvit.models import create_model
from scratchvit.parallel.share import share_of
from scratchvit.training.classification.objective import Objective
from scratchvit.training.config import TrainConfig
from tests.support.ranks import run_ranks
from tests.support.seeds import moved, seeded

B = 8
LABELS = np.arange(B)       # each its own class, so that a target says who was mixed, and in which ratio


def given(size, step=3, **settings):
    """The images and targets of a step, on each rank."""
    config = TrainConfig(seed=moved(0), **settings)
    images = seeded(1).standard_normal((B, 3, 8, 8)).astype(np.float32)

    def task(ranks):
        model = create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, depth=1, num_classes=B)
        rows = share_of(B, ranks.rank, ranks.size)
        return Objective(config, model, {}, ranks).given(images[rows], LABELS[rows], LABELS[rows], step)

    return run_ranks(size, task)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}], ids=str)
def test_ratio_and_box_of_a_batch_are_those_of_one_process(settings):
    (whole, targets), = given(1, **settings)
    ratio = targets[0, 0]
    assert 0 < ratio < 1 and np.isclose(targets[0, B - 1], 1 - ratio)
    for rank, (_, own) in enumerate(given(2, **settings)):
        rows = range(B)[share_of(B, rank, 2)]
        for row, target in zip(rows, own, strict=True):
            partner = rows.start + rows.stop - 1 - row
            expected = np.zeros(B, np.float32)
            expected[[row, partner]] = ratio, 1 - ratio
            np.testing.assert_allclose(target, expected, atol=1e-6)
    assert not np.array_equal(np.concatenate([images for images, _ in given(2, **settings)]), whole)     # partners


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_no_two_processes_draw_alike(mode):
    targets = [own for _, own in given(2, mixup=0.8, mix_mode=mode)]
    ratios = [own[np.arange(4), LABELS[share_of(B, rank, 2)]] for rank, own in enumerate(targets)]
    assert len({round(float(ratio), 5) for own in ratios for ratio in own}) == (4 if mode == "pair" else 8)
    again = [own for _, own in given(2, mixup=0.8, mix_mode=mode)]
    assert all(np.array_equal(one, two) for one, two in zip(targets, again, strict=True))
