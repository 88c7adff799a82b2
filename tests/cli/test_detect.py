"""`scratchvit detect`, called in this process: what it finds, draws and writes, and what it refuses."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.data.images import open_image
from scratchvit.detection.detector import open_detector
from scratchvit.detection.draw_boxes import COLOURS
from scratchvit.training.checkpoint import Checkpoint, save_checkpoint
from tests.support.coco_figures import by_pycocotools
from tests.support.data_samples import write_picture
from tests.support.detection_samples import SIZE
from tests.support.detector_samples import (
    BOX,
    detector,
    refused,
    write_checkpoint,
    write_weights,
    written,
)
from tests.support.margins import assert_close, rounding, ulps
from tests.support.peers import import_timm, randomise
from tests.support.seeds import moved, seeded


def photos(folder):
    """Pictures of every kind: JPEG that lies on its side, grey, with alpha, a palette, 16 bits."""
    folder.mkdir()
    rng = seeded(0)
    pixels = rng.integers(0, 256, (30, 40, 4), np.uint8)
    upright = Image.Exif()
    upright[0x0112] = 6                                 # to be turned by 90°
    Image.fromarray(pixels[..., :3]).save(folder / "side.jpg", exif=upright)
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels).save(folder / "alpha.png")
    Image.fromarray(pixels[..., :3]).quantize(16).save(folder / "palette.gif")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(pixels[..., :3]).save(folder / "plain.webp")
    return folder


@pytest.mark.parametrize("batch", [1, 4])
def test_pictures_of_all_kinds_are_drawn_and_listed(trained, tmp_path, capsys, batch):
    path = trained
    folder = photos(tmp_path / "photos")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    words = [str(folder), "--checkpoint", str(path), "--out", str(folder), "--json", "found.json"]
    assert main(["detect", *words, "--batch-size", str(batch)]) == 0
    out = capsys.readouterr().out
    assert "18 objects in 6 pictures" in out and f"{folder / 'side.jpg'} (30×40)" in out
    assert {file.name: file.read_bytes() for file in folder.iterdir() if "-boxes" not in file.name} == before
    drawn = {file.name.split("-")[0]: open_image(file) for file in folder.glob("*-boxes.png")}
    assert {*drawn} == {"side", "grey", "alpha", "palette", "deep", "plain"}
    assert drawn["side"].size == (360, 480) and drawn["grey"].size == (480, 360)        # 12 times as large, to be read
    for corner in ((48, 215), (167, 215), (167, 100)):                                  # of the box, in the 12-fold
        assert "#{:02x}{:02x}{:02x}".format(*drawn["grey"].getpixel(corner)) == COLOURS[1]

    results = written("found.json")
    order = sorted(before)
    assert [entry["image_id"] for entry in results] == [number for number in range(1, 7) for _ in range(3)]
    for entry in results:
        assert entry["file_name"] == str(folder / order[entry["image_id"] - 1]) and entry["category_id"] == 7
        assert_close(entry["score"], 0.9, ulps(1, 4))
        width, height = (30, 40) if entry["file_name"].endswith("side.jpg") else (40, 30)
        expected = np.array([4 / 40, 6 / 30, 10 / 40, 12 / 30]) * (width, height, width, height)
        assert_close(entry["bbox"], expected, ulps(40, 4))      # pixels of the picture as it is seen


def test_coco_takes_its_json(animals, trained, capsys):
    """By the ids of an annotation file, by pycocotools itself; and evaluated, it is what detect-eval says."""
    path = trained
    truth = animals / "annotations" / "instances_test.json"
    words = [str(animals / "test"), "--checkpoint", str(path), "--annotations", str(truth), "--threshold", "0"]
    assert main(["detect", *words, "--json", "found.json"]) == 0
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(str(truth)).loadRes("found.json")
    assert sorted(found.imgs) == [10, 11, 12, 13] and len(found.anns) == 12 and {*found.catToImgs} == {7}
    assert main(["detect-eval", "--checkpoint", str(path), "--results", "evaluated.json"]) == 0
    assert by_pycocotools(truth, "found.json")[0] == by_pycocotools(truth, "evaluated.json")[0]
    capsys.readouterr()
    write_picture(animals / "test" / "more.png", SIZE)
    error, code = refused(capsys, "detect", *words)
    assert f"does not list the picture {animals / 'test' / 'more.png'}" in error and code == 1


def test_image_ids_come_from_a_list_of_images_too(trained, tmp_path):
    """A file without annotations, as COCO's of its test pictures, with folders in its names."""
    path = trained
    for part in ("a", "b"):
        write_picture(tmp_path / part / "1.png", SIZE)
    listing = {"images": [{"id": 5, "file_name": "b/1.png"}, {"id": 4, "file_name": "a/1.png"}],
               "categories": [{"id": 12, "name": "cat"}]}
    (tmp_path / "info.json").write_text(json.dumps(listing))
    words = ["a/1.png", "b/1.png", "--checkpoint", str(path), "--annotations", "info.json", "--json", "found.json"]
    assert main(["detect", *words]) == 0
    found = [(entry["image_id"], entry["category_id"]) for entry in written("found.json")]
    assert found == [(4, 12)] * 3 + [(5, 12)] * 3
    assert sorted(file.name for file in (tmp_path / "detected").iterdir()) == ["1-boxes-2.png", "1-boxes.png"]


def test_a_drawn_picture_is_never_one_that_was_named(trained, tmp_path):
    path = trained
    for name in ("a.png", "a.jpg", "a-boxes.png"):
        write_picture(tmp_path / name, SIZE)
    before = (tmp_path / "a-boxes.png").read_bytes()
    assert main(["detect", "a.png", "a.jpg", "a-boxes.png", "--checkpoint", str(path), "--out", "."]) == 0
    assert (tmp_path / "a-boxes.png").read_bytes() == before
    assert {file.name for file in tmp_path.glob("a*.png")} == {
        "a.png", "a-boxes.png", "a-boxes-2.png", "a-boxes-3.png", "a-boxes-boxes.png"
    }


def test_a_picture_that_will_take_long_is_told_and_can_be_made_smaller(trained, tmp_path, capsys):
    """The run shows pictures as they are; a sliver stays small too."""
    write_picture(tmp_path / "a.png", (720, 720))
    write_picture(tmp_path / "sliver.png", (1, 20_000))
    assert main(["detect", "a.png", "--checkpoint", str(trained)]) == 0
    assert capsys.readouterr().err == "8,100 tokens will take long: a smaller --short-side makes fewer\n"
    assert main(["detect", "a.png", "sliver.png", "--checkpoint", str(trained), "--short-side", "64"]) == 0
    told = capsys.readouterr()
    assert "shorter side to 64, longer to at most 107" in told.out and not told.err
    asked = open_detector(trained)
    assert asked.view((720, 720)).size == (720, 720) and asked.at(64).view((20_000, 1)).size == (107, 1)


def test_boxes_are_the_same_on_every_device_and_with_padding(trained, device):
    path, box = trained, BOX
    asked = open_detector(path)
    pictures = [Image.new("RGB", size) for size in ((40, 30), (80, 60), (20, 30))]
    for picture, found in zip(pictures, asked.in_pictures(pictures)):       # padded to 60 × 80
        assert all(type(values) is np.ndarray for values in found.values())
        left, top, width, height = box * np.tile(np.divide(picture.size, (40, 30)), 2)
        assert_close(found["boxes"], [[left, top, left + width, top + height]] * 3, ulps(max(picture.size), 4))


def test_nothing_found_is_told_with_the_best(trained, tmp_path, capsys):
    path = trained
    write_picture(tmp_path / "a.png", SIZE)
    assert main(["detect", "a.png", "--checkpoint", str(path), "--threshold", "0.95", "--json", "found.json"]) == 0
    assert "nothing above the threshold; the best is cat with 0.90" in capsys.readouterr().out
    assert written("found.json") == []


def test_a_bad_picture_is_named_and_can_be_left_out(trained, tmp_path, capsys):
    path = trained
    write_picture(tmp_path / "a.png", SIZE)
    (tmp_path / "bad.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    words = ["bad.png", "absent.png", "a.png", "--checkpoint", str(path)]
    error, code = refused(capsys, "detect", *words)
    assert "bad.png: this picture cannot be decoded" in error and code == 1
    error, code = refused(capsys, "detect", "a.png", *words, "--json", "before.json")
    assert "before.json has the detections in the 1 picture before it" in error and code == 1
    assert {entry["image_id"] for entry in written("before.json")} == {1}
    assert main(["detect", *words, "--skip-bad", "--json", "found.json"]) == 0
    told = capsys.readouterr()
    assert "2 of 3 pictures left out" in told.out and "absent.png: no such picture" in told.err
    assert "--skip-bad" not in told.err     # which was just done
    assert {entry["image_id"] for entry in written("found.json")} == {3}
    assert main(["detect", *words[:2], "--checkpoint", str(path), "--skip-bad"]) == 1
    assert "none of the pictures can be decoded" in capsys.readouterr().err


# --- detectors from elsewhere ---


@pytest.mark.parametrize(("content", "shown", "sides", "mean", "std"), [
    (None, "shorter side to 128, longer to at most 213 (the convention for DETR)", (128, 171), 0.485, 0.229),
    ({"size": 60, "max_size": 70, "feature_extractor_type": "DetrFeatureExtractor", "image_mean": [0.5] * 3,
      "image_std": [0.5] * 3}, "shorter side to 60, longer to at most 70", (52, 70), 0.5, 0.5),
    ({"size": {"shortest_edge": 60, "longest_edge": 1333}, "image_processor_type": "DetrImageProcessor"},
     "shorter side to 60, longer to at most 1333", (60, 80), 0.485, 0.229),
    ({"size": {"height": 32, "width": 64}, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3,
      "image_std": [1.0] * 3}, "squashed to 32×64", (32, 64), 0.5, 0.5),
    ({"do_resize": False, "do_normalize": False}, "at their own size", (30, 40), 0.0, 1.0),
], ids=str)
def test_pictures_are_prepared_as_the_file_beside_weights_says(tmp_path, content, shown, sides, mean, std):
    asked = open_detector(write_weights(tmp_path / "detr", content))
    assert shown in asked.prepares
    seen, forward = [], asked.model.forward
    asked.model.forward = lambda images, mask: seen.append((images, mask)) or forward(images, mask)
    asked.in_pictures([Image.new("RGB", (40, 30), (255, 255, 255))])
    ((images, mask),) = seen
    assert images.shape == (1, 3, *sides) and mask is None      # nothing is padded
    expected = np.full_like(images[:, 0], (1 - mean) / std)
    assert_close(images[:, 0], expected, ulps(expected, 4), "white")        # 255 times a scale, less a shift


@pytest.mark.parametrize(("content", "sentence"), [
    ({"size": {"max_height": 3, "max_width": 4}}, "a size with max_height, max_width is not supported"),
    ({"size": -1}, "the sides of a picture must be integers from 1"),
    ({"size": {"height": 1e9, "width": 3}}, "the sides of a picture must be integers"),
    ({"resample": 3}, "its resample is 3"),
    ({"image_std": [0, 1, 1]}, "every std must be > 0"),
    ({"image_mean": "grey"}, "cannot be used"),
], ids=str)
def test_preprocessing_that_makes_no_sense_is_refused_with_its_file(tmp_path, capsys, content, sentence):
    weights = write_weights(tmp_path / "detr", content)
    write_picture(tmp_path / "a.png", SIZE)
    error, code = refused(capsys, "detect", "a.png", "--checkpoint", weights)
    assert sentence in error and "preprocessor_config.json" in error and code == 1


def test_weights_without_a_run_have_labels_as_ids_and_names_from_their_config(animals, tmp_path, capsys):
    weights = write_weights(tmp_path / "detr", label_names=["cat", "ant"])
    write_picture(tmp_path / "a.png", SIZE)
    assert main(["detect", "a.png", "--checkpoint", str(weights), "--short-side", "30", "--json", "found.json"]) == 0
    out = capsys.readouterr().out
    assert "shorter side to 30" in out and "cat     0.90    10    8     30      22" in out
    assert {entry["category_id"] for entry in written("found.json")} == {0}
    error, code = refused(capsys, "detect-eval", "--checkpoint", weights)
    assert "name data with --data" in error and code == 1
    words = ["detect-eval", "--checkpoint", str(weights), "--data", str(animals), "--results", "found.json"]
    assert main(words) == 0
    assert {entry["category_id"] for entry in written("found.json")} == {7}
    (tmp_path / "names.txt").write_text("ant\ncat\n")
    assert main([*words, "--labels", "names.txt"]) == 0
    assert {entry["category_id"] for entry in written("found.json")} == {3}


@pytest.mark.slow
@pytest.mark.parity
def test_a_folder_of_hugging_face_finds_what_transformers_finds(tmp_path):
    """Their model, their preprocessing, their post-processing, on a picture that is not square."""
    torch = pytest.importorskip("torch")
    import_timm()       # before transformers: see there
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(moved(0))
    backbone = transformers.ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, use_pretrained_backbone=False, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        num_queries=5, num_labels=3, id2label={0: "N/A", 1: "ant", 2: "cat"}, label2id={"ant": 1, "cat": 2},
    )
    theirs = randomise(transformers.DetrForObjectDetection(config), seed=0).eval()
    size = {"shortest_edge": 96, "longest_edge": 128}
    processor = transformers.DetrImageProcessorPil(size=size)
    theirs.save_pretrained(tmp_path / "detr")
    processor.save_pretrained(tmp_path / "detr")
    write_picture(tmp_path / "a.png", (90, 60))
    with torch.no_grad():
        given = processor(Image.open(tmp_path / "a.png"), return_tensors="pt")
        outputs = theirs(**given)
    (expected,) = processor.post_process_object_detection(outputs, threshold=0, target_sizes=[(60, 90)])

    words = ["a.png", "--checkpoint", str(tmp_path / "detr"), "--threshold", "0", "--json", "found.json"]
    assert main(["detect", *words]) == 0
    found = written("found.json")
    assert [entry["category_id"] for entry in found] == expected["labels"].tolist()
    ours = open_detector(tmp_path / "detr")

    def scores_and_boxes():
        (found,) = ours.in_pictures([open_image(tmp_path / "a.png")])
        return {"scores": found["scores"], "boxes": found["boxes"]}

    bounds = rounding(scores_and_boxes)
    assert_close([entry["score"] for entry in found], expected["scores"], bounds["scores"], "scores")
    left, top, right, bottom = expected["boxes"].numpy().T
    sides = np.stack([left, top, right - left, bottom - top], 1)
    assert_close([entry["bbox"] for entry in found], sides, 2 * bounds["boxes"], "boxes")       # differences of two


# --- what is refused ---


@pytest.fixture
def classifier(tmp_path):
    model = sv.create_model("resnet18", layers=(1, 1, 1, 1), num_classes=2, img_size=32)
    about = {"name": "x", "classes": ["a", "b"], "image_shape": [32, 32, 3], "mean": [0.5] * 3, "std": [0.5] * 3}
    args = {"layers": [1, 1, 1, 1], "num_classes": 2, "img_size": 32}
    save_checkpoint(tmp_path / "resnet.safetensors", Checkpoint({}, "resnet18", args, about, {}, model.state_dict()))
    return tmp_path / "resnet.safetensors"


def test_a_classifier_is_no_detector_and_the_other_way_round(classifier, trained, tmp_path, capsys):
    write_picture(tmp_path / "a.png", SIZE)
    for words in (["detect", "a.png"], ["detect-eval"]):
        error, code = refused(capsys, *words, "--checkpoint", classifier)
        assert "resnet18 is not a detector" in error and "`scratchvit predict`" in error and code == 1
    for words in (["predict", "a.png", "--checkpoint"], ["eval", "--checkpoint"], ["probe"], ["complete"],
                  ["export", "--out", "x"]):
        error, code = refused(capsys, *words, trained)
        assert "detr_tiny" in error and code == 1
        assert words == ["complete"] or "`scratchvit detect-eval` and `scratchvit detect`" in error


def test_a_checkpoint_that_lacks_what_a_detector_needs_is_refused(trained, tmp_path, capsys, animals):
    write_picture(tmp_path / "a.png", SIZE)
    model = detector([0.5] * 4, 0)
    for about, sentence in (
        ({"mean": None}, "does not say what it was trained on"),
        ({"category_ids": [1]}, "2 classes, 2 names and 1 ids"),
        ({"short_side": -3}, "the sides of a picture must be integers"),
    ):
        path = write_checkpoint(tmp_path / "odd.safetensors", animals, model, **about)
        error, code = refused(capsys, "detect", "a.png", "--checkpoint", path)
        assert sentence in error and code == 1
    state = model.state_dict()
    state["bbox_embed.layers.2.bias"][:] = np.nan
    model.load_state_dict(state)
    path = write_checkpoint(tmp_path / "nan.safetensors", animals, model)
    for words in (["detect", "a.png"], ["detect-eval"]):
        error, code = refused(capsys, *words, "--checkpoint", path)
        assert "not finite" in error and code == 1


@pytest.mark.parametrize(("words", "sentence"), [
    ("detect --checkpoint x", "name a run and pictures: scratchvit detect x a.jpg"),
    ("detect", "name a run and pictures: scratchvit detect RUN a.jpg"),
    ("detect a.png", "a.png is a picture, and the run comes first: scratchvit detect RUN a.png"),
    ("detect runs/x", "name pictures too: scratchvit detect runs/x a.jpg"),
    ("detect x a.png --json b.jpg", "--json b.jpg would write over a picture"),
    ("detect a.png --checkpoint x --threshold 2", "--threshold must be from 0 to 1, not 2"),
    ("detect a.png --checkpoint x --batch-size 0", "--batch-size: must be at least 1, not 0"),
    ("detect a.png --checkpoint x --short-side 0", "--short-side: must be at least 1, not 0"),
    ("detect a.png --checkpoint x --treshold 1", "did you mean --threshold?"),
    ("detect-eval", "name a run: scratchvit detect-eval RUN"),
    ("detect-eval x --checkpoint y", "two runs were given, x and --checkpoint y"),
    ("detect-eval x --results-of y --annotations z", "name either a detector, RUN, or a results file"),
    ("detect-eval --results-of y", "must be given together"),
    ("detect-eval --checkpoint x --annotations y", "must be given together"),
    ("detect-eval --checkpoint x --split train", "invalid choice: 'train'"),
    ("detect-eval --checkpoint x --batch-size 0", "--batch-size: must be at least 1, not 0"),
])
def test_bad_usage_is_one_sentence_and_exit_2(capsys, words, sentence):
    error, code = refused(capsys, *words.split())
    assert sentence in error and code == 2


def test_files_that_cannot_be_written_are_told_before_anything_is_computed(trained, capsys, tmp_path):
    write_picture(tmp_path / "a.png", SIZE)
    for words, sentence in (
        (["detect", "a.png", "--json", "nowhere/found.json"], "there is no folder nowhere"),
        (["detect", "a.png", "--json", "."], "it is a folder"),
        (["detect", "a.png", "--out", "a.png"], "a.png: cannot create this folder"),
        (["detect-eval", "--results", "nowhere/found.json"], "there is no folder nowhere"),
    ):
        assert main([*words, "--checkpoint", str(trained)]) == 1
        told = capsys.readouterr()
        assert sentence in told.err and "objects" not in told.out
