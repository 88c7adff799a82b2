"""Tables of boxes: what is said of every bad row, and what columns may be called."""

import json

import pytest

from scratchvit.detection.data.source import load_detection
from scratchvit.errors import ScratchvitError
from tests.support.detection_layouts import write_table
from tests.support.detection_pictures import TRAIN, VAL, assert_adds_up, pictures, put

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"
VIA = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"


def table_of(root, *rows, header=HEADER, skip_bad=False):
    pictures(root, range(8))
    good = [f"{i}.jpg,40,30,cat,1,2,11,12" for i in range(1, 8)] if header == HEADER else []
    put(root / "boxes.csv", "\n".join([header, *good, *rows]))
    splits = load_detection(root, val_fraction=0.2, skip_bad=skip_bad)
    assert_adds_up(splits, root)
    parts = splits.train, splits.val, splits.test
    boxes = {path.name: part.annotations(i).boxes.tolist() for part in parts for i, path in enumerate(part.paths)}
    return splits, boxes


def test_boxes_are_edges_in_pixels(tmp_path):
    _, boxes = table_of(tmp_path, "0.jpg,40,30,ant,0,0,40,30", "0.jpg,40,30,cat,1.5,2,11,12.25", "0.jpg,,,cat,5,5,6,6")
    assert boxes["0.jpg"] == [[0, 0, 40, 30], [1.5, 2, 11, 12.25], [5, 5, 6, 6]]


def test_a_row_without_a_box_is_a_picture_without_objects(tmp_path):
    splits, boxes = table_of(tmp_path, "0.jpg,40,30,,,,,")
    assert boxes["0.jpg"] == []
    assert splits.notes[2:] == ()


BAD_ROWS = [
    ("0.jpg,40,30,cat,1,2,eleven,12", "1, 2, eleven, 12 is not the four numbers"),
    ("0.jpg,40,30,cat,1,2,,12", "is not the four numbers"), ("0.jpg,40,30,cat,1", "is not the four numbers"),
    ("0.jpg,40,30,,1,2,11,12", "this box has no class"), ("9.jpg,40,30,cat,1,2,11,12", "there is no such picture"),
    (",40,30,cat,1,2,11,12", "no file name"), ("0.jpg,40,30,cat,11,2,1,12", "has reversed sides"),
    ("0.jpg,40,30,cat,nan,2,1,12", "not finite"), ("0.jpg,40,30,cat,50,2,60,12", "lies outside its picture of 40 × 30"),
]


@pytest.mark.parametrize(("row", "said"), BAD_ROWS)
def test_a_bad_row_is_named_or_left_out_and_counted(tmp_path, row, said):
    with pytest.raises(ScratchvitError, match=rf"boxes\.csv: line 9.*{said}.*--skip-bad"):
        table_of(tmp_path, row)
    splits, boxes = table_of(tmp_path, row, skip_bad=True)
    assert len(splits.skipped) == 1
    assert len(boxes) >= 7


def test_normalised_boxes_are_refused(tmp_path):
    pictures(tmp_path, range(3))
    put(tmp_path / "boxes.csv", f"{HEADER}\n" + "".join(f"{i}.jpg,40,30,cat,0.1,0.2,0.5,0.9\n" for i in range(3)))
    with pytest.raises(ScratchvitError, match=r"boxes\.csv: all boxes are within 0 … 1"):
        load_detection(tmp_path)


def region(shape, about='{"name": "cat"}', name="0.jpg"):
    quoted = [part.replace('"', '""') for part in (shape, about)]
    return f'{name},9,"{{}}",1,0,"{quoted[0]}","{quoted[1]}"'


GOOD = [region('{"name": "rect", "x": 1, "y": 2, "width": 10, "height": 10}', name=f"{i}.jpg") for i in range(1, 8)]
SHAPES = [
    ({"name": "rect", "x": 1, "y": 2, "width": 10, "height": 5}, [1, 2, 11, 7]),
    ({"name": "circle", "cx": 10, "cy": 12, "r": 3.5}, [6.5, 8.5, 13.5, 15.5]),
    ({"name": "ellipse", "cx": 10, "cy": 12, "rx": 3, "ry": 5, "theta": 0}, [7, 7, 13, 17]),
    ({"name": "polygon", "all_points_x": [3, 9, 5], "all_points_y": [8, 4, 20]}, [3, 4, 9, 20]),
    ({"name": "polyline", "all_points_x": [3, 9, 5], "all_points_y": [8, 4, 20]}, [3, 4, 9, 20]),
]


@pytest.mark.parametrize(("shape", "box"), SHAPES)
def test_every_shape_of_via_has_a_box(tmp_path, shape, box):
    _, boxes = table_of(tmp_path, *GOOD, region(json.dumps(shape)), header=VIA)
    assert boxes["0.jpg"] == [box]


def test_a_picture_without_regions(tmp_path):
    assert table_of(tmp_path, *GOOD, region("{}", "{}"), header=VIA)[1]["0.jpg"] == []


RECT = '{"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}'
ABOUT = ['{"Name": "cat", "quality": {"good": true}}', '{"x": "cat"}', '{"type": {"cat": true, "dog": false}, "id": 7}']


@pytest.mark.parametrize("about", ABOUT)
def test_the_class_among_the_attributes_of_a_region(tmp_path, about):
    splits, boxes = table_of(tmp_path, *GOOD, region(RECT, about), header=VIA)
    assert splits.train.classes == ("cat",)
    assert boxes["0.jpg"] == [[1, 2, 4, 6]]


BAD_REGIONS = [
    (region("{", "{}"), "no JSON"), (region("[]"), "no JSON object"), (region('{"name": "point"}'), "'point', of"),
    (region('{"name": "rect", "x": 1}'), "no number y"), (region('{"name": "rect", "x": "1"}'), "no number x"),
    (region('{"name": "rect", "x": true}'), "no number x"), (region('{"x": 1}'), "'None', of which no box"),
    (region('{"name": "polygon", "all_points_x": [1, 2, 3]}'), "points are not numbers"),
    (region('{"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}'), "three points"),
    (region(RECT, "{}"), "has no name, so"), (region(RECT, '{"a": "cat", "b": "dog"}'), "more than one name"),
    (region(RECT, '{"type": {"cat": true, "dog": true}}'), "more than one name"),
]


@pytest.mark.parametrize(("row", "said"), BAD_REGIONS)
def test_a_bad_region_is_named(tmp_path, row, said):
    with pytest.raises(ScratchvitError, match=rf"boxes\.csv: line 9, 0\.jpg: .*{said}.*--skip-bad"):
        table_of(tmp_path, *GOOD, row, header=VIA)
    assert len(table_of(tmp_path, *GOOD, row, header=VIA, skip_bad=True)[0].skipped) == 1


def test_classes_are_those_of_train_or_of_a_list(tmp_path):
    pictures(tmp_path, range(10))
    write_table(tmp_path / "train.csv", TRAIN)
    write_table(tmp_path / "val.csv", VAL)
    with (tmp_path / "val.csv").open("a", encoding="utf-8") as file:
        file.write("7.jpg,40,30,dog,1,1,9,9\n")
    with pytest.raises(ScratchvitError, match=r"val\.csv: line \d+, 7\.jpg: unknown class 'dog'; known are ant, cat"):
        load_detection(tmp_path)
    put(tmp_path / "classes.txt", "dog\ncat\nant\n")
    assert load_detection(tmp_path).val.classes == ("dog", "cat", "ant")


def test_a_table_without_train_and_one_without_objects(tmp_path):
    pictures(tmp_path, range(10))
    write_table(tmp_path / "test_labels.csv", TRAIN)
    with pytest.raises(ScratchvitError, match=r"tables with boxes \(test_labels\.csv\), but none for train"):
        load_detection(tmp_path)
    put(tmp_path / "test_labels.csv", "a,b\n1,2\n")
    put(tmp_path / "train.csv", f"{HEADER}\n0.jpg,40,30,,,,,\n")
    with pytest.raises(ScratchvitError, match=r"train\.csv: has no object with a class"):
        load_detection(tmp_path)


def test_two_tables_of_the_same_pictures(tmp_path):
    pictures(tmp_path, range(10))
    write_table(tmp_path / "a.csv", TRAIN)
    write_table(tmp_path / "b.csv", VAL)
    splits = load_detection(tmp_path)
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 10
    write_table(tmp_path / "copy.csv", VAL)
    with pytest.raises(ScratchvitError, match=r"copy\.csv: line 2: 7\.jpg is also in .*b\.csv, so its objects"):
        load_detection(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_in_the_encodings_that_excel_writes(tmp_path, encoding):
    pictures(tmp_path, range(10))
    write_table(tmp_path / "a.csv", range(10))
    text = (tmp_path / "a.csv").read_text().replace("cat", "Käfer")
    (tmp_path / "a.csv").write_text(text, encoding=encoding)
    (tmp_path / "prices.csv").write_bytes("Käfer,Preis\n1,2\n".encode("cp1252"))       # another table is none of ours
    assert load_detection(tmp_path).train.classes == ("Käfer", "ant")
    (tmp_path / "a.csv").write_bytes(text.encode("cp1252"))
    with pytest.raises(ScratchvitError, match=r"a\.csv: this table is not in UTF-8 .*save it in UTF-8"):
        load_detection(tmp_path)
