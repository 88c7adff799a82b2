"""Training that begins with somebody's weights: `init` and `new_head`."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.training import load_checkpoint, train
from scratchvit.training.classification import prepare
from tests.support.runs import CONFIG, assert_same_run

SIZES = {**CONFIG.model_args, "img_size": 8, "in_chans": 1}


@pytest.fixture
def weights(tmp_path):
    """Weights of a model of five classes, as any library would save them."""
    model = sv.create_model(CONFIG.model, seed=9, num_classes=5, **SIZES)
    safetensors.numpy.save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def test_it_begins_with_the_weights_and_a_new_head(weights, tmp_path):
    config = CONFIG.replace(init=str(weights), new_head=True, ema_decay=0.9)
    loop = prepare(config, tmp_path / "run")
    theirs, fresh = safetensors.numpy.load_file(weights), sv.create_model(CONFIG.model, num_classes=10, **SIZES)
    state = loop.model.state_dict()
    assert state["head.weight"].shape == (10, 16)
    for name, expected in (theirs | {k: v for k, v in fresh.state_dict().items() if k.startswith("head.")}).items():
        assert np.array_equal(state[name], expected), name
    assert np.array_equal(loop.ema.state_dict()["cls_token"], theirs["cls_token"])     # the average begins there too


def test_another_set_of_classes_needs_a_new_head(weights, tmp_path):
    with pytest.raises(sv.ScratchvitError, match="--new-head"):
        train(CONFIG.replace(init=str(weights)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_new_head_without_a_file_is_refused(tmp_path):
    with pytest.raises(sv.ScratchvitError, match="name the file with init"):
        train(CONFIG.replace(new_head=True), tmp_path / "run")


def test_pixels_are_normalised_as_the_weights_expect(weights, tmp_path):
    loop = prepare(CONFIG.replace(init=str(weights), new_head=True), tmp_path / "theirs")
    assert loop.task.data.mean == loop.task.data.std == (0.5,)          # timm's convention for this model
    train(CONFIG.replace(epochs=1), tmp_path / "ours")
    ours = tmp_path / "ours" / "best.safetensors"
    loop = prepare(CONFIG.replace(init=str(ours)), tmp_path / "more")
    assert list(loop.task.data.mean) == load_checkpoint(ours).data["mean"] != [0.5]
    assert np.array_equal(loop.model.state_dict()["cls_token"], load_checkpoint(ours).model["cls_token"])


def test_it_begins_with_the_best_of_a_runs_folder(tmp_path):
    train(CONFIG.replace(epochs=1), tmp_path / "ours")
    loop = prepare(CONFIG.replace(init=str(tmp_path / "ours")), tmp_path / "more")
    best = load_checkpoint(tmp_path / "ours" / "best.safetensors")
    assert all(np.array_equal(value, best.model[key]) for key, value in loop.model.state_dict().items())


def test_a_run_goes_on_without_the_file_that_it_began_with(weights, tmp_path):
    config = CONFIG.replace(init=str(weights), new_head=True, epochs=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config.replace(epochs=4, schedule="constant"), whole)
    train(config.replace(schedule="constant"), parts)
    weights.unlink()
    train(config.replace(epochs=4, schedule="constant"), parts, resume=True)
    assert_same_run(parts, whole.rename(tmp_path / "again"))


def test_the_command_says_what_came_of_the_file(weights, tmp_path, capsys):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in CONFIG.model_args.items()]
    chosen = dataclasses.asdict(CONFIG)
    options += [f"--{name.replace('_', '-')}={chosen[name]}" for name in ("epochs", "batch_size", "model")]
    out = str(tmp_path / "run")
    assert main(["train", *options, "--img-size=8", f"--init={weights}", "--new-head", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert f"weights   initialised from {weights}" in said
    assert "not loaded, as initialised: head.weight, head.bias" in said
