"""Tables of file names and labels, as Kaggle, Roboflow and spreadsheets write them."""

import pytest

from scratchvit.data import load
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import by_class, counts, file_table, write_files


def write_table(path, rows, encoding="utf-8", sep=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(sep.join(row.split(",")) + "\r\n" for row in rows).encode(encoding))
    return path


def everything(root, path=None):
    """{class: its pictures} of all splits together."""
    splits = load(path or root, img_size=8)
    found = [by_class(part, root) for part in (splits.train, splits.val, splits.test)]
    return {name: sorted(path for part in found for path in part[name]) for name in splits.train.classes}


CATS_DOGS = {"cat": ["images/0.jpg", "images/1.jpg"], "dog": ["images/2.jpg", "images/3.jpg"]}
TABLES = {      # every one says that pictures 0 and 1 are cats, 2 and 3 dogs
    "name and label": ["file,label", "0.jpg,cat", "1.jpg,cat", "2.jpg,dog", "3.jpg,dog"],
    "label first": ["label,file", "cat,0.jpg", "cat,1.jpg", "dog,2.jpg", "dog,3.jpg"],
    "without a head": ["0.jpg,cat", "1.jpg,cat", "2.jpg,dog", "3.jpg,dog"],
    "without endings": ["id,breed", "0,cat", "1,cat", "2,dog", "3,dog"],
    "with folders": ["path,y", "images/0.jpg,cat", "images/1.jpg,cat", "images/2.jpg,dog", "images/3.jpg,dog"],
    "with backslashes": ["path,y", "images\\0.jpg,cat", "images\\1.jpg,cat", "images\\2.jpg,dog", "images\\3.jpg,dog"],
    "with another machine's folders": ["f,class", "/home/me/images/0.jpg,cat", "C:\\x\\1.jpg,cat", "2.jpg,dog",
                                       "a/3.jpg,dog"],
    "a column for each class": ["filename,cat,dog", "0.jpg,1,0", "1.jpg,1.0,0.0", "2.jpg,0,1", "3.jpg,0,1"],
    "many columns": ["id,filename,class id,labels,width", "7,0.jpg,0,cat,8", "8,1.jpg,0,cat,8", "9,2.jpg,1,dog,8",
                     "10,3.jpg,1,dog,8"],
    "blanks, and twice the same": ["file , label", " 0.jpg, cat ", "1.jpg,cat", "2.jpg ,dog", "3.jpg,dog", "3.jpg,dog"],
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("name", ["labels.csv", "data.tsv"])
def test_tables(tmp_path, rows, name):
    root = write_files(tmp_path, "images/{0..3}.jpg")
    write_table(root / name, rows, sep="," if name.endswith("csv") else "\t")
    assert everything(root) == CATS_DOGS
    rows = file_table(load(root, img_size=8))
    assert rows["used: labels"] == 1 and not any("left out" in row for row in rows)


@pytest.mark.parametrize(("encoding", "sep"), [("utf-8-sig", ";"), ("utf-16", ","), ("utf-8", "|")])
def test_encodings_and_separators_of_spreadsheets(tmp_path, encoding, sep):
    root = write_files(tmp_path, "{0..3}.png")
    rows = ["Datei,label", "0.png,Füße", "1.png,Füße", "2.png,犬", "3.png,犬"]
    write_table(root / "labels.csv", rows, encoding, sep)
    assert everything(root) == {"Füße": ["0.png", "1.png"], "犬": ["2.png", "3.png"]}


def test_a_table_can_be_named_itself(tmp_path):
    root = write_files(tmp_path, "images/{0..3}.jpg")
    write_table(root / "labels.csv", ["file,label", "0.jpg,a", "1.jpg,b", "2.jpg,b"])
    write_table(root / "train_v2.csv", TABLES["name and label"])
    with pytest.raises(ScratchvitError, match=r"labels\.csv, .*train_v2\.csv: which of these tables"):
        load(root, img_size=8)
    assert everything(root, root / "train_v2.csv") == CATS_DOGS
    rows = file_table(load(root / "labels.csv", img_size=8))
    assert rows["left out: in no row of the label table (images/3.jpg)"] == 1


def test_kaggle_has_a_table_for_each_split_and_one_of_guesses(tmp_path):
    root = write_files(tmp_path, "train_images/{0..9}.jpg", "test_images/{0..4}.jpg")     # the same names in both
    write_table(root / "train.csv", ["image_id,label", *(f"{at}.jpg,{at % 2}" for at in range(10))])
    write_table(root / "test.csv", ["image_id,label", *(f"{at}.jpg,{at % 2}" for at in range(5))])
    write_table(root / "sample_submission.csv", ["image_id,label", *(f"{at}.jpg,0" for at in range(5))])
    splits = load(root, img_size=8)
    assert counts(splits) == (9, 1, 5) and splits.train.classes == ("0", "1")
    assert by_class(splits.test, root)["1"] == ["test_images/1.jpg", "test_images/3.jpg"]
    assert file_table(splits)["left out: not read: .csv (sample_submission.csv)"] == 1


def test_roboflow_has_a_table_in_each_folder(tmp_path):
    root = write_files(tmp_path, "train/{0..9}.jpg", "valid/{10..12}.jpg", "test/{13..14}.jpg")
    for part, numbers in (("train", range(10)), ("valid", range(10, 13)), ("test", range(13, 15))):
        write_table(root / part / "_classes.csv",
                    ["filename, cat, dog", *(f"{at}.jpg, {at % 2}, {1 - at % 2}" for at in numbers)])
    splits = load(root, img_size=8)
    assert counts(splits) == (10, 3, 2) and splits.train.classes == ("cat", "dog")
    assert by_class(splits.val, root) == {"cat": ["valid/11.jpg"], "dog": ["valid/10.jpg", "valid/12.jpg"]}


def test_a_column_can_name_the_splits(tmp_path):
    root = write_files(tmp_path, "x/{0..7}.jpg")
    parts = ["train"] * 4 + ["Valid", "val", "test", "TEST"]
    write_table(root / "birds.csv", ["filepaths,labels,data set", *(f"x/{at}.jpg,{'ab'[at % 2]},{part}"
                                                                  for at, part in enumerate(parts))])
    splits = load(root, img_size=8)
    assert counts(splits) == (4, 2, 2) and by_class(splits.test, root) == {"a": ["x/6.jpg"], "b": ["x/7.jpg"]}


def test_numbers_are_sorted_as_numbers(tmp_path):
    root = write_files(tmp_path, "{0..11}.jpg")
    write_table(root / "labels.csv", ["file,label", *(f"{at}.jpg,{at}" for at in range(12))])
    assert load(root, img_size=8, val_fraction=0.0).train.classes == tuple(map(str, range(12)))


def test_rows_without_a_picture_or_a_label_are_told(tmp_path):
    root = write_files(tmp_path, "{0..5}.jpg")
    write_table(root / "labels.csv", ["file,label", "0.jpg,a", "1.jpg,b", "2.jpg,a", "3.jpg,b", "4.jpg,", "9.jpg,a"])
    splits = load(root, img_size=8)
    path = root / "labels.csv"
    assert f"{path}: missing pictures: 1 (9.jpg)" in splits.notes
    assert f"{path}: pictures without a label: 1 (4.jpg)" in splits.notes
    assert file_table(splits)["left out: in no row of the label table (4.jpg, 5.jpg)"] == 2


@pytest.mark.parametrize(("rows", "sentence"), {
    "two labels": (["file,label", "0.jpg,a", "0.jpg,b", "1.jpg,b"], "0.jpg has two labels, a and b"),
    "which column": (["file,colour,size", "0.jpg,red,a", "1.jpg,red,b"],
                     r"which column has the label \(colour, size\)"),
    "several classes": (["file,cat,dog", "0.jpg,1,1", "1.jpg,0,1"],
                        "1 of its 2 pictures belong to no class or to several"),
    "ragged": (["file,label", "0.jpg,a", "1.jpg", "2.jpg,b"], "row 3 has 1 column, the first has 2"),
    "a quote without an end": (["file,label", '0.jpg,"a', "1.jpg,b"], "this table cannot be read"),
}.values(), ids=lambda value: value if isinstance(value, str) else "")
def test_tables_that_do_not_say_enough(tmp_path, rows, sentence):
    write_table(write_files(tmp_path, "{0..3}.jpg") / "labels.csv", rows)
    with pytest.raises(ScratchvitError, match=sentence):
        load(tmp_path, img_size=8)


def test_tables_of_other_things_are_no_tables_of_labels(tmp_path):
    root = write_files(tmp_path, "cat/{0..3}.jpg", "dog/{0..3}.jpg")
    write_table(root / "log.csv", ["epoch,label", "1,0.5", "2,0.4"])
    assert everything(root)["cat"] == [f"cat/{at}.jpg" for at in range(4)]
    with pytest.raises(ScratchvitError, match=r"log\.csv: no column of this table names pictures .* 8 \.jpg, 1 \.csv"):
        load(root / "log.csv", img_size=8)


def test_pictures_outside_of_the_folder_are_never_read(tmp_path):
    write_files(tmp_path, "secret.jpg")
    root = write_files(tmp_path / "photos", "{0..3}.jpg")
    rows = ["file,label", "0.jpg,a", "1.jpg,a", "2.jpg,b", "../secret.jpg,b", f"{tmp_path / 'secret.jpg'},b"]
    write_table(root / "labels.csv", rows)
    splits = load(root, img_size=8)
    assert sum(counts(splits)) == 3
    assert any("missing pictures: 2" in note for note in splits.notes)


def test_a_table_beside_folders_of_classes(tmp_path):
    root = write_files(tmp_path, "cat/{0..1}.jpg", "dog/{2..3}.jpg")
    write_table(root / "list.csv", ["file,x,z", "cat/0.jpg,1,2", "cat/1.jpg,1,2", "dog/2.jpg,1,2", "dog/3.jpg,1,2"])
    splits = load(root, img_size=8)
    assert splits.train.classes == ("cat", "dog")
    assert any(note.startswith("not used: ") and "which column has the label" in note for note in splits.notes)
