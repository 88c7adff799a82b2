"""A picture that rots, or a worker that dies, in the middle of a run: a sentence, and the run goes on bit for bit."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from scratchvit.data import folder as folders
from scratchvit.data import load
from scratchvit.errors import ScratchvitError
from scratchvit.training import ClassificationTask, TrainingLoop, load_checkpoint, read_config, train
from scratchvit.training.classification.data import TrainingData
from tests.support.data_samples import random_images
from tests.support.platforms import is_running
from tests.support.runs import EVERYTHING, assert_same_run

PER_CLASS = 20      # of train: 40 pictures, 10 steps an epoch


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", PER_CLASS), ("val", 6), ("test", 6)):
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for i, pixels in enumerate(random_images(count, 12, 16 + 2 * label, seed=label)):
                Image.fromarray(pixels // (1 + label)).save(root / part / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def config(photos):
    # Small batches: those made ahead have their pictures already, and the epoch must go on beyond them.
    return EVERYTHING.replace(
        data=str(photos), epochs=2, batch_size=4, crop_scale=0.2, save_every=0,
        model_args={**EVERYTHING.model_args, "img_size": 8},
    )


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """The run that nobody disturbs. Nothing is kept in memory, in any of the runs here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(folders, "CACHE_BYTES", 0)
        run = tmp_path_factory.mktemp("straight") / "run"
        return run, train(config, run)


@pytest.fixture(autouse=True)
def _nothing_is_kept_in_memory(monkeypatch):
    monkeypatch.setattr(folders, "CACHE_BYTES", 0)


class Rot:
    """Spoils every picture of a part, and mends them all."""

    def __init__(self, photos, copy):
        self.photos, self.copy = photos, copy
        shutil.copytree(photos, copy)

    def spoil(self, part, how):
        for path in (self.photos / part).glob("*/*.png"):
            how(path)

    def mend(self):
        shutil.copytree(self.copy, self.photos, dirs_exist_ok=True)


@pytest.fixture
def rot(photos, tmp_path):
    rot = Rot(photos, tmp_path / "whole")
    yield rot
    rot.mend()


def at_step(monkeypatch, step, action):
    """Do something after so many steps."""
    one_step = TrainingLoop._step

    def step_and_act(self, batch, look):
        one_step(self, batch, look)
        if self.step == step:
            action(self)

    monkeypatch.setattr(TrainingLoop, "_step", step_and_act)


PICTURE = r"[/\\]train[/\\](ant|bee)[/\\]\d\d\.png"
HOW = {
    "deleted": (lambda path: path.unlink(), rf"{PICTURE}: no such picture\. The run is saved"),
    "truncated": (lambda path: os.truncate(path, 300), rf"{PICTURE}: this picture cannot be decoded"),
    "overwritten": (lambda path: path.write_bytes(b"\0" * 999), rf"{PICTURE}: this picture cannot"),
}


# With workers every rot takes the same way back to the parent.
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [
    *((kind, 0) for kind in HOW), ("truncated", 2),
    *(pytest.param(kind, 2, marks=pytest.mark.slow) for kind in ("deleted", "overwritten")),
])
def test_a_picture_that_rots_in_the_middle_of_an_epoch(config, straight, rot, kind, workers, tmp_path, monkeypatch):
    how, sentence = HOW[kind]
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        at_step(patched, 12, lambda loop: rot.spoil("train", how))
        with pytest.raises(ScratchvitError, match=sentence) as caught:
            train(config.replace(workers=workers), run)
    saved = int(re.search(r"The run is saved at step (\d+) of 20; .*, resume with:", str(caught.value))[1])
    assert str(caught.value).endswith(f"scratchvit train --resume {run}")
    assert 12 <= saved < 20
    progress = load_checkpoint(run / "last.safetensors").progress
    assert progress["step"] == saved
    assert progress["loader"] == {"epoch": 1, "batch": saved - 10, "seed": config.seed, "epoch_size": 2 * PER_CLASS}

    with pytest.raises(ScratchvitError):        # not mended yet, and the run does not suffer
        train(read_config(run), run, resume=True)
    rot.mend()
    result = train(read_config(run), run, resume=True)
    assert_same_run(run, straight[0])
    assert result.test_loss == straight[1].test_loss


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_picture_that_rots_before_it_is_evaluated(config, straight, rot, part, tmp_path, monkeypatch):
    """The averaged weights are in the model during validation: they must not be saved in place of its own."""
    run, final = tmp_path / "run", 20 if part == "test" else 10
    with monkeypatch.context() as patched:
        at_step(patched, final, lambda loop: rot.spoil(part, lambda path: path.unlink()))
        said = rf"[/\\]{part}[/\\]ant[/\\]00\.png: no such .* saved at step {final} of 20"
        with pytest.raises(ScratchvitError, match=said):
            train(config, run)
    rot.mend()
    result = train(config, run, resume=True)
    assert_same_run(run, straight[0])
    assert result.test_loss == straight[1].test_loss


def test_the_first_picture_is_rotten(config, straight, rot, tmp_path, monkeypatch):
    def spoil_before(self, batches):     # what comes last before the first epoch
        rot.spoil("train", lambda path: path.unlink())

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(ClassificationTask, "before_training", spoil_before)
        with pytest.raises(ScratchvitError, match=r"no such picture.* saved at step 0 of 20"):
            train(config, run)
    rot.mend()
    train(config, run, resume=True)
    assert_same_run(run, straight[0])


def test_a_picture_that_rots_stops_a_run_that_leaves_bad_ones_out(config, rot, tmp_path, monkeypatch):
    """What is left out is settled when a run begins: another order of pictures would be another run."""
    run = tmp_path / "run"
    at_step(monkeypatch, 3, lambda loop: rot.spoil("train", lambda path: path.write_bytes(b"rotten")))
    with pytest.raises(ScratchvitError, match="saved at step"):
        train(config.replace(skip_bad=True), run)


def test_a_worker_that_is_killed(config, straight, tmp_path, monkeypatch):
    def kill(loop):
        loop.loader._processes._processes[0].kill()

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        at_step(patched, 13, kill)
        said = r"worker process 1 of 2 .* (was killed by SIG|ended with exit status).* saved at step 1\d of"
        with pytest.raises(ScratchvitError, match=said):
            train(config.replace(workers=2), run)
    result = train(config.replace(workers=1), run, resume=True)     # how many there are may change
    assert_same_run(run, straight[0])
    assert result.test_loss == straight[1].test_loss


def test_a_run_leaves_no_worker_behind(config, tmp_path, monkeypatch):
    started = []
    at_step(monkeypatch, 2, lambda loop: started.extend(p.pid for p in loop.loader._processes._processes))
    train(config.replace(workers=2, epochs=1), tmp_path / "run")
    assert len(started) == 2
    assert not any(map(is_running, started))


def test_crops_are_cut_from_the_originals(config, tmp_path):
    """Each picture has a red edge, which no crop of its middle square can show."""
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.zeros((40, 160, 3), np.uint8)
            pixels[:, :20, 0] = 255
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.png")
    splits = load(tmp_path, img_size=40)
    assert not splits.train.images(range(5)).any()
    loader = TrainingData(splits, (0.0,) * 3, (1.0,) * 3).train_loader(config.replace(batch_size=8))
    shown = np.concatenate([x.max(axis=(1, 2, 3)) > 0.5 for x, *_ in loader])
    assert 0 < shown.mean() < 1


@pytest.mark.parametrize(("waited", "advice"), [(0.0, False), (1e9, True)])
def test_a_loop_that_waits_for_pictures_says_so(config, waited, advice, tmp_path, monkeypatch):
    at_step(monkeypatch, 10, lambda loop: setattr(loop.loader, "waited", waited))
    lines = []
    train(config.replace(epochs=1), tmp_path / "run", log=lines.append)
    assert any("% of the time was spent waiting for pictures: try --workers 1" in line for line in lines) is advice
