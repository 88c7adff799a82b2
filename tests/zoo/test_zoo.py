"""The trained models of the package: they load, they are as good as their cards say, and a damaged file is noticed."""

import fnmatch
import json
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit import models, zoo
from scratchvit.cli import detect_train, main, train
from scratchvit.data.digits import load_digits
from scratchvit.data.images import to_picture
from scratchvit.detection.data.scenes import load_scenes
from scratchvit.detection.detector import matching_categories, results_in
from scratchvit.detection.evaluation import evaluate_boxes
from scratchvit.detection.run_data import FirstPictures
from scratchvit.errors import ScratchvitError
from scratchvit.training.checkpoint import load_checkpoint
from scratchvit.weights import pretrained
from tests.support.seeds import moved

NAMES = ["vit_digits", "swin_digits", "detr_scenes"]
MOST_BYTES = 6 * 10**6


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the zoo that can be damaged."""
    folder = tmp_path / "zoo"
    shutil.copytree(pretrained.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    return folder


def refusal(call, *args, **options):
    with pytest.raises(ScratchvitError) as error:
        call(*args, **options)
    return str(error.value)


def test_there_are_three_and_no_architecture_has_their_names():
    assert zoo.trained() == sv.list_models(pretrained=True) == NAMES
    assert sv.list_models("*_digits", pretrained=True) == NAMES[:2]
    assert sv.list_models() == models.list_models() and not set(NAMES) & set(sv.list_models())


@pytest.mark.parametrize("name", NAMES[:2])
def test_the_accuracy_on_the_test_digits_is_that_of_the_card(name, capsys):
    assert main(["eval", name, "--json"]) == 0
    found, card = json.loads(capsys.readouterr().out.splitlines()[-1]), zoo.card_of(name)
    assert {key: found[key] for key in ("split", "images", "accuracy")} == {
        key: card.figures[key] for key in ("split", "images", "accuracy")
    }
    assert found["loss"] == pytest.approx(card.figures["loss"], rel=1e-4)


@pytest.mark.slow
def test_the_average_precision_on_the_test_scenes_is_that_of_the_card(capsys):
    """Rounding, which differs between processors, may exchange boxes of nearly equal scores."""
    pytest.importorskip("pycocotools")
    assert main(["detect-eval", "detr_scenes", "--json"]) == 0
    found, card = json.loads(capsys.readouterr().out.splitlines()[-1]), zoo.card_of("detr_scenes")
    assert (found["split"], found["images"]) == (card.figures["split"], card.figures["images"])
    for figure in ("AP", "AP50", "AP75"):
        assert found[figure] == pytest.approx(card.figures[figure], abs=1e-3)


def test_the_detector_finds_the_digits_of_a_few_test_scenes():
    """About as well as on all of them: the AP50 of 20 scenes varies by a few hundredths."""
    pytest.importorskip("pycocotools")
    trained = zoo.load("detr_scenes")
    scenes = FirstPictures(load_scenes().test, 20)
    found, ids = trained.opened.in_dataset(scenes, 10)
    categories = matching_categories(scenes.classes, scenes.category_ids, trained.opened, scenes.name)
    figures = evaluate_boxes(scenes.ground_truth(), results_in(found, ids, categories))
    assert trained.card.figures["AP50"] - figures.AP50 < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_to_load_give_the_same_weights_in_float32(name):
    model, trained = sv.create_model(name, pretrained=True), zoo.load(name)
    state = trained.model.state_dict()
    stored = safetensors.numpy.load_file(trained.card.path)
    assert stored.keys() == {f"model.{key}" for key in state}
    assert {array.dtype.name for array in stored.values()} <= {"float16", "int64"}      # counters of batch norm
    for key, array in model.state_dict().items():
        assert array.dtype == state[key].dtype != np.float16
        assert np.array_equal(array, state[key]) and np.array_equal(array, stored[f"model.{key}"])
    assert not model.training and not trained.model.training
    assert model.config == trained.model.config and model.num_parameters() == trained.card.parameters


def test_without_pretrained_the_weights_are_drawn():
    drawn = sv.create_model("vit_digits", seed=3, drop_path_rate=0.1)
    card = zoo.card_of("vit_digits")
    expected = models.create_model(card.model, seed=moved(3), **card.options, drop_path_rate=0.1)
    assert drawn.config == expected.config and drawn.training
    assert all(np.array_equal(drawn.state_dict()[key], array) for key, array in expected.state_dict().items())


def test_other_sizes_are_adapted_as_load_weights_does_it():
    plain = sv.create_model("vit_digits", pretrained=True).state_dict()
    other = sv.create_model("vit_digits", pretrained=True, num_classes=3, img_size=32, in_chans=3, seed=3)
    state = other.state_dict()
    kept = [key for key in plain if key.startswith("blocks.")]
    assert kept and all(np.array_equal(state[key], plain[key]) for key in kept)
    drawn = models.create_model("vit_tiny_patch16_224", **vars(other.config), seed=moved(3))
    assert np.array_equal(state["head.weight"], drawn.state_dict()["head.weight"])
    assert other(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 3)


@pytest.mark.parametrize(("name", "options", "words"), [
    ("vit_tiny_patch16_224", {}, ["no trained weights for vit_tiny_patch16_224", *NAMES, "load_weights"]),
    ("vit_digits", {"num_heads": 8}, ["num_heads=4", "leave out num_heads"]),
    ("swin_digits", {"window_size": 2}, ["window_size=4"]),
    ("vit_digits", {"widht": 8}, ["no option 'widht'"]),
    ("vit_digit", {}, ["no model 'vit_digit'", "did you mean 'vit_digits'"]),
    ("resnet", {}, ["no model 'resnet'"]),
])
def test_what_pretrained_refuses(name, options, words):
    said = refusal(sv.create_model, name, pretrained=True, **options)
    assert all(word in said for word in words), said


def test_the_same_value_is_no_change():
    sv.create_model("swin_digits", pretrained=True, depths=[2, 2, 2], window_size=4)


def test_a_name_that_none_has():
    assert "did you mean 'vit_digits'" in refusal(zoo.load, "vit_digit")
    assert "it has vit_digits, swin_digits, detr_scenes" in refusal(zoo.load, "../vit_digits.safetensors")


def test_a_classifier_reads_pictures_as_predict_does():
    trained = zoo.load("vit_digits")
    assert trained.classes == tuple("0123456789")
    digits = load_digits().test
    pictures = [to_picture(image) for image in digits.images(range(50))]
    images = np.stack([trained.prepare(picture) for picture in pictures])
    assert images.shape == (50, 1, 16, 16) and images.dtype == np.float32
    chances = trained.opened.probabilities(images)
    right = float((chances.argmax(axis=1) == digits.labels[:50]).mean())
    assert trained.card.figures["accuracy"] - right < 0.1
    in_colour = trained.prepare(pictures[0].convert("RGBA"))        # any mode
    assert np.array_equal(in_colour, images[0])


def test_a_detector_takes_pictures_of_any_mode():
    trained = zoo.load("detr_scenes")
    grey = load_scenes().test.picture(0).convert("L")
    image = trained.prepare(grey)
    assert image.shape == (3, 96, 96) and np.array_equal(image, trained.prepare(grey.convert("RGB")))
    found, again = trained.opened.in_pictures([grey]), trained.opened.in_pictures([grey.convert("RGB")])
    assert np.array_equal(found[0]["boxes"], again[0]["boxes"])


@pytest.mark.parametrize("name", NAMES)
def test_the_card_belongs_to_the_file(name):
    card, checkpoint = zoo.card_of(name), load_checkpoint(zoo.card_of(name).path)
    assert card.path.stat().st_size == card.bytes
    assert (card.model, card.options) == (checkpoint.model_name, checkpoint.model_args)
    assert card.data["classes"] == checkpoint.data["classes"] and card.data["license"] == "CC BY 4.0"
    assert not checkpoint.optimizer and not checkpoint.ema
    program, command, *words = shlex.split(card.command)
    commands = {"train": train.COMMAND, "detect-train": detect_train.COMMAND}
    assert program == "scratchvit" and commands[command].parse(words)[0].as_read_back() == (
        commands[command].kind(**checkpoint.config)
    )


def test_everything_is_packaged_and_small():
    files = [path for path in pretrained.FOLDER.iterdir() if path.is_file() and path.suffix != ".py"]
    root = Path(sv.__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("pyproject.toml is only in the checkout")
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["scratchvit.zoo"]
    left_out = [path.name for path in files if not any(fnmatch.fnmatch(path.name, each) for each in patterns)]
    assert len(files) == 2 * len(NAMES) and not left_out
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


@pytest.mark.parametrize("load", [zoo.load, lambda name: sv.create_model(name, pretrained=True)])
def test_a_file_that_was_changed_is_noticed(load, copied):
    path = copied / "vit_digits.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = refusal(load, "vit_digits")
    assert str(path) in said and "SHA-256" in said and "install scratchvit again" in said
    path.unlink()
    assert "cannot be read" in refusal(load, "vit_digits")
    load("swin_digits")


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_models_lists_the_trained_ones(capsys):
    assert main(["models", "--trained"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == NAMES and "KiB" in header
    card = zoo.card_of("detr_scenes")
    assert card.quality in rows[2] and card.date in rows[2] and "1.51 M" in rows[2]
    assert main(["models", "swin*", "--trained"]) == 0
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()[1:]] == ["swin_digits"]
    assert main(["models", "x*", "--trained"]) == 1 and "there are vit_digits" in capsys.readouterr().err
    assert main(["models", "vit_digits"]) == 1 and "--trained lists" in capsys.readouterr().err
    assert main(["models", "--trained", "--img-size", "8"]) == 2


def test_commands_take_the_names(elsewhere, capsys):
    digits = load_digits().test
    picture = to_picture(digits.images([0])[0])
    picture.save("digit.png")
    assert main(["predict", "vit_digits", "digit.png", "--top-k", "1", "--json"]) == 0
    out = capsys.readouterr().out
    assert "vit_tiny_patch16_224 from vit_digits" in out
    found = json.loads(out.splitlines()[-1])
    assert found["checkpoint"] == "vit_digits"
    trained = zoo.load("vit_digits")
    chances = trained.opened.probabilities(trained.prepare(picture)[None])[0]
    assert found["pictures"][0]["classes"][0]["class"] == trained.classes[chances.argmax()]

    scenes = load_scenes().test
    scenes.picture(0).save("scene.png")
    assert main(["detect", "detr_scenes", "scene.png", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["detections"] and Path("detected/scene-boxes.png").is_file()

    assert main(["export", "swin_digits", "--out", "mine"]) == 0
    exported = sv.create_model("swin_digits")
    sv.load_weights(exported, "mine")
    state = zoo.load("swin_digits").model.state_dict()
    assert all(np.array_equal(array, state[key]) for key, array in exported.state_dict().items())


def test_a_file_or_folder_of_that_name_comes_first(elsewhere, capsys):
    Path("vit_digits").mkdir()
    assert main(["eval", "vit_digits"]) == 1
    assert "vit_digits/best.safetensors" in capsys.readouterr().err.replace("\\", "/")


def test_there_is_no_report_of_a_trained_model(elsewhere, capsys):
    assert main(["report", "vit_digits"]) == 1
    assert "no run to report on" in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["eval", "vit_digit"], ["predict", "vit_digit", "a.png"], ["detect-eval", "detr_scene"],
    ["export", "swin_digit", "--out", "mine"],
])
def test_a_name_with_a_mistake(words, elsewhere, capsys):
    assert main(words) == 1
    assert f"no file, folder or trained model {words[1]} (did you mean '{words[1]}s'?)" in capsys.readouterr().err


@pytest.mark.slow
def test_inspect_draws_trained_models(elsewhere, capsys):
    pytest.importorskip("matplotlib")
    to_picture(load_digits().test.images([1])[0]).save("digit.png")
    load_scenes().test.picture(0).save("scene.png")
    assert main(["inspect", "swin_digits", "--out", "swin"]) == 0
    assert main(["inspect", "detr_scenes", "--image", "scene.png", "--out", "detr"]) == 0
    out = capsys.readouterr().out
    assert "swin_tiny_patch4_window7_224 from swin_digits" in out and "before training" not in out
    assert Path("swin/bias.png").is_file() and Path("detr/cross_attention.png").is_file()

    assert main(["inspect", "vit_digits", "--image", "digit.png", "--out", "vit"]) == 0
    *_, first, second, third, fourth, _, _, _ = capsys.readouterr().out.splitlines()
    for layer, line in enumerate((first, second, third, fourth)):
        number, nearest, mean, farthest = map(float, line.split())
        assert number == layer and 0 < nearest <= mean <= farthest < 12 * 2**0.5    # of the corners' patches
    drawn = Path("vit/heads.png").read_bytes()
    assert Path("vit/attention.png").is_file()
    assert main(["inspect", "vit_digits", "--image", "digit.png", "--out", "vit", "--token", "0,3"]) == 0
    assert Path("vit/heads.png").read_bytes() != drawn


@pytest.mark.parametrize(("words", "said"), [
    (["vit_digits"], "needs a picture: name one with --image"),
    (["vit_digits", "--point", "0,0"], "--point is only for a DETR"),
    (["vit_digits", "--image", "digit.png", "--token", "4,0"], "rows 0 … 3 and columns 0 … 3"),
    (["vit_digits", "--image", "digit.png", "--img-size", "8"], "leave out --img-size"),
    (["vit_digits", "--weights", "x.pth"], "vit_digits is not the name of a model"),
    (["vit_tiny_patch16_224", "--image", "digit.png"], "its weights are random"),
])
def test_what_inspect_refuses_of_a_vit(words, said, elsewhere, capsys):
    to_picture(load_digits().test.images([1])[0]).save("digit.png")
    assert main(["inspect", *words]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not Path("inspect").exists()
