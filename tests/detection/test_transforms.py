"""Flips, crops and sizes: boxes against masks that were drawn and transformed, and what is drawn at random."""

import numpy as np
import pytest
from PIL import Image

from scratchvit.detection.boxes import box_cxcywh_to_xyxy
from scratchvit.detection.data.transforms import (
    RandomHorizontalFlip,
    RandomResize,
    RandomSelect,
    RandomSizeCrop,
    Steps,
    View,
    detr_steps,
)
from scratchvit.errors import ScratchvitError
from tests.support.detection_samples import mask_of, tight_box
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

HEIGHT, WIDTH = 90, 120


def random_boxes(rng, count=6):
    corners = rng.integers(0, (WIDTH, HEIGHT), (count, 2, 2))
    low, high = corners.min(axis=1), corners.max(axis=1) + 1
    return np.concatenate([low, high], axis=1).astype(np.float64)


def in_pixels(view, boxes):
    """Boxes of the view as (x0, y0, x1, y1) in its pixels, and which were kept."""
    found, kept = view.of_boxes(boxes)
    height, width = view.size
    return box_cxcywh_to_xyxy(found.astype(np.float64)) * (width, height, width, height), kept


@pytest.mark.parametrize("seed", range(30))
def test_flips_and_crops_against_masks_cut_and_turned(seed):
    rng = seeded(seed)
    boxes = random_boxes(rng)
    view = View.whole((HEIGHT, WIDTH))
    masks = np.stack([mask_of(box, HEIGHT, WIDTH) for box in boxes])
    for _ in range(4):
        if rng.random() < 0.5:
            view, masks = view.flipped(), masks[:, :, ::-1]
        else:
            height, width = (int(rng.integers(side // 2, side + 1)) for side in view.size)
            top, left = (int(rng.integers(side - part + 1)) for side, part in zip(view.size, (height, width)))
            view = view.cropped(top, left, height, width)
            masks = masks[:, top : top + height, left : left + width]
    found, kept = in_pixels(view, boxes)
    assert kept.tolist() == masks.any(axis=(1, 2)).tolist()
    expected = [tight_box(mask) for mask in masks[kept]]
    assert_close(found, np.reshape(expected, (-1, 4)), ulps(WIDTH, 4))
    for box, mask in zip(boxes, masks):
        image = view.of_picture(Image.fromarray(mask_of(box, HEIGHT, WIDTH)))
        assert np.array_equal(np.asarray(image), mask)


@pytest.mark.parametrize("seed", range(30))
def test_boxes_are_where_the_image_has_them_after_any_steps(seed):
    rng = seeded(seed)
    boxes = random_boxes(rng)
    view = detr_steps(100)(View.whole((HEIGHT, WIDTH)), rng)
    found, kept = in_pixels(view, boxes)
    images = [view.of_picture(Image.fromarray(mask_of(box, HEIGHT, WIDTH))) for box in boxes]
    for image, was_kept in zip(images, kept):
        assert image.size == view.size[::-1]
        assert was_kept or not np.asarray(image).max() > 250        # less than a pixel of it is left
    compared = 0
    for box, image in zip(found, np.array(images)[kept]):
        if min(box[2:] - box[:2]) > 2:
            np.testing.assert_allclose(tight_box(image > 127), box, atol=1)
            compared += 1
    assert compared


def test_a_crop_after_resizing_is_one_box_of_the_picture():
    view = View.whole((40, 60)).resized(80, 120).cropped(10, 20, 30, 40)
    assert view == View((10, 5, 30, 20), (30, 40))
    assert view.flipped().cropped(0, 0, 30, 10) == View((25, 5, 30, 20), (30, 10), mirrored=True)


def test_any_crop_of_any_size_stays_within_the_picture():
    rng = seeded(0)
    for _ in range(300):
        size = tuple(rng.integers(1, 700, 2).tolist())
        view = View.whole(size)
        for step in (RandomResize(range(1, 90), 100), RandomSizeCrop(1, 60), RandomResize([37]), RandomSizeCrop(2, 9)):
            view = step(view, rng)
        x0, y0, x1, y1 = view.box
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]
        assert view.of_picture(Image.new("L", size[::-1])).size == view.size[::-1]


def test_all_of_an_image_is_no_more_than_the_picture():
    for own in range(1, 100):       # own / other · other can be more than own
        for other in range(1, 100):
            box = View.whole((own, own)).resized(other, other).cropped(0, 0, other, other).box
            assert box[2] <= own
            assert box[3] <= own


def test_boxes_that_are_cut_away_are_dropped_but_small_ones_are_kept():
    cut = [[0, 0, 10, 10], [0, 0, 10.5, 10], [0, 0, 11.5, 10]]
    others = [[12, 5, 12.2, 5.2], [39.9, 5, 40.6, 6], [-0.5, 0, 41, 30]]
    found, kept = View.whole((30, 40)).cropped(0, 10, 30, 30).of_boxes(np.array(cut + others))
    assert kept.tolist() == [False, False, True, True, False, True]
    assert found.dtype == np.float32
    assert_close(found[0], [0.75 / 30, 5 / 30, 1.5 / 30, 10 / 30], ulps(10 / 30, 1))
    assert found[2].tolist() == [0.5, 0.5, 1, 1]


def test_no_boxes():
    found, kept = View.whole((30, 40)).flipped().of_boxes(np.zeros((0, 4)))
    assert found.shape == (0, 4)
    assert kept.shape == (0,)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (300, 400)), ((640, 480), (400, 300)), ((100, 1000), (50, 500)), ((7, 7), (300, 300))],
)
def test_the_short_side_is_chosen_and_the_long_side_bounded(size, expected):
    assert RandomResize([300], 500)(View.whole(size), seeded(0)).size == expected


def test_every_short_side_is_drawn():
    rng = seeded(0)
    drawn = [RandomResize([30, 40, 50])(View.whole((10, 20)), rng).size for _ in range(300)]
    assert {size: drawn.count(size) > 70 for size in drawn} == {(30, 60): True, (40, 80): True, (50, 100): True}


def test_a_crop_has_every_size_and_place():
    rng = seeded(0)
    views = [RandomSizeCrop(4, 6)(View.whole((8, 5)), rng) for _ in range(500)]
    assert {view.size for view in views} == {(height, width) for height in (4, 5, 6) for width in (4, 5)}
    assert {view.box[1] for view in views if view.size[0] == 4} == {0, 1, 2, 3, 4}
    assert RandomSizeCrop(10, 20)(View.whole((8, 15)), rng).size[0] == 8        # a side below the least is kept whole


def test_the_paper_s_sizes():
    rng = seeded(0)
    views = [detr_steps(800, 1333)(View.whole((600, 600)), rng) for _ in range(600)]
    assert {min(view.size) for view in views} == set(range(480, 801, 32))
    assert all(max(view.size) <= 1333 for view in views)
    assert 0.4 < np.mean([view.mirrored for view in views]) < 0.6
    whole = [view.box == (0, 0, 600, 600) for view in views]
    assert 0.4 < np.mean(whole) < 0.6
    parts = np.array([view.box for view in views])[~np.array(whole)]
    shares = (parts[:, 2:] - parts[:, :2]) / 600        # 384 … 600 of 400, 500 or 600 pixels
    assert 384 / 600 <= shares.min() < 0.68
    assert shares.max() == 1


def test_what_is_drawn_depends_on_the_generator_alone():
    step, view = detr_steps(100), View.whole((90, 120))
    first, second = ([step(view, rng) for _ in range(20)] for rng in map(np.random.default_rng, (5, 5)))
    assert first == second != [step(view, seeded(6)) for _ in range(20)]


def test_one_of_two():
    rng = seeded(0)
    select = RandomSelect(RandomResize([10]), Steps(RandomResize([20]), RandomHorizontalFlip(1)), p=0.25)
    views = [select(View.whole((40, 40)), rng) for _ in range(400)]
    assert set(views) == {View((0, 0, 40, 40), (10, 10)), View((0, 0, 40, 40), (20, 20), mirrored=True)}
    assert 70 < sum(view.size == (10, 10) for view in views) < 130


@pytest.mark.parametrize(
    "make",
    [lambda: RandomHorizontalFlip(1.1), lambda: RandomSelect(None, None, -0.1), lambda: RandomResize([]),
     lambda: RandomResize([0]), lambda: RandomResize([9], 0), lambda: RandomSizeCrop(5, 4),
     lambda: RandomSizeCrop(0, 4)],
)
def test_settings_out_of_range(make):
    with pytest.raises(ScratchvitError, match=r"^Random"):
        make()
