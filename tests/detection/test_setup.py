"""What a DetectConfig is made into: data as they are shown, a loss; and what is wrong with one, in a sentence."""

import sys

import numpy as np
import pytest

from scratchvit import Tensor
from scratchvit.detection import run_data, task
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.detection.losses import Output, to_columns
from scratchvit.detection.task import make_criterion, train_detector
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model
from scratchvit.training import Means
from tests.support import detection_runs
from tests.support.detection_runs import CONFIG, SIZES
from tests.support.detection_samples import coco, write_coco


@pytest.fixture(scope="module", autouse=True)
def small_scenes():
    with detection_runs.small_scenes():
        yield


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "resnet18"}, r"resnet18 is not a detector"),
        ({"optimizer": "lion"}, r"optimizer is one of adamw, adam, sgd, not 'lion'"),
        ({"lr_backbone": -0.1}, r"lr_backbone must be at least 0, not -0\.1"),
        ({"eos_coef": -1.0}, r"eos_coef, the weight of no-object, must be at least 0, not -1\.0"),
        ({"cost_bbox": float("nan")}, r"the costs of matching must be finite"),
        ({"batch_size": "4"}, r"batch_size must be a number, not '4'"),
        ({"color_jitter": 1.0}, r"color_jitter must lie in \[0, 1\), not 1\.0"),
        ({"multi_scale": True}, r"multi_scale needs the size of the shorter side: set short_side"),
        ({"longest": 100}, r"longest needs the size of the shorter side: set short_side"),
        ({"short_side": 100, "longest": 50}, r"longest must be at least short_side, 100, not 50"),
        ({"data": "photos", "epoch_images": 5}, r"epoch_images is for generated scenes"),
        ({"freeze_stem": True}, r"freeze_stem is for a pretrained backbone: name its weights with init"),
        ({"new_head": True}, r"name the file with init"),
        ({"model_args": {"num_classes": 91}}, r"num_classes is 10 for scenes train, not 91: leave num_classes out"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(changes, sentence, tmp_path):
    with pytest.raises(ScratchvitError, match=sentence):
        train_detector(CONFIG.replace(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_pycocotools_nothing_begins(tmp_path, monkeypatch):
    for name in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(task, "load_data", None)
    with pytest.raises(ScratchvitError, match=r"pip install \"scratchvit\[coco\]\""):
        train_detector(CONFIG, tmp_path / "run")


def test_bad_entries_are_left_out_if_asked_for(tmp_path):
    content = coco()
    content["annotations"][1]["category_id"] = 99
    write_coco(tmp_path / "data", "val")
    write_coco(tmp_path / "data", "train", content)
    config = CONFIG.replace(data=str(tmp_path / "data"))
    with pytest.raises(ScratchvitError, match="99"):
        run_data.load_data(config)
    assert len(run_data.load_data(config.replace(skip_bad=True)).splits.skipped) == 1


def test_sizes_and_flips_are_as_asked_for():
    plain = run_data.load_data(CONFIG)
    images, mask, _ = next(iter(plain.train_loader(CONFIG)))
    assert images.shape == (4, 3, 48, 48) and not mask.any()
    config = CONFIG.replace(short_side=60, longest=90, multi_scale=True)
    data = run_data.load_data(config)
    assert (data.about()["short_side"], data.about()["longest"]) == (60, 90)
    assert run_data.load_data(config.replace(longest=0)).about()["longest"] == 100
    views = data.train_loader(config).views
    shown = [views.view(place) for place in range(100)]
    assert {min(view.size) for view in shown} > {36, 60} and not any(view.mirrored for view in shown)
    flipping = data.train_loader(config.replace(flip=True)).views
    assert 30 < sum(flipping.view(place).mirrored for place in range(100)) < 70
    assert next(iter(data.eval_loader(data.splits.val, 4)))[0].shape == (4, 3, 60, 60)


def test_how_long_an_epoch_of_scenes_is():
    data = run_data.load_data(CONFIG.replace(epoch_images=7))
    assert len(data.splits.train) == 7 and len(data.train_loader(CONFIG)) == 2


def test_one_batch_is_the_same_in_every_step_and_in_every_split():
    config = CONFIG.replace(overfit_one_batch=True, batch_size=3, flip=True, color_jitter=0.5)
    data = run_data.load_data(config)
    first, *others = [images for images, _, _ in data.train_loader(config)]
    assert len(others) == run_data.OVERFIT_STEPS - 1 and all(np.array_equal(first, images) for images in others)
    for split in (data.splits.val, data.splits.test):
        assert len(split) == 3
        (images, _, targets), = data.eval_loader(split, 3)
        assert sorted(target["image_id"] for target in targets) == [1, 2, 3]
        assert {picture.tobytes() for picture in images} == {picture.tobytes() for picture in first}
    assert any("the first 3 pictures" in note for note in data.splits.notes)


def test_worker_processes_make_the_same_batches():
    config = CONFIG.replace(overfit_one_batch=True, batch_size=3)
    data = run_data.load_data(config)
    loaders = [data.train_loader(config.replace(workers=workers)) for workers in (0, 1)]
    here, there = (next(iter(loader)) for loader in loaders)
    loaders[1].close()
    assert np.array_equal(here[0], there[0])


def test_mean_and_deviation_are_those_of_the_training_pictures():
    scenes = load_scenes(48, train=5).train
    pixels = np.stack([np.asarray(scenes.picture(index)) for index in range(5)]).reshape(-1, 3) / 255
    mean, std = run_data.channel_stats(scenes)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-12)


def test_the_meter_weighs_batches_by_their_images():
    meter = Means()
    for total, ce, error, images in ((3.0, 1.0, 50, 3), (7.0, 2.0, 100, 1)):
        of_layer = {"ce": Tensor(np.float32(ce)), "class_error": np.float32(error)}
        losses = to_columns({Output("decoder", 0): of_layer})
        meter.add({"loss": Tensor(np.float32(total)), **losses}, images)
    assert meter.read().columns("val_") == {"val_loss": 4.0, "val_loss_ce": 1.25, "val_class_error": 62.5}
    assert meter.loss == 4.0 and Means().loss == 0.0


def test_a_class_counts_as_the_paper_of_its_loss_says():
    plain, focal = (DetectConfig(model_args={**SIZES, "focal": focal}) for focal in (False, True))
    for config, expected in ((plain, 1.0), (focal, 2.0)):
        criterion = criterion_of(config)
        assert criterion.matcher.cost_class == criterion.weights["ce"] == expected
    chosen = criterion_of(focal.replace(cost_class=0.5, weight_ce=3.0))
    assert (chosen.matcher.cost_class, chosen.weights["ce"], chosen.matcher.focal) == (0.5, 3.0, True)


def criterion_of(config):
    return make_criterion(config, create_model(config.model, **config.model_args, num_classes=10))
