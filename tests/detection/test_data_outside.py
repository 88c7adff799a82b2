"""No annotation leads out of its data folder, nor to a picture of another part; links in the folder are followed."""

import os
from pathlib import Path

import pytest

from scratchvit.detection.data.files import DataFolder
from scratchvit.detection.data.source import load_detection
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import write_picture
from tests.support.detection_layouts import roboflow_yolo, write_table
from tests.support.detection_pictures import ALL, TRAIN, expected, found_in, json_of, pictures, put, texts, xmls
from tests.support.detection_samples import SIZE, coco, write_coco


@pytest.fixture
def data(tmp_path):
    """A data folder, beside which lies what nobody may read."""
    secret = tmp_path / "secret"
    pictures(secret, ALL)
    xmls(secret, ALL)
    texts(secret, ALL)
    put(secret / "list.txt", "".join(f"{i}.jpg\n" for i in ALL))
    return tmp_path / "data"


@pytest.mark.parametrize(
    "way", ["../secret/{}.jpg", "{secret}/{}.jpg", "images/../../secret/{}.jpg", "..\\secret\\{}.jpg"]
)
def test_a_coco_file_does_not_lead_out_of_its_folder(data, way):
    name = way.replace("{secret}", str(data.parent / "secret"))
    write_picture(data / "images" / "99.jpg", SIZE)
    put(data / "train.json", json_of(ALL, name))
    with pytest.raises(ScratchvitError, match=r"the pictures that it lists .* are not in"):
        load_detection(data)
    pictures(data / "images", ALL)
    splits = load_detection(data)
    assert {path.parent for path in splits.train.paths} == {data / "images"}
    assert any("found by the end of their paths: 12 (" in note for note in splits.notes)


@pytest.mark.parametrize("way", ["../../secret/{}", "{secret}/{}"])
def test_a_list_of_voc_does_not_lead_out_of_its_folder(data, way):
    way = way.replace("{secret}", str(data.parent / "secret"))
    pictures(data / "JPEGImages", ALL)
    put(data / "ImageSets" / "Main" / "train.txt", "".join(f"{way.format(i)}\n" for i in ALL))
    with pytest.raises(ScratchvitError, match=r"train\.txt: entry 1 \(.*\) leads out of .*data"):
        load_detection(data)


@pytest.mark.parametrize("entry", ["../secret", "{secret}", "../secret/list.txt", "images/../../secret"])
def test_a_data_yaml_does_not_lead_out_of_its_folder(data, entry):
    entry = entry.format(secret=data.parent / "secret")
    roboflow_yolo(data)
    put(data / "data.yaml", f"path: ..\ntrain: {entry}\nval: valid/images\nnames: [ant, cat]\n")
    splits = load_detection(data)
    assert found_in(splits.train) == expected(TRAIN)
    assert any(f"train is {entry}, which is not in" in note and "is used instead" in note for note in splits.notes)
    put(data / "data.yaml", f"path: {data.parent / 'secret'}\ntrain: .\nval: valid/images\nnames: [ant, cat]\n")
    assert all(path.is_relative_to(data) for path in load_detection(data).train.paths)


def test_a_list_or_a_table_does_not_lead_out_of_its_folder(data):
    pictures(data / "images" / "train", [50])
    texts(data / "labels" / "train", [50])
    put(data / "train.txt", "../secret/1.jpg\n")
    put(data / "data.yaml", "train: train.txt\nnames: [ant, cat]\n")
    with pytest.raises(ScratchvitError, match=r"train\.txt: line 1: \.\./secret/1\.jpg: there is no such picture"):
        load_detection(data)
    table = data.parent / "table"
    pictures(table, [50])
    write_table(table / "boxes.csv", ALL, name="../secret/{}.jpg")
    with pytest.raises(ScratchvitError, match=r"boxes\.csv: line 2: \.\./secret/0\.jpg: there is no such picture"):
        load_detection(table)


def test_links_in_the_folder_are_its_owner_s(data):
    data.mkdir()
    (data / "images").symlink_to(data.parent / "secret", target_is_directory=True)
    put(data / "annotations" / "all.json", json_of(ALL))
    splits = load_detection(data, val_fraction=0.2, seed=1)
    assert sum(map(len, (splits.train, splits.val, splits.test))) == len(ALL)


def test_links_to_folders_of_the_same_data(tmp_path):
    pictures(tmp_path / "JPEGImages", ALL)
    texts(tmp_path / "labels", ALL)
    put(tmp_path / "classes.txt", "ant\ncat\n")
    (tmp_path / "images").symlink_to("JPEGImages", target_is_directory=True)
    (tmp_path / "labels" / "again").symlink_to("..", target_is_directory=True)
    splits = load_detection(tmp_path, val_fraction=0.2)
    assert {**found_in(splits.train), **found_in(splits.val), **found_in(splits.test)} == expected(ALL)


def test_a_picture_is_not_taken_from_another_part(tmp_path):
    write_coco(tmp_path, "train", coco(3))
    write_coco(tmp_path, "val", coco(3))
    (tmp_path / "train" / "2.png").unlink()
    with pytest.raises(ScratchvitError, match=r"images\[2\]: there is no picture .*train[/\\]2\.png"):
        load_detection(tmp_path)
    assert len(load_detection(tmp_path, skip_bad=True).train) == 2


def test_pictures_of_the_same_name_in_two_folders(tmp_path):
    for place in "ab":
        pictures(tmp_path / "photos" / place, ALL)
    put(tmp_path / "result.json", json_of(ALL, "/data/upload/{}.jpg"))
    with pytest.raises(ScratchvitError, match=r"more than one picture that .*/0\.jpg could be: photos/a/0\.jpg"):
        load_detection(tmp_path)
    put(tmp_path / "result.json", json_of(ALL, "/data/photos/b/{}.jpg"))
    assert {path.parent.name for path in load_detection(tmp_path).train.paths} == {"b"}


def test_names_are_found_in_another_case_and_with_accents_written_otherwise(tmp_path):
    write_picture(tmp_path / "images" / "Cafe\u0301.JPG", SIZE)
    write_picture(tmp_path / "images" / "b.jpg", SIZE)
    folder = DataFolder(tmp_path)
    assert folder.find("caf\u00e9.jpg", [tmp_path], None) == [tmp_path / "images" / "Cafe\u0301.JPG"]
    assert folder.find("x/caf\u00e9.jpg", [], "train") == [tmp_path / "images" / "Cafe\u0301.JPG"]
    for nothing in ("", "/", "..", "C:\\", "c.jpg", "images", "a\0b.jpg", "x" * 5000):
        assert folder.find(nothing, [tmp_path], None) == []


@pytest.mark.parametrize("root", [".", "data", "./data/../data", os.sep])
def test_inside_is_inside_however_the_folder_is_named(tmp_path, monkeypatch, root):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = DataFolder.__new__(DataFolder)
    folder.root = Path(root)
    if root != os.sep:
        assert folder.inside(folder.root, "../x.jpg") is None
        assert folder.inside(folder.root / "a", "../../x.jpg") is None
        assert folder.inside(folder.root, str(tmp_path.parent)) is None
    assert folder.inside(folder.root / "a", "../b/x.jpg") == folder.root / "b" / "x.jpg"
    assert folder.inside(folder.root, os.path.abspath(folder.root / "c.jpg")) == folder.root / "c.jpg"     # noqa: PTH100
