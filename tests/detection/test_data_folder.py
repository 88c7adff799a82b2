"""A data folder: which part a name speaks of, what data.yaml says, and what is left out or refused."""

import json
import os
from pathlib import Path

import pytest

from scratchvit.detection.data.parts import is_part, part_of, part_of_file
from scratchvit.detection.data.source import load_detection
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import write_picture
from tests.support.detection_layouts import roboflow_yolo, write_table
from tests.support.detection_pictures import (
    ALL,
    CLASSES,
    TRAIN,
    VAL,
    assert_adds_up,
    assert_whole,
    expected,
    found_in,
    json_of,
    pictures,
    put,
    texts,
    xmls,
)
from tests.support.detection_samples import SIZE, voc_object, voc_xml, write_voc

# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"), ("train_latest", "train"), ("festival_train", "train"), ("contest_val", "val"),
        ("instances_train2017", "train"), ("trainImages", "train"), ("TRAIN", "train"), ("Training", "train"),
        ("trainval35k", "train"), ("train_val", "train"), ("instances_minival2014", "val"), ("valid", "val"),
        ("image_info_test-dev2017", "test"), ("testing.v2", "test"), ("validation", "val"), ("x-val-x", "val"),
        ("latest", None), ("festival", None), ("contest", None), ("carnival", None), ("interval", None),
        ("strain", None), ("value", None), ("testimony", None), ("attest", None), ("train_test", None), ("", None),
        ("val-test", None), ("2017", None),
    ],
)
def test_a_part_is_a_whole_word(name, part):
    assert part_of(name) == part


def test_the_part_of_a_file_is_that_of_its_folders():
    assert part_of_file(Path("images/val2017/train.jpg")) == "val"
    assert part_of_file(Path("train/images/a.jpg")) == "train"
    assert part_of_file(Path("train.jpg")) is None
    assert part_of_file(Path("train_data/x/val/a.jpg")) == "val"
    assert part_of_file(Path("obj_train_data/a.jpg")) == "train"
    assert [is_part(name) for name in ("Validation", "test2017", "cat_train")] == ["val", "test", None]


def coco_of(root, **files):
    """Annotations {file: pictures}, all of pictures in images."""
    pictures(root / "images", ALL)
    for name, numbers in files.items():
        put(root / "annotations" / f"{name}.json", json_of(numbers))
    splits = load_detection(root, val_fraction=0.2)
    return [{int(path.stem) for path in part.paths} for part in (splits.train, splits.val, splits.test)], splits.notes


def test_one_file_never_serves_two_parts(tmp_path):
    train, val = {*TRAIN}, {*VAL}
    parts, notes = coco_of(tmp_path / "latest", train_latest=TRAIN, val=VAL)
    assert parts == [train, val, val]
    assert "test: there is none, so val is used" in notes[0]
    parts, notes = coco_of(tmp_path / "festival", festival_train=TRAIN)
    assert parts[0] | parts[1] | parts[2] == train
    assert sum(map(len, parts)) == len(train)
    assert coco_of(tmp_path / "contest", contest_train=TRAIN, contest_val=VAL)[0] == [train, val, val]
    assert coco_of(tmp_path / "mine", mytrain=TRAIN, myval=VAL)[0] == [train, val, val]


def test_files_of_which_more_than_one_could_be_meant(tmp_path):
    with pytest.raises(ScratchvitError, match=r"train_a\.json, train_b\.json could all be meant for train"):
        coco_of(tmp_path / "a", train_a=TRAIN, train_b=VAL)
    with pytest.raises(ScratchvitError, match=r"annotations/one\.json, annotations/two\.json|one\.json, two\.json"):
        coco_of(tmp_path / "b", one=TRAIN, two=VAL)
    for name in ("val", "restrained_val"):
        with pytest.raises(ScratchvitError, match=rf"annotations \(annotations/{name}\.json\), but none for train"):
            coco_of(tmp_path / name, **{name: VAL})


def test_pictures_of_two_parts_are_told(tmp_path):
    pictures(tmp_path / "images", ALL)
    for name, numbers in (("train", TRAIN), ("val", range(5, 9)), ("test", range(8, 12))):
        put(tmp_path / "annotations" / f"{name}.json", json_of(numbers))
    splits = load_detection(tmp_path)
    assert splits.notes == (
        "val: 2 of its 4 pictures are also in train", "test: 1 of its 4 pictures are also in val",
    )
    assert any("2  used: train and val" in line for line in splits.files)
    assert_adds_up(splits, tmp_path)


def test_voc_s_years_are_one_data_set(tmp_path):
    for year, kinds in (("VOC2007", "ant"), ("VOC2012", "cat")):
        for part, names in (("train", "ab"), ("val", "c")):
            write_voc(tmp_path / year, part, **{name: voc_xml(voc_object(kinds)) for name in names})
    splits = load_detection(tmp_path)
    assert splits.train.classes == ("ant", "cat")
    assert [splits.train.annotations(i).file_name for i in range(4)] == [
        f"VOC{year}/JPEGImages/{name}.jpg" for year in (2007, 2012) for name in "ab"
    ]
    assert [splits.train.annotations(i).labels.tolist() for i in range(4)] == [[0], [0], [1], [1]]
    assert [splits.train.annotations(i).image_id for i in range(4)] == [1, 2, 3, 4]
    assert len(splits.val) == 2
    assert_adds_up(splits, tmp_path)


# --- what data.yaml says --------------------------------------------------------------------------------------------


def yolo_parts(root, text):
    put(root / "data.yaml", f"{text}\nnames: [ant, cat]\n")
    splits = load_detection(root)
    assert_adds_up(splits, root)
    return [found_in(part).keys() for part in (splits.train, splits.val, splits.test)], splits.notes


def test_folds_swapped_parts_and_parts_that_are_not_there(tmp_path):
    roboflow_yolo(tmp_path)
    put(tmp_path / "fold_train.txt", "".join(f"./train/images/{i}.jpg\n" for i in TRAIN[:5]))
    put(tmp_path / "fold_val.txt", "".join(f"./train/images/{i}.jpg\n" for i in TRAIN[5:]))
    parts, notes = yolo_parts(tmp_path, "path: .\ntrain: fold_train.txt\nval: fold_val.txt")
    assert parts == [{*TRAIN[:5]}, {*TRAIN[5:]}, {10, 11}]
    assert notes == ()
    parts, notes = yolo_parts(tmp_path, "train: valid\nval: train/images\ntest: null")
    assert parts == [{*VAL}, {*TRAIN}, {10, 11}]
    parts, notes = yolo_parts(tmp_path, "train: train\nval: ../validate/images\ntest:")
    assert parts[1] == {*VAL}
    assert notes == (
        f"{tmp_path / 'data.yaml'}: val is ../validate/images, which is not in {tmp_path}; "
        f"{tmp_path / 'valid' / 'images'} is used instead",
    )
    parts, notes = yolo_parts(tmp_path, "train: train/images\nval: train/images")
    assert parts[:2] == [{*TRAIN}, {*TRAIN}]
    assert "val: 7 of its 7 pictures are also in train" in notes
    parts, notes = yolo_parts(tmp_path, "train: [train/images, valid/images]\nval: test/images")
    assert parts == [{*TRAIN, *VAL}, {10, 11}, {10, 11}]


def test_a_list_with_pictures_that_are_not_there(tmp_path):
    roboflow_yolo(tmp_path)
    put(tmp_path / "train.txt", "train/images/0.jpg\ntrain/images/0.jpg\ntrain/images/77.jpg\nvalid/images/8.jpg\n")
    put(tmp_path / "data.yaml", "train: train.txt\nnames: [ant, cat]")
    with pytest.raises(ScratchvitError, match=r"line 3: train/images/77\.jpg: there is no such picture.*--skip-bad"):
        load_detection(tmp_path)
    splits = load_detection(tmp_path, skip_bad=True)
    assert found_in(splits.train).keys() == {0, 8}
    assert "val: 1 of its 3 pictures are also in train" in splits.notes
    assert len(splits.skipped) == 1


# --- what is left out -----------------------------------------------------------------------------------------------


def test_every_file_is_accounted_for(tmp_path):
    roboflow_yolo(tmp_path)
    pictures(tmp_path / "more", range(20, 25))
    (tmp_path / "train" / "images" / "gone.jpg").symlink_to("nowhere.jpg")
    put(tmp_path / "train" / "images" / "clip.mp4", "")
    put(tmp_path / ".git" / "config", "")
    (tmp_path / "train" / "images" / "3.jpg").write_bytes(b"no picture")
    splits = load_detection(tmp_path, skip_bad=True)
    assert_adds_up(splits, tmp_path)
    assert [line.split(maxsplit=1) for line in splits.files] == [
        ["33", f"files in {tmp_path}"], ["13", "used: annotations"], ["6", "used: train"], ["3", "used: val"],
        ["2", "used: test"], ["1", "left out: hidden files and system files (.git/config)"],
        ["5", "left out: pictures that no annotation is about (more/20.jpg, more/21.jpg, more/22.jpg, …)"],
        ["1", "left out: bad pictures, or with bad annotations (train/images/3.jpg)"],
        ["1", "left out: not read: .mp4 (train/images/clip.mp4)"],
        ["1", "left out: broken links (train/images/gone.jpg)"],
    ]


def test_parts_in_folders_that_are_called_otherwise(tmp_path):
    for name, numbers in (("train", TRAIN), ("Validation", VAL), ("Test2", [10, 11])):
        pictures(tmp_path / name / "images", numbers)
        texts(tmp_path / name / "labels", numbers)
    put(tmp_path / "classes.txt", "ant\ncat\n")
    splits = load_detection(tmp_path)
    assert [found_in(part) for part in (splits.train, splits.val, splits.test)] == [
        expected(TRAIN), expected(VAL), expected([10, 11]),
    ]


def test_lists_of_voc_that_are_called_otherwise(tmp_path):
    for part, names in (("train", "ab"), ("Validation", "c"), ("trainval", "abc"), ("cat_val", "a")):
        write_voc(tmp_path, part, **{name: voc_xml(voc_object()) for name in names})
    splits = load_detection(tmp_path)
    assert [[path.stem for path in part.paths] for part in (splits.train, splits.val)] == [["a", "b"], ["c"]]


def test_what_is_in_no_part_s_folder(tmp_path):
    for place, numbers in (("train", TRAIN), ("valid", VAL), ("extra", [10, 11])):
        pictures(tmp_path / place, numbers)
        xmls(tmp_path / place, numbers)
    splits = load_detection(tmp_path)
    assert [len(splits.train), len(splits.val)] == [7, 3]
    left_out = "2  left out: in no folder of train, val or test (extra/10.xml, extra/11.xml)"
    assert any(left_out in line for line in splits.files)


NOTHING_FITS = [
    ({}, "this folder is empty; expected annotations/instances_train"),
    ({"a/0.jpg": None, "a/1.jpg": None, "b.png": None}, "3 pictures in a; but there is no annotation file; expected"),
    ({"b.png": None, "README": ""}, "1 picture; 1 file without an extension; but there is no annotation file"),
    ({"0.xml": "<project/>"}, r"1 \.xml; but there are no pictures; no XML file begins with <annotation>"),
    ({"0.jpg": None, "x.json": "{}"}, "no JSON file has COCO's lists images, annotations and categories"),
    ({"0.jpg": None, "x.json": '{"images": ['}, r"x\.json: this file is not valid JSON, maybe truncated"),
    ({"0.jpg": None, "0.txt": "a picture of a cat"}, "no text file has the name of a picture and lines of class cx cy"),
    ({"0.jpg": None, "x.csv": "name,age\nann,7\n"}, "no CSV file has those columns"),
    ({"0.jpg": None, "a.xml": "<annotations><image/></annotations>"}, "a.xml is in CVAT's own format.*: export it"),
    ({"0.jpg": None, "0.json": '{"shapes": [], "imagePath": "0.jpg"}'}, "0.json is in the format of LabelMe: export"),
    ({"0.jpg": None, "x.json": '[{"id": 1, "data": {}, "annotations": []}]'}, "in the format of Label Studio"),
    ({"0.jpg": None, "x.json": '{"_via_settings": {}}'}, "in the format of a VIA project"),
    ({"0.jpg": None, "x.json": '[{"image": "0.jpg", "annotations": []}]'}, "in the format of CreateML"),
    ({f"{place}/{i}.txt": "x" for i in range(2) for place in "abcdef"}, r"12 \.txt in a, b, c, d and 2 more folders"),
]


@pytest.mark.parametrize(("files", "said"), NOTHING_FITS)
def test_where_nothing_fits_what_is_there_is_said(tmp_path, files, said):
    for name, text in files.items():
        write_picture(tmp_path / name, SIZE) if text is None else put(tmp_path / name, text)
    with pytest.raises(ScratchvitError, match=rf"no annotations in a known format: .*{said}"):
        load_detection(tmp_path)


def test_a_file_in_place_of_a_folder(tmp_path):
    put(tmp_path / "data.yaml", "names: [a]")
    with pytest.raises(ScratchvitError, match=r"data\.yaml: this is a file: give the folder that contains it"):
        load_detection(tmp_path / "data.yaml")


def test_xml_files_that_are_damaged_or_without_a_picture(tmp_path):
    pictures(tmp_path, ALL)
    xmls(tmp_path, ALL)
    put(tmp_path / "3.xml", "")
    with pytest.raises(ScratchvitError, match=r"3\.xml: this annotation file cannot be used: it is empty"):
        load_detection(tmp_path)
    xmls(tmp_path, [3, 40])
    put(tmp_path / "pom.xml", "<project/>")
    with pytest.raises(ScratchvitError, match=r"40\.xml: there is no picture 40\.jpg, or"):
        load_detection(tmp_path)
    (tmp_path / "40.xml").unlink()
    assert_whole(tmp_path)
    assert CLASSES == ("ant", "cat")


def test_labels_further_up_than_pictures(tmp_path):
    for place, numbers in (("a", range(6)), ("b", range(6, 12)), (".", [12])):
        pictures(tmp_path / "images" / "train" / place, numbers)
    texts(tmp_path / "labels" / "train", range(13))
    put(tmp_path / "classes.txt", "ant\ncat\n")
    splits = load_detection(tmp_path)
    assert {**found_in(splits.train), **found_in(splits.val), **found_in(splits.test)} == expected(range(13))
    pictures(tmp_path / "images" / "train" / "b", [12])     # has no objects: 12.txt is that of the other 12.jpg
    splits = load_detection(tmp_path)
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 14
    assert any("1 of 14 pictures have no text file" in note for note in splits.notes)
    pictures(tmp_path / "images" / "train" / "b", [5])
    with pytest.raises(ScratchvitError, match=r"5\.txt: there are pictures of that name in more than one folder"):
        load_detection(tmp_path)


def test_a_picture_in_two_formats_has_the_same_labels_twice(tmp_path):
    pictures(tmp_path / "images" / "train", ALL)
    pictures(tmp_path / "images" / "train", [0], ".png")
    texts(tmp_path / "labels" / "train", ALL)
    put(tmp_path / "classes.txt", "ant\ncat\n")
    splits = load_detection(tmp_path)
    parts = (splits.train, splits.val, splits.test)
    found = {path.name: part.annotations(i).boxes.tolist() for part in parts for i, path in enumerate(part.paths)}
    assert len(found) == 13
    assert found["0.jpg"] == found["0.png"] != []


@pytest.mark.parametrize("path", ["/content/fruit", "C:\\work\\fruit", "../datasets/fruit", "fruit"])
def test_the_path_of_a_data_yaml_is_found_by_its_end(tmp_path, path):
    roboflow_yolo(tmp_path / "fruit")
    (tmp_path / "fruit" / "data.yaml").unlink()
    parts, _ = yolo_parts(tmp_path, f"path: {path}\ntrain: train/images\nval: valid/images")
    assert parts[:2] == [{*TRAIN}, {*VAL}]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_opened(tmp_path):
    roboflow_yolo(tmp_path)
    os.mkfifo(tmp_path / "train" / "images" / "pipe.jpg")
    os.mkfifo(tmp_path / "train" / "labels" / "pipe.txt")
    splits = load_detection(tmp_path)
    assert any("2  left out: not regular files (train/images/pipe.jpg" in line for line in splits.files)
    assert_adds_up(splits, tmp_path)


def test_one_picture_is_not_two(tmp_path):
    """a/0.jpg and b/0.jpg were two pictures, of which one is left."""
    root = tmp_path / "coco"
    pictures(root / "images", ALL)
    content = json.loads(json_of(ALL, "a/{}.jpg"))
    content["images"].append({"id": 99, "file_name": "b/0.jpg", "width": 40, "height": 30})
    put(root / "result.json", json.dumps(content))
    with pytest.raises(ScratchvitError, match=r"no picture a/0\.jpg, and .*0\.jpg is already that of another entry"):
        load_detection(root)
    assert len(load_detection(root, skip_bad=True).skipped) == 2

    root = tmp_path / "voc"
    pictures(root / "images", ALL)
    xmls(root / "annots", ALL)
    xmls(root / "backup", [3])
    with pytest.raises(ScratchvitError, match=r"backup.3\.xml: its picture .*3\.jpg already has .*annots.3\.xml"):
        load_detection(root)

    root = tmp_path / "csv"
    pictures(root / "images", ALL)
    write_table(root / "boxes.csv", ALL, name="a/{}.jpg")
    with (root / "boxes.csv").open("a", encoding="utf-8") as file:
        file.write("b/0.jpg,40,30,cat,1,1,9,9\n")
    with pytest.raises(ScratchvitError, match=r"line \d+: b/0\.jpg and a/0\.jpg are both the picture"):
        load_detection(root)

    root = tmp_path / "yolo"
    roboflow_yolo(root)
    put(root / "data.yaml", "train: list.txt\nnames: [ant, cat]\n")
    put(root / "list.txt", "a/0.jpg\nb/0.jpg\n")
    with pytest.raises(ScratchvitError, match=r"list\.txt: line 2: b/0\.jpg and a/0\.jpg are both"):
        load_detection(root)


def test_masks_beside_the_pictures_are_not_taken_for_them(tmp_path):
    for place in ("voc", "yolo"):
        pictures(tmp_path / place / "images", ALL)
        pictures(tmp_path / place / "masks", ALL, ".png")
    xmls(tmp_path / "voc" / "annotations", ALL)
    texts(tmp_path / "yolo" / "labels", ALL)
    put(tmp_path / "yolo" / "classes.txt", "ant\ncat\n")
    for place in ("voc", "yolo"):
        splits = assert_whole(tmp_path / place)
        assert any("12  left out: pictures that no annotation is about (masks/0.png" in line for line in splits.files)


def test_a_val_without_pictures_is_none(tmp_path):
    roboflow_yolo(tmp_path)
    for path in (tmp_path / "valid").rglob("*.*"):
        path.unlink()
    splits = load_detection(tmp_path)
    assert "val is ../valid/images, where there are no pictures, so this entry is ignored" in " ".join(splits.notes)
    assert "val: 1 picture drawn from" in splits.notes[0]


def test_a_large_folder_is_not_searched_anew_for_every_picture(tmp_path, monkeypatch):
    """Trying each of Pillow's suffixes beside every annotation once took most of the time of loading."""
    numbers = range(20)
    pictures(tmp_path / "images", numbers)
    xmls(tmp_path / "annotations", numbers)
    calls = 0

    def counted(*args, stat=os.stat, **options):
        nonlocal calls
        calls += 1
        return stat(*args, **options)

    monkeypatch.setattr(os, "stat", counted)
    load_detection(tmp_path)
    assert calls < 12 * len(numbers)
