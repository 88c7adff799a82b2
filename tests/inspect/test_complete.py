"""`scratchvit complete` and `scratchvit probe`: what a model of pixels draws, and what its layers know of classes."""

import numpy as np
import pytest
from PIL import Image

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.errors import ScratchvitError
from scratchvit.inspect.completions import complete
from scratchvit.inspect.probe import Features, features, linear_probe, softmax_regression
from scratchvit.training import train
from scratchvit.training.checkpoint import model_from_checkpoint
from tests.support.margins import agree
from tests.support.runs import CONFIG
from tests.support.seeds import seeded

PIXELS = CONFIG.replace(
    model="igpt_tiny", model_args={"num_colors": 17, "embed_dim": 16, "depth": 2, "num_heads": 2}, epochs=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("sklearn")      # for the digits
    folder = tmp_path_factory.mktemp("complete") / "run"
    train(PIXELS, folder, log=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "run"
    train(CONFIG.replace(epochs=1), folder, log=lambda line: None)
    return folder


def said(capsys, *argv):
    """(exit code, what was printed, what was complained of)."""
    code = main([str(word) for word in argv])
    return code, *capsys.readouterr()


# --- complete ---


def test_the_given_rows_stay_and_the_others_are_drawn(device, run):
    model, _ = model_from_checkpoint(run)
    pictures = sv.data.load("digits").test.images(np.arange(3))
    drawn = complete(model, pictures, 5, seeded(0))
    assert drawn.shape == (3, 5, 8, 8, 1) and drawn.dtype == np.uint8
    assert (drawn[:, :, :4] == pictures[:, None, :4]).all()
    assert all((drawn[i, j, 4:] != drawn[i, 0, 4:]).any() for i in range(3) for j in range(1, 5))
    assert set(np.unique(drawn)) <= set(np.rint(np.arange(17) * (255 / 16)))       # no other greys
    whole = complete(model, pictures, 1, seeded(0), rows=8)
    assert (whole[:, 0] == pictures).all()
    alike = complete(model, pictures, 2, seeded(0), temperature=0)
    assert (alike[:, 0] == alike[:, 1]).all()


def test_a_sheet_of_completions(run, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    code, text, _ = said(capsys, "complete", run, "--images", 3, "--samples", 2, "--temperature", 0.8, "--out", out)
    assert (code, text) == (0, f"{out}\n")
    with Image.open(out) as sheet:
        shown = np.asarray(sheet.convert("RGB")).astype(int)
    hidden = (np.abs(shown - [204, 214, 230]).max(axis=2) <= 3).mean()
    assert 0.05 < hidden < 0.25             # half of one column of four
    first = out.read_bytes()
    for seed, same in ((0, True), (1, False)):
        said(capsys, "complete", run, "--images", 3, "--samples", 2, "--temperature", 0.8, "--seed", seed, "--out", out)
        assert (out.read_bytes() == first) is same


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--top-k", 18], 1, "top_k must be from 1 to 17, the number of colours, not 18"),
        (["--temperature", -1], 1, "temperature must be finite and at least 0, not -1"),
        (["--images", 0], 2, "argument --images: must be at least 1, not 0"),
        (["--samples", -1], 2, "argument --samples: must be at least 1, not -1"),
        (["--seed", -1], 2, "--seed must be at least 0, not -1"),
        (["--data", "digit"], 1, "neither a folder nor a known data set"),
    ],
)
def test_what_cannot_be_completed_is_told(run, tmp_path, capsys, options, code, says):
    found, _, error = said(capsys, "complete", run, "--out", tmp_path / "sheet.png", *options)
    assert found == code and says in error and not list(tmp_path.iterdir())


def test_a_classifier_completes_nothing(classifier, tmp_path, capsys):
    code, _, error = said(capsys, "complete", classifier, "--out", tmp_path / "sheet.png")
    assert code == 1 and "vit_tiny_patch16_224, which classifies and does not generate pixels" in error
    assert "igpt_" in error
    code, _, error = said(capsys, "probe", classifier)
    assert code == 1 and "VisionTransformer has no features layer by layer" in error


@pytest.mark.parametrize("command", ["complete", "probe"])
def test_help_teaches(capsys, command):
    code, text, _ = said(capsys, command, "--help")
    assert code == 0 and "scratchvit train --recipe igpt_digits" in text
    assert f"scratchvit {command}" in said(capsys, "--help")[1]


# --- the other commands ---


@pytest.mark.slow
def test_a_run_from_the_command_line_tells_its_bits_and_draws(tmp_path, capsys):
    code, text, _ = said(
        capsys, "train", "--recipe", "igpt_digits", "--epochs", 1, "--batch-size", 256, "--depth", 1, "--embed-dim", 16,
        "--out", tmp_path / "run",
    )
    assert code == 0 and "bits per pixel, with 17 colours; 2.428 for a baseline that only uses" in text
    assert f"scratchvit complete {tmp_path / 'run'}" in text and "scratchvit predict" not in text
    assert (tmp_path / "run" / "complete.png").exists()
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Curves" in page and "Confusion matrix" not in page
    code, text, _ = said(capsys, "report", tmp_path / "run")
    assert code == 0


def test_eval_counts_pixels(run, capsys):
    code, text, _ = said(capsys, "eval", "--checkpoint", run)
    *_, last = text.splitlines()
    name, images, accuracy, loss = last.split()
    assert (code, name, images) == (0, "all", "360") and 30 < float(accuracy.rstrip("%")) < 100 and float(loss) < 2.9


def test_predict_has_no_classes_to_tell(run, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    code, _, error = said(capsys, "predict", tmp_path / "a.png", "--checkpoint", run)
    assert code == 1 and "without a classification head" in error


# --- the linear probe ---


def test_a_softmax_regression_ends_where_its_gradient_does():
    rng = seeded(0)
    x, labels, decay = rng.standard_normal((300, 5)), rng.integers(0, 3, 300), 0.01
    weight, bias = softmax_regression(x, labels, 3, decay)
    p = np.exp(x @ weight + bias)
    rest = (p / p.sum(axis=1, keepdims=True) - np.eye(3)[labels]) / 300
    assert np.abs(x.T @ rest + decay * weight).max() < 1e-4 and np.abs(rest.sum(axis=0)).max() < 1e-4


def test_a_probe_tells_the_layer_that_knows_the_classes():
    rng = seeded(0)
    parts = []
    for count in (200, 80, 80):
        labels = rng.integers(0, 3, count)
        noise = rng.standard_normal((count, 6)).astype(np.float32)
        knows = noise + 4 * np.eye(3, 6, dtype=np.float32)[labels]
        parts.append(Features([noise, knows * 1e-3 + 7], labels))       # whatever its mean and scale
    nothing, all_of_it = linear_probe(*parts, num_classes=3)
    assert (nothing.layer, all_of_it.layer) == (0, 1)
    assert nothing.test_accuracy < 0.6 and all_of_it.test_accuracy > 0.95 and all_of_it.val_accuracy > 0.95


def test_features_of_a_split(device, run):
    model, checkpoint = model_from_checkpoint(run)
    test = sv.data.load("digits").test.subset(np.arange(50))
    normalize = sv.data.Normalize(checkpoint.data["mean"], checkpoint.data["std"])
    counted = []
    found = features(model.train(), sv.data.Loader(test, 20, normalize), counted.append)
    assert model.training and counted == [20, 20, 10]
    assert [layer.shape for layer in found.layers] == [(50, 16)] * 3 and all(
        isinstance(layer, np.ndarray) for layer in found.layers
    )
    assert np.array_equal(found.labels, test.labels)
    whole = normalize(test.images(np.arange(50)))
    agree(lambda: model.eval().layer_features(whole)[1], found.layers[1])
    with pytest.raises(ScratchvitError, match="ResNet has no features"):
        features(sv.create_model("resnet18", layers=(1, 1, 1, 1)), [])


def test_probe_prints_every_layer(run, capsys):
    code, text, _ = said(capsys, "probe", run)
    about, rows, best = text.split("\n\n")
    assert code == 0 and about.startswith("model     igpt_tiny from") and about.endswith("\ndata      digits")
    header, *cells = (line.split() for line in rows.splitlines())
    assert header == ["layer", "decay", "val", "test"] and [layer for layer, *_ in cells] == ["0", "1", "2"]
    tested = {layer: float(test.rstrip("%")) for layer, _, _, test in cells}
    assert min(tested.values()) > 20        # chance is 10: even colours and places alone say something
    assert best.startswith("best layer on the validation split: ")
