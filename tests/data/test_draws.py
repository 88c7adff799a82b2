"""What augmentation and mixing draw, counted against the distributions that their docstrings promise.

A distribution is refused where chance alone would be this far off once in a million times.
"""

import math
import random

import numpy as np
import pytest
from scipy import stats

from scratchvit.data import RandomCrop, RandomHorizontalFlip
from scratchvit.data.augment import ColorJitter, RandomErasing, RandomResizedCrop
from scratchvit.data.mixing import Mix
from scratchvit.data.randaugment import OPERATIONS, RandAugment, apply_operation
from tests.support.augment_samples import CHANCE, alike, generator, independent, likely, uniform
from tests.support.data_samples import random_images

N = 10_000
H, W = 3600, 4000       # so large that a side's rounding does not show


def assert_uniform_and_independent(shares):
    """Columns that are each uniform in 0 … 1, and tell nothing of one another or of the picture before."""
    for name, share in shares.items():
        assert uniform(share), name
        assert independent(share[1:], share[:-1]), f"{name} of neighbours"
    assert independent(*shares.values())


def in_unit(values, low, high):
    return (values - low) / (high - low)


def places(box, size):
    """Where a box lies between the borders, (y, x) in 0 … 1."""
    top, left, height, width = box.T
    half = 0.5      # a place is a whole number, out of size - side + 1
    return (top + half) / (size[0] - height + 1), (left + half) / (size[1] - width + 1)


def assert_tossed(heads, p):
    """Zeros and ones (N,), each 1 with probability p, whatever its neighbour is."""
    two = np.outer([1 - p, p], [1 - p, p]).ravel()
    counts = np.bincount(2 * heads[::2] + heads[1::2], minlength=4)
    assert likely(counts, two * N / 2) if 0 < p < 1 else (heads == p).all()


def halves(count, side):
    """Black pictures and then as many white ones, of which each is mixed with one of the other half."""
    return np.repeat([0.0, 1.0], count // 2).astype(np.float32)[:, None, None, None].repeat(side, 2).repeat(side, 3)


# Boxes


def test_areas_ratios_and_places_of_crops():
    """Boxes that fit at the first attempt: what is drawn is what is cut."""
    boxes = RandomResizedCrop(8, scale=(0.1, 0.4), ratio=(0.5, 1.5)).boxes(np.tile((H, W), (N, 1)), generator())
    _, _, height, width = boxes.T
    y, x = places(boxes, (H, W))
    assert_uniform_and_independent({
        "area": in_unit(height * width / (H * W), 0.1, 0.4),
        "log ratio": in_unit(np.log(width / height), math.log(0.5), math.log(1.5)),
        "y": y, "x": x,
    })


@pytest.mark.parametrize("count", [1, 3])
def test_areas_ratios_and_places_of_erased_boxes(count):
    erasing = RandomErasing(1.0, (0.05, 0.3), (0.4, 1.6), count=count)
    boxes = erasing.boxes((N, 3, H, W), generator())
    numbers = np.array([len(own) for own in boxes])
    assert set(numbers) == set(range(1, count + 1)) and (count == 1 or likely(np.bincount(numbers)[1:]))
    for nth in range(count):        # of the pictures with that many boxes or more
        own = [(len(some), *some[nth]) for some in boxes if len(some) > nth]
        number, box = np.split(np.array(own), [1], axis=1)
        y, x = places(box, (H, W))
        assert_uniform_and_independent({
            "area": in_unit(box[:, 2] * box[:, 3] * number[:, 0] / (H * W), 0.05, 0.3),
            "log ratio": in_unit(np.log(box[:, 2] / box[:, 3]), math.log(0.4), math.log(1.6)),
            "y": y, "x": x,
        })
    if count > 1:
        first, second, _ = np.array([some for some in boxes if len(some) == 3]).swapaxes(0, 1)
        assert all(independent(a, b) for a, b in zip(first.T, second.T))        # top, left, height, width


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_how_many_pictures_are_erased(p):
    boxes = RandomErasing(p, (0.1, 0.2)).boxes((N, 3, H, W), generator())
    assert_tossed(np.array([len(own) for own in boxes]), p)


@pytest.mark.parametrize("mode", ["rand", "pixel"])
def test_erased_boxes_are_filled_with_normal_noise(mode):
    """For every channel its own, and with "pixel" for every pixel. A box of side 4 or 5 covers the middle of 6 × 6."""
    erasing = RandomErasing(1.0, (0.4, 0.6), (1.0, 1.0), mode)
    middle = erasing(np.zeros((5000, 3, 6, 6), np.float32), generator())[:, :, 2:4, 2]      # (5000, channel, row)
    if mode == "rand":
        assert (middle[..., 0] == middle[..., 1]).all()
        middle = middle[..., :1]
    samples = middle.reshape(5000, -1).T
    assert all(stats.kstest(sample, "norm").pvalue > CHANCE for sample in samples) and independent(*samples)


def first_that_fits(draw, size, scale, ratio, least):
    """One box at a time: (top, left, height, width), or None after ten attempts. ratio: height / width."""
    for _ in range(10):
        area, shape = draw.uniform(*scale) * size[0] * size[1], math.exp(draw.uniform(*map(math.log, ratio)))
        height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if least <= height < size[0] + least and least <= width < size[1] + least:
            return draw.randint(0, size[0] - height), draw.randint(0, size[1] - width), height, width
    return None


@pytest.mark.parametrize("size", [(30, 90), (90, 30)])
def test_boxes_of_which_many_do_not_fit(size):
    """Against a loop over attempts with numbers of its own."""
    draw, scale, ratio = random.Random(5), (0.3, 1.0), (0.6, 1.5)
    cut = RandomResizedCrop(8, scale, ratio).boxes(np.tile(size, (N, 1)), generator())
    erased = RandomErasing(1.0, scale, ratio).boxes((N, 3, *size), generator())
    for boxes, upright, least in ((cut, (1 / 1.5, 1 / 0.6), 1), (np.concatenate(erased), ratio, 0)):
        expected = [first_that_fits(draw, size, scale, upright, least) for _ in range(N)]
        missing = sum(box is None for box in expected)
        assert 500 < missing < N - 500
        if least:
            central = RandomResizedCrop(8, (1.0, 1.0), ratio).boxes([size], generator())[0]
            boxes = boxes[(boxes != central).any(axis=1)]
            expected = [box for box in expected if box and box != tuple(central)]
        expected = np.array([box for box in expected if box])
        counts = [[len(found), N - len(found)] for found in (boxes, expected)]
        assert stats.chi2_contingency(counts).pvalue > CHANCE
        for column in range(4):
            assert alike(boxes[:, column], expected[:, column])
        assert alike(boxes[:, 2] * boxes[:, 3], expected[:, 2] * expected[:, 3])
        assert alike(boxes[:, 2] / boxes[:, 3], expected[:, 2] / expected[:, 3])


# Crops, flips, colours


@pytest.mark.parametrize("padding", [1, 2])
def test_crops_have_their_place_anywhere(padding):
    """Each pixel of a padded picture has a number of its own, so a corner tells where it was cut."""
    side = 2 * padding + 1
    images = np.arange(1, side * side + 1, dtype=np.uint8).reshape(1, side, side, 1).repeat(N, axis=0)
    middle = RandomCrop(padding)(images, generator())[:, padding, padding, 0] - 1      # never of the padding
    assert likely(np.bincount(middle, minlength=side * side))
    assert independent(middle[1:] + generator(1).random(N - 1), middle[:-1] + generator(2).random(N - 1))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_flips_are_as_frequent_as_asked_and_independent(p):
    images = np.array([0, 1], np.uint8).reshape(1, 1, 2, 1).repeat(N, axis=0)
    assert_tossed(RandomHorizontalFlip(p)(images, generator())[:, 0, 0, 0], p)


@pytest.mark.parametrize("limits", [(0.6, 1.4), (0.2, 0.5)])
def test_brightness_is_uniform_in_the_pixels(limits):
    images = np.full((N, 1, 1, 3), 150, np.uint8)
    out = ColorJitter(limits)(images, generator())[:, 0, 0, 0]
    # Pillow rounds down.
    assert uniform(out + generator(1).random(N), 150 * limits[0], 150 * limits[1])


# RandAugment


def test_operations_and_signs_as_they_show_in_the_pixels():
    """One operation on one picture many times: every outcome is found as often as it should be."""
    picture, count, magnitude = random_images(1, 16, 16, 3), 8000, 7
    out = RandAugment(1, magnitude)(picture.repeat(count, axis=0), generator())
    signed = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}
    outcomes, expected = {}, []
    for name in OPERATIONS.keys() - {"Cutout"}:
        for sign in (1.0, 0.0) if name in signed else (1.0,):
            outcomes[apply_operation(name, picture, magnitude, np.array([[sign, 0.5, 0.5]])).tobytes()] = len(expected)
            expected.append(1 / 32 if name in signed else 1 / 16)
    assert len(outcomes) == len(expected) == 20         # no two look alike
    found = np.array([outcomes.get(image.tobytes(), 20) for image in out])
    assert likely(np.bincount(found, minlength=21), count * np.array([*expected, 1 / 16]))

    areas = (out[found == 20] != picture).any(axis=-1).sum(axis=(1, 2))     # the rest is Cutout's squares of 4 × 4
    assert set(areas) <= {height * width for height in (2, 3, 4) for width in (2, 3, 4)}


# MixUp and CutMix


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_draws_lambda_from_beta_in_every_mode(mode, alpha):
    """λ is what a white picture becomes; of a pair, whose λ is the same, only that one is looked at."""
    mix, rng = Mix(num_classes=2, mixup_alpha=alpha, mode=mode), generator()
    size, times = (2, 6000) if mode == "batch" else (12_000, 1)
    batches = [mix(halves(size, 1), np.zeros(size, int), rng)[0][size // 2 :].ravel() for _ in range(times)]
    lam = np.concatenate(batches).astype(float)
    assert len(lam) == 6000
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > CHANCE
    assert stats.kstest(lam, stats.beta(1.4 * alpha, 1.4 * alpha).cdf).pvalue < CHANCE      # it can tell
    assert independent(lam[1:], lam[:-1])


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_boxes_are_drawn_from_beta_and_lie_anywhere(alpha):
    """Of a box that no border cuts off, what was drawn can be seen: λ = 1 - s² for sides of s pictures, and the place.

    A box with sides s is whole with probability (1 - s)²; so among the whole ones, s has the density of Beta(α, α) at
    1 - s², times its derivative 2s, times (1 - s)².
    """
    count, side = 2000, 100
    mix, rng = Mix(num_classes=2, cutmix_alpha=alpha, mode="elem"), generator(1)
    images, draws = halves(500, side), generator()
    mixed = (mix(images, np.zeros(len(images), int), draws)[0] for _ in range(count // len(images)))
    cut = np.concatenate([(batch != images)[:, 0] for batch in mixed])                  # (count, side, side)
    across = np.stack([cut.any(axis=2), cut.any(axis=1)])                               # rows, columns
    first, length = across.argmax(axis=2), across.sum(axis=2)                           # (2, count)
    whole = ((first > 0) & (first + length < side)).all(axis=0)
    (y, x), (height, width) = first[:, whole], length[:, whole]
    assert (height == width).all() and len(x) > 250

    s = np.linspace(1 / side, 1, 20_001)[:-1]
    cdf = np.cumsum(stats.beta(alpha, alpha).pdf(1 - s * s) * 2 * s * (1 - s) ** 2)
    drawn = (width + rng.random(len(x))) / side         # a side is rounded down
    assert stats.kstest(drawn, lambda value: np.interp(value, s, cdf / cdf[-1])).pvalue > CHANCE
    places = [(place - 1 + rng.random(len(x))) / (side - width - 1) for place in (y, x)]
    assert uniform(places[0]) and uniform(places[1]) and independent(*places, drawn)


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_whether_and_how_a_picture_is_mixed(mode):
    """Not at all with 1 - prob, else by CutMix with switch_prob: chi-square over the three."""
    count, prob, switch = 6000, 0.7, 0.25
    mix = Mix(num_classes=2, mixup_alpha=1.0, cutmix_alpha=1.0, prob=prob, switch_prob=switch, mode=mode)
    images = halves(count, 60)
    out = mix(images, np.zeros(count, int), generator())[0]
    if mode == "pair":
        out, images = out[: count // 2], images[: count // 2]
    changed = out != images
    mixed = changed.all(axis=(1, 2, 3)) & (out > 0).all(axis=(1, 2, 3)) & (out < 1).all(axis=(1, 2, 3))
    cut = changed.any(axis=(1, 2, 3)) & ~mixed
    # A box of less than a pixel, with λ above 1 - 1/60², is not seen: a share of 1/3600 of those that are cut.
    counts = [(~changed).all(axis=(1, 2, 3)).sum(), mixed.sum(), cut.sum()]
    assert likely(counts, len(out) * np.array([1 - prob, prob * (1 - switch), prob * switch]))
