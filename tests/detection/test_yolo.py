"""YOLO's text folders: what is read, data.yaml, and what is said of every bad entry."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from scratchvit.detection.data.data_yaml import read_data_yaml
from scratchvit.detection.data.files import DataFolder
from scratchvit.detection.data.yolo_files import yolo_by_name
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import write_picture
from tests.support.detection_samples import write_yolo
from tests.support.margins import assert_close, ulps

NAMES = "names: {0: ant, 4: cat}"
GOOD = "4 .25 .5 .2 .4\n"


def read(root, part="train", skip_bad=False):
    return yolo_by_name(DataFolder(root), skip_bad)[part]


def write(root, **texts):
    return write_yolo(root, names=NAMES, **texts)


def test_boxes_are_shares_of_the_picture(tmp_path):
    data = read(write(tmp_path, b="0 0.5 0.5 1 1\n\n4 0.25 0.5 0.2 0.4\n", a=GOOD))
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
    write(tmp_path, a=GOOD)
    assert read(tmp_path, "val").target(0)["labels"].tolist() == [1]


def test_no_text_file_means_no_objects(tmp_path):
    data = read(write(tmp_path, a=GOOD, b=None, c="", d=None))
    assert [len(data.target(i)["labels"]) for i in range(4)] == [1, 0, 0, 0]
    (note,) = data.notes
    assert f"{Path('images', 'train')}: 2 of 4 pictures have no text file" in note


@pytest.mark.parametrize("line", ["0 .5 .5 0 .1", "0 .5 .5 .1 0", "0 .5 .5 0 0"])
def test_boxes_of_no_size_are_reported_and_left_out(tmp_path, line):
    data = read(write(tmp_path, a=f"{GOOD}{line}\n"))
    (note,) = data.notes
    assert f"{Path('labels', 'train', 'a.txt')}: line 2: '{line}' has no width or no height" in note
    assert data.target(0)["labels"].tolist() == [1]
    assert data.skipped == ()


BAD_LINES = [
    ("0 .5 .5 .1", r"is neither the five numbers"),
    ("0 .5 .5 .1 .1 .9", r"is neither the five numbers"),
    ("cat .5 .5 .1 .1", r"is neither the five numbers"),
    ("2 .5 .5 .1 .1", r"has the unknown class 2; known are 0, 4"),
    ("0.5 .5 .5 .1 .1", r"has the unknown class 0\.5"),
    ("0 .5 .5 -.1 .1", r"has reversed sides"),
    ("0 .5 nan .1 .1", r"not finite"),
    ("0 20 15 4 3", r"is not in 0 … 1; pixels must be divided"),
    ("0 1.2 .5 .1 .1", r"lies outside its picture of 40 × 30"),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES)
def test_a_bad_line_is_named_or_left_out_and_counted(tmp_path, line, said):
    root = write(tmp_path, a=f"{GOOD}{line}\n")
    with pytest.raises(ScratchvitError, match=rf"labels[/\\]train[/\\]a\.txt: line 2: '{line}' .*{said}.*--skip-bad"):
        read(root)
    data = read(root, skip_bad=True)
    assert len(data.skipped) == 1
    assert "a.txt: line 2" in data.skipped[0]
    assert data.target(0)["labels"].tolist() == [1]


def test_a_box_that_reaches_outside_is_clipped_when_bad_entries_are_passed_over(tmp_path):
    root = write(tmp_path, a="0 .1 .5 .4 .5\n")
    with pytest.raises(ScratchvitError, match=r"a\.txt: line 1: .* extends 4 pixels beyond .* clip such boxes"):
        read(root)
    clipped = read(root, skip_bad=True).annotations(0).boxes[0, [0, 2]]
    np.testing.assert_allclose(clipped, [0, 12], rtol=1e-14)


def test_files_that_are_missing_or_damaged(tmp_path):
    root = write(tmp_path, a=GOOD, b=GOOD, c=GOOD, d=GOOD)
    (root / "images" / "train" / "b.png").unlink()
    said = r"labels[/\\]train[/\\]b\.txt: there is no picture .*images[/\\]train[/\\]b\.jpg"
    with pytest.raises(ScratchvitError, match=said):
        read(root)
    (root / "images" / "train" / "c.png").write_bytes(b"no picture")
    (root / "labels" / "train" / "d.txt").write_bytes(b"\xff\xfe\x00")
    data = read(root, skip_bad=True)
    assert [data.annotations(0).file_name, len(data), len(data.skipped)] == ["a.png", 1, 3]
    (root / "labels" / "train" / "b.txt").unlink()
    with pytest.raises(ScratchvitError, match=r"c\.png: this picture cannot be decoded"):
        read(root)
    (root / "images" / "train" / "c.png").unlink()
    (root / "labels" / "train" / "c.txt").unlink()
    with pytest.raises(ScratchvitError, match=r"d\.txt: this text file of labels is not in UTF-16"):
        read(root)


def test_folders_without_text_files(tmp_path):
    with pytest.raises(ScratchvitError, match=r"labels[/\\]train: no text files"):
        read(write(tmp_path, a=None))


def names_in(folder, text):
    path = folder / "data.yaml"
    path.write_text(text, encoding="utf-8")
    return read_data_yaml(path).names


@pytest.mark.parametrize(
    "text",
    [
        "train: x\nnames: [ant, 'cat, big', \"dog's\"]\nnc: 3\n",
        "names:\n- ant\n- cat, big   # a comment\n- dog's\nnc: 3\n",
        "nc: 3\nnames:   # classes\n  - ant\n\n  - 'cat, big'\n  - \"dog's\"",
        "names:\n  0: ant\n  1: cat, big\n  2: \"dog's\"\npath: ..\n",
        "names: {0: ant, 1: 'cat, big', 2: \"dog's\"}\n",
        "names: [\n  ant,\n  'cat, big',\n  \"dog's\",\n]\n",
        "names: [granny's smith, 6\" pipe, 'apple #1', \"\\xC4pfel\", 'granny''s', apple [red] # no\n]",
        "? names\n: - >-\n    two\n    lines\n  - |-\n    as\n     it is\n",
        "names: {'0': quoted, \"1\": key}",
        "names: !!seq [a, b]",
        "a: &anchor [a, b]\nnames: *anchor",
        "names: {3: b, 1: a}",
        "---\nnames: [äöü, 林檎, \U0001f34e, العربية]\n...\n",
    ],
)
def test_names_are_those_that_a_yaml_reader_finds(tmp_path, text):
    if "[red]" in text:     # which YAML wants in quotes
        text = text.replace("apple [red]", "'apple [red]'")
    expected = yaml.safe_load(text)["names"]
    expected = expected.items() if isinstance(expected, dict) else enumerate(expected)
    assert names_in(tmp_path, text) == {int(number): name for number, name in expected}


def test_names_stay_the_text_that_was_written(tmp_path):
    words = ["no", "on", "Yes", "3", "1e3", "0x1F", "null", "~", "true", "2024-01-02", "1_000", ".inf", "012", "1:30"]
    for text in (f"names: [{', '.join(words)}]", "names:\n" + "".join(f"  {i}: {w}\n" for i, w in enumerate(words))):
        assert [*names_in(tmp_path, text).values()] == words


NO_NAMES = [
    ("names: [a, b\n", "cannot be read in line"),
    ("names: 'a\n", "cannot be read in line"),
    ("\tnames: a\n", "cannot be read in line"),
    ("names: [a]\n---\nnames: [b]\n", "cannot be read in line"),
    ("names: classes.txt\n", "names is 'classes.txt', expected a list"),
    ("names:\n  a: 0\n", "names has the key 'a', which is no number"),
    ("names: {0: a, 00: b}", "same class twice"),
    ("names: {0: a, 0: b}", "names has '0' twice"),
    ("names: [a]\nnames: [b]", "has 'names' twice"),
    ("names: [a, [b, c]]", "line 1: a class name is a list"),
    ("names: [a, {b: c}]", "line 1: a class name is a mapping"),
    ("names:\n- a\n-\n", "a class name is empty"),
    ("names: {? [a] : b}", "a key is a list"),
    ("nc: 3\nnames: [a, b]", "nc is 3, but 2 names are listed"),
    ("nc: many\nnames: [a]", "nc is 'many', expected the number of classes"),
    (f"nc: {'9' * 5000}\nnames: [a]", "nc is '999"),
    ("train: {a: b}\nnames: [a]", "train is a mapping"),
    ("- a\n- b\n", "this file is a list"),
    ("just text", "this file is a text"),
    ("names: [a\x01]", "characters that YAML does not allow"),
    ("[" * 5000, "nested too deeply|cannot be read"),
    ("names: !!python/object/apply:os.system [touch pwned]\nnc: 2", "nc is 2, but 1 names"),
]


@pytest.mark.parametrize(("text", "said"), NO_NAMES)
def test_a_data_yaml_that_cannot_be_used(tmp_path, text, said):
    root = write_yolo(tmp_path, names=text, a=GOOD)
    with pytest.raises(ScratchvitError, match=rf"data\.yaml: .*{said}"):
        read(root)


def test_no_tag_of_a_data_yaml_is_obeyed(tmp_path):
    mark = tmp_path / "pwned"
    assert names_in(tmp_path, f"names: !!python/object/apply:os.system ['touch {mark}']") == {0: f"touch {mark}"}
    assert not mark.exists()


def test_aliases_are_not_expanded(tmp_path):
    laughs = "a0: &a0 [lol, lol]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 60)
    )
    assert names_in(tmp_path, f"{laughs}names: [ant]\n") == {0: "ant"}
    with pytest.raises(ScratchvitError, match="a class name is a list"):
        names_in(tmp_path, f"{laughs}names: *a59\n")
    with pytest.raises(ScratchvitError, match=r"cannot be read|a class name is a list"):
        names_in(tmp_path, "names: &n [*n]\n")


def test_classes_txt_comes_first_and_differing_names_are_told(tmp_path):
    root = write(tmp_path, a="0 .5 .5 .1 .1\n")
    (root / "classes.txt").write_text("\ufeffeel\n\n cat \n", encoding="utf-8")
    data = read(root)
    assert (data.classes, data.category_ids) == (("eel", "cat"), (0, 1))
    assert "data.yaml has others" in data.notes[0]


@pytest.mark.parametrize("names", ["nc: 9", "names:\n", "names: []\n", "", "test: x"])
def test_without_names_classes_are_called_by_their_numbers(tmp_path, names):
    data = read(write_yolo(tmp_path, names=names, a="7 .5 .5 .1 .1\n2 .5 .5 .1 .1\n"))
    assert (data.classes, data.category_ids) == (("2", "7"), (2, 7))
    assert data.annotations(0).labels.tolist() == [1, 0]
    assert any("called by their numbers" in note and "classes.txt" in note for note in data.notes)


def test_names_are_in_order_of_their_numbers_and_may_have_gaps(tmp_path):
    data = read(write_yolo(tmp_path, names="names: {7: b, 2: a}\nnc: 8", a="7 .5 .5 .1 .1\n"))
    assert (data.classes, data.category_ids) == (("a", "b"), (2, 7))


def test_classes_of_the_same_name(tmp_path):
    root = write_yolo(tmp_path, names="names: [cat, ant, cat]", a="0 .5 .5 .1 .1\n", b="1 .5 .5 .1 .1\n")
    assert "classes 0, 2 are all called cat" in " ".join(read(root).notes)
    (root / "labels" / "train" / "b.txt").write_text("2 .5 .5 .1 .1\n")
    with pytest.raises(ScratchvitError, match=r"data\.yaml: the classes 0, 2 are all called cat"):
        read(root)


def test_the_only_yaml_file_will_do(tmp_path):
    root = write(tmp_path, a=GOOD)
    (root / "data.yaml").rename(root / "cells.yml")
    assert read(root).classes == ("ant", "cat")
    (root / "settings.yaml").write_text("lr: 1\n")
    assert read(root).classes == ("ant", "cat")
    (root / "fruit.yaml").write_text("names: [a, b]\n")
    with pytest.raises(ScratchvitError, match=r"cells\.yml, fruit\.yaml all have names"):
        read(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_in_the_encodings_that_editors_write(tmp_path, encoding):
    root = write_yolo(tmp_path, names="", a=GOOD)
    (root / "data.yaml").write_text("names: {0: Äpfel, 4: 林檎}", encoding=encoding)
    (root / "labels" / "train" / "a.txt").write_text(GOOD, encoding=encoding)
    data = read(root)
    assert (data.classes, data.annotations(0).labels.tolist()) == (("Äpfel", "林檎"), [1])


@pytest.mark.parametrize("content", ["names: [苹果]".encode("gbk"), "names: [Äpfel]".encode("cp1252")])
def test_a_data_yaml_in_another_encoding(tmp_path, content):
    root = write_yolo(tmp_path, names="", a=GOOD)
    (root / "data.yaml").write_bytes(content)
    with pytest.raises(ScratchvitError, match=r"data\.yaml: this YAML file is not in UTF-8 .*save it in UTF-8"):
        read(root)


def test_settings_in_yaml_do_not_hide_the_names(tmp_path):
    root = write_yolo(tmp_path, names="", a="1 .5 .5 .2 .2\n")
    (root / "data.yaml").unlink()
    (root / "fruit").mkdir()
    for path, text in (("settings.yaml", "lr: 1"), ("more.yml", "a: ["), ("fruit/fruit.yaml", "names: [ant, cat]")):
        (root / path).write_text(text)
    assert read(root).classes == ("ant", "cat")
