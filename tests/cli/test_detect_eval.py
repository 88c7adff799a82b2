"""`scratchvit detect-eval`, called in this process: its figures are those of pycocotools, bad files are named."""

import json
import re

import numpy as np
import pytest

from scratchvit.cli import main
from scratchvit.detection.data.source import load_detection
from tests.support.coco_figures import by_pycocotools, random_files
from tests.support.data_samples import write_picture
from tests.support.detection_samples import SIZE, coco, write_coco, write_voc
from tests.support.detection_samples import voc_object as an_object
from tests.support.detection_samples import voc_xml as xml
from tests.support.detector_samples import (
    BAD,
    BOX,
    detector,
    refused,
    write_checkpoint,
    written,
)
from tests.support.margins import assert_close, ulps


def test_detect_eval_tells_what_pycocotools_says_of_its_results(animals, trained, capsys):
    path, box = trained, BOX
    truth = animals / "annotations" / "instances_test.json"
    assert main(["detect-eval", "--checkpoint", str(path), "--results", "found.json"]) == 0
    out = capsys.readouterr().out
    results = written("found.json")
    assert len(results) == 4 * 3 and {entry["category_id"] for entry in results} == {7}
    assert {entry["image_id"] for entry in results} == {10, 11, 12, 13}
    assert_close([entry["bbox"] for entry in results], [box] * 12, ulps(40, 4))

    figures, precision = by_pycocotools(truth, "found.json")
    assert 0 < figures[0] < figures[1] < 1          # some are near enough for 0.5, fewer for 0.75
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["AP"] == [f"{figures[0]:.3f}"] + ["–" if f < 0 else f"{f:.3f}" for f in figures[3:6]]
    assert rows["AP50"] == [f"{figures[1]:.3f}"] and rows["AP75"] == [f"{figures[2]:.3f}"]
    assert rows["AR1"] == [f"{figures[6]:.3f}"] and rows["AR100"][0] == f"{figures[8]:.3f}"
    assert rows["ant"] == ["4", f"{precision[:, :, 0].mean():.3f}", f"{precision[0, :, 0].mean():.3f}"]
    assert rows["cat"] == ["4", f"{precision[:, :, 1].mean():.3f}", f"{precision[0, :, 1].mean():.3f}"]
    assert "test pictures of" in out and "wrote found.json: 12 boxes" in out

    assert main(["detect-eval", "--results-of", "found.json", "--annotations", str(truth)]) == 0
    again = capsys.readouterr().out
    assert again.split("\n\n", 1)[1].split("wrote")[0].strip() in out


@pytest.mark.parametrize("seed", range(2))
def test_files_that_it_did_not_write_are_evaluated_as_by_pycocotools(tmp_path, capsys, seed):
    truth, results = random_files(tmp_path, seed)
    figures, _ = by_pycocotools(truth, results)
    assert main(["detect-eval", "--results-of", str(results), "--annotations", str(truth)]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    ap, ap50, ap75, aps, apm, apl, ar1, ar10, ar100, ars, arm, arl = (f"{figure:.3f}" for figure in figures)
    assert rows["AP"] == [ap, aps, apm, apl] and rows["AR100"] == [ar100, ars, arm, arl]
    assert [rows[name] for name in ("AP50", "AP75", "AR1", "AR10")] == [[ap50], [ap75], [ar1], [ar10]]


def test_classes_are_matched_by_name(animals, trained, tmp_path, capsys):
    """Data with the same classes under other ids, in another order, and a class more on either side."""
    content = coco(2, categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "ant"}, {"id": 5, "name": "owl"}])
    for entry in content["annotations"]:
        entry |= {"category_id": 1, "bbox": [4, 6, 10, 12]}
    other = tmp_path / "other"
    for part in ("train", "val", "test"):
        write_coco(other, part, content)
    relative = np.array([9, 12, 10, 12]) / (40, 30, 40, 30)
    path = write_checkpoint(
        tmp_path / "three.safetensors", animals, detector(relative, 2, classes=3), ("bee", "ant", "cat"), (1, 2, 9)
    )
    assert main(["detect-eval", "--checkpoint", str(path), "--data", str(other), "--results", "found.json"]) == 0
    out = capsys.readouterr().out
    assert {entry["category_id"] for entry in written("found.json")} == {1}
    assert "the detector does not know owl" in out and "1 of its 3 classes are not in the data" in out
    (cat,) = (line.split() for line in out.splitlines() if line.startswith("cat"))
    assert cat == ["cat", "4", "0.901", "0.901"]    # per picture right, right, wrong: (51 + 50 · 0.8) / 101

    for part in ("train", "val", "test"):
        write_coco(tmp_path / "birds", part, coco(1, categories=[{"id": 3, "name": "owl"}, {"id": 7, "name": "tit"}]))
    error, code = refused(capsys, "detect-eval", "--checkpoint", path, "--data", tmp_path / "birds")
    assert "has none of the classes of detr_tiny: it has owl, tit, the model bee, ant, cat" in error and code == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_is_that_of_the_training(tmp_path, trained, capsys, split):
    """What was drawn from train with the run's seed is drawn again."""
    write_coco(tmp_path / "drawn", "train", coco(10))
    path = write_checkpoint(tmp_path / "drawn.safetensors", tmp_path / "drawn", detector([0.5] * 4, 0))
    words = ["--checkpoint", str(path), "--split", split, "--results", "found.json", "--batch-size", "3"]
    assert main(["detect-eval", *words]) == 0
    expected = getattr(load_detection(tmp_path / "drawn"), split).ground_truth()["images"]
    assert {entry["image_id"] for entry in written("found.json")} == {one["id"] for one in expected}


def test_scenes_are_there_without_a_download(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scratchvit.detection.data.scenes.Scenes.__len__", lambda self: 3)
    path = write_checkpoint(
        tmp_path / "scenes.safetensors", "scenes", detector([0.5] * 4, 0, classes=10), [*"0123456789"], range(1, 11)
    )
    assert main(["detect-eval", "--checkpoint", str(path)]) == 0
    assert "test pictures of" in (out := capsys.readouterr().out) and "\n9 " in out


# --- bad annotations ---


@pytest.mark.parametrize(("spoil", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_annotations_are_named_and_can_be_left_out(animals, trained, capsys, spoil, sentence):
    path = animals / "annotations" / "instances_test.json"
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    words = ["detect-eval", "--checkpoint", str(trained)]
    error, code = refused(capsys, *words)
    assert str(path) in error and sentence in error and "--skip-bad" in error and code == 1
    assert main([*words, "--skip-bad"]) == 0
    out = " ".join(capsys.readouterr().out.split())         # not as it is wrapped
    assert re.search("bad entr(y|ies) left out or clipped", out) and sentence in out and "AP50" in out


@pytest.mark.parametrize(("text", "sentence"), [
    ("", "this annotation file is empty"),
    ('{"images": [{"id": 1, "file', "is not valid JSON, maybe truncated"),
    ("[]", "is a list, like a results file"),
])
def test_files_that_are_no_annotations_are_named_even_with_skip_bad(animals, trained, capsys, text, sentence):
    path = animals / "annotations" / "instances_test.json"
    path.write_text(text)
    for more in ([], ["--skip-bad"]):
        error, code = refused(capsys, "detect-eval", "--checkpoint", trained, *more)
        assert str(path) in error and sentence in error and code == 1
    write_picture(animals / "a.png", SIZE)
    error, code = refused(capsys, "detect", animals / "a.png", "--checkpoint", trained, "--annotations", path)
    assert str(path) in error and code == 1


def test_degenerate_boxes_are_told_not_fatal(tmp_path, capsys):
    """As in BCCD: a box without a width is left out, and evaluation goes on."""
    for part in ("train", "val", "test"):
        write_voc(tmp_path / "cells", part, **{f"{part}1": xml(an_object("cat"), an_object("ant", (5, 7, 5, 18)))})
    path = write_checkpoint(tmp_path / "cells.safetensors", tmp_path / "cells", detector([0.5] * 4, 0))
    assert main(["detect-eval", "--checkpoint", str(path)]) == 0
    assert "has no width or no height; left out" in " ".join(capsys.readouterr().out.split())
