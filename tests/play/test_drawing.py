"""Drawings become pictures like those of the training data."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import data
from scratchvit.play import drawing
from tests.support.strokes import DIGITS, moved


def cells(strokes):
    return np.asarray(drawing.as_optdigits(strokes)).astype(int) * 16 // 255


def test_a_drawn_digit_has_the_size_place_and_ink_of_scikit_learns_digits():
    pytest.importorskip("sklearn")
    ours = np.stack([cells(strokes) for strokes in DIGITS.values()])
    pictures = data.load("digits").train
    theirs = pictures.images(range(len(pictures)))[..., 0].astype(int) * 16 // 255
    low, high = np.percentile(theirs.sum(axis=(1, 2)), [1, 99])
    assert ((low <= ours.sum(axis=(1, 2))) & (ours.sum(axis=(1, 2)) <= high)).all()
    # They reach from the first row to the last one, and leave the outer columns empty.
    assert (theirs.max(axis=2)[:, [0, 7]] > 0).all() and (ours.max(axis=2)[:, [0, 7]] > 0).all()
    assert theirs[:, :, [0, 7]].mean() < 0.2 and ours[:, :, [0, 7]].mean() < 0.2
    assert ours.max() == theirs.max() == 16


def test_where_how_large_how_slanted_and_how_fast_one_draws_makes_little_difference():
    for digit, strokes in DIGITS.items():
        usual = cells(strokes)
        for other in (moved(strokes, 0.3, left=0.6, top=0.1), moved(strokes, 0.9, slant=0.25)):
            assert np.abs(cells(other) - usual).mean() < 1, digit      # of 16
        slow = [np.concatenate([stroke, np.repeat(stroke[-1:], 50, axis=0)]) for stroke in strokes]
        assert np.abs(cells(slow) - usual).max() <= 1, digit


def test_any_drawing_has_a_picture():
    for strokes in ([], [np.array([[0.5, 0.5]])], [np.array([[0.1, 0.5], [0.9, 0.5]])], [np.zeros((3, 2))],
                    [np.array([[2.0, -1.0]]), np.array([[-1.0, 2.0]])]):
        for name, draw in (*drawing.STYLES.items(), ("", drawing.as_drawn)):
            picture = np.asarray(draw(strokes))
            assert picture.shape == {"digits": (8, 8), "mnist": (28, 28), "": (drawing.FINE,) * 2}[name]
            assert picture.dtype == np.uint8
            assert np.ptp(picture) == 0 if not strokes else name == "" or picture.max() > 100


def test_mnists_digits_are_20_pixels_large_around_their_centre_of_mass():
    for digit, strokes in DIGITS.items():
        picture = np.asarray(drawing.as_mnist(moved(strokes, 0.4)), float)
        rows, columns = (np.flatnonzero(picture.max(axis=axis) > 64) for axis in (1, 0))
        assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21, digit
        for axis in (0, 1):
            assert np.average(np.arange(28), weights=picture.sum(axis=axis)) == pytest.approx(13.5, abs=0.1), digit


@pytest.mark.parametrize("text", [
    b"", b"{}", b"3", b"[3]", b"[[]]", b"[[3, 4]]", b"[[[1, 2, 3]]]", b"[[[1], [2]]]", b'[[["a", "b"]]]',
    b"[[[1, NaN]]]", b"[[[1, 1e999]]]", b"\xff", b"[" * 100_000, b"[[" + b"[1, 2]," * 20_001 + b"[1, 2]]]", b"null",
], ids=lambda text: text[:20])
def test_what_is_no_drawing_is_refused(text):
    with pytest.raises(sv.ScratchvitError, match="a drawing is a list of strokes"):
        drawing.read_strokes(text)


def test_strokes_are_read():
    first, second = drawing.read_strokes(b"[[[0, 0.5], [1, 0.25]], [[7, 7]]]")
    assert first.tolist() == [[0, 0.5], [1, 0.25]] and second.tolist() == [[2, 2]]      # far outside: at the edge
    assert drawing.read_strokes(b"[]") == []
