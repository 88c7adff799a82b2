"""The scripts that redraw the papers' figures, in their quick version."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts" / "figures"


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("data_growth", {("model", "fraction"): 4}),
        ("augreg_grid", {("model", "regularisation", "augment"): 4}),
        ("distillation", {("model",): 5}),
    ],
)
def test_a_figure_is_drawn_and_goes_on_where_it_was(name, kinds, tmp_path):
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--quick", *folders]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)

    out = tmp_path / "out" / "quick"
    with (out / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for columns, count in kinds.items():
        assert len(rows) == len({tuple(row[column] for column in columns) for row in rows}) == count
    best = max(float(row["test_accuracy"]) for row in rows)
    assert best > 0.5       # chance is 0.1
    with Image.open(out / f"{name}.png") as picture:
        assert min(picture.size) > 200

    (out / f"{name}.png").unlink()
    again = subprocess.run(command, check=True, capture_output=True, env=environment, text=True)
    assert "epoch 1" not in again.stdout        # no run is made twice
    assert (out / f"{name}.png").exists()


def test_runs_with_other_settings_are_not_taken_for_these(tmp_path):
    sys.path.insert(0, str(SCRIPTS))
    try:
        import experiment

        from scratchvit.errors import ScratchvitError
        from scratchvit.training import TrainConfig
    finally:
        sys.path.remove(str(SCRIPTS))
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 1}
    run = experiment.Run(TrainConfig(model_args=sizes, epochs=1, epoch_images=64), {"model": "tiny", "seed": 0})
    rows = experiment.carry_out([run], tmp_path)
    assert experiment.carry_out([run], tmp_path) == rows
    with pytest.raises(ScratchvitError, match="other settings"):
        experiment.carry_out([experiment.Run(run.config.replace(lr=0.5), run.columns)], tmp_path)
