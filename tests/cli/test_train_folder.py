"""`scratchvit train --data FOLDER`: what is said of the files, runs without a test split, and broken pictures."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scratchvit.data
from scratchvit.cli import main
from scratchvit.errors import ScratchvitError
from scratchvit.reports.classification import open_run
from scratchvit.training import TrainConfig, train
from tests.support.data_samples import write_files, write_picture
from tests.support.pages import Page

TINY = ["--model=vit_tiny_patch16_224", "--img-size=16", "--patch-size=8", "--embed-dim=16", "--depth=1",
        "--num-heads=2", "--epochs=2", "--batch-size=8"]


def run(capsys, *words):
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    return code, out.replace("\\", "/"), err


def train_on(capsys, root, *words):
    return run(capsys, "train", "--data", root, *TINY, "--out", "run", *words)


def test_the_table_of_files_comes_before_training(tmp_path, capsys):
    write_files(tmp_path / "photos", "train/cat/{0..7}.jpg", "train/cat/2021/{0..3}.jfif", "train/dog/{0..7}.jpg",
                "train/dog/notes.txt", "test/cat/{0..2}.jpg", "cover.jpg")
    code, out, _ = train_on(capsys, "photos")       # a longer path would be wrapped
    lines = [line.strip() for line in out.partition("epoch 1/2")[0].splitlines()]
    start = next(at for at, line in enumerate(lines) if line.startswith("files"))
    assert code == 0 and lines[start : start + 6] == [
        "files     25  files in photos", "18  used: train", "2  used: val", "3  used: test",
        "1  left out: in no class folder of train, val or test (cover.jpg)",
        "1  left out: not read: .txt (train/dog/notes.txt)",
    ]
    assert "test has no pictures of dog" in lines


def test_a_run_without_a_test_split_goes_to_its_end(tmp_path, capsys):
    root = write_files(tmp_path / "photos", "train/cat/{0..7}.jpg", "train/dog/{0..7}.jpg", "val/cat/{0..2}.jpg",
                       "val/dog/{3..6}.jpg")
    code, out, _ = train_on(capsys, root)
    assert code == 0 and "16 train, 7 val, 0 test" in out
    assert "test: there is none; the figures at the end of a run are those of val" in out
    end = out.partition("epoch 2/2")[2]
    assert "val accuracy " in end and "test accuracy" not in out and "there is no test split" in end
    assert "a val picture, of class dog" in end and "attention maps of val pictures" in end

    found = open_run("run")
    best = max(row["val_accuracy"] for row in found.history)
    assert found.predictions.meter.accuracy == pytest.approx(best) and len(found.predictions.labels) == 7
    for _ in range(2):      # as written by the run, and again by `report`
        page = Page(tmp_path / "run" / "report.html")
        assert "validation accuracy" in page.text and "There is no test split" in page.text
        assert "7 validation images" in page.text and "test accuracy" not in page.text
        assert run(capsys, "report", "run")[0] == 0

    code, out, _ = run(capsys, "eval", "--checkpoint", "run")
    assert code == 0 and "model     vit_tiny_patch16_224 from run\ndata      7 val pictures of photos\n" in out
    assert f"{best:.2%}" in next(line for line in out.splitlines() if line.startswith("all"))
    code, _, err = run(capsys, "eval", "--checkpoint", "run", "--split", "test")
    assert code == 1 and "photos has no test pictures: choose another --split" in err

    code, out, _ = run(capsys, "train", "--resume", "run", "--epochs", "3")
    assert code == 0 and "epoch 3/3" in out and "val accuracy" in out.partition("epoch 3/3")[2]


def test_a_result_without_a_test_split_has_no_test_figures(tmp_path):
    root = write_files(tmp_path / "photos", "train/cat/{0..7}.jpg", "train/dog/{0..7}.jpg", "val/cat/0.jpg")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    config = TrainConfig(data=str(root), model_args=sizes, epochs=1, batch_size=8)
    result = train(config, tmp_path / "run", log=lambda line: None)
    assert result.test_accuracy is result.test_loss is None
    assert result.predictions.meter.accuracy == result.val_accuracy
    assert result.predictions.labels.tolist() == [0]


def test_an_igpt_without_a_test_split_is_completed_on_val(tmp_path, capsys):
    root = write_files(tmp_path / "photos", "train/cat/{0..7}.jpg", "train/dog/{0..7}.jpg", "val/cat/0.jpg")
    sizes = ["--img-size=4", "--embed-dim=8", "--depth=1", "--num-heads=2", "--epochs=1", "--batch-size=8",
             "--num-colors=8"]
    code, out, _ = run(capsys, "train", "--data", root, "--model", "igpt_tiny", *sizes, "--out", "run")
    assert code == 0 and "bits per pixel" in out and "val pictures, and completions of their upper halves" in out
    code, _, _ = run(capsys, "complete", "run", "--samples", "1")
    assert code == 0 and (tmp_path / "complete.png").exists()


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_broken_pictures_are_found_before_training(tmp_path, capsys, part):
    root = write_files(tmp_path / "photos", *(f"{name}/{kind}/{{0..3}}.jpg" for name in ("train", "val", "test")
                                              for kind in ("cat", "dog")))
    for number in range(2):
        path = root / part / "dog" / f"{number}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    code, out, err = train_on(capsys, root)
    assert code == 1 and "epoch" not in out and not (tmp_path / "run" / "last.safetensors").exists()
    sentence = err.replace("\\", "/").splitlines()[-1]
    assert f"{part}/dog/0.jpg: this picture cannot be decoded" in sentence and "--skip-bad" in sentence
    assert sentence.endswith(f"; 1 more cannot be decoded: {root}/{part}/dog/1.jpg".replace("\\", "/"))

    code, out, _ = train_on(capsys, root, "--skip-bad")
    assert code == 0 and f"2  left out: cannot be decoded ({part}/dog/0.jpg, {part}/dog/1.jpg)" in out


def test_one_class_only_is_warned_of_and_trained(tmp_path, capsys):
    code, out, _ = train_on(capsys, write_files(tmp_path / "photos", "train/cat/{0..19}.jpg"))
    assert code == 0 and "warning: there is only one class, cat" in out.partition("epoch 1/2")[0]


def test_a_table_of_labels_is_trained_on(tmp_path, capsys):
    root = write_files(tmp_path / "photos", "{0..19}.jpg")
    rows = ["file,label", *(f"{at}.jpg,{'ab'[at % 2]}" for at in range(20))]
    (root / "labels.csv").write_text("\n".join(rows), "utf-8")
    code, out, _ = train_on(capsys, root / "labels.csv")
    assert code == 0 and "14 train, 2 val, 4 test" in out and "1  used: labels" in out
    code, out, _ = run(capsys, "eval", "--checkpoint", "run")
    assert code == 0 and "test pictures of photos" in out


@pytest.mark.parametrize("empty", [False, True])
def test_a_class_without_test_pictures_is_evaluated_as_none(tmp_path, capsys, empty):
    root = write_files(tmp_path / "photos", *(f"train/{kind}/{{0..5}}.jpg" for kind in ("ant", "bee", "fox")),
                       "test/ant/{0..1}.jpg", "test/bee/0.jpg")
    if empty:
        (root / "test/fox").mkdir()
    code, out, _ = train_on(capsys, root)
    assert code == 0 and "test has no pictures of fox" in out and "3 classes" in out
    for words in (["run"], ["run", "--data", root]):
        code, out, _ = run(capsys, "eval", *words)
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
        assert code == 0 and rows["fox"] == ["0", "none", "none"]
        assert [rows[name][0] for name in ("ant", "bee", "all")] == ["2", "1", "3"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932"])
def test_class_names_that_the_terminal_cannot_encode_are_escaped(tmp_path, monkeypatch, encoding):
    root = write_files(tmp_path / "photos", "train/猫/{0..5}.jpg", "train/é → ×/{0..5}.jpg", "test/猫/0.jpg")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    for words in (["train", "--data", root, *TINY, "--out", "run"], ["eval", "run"], ["predict", "run", root / "test"]):
        assert main([*map(str, words)]) == 0
        sys.stdout.flush()
    names = [name.encode(encoding, "backslashreplace") for name in ("猫", "é → ×")]
    assert all(printed.getvalue().count(name) >= 2 for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are not UTF-8")
def test_names_that_are_not_utf_8_are_escaped(tmp_path, capsys):
    root = write_files(tmp_path / "photos", "train/dog/{0..5}.jpg", "test/dog/{0..1}.jpg")
    for part in ("train", "test"):
        folder = Path(os.fsdecode(os.fsencode(root / part) + b"/caf\xe9"))
        folder.mkdir()
        for number in range(4):
            Image.fromarray(np.full((8, 8, 3), 9 * number, np.uint8)).save(folder / f"{number}.png")
    code, out, _ = train_on(capsys, root)
    out.encode()
    assert code == 0 and (tmp_path / "run" / "attention.png").exists()
    code, out, _ = run(capsys, "eval", "--checkpoint", "run")
    assert code == 0 and r"caf/udce9" in out      # `run` turns the backslash
    (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_run_that_began_with_other_pictures_is_not_resumed(tmp_path, capsys):
    root = write_files(tmp_path / "photos", "train/cat/{0..7}.jpg", "train/dog/{0..7}.jpg", "val/cat/0.jpg")
    assert train_on(capsys, root)[0] == 0
    write_picture(root / "train/cat/more/9.jpg")
    code, _, err = run(capsys, "train", "--resume", "run", "--epochs", "3")
    assert code == 1 and "not the pictures that the run in run was started with" in err


def test_a_run_of_version_0_1_goes_on_with_the_test_split_that_it_drew(tmp_path, capsys, monkeypatch):
    root = write_files(tmp_path / "photos", "train/cat/{0..9}.jpg", "train/dog/{0..9}.jpg", "val/cat/0.jpg")
    load = scratchvit.data.load
    with monkeypatch.context() as patch:
        patch.setattr("scratchvit.data.load", lambda name, **given: load(name, **given | {"test_from_train": True}))
        code, out, _ = train_on(capsys, root)
    assert code == 0 and "16 train, 1 val, 4 test" in out
    code, out, _ = run(capsys, "train", "--resume", "run", "--epochs", "3")
    assert code == 0 and "16 train, 1 val, 4 test" in out and "test accuracy" in out
    code, out, _ = run(capsys, "eval", "--checkpoint", "run")
    assert code == 0 and "test pictures of photos" in out and "test: 4 pictures drawn from" in out
    assert open_run("run").split.labels.tolist() == [0, 0, 1, 1]
    code, out, _ = run(capsys, "eval", "--checkpoint", "run", "--data", root)      # named, it is data like any other
    assert code == 0 and "1 val picture of photos" in out


def test_the_share_of_train_that_is_used_is_said(tmp_path, capsys):
    root = write_files(tmp_path / "photos", "train/cat/{0..7}.jpg", "train/dog/{0..7}.jpg", "val/cat/0.jpg")
    _, out, _ = train_on(capsys, root, "--train-fraction", "0.5")
    assert "train: 8 of its 16 pictures, by train_fraction 0.5" in out


def test_predict_reads_folders_of_folders(tmp_path, capsys):
    root = write_files(tmp_path / "photos", "train/cat/{0..7}.jpg", "train/dog/{0..7}.jpg", "val/cat/0.jpg")
    assert train_on(capsys, root)[0] == 0
    code, out, _ = run(capsys, "predict", root / "train", "--checkpoint", "run")
    assert code == 0 and out.count("/train/cat/") == out.count("/train/dog/") == 8


def test_errors_are_of_the_family(tmp_path):
    with pytest.raises(ScratchvitError, match="no folder train and no class folders"):
        train(TrainConfig(data=str(tmp_path)), tmp_path / "run")
