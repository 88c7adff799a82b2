"""`kill -9`, again and again: the run folder can be read after each, and the run ends as if nobody had touched it."""

import csv
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from scratchvit.training import load_checkpoint, read_config
from tests.support.platforms import KILLED
from tests.support.processes import SECONDS
from tests.support.runs import assert_same_run
from tests.support.watching import KILLS, Watch

EPOCHS, STEPS_PER_EPOCH = 4 * KILLS, 5       # more than there are between the kills in its midst

# Everything that chance or memory could make differ, and steps left out for a factor that is too large.
OPTIONS = [
    "--epochs", EPOCHS, "--batch-size", 256, "--lr", 1, "--warmup-epochs", 0, "--save-every", 1, "--seed", 3,
    "--img-size", 8, "--patch-size", 4, "--embed-dim", 16, "--depth", 2, "--num-heads", 2, "--mlp-ratio", 2,
    "--proj-drop-rate", 0.1, "--attn-drop-rate", 0.1, "--drop-path-rate", 0.2, "--label-smoothing", 0.1,
    "--crop-padding", 1, "--flip", "--random-erasing", 0.3, "--mixup", 0.2, "--cutmix", 1, "--mix-mode", "elem",
    "--ema-decay", 0.9, "--non-finite", "skip", "--loss-scale", 3.4e38,
]

WRITTEN = {
    "config.json", "metrics.csv", "last.safetensors", "best.safetensors",
    "curves.png", "attention.png", "sample.png", "report.html",
}
KNOWN = {".lock", "tensorboard"} | WRITTEN | {f".{name}.tmp" for name in WRITTEN}
PROGRAM = "import sys; from scratchvit.cli import main; sys.exit(main())"


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "train", *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finish(process):
    error = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, error


def wait_for(moment, watch, chance):
    """Wait until the run is about there, and a random moment longer."""
    if moment == "start-up":            # imports, data, model: not yet a step, most often
        time.sleep(chance.uniform(0, 0.8))
    elif moment == "step":
        watch.wait_for_saves(chance.randint(1, 4))
        time.sleep(chance.uniform(0, 0.02))
    elif moment == "save":              # the unfinished file is there for a millisecond or two
        watch.wait_for_saves(chance.randint(0, 3))
        watch.wait((watch.run / ".last.safetensors.tmp").exists)
    elif moment == "validation":        # between the last save in an epoch and the row that is written afterwards
        saves = STEPS_PER_EPOCH - progress(watch.run).get("step", 0) % STEPS_PER_EPOCH
        watch.wait_for_saves(saves)
        time.sleep(chance.uniform(0, 0.01))
    elif moment == "end":               # the test, and the pictures
        watch.wait(watch.has_all_epochs)
        time.sleep(chance.uniform(0, 0.3))


def progress(run):
    path = run / "last.safetensors"
    return load_checkpoint(path).progress if path.exists() else {}


def assert_readable(run):
    """Every file is whole, old or new, and no other is there."""
    assert {path.name for path in run.iterdir()} <= KNOWN
    read_config(run)
    for name in ("last.safetensors", "best.safetensors"):
        if (run / name).exists():
            load_checkpoint(run / name)
    rows = []
    if (run / "metrics.csv").exists():
        with (run / "metrics.csv").open() as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    history = progress(run).get("history", [])
    assert rows in (history, history[:-1])      # the checkpoint is written first


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    straight, run = tmp_path / "straight", tmp_path / "run"
    finish(start(*OPTIONS, "--out", straight))

    chance = random.Random(0)
    # Where in a run; how far it is by then is chance. Those at the end come when the run is there.
    moments = ["step", "save", "validation", "start-up"] * KILLS
    chance.shuffle(moments)
    moments += ["end"] * KILLS
    hits, steps = Counter(), [0]
    for moment in moments:
        for _ in range(5):
            begun = (run / "config.json").exists()
            process = start("--resume", run) if begun else start(*OPTIONS, "--out", run)
            wait_for(moment, Watch(process, run, EPOCHS), chance)
            process.kill()
            error = process.communicate()[1]
            if process.returncode == KILLED:
                break
            assert process.returncode == 0, error       # too late: it had just come to its end
        else:
            raise AssertionError(f"five runs ended before they could be killed ({moment})")
        if (run / "config.json").exists():
            assert_readable(run)
            steps.append(progress(run).get("step", 0))
            assert steps[-1] >= steps[-2]               # nothing that was saved is lost
            hits["in a step" if steps[-1] < EPOCHS * STEPS_PER_EPOCH else "after the last"] += 1
            hits["of these, in a save"] += any(path.name.endswith(".tmp") for path in run.iterdir())
    print(dict(hits), steps)        # pytest -s shows where they fell

    finish(start("--resume", run))
    assert_readable(run)
    assert_same_run(run, straight)
    assert progress(run)["step"] == EPOCHS * STEPS_PER_EPOCH
    assert sum(row["skipped"] for row in progress(run)["history"]) > 0
    assert {path.name for path in run.iterdir()} == {path.name for path in straight.iterdir()}
