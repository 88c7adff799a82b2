"""The report of a run: what it says, that it needs nothing else, and what a real browser makes of it."""

import contextlib
import csv
import dataclasses
import io
import os
import re
import shutil
import sys
from collections import Counter

import numpy as np
import pytest

from scratchvit.cli import main
from scratchvit.cli.train import COMMAND, next_commands
from scratchvit.data import ArrayDataset, Splits
from scratchvit.models import create_model
from scratchvit.recipes import list_recipes, load_recipe
from scratchvit.reports.classification import Run, open_run, write_report
from scratchvit.training import Meter, Predictions, TrainConfig
from scratchvit.training.classification.data import TrainingData
from tests.support.browser import assert_readable, contrast, look_at
from tests.support.data_samples import random_images, write_picture
from tests.support.pages import EVIL, SCRIPT, Page, assert_self_contained
from tests.support.platforms import WINDOWS, words_of
from tests.support.seeds import seeded

TINY = [
    "--embed-dim=16", "--depth=1", "--num-heads=2", "--patch-size=4",
    "--epochs=2", "--warmup-epochs=0", "--batch-size=128", "--lr=1e-2",
]
IN_FILES = ("&amp;'", "${body} $title", "&lt;b&gt;") if WINDOWS else EVIL      # no name there has < > or "
PICTURE = "&amp;.png" if WINDOWS else "<i>&.png"


def made_up(classes, path, labels=None, predicted=None, **changes):
    """A finished run of one epoch of a tiny ViT, with predictions as given, on random 8×8 images."""
    count = len(classes) * 2 if labels is None else len(labels)
    labels = np.arange(count) % len(classes) if labels is None else np.asarray(labels)
    predicted = labels if predicted is None else np.asarray(predicted)
    dataset = ArrayDataset(random_images(count, channels=1), labels, classes, "made-up")
    probability = np.linspace(0.5, 0.9, count, dtype=np.float32)
    meter = Meter(0.5 * count, int((labels == predicted).sum()), count)
    row = {
        "epoch": 1, "step": 3, "lr": 0.1, "train_loss": 2.0, "train_accuracy": 0.25, "val_loss": 1.5,
        "val_accuracy": 0.5, "images_per_second": 1000.0, "seconds": 83.0,
    }
    sizes = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return Run(**{
        "path": path, "config": TrainConfig(epochs=1, model_args=sizes), "history": [row],
        "data": TrainingData(Splits(dataset, dataset, dataset), (0.5,), (0.25,)),
        "model": create_model("vit_tiny_patch16_224", num_classes=len(classes), **sizes).eval(),
        "best_epoch": 1, "predictions": Predictions(meter, labels, predicted, probability),
    } | changes)


def report(run, folder):
    write_report(run, folder / "report.html")
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on an image folder whose names are hostile, with mixing; and what it printed."""
    root = tmp_path_factory.mktemp("trained")
    rng = seeded(0)
    for part, per_class in (("train", 30), ("test", 8)):
        for label, name in enumerate(IN_FILES):
            for number in range(per_class):
                path = root / "photos" / part / name / f"{number:02}{PICTURE}"
                write_picture(path, (12, 12), tuple(rng.integers(60 * label, 60 * label + 90, 3)))
    words = ["--model", "vit_tiny_patch16_224", "--data", str(root / "photos"), "--img-size", "16", *TINY]
    words += ["--augment", "light1", "--cutmix", "1"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", *words, "--out", str(root / "run")]) == 0
    return root / "run", out.getvalue()


# --- what the page says ---


def test_the_figures_of_the_page_are_those_of_the_run(tmp_path):
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 1]
    page = report(made_up(("ant", "bee", "cat"), tmp_path, labels, predicted), tmp_path)
    assert page.rows[page.rows.index(["", "ant", "bee", "cat"]) + 1 :][:3] == [
        ["ant", "1", "2", "·"], ["bee", "1", "1", "·"], ["cat", "·", "1", "·"],
    ]
    assert ["ant", "3", "50.0%", "33.3%", "40.0%"] in page.rows and ["cat", "1", "–", "0.0%", "0.0%"] in page.rows
    for fact in ("33.33%", "0.5000", "1 of 1", "1 min 23 s", "1,000", "6 test images", "4 of the 6 test images"):
        assert fact in page.text, fact
    surest = page.text.split("with the highest confidence.")[1].split("Attention maps")[0]
    assert re.findall(r"predicted (\w+) ([\d.]+)%true (\w+)no. (\d)", surest.replace("\n", "")) == [
        ("bee", "90.0", "cat", "5"), ("ant", "82.0", "bee", "4"),
        ("bee", "66.0", "ant", "2"), ("bee", "58.0", "ant", "1"),
    ]
    assert_self_contained(page)


def test_every_setting_is_there_and_those_that_were_chosen_are_marked(tmp_path):
    run = made_up(("a", "b"), tmp_path)
    run = dataclasses.replace(run, config=run.config.replace(lr=0.007, clip_grad=1.0))
    page = report(run, tmp_path)
    for field in dataclasses.fields(TrainConfig):
        if field.name != "model_args":
            value = str(getattr(run.config, field.name))
            assert [field.name, value, field.metadata["help"]] in page.rows, field.name
    marked = re.findall(r'<tr class="changed"><th>(\w+)</th>', page.source)
    model = ["img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads"]
    assert sorted(marked) == sorted(["epochs", "lr", *model])


def test_names_are_text_and_nothing_else(tmp_path):
    classes = (SCRIPT, *EVIL)
    page = report(made_up(classes, tmp_path, [0, 1, 2, 3], [1, 2, 3, 0]), tmp_path)
    assert all(page.text.count(name) >= 4 for name in classes)     # in matrix, table, mistakes
    assert SCRIPT not in page.source
    assert_self_contained(page)


def test_names_that_are_no_text_do_not_stop_it(tmp_path):
    page = report(made_up(("caf\udce9", "b"), tmp_path), tmp_path)      # what a folder in Latin-1 is called
    assert "caf?" in page.text


@pytest.mark.parametrize("classes", [20, 100])
def test_of_many_classes_it_shows_what_is_confused_most(tmp_path, classes):
    labels = np.arange(10 * classes) % classes
    predicted = labels.copy()
    predicted[[7, 7 + classes, 7 + 2 * classes]], predicted[9] = 3, 4
    page = report(made_up([f"c{i}" for i in range(classes)], tmp_path, labels, predicted), tmp_path)
    maps = page.pictures("pixels map")
    if classes == 20:
        assert not maps and ["c7", *["·"] * 3, "3", *["·"] * 3, "7", *["·"] * 12] in page.rows
        return
    assert ["c7", "c3", "3", "30.0%"] in page.rows and ["c9", "c4", "1", "10.0%"] in page.rows
    (pixels,) = maps
    assert pixels.shape == (100, 100, 4)
    assert pixels[7, 3, 3] == round(255 * 0.3**0.5) and pixels[7, 7, 3] > 200 and pixels[3, 7, 3] == 0
    hardest = page.rows.index(["class", "images", "precision", "recall", "F1"]) + 1
    assert [row[0] for row in page.rows[hardest:][:4]] == ["c7", "c3", "c9", "c4"]
    assert max(len(row) for row in page.rows) < 10


def test_a_head_larger_than_the_classes(tmp_path):
    run = made_up(("a", "b"), tmp_path, [0, 1, 1], [0, 1, 3])
    wider = create_model(run.config.model, num_classes=4, **run.config.model_args).eval()
    page = report(dataclasses.replace(run, model=wider), tmp_path)
    assert ["b", "·", "1", "·", "1"] in page.rows and "output 3" in page.text


def test_a_model_without_mistakes_or_attention(tmp_path):
    resnet = create_model("resnet18", num_classes=2, in_chans=1)
    config = TrainConfig(epochs=1, model="resnet18")
    page = report(made_up(("a", "b"), tmp_path, model=resnet, config=config), tmp_path)
    assert "None: all 4 test images are classified correctly." in page.text and "Attention maps" not in page.text
    assert "are not augmented" in page.text       # no augmentation
    assert not page.pictures()


def test_augmentation_is_that_of_the_run(tmp_path):
    run = made_up(("a", "b", "c"), tmp_path)
    run = dataclasses.replace(run, config=run.config.replace(flip=True))
    page = report(run, tmp_path)
    originals = run.data.splits.train.images([0, 1, 2])[..., 0]
    drawn = page.pictures("pixels")[-21:]       # three rows of an image and six draws
    mirrored = 0
    for row, original in enumerate(originals):
        first, *others = drawn[7 * row :][:7]
        np.testing.assert_array_equal(first, original)
        for picture in others:
            mirrored += np.array_equal(picture, original[:, ::-1])
            assert np.array_equal(picture, original) or np.array_equal(picture, original[:, ::-1])
    assert 0 < mirrored < 18
    assert "RandomHorizontalFlip, Normalize." in page.text


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixtures_are_shown_with_their_shares(tmp_path, smoothing):
    run = made_up(("a", "b"), tmp_path)
    run = dataclasses.replace(run, config=run.config.replace(mixup=1.0, label_smoothing=smoothing))
    page = report(run, tmp_path)
    x = run.data.splits.train.images([0, 1])[..., 0].astype(float)
    rows = [page.pictures("pixels")[-14:][:7], page.pictures("pixels")[-14:][7:]]
    shares = re.findall(r"<figcaption>(\d+)% (\w)(?:, (\d+)% (\w))?</figcaption>", page.source)
    assert len(shares) == 6 and sum(int(second or 0) > 5 for _, _, second, _ in shares) >= 4
    for row, own in enumerate("ab"):
        for picture, (first, one, second, _) in zip(rows[row][4:], shares[3 * row :][:3]):
            share = int((first if one == own else second) or 50 * smoothing) / 100
            share = (share - smoothing / 2) / (1 - smoothing)
            assert np.abs(share * x[row] + (1 - share) * x[1 - row] - picture).max() < 2.5
    assert "Normalize, MixUp." in page.text


def test_large_pictures_become_thumbnails(tmp_path):
    run = made_up(("a", "b"), tmp_path, [0, 1], [1, 0])
    photos = ArrayDataset(random_images(2, 512, 512, 3), [0, 1], ("a", "b"))
    data = TrainingData(Splits(photos, photos, photos), (0.5,) * 3, (0.2,) * 3)
    resnet = create_model("resnet18", num_classes=2)
    config = TrainConfig(epochs=1, model="resnet18")
    page = report(dataclasses.replace(run, data=data, model=resnet, config=config), tmp_path)
    assert [picture.shape for picture in page.pictures()] == [(192, 192, 3)] * 2
    assert len(page.source) < 100_000


def test_without_matplotlib_all_the_rest_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = report(made_up(("a", "b"), tmp_path, [0, 1], [1, 0]), tmp_path)
    assert page.text.count("pip install matplotlib") == 2       # curves, attention
    assert ["1", "2", "1.5", "0.25", "0.5", "0.1", "1000"] in page.rows
    assert "Most confident mistakes" in page.text and page.pictures("pixels")
    assert not page.of("svg")


# --- of a run in a folder ---


def test_training_leaves_a_report_of_what_it_measured(trained):
    folder, out = trained
    assert "report.html" in out
    page = Page(folder / "report.html")
    assert re.search(r"test accuracy ([\d.]+%)", out)[1] in page.text
    assert all(name in page.text for name in IN_FILES)
    assert PICTURE in page.text and "CutMix" in page.text and len(page.of("svg")) == 3
    for line in ("predict {0} {0}/sample.png", "export {0} --out {0}/timm", "eval {0}", "train --resume {0} --epochs 4",
                 "report {0}"):
        assert line.format(folder).replace("/", os.sep) in page.text
    assert page.text.index("What to do next") > page.text.index("Configuration")
    assert_self_contained(page)


def test_the_command_writes_the_same_report(trained, tmp_path, capsys):
    folder, _ = trained
    assert main(["report", str(folder), "--out", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "again.html")
    pages = [path.read_text("utf-8") for path in (folder / "report.html", tmp_path / "again.html")]
    first, again = (re.sub(r"report of .*?\.<", "<", page) for page in pages)      # it says when it was written
    assert first == again


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A finished run of a tiny iGPT on the digits; and what it printed."""
    folder = tmp_path_factory.mktemp("generated") / "run"
    words = ["--embed-dim=8", "--depth=1", "--num-heads=1", "--epochs=1", "--warmup-epochs=0", "--batch-size=256"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", "--recipe", "igpt_digits", *words, "--out", str(folder)]) == 0
    return folder, out.getvalue()


def test_a_generative_model_is_told_in_bits_per_pixel_with_its_completions(generated):
    folder, out = generated
    page = Page(folder / "report.html")
    bits, baseline = re.search(r"([\d.]+) bits per pixel, .*; ([\d.]+) for a baseline", out).groups()
    assert f"test bits per pixel{bits}" in page.text and f"bits per pixel{baseline}" in page.text
    assert "test loss" not in page.text and "Confusion matrix" not in page.text
    with (folder / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    head = next(row for row in page.rows if "train bits" in row)
    told = page.rows[page.rows.index(head) + 1]
    for part in ("train", "val"):
        bits = float(row[f"{part}_loss"]) / np.log(2)
        assert float(told[head.index(f"{part} bits")]) == pytest.approx(bits, rel=1e-3)
    pictures = page.pictures("pixels")
    assert len(pictures) == 6 * (1 + 1 + 4)     # a picture, its upper half, completions
    for picture, half, *completed in zip(*(pictures[i::6] for i in range(6))):
        assert np.array_equal(picture[:4], half)
        assert all(np.abs(one[:4].astype(int) - half).max() <= 32 for one in completed)     # but for the palette
        assert any(not np.array_equal(one[4:], picture[4:]) for one in completed)
    assert f"scratchvit complete {folder}" in page.text and f"scratchvit predict {folder}" not in page.text
    assert_self_contained(page)


@pytest.mark.slow
def test_what_it_says_to_do_next_can_be_done(trained, generated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, _ in (trained, generated):
        run = shutil.copytree(folder, tmp_path / folder.parent.name)
        lines = next_commands(open_run(run))
        assert list(lines)[-1].startswith("Run it again") and len(lines) >= 6
        for line in lines.values():
            words = words_of(line)
            if words[:3] == ["tensorboard", "--logdir", str(tmp_path)]:
                continue
            assert words[0] == "scratchvit" and main(words[1:]) == 0, (line, capsys.readouterr())


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory):
    """A finished run on the digits, and how many images were looked at, {length of a split: count}."""
    folder, seen, images = tmp_path_factory.mktemp("digits") / "run", Counter(), ArrayDataset.images

    def count(self, indices):
        seen[len(self)] += len(indices)
        return images(self, indices)

    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()):
        patched.setattr(ArrayDataset, "images", count)
        assert main(["train", *TINY, "--out", str(folder)]) == 0
    return folder, seen


@pytest.mark.slow
def test_training_looks_at_the_test_images_once(of_digits):
    assert 360 < of_digits[1][360] < 420        # once, and a few to be drawn


def test_a_run_that_goes_on_is_judged_by_the_validation_images(of_digits, tmp_path):
    folder = shutil.copytree(of_digits[0], tmp_path / "run")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"epochs": 2', '"epochs": 5'))
    run = open_run(folder)
    assert len(run.predictions.labels) == 180 and not run.finished
    page = report(run, tmp_path)
    with (folder / "metrics.csv").open() as file:
        best = max(float(row["val_accuracy"]) for row in csv.DictReader(file))
    assert f"{best:.2%}" in page.text and "2 of 5 epochs" in page.text
    assert "validation accuracy" in page.text and "test accuracy" not in page.text


def test_a_run_before_its_first_epoch(of_digits, tmp_path):
    folder = shutil.copytree(of_digits[0], tmp_path / "run")
    for name in ("best.safetensors", "metrics.csv", "last.safetensors", "report.html"):
        (folder / name).unlink()
    assert main(["report", str(folder)]) == 0
    page = Page(folder / "report.html")
    assert "No epoch of this run is finished yet." in page.text and "Configuration" in page.text
    assert "Confusion" not in page.text and "Augmentation" in page.text


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "contains no run" in capsys.readouterr().err
    assert main(["report"]) == 2


def test_a_damaged_history_is_one_sentence(trained, tmp_path, capsys):
    folder, _ = trained
    metrics = folder / "metrics.csv"
    whole = metrics.read_text()
    try:
        metrics.write_text(whole.replace("1,", "one,", 1))
        assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 1
    finally:
        metrics.write_text(whole)
    assert f"{metrics} is damaged" in capsys.readouterr().err


def test_images_that_were_moved_can_be_named(trained, tmp_path, capsys):
    folder, _ = trained
    photos, moved = folder.parent / "photos", tmp_path / "elsewhere"
    photos.rename(moved)
    try:
        assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 1
        assert "neither a folder nor a known data set" in capsys.readouterr().err
        assert main(["report", str(folder), "--data", str(moved), "--out", str(tmp_path / "r.html")]) == 0
    finally:
        moved.rename(photos)


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    "", "--data photos --epochs 3", "--model resnet18 --lr 0.5 --optimizer sgd",
    "--no-download --flip --crop-padding 0", "--model vit_tiny_patch16_224 --img-size 8",
    "--depth 2 --mlp-ratio 3.5 --no-class-token --augment heavy2",
    "--data fashion-mnist --data-dir 'a folder' --clip-grad 0", *(f"--recipe {name}" for name in list_recipes()),
])
def test_the_command_line_that_it_tells_asks_for_the_same_run(words):
    config = COMMAND.parse(words_of(words))[0]
    told = words_of(COMMAND.command_line(config))
    assert told[:2] == ["scratchvit", "train"]
    assert COMMAND.parse(told[2:])[0] == config


def test_what_only_python_can_ask_for_has_no_command_line():
    config = load_recipe("vit_digits")
    assert COMMAND.command_line(config.replace(model_args={**config.model_args, "img_size": (16, 20)})) is None


# --- in a browser ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_all_of_it_on_a_phone_and_on_a_desktop(trained, tmp_path, scheme):
    folder, _ = trained
    pictures = len(Page(folder / "report.html").of("img"))
    phone, desktop = look_at(folder / "report.html", tmp_path, (400, 1400), scheme)
    for seen in (phone, desktop):
        assert seen["console"] == [] and seen["requests"] == [] and seen["scripts"] == 0
        assert len(seen["images"]) == pictures > 30
        assert all(width > 0 for _, width in seen["images"])
        assert len(seen["plots"]) == 3 and min(seen["plots"]) > 200
        assert_readable(seen)
        assert seen["title"] == "vit_tiny_patch16_224 on photos"
        assert all(name in seen["text"] for name in (IN_FILES[0], IN_FILES[2], "Confusion matrix", "Configuration"))
        assert contrast(seen["colours"]) > 7
    ink = phone["colours"][0]
    assert (contrast([ink, "rgb(0, 0, 0)"]) > 10) == (scheme == "dark")     # light words on a dark page


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("count", [12, 40])
def test_a_page_of_long_names_and_many_classes_can_be_read(tmp_path, count, scheme):
    kinds = ("an-endless-name-without-a-space-" * 5, "a name of many words " * 6, "金毛寻回犬" * 8, "猫", "$x^2$ ")
    classes = [kinds[i % len(kinds)] + str(i) for i in range(count)]
    run = made_up(classes, tmp_path, np.arange(80) % count, (np.arange(80) * 7) % count)
    config, commands = run.config.replace(mixup=1.0), {"again": "scratchvit --" + "x" * 400}
    run = dataclasses.replace(run, config=config, commands=commands)
    report(run, tmp_path)
    for seen in look_at(tmp_path / "report.html", tmp_path, (400, 700, 1400), scheme):
        assert_readable(seen)
        assert seen["console"] == [] and all(name in seen["text"] for name in classes)


@pytest.mark.slow
def test_a_page_of_a_generative_model_can_be_read(generated, tmp_path):
    for scheme in ("light", "dark"):
        for seen in look_at(generated[0] / "report.html", tmp_path, (400, 1400), scheme):
            assert_readable(seen)


def test_the_browser_check_sees_what_is_wrong(tmp_path):
    page = tmp_path / "wrong.html"
    page.write_text(
        '<img src="http://127.0.0.1:9/a.png" alt="a"><div style="width: 900px">b</div>'
        '<script>console.error("oh")</script>'
    )
    (seen,) = look_at(page, tmp_path, (400,))
    assert seen["images"] == [["a", 0]] and seen["requests"] == ["http://127.0.0.1:9/a.png"] and seen["scripts"] == 1
    assert seen["content"] > seen["width"] and "oh" in seen["console"][0]


@pytest.mark.parametrize(("body", "fault"), [
    ('<p style="font-size: 11px">small</p>', {"smallest": 11}),
    ('<svg viewBox="0 0 100 10" width="50"><text y="9" font-size="12">small</text></svg>', {"smallest": 6}),
    ('<p style="overflow: hidden; width: 2em; white-space: nowrap">a long word</p>', {"cut": ["a long word"]}),
    ('<svg viewBox="0 0 100 50" width="200"><text x="90" y="20">at the edge</text></svg>', {"cut": ["at the edge"]}),
    ('<p>one</p><p style="margin-top: -1em">two</p>', {"overlaps": [["one", "two"]]}),
])
def test_the_browser_check_sees_what_cannot_be_read(tmp_path, body, fault):
    page = tmp_path / "wrong.html"
    page.write_text(f"<style>p {{ line-height: 1; margin: 0 }}</style>{body}")
    (seen,) = look_at(page, tmp_path, (400,))
    assert {name: seen[name] for name in fault} == fault
    with pytest.raises(AssertionError):
        assert_readable(seen)
