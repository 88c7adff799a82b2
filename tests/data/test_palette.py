"""Palettes: k-means finds the colours, every pixel gets the nearest, and a histogram is what a model must beat."""

import numpy as np
import pytest

from scratchvit.data import ArrayDataset, load
from scratchvit.data.palette import decode, encode, fit_palette, histogram_bits
from scratchvit.errors import ScratchvitError
from scratchvit.models.igpt import even_palette
from tests.support.seeds import seeded


def pictures(*images):
    """A data set of pictures (H, W, C)."""
    stacked = np.stack(images).astype(np.uint8)
    return ArrayDataset(stacked, np.zeros(len(stacked), int), ("a",))


def noise(count=40, size=(6, 5), channels=3, seed=0):
    """Pictures whose colours lie about a few centres."""
    rng = seeded(seed)
    centres = rng.integers(20, 236, (5, channels))
    pixels = centres[rng.integers(0, 5, (count, *size))] + rng.normal(0, 12, (count, *size, channels))
    return pictures(*pixels.clip(0, 255))


def error_of(dataset, palette):
    """The mean squared distance, in units of 0 … 255, between pictures and what is left of them when coded."""
    images = dataset.images(np.arange(len(dataset)))
    coded = decode(encode(images, palette), palette, images.shape[1:3])
    return ((images.astype(float) - coded) ** 2).mean()


def test_few_colors_are_their_own_palette():
    dataset = load("digits").train
    palette = fit_palette(dataset, 17)
    assert palette.shape == (17, 1) and palette.dtype == np.float32
    assert np.allclose(np.diff(palette[:, 0]), 2 / 16, atol=2 / 255) and palette[0, 0] == -1 and palette[-1, 0] == 1
    assert error_of(dataset, palette) == 0
    larger = fit_palette(dataset, 20)
    assert np.array_equal(larger[:17], palette) and (larger[17:] == 1).all()
    assert np.array_equal(*(encode(dataset.images(np.arange(50)), some) for some in (palette, larger)))


@pytest.mark.parametrize("channels", [1, 3])
def test_k_means_finds_where_the_colors_are(channels):
    dataset = noise(channels=channels)
    palette = fit_palette(dataset, 8, seed=3)
    assert palette.shape == (8, channels) and np.abs(palette).max() <= 1
    assert np.array_equal(palette, fit_palette(dataset, 8, seed=3))
    assert (np.diff(palette.mean(axis=1)) >= 0).all()       # from dark to bright
    assert error_of(dataset, palette) < error_of(dataset, even_palette(8, channels)) / 2
    # Each colour is the mean of its pixels, or nearly: Lloyd's steps are few.
    pixels = dataset.images(np.arange(len(dataset))).reshape(-1, channels) / 127.5 - 1
    tokens = encode(dataset.images(np.arange(len(dataset))), palette).ravel()
    for color in range(8):
        assert np.abs(pixels[tokens == color].mean(axis=0) - palette[color]).max() < 0.05


def test_a_sample_of_many_pictures_is_enough(monkeypatch):
    monkeypatch.setattr("scratchvit.data.palette.PICTURES", 600)
    monkeypatch.setattr("scratchvit.data.palette.PIXELS", 6000)
    dataset = noise(count=700)
    asked = []
    images = dataset.images
    monkeypatch.setattr(dataset, "images", lambda indices: asked.append(len(indices)) or images(indices))
    palette = fit_palette(dataset, 16)
    assert max(asked) <= 256 and sum(asked) == 600
    monkeypatch.undo()
    assert error_of(dataset, palette) < 1.2 * error_of(dataset, fit_palette(dataset, 16))


def test_a_pixel_is_coded_by_its_nearest_color_row_by_row():
    dataset = noise()
    palette = fit_palette(dataset, 8)
    images = dataset.images(np.arange(40))
    units = images.reshape(40, 30, 1, 3) / 127.5 - 1
    distances = ((units - palette.astype(np.float64)) ** 2).sum(-1)
    tokens = encode(images, palette)
    assert tokens.shape == (40, 30) and tokens.dtype == np.int64
    np.testing.assert_array_equal(tokens, distances.argmin(-1))
    back = decode(tokens, palette, (6, 5))
    assert back.shape == images.shape and back.dtype == np.uint8
    np.testing.assert_array_equal(encode(back, palette), tokens)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda p: encode(np.zeros((1, 2, 2, 1), np.uint8), p), "pictures have 1 channels, the palette 3"),
        (lambda p: decode(np.array([[0, 8]]), p, (1, 2)), r"tokens 0 … 8: the palette has 8 colours"),
        (lambda p: decode(np.array([[-1, 0]]), p, (1, 2)), r"tokens -1 … 0"),
        (lambda p: decode(np.zeros((2, 5), int), p, (2, 3)), r"2×3 pixels have the shape \(B, 6\), not \(2, 5\)"),
        (lambda p: fit_palette(pictures(np.zeros((2, 2, 3))).subset([]), 8), "no pictures to compute a palette from"),
    ],
)
def test_what_does_not_fit_is_told(ask, says):
    with pytest.raises(ScratchvitError, match=says):
        ask(even_palette(8, 3))


# --- the baseline ---


def test_the_histogram_of_two_positions_by_hand():
    """Black at the first position in 3 of 4 pictures; the second always white. With one more of each of two colours."""
    black, white = 0, 255
    train = pictures(*([[[first], [white]]] for first in (black, black, black, white)))
    test = pictures([[[black], [white]]], [[[white], [black]]])
    expected = -np.log2([4 / 6, 5 / 6, 2 / 6, 1 / 6]).mean()
    assert histogram_bits(train, test, even_palette(2, 1)) == pytest.approx(expected, rel=1e-12)


def test_the_histogram_of_the_digits_is_worth_2_43_bits():
    splits = load("digits")
    palette = fit_palette(splits.train, 17)
    levels = [np.rint(part.images(np.arange(len(part))).reshape(-1, 64) / (255 / 16)).astype(int) for part in
              (splits.train, splits.test)]
    counts = np.stack([(levels[0] == grey).sum(0) for grey in range(17)], axis=1) + 1
    bits = -np.log2(counts / counts.sum(1, keepdims=True))[np.arange(64), levels[1]].mean()
    assert histogram_bits(splits.train, splits.test, palette) == pytest.approx(bits, rel=1e-12)
    assert bits == pytest.approx(2.428, abs=0.0005)
