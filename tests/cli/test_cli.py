"""The command line, called in this process: what it prints, what it leaves behind, what it refuses."""

import contextlib
import csv
import dataclasses
import io
import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scratchvit as sv
from scratchvit.cli import main, train
from scratchvit.models import list_models, model_config
from scratchvit.play import server
from scratchvit.recipes import recipe_for
from scratchvit.training import TrainConfig
from tests.support.data_samples import write_image_folder, write_picture
from tests.support.seeds import seeded

VIT = ["--model", "vit_tiny_patch16_224"]     # for a folder, whose default is a ResNet
TINY = [
    "--embed-dim=16", "--depth=1", "--num-heads=2", "--patch-size=4",
    "--epochs=1", "--warmup-epochs=0", "--batch-size=128", "--lr=1e-2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", *TINY, "--out", str(folder)]) == 0
    return folder, out.getvalue()


@pytest.fixture
def no_pictures(monkeypatch):
    """For runs of which neither pictures nor the report are looked at: nothing is drawn."""
    monkeypatch.setattr(train, "write_report", lambda run, path: None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def refused(capsys, *argv):
    """The one sentence on stderr and the exit code of a command that is refused."""
    code = main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") == 1, error
    return error, code


# --- train ---


def test_a_run_leaves_its_files_and_says_where(run):
    folder, out = run
    names = {path.name for path in folder.iterdir()} - {"tensorboard"}
    assert names == {
        "best.safetensors", "last.safetensors", "metrics.csv", "config.json",
        "report.html", "curves.png", "attention.png", "sample.png",
    }
    assert "1,257 train, 180 val, 360 test; 16×16×1, 10 classes" in out
    assert "16 tokens" in out and "test accuracy" in out
    assert all(name in out for name in names)
    assert json.loads((folder / "config.json").read_text())["model_args"]["embed_dim"] == 16
    with (folder / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


def test_a_run_that_left_pictures_out_is_judged_on_the_same_split(tmp_path, capsys, no_pictures):
    write_image_folder(tmp_path / "photos", parts=("train",), per_class=20)
    (tmp_path / "photos" / "train" / "ant" / "000.png").write_bytes(b"no picture")
    folder = tmp_path / "run"
    words = [*VIT, *TINY, "--data", "photos", "--img-size", "8", "--skip-bad", "--out", str(folder)]
    assert main(["train", *words]) == 0
    trained = capsys.readouterr().out.split("test accuracy ")[1].split(",")[0]
    assert main(["eval", "--checkpoint", str(folder)]) == 0
    assert trained in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_pictures(tmp_path, capsys, no_pictures):
    write_image_folder(tmp_path / "photos", per_class=20)
    words = [*VIT, *TINY, "--data", "photos", "--img-size", "8", "--out", str(tmp_path / "run")]
    assert main(["train", *words]) == 0
    capsys.readouterr()
    write_picture(tmp_path / "photos" / "train" / "ant" / "one-more.png")
    error, code = refused(capsys, "train", "--resume", tmp_path / "run", "--epochs", "2")
    assert code == 1 and "not the pictures that the run" in error


def test_the_commands_it_suggests_work(run, capsys, monkeypatch):
    _, out = run
    monkeypatch.setattr(server, "serve", lambda routes, listening, ready: routes["GET model"](server.Question()))
    suggested = [line.split() for line in out.split("try next")[1].strip().splitlines()]
    assert [words[1] for words in suggested] == ["predict", "play", "eval", "train", "train"]
    for words in suggested[:3]:
        assert words[0] == "scratchvit" and main(words[1:]) == 0
    capsys.readouterr()
    for words in suggested[3:]:
        with contextlib.suppress(SystemExit):
            train.COMMAND.parse([word for word in words[2:] if word != "--help"])


def test_without_options_it_is_the_recipe_of_the_digits():
    config, folder, resume = train.COMMAND.parse([])
    assert config == recipe_for("digits")
    assert folder == Path("runs/digits-vit_tiny_patch16_224-1") and not resume


def test_a_new_run_gets_a_new_folder(tmp_path):
    (tmp_path / "runs" / "digits-vit_tiny_patch16_224-1").mkdir(parents=True)
    assert train.COMMAND.parse([])[1].name == "digits-vit_tiny_patch16_224-2"


def test_options_go_over_the_recipe_of_the_data():
    words = ["--data=fashion-mnist", "--no-flip", "--lr=.1", "--drop-path-rate=.2", "--patch-size=4x2", "--no-qkv-bias"]
    config = train.COMMAND.parse(words)[0]
    recipe = recipe_for("fashion-mnist")
    assert config == recipe.replace(
        flip=False, lr=0.1,
        model_args={**recipe.model_args, "drop_path_rate": 0.2, "patch_size": (4, 2), "qkv_bias": False},
    )


def test_a_model_that_is_named_has_its_own_sizes():
    config = train.COMMAND.parse(["--model", "vit_small_patch16_224", "--depth", "3"])[0]
    assert config.model_args == {"img_size": 16, "patch_size": 4, "depth": 3}


@pytest.mark.parametrize("model", ["detr_resnet50", "dab_detr_tiny"])       # the former's img_size is no single number
def test_a_detector_is_not_trained_as_a_classifier(model, capsys):
    assert main(["train", "--model", model]) == 1
    assert f"{model} is a detector, which finds boxes" in capsys.readouterr().err


def test_every_setting_is_an_option(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    fields = {field.name for field in dataclasses.fields(TrainConfig)} - {"model_args"}
    fields |= set(vars(model_config("vit_tiny_patch16_224"))) - train.FROM_THE_DATA
    for name in fields:
        assert f"--{name.replace('_', '-')}" in text
    assert 'input of the head: "token", the class token' in text       # the comment beside the field


def test_resume_goes_on_with_the_options_of_the_run(tmp_path, monkeypatch, capsys, no_pictures):
    folder = tmp_path / "run"
    words = ["train", *TINY, "--epochs", "2", "--save-every", "1", "--out", str(folder)]

    steps = iter(range(100))

    make_step = sv.optim.AdamW.step

    def ctrl_c_at_step_4(self, *arguments):
        make_step(self, *arguments)
        if next(steps) == 4:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(sv.optim.AdamW, "step", ctrl_c_at_step_4)
        assert main(words) == 130
    assert f"scratchvit train --resume {folder}" in capsys.readouterr().err
    assert main(["train", "--resume", str(folder)]) == 0
    with (folder / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert main(["train", "--resume", str(folder), "--lr", "1"]) == 1
    assert "started with other settings: lr" in capsys.readouterr().err
    assert main(["train", "--resume", str(folder), "--out", "elsewhere"]) == 2
    assert "leave out --out" in capsys.readouterr().err


def test_without_matplotlib_the_run_is_not_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", *TINY, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "no pictures: pictures are drawn with Matplotlib: pip install matplotlib" in out
    assert "test accuracy" in out and (tmp_path / "run" / "best.safetensors").is_file()


@pytest.mark.parametrize(("words", "sentence"), [
    ("train --epohcs 3", "there is no option --epohcs; did you mean --epochs?"),
    ("train --embed_dim=3", "there is no option --embed_dim; did you mean --embed-dim?"),
    ("train --epoch 3", "there is no option --epoch; did you mean --epochs?"),
    ("train digits", "there is no argument digits"),
    ("train --optimizer adamv", "argument --optimizer: invalid choice: 'adamv'"),
    ("train --lr nan", "argument --lr: 'nan' is not a finite number"),
    ("train --epochs two", "argument --epochs: invalid int value: 'two'"),
    ("train --img-size 3x", "expected a size such as 28 or 28x32 (height x width), not '3x'"),
    ("train --img-size 8x16", "pictures are resized to squares, so give one number"),
    ("train --patch-size 0", "at least 1"),
    ("train --num-classes 3", "there is no option --num-classes"),
    ("trian", "there is no command 'trian'; did you mean 'train'?"),
    ("eval", "name a run: scratchvit eval RUN"),
    ("eval --checkpoint x --splt val", "did you mean --split?"),
    ("predict --checkpoint x", "name a run and pictures: scratchvit predict x a.jpg b.jpg"),
    ("predict x a.png --out found.txt", "--out must be a file that ends in .csv or .json, not found.txt"),
    ("predict a.png --checkpoint x --top-k 0", "argument --top-k: must be at least 1, not 0"),
    ("eval x --batch-size 0", "argument --batch-size: must be at least 1, not 0"),
    ("eval x --batch-size 1.5", "argument --batch-size: expected a whole number, not '1.5'"),
    ("probe x --batch-size -3", "argument --batch-size: must be at least 1, not -3"),
    ("show-augment --img-size 0", "argument --img-size: must be at least 1, not 0"),
    ("models --pattern x", "there is no option --pattern"),
    ("train --device tpu", "argument --device: unknown device 'tpu': choose \"cpu\", \"gpu\", or \"gpu:1\""),
    ("eval x --device gpu:one", "argument --device: unknown device 'gpu:one'"),
])
def test_bad_usage_is_one_sentence_and_exit_2(capsys, words, sentence):
    error, code = refused(capsys, *words.split())
    assert sentence in error and code == 2


@pytest.mark.parametrize(("words", "sentence"), [
    ("--epochs 0", "epochs must be at least 1, not 0"),
    ("--batch-size 0", "batch_size must be at least 1, not 0"),
    ("--lr -1", "lr must be at least 0, not -1.0"),
    ("--label-smoothing 1", "label_smoothing must lie in [0, 1), not 1.0"),
    ("--val-fraction 2 --data mnist", "val_fraction=2.0"),
    ("--data digist", "'digist' is neither a folder nor a known data set"),
    ("--model vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'?"),
    ("--patch-size 3", "an image of 16×16 cannot be cut into patches of 3×3"),
    ("--num-heads 3", "embed_dim 64 is not divisible by 3 heads"),
    ("--global-pool max", "global_pool must be"),
    ("--resume nowhere", "nowhere contains no run"),
    ("--data mnist --data-dir nowhere", "nowhere: no such folder"),
])
def test_bad_input_is_one_sentence_and_exit_1(capsys, words, sentence):
    error, code = refused(capsys, "train", *words.split())
    assert error.startswith("scratchvit: ") and sentence in error and code == 1
    assert not Path("runs").exists()        # nothing was begun


def test_the_gpu_without_a_gpu(capsys, monkeypatch):
    def refuse(number):
        raise sv.ScratchvitError("the GPU needs CuPy, which is not installed")

    monkeypatch.setattr(sv.backend, "_gpu", refuse)
    error, code = refused(capsys, "train", "--device", "gpu")
    assert "the GPU needs CuPy" in error and code == 1


def test_a_folder_that_holds_a_run_is_not_overwritten(run, capsys):
    before = (run[0] / "best.safetensors").read_bytes()
    error, code = refused(capsys, "train", *TINY, "--out", run[0])
    assert "already contains a run" in error and code == 1
    assert (run[0] / "best.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(capsys):
    assert main(["train", *TINY, "--lr", "1e38", "--out", "run"]) == 1
    error = capsys.readouterr().err
    assert "not finite" in error and "step 2" in error and "Traceback" not in error


# --- photos: an image folder, and what is wrong in it ---


@pytest.fixture
def photos(tmp_path):
    rng = seeded(0)
    for part, count in (("train", 12), ("test", 4)):
        for c, name in enumerate(("cat", "dog")):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * c, 100 * c + 100, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{i}.png")
    return tmp_path / "photos"


def test_an_image_folder_trains_and_predicts(photos, capsys, no_pictures):
    bad = photos / "train" / "cat" / "0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    words = ["train", "--data", str(photos), "--img-size", "16", *VIT, *TINY, "--val-fraction", "0.2"]
    error, code = refused(capsys, *words)
    assert str(bad) in error and "cannot be decoded" in error and code == 1

    assert main([*words, "--skip-bad", "--out", "run"]) == 0
    assert f"left out {bad}" in " ".join(capsys.readouterr().out.split())
    picture = photos / "test" / "dog" / "1.png"
    assert main(["predict", str(picture), "--checkpoint", "run", "--top-k", "5"]) == 0
    out = capsys.readouterr().out
    assert f"\n{picture}\n" in out and "cat" in out and "dog" in out
    assert main(["eval", "--checkpoint", "run/best.safetensors", "--data", str(photos)]) == 0
    assert "all         8" in capsys.readouterr().out


def test_an_empty_class_folder_is_named(photos, capsys):
    (photos / "train" / "fish").mkdir()
    error, code = refused(capsys, "train", "--data", photos, "--img-size", "16")
    assert "fish: no pictures in this class folder" in error and code == 1


# --- eval ---


def test_eval_counts_class_by_class(run, capsys):
    assert main(["eval", "--checkpoint", str(run[0] / "best.safetensors")]) == 0
    header, _, rows = capsys.readouterr().out.partition("\n\n")
    assert header.endswith("data      360 test pictures of digits")
    counts = {row.split()[0]: row.split()[1:] for row in rows.splitlines()}
    assert counts["all"][0] == "360" and sum(int(counts[str(c)][0]) for c in range(10)) == 360
    right = sum(round(int(counts[str(c)][0]) * float(counts[str(c)][1].rstrip("%")) / 100) for c in range(10))
    assert right == round(360 * float(counts["all"][1].rstrip("%")) / 100)
    assert f"test accuracy {counts['all'][1]}, loss {counts['all'][2]}" in run[1]     # as training said


def test_eval_on_data_of_other_classes_is_refused(run, photos, capsys):
    error, code = refused(capsys, "eval", "--checkpoint", run[0], "--data", photos)
    assert "was trained on the classes 0, 1" in error and "cat, dog" in error and code == 1


def test_checkpoints_that_are_none(run, capsys, tmp_path):
    for path, content, sentence in (
        ("absent.safetensors", None, "there is no checkpoint absent.safetensors"),
        ("cut.safetensors", (run[0] / "best.safetensors").read_bytes()[:5000], "truncated, damaged or not"),
        ("other.safetensors", b"PK\x03\x04 not ours", "truncated, damaged or not"),
    ):
        if content is not None:
            Path(path).write_bytes(content)
        error, code = refused(capsys, "eval", "--checkpoint", path)
        assert sentence in error and code == 1


# --- models, help ---


def models_table(capsys, *argv):
    """The header and {name: its other cells} that `scratchvit models` prints."""
    assert main(["models", *argv]) == 0
    header, *rows = (re.split(r"  +", line) for line in capsys.readouterr().out.splitlines())
    return header, {name: cells for name, *cells in rows}


@pytest.mark.slow
def test_models_lists_what_every_model_costs(capsys):
    header, rows = models_table(capsys)
    assert header == ["name", "parameters", "GMACs", "image", "tokens", "attention", "paper"]
    assert list(rows) == list_models()
    assert rows["vit_base_patch16_224"] == ["86.57 M", "17.564", "224", "197", "21.3 MiB", "ViT, arXiv 2010.11929"]
    assert rows["resnet50"] == ["25.56 M", "4.089", "224", "–", "–", "ResNet, arXiv 1512.03385"]


def test_models_takes_a_pattern(capsys):
    _, rows = models_table(capsys, "vit_huge*")
    assert list(rows) == list_models("vit_huge*")
    error, code = refused(capsys, "models", "alexnet*")
    assert "no model matches 'alexnet*'" in error and code == 1
    error, code = refused(capsys, "models", "swin_tiny")
    assert 'did you mean "*swin_tiny*"?' in error and code == 1


def test_models_for_images_of_another_size(capsys):
    """Four times the patches; a size that patches do not divide is told, and the others are shown."""
    _, rows = models_table(capsys, "vit_base_patch16_224", "--img-size", "448")
    assert rows["vit_base_patch16_224"][2:5] == ["448", "785", "339 MiB"]      # 12 · 12 · 785² · 4 bytes
    _, rows = models_table(capsys, "resnet18", "--img-size", "64x96")
    assert rows["resnet18"][2] == "64×96"
    assert main(["models", "vit_base_patch*", "--img-size", "384"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == [
        "name", "vit_base_patch32_224", "vit_base_patch16_224"
    ]
    assert shown.err.startswith("left out: vit_base_patch14_224: an image of 384×384 cannot be cut into patches")
    error, code = refused(capsys, "models", "vit_*_patch14_224", "--img-size", "384")
    assert "vit_tiny_patch14_224: an image of 384×384" in error and code == 1


@pytest.mark.parametrize("command", ["", "train", "eval", "predict", "models", "export", "show-augment", "doctor"])
def test_help_teaches(capsys, command):
    assert main([*command.split(), "--help"]) == 0
    assert "scratchvit" in capsys.readouterr().out


def test_no_command_prints_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "scratchvit train" in capsys.readouterr().out


def test_ctrl_c_outside_of_training_is_130(monkeypatch, capsys):
    def press(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("scratchvit.cli.models.list_models", press)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "\nscratchvit: stopped\n"
