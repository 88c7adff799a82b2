"""What is learned of a folder before anything is chosen: the number of pictures to train on, classes and sizes."""

import pytest
from PIL import Image

from scratchvit.data import load
from scratchvit.data.survey import SAMPLE, Survey, survey
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import write_files


@pytest.mark.parametrize(
    "patterns",
    [
        ["cat/{0..29}.png", "dog/{0..19}.png"],
        ["train/cat/{0..29}.png", "train/dog/{0..19}.png", "val/cat/{0..4}.png"],
        ["train/cat/{0..29}.png", "train/dog/{0..19}.png", "test/cat/{0..4}.png"],
        ["train/cat/{0..29}.png", "train/dog/{0..19}.png", "val/cat/0.png", "test/dog/0.png"],
    ],
    ids=["classes", "with val", "with test", "with both"],
)
@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_it_counts_what_load_trains_on(tmp_path, patterns, fraction):
    write_files(tmp_path, *patterns)
    found = survey(tmp_path, fraction)
    assert found.classes == 2
    assert found.pictures == pytest.approx(len(load(tmp_path, img_size=8, val_fraction=fraction).train), abs=1)


def test_the_side_is_the_median_of_the_shorter_ones(tmp_path):
    (tmp_path / "cat").mkdir()
    for number, size in enumerate([(30, 20), (50, 90), (400, 300)]):
        Image.new("RGB", size).save(tmp_path / "cat" / f"{number}.png")
    assert survey(tmp_path).side == 50
    (tmp_path / "cat" / "2.png").write_bytes(b"no picture")     # an error when it is loaded
    assert survey(tmp_path).side == 20


def test_a_large_folder_is_sampled_and_an_unreadable_one_has_no_side(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    for number in range(3 * SAMPLE):
        (tmp_path / "cat" / f"{number}.png").write_bytes(b"no picture")
    opened = []
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path))
    assert survey(tmp_path) == Survey(pictures=108, classes=1, side=0)
    assert len(opened) == SAMPLE


def test_a_table_is_surveyed_too(tmp_path):
    write_files(tmp_path, "{0..9}.png")
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]), "utf-8")
    assert survey(tmp_path / "labels.csv") == survey(tmp_path) == Survey(7, 2, survey(tmp_path).side)


def test_a_folder_without_classes_is_an_error(tmp_path):
    write_files(tmp_path, "notes.txt")
    with pytest.raises(ScratchvitError, match="no class folders"):
        survey(tmp_path)
