"""YOLO's text folders: what is read, the forms of data.yaml, and what is said of every bad entry."""

from pathlib import Path

import numpy as np
import pytest

from scratchvit.detection.data.yolo import parse_names, read_names, read_yolo
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import write_picture
from tests.support.detection_samples import write_yolo
from tests.support.margins import assert_close, ulps

NAMES = {0: "ant", 4: "cat"}
GOOD = "4 .25 .5 .2 .4\n"


def test_boxes_are_shares_of_the_picture(tmp_path):
    data = read_yolo(write_yolo(tmp_path, b="0 0.5 0.5 1 1\n\n4 0.25 0.5 0.2 0.4\n", a=GOOD), "train", NAMES)
    assert (len(data), data.classes, data.category_ids) == (2, ("ant", "cat"), (0, 4))
    one = data.annotations(1)
    assert (one.image_id, one.file_name, one.size) == (2, "b.png", (30, 40))
    np.testing.assert_allclose(one.boxes, [[0, 0, 40, 30], [6, 9, 14, 21]], rtol=1e-14)
    assert one.labels.tolist() == [0, 1]
    assert_close(data.target(1)["boxes"], [[0.5, 0.5, 1, 1], [0.25, 0.5, 0.2, 0.4]], ulps(1, 1))
    assert [entry["category_id"] for entry in data.ground_truth()["annotations"]] == [4, 0, 4]


@pytest.mark.parametrize("form", ["{kind}/{part}", "{part}/{kind}"])
@pytest.mark.parametrize("part", ["val", "valid"])
def test_both_layouts(tmp_path, form, part):
    write_picture(tmp_path / form.format(kind="images", part=part) / "a.png", (40, 30))
    labels = tmp_path / form.format(kind="labels", part=part)
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text(GOOD)
    (labels / "classes.txt").write_text("ant\ncat\n")       # labelImg puts it there
    assert read_yolo(tmp_path, "val", NAMES).target(0)["labels"].tolist() == [1]


def test_no_text_file_means_no_objects(tmp_path):
    data = read_yolo(write_yolo(tmp_path, a=GOOD, b=None, c="", d=None), "train", NAMES)
    assert [len(data.target(i)["labels"]) for i in range(4)] == [1, 0, 0, 0]
    (note,) = data.notes
    assert f"{Path('images', 'train')}: 2 of 4 pictures have no text file" in note


@pytest.mark.parametrize("line", ["0 .5 .5 0 .1", "0 .5 .5 .1 0", "0 .5 .5 0 0"])
def test_boxes_of_no_size_are_reported_and_left_out(tmp_path, line):
    data = read_yolo(write_yolo(tmp_path, a=f"{GOOD}{line}\n"), "train", NAMES)
    (note,) = data.notes
    assert f"{Path('labels', 'train', 'a.txt')}: line 2: '{line}' has no width or no height" in note
    assert data.target(0)["labels"].tolist() == [1]
    assert data.skipped == ()


BAD_LINES = [
    ("0 .5 .5 .1", r"is not the five numbers"),
    ("0 .5 .5 .1 .1 .9", r"is not the five numbers"),
    ("cat .5 .5 .1 .1", r"is not the five numbers"),
    ("2 .5 .5 .1 .1", r"has the unknown class 2; known are 0, 4"),
    ("0.5 .5 .5 .1 .1", r"has the unknown class 0\.5"),
    ("0 .5 .5 -.1 .1", r"has reversed sides"),
    ("0 .5 nan .1 .1", r"not finite"),
    ("0 20 15 4 3", r"is not in 0 … 1; pixels must be divided"),
    ("0 1.2 .5 .1 .1", r"lies outside its picture of 40 × 30"),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES)
def test_a_bad_line_is_named_or_left_out_and_counted(tmp_path, line, said):
    root = write_yolo(tmp_path, a=f"{GOOD}{line}\n")
    with pytest.raises(ScratchvitError, match=rf"labels[/\\]train[/\\]a\.txt: line 2: '{line}' .*{said}.*--skip-bad"):
        read_yolo(root, "train", NAMES)
    data = read_yolo(root, "train", NAMES, skip_bad=True)
    assert len(data.skipped) == 1
    assert "a.txt: line 2" in data.skipped[0]
    assert data.target(0)["labels"].tolist() == [1]


def test_a_box_that_reaches_outside_is_clipped_when_bad_entries_are_passed_over(tmp_path):
    root = write_yolo(tmp_path, a="0 .1 .5 .4 .5\n")
    with pytest.raises(ScratchvitError, match=r"a\.txt: line 1: .* extends 4 pixels beyond .* clip such boxes"):
        read_yolo(root, "train", NAMES)
    clipped = read_yolo(root, "train", NAMES, skip_bad=True).annotations(0).boxes[0, [0, 2]]
    np.testing.assert_allclose(clipped, [0, 12], rtol=1e-14)


def test_files_that_are_missing_or_damaged(tmp_path):
    root = write_yolo(tmp_path, a=GOOD, b=GOOD, c=GOOD, d=GOOD)
    (root / "images" / "train" / "b.png").unlink()
    said = r"labels[/\\]train[/\\]b\.txt: there is no picture .*images[/\\]train[/\\]b\.jpg"
    with pytest.raises(ScratchvitError, match=said):
        read_yolo(root, "train", NAMES)
    (root / "images" / "train" / "c.png").write_bytes(b"no picture")
    (root / "labels" / "train" / "d.txt").write_bytes(b"\xff\xfe")
    data = read_yolo(root, "train", NAMES, skip_bad=True)
    assert [data.annotations(0).file_name, len(data), len(data.skipped)] == ["a.png", 1, 3]
    (root / "labels" / "train" / "b.txt").unlink()
    with pytest.raises(ScratchvitError, match=r"c\.png: this picture cannot be decoded"):
        read_yolo(root, "train", NAMES)
    (root / "images" / "train" / "c.png").unlink()
    (root / "labels" / "train" / "c.txt").unlink()
    with pytest.raises(ScratchvitError, match=r"d\.txt: cannot be read"):
        read_yolo(root, "train", NAMES)


def test_folders_that_are_missing_or_without_text_files(tmp_path):
    with pytest.raises(ScratchvitError, match="no folders images/val and labels/val"):
        read_yolo(write_yolo(tmp_path, a=GOOD), "val", NAMES)
    with pytest.raises(ScratchvitError, match=r"labels[/\\]train: no text files"):
        read_yolo(write_yolo(tmp_path / "bare", a=None), "train", NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "train: x\nnames: [ant, 'cat, big', \"dog's\"]\nnc: 3\n",
        "names:\n- ant\n- cat, big   # a comment\n- dog's\nnc: 3\n",
        "nc: 3\nnames:   # classes\n  - ant\n\n  - 'cat, big'\n  - \"dog's\"",
        "names:\n  0: ant\n  1: cat, big\n  2: \"dog's\"\npath: ..\n",
        "names: {0: ant, 1: 'cat, big', 2: \"dog's\"}\n",
        "names: [\n  ant,\n  'cat, big',\n  \"dog's\",\n]\n",
    ],
)
def test_every_form_of_names_that_tools_write(text):
    yaml = pytest.importorskip("yaml")
    expected = yaml.safe_load(text)["names"]
    expected = expected if isinstance(expected, dict) else dict(enumerate(expected))
    assert parse_names(text) == expected == {0: "ant", 1: "cat, big", 2: "dog's"}


def test_names_without_a_yaml_reader_to_compare_with():
    assert parse_names("names: [a, b]") == parse_names("names:\n- a\n- b\n") == {0: "a", 1: "b"}
    assert parse_names("names:\n  3: a\n  1: b\n") == {3: "a", 1: "b"}


@pytest.mark.parametrize("text", ["nc: 3\n", "names: [a, b\n", "names: classes.txt\n", "names:\n  a: 0\n", "names:\n"])
def test_names_that_are_not_there(tmp_path, text):
    assert not parse_names(text)
    root = write_yolo(tmp_path, names=text, a=GOOD)
    with pytest.raises(ScratchvitError, match=r"data\.yaml: no class names .*classes\.txt, one per line"):
        read_names(root)
    (root / "classes.txt").write_text("ant\n\n cat \n")
    assert read_names(root) == {0: "ant", 1: "cat"}


def test_names_are_in_order_of_their_numbers_and_may_have_gaps(tmp_path):
    assert list(read_names(write_yolo(tmp_path, names="names: {7: b, 2: a}", a=GOOD)).items()) == [(2, "a"), (7, "b")]


def test_the_only_yaml_file_will_do(tmp_path):
    root = write_yolo(tmp_path, a=GOOD)
    (root / "data.yaml").rename(root / "cells.yml")
    assert read_names(root) == {0: "ant", 1: "cat"}
    (root / "cells.yml").unlink()
    with pytest.raises(ScratchvitError, match=r"has neither classes\.txt.* nor data\.yaml"):
        read_names(root)
