"""`scratchvit detect-train`, called in this process: what it prints and leaves behind, and what it refuses."""

import contextlib
import dataclasses
import html
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import scratchvit as sv
from scratchvit.cli import detect_train, main
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.detector import open_detector
from scratchvit.models import model_config
from scratchvit.play import server
from scratchvit.recipes import list_recipes, load_recipe, recipe_for
from scratchvit.training import TrainingLoop
from scratchvit.training.folder import read_config
from tests.support.data_samples import write_picture
from tests.support.detection_samples import coco, write_coco
from tests.support.detector_samples import BAD, refused, write_weights, written
from tests.support.platforms import words_of

TINY = [
    "--model=detr_tiny", "--layers=1,1,1,1", "--channels=8,8,8,8", "--hidden-dim=16", "--nheads=2", "--enc-layers=1",
    "--dec-layers=2", "--dim-feedforward=16", "--num-queries=3", "--epochs=1", "--batch-size=4", "--short-side=0",
    "--no-multi-scale",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run on pictures of its own, and what it printed."""
    root = tmp_path_factory.mktemp("run")
    for part in ("train", "val", "test"):
        write_coco(root / "animals", part, coco(4))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["detect-train", "--data", str(root / "animals"), *TINY, "--out", str(root / "tiny")]) == 0
    return root / "tiny", out.getvalue()


@pytest.fixture
def no_report(monkeypatch):
    """For runs whose report is not looked at."""
    monkeypatch.setattr(detect_train, "write_detection_report", lambda run, path: None)


def test_a_run_leaves_its_files_and_says_what_it_is(run):
    folder, out = run
    names = {path.name for path in folder.iterdir()} - {"tensorboard"}
    assert names == {
        "best.safetensors", "last.safetensors", "metrics.csv", "config.json", "report.html", "sample.png", "predictions"
    }
    assert all(name in out for name in names)
    out = " ".join(out.split())         # not as it is wrapped
    assert "animals: 4 train, 4 val, 4 test" in out and "8 train, 8 val, 8 test" in out and "2: ant, cat" in out
    assert "the largest is 30×40, 20 tokens in the encoder" in out         # a map of stride 8
    assert "3 object queries" in out and "epoch 1/1 train " in out and "warning" not in out
    assert json.loads((folder / "config.json").read_text())["model_args"]["hidden_dim"] == 16
    assert "<html" in (folder / "report.html").read_text("utf-8")


def test_it_ends_with_what_detect_eval_says_and_with_commands_that_work(run, capsys, monkeypatch):
    folder, out = run
    monkeypatch.setattr(server, "serve", lambda routes, listening, ready: routes["GET model"](server.Question()))
    suggested = [words_of(line) for line in out.split("try next")[1].strip().splitlines()]
    assert [words[1] for words in suggested] == ["detect", "play", "detect-eval", "detect-eval", "detect-train"]
    assert main(suggested[2][1:]) == 0
    figures = out[out.index("         all") : out.index("contains") - len(str(folder)) - 3].strip()
    assert "AR100" in figures and "cat" in figures and figures in capsys.readouterr().out
    for words in (*suggested[:2], *suggested[3:]):
        assert main(words[1:]) == 0


def test_a_run_goes_on_with_its_own_settings(run, tmp_path, capsys, no_report):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    assert main(["detect-train", "--resume", str(folder), "--epochs", "2"]) == 0
    assert "epoch 2/2" in (out := capsys.readouterr().out) and "epoch 1/2" not in out
    error, code = refused(capsys, "detect-train", "--resume", folder, "--lr", "1")
    assert "started with other settings: lr" in error and code == 1
    error, code = refused(capsys, "train", "--resume", folder)
    assert "contains a run of `scratchvit detect-train`" in error and code == 1
    error, code = refused(capsys, "detect-train", "--resume", folder, "--out", "elsewhere")
    assert "leave out --out" in error and code == 2
    error, code = refused(capsys, "detect-train", *TINY, "--out", folder)
    assert "already contains a run" in error and f"detect-train --resume {folder}" in error and code == 1


@pytest.mark.slow
def test_its_report_is_written_anew_and_tells_how_to_run_it_again(run, tmp_path, capsys):
    folder = run[0]
    assert main(["report", str(folder), "--out", "again.html"]) == 0
    config = read_config(folder, DetectConfig)
    command = detect_train.COMMAND.command_line(config)
    assert command is not None and command.startswith("scratchvit detect-train --data ")
    assert detect_train.COMMAND.parse(words_of(command)[2:])[0].as_read_back() == config.as_read_back()
    page = Path("again.html").read_text("utf-8")
    for words in (f"detect {folder} {folder / 'sample.png'}", f"detect-eval {folder}",
                  f"inspect {folder} --image {folder / 'sample.png'}", f"report {folder}"):
        assert html.escape(f"scratchvit {words}", quote=False) in page
        assert main(words.split()) == 0
    assert page.index("What to do next") > page.index("Configuration")
    assert "--hidden-dim 16" in page and f"scratchvit detect-train --resume {folder}" in page
    error, code = refused(capsys, "report", folder, "--data-dir", "x")
    assert "use --data FOLDER" in error and code == 1


def test_one_batch_is_learned_alone(tmp_path, capsys, no_report):
    write_coco(tmp_path / "animals", "train", coco(6))
    words = ["--data", str(tmp_path / "animals"), *TINY, "--overfit-one-batch", "--val-fraction", "0.2"]
    assert main(["detect-train", *words, "--batch-size", "2", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "train, val and test are the first 2 pictures" in out and "the batch, with the weights" in out


def test_without_options_it_is_the_recipe_of_the_scenes():
    config, folder, resume = detect_train.COMMAND.parse([])
    assert config == recipe_for("scenes", DetectConfig) and config.data == "scenes"
    assert folder == Path(f"runs/scenes-{config.model}-1") and not resume
    words = ["--data", "street", "--flip", "--lr=.1", "--aux-loss", "--layers", "1,2,1,1"]
    config = detect_train.COMMAND.parse(words)[0]
    recipe = recipe_for("street", DetectConfig)
    assert recipe == load_recipe("detect_folder", DetectConfig).replace(data="street")
    options = {**recipe.model_args, "aux_loss": True, "layers": (1, 2, 1, 1)}
    assert config == recipe.replace(flip=True, lr=0.1, model_args=options)
    assert detect_train.COMMAND.parse(["--model", "detr_resnet18"])[0].model_args == {}      # its own sizes


@pytest.mark.parametrize("name", list_recipes(DetectConfig))
def test_recipes_of_detectors_say_their_command(name):
    recipe = load_recipe(name, DetectConfig)
    assert isinstance(recipe, DetectConfig) and recipe.model_args.keys() <= vars(model_config(recipe.model)).keys()
    text = Path(sv.__file__).parent.joinpath("recipes", f"{name}.py").read_text("utf-8")
    command = re.search(r"command +(?:OMP_NUM_THREADS=1 )?scratchvit detect-train *(.*)", text)[1]
    assert detect_train.COMMAND.parse(words_of(command))[0] == recipe
    assert name not in list_recipes()
    with pytest.raises(sv.ScratchvitError, match="there is no recipe"):
        load_recipe(name)


def test_every_setting_is_an_option(capsys):
    assert main(["detect-train", "--model", "detr_resnet50", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())        # not as it is wrapped
    fields = {field.name for field in dataclasses.fields(DetectConfig)} - {"model_args"}
    fields |= set(vars(model_config("detr_resnet50"))) - detect_train.FROM_THE_DATA
    for name in fields:
        assert f"--{name.replace('_', '-')}" in text
    assert "number of object queries: the maximum number of detected objects (default: 100)" in text


@pytest.mark.parametrize("command", ["detect-train", "detect-eval", "detect"])
def test_help_teaches(capsys, command):
    assert main([command, "--help"]) == 0
    assert f"\n  scratchvit {command} " in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert f"\n  scratchvit {command} " in capsys.readouterr().out


def test_what_makes_a_run_hopeless_is_told_before_it_begins(tmp_path, capsys, no_report):
    content = coco(3)
    content["annotations"] = [
        {**content["annotations"][0], "id": i, "image_id": 10 + i % 3, "bbox": [i, 3, 5, 5]} for i in range(24)
    ]
    for entry in content["images"]:
        entry |= {"width": 400, "height": 300}
    write_coco(tmp_path / "many", "train", content)
    for entry in content["images"]:
        write_picture(tmp_path / "many" / "train" / entry["file_name"], (400, 300))
    words = ["--data", str(tmp_path / "many"), *TINY, "--frozen-bn", "--val-fraction=.3", "--short-side=600"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingLoop, "run", lambda self: sys.exit(3))     # before the first step
        assert main(["detect-train", *words, "--out", "run"]) == 3
    out = " ".join(capsys.readouterr().out.split())         # not as it is wrapped
    assert "warning frozen_bn freezes the batch norms of a backbone without pretrained weights" in out
    assert "warning a picture has 8 objects, but the model has only 3 queries: use --num-queries 16" in out
    assert "warning 7,500 tokens are many" in out and "the largest is 600×800" in out
    assert "has no object" not in out


def test_pictures_without_any_object_are_warned_of(tmp_path, capsys, no_report):
    for part in ("train", "val"):
        write_coco(tmp_path / "bare", part, coco(2, annotations=[]))
    assert main(["detect-train", "--data", str(tmp_path / "bare"), *TINY]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "warning no training picture has an object" in out
    assert "warning val has no object" in out
    assert "AP –" in out


def test_weights_to_begin_with_and_a_new_head(run, tmp_path, capsys, no_report):
    content = coco(4, categories=[{"id": 1, "name": "bee"}, {"id": 3, "name": "ant"}, {"id": 7, "name": "cat"}])
    for part in ("train", "val", "test"):
        write_coco(tmp_path / "three", part, content)
    words = ["detect-train", "--data", str(tmp_path / "three"), *TINY, "--init", str(run[0])]
    assert main([*words, "--out", "x"]) == 1
    assert "its head has 2 classes, the model's 3" in capsys.readouterr().err and not Path("x").exists()
    assert main([*words, "--new-head", "--out", "run"]) == 0
    assert f"weights   initialised from {run[0]}" in capsys.readouterr().out
    assert open_detector("run").classes == ("bee", "ant", "cat")


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_training_names_bad_annotations_and_can_leave_them_out(animals, capsys, spoil, sentence, no_report):
    path = animals / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    words = ["detect-train", "--data", str(animals), *TINY]
    error, code = refused(capsys, *words)
    assert str(path) in error and sentence in error and "--skip-bad" in error and code == 1
    assert not Path("runs").exists()        # nothing was begun
    assert main([*words, "--skip-bad"]) == 0
    out = " ".join(capsys.readouterr().out.split())         # not as it is wrapped
    assert re.search(r"skipped [123] bad entr(y|ies) left out or clipped", out) and sentence in out
    assert "epoch 1/1" in out


@pytest.mark.parametrize(("text", "sentence"), [
    ("", "this annotation file is empty"),
    ('{"images": [{"id": 1, "file', "is not valid JSON, maybe truncated"),
])
def test_training_names_files_that_are_no_annotations(animals, capsys, text, sentence):
    path = animals / "annotations" / "instances_train.json"
    path.write_text(text)
    for more in ([], ["--skip-bad"]):
        error, code = refused(capsys, "detect-train", "--data", animals, *TINY, *more)
        assert str(path) in error and sentence in error and code == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(("words", "sentence", "expected"), [
    ("--epohcs 3", "did you mean --epochs?", 2),
    ("--hiden-dim 3", "did you mean --hidden-dim?", 2),
    ("--num-classes 3", "there is no option --num-classes", 2),
    ("--img-size 3", "there is no option --img-size", 2),
    ("--lr nan", "'nan' is not a finite number", 2),
    ("--recipe vit_digits", "there is no recipe 'vit_digits'; there are detect_finetune, detect_folder", 1),
    ("--epochs 0", "epochs must be at least 1, not 0", 1),
    ("--nheads 3", "hidden_dim 128 is not divisible by 3 heads", 1),
    ("--model detr_tniy", "did you mean 'detr_tiny'?", 1),
    ("--model resnet18", "resnet18 is not a detector", 1),
    ("--data nowhere", "nowhere: no such folder", 1),
    ("--resume nowhere", "nowhere contains no run", 1),
])
def test_bad_settings_are_one_sentence(capsys, words, sentence, expected):
    error, code = refused(capsys, "detect-train", *words.split())
    assert sentence in error and code == expected
    assert not Path("runs").exists()


def test_one_small_picture_under_batch_norm_is_one_sentence(tmp_path, animals, capsys):
    words = ["--batch-size=1", "--short-side=4", "--out", str(tmp_path / "run")]
    error, code = refused(capsys, "detect-train", "--data", animals, *TINY, *words)
    assert code == 1 and error.count("\n") == 1 and "batch_norm: " in error and "use more than one image" in error


def test_without_pycocotools_a_run_is_trained_and_judged_by_its_loss(animals, capsys, monkeypatch, no_report):
    for name in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["detect-train", "--data", str(animals), *TINY, "--model=detr_tiny", "--out", "run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "AP is not computed, because pycocotools is not installed (pip install pycocotools)" in out
    assert "AP –, AP50 –" in out and "nan" not in out
    error, code = refused(capsys, "detect-eval", "run")
    assert "pip install pycocotools" in error and code == 1


@pytest.mark.parametrize("words", ["--model=dab_detr_tiny --denoising=1", "--model=detr_tiny --focal --query-groups=2"])
def test_what_lets_it_converge_sooner_trains_and_is_evaluated(animals, capsys, no_report, words):
    """Models whose classes are told by sigmoids: their scores are read as such by the other commands."""
    assert main(["detect-train", "--data", str(animals), *TINY, *words.split(), "--out", "run"]) == 0
    trained = capsys.readouterr().out
    assert main(["detect-eval", "--checkpoint", "run", "--results", "found.json"]) == 0
    figures = trained[trained.index("         all") : trained.index("\nrun contains")].strip()
    assert figures in capsys.readouterr().out
    assert {entry["category_id"] for entry in written("found.json")} <= {3, 7}


def test_hugging_faces_weights_to_begin_with(animals, tmp_path, capsys, no_report):
    """Their preprocessing says how pixels are normalised."""
    weights = write_weights(tmp_path / "detr", {"size": 800, "image_processor_type": "DetrImageProcessor",
                                                "image_mean": [0.25] * 3, "image_std": [0.5] * 3})
    words = ["--data", str(animals), *TINY, "--dec-layers=1", "--init", str(weights), "--new-head", "--out", "run"]
    assert main(["detect-train", *words]) == 0
    assert open_detector("run").normalize.mean == (0.25,) * 3
