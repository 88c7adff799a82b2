"""The scripts that redraw the papers' figures, in their quick version."""

import csv
import os
import subprocess
import sys

import pytest
from PIL import Image

from scratchvit.errors import ScratchvitError
from scratchvit.training import TrainConfig
from tests.support.scripts import SCRIPTS, import_script


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds", "least", "smaller"),      # chance is 0.1
    [
        ("data_growth", {("model", "fraction"): 4}, 0.3, {"compute": 8e9}),
        ("augreg_grid", {("model", "regularisation", "augment"): 4}, 0.5, {"epoch_images": 3_000}),
        ("better_teacher", {("model",): 6}, 0.5, {}),
        ("distillation", {("model",): 5}, 0.5, {"epoch_images": 1_200}),
        ("long_training", {("epochs", "augment", "regularisation"): 8}, 0.5, {}),
        ("relations", {("model", "images"): 4}, 0.0, {}),       # where a ViT has learned nothing after 20 steps
        ("throughput_accuracy", {("model",): 9}, 0.5, {}),
    ],
)
def test_a_figure_is_drawn_and_goes_on_where_it_was(name, kinds, least, smaller, tmp_path, monkeypatch, capsys):
    """smaller: what is less than in the quick version."""
    figure = import_script(f"figures/{name}.py")
    if smaller:
        quick = figure.QUICK
        monkeypatch.setattr(figure, "QUICK", quick | smaller if isinstance(quick, dict) else quick.replace(**smaller))
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--quick", *folders])
    figure.main(figure.figure)
    assert "epoch 1" in capsys.readouterr().out

    out = tmp_path / "out" / "quick"
    with (out / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for columns, count in kinds.items():
        assert len(rows) == len({tuple(row[column] for column in columns) for row in rows}) == count
    best = max(float(row["test_accuracy"]) for row in rows)
    assert best > least
    with Image.open(out / f"{name}.png") as picture:
        assert min(picture.size) > 200

    (out / f"{name}.png").unlink()
    figure.main(figure.figure)
    assert "epoch 1" not in capsys.readouterr().out     # no run is made twice
    assert (out / f"{name}.png").exists()


def test_every_figure_is_drawn_by_its_script():
    """As test_what_attention_costs_is_drawn sees it of one of them."""
    texts = [path.read_text("utf-8") for path in (SCRIPTS / "figures").glob("*.py")]
    scripts = [text for text in texts if "\ndef figure() -> None:" in text]
    assert len(scripts) >= 9
    assert all(text.endswith('\n\nif __name__ == "__main__":\n    main(figure)\n') for text in scripts)


def test_throughput_is_measured_once(tmp_path):
    """What a model may see follows from it, so a figure that goes on must not measure anew."""
    figure = import_script("figures/throughput_accuracy.py")
    models = figure.configs("digits", None, (28, 28, 1), quick=False)
    assert models["Swin"].model_args["img_size"] == 28 and models["pixels of 14×14"].model_args["img_size"] == 14
    measured = iter([{"Swin": 1}, {"Swin": 2}])
    path = tmp_path / "runs" / "throughput.json"
    for _ in range(2):
        assert figure.written_down(path, models, lambda: next(measured)) == {"Swin": 1}
    with pytest.raises(ScratchvitError, match="measured with other models"):
        figure.written_down(path, {"Swin": models["Swin"]}, lambda: next(measured))


@pytest.mark.slow
def test_what_attention_costs_is_drawn(tmp_path):
    """Times are anything; memory is what attention's counts say, and without the matrix it is less."""
    command = [sys.executable, str(SCRIPTS / "figures" / "attention_cost.py"), "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    out = tmp_path / "quick"
    with (out / "attention_cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = {(row["model"], row["attention"], int(row["side"])): float(row["attention_MiB"]) for row in rows}
    assert len(rows) == len(kept) == 3 * 2 * 3 + 3
    for row in rows:
        if row["side"] == "128" or (row["model"] == "pixels" and row["side"] == "16"):
            counted = 4 * int(row["attention_kept"]) / 2**20
            found = kept[row["model"], row["attention"], int(row["side"])]
            assert counted <= found < 1.2 * counted + 0.02      # beside the arrays, Python's own objects
            if row["attention"] == "blocks":
                assert found < kept[row["model"], "matrix", int(row["side"])] / 2
                assert float(row["step_MiB"]) < max(float(r["step_MiB"]) for r in rows if r["model"] == row["model"])

    with (out / "attention_cost_exponents.csv").open(newline="") as file:
        exponents = {
            (row["model"], row["attention"]): float(row["fitted"])
            for row in csv.DictReader(file)
            if row["quantity"] == "attention_MiB"
        }
    assert exponents["pixels", "matrix"] > exponents["pixels", "blocks"] + 1
    with Image.open(out / "attention_cost.png") as picture:
        assert min(picture.size) > 200


def test_runs_with_other_settings_are_not_taken_for_these(tmp_path):
    experiment = import_script("figures/experiment.py")
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 1}
    run = experiment.Run(TrainConfig(model_args=sizes, epochs=1, epoch_images=64), {"model": "tiny", "seed": 0})
    rows = experiment.carry_out([run], tmp_path)
    assert experiment.carry_out([run], tmp_path) == rows
    with pytest.raises(ScratchvitError, match="other settings"):
        experiment.carry_out([experiment.Run(run.config.replace(lr=0.5), run.columns)], tmp_path)


def test_a_figure_is_carried_on_from_its_csv(tmp_path, monkeypatch):
    """On another machine, without the folders of the runs; a run with other settings is made again."""
    experiment = import_script("figures/experiment.py")
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 1}
    config = TrainConfig(model_args=sizes, epochs=1, epoch_images=64)
    runs = [experiment.Run(config.replace(seed=seed), {"model": "tiny", "seed": seed}) for seed in (0, 1)]
    path = tmp_path / "out.csv"
    rows = experiment.carry_on(runs, tmp_path / "here", 1, path)
    assert [row["seed"] for row in rows] == [0, 1] and rows[0]["test_loss"] != rows[1]["test_loss"]

    made = []
    carry_out = experiment._carry_out
    monkeypatch.setattr(experiment, "_carry_out", lambda run, folder: made.append(run) or carry_out(run, folder))
    moved = [experiment.Run(run.config.replace(data_dir="elsewhere"), run.columns) for run in runs]
    again = experiment.carry_on(moved, tmp_path / "there", 1, path)
    assert made == [] and [row["settings"] for row in again] == [row["settings"] for row in rows]
    assert [row["test_loss"] for row in again] == pytest.approx([row["test_loss"] for row in rows], abs=1e-4)

    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))        # stopped after the first run
    experiment.carry_on(runs, tmp_path / "there", 1, path)
    other = experiment.Run(config.replace(lr=0.5), runs[0].columns)
    experiment.carry_on([other, runs[1]], tmp_path / "elsewhere", 1, path)
    assert made == [runs[1], other]


@pytest.mark.slow
def test_options_of_detr_are_compared(tmp_path):
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    command = [sys.executable, str(SCRIPTS / "figures" / "detr_options.py"), "--quick", *folders]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    out = tmp_path / "out" / "quick"
    with (out / "detr_options_scenes.csv").open(newline="") as file:
        rows = {row["option"]: row for row in csv.DictReader(file)}
    assert len(rows) == 7 and all(0 <= float(row["AP50"]) <= 1 for row in rows.values())
    # Each option changes the model in its own way: what it has to learn with is another.
    focal, plain, denoising = (int(rows[name]["parameters"]) for name in ("focal loss", "DETR", "denoising"))
    assert focal < plain < denoising
    with Image.open(out / "detr_options_scenes.png") as picture:
        assert min(picture.size) > 200
    again = subprocess.run(command, check=True, capture_output=True, env=environment, text=True)
    assert "epoch 1" not in again.stdout        # no run is made twice
