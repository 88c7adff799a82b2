"""Batches for detection: padding and masks, what goes together, and that a resumed run goes on with the same."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.backend import asnumpy
from scratchvit.data import ColorJitter
from scratchvit.detection.data.batches import DetectionLoader, by_shape, pad
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.detection.data.transforms import RandomResize, detr_steps
from scratchvit.errors import ScratchvitError
from tests.support.noise_pictures import NORMALIZE, Plain, mixed
from tests.support.seeds import seeded


def ids(batches):
    return [target["image_id"] for _, _, targets in batches for target in targets]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for (x, mask, targets), (other_x, other_mask, other_targets) in zip(first, second):
        assert np.array_equal(x, other_x)
        assert np.array_equal(mask, other_mask)
        for target, other in zip(targets, other_targets, strict=True):
            assert target.keys() == other.keys()
            assert all(np.array_equal(target[key], other[key]) for key in target)


def test_images_are_padded_and_the_mask_says_where():
    data = Plain([(5, 9), (8, 6)])
    ((x, mask, targets),) = DetectionLoader(data, 2, NORMALIZE, stretch=1)
    assert (x.dtype, x.shape, mask.dtype, mask.shape) == (np.float32, (2, 3, 8, 9), bool, (2, 8, 9))
    for row, (height, width) in enumerate(data.sizes):
        own = NORMALIZE(np.asarray(data.picture(row))[None])[0]
        assert np.array_equal(x[row, :, :height, :width], own)
        assert not mask[row, :height, :width].any()
        assert mask[row].sum() == 72 - height * width
        assert np.all(x[row][:, mask[row]] == 0)
        assert targets[row]["size"] == targets[row]["orig_size"] == (height, width)
        np.testing.assert_array_equal(targets[row]["boxes"], data.target(row)["boxes"])


def test_batches_on_a_device_are_the_same_as_on_the_cpu(device):
    options = {"colours": ColorJitter(0.3, 0.3, 0.3), "shuffle": True, "stretch": 4}
    data = Plain([(24, 30 + number % 7 // 6) for number in range(50)])      # a seventh is wider
    found = list(DetectionLoader(data, 4, NORMALIZE, **options))
    selected = sv.backend.current()
    assert all(type(x) is selected.array_type and type(mask) is np.ndarray for x, mask, _ in found)
    sv.use("cpu")
    expected = list(DetectionLoader(data, 4, NORMALIZE, **options))
    assert 0 < sum(mask.any() for _, mask, _ in expected) < len(expected)
    assert_same([batch._replace(images=asnumpy(batch.images)) for batch in found], expected)


def test_sizes_are_those_after_the_steps():
    ((x, mask, targets),) = DetectionLoader(Plain([(30, 40), (60, 80)]), 2, NORMALIZE, steps=RandomResize([15]))
    assert x.shape == (2, 3, 15, 20)
    assert not mask.any()
    assert [target["size"] for target in targets] == [(15, 20)] * 2
    assert sorted(target["orig_size"] for target in targets) == [(30, 40), (60, 80)]


def test_colours_are_changed_before_normalising_and_boxes_are_not():
    data = mixed(4)
    plain, = DetectionLoader(data, 4, NORMALIZE)
    bright, = DetectionLoader(data, 4, NORMALIZE, colours=ColorJitter(brightness=(2, 2)))
    assert_same([(np.zeros(1), *plain[1:])], [(np.zeros(1), *bright[1:])])
    assert np.all(bright[0] >= plain[0])
    assert np.all(bright[0] <= NORMALIZE(np.full((1, 1, 1, 3), 255, np.uint8)))
    assert not np.array_equal(bright[0], plain[0])


@pytest.mark.parametrize("steps", [None, detr_steps(40)], ids=["as they are", "paper's"])
def test_batches_of_like_shape_waste_less(steps):
    def padding(stretch):
        loader = DetectionLoader(mixed(400), 4, NORMALIZE, steps=steps, shuffle=True, stretch=stretch)
        masks = [mask for _, mask, _ in loader]
        return sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)

    assert padding(25) < 0.5 * padding(1)
    assert padding(5) < 0.85 * padding(1)


def test_by_shape_keeps_every_image_once_in_whole_batches():
    rng = seeded(0)
    order = rng.permutation(1003)
    batches = by_shape(order, rng.integers(1, 100, (1003, 2)), 8)
    assert [len(batch) for batch in batches] == [8] * 125 + [3]
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))


def test_by_shape_puts_like_with_like():
    sizes = [(10, 20), (20, 10), (40, 80), (80, 40)] * 4
    for batch in by_shape(np.arange(16), sizes, 4):
        assert len({sizes[i] for i in batch}) == 1


@pytest.mark.parametrize("stretch", [1, 3, 16])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_picture_once(stretch, shuffle):
    loader = DetectionLoader(mixed(), 4, NORMALIZE, stretch=stretch, shuffle=shuffle)
    first, second = list(loader), list(loader)
    assert len(first) == len(loader) == 13
    assert [len(targets) for _, _, targets in first] == [4] * 12 + [2]
    assert sorted(ids(first)) == list(range(50))
    assert (ids(first) != ids(second)) == shuffle


def test_shapes_come_in_any_order():
    loader = DetectionLoader(Plain([(20, 40)] * 20 + [(40, 20)] * 20), 4, NORMALIZE, shuffle=True)
    lying = [[x.shape[2] == 20 for x, _, _ in loader] for _ in range(5)]
    assert [sum(epoch) for epoch in lying] == [5] * 5
    assert len(set(map(tuple, lying))) > 1


def test_what_is_dropped_is_drawn():
    loader = DetectionLoader(mixed(), 4, NORMALIZE, shuffle=True, drop_last=True)
    left_out = []
    for _ in range(12):
        batches = list(loader)
        assert [len(targets) for _, _, targets in batches] == [4] * 12
        left_out += set(range(50)) - set(ids(batches))
    assert len(set(left_out)) > 12      # of 24: not always the longest


def test_the_order_comes_from_seed_and_epoch():
    def orders(seed):
        loader = DetectionLoader(mixed(), 4, NORMALIZE, steps=detr_steps(40), shuffle=True, seed=seed)
        return [ids(loader) for _ in range(2)]

    assert orders(1) == orders(1)
    assert orders(1)[0] != orders(2)[0]


def test_a_picture_is_shown_alike_in_any_batch_but_not_in_any_epoch():
    def sizes(loader):
        return {target["image_id"]: target["size"] for _, _, targets in loader for target in targets}

    many = DetectionLoader(mixed(), 8, NORMALIZE, steps=detr_steps(40), shuffle=True)
    few = DetectionLoader(mixed(), 3, NORMALIZE, steps=detr_steps(40), stretch=2)
    first = sizes(many)
    assert first == sizes(few)
    assert first != sizes(many)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_with_the_same_batches(workers):
    def make():
        colours = ColorJitter(0.4, 0.4, 0.4, 0.1)
        return DetectionLoader(mixed(20), 4, NORMALIZE, steps=detr_steps(40), colours=colours, shuffle=True, seed=3,
                               workers=workers)

    loader = make()
    list(loader)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    rest = list(batches)
    resumed = make()
    resumed.load_state_dict(state)
    assert_same(list(resumed), rest)
    assert_same(list(resumed), list(loader))        # and the epoch after it
    loader.close(), resumed.close()


def test_scenes_never_come_twice():
    loader = DetectionLoader(load_scenes(48, train=6, val=2, test=2).train, 3, NORMALIZE, shuffle=True)
    assert sorted(ids(loader)) == [1, 2, 3, 4, 5, 6]
    assert sorted(ids(loader)) == [7, 8, 9, 10, 11, 12]
    val = DetectionLoader(load_scenes(48, train=6, val=2, test=2).val, 2, NORMALIZE)
    assert ids(val) == ids(val) == [1, 2]


def test_padding_of_one_size_is_none():
    images, mask = pad([np.ones((3, 4, 5), np.float32)] * 2)
    assert images.shape == (2, 3, 4, 5)
    assert not mask.any()


def test_padding_to_a_multiple():
    images, mask = pad([np.ones((3, 4, 9), np.float32), np.ones((3, 2, 5), np.float32)], 4)
    assert images.shape == (2, 3, 4, 12) and mask.shape == (2, 4, 12)
    for image, hidden, (height, width) in zip(images, mask, ((4, 9), (2, 5))):
        assert image.sum() == 3 * height * width and image[:, :height, :width].all()
        assert (~hidden).sum() == height * width and not hidden[:height, :width].any()


def test_settings_out_of_range():
    with pytest.raises(ScratchvitError, match="stretch=0"):
        DetectionLoader(mixed(), 4, NORMALIZE, stretch=0)
    with pytest.raises(ScratchvitError, match="plain: 50 pictures are too few for a batch of 51"):
        DetectionLoader(mixed(), 51, NORMALIZE, drop_last=True)
