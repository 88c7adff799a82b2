"""The embedded scenes: boxes against pixels, what is in them, and that they come out the same again."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scratchvit.data import ArrayDataset, Splits
from scratchvit.detection.data import scenes
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.errors import ScratchvitError
from tests.support.detection_samples import tight_box
from tests.support.seeds import seeded


@pytest.fixture(scope="module")
def splits():
    return load_scenes(train=50, val=20, test=30)


@pytest.mark.parametrize("img_size", [48, 96, 128])
def test_boxes_are_exact(img_size):
    data = load_scenes(img_size).train
    for index in range(40):
        picture, annotations = data.example(index)
        changed = np.any(np.asarray(picture) != data.ground(index), axis=-1)
        inked = np.zeros_like(changed)
        for digit, box in zip(data.digits(index), annotations.boxes.astype(int).tolist(), strict=True):
            x0, y0, x1, y1 = box
            own = np.zeros_like(changed)
            own[y0:y1, x0:x1] = digit.ink > 0
            assert tight_box(own & changed) == (x0, y0, x1, y1)
            assert not (own & inked).any()      # no digit covers another
            inked |= own
        assert np.array_equal(changed, inked)


def test_there_is_a_bit_of_everything(splits):
    annotations = [splits.train.annotations(index) for index in range(300)]
    counts = np.bincount([len(one.labels) for one in annotations])
    assert counts[0] == 0
    assert len(counts) == 7
    assert counts[1:].min() > 20
    labels = np.bincount(np.concatenate([one.labels for one in annotations]))
    assert len(labels) == 10
    assert labels.min() > 50
    boxes = np.concatenate([one.boxes for one in annotations])
    heights = boxes[:, 3] - boxes[:, 1]
    assert 12 < heights.min() < 18
    assert 40 < heights.max() < 55
    assert boxes.min() >= 0
    assert boxes.max() <= 96


def test_digits_stand_out_from_a_textured_ground(splits):
    for index in range(60):
        ground = splits.train.ground(index).astype(float)
        scene = np.asarray(splits.train.picture(index)).astype(float)
        assert ground.std(axis=(0, 1)).min() > 1.5
        for digit in splits.train.digits(index):
            x0, y0, x1, y1 = digit.box
            assert digit.ink[digit.ink > 0].min() >= 80     # a box ends where something can be seen
            full = digit.ink > 230
            difference = np.abs((scene - ground)[y0:y1, x0:x1][full].mean())
            assert difference > 45


def test_boxes_overlap_only_a_little(splits):
    overlaps = []
    for index in range(100):
        digits = splits.train.digits(index)
        for place, digit in enumerate(digits):
            overlaps += [scenes._overlap(digit.place, digit.ink.shape, other.box) for other in digits[:place]]
    assert 0 < max(overlaps) <= 0.15
    assert np.mean(np.array(overlaps) > 0) < 0.1


def test_overlap_is_a_share_of_the_smaller():
    assert scenes._overlap((0, 0), (10, 10), (5, 5, 25, 25)) == 0.25
    assert scenes._overlap((0, 0), (10, 10), (2, 2, 4, 4)) == 1
    assert scenes._overlap((0, 0), (10, 10), (10, 0, 20, 10)) == 0
    assert scenes._overlap((0, 0), (10, 10), (30, 30, 40, 40)) == 0


def test_a_scene_depends_on_seed_and_index_alone(splits):
    again, other = load_scenes(train=7).train, load_scenes(seed=1).train
    backwards = [again.picture(index) for index in reversed(range(5))][::-1]
    for index, picture in enumerate(backwards):
        assert np.array_equal(picture, splits.train.picture(index))
        assert np.array_equal(again.annotations(index).boxes, splits.train.annotations(index).boxes)
        assert not np.array_equal(picture, other.picture(index))
        assert not np.array_equal(picture, splits.train.picture(index + 50))


def test_example_is_picture_and_annotations(splits):
    picture, annotations = splits.val.example(3)
    assert np.array_equal(picture, splits.val.picture(3))
    assert np.array_equal(annotations.boxes, splits.val.annotations(3).boxes)
    assert (picture.mode, picture.size, annotations.size, annotations.image_id) == ("RGB", (96, 96), (96, 96), 4)


def test_val_and_test_are_fixed_and_differ(splits):
    other = load_scenes(seed=9, train=1)
    for part in ("val", "test"):
        assert np.array_equal(getattr(splits, part).picture(2), getattr(other, part).picture(2))
    assert not np.array_equal(splits.val.picture(2), splits.test.picture(2))
    assert [len(splits.train), len(splits.val), len(splits.test)] == [50, 20, 30]
    assert [splits.train.endless, splits.val.endless, splits.test.endless] == [True, False, False]


def test_each_part_is_made_of_its_own_digits(monkeypatch):
    def one_class(label):
        return ArrayDataset(np.full((3, 8, 8, 1), 255, np.uint8), [label] * 3, tuple("0123456789"))

    monkeypatch.setattr(scenes, "load_digits", lambda: Splits(one_class(1), one_class(2), one_class(3)))
    marked = load_scenes()
    for label, part in enumerate((marked.train, marked.val, marked.test), start=1):
        assert {int(label) for index in range(5) for label in part.annotations(index).labels} == {label}


def test_the_ground_truth_names_classes_and_scenes(splits):
    truth = splits.val.ground_truth()
    assert [image["id"] for image in truth["images"]] == list(range(1, 21))
    assert [category["name"] for category in truth["categories"]] == list("0123456789")
    first = [entry for entry in truth["annotations"] if entry["image_id"] == 1]
    assert [entry["category_id"] - 1 for entry in first] == splits.val.annotations(0).labels.tolist()


def test_every_digit_has_ink_at_any_size(splits):
    rng = seeded(0)
    for part in (splits.train, splits.val, splits.test):
        for which in range(0, len(part.labels), 7):
            stretch, tilt = rng.uniform(1 / 1.1, 1.1), rng.uniform(-15, 15)
            ink = part.drawn(scenes.Form(which, 9.0, stretch, tilt), (0, 0)).ink
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
            assert (ink > 0).sum() >= 8


def test_a_scene_can_be_drawn_again_from_forms_places_and_colours(splits):
    for index in range(20):
        scene = splits.test.ground(index).astype(np.float32)
        digits = splits.test.digits(index)
        for digit, colour in zip(digits, splits.test.colours(index), strict=True):
            scenes.paint(scene, splits.test.drawn(digit.form, digit.place), colour)
        assert np.array_equal(scenes.as_picture(scene), splits.test.picture(index))


def test_another_digit_is_beside_the_others_or_there_is_no_room(splits):
    rng, digits = seeded(0), splits.test.digits(0)
    while (digit := splits.test.another(7, digits, rng)) is not None:
        assert digit.label == splits.test.labels[digit.form.which] == 7
        for other in digits:
            assert scenes._overlap(digit.place, digit.ink.shape, other.box) <= 0.15
        digits.append(digit)
    assert 3 < len(digits) < 60


@pytest.mark.parametrize("options", [{"img_size": 47}, {"train": 0}])
def test_settings_out_of_range(options):
    with pytest.raises(ScratchvitError, match=r"^scenes: img_size"):
        load_scenes(**options)
