"""Every batched transform against the plain loop over pictures that it stands for."""

import numpy as np
import pytest

from scratchvit.backend import asarray, asnumpy
from scratchvit.data import ArrayDataset, Compose, Normalize, RandomCrop, RandomHorizontalFlip, channel_stats
from scratchvit.data.transforms import split_normalize
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import random_dataset, random_images
from tests.support.margins import assert_close, ulps
from tests.support.seeds import seeded

SHAPES = [(6, 8, 8, 3), (5, 7, 10, 1), (1, 1, 1, 3)]


def generator():
    return seeded(11)


@pytest.mark.parametrize("shape", SHAPES)
def test_normalize_equals_the_formula(device, shape):
    images = random_images(*shape)
    mean, std = np.linspace(0.2, 0.5, shape[3]), np.linspace(0.1, 0.3, shape[3])
    given = asarray(images)
    x = asnumpy(Normalize(mean, std)(given))
    assert np.array_equal(asnumpy(given), images)
    assert np.array_equal(x, Normalize(mean, std)(images))      # bit for bit as on the host
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)  # float64
    assert_close(x, expected, ulps(1 / std, 3))         # scale and shift are rounded, their product and sum


def test_a_normalize_at_the_end_is_split_off():
    crop, flip, last = RandomCrop(2), RandomHorizontalFlip(), Normalize((0.5,) * 3, (0.2,) * 3)
    images = random_images(4)
    assert split_normalize(last)[1] is split_normalize(Compose(crop, flip, last))[1] is last
    assert split_normalize(last)[0](images, generator()) is images
    before, _ = split_normalize(Compose(crop, flip, last))
    assert np.array_equal(before(images, generator()), Compose(crop, flip)(images, generator()))
    for other in (crop, Compose(last, crop), Compose()):
        assert split_normalize(other) == (other, None)


def test_normalize_refuses_what_does_not_fit():
    with pytest.raises(ScratchvitError, match="std must be > 0"):
        Normalize((0.5,), (0.0,))
    with pytest.raises(ScratchvitError, match="must have the same length"):
        Normalize((0.5, 0.5), (1.0,))
    with pytest.raises(ScratchvitError, match="1 channels, the pictures have 3"):
        Normalize((0.5,), (1.0,))(random_images(2))


@pytest.mark.parametrize("shape", [(6, 8, 8, 3), (5, 7, 10, 1)])
@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_equals_a_loop(shape, fill, mode, padding):
    images = random_images(*shape)
    cropped = RandomCrop(padding, fill)(images, generator())
    assert cropped.dtype == np.uint8
    rows, columns = generator().integers(0, 2 * padding + 1, size=(2, len(images)))
    for image, result, row, column in zip(images, cropped, rows, columns):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
        expected = padded[row : row + image.shape[0], column : column + image.shape[1]]
        assert np.array_equal(result, expected)


def test_crop_reaches_every_place_and_each_picture_has_its_own():
    images = np.tile(random_images(1, 4, 4, 1), (500, 1, 1, 1))
    assert len(np.unique(RandomCrop(1)(images, generator()), axis=0)) == 9


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_flip_equals_a_loop(p):
    images = random_images(40, 5, 6, 3)
    before = images.copy()
    flipped = RandomHorizontalFlip(p)(images, generator())
    for image, result, draw in zip(before, flipped, generator().random(40)):
        assert np.array_equal(result, image[:, ::-1] if draw < p else image)
    assert np.array_equal(images, before)  # the data set's own pictures stay as they are


@pytest.mark.parametrize(
    "make", [lambda: RandomCrop(-1), lambda: RandomCrop(1, "wrap"), lambda: RandomHorizontalFlip(2)]
)
def test_transforms_refuse_arguments_out_of_range(make):
    with pytest.raises(ScratchvitError):
        make()


def test_compose_applies_in_order_from_one_generator():
    images = random_images(8)
    crop, flip, normalize = RandomCrop(2), RandomHorizontalFlip(), Normalize((0.5,) * 3, (0.2,) * 3)
    rng = generator()
    expected = normalize(flip(crop(images, rng), rng), rng)
    x = Compose(crop, flip, normalize)(images, generator())
    assert x.dtype == np.float32
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_channel_stats_equal_numpy(channels):
    dataset = random_dataset(300, channels=channels)  # more than one chunk
    mean, std = channel_stats(dataset)
    pixels = dataset.images(range(300)) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)
    assert all(type(value) is float for value in mean + std)  # goes into a checkpoint as JSON


def test_normalised_pictures_have_mean_0_and_deviation_1():
    dataset = random_dataset(64)
    x = Normalize(*channel_stats(dataset))(dataset.images(range(64)))
    exact, bound = x.astype(np.float64), ulps(x, 4)     # no mean of numbers is further off than the furthest of them
    assert_close(exact.mean(axis=(0, 2, 3)), np.zeros(3), bound)
    assert_close(exact.std(axis=(0, 2, 3)), np.ones(3), bound)


def test_channel_stats_of_nothing():
    with pytest.raises(ScratchvitError, match="no pictures"):
        channel_stats(ArrayDataset(random_images(0), np.zeros(0, int), ("a",)))
