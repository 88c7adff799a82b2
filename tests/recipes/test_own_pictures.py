"""The settings for a folder of one's own pictures, which follow their number and size."""

import pytest

from scratchvit.cli import main
from scratchvit.cli.train import COMMAND
from scratchvit.data.survey import Survey
from scratchvit.recipes import choose, load_recipe, recipe_for
from scratchvit.recipes._own_pictures import ENOUGH_FOR_A_VIT, settings_for
from scratchvit.training import ClassificationTask, TrainConfig
from tests.support.data_samples import write_files, write_image_folder


def chosen(pictures, side=500, classes=3):
    return settings_for("photos", Survey(pictures, classes, side))


@pytest.mark.parametrize(("pictures", "model"), [(10, "resnet18"), (ENOUGH_FOR_A_VIT - 1, "resnet18"),
                                                 (ENOUGH_FOR_A_VIT, "vit_tiny_patch16_224")])
def test_few_pictures_are_for_a_resnet_and_many_for_a_vit(pictures, model):
    choice = chosen(pictures)
    assert choice.config.model == model and f"{pictures:,} pictures" in choice.about_model
    assert choice.config.data == "photos" and f"{choice.config.epochs} epochs" in choice.about_epochs


@pytest.mark.parametrize(("pictures", "epochs"), [(1, 80), (182, 80), (400, 55), (1_800, 12), (15_000, 5)])
def test_the_fewer_pictures_the_more_epochs(pictures, epochs):
    assert chosen(pictures).config.epochs == epochs


@pytest.mark.parametrize(("side", "img_size", "small"), [(0, 32, True), (28, 32, True), (48, 48, True), (63, 56, False),
                                                         (64, 64, False), (4_000, 96, False)])
def test_pictures_are_reduced_but_hardly_enlarged(side, img_size, small):
    sizes = chosen(1_800, side).config.model_args
    assert sizes["img_size"] == img_size and sizes.get("small_stem", False) == small
    vit = chosen(30_000, side).config.model_args
    assert vit["img_size"] == img_size and (img_size // vit["patch_size"]) ** 2 == 64


@pytest.mark.parametrize("side", [20, 40, 70, 300])
def test_smaller_pictures_get_more_epochs_for_the_same_time(side):
    """Multiply-adds of all epochs are those of the largest size, to a quarter."""
    from scratchvit import create_model
    from scratchvit.costs import cost

    def work(choice):
        about = {"image_shape": (choice.config.model_args["img_size"],) * 2 + (3,), "classes": ["a", "b"], "name": "x"}
        model = create_model(choice.config.model, **ClassificationTask(choice.config).model_args(about))
        return cost(model).macs * choice.config.epochs

    assert work(chosen(1_800, side)) == pytest.approx(work(chosen(1_800)), rel=0.25)


def test_a_folder_is_surveyed_and_a_named_model_has_general_settings(tmp_path):
    root = write_image_folder(tmp_path / "photos", per_class=20)
    config = recipe_for(str(root))
    assert config == choose(str(root)).config == COMMAND.parse(["--data", str(root)])[0]
    assert config.model == "resnet18" and config.replace(model_args={}, epochs=1, data="") == load_recipe(
        "resnet_pictures").replace(model_args={}, epochs=1, data="")
    general = COMMAND.parse(["--data", str(root), "--model", "resnet18"])[0]
    assert general == recipe_for(str(root), model="resnet18").replace(model="resnet18") and not general.model_args


def test_a_run_says_why_and_how_long_and_what_to_try(tmp_path, capsys, monkeypatch):
    weights = tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "photos", "cat/{0..11}.jpg", "dog/{0..11}.jpg")
    assert main(["train", "--data", "photos", "--out", "run", "--epochs", "2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    start, _, end = out.partition("epoch 1/2")
    assert "chosen a ResNet of half the usual width, because 17 pictures are few" in start
    assert "60 epochs" not in start and "time about " in start and "--epochs 6; more detail, --img-size 64" in start
    command = f"scratchvit train --recipe finetune_pictures --data photos --init {weights} --model resnet50"
    assert command in end
    config = COMMAND.parse(command.split()[2:])[0]
    assert config.new_head and config.model == "resnet50" and config.model_args == {"img_size": 128}

    assert main(["train", "--resume", "run", "--epochs", "3"]) == 0
    assert "chosen" not in capsys.readouterr().out
    assert main(["train", "--data", "photos", "--img-size", "16", "--epochs", "1", "--out", "other"]) == 0
    assert "chosen" not in capsys.readouterr().out


def test_an_option_of_another_model_is_explained(tmp_path, capsys):
    root = write_image_folder(tmp_path / "photos", per_class=5)
    with pytest.raises(SystemExit) as ended:
        COMMAND.parse(["--data", str(root), "--patch-size", "8"])
    assert ended.value.code == 2
    sentence = "--patch-size is no option of resnet18; name a model that has it, such as --model vit_tiny_patch16_224"
    assert sentence in capsys.readouterr().err


def test_a_file_that_is_no_table_is_not_read(tmp_path, capsys):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    assert recipe_for(str(tmp_path / "photos.zip")) == TrainConfig(data=str(tmp_path / "photos.zip"), flip=True)
    assert main(["train", "--data", str(tmp_path / "photos.zip")]) == 1
    assert "neither a folder nor a known data set" in capsys.readouterr().err
