"""A folder of pictures with boxes, whatever its format: the parts, what is drawn for those missing, and real data."""

import tarfile

import numpy as np
import pytest

from scratchvit.detection.data.source import load_detection
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import SHARED
from tests.support.detection_samples import coco, voc_object, voc_xml, write_coco, write_voc, write_yolo

XML = voc_xml(voc_object())
LINE = "1 .5 .5 .2 .2\n"


def numbered(count, text, first=0):
    return {f"p{i}": text for i in range(first, first + count)}


def write_three(kind, root, counts=(10, 3, 2)):
    """That many pictures in train, val and test."""
    first = 0
    for part, count in zip(("train", "val", "test"), counts):
        if count and kind == "coco":
            write_coco(root, part, coco(count))
        elif count and kind == "voc":
            write_voc(root, part, **numbered(count, XML, first))
        elif count:
            write_yolo(root, part, **numbered(count, LINE, first))
        first += count
    return root


FORMATS = pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])


@FORMATS
def test_the_format_is_found_out(tmp_path, kind):
    splits = load_detection(write_three(kind, tmp_path))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [10, 3, 2]
    assert splits.train.classes == splits.val.classes == splits.test.classes
    assert "cat" in splits.train.classes
    assert splits.notes == splits.skipped == ()
    assert splits.test.picture(1).size == (40, 30)


@FORMATS
def test_without_test_val_is_that_too(tmp_path, kind):
    splits = load_detection(write_three(kind, tmp_path, (4, 3, 0)))
    assert splits.test is splits.val
    assert len(splits.train) == 4
    assert splits.notes[0].startswith("test: there is none, so val is used")


@FORMATS
def test_parts_are_drawn_from_train_by_seed(tmp_path, kind):
    root = write_three(kind, tmp_path, (20, 0, 0))
    splits = load_detection(root, val_fraction=0.25, seed=3)
    parts = [[path.name for path in part.paths] for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert len({name for part in parts for name in part}) == 20
    assert [note.split(" drawn")[0] for note in splits.notes] == ["test: 4 pictures", "val: 4 pictures"]
    again, other = load_detection(root, val_fraction=0.25, seed=3), load_detection(root, val_fraction=0.25, seed=4)
    assert [path.name for path in again.val.paths] == parts[1] != [path.name for path in other.val.paths]


@FORMATS
def test_bad_entries_are_counted_once(tmp_path, kind):
    root = write_three(kind, tmp_path, (6, 0, 0))
    if kind == "coco":
        content = coco(6)
        content["annotations"][0]["bbox"] = [4, 6, -1, 1]
        write_coco(root, "train", content)
    elif kind == "voc":
        (root / "Annotations" / "p0.xml").write_text(voc_xml(voc_object(box=(9, 9, 1, 1))))
    else:
        (root / "labels" / "train" / "p0.txt").write_text("1 .5 .5 -.2 .2\n")
    with pytest.raises(ScratchvitError, match="has reversed sides"):
        load_detection(root)
    splits = load_detection(root, skip_bad=True)        # val and test are of train, and have its list
    assert len(splits.skipped) == 1
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == 6


def test_roboflow_s_layout_of_coco(tmp_path):
    for part, count in (("train", 2), ("valid", 1)):
        path = write_coco(tmp_path, part, coco(count))
        path.rename(tmp_path / part / "_annotations.coco.json")
    (tmp_path / "annotations").rmdir()
    splits = load_detection(tmp_path)
    assert [len(splits.train), len(splits.val)] == [2, 1]
    assert splits.val.picture(0).size == (40, 30)


def test_coco_as_it_is_published(tmp_path):
    for part in ("train2017", "val2017"):
        path = write_coco(tmp_path, part)
        path.with_name(f"captions_{part}.json").write_text("{}")
    splits = load_detection(tmp_path)
    assert splits.train.paths[0] == tmp_path / "train2017" / "0.png"
    assert splits.val.paths[0] == tmp_path / "val2017" / "0.png"
    write_coco(tmp_path / "other", "trainval35k", coco(10))
    assert load_detection(tmp_path / "other").notes[1].startswith("val: 1 picture drawn")
    write_coco(tmp_path, "train2014")
    with pytest.raises(ScratchvitError, match=r"instances_train2014\.json, instances_train2017\.json could all"):
        load_detection(tmp_path)


def test_a_folder_further_down_has_the_voc(tmp_path):
    assert len(load_detection(write_three("voc", tmp_path / "VOC2012").parent).train) == 10


def test_voc_s_classes_are_those_of_train_or_of_a_list(tmp_path):
    root = write_three("voc", tmp_path)
    write_voc(root, "val", dog=voc_xml(voc_object("dog")))
    with pytest.raises(ScratchvitError, match=r"dog\.xml: object 1: unknown class 'dog'; known are cat"):
        load_detection(root)
    (root / "classes.txt").write_text("dog\ncat\n")
    assert load_detection(root).val.annotations(0).labels.tolist() == [0]


def test_what_is_none_of_these(tmp_path):
    with pytest.raises(ScratchvitError, match=r"gone: no such folder.* or 'scenes'"):
        load_detection(tmp_path / "gone")
    with pytest.raises(ScratchvitError, match="no annotations in a known format"):
        load_detection(tmp_path)
    with pytest.raises(ScratchvitError, match="val_fraction=1"):
        load_detection(tmp_path, val_fraction=1)
    with pytest.raises(ScratchvitError, match="has 1 picture, too few to draw a test split from; add a test split"):
        load_detection(write_three("voc", tmp_path, (1, 0, 0)))


BCCD = SHARED / "bccd.tar"


@pytest.mark.skipif(not BCCD.is_file(), reason="../shared/data/bccd.tar is not here")
def test_blood_cells(tmp_path):
    with tarfile.open(BCCD) as archive:
        archive.extractall(tmp_path, filter="data")
    splits = load_detection(tmp_path / "bccd")
    parts = splits.train, splits.val, splits.test
    assert [len(part) for part in parts] == [205, 87, 72]
    assert splits.train.classes == ("Platelets", "RBC", "WBC")
    labels = np.concatenate([part.annotations(i).labels for part in parts for i in range(len(part))])
    assert np.bincount(labels).tolist() == [361, 4155 - 2, 372]
    assert sorted(note.split("/")[-1] for note in splits.notes) == [
        "BloodImage_00338.xml: object 13 (RBC): bndbox 504, 337, 504, 337 has no width or no height; left out",
        "BloodImage_00343.xml: object 4 (RBC): bndbox 181, 329, 181, 329 has no width or no height; left out",
    ]
    assert splits.skipped == ()
    assert splits.test.picture(0).size == (640, 480)
    target = splits.train.target(0)
    assert target["boxes"].min() >= 0
    assert target["boxes"].max() <= 1


DRAWN = {       # train, val, test
    "coco": ["0 1 2 3 4 5 8 9", "6 10", "7 11"],
    "voc": ["0 1 2 3 4 5 8 9", "6 10", "7 11"],
    "yolo": ["0 1 10 11 2 3 6 7", "4 8", "5 9"],        # sorted by name
}


@FORMATS
def test_pictures_are_drawn_as_they_always_were(tmp_path, kind):
    """By the version of 24 November 2026: a run of that time is resumed with the same splits."""
    splits = load_detection(write_three(kind, tmp_path, (12, 0, 0)), val_fraction=0.25, seed=3)
    parts = [
        [part.annotations(index).file_name.split(".")[0].strip("p") for index in range(len(part))]
        for part in (splits.train, splits.val, splits.test)
    ]
    assert [" ".join(part) for part in parts] == DRAWN[kind]
