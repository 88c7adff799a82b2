"""What the page of a detector is told: the numbers of the library, for a scene that may be any JSON."""

import base64
import io
import json

import numpy as np
import pytest

pytest.importorskip("sklearn")      # whose digits the scenes are made of

from scratchvit.data import Normalize
from scratchvit.detection.data.batches import DetectionBatch
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.detection.detector import Detector, Sizes
from scratchvit.detection.postprocess import postprocess
from scratchvit.errors import ScratchvitError
from scratchvit.inspect.detection import as_seen, cross_attention, encoder_attention, matching
from scratchvit.nn import evaluating
from scratchvit.ops import record_attention
from scratchvit.play import detector as play
from scratchvit.play import scenes as play_scenes
from scratchvit.play.server import Question
from tests.support.small_detr import random_head, small

KINDS = {
    "softmax": ("detr_tiny", {}),
    "focal": ("detr_tiny", {"focal": True}),
    "last layer only": ("detr_tiny", {"aux_loss": False}),
    "no encoder": ("detr_tiny", {"enc_layers": 0}),
    "anchors": ("dab_detr_tiny", {}),
    "two stages": ("dab_detr_tiny", {"two_stage": True, "denoising": 2}),
}
NUMBERS = {"rtol": 0, "atol": 0.5001 * 10**-play.DIGITS}    # they are rounded
HALVES = {"rtol": 2**-10, "atol": 2**-24}                   # float16


def detector(kind="two stages", classes=tuple("0123456789"), **options):
    name, own = KINDS[kind]
    model = random_head(small(name, num_classes=len(classes), num_queries=8, **own, **options)).eval()
    normalize = Normalize((0.5,) * 3, (0.25,) * 3)
    return Detector(model, name, classes, tuple(range(len(classes))), "", normalize, Sizes(), "at their own size")


@pytest.fixture(scope="module")
def page():
    return play.DetectorPage.of(detector())


@pytest.fixture(scope="module")
def scenes():
    return load_scenes().test


def unpacked(packed):
    return np.frombuffer(base64.b64decode(packed["float16"]), "<f2").reshape(packed["shape"]).astype(np.float32)


def xyxy(boxes):
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_library(kind, scenes):
    opened = detector(kind)
    page = play.DetectorPage.of(opened)
    answer = page.of_scene(page.scene(2))
    json.dumps(answer, allow_nan=False)
    picture, annotations = scenes.example(2)
    _, image = as_seen(opened, picture)
    batch = DetectionBatch(image[None], np.zeros((1, 96, 96), bool), [scenes.target(2)])
    with evaluating(opened.model), record_attention():      # by the same, plain form of attention: the same bits
        outputs = opened.model(image[None])
        (matched,) = matching(opened.model, page.matcher, batch)
    layers = [*outputs["aux_outputs"], outputs]
    assert [layer["number"] for layer in answer["layers"]] == ([1, 2, 3] if len(layers) == 3 else [3])
    (pairs,) = page.matcher(outputs, batch.targets)
    found = answer["layers"][-1]["matching"]
    assert {(q, o) for o, q in enumerate(found["queries"])} == set(zip(*map(np.ndarray.tolist, pairs)))
    for name, costs in {"total": matched.costs, **matched.parts}.items():
        np.testing.assert_allclose(found["costs"][name], costs, **NUMBERS)
    np.testing.assert_allclose(sum(np.array(found["costs"][part]) for part in matched.parts), matched.costs, atol=2e-5)
    for layer, expected in zip(answer["layers"], layers, strict=True):
        boxes = expected["pred_boxes"].numpy()[0]
        np.testing.assert_allclose(layer["boxes"], xyxy(boxes), **NUMBERS)
        (best,) = postprocess(expected, [(1, 1)], opened.model.config.focal)
        detections = layer["detections"]
        np.testing.assert_allclose([each["score"] for each in detections], np.sort(best["scores"])[::-1], **NUMBERS)
        rows = set(zip(best["queries"].tolist(), best["labels"].tolist()))
        assert {(each["query"], each["label"]) for each in detections} == rows
        first = detections[0]
        assert layer["scores"][first["query"]] == first["score"] and layer["labels"][first["query"]] == first["label"]
        assert layer["boxes"][first["query"]] == first["box"]
        if opened.model.config.focal:
            assert layer["nothing"] is None
        else:
            logits = expected["pred_logits"].numpy()[0].astype(float)
            nothing = np.exp(logits[:, -1]) / np.exp(logits).sum(axis=1)
            np.testing.assert_allclose(layer["nothing"], nothing, rtol=0, atol=1e-5)
    cross = unpacked(answer["cross"])
    assert cross.shape == (3, 4, 8, 144) and answer["size"] == (12, 12)
    np.testing.assert_allclose(cross.sum(axis=-1), 1, rtol=2e-3)
    np.testing.assert_allclose(cross[1].reshape(4, 8, 12, 12), cross_attention(opened.model, image, layer=1), **HALVES)
    if kind == "no encoder":
        assert answer["encoder"] is None
    else:
        expected = encoder_attention(opened.model, image, (0.6, 0.3)).mean(axis=1)      # row 3, column 7
        np.testing.assert_allclose(unpacked(answer["encoder"])[:, 3 * 12 + 7].reshape(-1, 12, 12), expected, **HALVES)
    assert (answer["start"] is None) == (opened.name == "detr_tiny")
    corners = annotations.boxes / 96
    np.testing.assert_allclose([each["box"] for each in answer["objects"]], corners, **NUMBERS)
    assert [each["label"] for each in answer["objects"]] == annotations.labels.tolist()


def test_queries_start_from_anchors_or_from_the_best_proposals(scenes):
    learned, chosen = detector("anchors"), detector("two stages")
    start = play.DetectorPage.of(learned).of_scene({"ground": 1, "digits": [{"label": 3}]})["start"]
    anchors = 1 / (1 + np.exp(-learned.model.refpoint_embed.weight.numpy().astype(float)))
    np.testing.assert_allclose(start, xyxy(anchors), rtol=0, atol=1e-5)
    page = play.DetectorPage.of(chosen)
    start = page.of_scene(page.scene(2))["start"]
    with evaluating(chosen.model), record_attention():
        proposals = chosen.model(as_seen(chosen, scenes.picture(2))[1][None])["proposals"]
    order = np.argsort(-proposals["pred_logits"].numpy()[0].max(axis=1), kind="stable")[:8]
    np.testing.assert_allclose(start, xyxy(proposals["pred_boxes"].numpy()[0][order]), **NUMBERS)


@pytest.mark.parametrize("kind", ["softmax", "two stages"])
def test_every_device_answers(kind, device):
    page = play.DetectorPage.of(detector(kind))
    answer = page.of_scene(page.scene(2))
    json.dumps(answer, allow_nan=False)
    assert len(answer["layers"][-1]["matching"]["queries"]) == len(answer["objects"])


def test_a_generated_scene_is_that_of_the_test_split_and_stays_it(page, scenes):
    for number in (0, 7, 499):
        scene = json.loads(json.dumps(page.scene(number)))
        answer = page.of_scene(scene)
        assert answer["scene"] == scene
        shape, pixels = answer["picture"]["shape"], base64.b64decode(answer["picture"]["bytes"])
        pixels = np.frombuffer(pixels, np.uint8).reshape(shape)
        np.testing.assert_array_equal(pixels, np.asarray(scenes.picture(number)))


def test_a_digit_is_moved_resized_and_kept_inside(page):
    scene = page.scene(0)
    first = scene["digits"][0]
    before = page.of_scene(scene)["objects"][0]["box"]
    first.update(x=first["x"] - 10, y=first["y"] - 6)
    moved = page.of_scene(scene)["objects"][0]["box"]
    np.testing.assert_allclose(np.subtract(before, moved) * 96, [10, 6, 10, 6], atol=1e-2)
    first.update(x=0, y=96)
    answer = page.of_scene(scene)
    left, _, _, bottom = answer["objects"][0]["box"]
    assert (left, bottom) == (0, 1) and answer["scene"]["digits"][0]["x"] > 5
    first.update(x=48, y=48, side=first["side"] * 0.7)
    smaller = page.of_scene(scene)["objects"][0]["box"]
    assert 0.55 < (smaller[2] - smaller[0]) / (before[2] - before[0]) < 0.85


def test_a_digit_that_is_only_named_is_drawn_at_random_beside_the_others(page):
    scene = {"ground": 5, "digits": []}
    for label in (7, 7, 0):
        scene["digits"].append({"label": label})
        answer = page.of_scene(scene)
        assert answer["scene"] == page.of_scene(scene)["scene"]     # random, but the same again
        scene = answer["scene"]
    assert [each["name"] for each in answer["objects"]] == ["7", "7", "0"]
    assert scene["digits"][0] != scene["digits"][1]
    assert page.of_scene(scene)["objects"] == answer["objects"]
    with pytest.raises(ScratchvitError, match="there is no room for a 7"):
        while len(scene["digits"]) < play_scenes.MOST:
            for digit in scene["digits"]:
                digit.update(side=57.0)
            scene["digits"].append({"label": 7})
            scene = page.of_scene(scene)["scene"]


def changed(**changes):
    return lambda digit: {key: value for key, value in {**digit, **changes}.items() if value is not None}


@pytest.mark.parametrize("make, message", [
    (lambda digit: [], "the scene is an object"),
    (lambda digit: {"ground": 1}, "the scene lacks digits"),
    (lambda digit: {"ground": -1, "digits": []}, "the ground of the scene is a whole number from 0"),
    (lambda digit: {"ground": 1.5, "digits": []}, "the ground of the scene is a whole number"),
    (lambda digit: {"ground": True, "digits": []}, "the ground of the scene is a whole number"),
    (lambda digit: {"ground": 1, "digits": {}}, "the digits of the scene are a list"),
    (lambda digit: {"ground": 1, "digits": [digit] * 13}, "at most 12 digits, this one has 13"),
    (lambda digit: {"ground": 1, "digits": [digit, 7]}, "digit 2 of 2 is an object"),
    (changed(label=10), "digit 1 of 1: its label is a whole number from 0 to 9"),
    (changed(x=97), "digit 1 of 1: its x is a number from 0 to 96, not 97"),
    (changed(y=-0.5), "its y is a number from 0 to 96"),
    (changed(x=float("nan")), "its x is a number"),
    (changed(side=80), "its side is a number from 11.52 to 57.6"),
    (changed(tilt=181), "its tilt is a number from -180 to 180"),
    (changed(stretch=2), "its stretch is a number from 0.9 to 1.1"),
    (changed(x="1"), "its x is a number"),
    (changed(which=360), "which is a whole number from 0 to 359"),
    (changed(x=None), "digit 1 of 1 lacks x"),
    (changed(size=3), "digit 1 of 1 has an unknown size"),
    (changed(colour=[1, 2]), "its colour is three numbers"),
    (changed(colour=[1, 2, 256]), "its colour is a number from 0 to 255, not 256"),
])
def test_a_scene_that_is_none_is_refused_in_a_sentence(make, message, page):
    (digit,) = page.scene(3)["digits"]
    given = make(digit)
    scene = {"ground": 3, "digits": [given]} if isinstance(given, dict) and "label" in given else given
    with pytest.raises(ScratchvitError, match=message):
        page.of_scene(scene)


def test_which_digit_is_drawn_must_be_what_it_is_called(page):
    scene = page.scene(3)
    scene["digits"][0]["label"] = (scene["digits"][0]["label"] + 1) % 10
    with pytest.raises(ScratchvitError, match=r"handwritten digit \d+ is a"):
        page.of_scene(scene)
    with pytest.raises(ScratchvitError, match="there is no scene 500: choose one of 0 … 499"):
        page.scene(500)


def test_nothing_is_matched_without_objects_or_classes(page):
    answer = page.of_scene({"ground": 1, "digits": []})
    assert answer["objects"] == [] and answer["layers"][-1]["matching"] is None
    assert answer["note"] == "The scene has no digits, so nothing is matched."
    some = play.DetectorPage.of(detector(classes=("cat", "7", "2")))
    answer = some.of_scene({"ground": 1, "digits": [{"label": label} for label in (7, 5, 2)]})
    assert [each["label"] for each in answer["objects"]] == [1, None, 2] and answer["matchable"] == [0, 2]
    assert np.shape(answer["layers"][-1]["matching"]["costs"]["total"]) == (2, 8)
    assert answer["note"] == "The model has no class 5, so these digits are not matched."
    none = play.DetectorPage.of(detector(classes=("cat",)))
    assert none.of_scene({"ground": 1, "digits": [{"label": 7}]})["layers"][-1]["matching"] is None


def test_a_picture_of_ones_own_has_no_matching_and_is_not_too_large(page, scenes):
    answer = page.of_picture(scenes.picture(4))
    assert answer["objects"] is answer["scene"] is answer["matchable"] is None
    assert all(layer["matching"] is None for layer in answer["layers"])
    assert answer["note"] == "The true boxes of this picture are not known, so nothing is matched."
    assert answer["layers"] == [
        {**layer, "matching": None} for layer in page.of_scene(page.scene(4))["layers"]     # the same otherwise
    ]
    large = scenes.picture(4).resize((1600, 900))
    height, width, _ = page.of_picture(large)["picture"]["shape"]
    assert -(-height // 8) * -(-width // 8) <= play.MOST_TOKENS and abs(width / height - 16 / 9) < 0.05
    assert page.of_picture(large, 96)["picture"]["shape"][:2] == (90, 160)      # longer side at most 5/3 of the shorter
    assert page.of_picture(scenes.picture(4).resize((3, 1)))["cross"]["shape"] == (3, 4, 1, 1)
    with pytest.raises(ScratchvitError, match="sides of a picture"):
        page.of_picture(large, -1)


def test_maps_that_are_too_large_are_averaged_or_left_out(page, monkeypatch):
    whole = unpacked(page.of_scene(page.scene(1))["cross"])
    monkeypatch.setattr(play, "MOST_NUMBERS", whole.size - 1)
    answer = page.of_scene(page.scene(1))
    np.testing.assert_allclose(unpacked(answer["cross"]), whole.mean(axis=1, keepdims=True), rtol=2e-3, atol=1e-6)
    monkeypatch.setattr(play, "MOST_NUMBERS", 144 * 144 - 1)
    assert page.of_scene(page.scene(1))["encoder"] is None


def test_a_model_that_has_diverged_says_so():
    opened = detector()
    opened.model.class_embed.weight.assign(np.nan)
    page = play.DetectorPage.of(opened)
    with pytest.raises(ScratchvitError, match="are not finite because training has diverged"):
        page.of_scene(page.scene(0))


def test_the_costs_are_those_of_the_run():
    """Third-party weights have no settings: those of the paper, with the class term of focal loss."""
    of_focal, of_softmax = (play.DetectorPage.of(detector(kind)).matcher for kind in ("focal", "softmax"))
    assert (of_focal.cost_class, of_focal.cost_bbox, of_focal.cost_giou, of_focal.focal) == (2, 5, 2, True)
    assert (of_softmax.cost_class, of_softmax.focal) == (1, False)


def test_what_the_page_asks(scenes):
    routes = play.detector_routes(detector())
    about = routes["GET model"](Question())
    assert about["kind"] == "detector" and about["classes"] == tuple("0123456789")
    assert about["about"].startswith("dab_detr_tiny with 8 queries, 1 encoder layer, 3 decoder layers")
    assert about["weights"] == {"class": 2, "bbox": 5, "giou": 2} and about["scenes"]["side"] == 96
    scene = routes["GET scene"](Question(parameters={"number": "7"}))
    answer = routes["POST scene"](Question(json.dumps(scene).encode()))
    file = io.BytesIO()
    scenes.picture(7).save(file, "PNG")
    again = routes["POST picture"](Question(file.getvalue()))
    assert again["layers"][-1]["detections"] == answer["layers"][-1]["detections"]
    for body in (b"", b"{", b"\xff", b"[1"):
        with pytest.raises(ScratchvitError, match="the scene is not JSON"):
            routes["POST scene"](Question(body))
    with pytest.raises(ScratchvitError, match="no picture of a known format"):
        routes["POST picture"](Question(b"<svg/>"))


def test_without_scikit_learn_there_are_pictures_but_no_scenes(monkeypatch, scenes):
    def absent():
        raise ScratchvitError("the digits come with scikit-learn: pip install scikit-learn")

    monkeypatch.setattr(play, "load_scenes", absent)
    routes = play.detector_routes(detector())
    about = routes["GET model"](Question())
    assert about["scenes"] is None and "pip install scikit-learn" in about["no_scenes"]
    with pytest.raises(ScratchvitError, match="pip install scikit-learn"):
        routes["GET scene"](Question())
    with pytest.raises(ScratchvitError, match="pip install scikit-learn"):
        routes["POST scene"](Question(b"{}"))
    assert play.DetectorPage.of(detector()).of_picture(scenes.picture(0))["scene"] is None
