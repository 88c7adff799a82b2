"""COCO's JSON: what is read, how ids are mapped there and back, and what is said of every bad entry."""

import json

import numpy as np
import pytest
from PIL import Image

from scratchvit.detection.data.coco import read_coco
from scratchvit.detection.data.files import DataFolder
from scratchvit.detection.data.transforms import View
from scratchvit.errors import ScratchvitError
from tests.support.detection_samples import coco, write_coco
from tests.support.margins import assert_close, ulps


def read(path, **options):
    root = path.parents[1]
    return read_coco(path, DataFolder(root), [path.parent, root / path.stem.removeprefix("instances_")], **options)


def read_with(tmp_path, *, skip_bad=False, annotations=(), images=(), **changes):
    """The sample with a first annotation and image changed by these keys, or lists appended to."""
    content = coco()
    content["annotations"][0] |= changes
    path = write_coco(tmp_path, content=content)
    content["annotations"] += annotations       # what is appended has no picture written for it
    content["images"] += images
    path.write_text(json.dumps(content))
    return read(path, skip_bad=skip_bad)


def test_boxes_labels_and_sizes(tmp_path):
    data = read(write_coco(tmp_path))
    assert (len(data), data.classes, data.category_ids) == (2, ("ant", "cat"), (3, 7))
    one = data.annotations(1)
    assert (one.image_id, one.file_name, one.size) == (11, "1.png", (30, 40))
    assert one.boxes.dtype == np.float64
    assert one.boxes.tolist() == [[4, 6, 14, 18], [20.5, 3, 40, 11]]
    assert one.labels.dtype == np.int64
    assert one.labels.tolist() == [1, 0]
    assert one.areas.tolist() == [5.5, 5.5]
    assert (data.picture(0).mode, data.picture(0).size) == ("RGB", (40, 30))


def test_a_target_is_what_the_model_is_to_find(tmp_path):
    target = read(write_coco(tmp_path)).target(0)
    assert target.keys() == {"labels", "boxes", "image_id", "orig_size", "size"}
    assert target["boxes"].dtype == np.float32
    pixels = target["boxes"] * np.float32([40, 30, 40, 30])
    assert_close(pixels, [[9, 12, 10, 12], [30.25, 7, 19.5, 8]], ulps(40, 1))
    assert (target["image_id"], target["orig_size"], target["size"]) == (10, (30, 40), (30, 40))


def test_what_a_view_does_not_show_is_not_in_its_target(tmp_path):
    one = read(write_coco(tmp_path)).annotations(0)
    target = one.target(View.whole(one.size).cropped(0, 15, 20, 25))        # cuts off the first box
    assert target["labels"].tolist() == [0]
    assert_close(target["boxes"], [[15.25 / 25, 7 / 20, 19.5 / 25, 8 / 20]], ulps(1, 1))
    assert (target["orig_size"], target["size"]) == ((30, 40), (20, 25))


def test_the_ground_truth_is_the_file_again(tmp_path):
    content = coco()
    content["annotations"][1]["iscrowd"] = 1
    content["images"].append({"id": 50, "file_name": "none.png", "width": 40, "height": 30})
    truth = read(write_coco(tmp_path, content=content)).ground_truth()
    assert truth["images"] == content["images"]
    assert truth["categories"] == sorted(content["categories"], key=lambda entry: entry["id"])
    assert [entry.pop("id") for entry in truth["annotations"]] == [1, 2, 3, 4]      # 0 would be no match to pycocotools
    assert truth["annotations"] == [{k: v for k, v in entry.items() if k != "id"} for entry in content["annotations"]]


def test_crowds_are_for_evaluation_only(tmp_path):
    data = read_with(tmp_path, iscrowd=1)
    assert data.annotations(0).crowd.tolist() == [True, False]
    assert data.target(0)["labels"].tolist() == [0]


def test_a_picture_without_boxes_is_kept(tmp_path):
    data = read(write_coco(tmp_path, content=coco(annotations=[])))
    assert len(data) == 2
    assert data.target(1)["boxes"].shape == (0, 4)
    assert data.target(1)["labels"].shape == (0,)
    assert data.ground_truth()["annotations"] == []


def test_the_size_comes_from_the_picture_where_the_file_has_none(tmp_path):
    content = coco()
    path = write_coco(tmp_path, content=content)
    exif = Image.Exif()
    exif[0x0112] = 6        # lying on its side
    Image.new("RGB", (40, 30)).save(tmp_path / "train" / "0.png", exif=exif)
    content["images"] = [{"id": 10, "file_name": "0.png"}]
    content["annotations"] = []
    path.write_text(json.dumps(content))
    data = read(path)
    assert data.size(0) == (40, 30)
    assert data.picture(0).size == (30, 40)


@pytest.mark.parametrize("area", [None, "large", float("nan"), 0, -3])
def test_an_area_that_is_none_is_the_box_s(tmp_path, area):
    assert read_with(tmp_path, area=area).annotations(0).areas.tolist() == [120, 5.5]


@pytest.mark.parametrize(
    ("bbox", "said"),
    [([4, 6, 0, 12], "no width or no height"), ([4, 6, 10, 0], "no width or no height"), (None, "has no box"),
     ([], "has no box")],
)
def test_boxes_of_no_size_are_reported_and_left_out(tmp_path, bbox, said):
    data = read_with(tmp_path, bbox=bbox)
    (note,) = data.notes
    assert "instances_train.json: annotations[0] (id 100), 0.png" in note
    assert said in note
    assert data.skipped == ()
    assert data.annotations(0).labels.tolist() == [0]


def test_a_pixel_outside_is_rounding(tmp_path):
    data = read_with(tmp_path, bbox=[-0.9, -1, 41.9, 31.9])
    assert data.skipped == data.notes == ()
    assert data.ground_truth()["annotations"][0]["bbox"] == [-0.9, -1, 41.9, 31.9]         # as it was
    assert data.target(0)["boxes"][0].tolist() == [0.5, 0.5, 1, 1]


BAD_ENTRIES = [
    ({"bbox": [4, 6, -10, 12]}, r"annotations\[0\] \(id 100\), 0.png: bbox \[.*\] has reversed sides"),
    ({"bbox": [4, 6, 10, -12]}, r"annotations\[0\] \(id 100\), 0.png: bbox \[.*\] has reversed sides"),
    ({"bbox": [41, 6, 10, 12]}, r"annotations\[0\] .* lies outside its picture of 40 × 30"),
    ({"bbox": [4, -20, 10, 12]}, r"annotations\[0\] .* lies outside its picture"),
    ({"bbox": [4, 6, 10]}, r"annotations\[0\] .*: bbox is \[4, 6, 10\], expected four numbers"),
    ({"bbox": ["4", 6, 10, 12]}, r"annotations\[0\] .*: bbox is \['4', 6, 10, 12\], expected four numbers"),
    ({"bbox": [10**400, 6, 10, 12]}, r"annotations\[0\] .*: bbox is .*, expected four numbers"),
    ({"bbox": [float("nan"), 6, 10, 12]}, r"annotations\[0\] .*: bbox .* not finite"),
    ({"bbox": [4, 6, float("inf"), 12]}, r"annotations\[0\] .*: bbox .* not finite"),
    ({"category_id": 4}, r"annotations\[0\] \(id 100\): there is no category with the id 4"),
    ({"category_id": "7"}, r"annotations\[0\] \(id 100\): there is no category with the id '7'"),
    ({"image_id": 12}, r"annotations\[0\] \(id 100\): there is no image with the id 12"),
    ({"image_id": [10]}, r"annotations\[0\] \(id 100\): there is no image with the id \[10\]"),
    ({"id": 101}, r"annotations\[1\] \(id 101\) has the same id as annotations\[0\]"),
    ({"annotations": [None]}, r"annotations\[4\] is None, expected an object"),
    ({"images": [{"id": 10, "file_name": "1.png"}]}, r"images\[2\] \(1.png\) has the same id, 10, as 0.png"),
    ({"images": [{"id": 12, "file_name": "gone.png"}]}, r"images\[2\]: there is no picture .*train[/\\]gone.png"),
    ({"images": [{"id": "12", "file_name": "1.png"}]}, r"images\[2\] is \{'id': '12', .*, expected an integer id"),
]


@pytest.mark.parametrize(("fault", "said"), BAD_ENTRIES)
def test_a_bad_entry_is_named_or_left_out_and_counted(tmp_path, fault, said):
    with pytest.raises(ScratchvitError, match=rf"instances_train.json: {said}.*--skip-bad"):
        read_with(tmp_path, **fault)
    data = read_with(tmp_path, skip_bad=True, **fault)
    assert len(data.skipped) == 1
    assert "instances_train.json: " in data.skipped[0]
    assert len(data) == 2
    assert len(data.ground_truth()["annotations"]) == 4 - (not {"annotations", "images"} & fault.keys())


def test_a_box_that_reaches_outside_is_clipped_when_bad_entries_are_passed_over(tmp_path):
    with pytest.raises(ScratchvitError, match=r"annotations\[0\] .* extends 1\.5 pixels beyond .* clip such boxes"):
        read_with(tmp_path, bbox=[-1.5, 6, 10, 12])
    data = read_with(tmp_path, bbox=[-1.5, 6, 10, 12], skip_bad=True)
    assert data.annotations(0).boxes[0].tolist() == [0, 6, 8.5, 18]
    assert len(data.skipped) == 1


def test_annotations_of_a_picture_left_out_go_with_it(tmp_path):
    content = coco()
    path = write_coco(tmp_path, content=content)
    (tmp_path / "train" / "1.png").unlink()
    data = read(path, skip_bad=True)
    assert [data.annotations(0).image_id, len(data), len(data.skipped)] == [10, 1, 1]
    assert {entry["image_id"] for entry in data.ground_truth()["annotations"]} == {10}


def test_pictures_that_do_not_decode_or_have_another_size(tmp_path):
    path = write_coco(tmp_path, content=coco(count=3))
    (tmp_path / "train" / "0.png").write_bytes(b"no picture")
    Image.new("RGB", (30, 40)).save(tmp_path / "train" / "2.png")
    data = read(path)       # nothing is decoded before it is asked for
    with pytest.raises(ScratchvitError, match=r"train[/\\]0\.png: this picture cannot be decoded"):
        data.picture(0)
    with pytest.raises(ScratchvitError, match=r"2\.png: this picture is 30 × 40 .*instances_train\.json says 40 × 30"):
        data.picture(2)
    good = read(path, skip_bad=True)
    assert [good.annotations(i).image_id for i in range(len(good))] == [11]
    assert len(good.skipped) == 2
    assert all("0.png" in said or "2.png" in said for said in good.skipped)
    assert not any("--skip-bad" in said for said in good.skipped)      # which was just done


def test_not_one_picture_left(tmp_path):
    path = write_coco(tmp_path)
    for i in range(2):
        (tmp_path / "train" / f"{i}.png").write_bytes(b"")
    with pytest.raises(ScratchvitError, match="no usable picture is left"):
        read(path, skip_bad=True)


WHOLE = json.dumps(coco())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (WHOLE[: len(WHOLE) // 2], "not valid JSON, maybe truncated"),
        (b"\xff\xfe\x00", "is not in UTF-16"),
        (b"\xe9", "is not in UTF-8"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "is a list, like a results file"),
        ("3", "has no list 'images'"),
        (json.dumps(coco(annotations=None)), "has no list 'annotations'"),
        (json.dumps(coco(categories=[])), "has no categories"),
        (json.dumps(coco(images=[])), "lists no pictures"),
        (json.dumps(coco(categories=[{"id": 1}])), r"categories\[0\] is \{'id': 1\}; expected"),
        (json.dumps(coco(categories=[{"id": 1, "name": name} for name in "ab"])), r"\(b\) has the same id, 1, as a"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_file_that_cannot_be_used_at_all(tmp_path, text, said, skip_bad):
    path = write_coco(tmp_path)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ScratchvitError, match=rf"instances_train\.json: .*{said}"):
        read(path, skip_bad=skip_bad)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ScratchvitError, match=r"gone\.json: .* cannot be read"):
        read_coco(tmp_path / "gone.json", DataFolder(tmp_path), [tmp_path])


def test_pictures_in_none_of_the_folders(tmp_path):
    path = write_coco(tmp_path)
    (tmp_path / "train").rename(tmp_path / "val")       # of another part
    with pytest.raises(ScratchvitError, match=r"the pictures that it lists \(0\.png, 1\.png.* are not in .*"):
        read_coco(path, DataFolder(tmp_path), [path.parent], "train")


def test_another_part_has_the_same_categories(tmp_path):
    path = write_coco(tmp_path)
    assert len(read(path, categories={3: "ant", 7: "cat"})) == 2
    with pytest.raises(ScratchvitError, match="only in one of them: 7 cat, 7 dog"):
        read(path, categories={3: "ant", 7: "dog"})


@pytest.mark.parametrize("crowd", ["1", 1, True, 1.0, " true "])
def test_a_crowd_however_it_is_written(tmp_path, crowd):
    assert read_with(tmp_path, iscrowd=crowd).annotations(0).crowd.tolist() == [True, False]


@pytest.mark.parametrize("crowd", ["0", 0, False, None, 0.0, "", "False"])
def test_no_crowd_however_it_is_written(tmp_path, crowd):
    assert read_with(tmp_path, iscrowd=crowd).annotations(0).crowd.tolist() == [False, False]


@pytest.mark.parametrize("crowd", ["yes", 2, [1], -1])
def test_what_may_be_a_crowd_is_named(tmp_path, crowd):
    with pytest.raises(ScratchvitError, match=r"annotations\[0\] .*: iscrowd is .*, expected 0 or 1.*--skip-bad"):
        read_with(tmp_path, iscrowd=crowd)
    assert len(read_with(tmp_path, iscrowd=crowd, skip_bad=True).skipped) == 1


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("largest", [1, 1.004])
def test_boxes_that_are_shares_of_the_picture_are_refused(tmp_path, skip_bad, largest):
    content = coco()
    for place, entry in enumerate(content["annotations"]):
        entry["bbox"] = [0.1 * place, 0.2, 0.25, 0.3]
    content["annotations"][-1]["bbox"] = [0, 0, largest, 0.5]
    with pytest.raises(ScratchvitError, match=r"instances_train\.json: all boxes are within 0 … 1, .*multiply them"):
        read(write_coco(tmp_path, content=content), skip_bad=skip_bad)
    content["annotations"][2]["bbox"] = [3, 4, 5, 6]        # a small box among boxes in pixels is one
    assert len(read(write_coco(tmp_path, content=content)).annotations(0).labels) == 2


def test_categories_of_the_same_name(tmp_path):
    content = coco()
    content["categories"].append({"id": 0, "name": "ant"})      # as Roboflow's supercategory
    data = read(write_coco(tmp_path, content=content))
    assert data.classes == ("ant", "ant", "cat")
    assert "the classes 0, 3 are all called ant; they stay separate classes" in data.notes[0]
    content["annotations"][0]["category_id"] = 0
    with pytest.raises(ScratchvitError, match="the classes 0, 3 are all called ant, so they could not be told"):
        read(write_coco(tmp_path, content=content), skip_bad=True)
