"""A task of one's own is one class: here a model learns by which angle a digit was turned.

`Rotation` is the example of "Add a task" in CONTRIBUTING.md. It needs neither labels nor classes: its loss, its
validation and its merit are its own, and it is its own data. The loop gives it checkpoints, resuming, averaged weights
and metrics.csv.
"""

import csv
import zlib

import numpy as np
import pytest
from scipy import ndimage

from scratchvit import ops, optim
from scratchvit.backend import array_module, asarray
from scratchvit.data import Loader, Normalize, channel_stats, load
from scratchvit.errors import ScratchvitError
from scratchvit.nn import evaluating
from scratchvit.parallel.communicator import ALONE
from scratchvit.training import Interrupted, Means, RunConfig, Task, TrainConfig, TrainingLoop, read_config, train
from tests.support.ranks import RankFailed, run_ranks
from tests.support.runs import assert_same_run, stop_at


class Rotation(Task):
    """Predict (cos α, sin α) of the angle α by which each image was turned; merit: a small mean error."""

    def __init__(self, config):
        self.config = config

    # --- the data ---

    def load_data(self, init):
        self.splits = load(self.config.data, val_fraction=self.config.val_fraction, seed=self.config.seed)
        self.mean, self.std = channel_stats(self.splits.train)
        return self

    def about(self):
        return {"name": self.splits.train.name, "classes": [], "mean": list(self.mean), "std": list(self.std)}

    def fingerprint(self):
        return {"train": zlib.crc32(self.splits.train.labels.tobytes())}

    def train_loader(self, config):
        return Loader(self.splits.train, config.batch_size, Normalize(self.mean, self.std), shuffle=True,
                      seed=config.seed, workers=config.workers)

    def model_args(self, about):
        return {"in_chans": len(about["mean"]), "num_classes": 2, **self.config.model_args}

    # --- learning ---

    def param_groups(self, model):
        return optim.param_groups(model, self.config.weight_decay, self.config.layer_decay)

    def loss(self, model, batch, inputs, step):
        means = self.means(model, batch.images, np.random.default_rng((self.config.seed, step)))
        return means["loss"], (means, len(batch.images))

    def means(self, model, images, rng):
        """The mean loss and the mean error in degrees, of images (B, C, H, W) turned by angles that rng draws."""
        angle = rng.uniform(-90, 90, len(images))
        turned = np.stack([ndimage.rotate(x, a, (1, 2), reshape=False, order=1, mode="nearest")
                           for x, a in zip(images, angle)])                                     # (B, C, H, W)
        radians = np.radians(angle)
        truth = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)         # (B, 2)
        answer = model(asarray(turned))                                                         # (B, 2)
        xp, (cos, sin) = array_module(answer.data), answer.data.T
        off = (xp.degrees(xp.arctan2(sin, cos)) - asarray(angle, np.float32) + 180) % 360 - 180
        return {"loss": ops.mse_loss(answer, asarray(truth)), "degrees": xp.abs(off).mean()}

    # --- judging ---

    def evaluate(self, model, batches, split):
        meter, rng = Means(), np.random.default_rng(0)         # the same angles every time
        with evaluating(model):
            for batch in batches(Loader(split, self.config.batch_size, Normalize(self.mean, self.std))):
                meter.add(self.means(model, batch.images, rng), len(batch.images))
        return meter.read()

    def validate(self, model, batches):
        return self.evaluate(model, batches, self.splits.val).columns("val_")

    def merit(self, row):
        return (-row["val_degrees"],)

    def line(self, row):
        return f"train {row['train_loss']:.4f}  val {row['val_loss']:.4f}, off by {row['val_degrees']:.1f}°"

    def test(self, model, batches, row, course):
        return course, self.evaluate(model, batches, self.splits.test).columns("test_")


CONFIG = RunConfig(
    data="digits", model="vit_tiny_patch16_224", epochs=2, batch_size=128, lr=3e-3, ema_decay=0.9, save_every=2,
    model_args={"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.1},
)


def run(config, folder, resume=False, log=lambda line: None, ranks=ALONE):
    loop = TrainingLoop(Rotation(config), config, folder, resume, log, ranks)
    with loop.folder:
        return loop.run()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nobody disturbs: its folder, its result, its log."""
    pytest.importorskip("sklearn")
    folder, lines = tmp_path_factory.mktemp("straight") / "run", []
    return folder, run(CONFIG, folder, log=lines.append), lines


def test_it_has_its_own_columns_log_and_result(straight):
    folder, (course, test), lines = straight
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train_loss", "train_degrees", "val_loss", "val_degrees", "lr", "skipped"} <= rows[0].keys()
    assert not any("accuracy" in name for name in rows[0])
    errors = [float(row["val_degrees"]) for row in rows]
    of_epochs = [line for line in lines if line.startswith("epoch")]        # a busy machine adds one about waiting
    assert course.best_epoch == 1 + int(np.argmin(errors)) and course.epochs == len(of_epochs) == 2
    assert test.keys() == {"test_loss", "test_degrees"} and f"off by {errors[0]:.1f}°" in of_epochs[0]


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Who always answers 0° is off by 45° on average."""
    _, test = run(CONFIG.replace(epochs=20, batch_size=64, ema_decay=0.0), tmp_path / "run")
    assert test["test_degrees"] < 25


@pytest.mark.parametrize("step", [3, 10, 20])       # within an epoch, at its end, and before the last validation
def test_it_goes_on_bit_for_bit(straight, step, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, step)
        with pytest.raises(Interrupted, match=rf"saved at step {step} of 20; resume with: TrainingLoop\(…, '.*', res"):
            run(CONFIG, tmp_path / "run")
    _, test = run(read_config(tmp_path / "run", RunConfig), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", straight[0])
    assert test == straight[1][1]


def test_its_folder_is_no_classifiers(straight):
    how = r"resume it with TrainingLoop\(…, '.*run', resume=True\), or"
    with pytest.raises(ScratchvitError, match=rf"a run of a custom task, not of `scratchvit train`: {how}"):
        train(TrainConfig(data="digits"), straight[0], resume=True)
    with pytest.raises(ScratchvitError, match=rf"already contains a run: {how}"):
        train(TrainConfig(data="digits"), straight[0])


def test_the_loop_and_its_task_must_have_the_same_config(tmp_path):
    with pytest.raises(ValueError, match=r"TrainingLoop: .* not the config of its Rotation: .*Rotation\(config\), "):
        TrainingLoop(Rotation(CONFIG), CONFIG.replace(epochs=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_answers_that_are_missing_are_named():
    class Half(Task):
        def load_data(self, init): ...

    with pytest.raises(TypeError, match=r"Half.*loss.*model_args.*param_groups.*test.*validate"):
        Half()


def test_several_processes_need_a_loader_that_divides_batches(tmp_path):
    """Otherwise each would count all images as its own share."""
    with pytest.raises(RankFailed, match=r"gives all 2 processes the same images: make it a Loader\(…, share="):
        run_ranks(2, lambda ranks: run(CONFIG, tmp_path / "run", ranks=ranks))
