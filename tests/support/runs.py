"""Small runs for the tests of training: the digits, a ViT of 5,000 weights, five steps in an epoch."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np

from scratchvit.training import TrainConfig, TrainingLoop, load_checkpoint
from scratchvit.training import loop as loop_module
from tests.support.model_parity import in_float64
from tests.support.processes import SECONDS

CONFIG = TrainConfig(
    data="digits",
    model_args={"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "patch_size": 4},
    epochs=3, batch_size=256, lr=3e-3, warmup_epochs=1,
)

# Everything that chance or memory could make differ after a resume.
EVERYTHING = CONFIG.replace(
    model_args={**CONFIG.model_args, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2},
    crop_padding=1, flip=True, ema_decay=0.9, label_smoothing=0.1, save_every=2,
)

_PROGRAM = """
import json, sys
from scratchvit.errors import ScratchvitError
from scratchvit.training import Interrupted, TrainConfig, train

folder, config, resume, prelude = json.loads(sys.argv[1])
exec(prelude)
try:
    train(TrainConfig(**config), folder, resume)
except Interrupted as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
except ScratchvitError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


def losses_of(loop: TrainingLoop) -> list[float]:
    """A list that gets the loss of every step of a run: that of the whole batch, on several ranks too."""
    losses, judge = [], loop.learn.decision.judge

    def judge_and_note(norm, loss, scaler):
        losses.append(float(loss))
        judge(norm, loss, scaler)

    loop.learn.decision.judge = judge_and_note
    return losses


def train_in_float64(monkeypatch):
    """From now on, runs compute in float64: weights, moments, averages, and images, which are read as ever."""
    make, batches = loop_module.create_model, TrainingLoop.batches

    def in_float64_too(self, loader):
        for batch in batches(self, loader):
            yield batch._replace(images=batch.images.astype(np.float64))

    monkeypatch.setattr(loop_module, "create_model", lambda *args, **options: in_float64(make(*args, **options)))
    monkeypatch.setattr(TrainingLoop, "batches", in_float64_too)


def start_a_process(folder, config, resume=False, prelude=""):
    """A run in a process of its own, which may be killed; `prelude` is Python that runs before it."""
    argument = json.dumps([str(folder), dataclasses.asdict(config), resume, prelude])
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, argument],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def run_in_a_process(folder, config, resume=False, prelude=""):
    """The same, waited for: its exit status and what it wrote."""
    with start_a_process(folder, config, resume, prelude) as process:
        out, error = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def stop_at(monkeypatch, step, number=signal.SIGINT):
    """Send this process a signal after so many steps of a run."""
    make_step = TrainingLoop._step

    def step_and_stop(self, batch, look):
        make_step(self, batch, look)
        if self.step == step:
            signal.raise_signal(number)      # os.kill would end a process of Windows

    monkeypatch.setattr(TrainingLoop, "_step", step_and_stop)


def files_of(folder):
    """{path: content} of all files in a folder, those that begin with a dot too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(folder, other):
    """Bit for bit the same weights, averages, moments, metrics and place; only times differ."""
    for file in ("last.safetensors", "best.safetensors"):
        one, two = load_checkpoint(folder / file), load_checkpoint(other / file)
        for part in ("model", "ema", "optimizer"):
            found, expected = getattr(one, part), getattr(two, part)
            assert found.keys() == expected.keys()
            for name in expected:
                assert np.array_equal(found[name], expected[name]), f"{file}: {part} {name}"
        assert without_times(one.progress) == without_times(two.progress)


def without_times(progress):
    times = ("seconds", "images_per_second", "epoch_seconds", "gpu_peak_bytes")
    history = [{key: value for key, value in row.items() if key not in times} for row in progress["history"]]
    return {key: value for key, value in progress.items() if key not in times} | {"history": history}
