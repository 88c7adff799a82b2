"""A whole small run, and what it leaves in its folder."""

import csv
import dataclasses
import json
import pickle

import numpy as np
import pytest

from scratchvit import ops
from scratchvit.cli._splits import splits_of
from scratchvit.data import Loader, Normalize
from scratchvit.errors import ScratchvitError
from scratchvit.training import (
    Interrupted,
    Meter,
    TrainConfig,
    evaluate,
    load_checkpoint,
    model_from_checkpoint,
    prepare,
    read_config,
    train,
)
from scratchvit.training.checkpoint import Checkpoint, save_checkpoint
from scratchvit.training.classification.data import load_data
from tests.support.data_samples import write_image_folder, write_picture
from tests.support.margins import agree, assert_close, rounding
from tests.support.runs import CONFIG
from tests.support.seeds import seeded


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    lines = []
    config = CONFIG.replace(epochs=6, batch_size=32, ema_decay=0.8)
    result = train(config, tmp_path_factory.mktemp("runs") / "run", log=lines.append)
    return config, result, lines


def test_it_learns_and_reports(finished):
    config, result, lines = finished
    assert result.test_accuracy > 0.8
    of_epochs = [line for line in lines if line.startswith("epoch ")]       # below some, a remark
    assert result.epochs == len(of_epochs) == config.epochs
    assert result.val_accuracy == max(row["val_accuracy"] for row in load_checkpoint(
        result.run_dir / "last.safetensors").progress["history"])
    assert "  best  " in lines[0] and "  val " in lines[0]
    written = {path.name for path in result.run_dir.iterdir()}
    assert written - {"tensorboard"} == {"best.safetensors", "config.json", "last.safetensors", "metrics.csv"}


def test_config_and_metrics_are_plain_files(finished):
    config, result, _ = finished
    assert read_config(result.run_dir) == config
    assert json.loads((result.run_dir / "config.json").read_text())["batch_size"] == 32
    with (result.run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(e + 1) for e in range(config.epochs)]
    assert [int(row["step"]) for row in rows] == [40 * (e + 1) for e in range(config.epochs)]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_the_best_checkpoint_gives_the_tested_model(finished):
    config, result, _ = finished
    model, checkpoint = model_from_checkpoint(result.run_dir)
    assert not model.training
    assert checkpoint.data["classes"] == list("0123456789")
    assert checkpoint.data["image_shape"] == [8, 8, 1] and len(checkpoint.data["mean"]) == 1
    assert checkpoint.model_args["in_chans"] == 1 and checkpoint.model_args["num_classes"] == 10
    assert not checkpoint.optimizer and checkpoint.ema
    data = load_data(config)
    found = evaluate(model, data.eval_loader(data.splits.test, 100))
    assert found.accuracy == result.test_accuracy and found.images == 360
    bound = rounding(lambda: evaluate(model, data.eval_loader(data.splits.test, 100)).loss, samples=1)[""]
    assert_close(found.loss, result.test_loss, bound, "in batches of 100")
    own, _ = model_from_checkpoint(result.checkpoint, ema=False)
    assert not np.array_equal(own.head.weight.data, model.head.weight.data)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd", "lr": 0.1, "schedule": "step"},
        {"optimizer": "adam", "schedule": "linear", "clip_grad": 0.0},
        {"schedule": "constant", "epochs": 1, "warmup_epochs": 5.0, "label_smoothing": 0.1},
    ],
)
def test_other_settings_train_too(change, tmp_path):
    result = train(CONFIG.replace(**change), tmp_path / "run")
    assert np.isfinite(result.test_loss)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"optimizer": "adamm"}, "optimizer is one of adamw, adam, sgd"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": float("nan")}, "lr must be at least 0"),
        ({"ema_decay": 1.0}, "ema_decay must lie in"),
        ({"model_args": {**CONFIG.model_args, "num_classes": 4}}, "too small for the 10 classes of digits"),
        ({"model_args": {**CONFIG.model_args, "patch_size": 3}}, "cannot be cut into patches"),
        ({"model": "vit_tinny_patch16_224"}, "did you mean"),
        ({"data": "digitz"}, "did you mean 'digits'"),
    ],
)
def test_settings_that_make_no_sense_leave_no_folder(change, text, tmp_path):
    with pytest.raises(ScratchvitError, match=text):
        train(CONFIG.replace(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_keeps_everything(tmp_path):
    rng = seeded(0)
    saved = Checkpoint(
        config=dataclasses.asdict(TrainConfig()),
        model_name="m",
        model_args={"img_size": [8, 8]},
        data={"classes": ["a", "ö"]},
        progress={"step": 7, "meter": {"loss_sum": 0.1}},
        model={"w": rng.standard_normal((3, 2), dtype=np.float32), "count": np.array(3), "empty": np.zeros((0, 2))},
        ema={"w": np.asfortranarray(rng.standard_normal((3, 2)))},
        optimizer={"step.0": 4, "exp_avg.0": np.ones(2, np.float32)},
    )
    save_checkpoint(tmp_path / "c.safetensors", saved)
    found = load_checkpoint(tmp_path / "c.safetensors")
    for part in ("config", "model_name", "model_args", "data", "progress", "versions"):
        assert getattr(found, part) == getattr(saved, part)
    for part in ("model", "ema", "optimizer"):
        one, two = getattr(found, part), getattr(saved, part)
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[k], two[k]) and np.shape(one[k]) == np.shape(two[k]) for k in two)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_meter_weighs_images_alike():
    from scratchvit import Tensor

    rng = seeded(0)
    logits, labels = rng.standard_normal((10, 3), dtype=np.float32), rng.integers(0, 3, 10)
    meter = Meter()
    for part in (slice(0, 7), slice(7, 10)):
        x = Tensor(logits[part])
        meter.add(ops.cross_entropy(x, labels[part]), x, labels[part])
    agree(lambda: ops.cross_entropy(Tensor(logits), labels), meter.loss)
    assert meter.accuracy == (logits.argmax(1) == labels).mean()


def test_a_last_batch_of_one_image_does_not_stop_batch_norm(tmp_path):
    sizes = {"layers": (1, 1, 1, 1), "img_size": 8}
    config = TrainConfig(model="resnet18", model_args=sizes, epochs=2, batch_size=32, epoch_images=65, lr=1e-3)
    train(config, tmp_path / "run")     # the last map of 8×8 images is 1×1: one image has no variance
    assert load_checkpoint(tmp_path / "run").progress["step"] in (2, 4)


def test_training_on_a_share_of_the_images(tmp_path):
    config = CONFIG.replace(train_fraction=0.1, epoch_images=512, epochs=1, batch_size=64)
    loop = prepare(config, tmp_path / "run")
    counts = np.bincount(loop.task.data.splits.train.labels)
    assert len(loop.task.data.splits.train) == 126 and counts.min() >= 12 and counts.max() <= 13
    whole = load_data(config.replace(train_fraction=1.0))
    assert len(loop.task.data.splits.val) == len(whole.splits.val) and len(loop.task.data.splits.test) == 360
    result = loop.run()
    assert len(loop.loader) == 8 and loop.step == 8 and result.epochs == 1


def test_an_epoch_of_several_passes_shows_every_image_equally_often():
    data = load_data(CONFIG.replace(train_fraction=0.02)).splits.train
    loader = Loader(data, 10, Normalize((0.0,), (1.0,)), shuffle=True, epoch_size=2 * len(data) + 3)
    seen = np.concatenate([batch.indices for _ in range(3) for batch in loader])
    assert len(seen) == 3 * (2 * len(data) + 3)
    counts = np.bincount(seen, minlength=len(data))
    assert counts.min() >= 6 and counts.max() <= 7
    for first in range(0, 6 * len(data), len(data)):        # pass after pass, over the ends of epochs
        assert sorted(seen[first : first + len(data)]) == list(range(len(data)))


def test_the_training_images_of_a_checkpoint_are_those_it_saw(tmp_path):
    config = CONFIG.replace(train_fraction=0.1, epochs=1)
    train(config, tmp_path / "run")
    splits = splits_of(load_checkpoint(tmp_path / "run"))
    np.testing.assert_array_equal(splits.train.labels, load_data(config).splits.train.labels)
    assert len(splits.train) == 126


@pytest.mark.parametrize("how", ["init", "palette"])
def test_other_pictures_are_noticed_where_their_statistics_are_not_taken(how, tmp_path):
    write_image_folder(tmp_path / "photos", per_class=12)
    config = TrainConfig(data=str(tmp_path / "photos"), model_args={**CONFIG.model_args, "img_size": 8}, epochs=1)
    if how == "init":
        train(config, tmp_path / "first")
        config = config.replace(init=str(tmp_path / "first"))
    else:
        sizes = {"img_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_colors": 4}
        config = config.replace(model="igpt_tiny", model_args=sizes)
    train(config, tmp_path / "run")
    train(config.replace(epochs=2), tmp_path / "run", resume=True)
    write_picture(tmp_path / "photos" / "train" / "ant" / "one-more.png")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ScratchvitError, match="not the pictures that the run"):
        train(config.replace(epochs=9), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before       # it may still end as it was meant to


def test_an_interrupted_run_can_tell_another_process():
    error = pickle.loads(pickle.dumps(Interrupted("stopped", 2)))      # noqa: S301
    assert str(error) == "stopped" and error.exit_status == 130
