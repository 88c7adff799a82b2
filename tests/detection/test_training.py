"""Training a detector: it learns, goes on bit for bit, begins with other weights, and says what is wrong."""

import csv
import json
import signal

import numpy as np
import pytest

from scratchvit.detection.config import DetectConfig
from scratchvit.detection.matcher import HungarianMatcher, NonFiniteCosts
from scratchvit.detection.task import DetectionTask, prepare_detector, train_detector
from scratchvit.errors import ScratchvitError
from scratchvit.training import Interrupted, TrainConfig, TrainingLoop, load_checkpoint, read_config, train
from scratchvit.training.folder import command_of
from tests.support import detection_runs, runs
from tests.support.detection_runs import CONFIG, EVERYTHING, SIZES, quiet
from tests.support.detection_samples import coco, write_coco
from tests.support.margins import assert_close, ulps
from tests.support.runs import assert_same_run, stop_at

HEADS = ("class_embed", "label_enc")


@pytest.fixture(scope="module", autouse=True)
def small_scenes():
    with detection_runs.small_scenes():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs that nobody changes: its folder, result and lines."""
    folder, lines = tmp_path_factory.mktemp("finished") / "run", []
    return folder, train_detector(CONFIG, folder, log=lines.append), lines


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# --- what a run does ---


@pytest.mark.slow
def test_one_batch_is_learned_by_heart(tmp_path):
    """In 300 steps, so that backbone, encoder, decoder, heads, matching, losses and evaluation all do their part.

    With seeds 0 to 4, AP50 is 1, 1, 0.98, 1, 1 and AP 0.82, 0.92, 0.74, 0.88, 0.95. After 200 steps it is still chance:
    last bits decide, and AP50 is 0.86 to 1.
    """
    config = CONFIG.replace(overfit_one_batch=True, epochs=6, schedule="constant")
    result = train_detector(config, tmp_path / "run", log=quiet)
    assert result.test.AP50 >= 0.9 and result.test.AP >= 0.5 and result.val_AP == result.test.AP
    last = rows_of(tmp_path / "run")[-1]
    assert last["step"] == "300" and float(last["train_loss"]) < 4


def test_what_a_run_leaves(finished):
    folder, result, lines = finished
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "metrics.csv", "last.safetensors", "best.safetensors", "predictions"} <= names
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == ["epoch_001.png", "epoch_002.png"]
    assert (result.epochs, result.skipped, len(lines)) == (2, 0, 2) and result.parameters > 50_000
    assert len(result.test.classes) == 10 and result.test.AP is not None
    saved = load_checkpoint(folder)
    assert saved.data["classes"] == list("0123456789") and saved.data["category_ids"] == [*range(1, 11)]
    assert (saved.data["short_side"], saved.data["longest"]) == (0, 0)
    assert saved.model_args["num_classes"] == 10
    assert read_config(folder, DetectConfig) == CONFIG.as_read_back()


def test_every_loss_of_every_decoder_layer_has_its_column(finished):
    folder, result, lines = finished
    rows = rows_of(folder)
    for part in ("train", "val"):
        for name in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"):
            assert np.isfinite([float(rows[0][f"{part}_{name}{suffix}"]) for suffix in ("", "_0")]).all()
        for row in rows:        # the total is the weighted sum of all of them
            terms = [
                weight * float(row[f"{part}_loss_{kind}{suffix}"])
                for kind, weight in (("ce", 1), ("bbox", 5), ("giou", 2)) for suffix in ("", "_0")
            ]
            assert_close(float(row[f"{part}_loss"]), sum(terms), ulps(sum(terms), 4), f"{part}: six terms in float32")
    assert {"train_class_error", "val_class_error", "AP", "AP50", "AP75", "lr", "images_per_second", "seconds",
            "skipped"} <= rows[0].keys()
    assert result.val_loss == float(rows[result.best_epoch - 1]["val_loss"])
    assert f"train {float(rows[0]['train_loss']):.3f}  val " in lines[0] and ", AP 0." in lines[0]


@pytest.mark.slow
@pytest.mark.parity
def test_tensorboard_shows_what_a_detector_learns(finished):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = set(EventAccumulator(str(finished[0] / "tensorboard")).Reload().Tags()["scalars"])
    assert {"train/loss", "train/loss_giou_0", "val/loss", "val/AP50", "run/lr"} <= tags


def test_denoising_and_groups_are_trained_with(tmp_path):
    config = CONFIG.replace(model_args={**SIZES, "denoising": 1, "query_groups": 2, "focal": True}, epochs=1)
    train_detector(config, tmp_path / "run", log=quiet)
    row = rows_of(tmp_path / "run")[0]
    assert float(row["train_dn_loss_bbox_0"]) > 0 and "val_dn_loss_bbox" not in row


# --- going on ---


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, train_detector(EVERYTHING, folder, log=quiet)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 5, 9])      # within an epoch, at its end, and before the last validation
def test_interrupted_and_resumed(straight, step, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, step)
        with pytest.raises(Interrupted, match=f"saved at step {step} of 9.*scratchvit detect-train --resume"):
            train_detector(EVERYTHING, tmp_path / "run", log=quiet)
    result = train_detector(read_config(tmp_path / "run", DetectConfig), tmp_path / "run", resume=True, log=quiet)
    assert_same_run(tmp_path / "run", straight[0])
    assert (result.test, result.test_loss) == (straight[1].test, straight[1].test_loss)


def test_stopped_during_validation(straight, tmp_path, monkeypatch):
    """The averaged weights are in the model then: they must not be saved in place of its own."""
    validate = DetectionTask.validate

    def interrupted(self, model, batches):
        signal.raise_signal(signal.SIGTERM)
        return validate(self, model, batches)

    with monkeypatch.context() as patched:
        patched.setattr(DetectionTask, "validate", interrupted)
        with pytest.raises(Interrupted):
            train_detector(EVERYTHING, tmp_path / "run", log=quiet)
    train_detector(EVERYTHING, tmp_path / "run", resume=True, log=quiet)
    assert_same_run(tmp_path / "run", straight[0])


def test_other_boxes_are_no_reason_to_go_on(tmp_path):
    root = tmp_path / "data"
    content = coco()
    for part in ("train", "val"):
        write_coco(root, part, content)
    config = CONFIG.replace(data=str(root), epochs=1)
    train_detector(config, tmp_path / "run", log=quiet)
    content["annotations"][0]["bbox"] = [4, 6, 11, 12]
    write_coco(root, "train", content)
    with pytest.raises(ScratchvitError, match=r"these are not the pictures that the run in .* was started with"):
        train_detector(config.replace(epochs=2), tmp_path / "run", resume=True)


def test_a_run_is_resumed_by_the_command_that_began_it(finished, tmp_path):
    folder = finished[0]
    assert command_of(folder) == "detect-train"
    with pytest.raises(
        ScratchvitError,
        match=r"contains a run of `scratchvit detect-train`, not of `scratchvit train`: resume it with "
        r"scratchvit detect-train --resume .*run, or name another folder",
    ):
        train(TrainConfig(), folder, resume=True)
    with pytest.raises(ScratchvitError, match=r"already contains a run: .* with scratchvit detect-train --resume"):
        train(TrainConfig(), folder)
    train(runs.CONFIG.replace(epochs=1), tmp_path / "run", log=quiet)
    for older in (False, True):         # versions without detection left no mark
        if older:
            settings = json.loads((tmp_path / "run" / "config.json").read_text())
            assert settings.pop("command") == "train"
            (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ScratchvitError, match=r"a run of `scratchvit train`, not of `scratchvit detect-train`"):
            train_detector(CONFIG, tmp_path / "run", resume=True)
        assert read_config(tmp_path / "run") == runs.CONFIG.replace(epochs=1)


# --- beginning with other weights ---


def test_a_new_head_for_other_classes(finished, tmp_path):
    folder = finished[0]
    for part in ("train", "val"):
        write_coco(tmp_path / "data", part)
    config = CONFIG.replace(data=str(tmp_path / "data"), init=str(folder), epochs=1)
    with pytest.raises(ScratchvitError, match="class_embed"):
        prepare_detector(config, tmp_path / "run")
    loop = prepare_detector(config.replace(new_head=True), tmp_path / "run", log=quiet)
    with loop.folder:
        best = load_checkpoint(folder)
        weights = loop.model.state_dict()
        assert weights["class_embed.weight"].shape == (3, 32) and loop.about["category_ids"] == [3, 7]
        for name, weight in best.model.items():
            if not name.startswith(HEADS):
                assert np.array_equal(weights[name], weight), name
        assert loop.about["mean"] == best.data["mean"]       # pixels as the weights are used to
        assert loop.loaded is not None
        assert loop.run().epochs == 1


@pytest.mark.parametrize("options", [{"denoising": 1}, {"two_stage": True}], ids=str)
def test_a_new_head_is_all_that_knows_the_classes(options, tmp_path):
    """Also the classes of noised objects, and those that the encoder tells."""
    config = CONFIG.replace(model="dab_detr_tiny", model_args=SIZES | options, epochs=1)
    train_detector(config, tmp_path / "first", log=quiet)
    for part in ("train", "val"):
        write_coco(tmp_path / "data", part)
    config = config.replace(data=str(tmp_path / "data"), init=str(tmp_path / "first"), new_head=True)
    loop = prepare_detector(config, tmp_path / "run", log=quiet)
    with loop.folder:
        best, weights = load_checkpoint(tmp_path / "first").model, loop.model.state_dict()
    anew = {name for name, weight in best.items() if not np.array_equal(weight, weights[name])}
    knows_classes = ("class_embed.", "label_enc.", "proposals.class_embed.")
    assert anew <= {name for name in best if name.startswith(knows_classes)}
    assert {name for name in anew if name.endswith("weight")} == {
        name for name in best if name.startswith(knows_classes) and name.endswith("weight")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("model", "table"), [("detr_tiny", "query_embed"), ("dab_detr_tiny", "refpoint_embed")])
def test_of_a_run_with_query_groups_the_first_is_enough(model, table, tmp_path):
    config = CONFIG.replace(model=model, model_args=SIZES | {"query_groups": 3}, epochs=1)
    train_detector(config, tmp_path / "first", log=quiet)
    best, table = load_checkpoint(tmp_path / "first").model, f"{table}.weight"
    alone = config.replace(model_args=SIZES, init=str(tmp_path / "first"))
    for groups in (1, 2):
        changed = alone.replace(model_args=SIZES | {"query_groups": groups})
        loop = prepare_detector(changed, tmp_path / str(groups), log=quiet)
        with loop.folder:
            weights = loop.model.state_dict()
        assert loop.loaded.adapted == [f"{table}: the first {groups} of 3 query groups"]
        assert np.array_equal(weights[table], best[table][: 10 * groups])
        assert all(np.array_equal(value, weights[name]) for name, value in best.items() if name != table)
    # 30 queries that are no groups are not cut.
    train_detector(config.replace(model_args=SIZES | {"num_queries": 30}), tmp_path / "more", log=quiet)
    with pytest.raises(ScratchvitError, match=table):
        prepare_detector(alone.replace(init=str(tmp_path / "more")), tmp_path / "refused")


def weights_after(config, folder):
    """{name: weight} before the first step and at the end of a run."""
    loop = prepare_detector(config, folder, log=quiet)
    with loop.folder:
        before = loop.model.state_dict()
        loop.run()
    return before, load_checkpoint(folder / "last.safetensors").model


def test_a_frozen_stem_stays_as_it_is(finished, tmp_path):
    before, after = weights_after(CONFIG.replace(init=str(finished[0]), freeze_stem=True, epochs=1), tmp_path / "run")
    stem = [f"backbone.0.body.{name}." for name in ("conv1", "bn1", "layer1")]
    for name in after:
        moves = not name.startswith(tuple(stem)) or "running" in name or "num_batches" in name
        assert np.array_equal(before[name], after[name]) != moves, name


def test_the_backbone_has_a_learning_rate_of_its_own(tmp_path):
    """The first step of Adam is lr long, whatever the gradient; with a share of 0 the backbone stands still."""
    config = CONFIG.replace(optimizer="adam", weight_decay=0.0, clip_grad=0.0, schedule="constant", warmup_epochs=0.0)
    steps = {}
    for share in (0.0, 0.1, 1.0):
        loop = prepare_detector(config.replace(lr_backbone=share), tmp_path / str(share), log=quiet)
        before = loop.model.state_dict()
        batch = next(iter(loop.loader))
        loop.model.train()
        loop._step(batch, look=True)
        after = loop.model.state_dict()
        steps[share] = {
            part: np.median(np.abs(after[name] - before[name]))
            for part, name in (("backbone", "backbone.0.body.conv1.weight"), ("head", "class_embed.weight"))
        }
    assert steps[0.0]["backbone"] == 0
    assert steps[0.1]["backbone"] == pytest.approx(1e-4, rel=0.01)
    assert steps[1.0]["backbone"] == pytest.approx(1e-3, rel=0.01)
    assert [step["head"] for step in steps.values()] == pytest.approx([1e-3] * 3, rel=0.01)


# --- numbers that are not finite ---


def spoil(monkeypatch, *steps):
    """Make the pictures of these steps (from 1) such that a prediction is NaN: the matcher has nothing to go by."""
    make_step = TrainingLoop._step

    def spoiled(self, batch, look):
        if self.step + 1 in steps:
            batch = batch._replace(images=batch.images.copy())
            batch.images[-1, 0, 2, 2] = np.nan
        make_step(self, batch, look)

    monkeypatch.setattr(TrainingLoop, "_step", spoiled)


def test_predictions_that_are_not_finite_are_left_out(tmp_path, monkeypatch):
    states = []
    make_step = TrainingLoop._step

    def watched(self, batch, look):
        before = self.model.state_dict(), self.optimizer.state_dict()
        make_step(self, batch, look)
        after = self.model.state_dict(), self.optimizer.state_dict()
        states.append(all(
            one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in two)
            for one, two in zip(before, after)
        ))

    monkeypatch.setattr(TrainingLoop, "_step", watched)
    spoil(monkeypatch, 2)
    lines = []
    result = train_detector(CONFIG.replace(non_finite="skip"), tmp_path / "run", log=lines.append)
    assert states == [False, True, False, False, False, False]
    assert result.skipped == 1 and "1 step skipped" in lines[1] and "skipped" not in lines[2]
    assert all(np.isfinite(array).all() for array in load_checkpoint(tmp_path / "run").model.values())
    assert np.isfinite(float(rows_of(tmp_path / "run")[0]["train_loss"]))


def test_predictions_that_are_not_finite_end_the_run(tmp_path, monkeypatch):
    make_step = TrainingLoop._step

    def spoiled(self, batch, look):
        if self.step == 4:
            self.model.transformer.decoder.layers[1].linear1.weight.data[...] = 3e38    # finite, its products are not
        make_step(self, batch, look)

    monkeypatch.setattr(TrainingLoop, "_step", spoiled)
    with pytest.raises(
        ScratchvitError,
        match=r"step 5 \(epoch 2\): the loss is not finite; the first layer whose output is not finite is "
        r"transformer\.decoder\.layers\.1\.linear1 \(Linear\); the last good checkpoint is .*last\.safetensors\. ",
    ):
        train_detector(CONFIG, tmp_path / "run", log=quiet)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] == 3


def test_a_model_that_never_recovers_stops(tmp_path, monkeypatch):
    spoil(monkeypatch, *range(2, 20))
    with pytest.raises(ScratchvitError, match=r"10 steps in a row were skipped; .*last.* the loss is not"):
        train_detector(CONFIG.replace(non_finite="skip", batch_size=1, epochs=1), tmp_path / "run", log=quiet)


def test_a_validation_that_is_not_finite_is_told(tmp_path, monkeypatch):
    def diverge(self, model, batches):
        model.class_embed.bias.data[...] = np.inf
        return validate(self, model, batches)

    validate = DetectionTask.validate
    monkeypatch.setattr(DetectionTask, "validate", diverge)
    with pytest.raises(ScratchvitError, match="the loss on scenes val is not finite; nothing has been saved yet"):
        train_detector(CONFIG, tmp_path / "run", log=quiet)


def test_the_matcher_says_it_with_an_error_of_its_own():
    outputs = {"pred_logits": np.full((1, 2, 3), np.nan, np.float32), "pred_boxes": np.full((1, 2, 4), 0.5, np.float32)}
    targets = [{"labels": np.array([0]), "boxes": np.full((1, 4), 0.5)}]
    with pytest.raises(NonFiniteCosts, match="image 0 of the batch cannot be matched"):
        HungarianMatcher()(outputs, targets)
    with pytest.raises(ScratchvitError) as other:
        HungarianMatcher()(outputs, [])
    assert not isinstance(other.value, NonFiniteCosts)


# --- what is asked of a device ---


def test_a_step_waits_for_the_device_once(cuda, tmp_path):
    """For the matcher; numbers for meters and logs are read when somebody looks."""
    counts = pytest.importorskip("fakegpu.device").counts
    loop = prepare_detector(CONFIG.replace(device="gpu"), tmp_path / "run", log=quiet)
    batch = next(iter(loop.loader))
    loop.model.train()
    before = counts()["d2h"]
    loop._step(batch, look=False)
    assert counts()["d2h"] - before == 1
    assert np.isfinite(loop.meter.read().loss)
