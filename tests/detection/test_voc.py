"""Pascal VOC's XML: what is read, that no XML can do harm, and what is said of every bad entry."""

import pytest
from PIL import Image

from scratchvit.detection.data.files import DataFolder
from scratchvit.detection.data.voc import parse_xml
from scratchvit.detection.data.voc_files import voc_by_lists
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import write_picture
from tests.support.detection_samples import voc_object, voc_xml, write_voc

GOOD = voc_xml(voc_object())


def read(root, part="train", classes=None, skip_bad=False):
    if classes:
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return voc_by_lists(DataFolder(root), skip_bad)[part]


def test_boxes_are_pixels_counted_from_one(tmp_path):
    two = voc_xml(voc_object("dog", (1, 1, 40, 30)), voc_object("cat", (5, 7, 5.5, 18)))
    root = write_voc(tmp_path, a=two, b=voc_xml())
    data = read(root)
    assert (len(data), data.classes, data.category_ids) == (2, ("cat", "dog"), (1, 2))
    one = data.annotations(0)
    assert (one.image_id, one.file_name, one.size) == (1, "a.jpg", (30, 40))
    assert one.boxes.tolist() == [[0, 0, 40, 30], [4, 6, 5.5, 18]]
    assert one.labels.tolist() == [1, 0]
    assert data.annotations(1).boxes.shape == (0, 4)
    assert data.ground_truth()["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 0,
    }


def test_difficult_objects_are_not_trained_on(tmp_path):
    root = write_voc(tmp_path, a=voc_xml(voc_object(difficult=1), voc_object("dog")))
    data = read(root)
    assert data.target(0)["labels"].tolist() == [1]
    assert [entry["iscrowd"] for entry in data.ground_truth()["annotations"]] == [1, 0]


def test_classes_are_those_given_or_those_of_the_part(tmp_path):
    root = write_voc(tmp_path, a=voc_xml(voc_object("dog")))
    assert read(root).classes == ("dog",)
    assert read(root, classes=["eel", "dog"]).annotations(0).labels.tolist() == [1]
    (root / "classes.txt").unlink()
    write_voc(root, b=voc_xml())
    with pytest.raises(ScratchvitError, match=r"train\.txt: none of its pictures has a named object"):
        read(root)


def test_only_the_object_s_own_box_counts(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    xml = voc_xml(voc_object().replace("<bndbox>", f"{part}<bndbox>"))
    data = read(write_voc(tmp_path, a=xml))
    assert data.classes == ("cat",)
    assert data.annotations(0).boxes.tolist() == [[4, 6, 14, 18]]


@pytest.mark.parametrize("xml", [voc_xml(voc_object(), size=(0, 0)), f"<annotation>{voc_object()}</annotation>"])
def test_a_size_that_is_not_given_is_the_picture_s(tmp_path, xml):
    assert read(write_voc(tmp_path, a=xml)).size(0) == (30, 40)


def test_a_picture_with_another_suffix(tmp_path):
    root = write_voc(tmp_path, a=GOOD)
    (root / "JPEGImages" / "a.jpg").unlink()
    write_picture(root / "JPEGImages" / "a.PNG", (40, 30))
    assert read(root).picture(0).size == (40, 30)


@pytest.mark.parametrize("box", [(5, 7, 5, 7), (5, 7, 5, 18), (5, 7, 14, 7)])
def test_boxes_of_no_size_are_reported_and_left_out(tmp_path, box):
    data = read(write_voc(tmp_path, a=voc_xml(voc_object(), voc_object("cat", box))))
    (note,) = data.notes
    assert "a.xml: object 2 (cat): bndbox 5, 7" in note
    assert "no width or no height" in note
    assert len(data.annotations(0).labels) == 1
    assert data.skipped == ()


def test_an_object_without_a_box_is_reported(tmp_path):
    xml = voc_xml(voc_object(), "<object><name>cat</name></object>")
    assert "object 2 (cat) has no box" in read(write_voc(tmp_path, a=xml)).notes[0]


BAD_OBJECTS = [
    (voc_object(box=(14, 7, 5, 18)), r"object 2 \(cat\): bndbox 14, 7, 5, 18 has reversed sides"),
    (voc_object(box=(5, 18, 14, 7)), r"object 2 \(cat\): bndbox .* has reversed sides"),
    (voc_object(box=(45, 7, 54, 18)), r"object 2 \(cat\): bndbox .* lies outside its picture of 40 × 30"),
    (voc_object(box=(5, 7, "fourteen", 18)), r"object 2 \(cat\): bndbox 5, 7, fourteen, 18 is not the four numbers"),
    (voc_object(box=(5, "", 14, 18)), r"object 2 \(cat\): bndbox 5, , 14, 18 is not the four numbers"),
    (voc_object(box=(5, 7, "nan", 18)), r"object 2 \(cat\): bndbox .* not finite"),
    (voc_object("cow"), r"object 2: unknown class 'cow'; known are cat"),
    (voc_object(""), r"object 2: unknown class ''; known are cat"),
]


@pytest.mark.parametrize(("bad", "said"), BAD_OBJECTS)
def test_a_bad_object_is_named_or_left_out_and_counted(tmp_path, bad, said):
    root = write_voc(tmp_path, a=voc_xml(voc_object(), bad))
    with pytest.raises(ScratchvitError, match=rf"Annotations[/\\]a\.xml: {said}.*--skip-bad"):
        read(root, classes=["cat"])
    data = read(root, classes=["cat"], skip_bad=True)
    assert len(data.skipped) == 1
    assert "a.xml: object 2" in data.skipped[0]
    assert data.annotations(0).boxes.tolist() == [[4, 6, 14, 18]]


def test_a_box_that_reaches_outside_is_clipped_when_bad_entries_are_passed_over(tmp_path):
    root = write_voc(tmp_path, a=voc_xml(voc_object(box=(5, 7, 60, 18))))
    with pytest.raises(ScratchvitError, match=r"a\.xml: object 1 \(cat\): .* extends 20 pixels beyond .* clip such"):
        read(root)
    assert read(root, skip_bad=True).annotations(0).boxes.tolist() == [[4, 6, 40, 18]]


LAUGHS = '<!DOCTYPE a [<!ENTITY l "lol"><!ENTITY m "&l;&l;&l;&l;">]><annotation>&m;</annotation>'
STEALS = '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]><annotation>&f;</annotation>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        (GOOD[: len(GOOD) // 2], "cannot be used: .*column"),
        ("{}", "cannot be used"),
        (LAUGHS, "it has a DTD"),
        (STEALS, "it has a DTD"),
        ("<annotation>&undeclared;</annotation>", "undefined entity"),
    ],
)
def test_an_xml_file_that_cannot_be_used(tmp_path, text, said):
    root = write_voc(tmp_path, a=text, b=GOOD)
    with pytest.raises(ScratchvitError, match=rf"Annotations[/\\]a\.xml: .*{said}.*--skip-bad"):
        read(root)
    data = read(root, skip_bad=True)
    assert [data.annotations(0).file_name, len(data), len(data.skipped)] == ["b.jpg", 1, 1]


def test_a_dtd_is_refused_in_any_encoding():
    with pytest.raises(ValueError, match="DTD"):
        parse_xml(LAUGHS.encode("utf-16"))
    assert parse_xml(GOOD.encode("utf-16")).findtext("object/name") == "cat"


def test_files_that_are_missing_or_listed_twice(tmp_path):
    root = write_voc(tmp_path, a=GOOD, b=GOOD, c=GOOD)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n\nb\na\nc\n")
    with pytest.raises(ScratchvitError, match=r"train\.txt: entry 3 \(a\) is a duplicate"):
        read(root)
    (root / "JPEGImages" / "b.jpg").unlink()
    (root / "Annotations" / "c.xml").unlink()
    data = read(root, skip_bad=True)
    assert [len(data), len(data.skipped)] == [1, 3]
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\n")
    with pytest.raises(ScratchvitError, match=r"b\.xml: there is no picture .*JPEGImages[/\\]b\.jpg"):
        read(root)
    (root / "ImageSets" / "Main" / "train.txt").write_text("c\n")
    with pytest.raises(ScratchvitError, match=r"entry 1: .*c\.xml cannot be read"):
        read(root)


@pytest.mark.parametrize(("content", "said"), [(b"\n", "is empty"), (b"\xff\xfe\x00", "not in UTF-16")])
def test_a_list_that_cannot_be_used(tmp_path, content, said):
    root = write_voc(tmp_path, a=GOOD)
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    with pytest.raises(ScratchvitError, match=rf"Main[/\\]train\.txt: this list .*{said}"):
        read(root, skip_bad=True)


def test_pictures_that_do_not_decode(tmp_path):
    root = write_voc(tmp_path, a=GOOD, b=f"<annotation>{voc_object()}</annotation>", c=GOOD, d=GOOD)
    for name in "ab":       # the size of b is asked of the picture
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"no picture")
    Image.new("RGB", (30, 40)).save(root / "JPEGImages" / "c.jpg")
    with pytest.raises(ScratchvitError, match=r"b\.jpg: this picture cannot be decoded"):
        read(root)
    data = read(root, skip_bad=True)
    assert [data.annotations(0).file_name, len(data), len(data.skipped)] == ["d.jpg", 1, 3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_with_a_byte_order_mark(tmp_path, encoding):
    root = write_voc(tmp_path, a=GOOD, b=voc_xml(voc_object("äh")))
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n", encoding=encoding)
    (root / "classes.txt").write_text("cat\näh\n", encoding=encoding)
    (root / "Annotations" / "b.xml").write_text(voc_xml(voc_object("äh")), encoding=encoding)
    data = read(root)
    assert data.classes == ("cat", "äh")
    assert [data.annotations(i).labels.tolist() for i in range(2)] == [[0], [1]]


def test_a_box_of_no_size_alone_does_not_mean_shares(tmp_path):
    data = read(write_voc(tmp_path, a=voc_xml(voc_object(box=(1, 1, 1, 1))), b=voc_xml()))
    assert "no width or no height" in data.notes[0]


def test_boxes_that_are_shares_of_the_picture_are_refused(tmp_path):
    boxes = (0.1, 0.2, 0.5, 0.9), (0, 0, 1, 0.5)
    root = write_voc(tmp_path, **{name: voc_xml(voc_object(box=box)) for name, box in zip("ab", boxes)})
    with pytest.raises(ScratchvitError, match=r"train\.txt: all boxes are within 0 … 1"):
        read(root, skip_bad=True)
