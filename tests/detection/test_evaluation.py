"""COCO's figures: pycocotools' own on files that scratchvit did not write, cases counted by hand, and bad results."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from scratchvit.detection.data.coco import read_coco
from scratchvit.detection.data.files import DataFolder
from scratchvit.detection.evaluation import STATS, evaluate_boxes, results_of, write_results
from scratchvit.errors import ScratchvitError
from tests.support.coco_figures import by_pycocotools, random_files, result
from tests.support.detection_samples import coco, write_coco

ONE = pytest.approx(1, abs=1e-12)       # pycocotools divides by the number of detections and the least float beside 1

# --- files in COCO's own form ---------------------------------------------------------------------------------------


def truth_of(*annotations, images=(10, 20, 30), categories=None):
    """Annotations of (image, category, [x, y, width, height]) and what else they are to have."""
    categories = categories or {3: "ant", 7: "cat", 90: "owl"}
    return {
        "info": {"description": "by hand"},
        "images": [{"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480} for i in images],
        "annotations": [
            {"id": 5 * i + 1, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3],
             "iscrowd": 0} | dict(*more)
            for i, (image, category, box, *more) in enumerate(annotations)
        ],
        "categories": [{"id": number, "name": name, "supercategory": "animal"} for number, name in categories.items()],
    }


def numbers_of(figures):
    return [getattr(figures, name) for name in STATS]


# --- against pycocotools --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_pycocotools(tmp_path, seed):
    truth, results = random_files(tmp_path, seed)
    expected, precision = by_pycocotools(truth, results)
    assert all(0 < number < 1 for number in expected)       # a case that tells right from wrong
    ours = evaluate_boxes(truth, results)
    assert numbers_of(ours) == expected                     # bit for bit
    assert evaluate_boxes(str(truth), json.loads(results.read_text())) == ours
    assert evaluate_boxes(json.loads(truth.read_text()), str(results)) == ours

    assert [(one.category_id, one.name) for one in ours.classes] == [(i, f"class {i}") for i in (1, 2, 44, 90)]
    annotations = json.loads(truth.read_text())["annotations"]
    for k, one in enumerate(ours.classes[:-1]):
        assert_allclose(one.AP, precision[:, :, k].mean(), rtol=1e-14)
        assert_allclose(one.AP50, precision[0, :, k].mean(), rtol=1e-14)
        assert one.objects == sum(x["category_id"] == one.category_id and not x["iscrowd"] for x in annotations)
    assert (ours.classes[-1].objects, ours.classes[-1].AP, ours.classes[-1].AP50) == (0, None, None)
    assert_allclose(np.mean([one.AP for one in ours.classes[:-1]]), ours.AP, rtol=1e-14)


def test_what_pycocotools_prints_and_writes_into_its_input_stays_inside(tmp_path, capsys):
    truth, results = (json.loads(path.read_text()) for path in random_files(tmp_path, 0))
    before = json.dumps([truth, results])
    evaluate_boxes(truth, results)
    assert json.dumps([truth, results]) == before
    assert capsys.readouterr() == ("", "")


def test_annotations_of_other_tools(tmp_path):
    """Without area and iscrowd, which pycocotools needs, and numbered from 0, which it takes for no match."""
    boxes = [[10, 10, 20, 20], [100, 10, 50, 50]]
    full = truth_of(*((10, 3, box) for box in boxes))
    bare = json.loads(json.dumps(full))
    for number, entry in enumerate(bare["annotations"]):
        del entry["area"], entry["iscrowd"]
        entry["id"] = number
    results = [result(10, 3, box, 0.9) for box in boxes]
    assert evaluate_boxes(bare, results) == evaluate_boxes(full, results)
    assert evaluate_boxes(bare, results).AP == ONE


# --- counted by hand ------------------------------------------------------------------------------------------------


def test_precision_over_recall_by_hand():
    """Four objects; found, wrong, found, none: precision 1 up to recall 1/4, then 2/3 up to 2/4, then 0.

    Of the recalls 0, 0.01, … 1, 26 are at most 1/4, and 25 more at most 2/4. One found box has IoU 0.8, so that it
    counts at the thresholds up to 0.80, 7 of 10, and the other IoU 1.
    """
    truth = truth_of(*((10, 3, [100 * i, 0, 40, 40]) for i in range(4)), (20, 7, [0, 0, 200, 200]))
    results = [
        result(10, 3, [0, 0, 40, 40], 0.9),
        result(10, 3, [50, 200, 40, 40], 0.8),
        result(10, 3, [100, 0, 40, 32.01], 0.7),
    ]
    figures = evaluate_boxes(truth, results)
    ant, cat, owl = figures.classes
    both, one = (26 + 25 * 2 / 3) / 101, 26 / 101
    assert_allclose(ant.AP50, both, rtol=1e-12)
    assert_allclose(ant.AP, (7 * both + 3 * one) / 10, rtol=1e-12)
    assert (ant.objects, cat.objects, owl.objects) == (4, 1, 0)
    assert (cat.AP, owl.AP) == (0, None)                    # never found; never there
    assert_allclose(figures.AP, ant.AP / 2, rtol=1e-12)     # so over two classes, not three
    assert (figures.APs, figures.APl) == (None, 0)          # 40² is of medium size, 200² is large
    assert_allclose(figures.AR1, 1 / 4 / 2, rtol=1e-12)
    assert_allclose(figures.AR10, (7 * 2 / 4 + 3 * 1 / 4) / 10 / 2, rtol=1e-12)


def test_a_second_detection_of_an_object_is_wrong():
    truth = truth_of((10, 3, [0, 0, 40, 40]), (20, 3, [0, 0, 40, 40]))
    twice = [result(10, 3, [0, 0, 40, 40], 0.9), result(10, 3, [0, 0, 40, 40], 0.8), result(20, 3, [0, 0, 40, 40], 0.7)]
    assert_allclose(evaluate_boxes(truth, twice).AP, (51 + 50 * 2 / 3) / 101, rtol=1e-12)
    assert evaluate_boxes(truth, twice[::2]).AP == ONE


def test_in_a_crowd_nothing_is_wrong():
    single, crowd = (10, 3, [0, 0, 40, 40]), (10, 3, [200, 0, 200, 200], {"iscrowd": 1})
    in_crowd = [result(10, 3, [200 + 20 * i, 10, 30, 30], 0.9) for i in range(5)]
    results = [*in_crowd, result(10, 3, [0, 0, 40, 40], 0.5)]
    figures = evaluate_boxes(truth_of(single, crowd), results)
    assert (figures.AP, figures.AR100, figures.classes[0].objects) == (ONE, 1, 1)
    no_crowd = evaluate_boxes(truth_of(single, (10, 3, [200, 0, 200, 200])), results)
    assert_allclose(no_crowd.AP, 51 / 101 / 6, rtol=1e-12)      # one of two objects, at precision 1/6
    only_crowd = evaluate_boxes(truth_of(crowd), results)
    assert set(numbers_of(only_crowd)) == {None}


def test_without_results_all_is_zero():
    truth = truth_of((10, 3, [0, 0, 40, 40]), (20, 7, [0, 0, 200, 200]))
    figures = evaluate_boxes(truth, [])
    assert numbers_of(figures) == [0, 0, 0, None, 0, 0, 0, 0, 0, None, 0, 0]
    assert [one.AP for one in figures.classes] == [0, 0, None]


def test_without_objects_there_is_nothing_to_tell():
    for results in ([], [result(10, 3, [0, 0, 40, 40], 0.9)]):
        figures = evaluate_boxes(truth_of(), results)
        assert set(numbers_of(figures)) == {None}
        assert {one.AP for one in figures.classes} == {None}


# --- results_of -----------------------------------------------------------------------------------------------------


def perfect(data):
    """What a detector gives that finds every object of a data set, as `postprocess` gives it."""
    every = map(data.annotations, range(len(data)))
    return [
        {"scores": np.full(len(one.labels), 0.75), "labels": one.labels, "boxes": one.boxes.astype(np.float32)}
        for one in every
    ]


def test_results_of_is_cocos_form(tmp_path):
    found = {"scores": np.float32([0.5, 0.25]), "labels": np.array([1, 0]),
             "boxes": np.float32([[1, 2, 4, 8], [0.5, 0, 2, 2]])}
    nothing = {key: array[:0] for key, array in found.items()}
    results = results_of([found, nothing], np.array([10, 20]), (3, 7))
    assert results == [result(10, 7, [1, 2, 3, 6], 0.5), result(10, 3, [0.5, 0, 1.5, 2], 0.25)]
    write_results(tmp_path / "r.json", results)
    assert json.loads((tmp_path / "r.json").read_text()) == results
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_perfect_detections_have_ap_1_through_the_whole_chain(tmp_path):
    """Read COCO's file, detect, write COCO's results, let pycocotools read and evaluate them by itself."""
    content = coco(count=4)
    content["annotations"][0] |= {"iscrowd": 1}
    path = write_coco(tmp_path, content=content)
    data = read_coco(path, DataFolder(tmp_path), [tmp_path / "train"])
    ids = [data.annotations(i).image_id for i in range(len(data))]
    write_results(tmp_path / "results.json", results_of(perfect(data), ids, data.category_ids))
    figures = evaluate_boxes(data.ground_truth(), tmp_path / "results.json")
    assert (figures.AP, figures.APs, figures.AR100, figures.APm) == (ONE, ONE, 1, None)
    assert [(one.name, one.objects, one.AP) for one in figures.classes] == [("ant", 4, ONE), ("cat", 3, ONE)]
    stats, _ = by_pycocotools(path, tmp_path / "results.json")
    assert stats == [-1 if number is None else number for number in numbers_of(figures)]


def test_an_empty_list_of_results_can_be_written_and_read(tmp_path):
    write_results(tmp_path / "r.json", [])
    assert evaluate_boxes(truth_of((10, 3, [0, 0, 40, 40])), tmp_path / "r.json").AP == 0


def test_what_is_no_json_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(tmp_path / "r.json", [result(10, 3, [0, 0, 40, 40], float("nan"))])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("key", "place"), [("scores", 1), ("boxes", (0, 2))])
def test_a_diverged_model_is_told(key, place):
    found = {"scores": np.ones(2, np.float32), "labels": np.zeros(2, np.int64), "boxes": np.ones((2, 4), np.float32)}
    found[key][place] = np.nan
    with pytest.raises(ScratchvitError, match="image 12: the scores or boxes are not finite"):
        results_of([found], [12], [1])


# --- tables ---------------------------------------------------------------------------------------------------------


def test_tables():
    truth = truth_of((10, 3, [0, 0, 40, 40]), (20, 7, [0, 0, 200, 200]))
    figures = evaluate_boxes(truth, [result(10, 3, [0, 0, 40, 40], 0.5)])
    assert figures.rows() == [
        ["", "all", "small", "medium", "large"],
        ["AP", "0.500", "–", "1.000", "0.000"],
        ["AP50", "0.500", "", "", ""],
        ["AP75", "0.500", "", "", ""],
        ["AR1", "0.500", "", "", ""],
        ["AR10", "0.500", "", "", ""],
        ["AR100", "0.500", "–", "1.000", "0.000"],
    ]
    assert figures.class_rows() == [
        ["class", "objects", "AP", "AP50"],
        ["ant", "1", "1.000", "1.000"],
        ["cat", "1", "0.000", "0.000"],
        ["owl", "0", "–", "–"],
    ]
    json.dumps(dataclasses.asdict(figures), allow_nan=False)


# --- bad files ------------------------------------------------------------------------------------------------------

GOOD = result(10, 3, [0, 0, 40, 40], 0.5)
BAD_RESULTS = {
    r"results\[1\]: the ground truth has no image with the id 11": {"image_id": 11},
    r"results\[1\]: .* no category with the id 0, only \[3, 7, 90\].* not labels from 0": {"category_id": 0},
    r"results\[1\]: image_id is '10', expected an integer": {"image_id": "10"},
    r"results\[1\]: category_id is True, expected an integer": {"category_id": True},
    r"results\[1\]: score is nan, expected a finite number": {"score": float("nan")},
    r"results\[1\]: score is inf": {"score": float("inf")},
    r"results\[1\]: score is '0\.5'": {"score": "0.5"},
    r"results\[1\]: score is None": {"score": None},
    r"results\[1\]: bbox is \[0, 0, 40\], expected four finite numbers": {"bbox": [0, 0, 40]},
    r"results\[1\]: bbox is \[0, 0, inf, 40\]": {"bbox": [0, 0, float("inf"), 40]},
    r"results\[1\]: bbox is None": {"bbox": None},
    r"results\[1\]: bbox is 'four'": {"bbox": "four"},
    r"results\[1\]: bbox \[90, 90, -40, 40\] has a negative size": {"bbox": [90, 90, -40, 40]},
    r"results\[1\]: bbox \[90, 90, 40, -1\] has a negative size": {"bbox": [90, 90, 40, -1]},
    r"results\[1\]: bbox is \[1000.*, expected four finite numbers": {"bbox": [10**400, 0, 1, 1]},
}


@pytest.mark.parametrize("said", BAD_RESULTS)
def test_a_bad_entry_is_named_with_its_file(tmp_path, said):
    results = [GOOD, GOOD | BAD_RESULTS[said]]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(results))
    truth = truth_of((10, 3, [0, 0, 40, 40]))
    with pytest.raises(ScratchvitError, match=rf"r\.json: {said}") as raised:
        evaluate_boxes(truth, path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value).removeprefix(str(path))) < 240
    with pytest.raises(ScratchvitError, match=rf"^the results: {said}"):
        evaluate_boxes(truth, results)


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_key(key):
    entry = {name: GOOD[name] for name in GOOD if name != key}
    with pytest.raises(ScratchvitError, match=r"results\[0\] is \{.*\}, expected an object with image_id, category_id"):
        evaluate_boxes(truth_of((10, 3, [0, 0, 40, 40])), [entry])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (json.dumps([GOOD, GOOD])[:-20], "is not valid JSON, maybe truncated"),
        (b"\xff\xfe\x00", "is not in UTF-16"),
        ("[" * 100_000, "is not valid JSON"),
        (json.dumps(truth_of()), "expected COCO results, a list of"),
        ("3", "expected COCO results"),
        ("[3]", r"results\[0\] is 3, expected an object"),
    ],
)
def test_a_results_file_that_cannot_be_used(tmp_path, text, said):
    path = tmp_path / "r.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ScratchvitError, match=rf"r\.json: .*{said}"):
        evaluate_boxes(truth_of((10, 3, [0, 0, 40, 40])), path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([GOOD], "expected COCO annotations"),
        (truth_of() | {"images": None}, "expected COCO annotations"),
        (truth_of() | {"images": [{"file_name": "a"}]}, r"images\[0\] is \{'file_name': 'a'\}, expected"),
        (truth_of() | {"categories": [{"id": 3}]}, r"categories\[0\] is \{'id': 3\}, expected an object with id, name"),
        (truth_of() | {"images": [{"id": "10"}]}, r"images\[0\]: id is '10', expected an integer"),
        (truth_of() | {"annotations": [{"image_id": 10}]}, r"annotations\[0\] is \{'image_id': 10\}, expected"),
        (truth_of((10, 3, [0, 0, 40, 40]), (10, 3, [9, 9, -4, 4])), r"annotations\[1\]: bbox .* has a negative size"),
        (truth_of((10, 3, [0, 0, 1, 1], {"bbox": []})), r"annotations\[0\]: bbox is \[\], expected four"),
    ],
)
def test_a_ground_truth_that_cannot_be_used(tmp_path, content, said):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ScratchvitError, match=rf"truth\.json: {said}"):
        evaluate_boxes(path, [])


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ScratchvitError, match=r"gone\.json: this ground truth file cannot be read"):
        evaluate_boxes(tmp_path / "gone.json", [])
    with pytest.raises(ScratchvitError, match=r"gone\.json: this results file cannot be read"):
        evaluate_boxes(truth_of(), tmp_path / "gone.json")


def test_without_pycocotools_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ScratchvitError, match="pip install pycocotools"):
        evaluate_boxes(truth_of(), [])
