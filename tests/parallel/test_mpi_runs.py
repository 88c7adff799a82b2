"""`mpiexec -n 2 scratchvit train`: what it prints, the share of each rank, its errors; and `kill -9`."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scratchvit.cli import main
from scratchvit.training import load_checkpoint
from tests.support.mpiexec import finished, needs_mpi, run_mpi, start_mpi
from tests.support.runs import assert_same_run
from tests.support.watching import KILLS, Watch

pytestmark = needs_mpi

SMALL = [
    "--img-size", 8, "--patch-size", 4, "--embed-dim", 16, "--depth", 1, "--num-heads", 2, "--mlp-ratio", 2,
    "--batch-size", 256, "--warmup-epochs", 0,
]
PROGRAM = ["-m", "scratchvit"]
ENDS_WITHIN = 30        # seconds in which a job ends after the kill; it takes less than one, where the cores are free


def train(size: int, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_mpi(size, [*PROGRAM, "train", *words], environment)


# --- what is printed ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_train_what_one_process_trains_and_rank_0_says_so(tmp_path: Path, capsys) -> None:
    done = train(2, *SMALL, "--epochs", 1, "--out", tmp_path / "two", "--json")
    assert done.returncode == 0, done.stderr
    host, text = socket.gethostname(), done.stdout
    result = text.splitlines()[-1]
    assert text.count("epoch 1/1") == text.count("try next") == 1
    assert "ranks     2, with 1 CPU thread each\n" in text
    assert re.search(rf"on {host}, rank 0 is process \d+, rank 1 is process \d+", text)
    assert not done.stderr
    words = ["train", *map(str, SMALL), "--epochs", "1", "--out", str(tmp_path / "one"), "--json"]
    assert main(words) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(result)["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-5)
    assert json.loads(result)["test_accuracy"] == alone["test_accuracy"]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize(("words", "status", "sentence"), [
    (["train", "--batch-size", 1], 1, "each of 2 ranks needs one: use --batch-size 2 or more, or fewer ranks"),
    (["train", "--data", "digist"], 1, "'digist' is neither a folder nor a known data set"),
    (["train", "--bath-size", 1], 2, "there is no option --bath-size; did you mean --batch-size?"),
    (["predict", "a.jpg"], 1, "scratchvit predict runs in one process, and mpiexec has started 2"),
])
def test_an_error_of_all_ranks_is_printed_once(words: list[object], status: int, sentence: str) -> None:
    done = run_mpi(2, [*PROGRAM, *words])
    assert done.returncode == status
    assert done.stderr.count(sentence) == done.stderr.count("\n") == 1
    assert not done.stdout


RAISES = """
import os, sys
from scratchvit.cli import main, train
def fail(*arguments, **options):
    if os.environ["PMI_RANK"] == "1":
        raise {}
    return prepare(*arguments, **options)
prepare, train.prepare = train.prepare, fail
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("error", "status", "sentence"), [
    ("MemoryError('2 GB')", 1, "there is not enough memory (2 GB): use a smaller batch"),
    ("ZeroDivisionError('a / 0')", 70, "this is a bug in scratchvit (ZeroDivisionError: a / 0)"),
])
def test_an_error_of_one_rank_is_printed_with_its_name_and_ends_all(
    error: str, status: int, sentence: str, tmp_path: Path
) -> None:
    # The traceback goes to the folder for temporary files.
    done = run_mpi(2, ["-c", RAISES.format(error), "train", *SMALL], {"TMPDIR": str(tmp_path)})
    assert done.returncode == status
    assert f"scratchvit: rank 1 of 2 on {socket.gethostname()}: {sentence}" in done.stderr
    assert done.stderr.count("scratchvit: ") == 1


# --- kill -9 --------------------------------------------------------------------------------------------------------

EPOCHS, STEPS_PER_EPOCH = 4 * KILLS, 5       # it is not at its end when it is killed for the last time
OPTIONS = [
    *SMALL, "--epochs", EPOCHS, "--save-every", 1, "--seed", 3, "--proj-drop-rate", 0.1, "--drop-path-rate", 0.2,
    "--crop-padding", 1, "--mixup", 0.2, "--cutmix", 1, "--ema-decay", 0.9, "--accumulate", 2,
]


def processes_of(job: subprocess.Popen[str]) -> Iterator[int]:
    """The processes of the ranks, as the run prints them."""
    assert job.stdout is not None
    for line in job.stdout:
        yield from map(int, re.findall(r"rank \d+ is process (\d+)", line))
        if line.startswith("folder"):       # what follows the ranks
            return


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_the_run_and_say_so_once(number: signal.Signals, tmp_path: Path) -> None:
    job = start_mpi(2, [*PROGRAM, "train", *OPTIONS, "--out", tmp_path / "run"])
    list(processes_of(job))
    Watch(job, tmp_path / "run", EPOCHS).wait_for_saves(2)
    job.send_signal(number)
    ended = finished(job)
    assert ended.returncode == 128 + number
    assert ended.stderr.count("scratchvit: stopped and saved at step ") == ended.stderr.count("scratchvit: ") == 1
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kills"), [(2, 5 * KILLS), (4, KILLS)])
def test_ranks_killed_and_resumed(tmp_path: Path, size: int, kills: int) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    done = train(size, *OPTIONS, "--out", straight)
    assert done.returncode == 0, done.stderr

    chance, steps = random.Random(size), [0]
    for _ in range(kills):
        begun = (run / "config.json").exists()
        words = ["--resume", run] if begun else [*OPTIONS, "--out", run]
        job = start_mpi(size, [*PROGRAM, "train", *words])
        watch = Watch(job, run, EPOCHS)
        killed = chance.choice(list(processes_of(job)))
        watch.wait_for_saves(chance.randint(0, 4))
        time.sleep(chance.uniform(0, 0.05))
        os.kill(killed, signal.SIGKILL)
        ended = finished(job, ENDS_WITHIN)
        assert ended.returncode not in (0, None)
        # The host is right; of several ranks there, MPICH's mpiexec may name one that it ended itself.
        assert f" RUNNING AT {socket.gethostname()}" in ended.stdout + ended.stderr
        last = run / "last.safetensors"
        steps.append(load_checkpoint(last).progress["step"] if last.exists() else 0)
        assert steps[-1] >= steps[-2]           # nothing that was saved is lost
    assert 0 < steps[-1] < EPOCHS * STEPS_PER_EPOCH, steps
    print(steps)        # pytest -s shows where they fell

    done = train(size, "--resume", run)
    assert done.returncode == 0, done.stderr
    assert_same_run(run, straight)
    assert {path.name for path in run.iterdir()} == {path.name for path in straight.iterdir()}
