"""Recipes: every file holds one that can be built, says what it must, and is what `train --recipe` begins with."""

import importlib
import re

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.cli import main, train
from scratchvit.data import list_datasets
from scratchvit.errors import ScratchvitError
from scratchvit.models import model_config
from scratchvit.recipes import DEFAULTS, list_recipes, load_recipe, recipe_for
from scratchvit.training import ClassificationTask, TrainConfig
from scratchvit.training.build import check_run
from scratchvit.training.classification.task import coarse_patches

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion-mnist": (28, 28, 1)}


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_builds_a_model_that_takes_its_data(name):
    config = load_recipe(name)
    check_run(config)
    ClassificationTask(config).check()
    assert config.data in list_datasets() or config.data == "FOLDER"
    about = {"image_shape": SHAPES.get(config.data, (32, 32, 3)), "classes": ["a"] * 10, "name": config.data}
    args = ClassificationTask(config).model_args(about)
    model = sv.create_model(config.model, **args)
    side = args["img_size"]
    answers = model(np.zeros((2, args["in_chans"], side, side), np.float32)).shape
    assert answers == ((2, 10) if model.config.num_classes else (2, model.config.num_colors, side * side))


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_says_its_command_and_its_result(name):
    text = importlib.import_module(f"scratchvit.recipes.{name}").__doc__
    assert re.search(r"^command +.*scratchvit train", text, re.MULTILINE)
    assert re.search(r"^result +\S", text, re.MULTILINE) and "TODO" not in text
    command = re.search(r"^command +(.*)$", text, re.MULTILINE)[1]
    words = re.sub(r".*scratchvit train", "", command).replace("FOLDER", load_recipe(name).data).split()
    words = [word for word in words if word != "--data-dir"][: 2 if "--recipe" in words else None]
    config = train.COMMAND.parse(words)[0]
    assert config == load_recipe(name)


def test_every_named_data_set_has_a_recipe_and_a_folder_the_plain_settings():
    assert set(DEFAULTS) == set(list_datasets())
    for data, name in DEFAULTS.items():
        assert recipe_for(data) == load_recipe(name) and recipe_for(data).data == data
    assert recipe_for("photos") == TrainConfig(data="photos", flip=True)        # no such folder


def test_options_go_over_the_recipe():
    recipe = load_recipe("vit_cifar10")
    config = train.COMMAND.parse(["--recipe", "vit_cifar10", "--data", "photos", "--lr=0.5", "--depth=2"])[0]
    assert config == recipe.replace(data="photos", lr=0.5, model_args={**recipe.model_args, "depth": 2})


def test_another_model_under_the_regime_of_a_recipe():
    config = train.COMMAND.parse(["--recipe", "vit_cifar10", "--model", "resnet18"])[0]
    assert config == load_recipe("vit_cifar10").replace(model="resnet18", model_args={"img_size": 32})


def test_an_unknown_recipe_is_named_with_the_known_ones(capsys):
    with pytest.raises(ScratchvitError, match=r"'vit_cifar'; did you mean 'vit_cifar10'.*resnet18_cifar10"):
        load_recipe("vit_cifar")
    assert main(["train", "--recipe", "vit_cifar"]) == 1
    assert "did you mean 'vit_cifar10'" in capsys.readouterr().err
    assert main(["train", "--resume", "runs/x", "--recipe", "vit_cifar10"]) != 0


@pytest.mark.parametrize(
    ("img_size", "patch_size", "says"),
    [
        (28, 7, "only 16 patches of 7×7 pixels in an image of 28×28.*--patch-size 2 gives 196"),
        (28, 14, "only 4 patches"),
        (28, 4, "only 49 patches.*--patch-size 2 gives 196"),
        (224, 32, "only 49 patches.*--patch-size 28 gives 64"),
        (224, 28, None),
        (224, 16, None),
        (32, 4, None),
        ((16, 64), (4, 4), "only 64 patches of 4×4 pixels in an image of 16×64.*--patch-size 2 gives 256"),
        (7, 7, "only 1 patch of.*larger images give more"),
    ],
)
def test_too_few_tokens_are_warned_of(img_size, patch_size, says):
    tiny = {"embed_dim": 8, "depth": 1, "num_heads": 1}
    model = sv.create_model("vit_tiny_patch16_224", img_size=img_size, patch_size=patch_size, **tiny)
    warning = coarse_patches(model)
    assert warning is None if says is None else re.search(says, warning)


def test_a_resnet_is_not_warned_of():
    assert model_config("resnet18")
    assert coarse_patches(sv.create_model("resnet18", num_classes=2)) is None


def test_advice_on_patches_is_given_where_there_are_such():
    tiny = {"embed_dim": 8, "depth": 1, "num_heads": 1}
    hybrid = sv.create_model("vit_tiny_r_s16_p8_224", img_size=64, **tiny)
    pyramid = sv.create_model("mvitv2_tiny", img_size=16, embed_dim=8, depths=(1, 1), num_heads=1)
    for model in (hybrid, pyramid):
        assert "larger images give more" in coarse_patches(model)


@pytest.mark.parametrize(
    ("model", "dropped"),
    [
        ("vit_tiny_patch16_224", {"pos_drop_rate", "proj_drop_rate", "drop_path_rate"}),
        ("swin_tiny_patch4_window7_224", {"proj_drop_rate", "drop_path_rate"}),
        ("igpt_tiny", {"pos_drop_rate", "proj_drop_rate"}),
        ("resnet18", {"drop_rate", "drop_path_rate"}),
    ],
)
def test_what_regularisation_means_for_a_model(model, dropped):
    about = {"image_shape": (32, 32, 3), "classes": ["a"] * 10, "name": "pictures"}
    args = ClassificationTask(TrainConfig(model=model, regularisation=0.1)).model_args(about)
    assert {name for name, value in args.items() if name.endswith("_rate") and value == 0.1} == dropped


def test_a_model_of_clips_takes_pictures_as_clips_of_one_frame():
    about = {"image_shape": (32, 32, 3), "classes": ["a"] * 10, "name": "pictures"}
    assert ClassificationTask(TrainConfig(model="mvit_v1_b")).model_args(about)["num_frames"] == 1
    assert "num_frames" not in ClassificationTask(TrainConfig(model="mvitv2_tiny")).model_args(about)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--distill-temperature -1", "distill_temperature must be positive, not -1.0"),
        ("--distill-weight 0.5", "name the teacher"),
        ("--train-fraction 0", "train_fraction must lie in (0, 1], not 0.0"),
        ("--train-fraction 0.0001", "a fraction of 0.0001 leaves no picture"),
    ],
)
def test_settings_out_of_range_leave_no_folder(words, sentence, tmp_path, capsys):
    assert main(["train", *words.split(), "--out", str(tmp_path / "run")]) == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()
