"""Objects that have an outline and no box: pycocotools' boxes of masks, and what cannot be used."""

import numpy as np
import pytest

from scratchvit.detection.data.outlines import of_segmentation
from scratchvit.detection.data.source import load_detection
from scratchvit.errors import ScratchvitError
from tests.support.detection_samples import coco, voc_object, voc_xml, write_coco, write_voc
from tests.support.seeds import seeded

mask_tools = pytest.importorskip("pycocotools.mask")


def coco_with(root, skip_bad=False, **changes):
    """The sample with a first annotation changed by these keys."""
    content = coco()
    content["annotations"][0] |= changes
    for part in ("train", "val"):
        write_coco(root, part, coco() if part == "val" else content)
    return load_detection(root, skip_bad=skip_bad).train


def voc_with(root, *objects, skip_bad=False):
    for part in ("train", "val"):
        write_voc(root, part, **{part: voc_xml(*objects) if part == "train" else voc_xml()})
    return load_detection(root, skip_bad=skip_bad).train


def masks():
    rng = seeded(0)
    for _ in range(60):
        height, width = rng.integers(1, 40, 2)
        mask = np.zeros((height, width), np.uint8)
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(height), rng.integers(width)
            mask[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = 1
        yield mask
    yield rng.integers(0, 2, (1000, 900)).astype(np.uint8)     # long runs of counts
    large = np.zeros((3000, 3000), np.uint8)                    # counts of more than one character
    large[100:2900, 5] = large[3, 2990] = 1
    yield large
    yield np.ones((7, 5), np.uint8)


def test_boxes_of_masks_are_those_of_pycocotools():
    for mask in masks():
        packed = mask_tools.encode(np.asfortranarray(mask))
        x, y, width, height = mask_tools.toBbox(packed).tolist()
        expected = (x, y, x + width, y + height)
        assert of_segmentation({"size": [*mask.shape], "counts": packed["counts"].decode()}) == expected
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [0]])))
        runs = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
        assert of_segmentation({"size": [*mask.shape], "counts": runs}) == expected


def test_the_box_of_polygons_is_around_all_of_them():
    assert of_segmentation([[1, 2, 3, 2, 2, 5.5], [0.5, 4, 9, 4, 9, 5]]) == (0.5, 2, 9, 5.5)
    assert of_segmentation([1, 2, 3, 2, 2, 5.5]) == (1, 2, 3, 5.5)


EMPTY_MASKS = [{"size": [2, 3], "counts": [6]}, {"size": [2, 3], "counts": "6"}]


@pytest.mark.parametrize("nothing", [None, [], {}, [[]], *EMPTY_MASKS])
def test_no_outline(nothing):
    assert of_segmentation(nothing) is None


BAD_OUTLINES = [
    ("polygon", "neither polygons nor run lengths"), (7, "neither polygons"), ([[1, 2, 3]], "not lists of x, y"),
    ([[1, 2, 3, "4", 5, 6]], "not lists of x, y"), ([[1, 2, 3, 4, 5, 6], 7], "not lists of x, y"),
    ([[1, 2, 3, 4, 5, 10**400]], "not lists of x, y"), ([[1, 2, 3, 4, 5, float("nan")]], "not lists|not finite"),
    ([[1, 2, 3, 4]], "three points"), ({"counts": [6]}, "no size"), ({"size": [2, 3]}, "not counts"),
    ({"size": [2, 3], "counts": [5]}, "add up to 5 pixels, not to 2 × 3"),
    ({"size": [2, 3], "counts": [7, -1]}, "not counts"), ({"size": [2, 3], "counts": [True, 5]}, "not counts"),
    ({"size": [10**9, 10**9], "counts": [1, 1]}, "add up"), ({"size": [2, 3], "counts": "é"}, "not packed"),
    ({"size": [2, 3], "counts": "ooooooooooooooooo"}, "not packed"), ({"size": [2, 3], "counts": "o"}, "cut off"),
]


@pytest.mark.parametrize(("outline", "said"), BAD_OUTLINES)
def test_an_outline_that_cannot_be_used(tmp_path, outline, said):
    with pytest.raises(ValueError, match=said):
        of_segmentation(outline)
    with pytest.raises(ScratchvitError, match=rf"annotations\[0\] \(id 100\), 0.png has no box, and .*({said})"):
        coco_with(tmp_path, bbox=None, segmentation=outline)
    assert len(coco_with(tmp_path, bbox=None, segmentation=outline, skip_bad=True).skipped) == 1


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], [4, 6, 0, 12]])
@pytest.mark.parametrize(
    "outline", [[[4, 6, 14, 6, 9, 18]], {"size": [30, 40], "counts": [4 * 30 + 6, 12, *[18, 12] * 9, 30 * 26 + 12]}]
)
def test_coco_s_objects_with_an_outline_and_no_box(tmp_path, bbox, outline):
    data = coco_with(tmp_path, bbox=bbox, segmentation=outline, area=60)
    assert data.annotations(0).boxes[0].tolist() == [4, 6, 14, 18]
    assert data.annotations(0).areas[0] == 60
    (note,) = data.notes
    assert note.endswith("instances_train.json: objects with only an outline, whose box is computed from it: 1")


def test_a_box_comes_before_an_outline(tmp_path):
    data = coco_with(tmp_path, segmentation=[[0, 0, 40, 0, 40, 30]])
    assert data.annotations(0).boxes[0].tolist() == [4, 6, 14, 18]
    assert data.notes == ()


POINTS = "<x1>4</x1><y1>6</y1><x2>14</x2><y2>6</y2><x3>9</x3><y3>18</y3>"
PT = "<pt><x>4</x><y>6</y></pt><pt><x>14</x><y>6</y></pt><pt><x>9</x><y>18</y></pt>"


@pytest.mark.parametrize("points", [POINTS, PT])
@pytest.mark.parametrize("box", ["", "<bndbox><xmin>0</xmin><ymin>0</ymin><xmax>0</xmax><ymax>0</ymax></bndbox>"])
def test_voc_s_objects_with_a_polygon_and_no_box(tmp_path, points, box):
    data = voc_with(tmp_path, f"<object><name>cat</name>{box}<polygon>{points}</polygon></object>", voc_object())
    assert data.annotations(0).boxes.tolist() == [[4, 6, 14, 18]] * 2
    assert data.notes[0].endswith("train.txt: objects with only an outline, whose box is computed from it: 1")


@pytest.mark.parametrize("points", [POINTS.replace("18", "low"), PT.replace("9", "nan"), "<x1>4</x1><y1>6</y1>"])
def test_a_polygon_that_cannot_be_used(tmp_path, points):
    objects = f"<object><name>cat</name><polygon>{points}</polygon></object>", voc_object()
    with pytest.raises(ScratchvitError, match=r"object 1 \(cat\) has no box, and its polygon cannot be used"):
        voc_with(tmp_path, *objects)
    assert len(voc_with(tmp_path, *objects, skip_bad=True).skipped) == 1


def test_a_file_of_outlines_alone(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "ant"}],
    }
    write_coco(tmp_path, "val", content)
    write_coco(tmp_path, "train", content)
    data = load_detection(tmp_path).train
    assert (data.annotations(0).boxes.tolist(), data.annotations(0).areas.tolist()) == ([[1, 1, 9, 9]], [64])
