"""N + M epochs are N, stop, resume, M: bit for bit, wherever and however the run was stopped."""

import signal

import pytest

from scratchvit.training import ClassificationTask, Interrupted, read_config, train
from tests.support.platforms import KILLED_BY_9
from tests.support.runs import CONFIG, EVERYTHING, assert_same_run, run_in_a_process, stop_at


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, train(EVERYTHING, folder)


@pytest.mark.parametrize("step", [1, 5, 8, 15])     # within an epoch, at its end, and before the last validation
def test_interrupted_and_resumed(straight, step, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, step)
        with pytest.raises(Interrupted, match=f"saved at step {step} of 15.*scratchvit train --resume"):
            train(EVERYTHING, tmp_path / "run")
    result = train(read_config(tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", straight[0])
    assert (result.test_accuracy, result.test_loss) == (straight[1].test_accuracy, straight[1].test_loss)


def test_stopped_during_validation(straight, tmp_path, monkeypatch):
    """The averaged weights are in the model then: they must not be saved in place of its own."""
    validate = ClassificationTask.validate

    def interrupted(self, model, batches):
        signal.raise_signal(signal.SIGTERM)
        return validate(self, model, batches)

    with monkeypatch.context() as patched:
        patched.setattr(ClassificationTask, "validate", interrupted)
        with pytest.raises(Interrupted) as caught:
            train(EVERYTHING, tmp_path / "run")
    assert caught.value.exit_status == 128 + signal.SIGTERM
    train(EVERYTHING, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", straight[0])


def test_sgd_with_momentum(tmp_path, monkeypatch):
    config = CONFIG.replace(optimizer="sgd", lr=0.1, epochs=2)
    train(config, tmp_path / "straight")
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "straight")


KILL = """
import os
import {module} as module
function = module.{name}
calls = 0
def killing(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), 9)
    return function(*args, **kwargs)
module.{name} = killing
"""
LOOP, FILES = "scratchvit.training.loop", "scratchvit.files"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        ("scratchvit.training.classification.objective", "ops.cross_entropy", 2),      # before anything was saved
        (LOOP, "optim.clip_factor", 9),              # between two saves
        (LOOP, "save_checkpoint", 4),                   # between best and last
        (FILES, "os.fsync", 6),                    # while a file is being written
    ],
)
def test_killed_and_resumed(straight, module, name, call, tmp_path):
    prelude = KILL.format(module=module, name=name, call=call)
    killed = run_in_a_process(tmp_path / "run", EVERYTHING, prelude=prelude)
    assert killed.returncode == KILLED_BY_9, killed.stderr
    train(EVERYTHING, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", straight[0])
    text = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in text] == ["epoch", "1", "2", "3"]


def test_more_epochs_may_be_asked_for(straight, tmp_path):
    config = CONFIG.replace(epochs=1)
    train(config, tmp_path / "run")
    assert train(config.replace(epochs=2), tmp_path / "run", resume=True).epochs == 2
    assert read_config(tmp_path / "run").epochs == 2
