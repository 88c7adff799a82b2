"""scripts/make_zoo.py: what becomes of a run, and the page with the cards."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scratchvit.cli import main
from scratchvit.errors import ScratchvitError
from scratchvit.recipes import load_recipe
from scratchvit.training import train
from scratchvit.training.checkpoint import load_checkpoint, model_from_checkpoint
from tests.support.scripts import import_script

make_zoo = import_script("make_zoo.py")
SETTINGS = load_recipe("vit_digits").replace(epochs=1, batch_size=256, ema_decay=0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one epoch with averaged weights, which ended on the first day of 2026."""
    folder = tmp_path_factory.mktemp("runs") / "small_digits"
    train(SETTINGS, folder, log=lambda line: None)
    ended = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
    os.utime(folder / "last.safetensors", (ended, ended))
    return folder


def test_a_run_becomes_an_entry(run, tmp_path, capsys):
    card = make_zoo.make(run, tmp_path, "abc1234", "a machine")
    assert (card.name, card.commit, card.machine, card.date) == ("small_digits", "abc1234", "a machine", "2026-01-01")
    assert card.command == "scratchvit train --data digits --epochs 1 --batch-size 256 --ema-decay 0.5"
    assert json.loads((tmp_path / "small_digits.json").read_text())["sha256"] == card.sha256

    path, of_run = tmp_path / "small_digits.safetensors", load_checkpoint(run)
    stored = load_checkpoint(path)
    assert not stored.ema and not stored.optimizer and "history" not in stored.progress
    for name, array in of_run.ema.items():
        assert stored.model[name].dtype == np.float16
        assert np.array_equal(stored.model[name], array.astype(np.float16))
    model, _ = model_from_checkpoint(path)
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype(np.float32)}

    capsys.readouterr()
    assert main(["eval", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert card.figures == {key: found[key] for key in ("split", "images", "accuracy", "loss")}
    assert main(["eval", str(run), "--json"]) == 0
    before = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert before["loss"] != found["loss"] and card.in_float32["loss"] == before["loss"]


@pytest.mark.parametrize(("name", "epochs", "said"), [
    ("unfinished", 2, "unfinished is not finished, it has 1 of 2 epochs"),
    ("resnet18", 1, "already the name of a model"),
    ("elsewhere", 1, "where the data digits are from, and their license"),
])
def test_what_is_refused(name, epochs, said, run, tmp_path, monkeypatch):
    folder = tmp_path / name
    shutil.copytree(run, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"epochs": epochs}))
    if name == "elsewhere":
        monkeypatch.setattr(make_zoo, "ABOUT", {})
    with pytest.raises(ScratchvitError, match=said):
        make_zoo.make(folder, tmp_path / "out", "abc1234", "a machine")
    assert not (tmp_path / "out").exists()


def test_numbers_that_float16_does_not_have():
    assert make_zoo.in_float16("count", np.array(3)).dtype == np.int64
    with pytest.raises(ScratchvitError, match=r"head\.bias has numbers up to 70000"):
        make_zoo.in_float16("head.bias", np.array([1, -7e4], np.float32))


def test_the_page_has_the_cards():
    page = Path(__file__).parents[2] / "docs" / "zoo.md"
    _, _, rest = page.read_text("utf-8").partition(make_zoo.BEGIN)
    made, _, _ = rest.partition(make_zoo.END)
    assert made == f"\n{make_zoo.table()}\n", "run python scripts/make_zoo.py"
