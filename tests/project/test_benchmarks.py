"""docs/benchmarks.md: its tables are what the records say, and the commands that measure write records."""

import argparse
import json
import os
import re
import subprocess
from datetime import date
from pathlib import Path

import pytest

from scratchvit.detection.config import DetectConfig
from scratchvit.recipes import load_recipe
from scratchvit.training import TrainConfig
from scripts import records
from tests.support.detection_samples import coco, write_coco
from tests.support.scripts import import_script

ROOT = Path(__file__).resolve().parents[2]
EVERY = [record for kind in records.read().values() for record in kind]
GROUPS = records.groups(records.read()["runs"])
by_group = pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0]["recipe"])


def test_the_tables_are_what_the_records_say():
    page = records.PAGE.read_text("utf-8")
    assert records.written(page, records.read()) == page, "run python scripts/records.py"


def test_every_record_says_where_it_is_from():
    assert EVERY
    for record in EVERY:
        assert record["command"] and record["commit"] and date.fromisoformat(record["date"])
        assert set(record["machine"]) == {"blas", "processor", "cores", "python", "numpy", "gflops"}


@by_group
def test_the_recipe_exists_and_is_that_of_the_command(group):
    command, recipe = group[0]["command"], group[0]["recipe"]
    kind = DetectConfig if " detect-train " in command else TrainConfig
    load_recipe(recipe, kind)
    assert f"scratchvit {kind.command} --recipe {recipe}" in command
    seeds = [run["seed"] for run in group]
    assert seeds == sorted(set(seeds))


@by_group
def test_the_docstring_of_the_recipe_states_the_result(group):
    path = ROOT / "scratchvit" / "recipes" / f"{group[0]['recipe']}.py"
    stated = re.search(r"^result .*?\n\n", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)[0]
    figures = re.findall(r"\d+\.\d+", records.result(group))
    assert figures and [figure for figure in figures if figure not in stated] == []


@pytest.mark.parametrize("recipe", ["vit_digits", "detect_scenes"])
def test_the_readme_states_the_result_of_a_default(recipe):
    (group,) = (group for group in GROUPS if group[0]["recipe"] == recipe)
    figures = re.findall(r"\d+\.\d+", records.result(group))
    if recipe == "detect_scenes":
        figures = figures[:2]       # AP and AP50
    readme = (ROOT / "README.md").read_text("utf-8")
    assert figures and [figure for figure in figures if figure not in readme] == []


# --- records --------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Copies of the records and the page, to write to; and nothing that takes seconds."""
    for name in ("RECORDS", "PAGE"):
        copy = tmp_path / getattr(records, name).name
        copy.write_bytes(getattr(records, name).read_bytes())
        monkeypatch.setattr(records, name, copy)
    monkeypatch.setattr(records, "SIDE", 64)
    monkeypatch.setattr(records, "commit", lambda: "abc1234")
    records.machine.cache_clear()
    yield tmp_path
    records.machine.cache_clear()


def table(name):
    """The rows of a table of the page."""
    page = records.PAGE.read_text("utf-8")
    _, _, _, *rows = page.split(f"<!-- end of {name} -->")[0].split(f"<!-- {name}: ")[1].splitlines()
    return rows


def run(seed, accuracy, **more):
    return {
        "recipe": "vit_mnist", "seed": seed, "cpu_seconds": 60.0 + seed, "figures": {"accuracy": accuracy},
        **records.origin("scratchvit train --recipe vit_mnist"), **more,
    }


def test_measuring_again_replaces_the_record_and_other_seeds_share_its_row(places):
    before = table("classification")
    for one in (run(1, 0.95), run(0, 0.9), run(1, 0.97)):
        records.add("runs", one)
    *rows, row = table("classification")
    assert rows == before
    cells = row.strip("| ").split(" | ")
    assert cells[0].startswith("[vit_mnist](../scratchvit/recipes/vit_mnist.py): The settings of `vit_fashion` on ")
    assert cells[1:4] == ["90.0 and 97.0 %", "0, 1", "60 s to 61 s (CPU)"]
    assert cells[4] == f"{records.processor()}; {records.day(date.today().isoformat())}; abc1234"


def test_a_page_without_the_marks_is_refused_and_nothing_is_written(places):
    page = records.PAGE.read_text("utf-8").replace("<!-- end of loader -->\n", "")
    records.PAGE.write_text(page, encoding="utf-8")
    before = records.RECORDS.read_bytes()
    with pytest.raises(ValueError, match="end of loader"):
        records.add("runs", run(0, 0.9))
    assert records.RECORDS.read_bytes() == before and records.PAGE.read_text("utf-8") == page


def test_durations():
    found = [records.duration(seconds) for seconds in (58.4, 616, 3960, 7800)]
    assert found == ["58 s", "10 min", "66 min", "2 h 10 min"]


def test_a_command_is_recorded_without_somebodys_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["/somewhere/bench_loader.py", "--data", str(tmp_path), "--batch", "8", "--record"])
    assert records.command_line() == "OMP_NUM_THREADS=1 python scripts/bench_loader.py --data FOLDER --batch 8"
    assert records.without_places(["--data", "digits", "--data-dir", str(tmp_path)])[1::2] == ["digits", "FOLDER"]


def test_commit_says_if_the_code_was_changed(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.commit() == "no commit"
    (tmp_path / "scripts").mkdir()
    for path in ("scripts/a.py", "page.md"):
        (tmp_path / path).write_text("1", encoding="utf-8")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "x")
    (tmp_path / "page.md").write_text("2", encoding="utf-8")
    clean = records.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "scripts" / "a.py").write_text("2", encoding="utf-8")
    assert records.commit() == f"{clean}+"


# --- the commands that measure --------------------------------------------------------------------------------------

DETR = [
    "--layers=1,1,1,1", "--channels=8,8,8,8", "--hidden-dim=16", "--nheads=2", "--enc-layers=1", "--dec-layers=2",
    "--dim-feedforward=16", "--num-queries=6", "--epochs=40", "--batch-size=4", "--short-side=0", "--no-multi-scale",
    "--no-flip", "--lr=1e-2", "--ema-decay=0",
]
needs_wait4 = pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system has no wait4, which tells CPU time")
SMALL = ["--epochs", "1", "--embed-dim", "16", "--depth", "1", "--num-heads", "2", "--batch-size", "256"]


@pytest.mark.slow
@needs_wait4
def test_bench_accuracy_trains_reads_the_folder_and_does_not_train_again(places, monkeypatch, capsys):
    bench = import_script("bench_accuracy.py")
    asked = ["--recipes", "vit_digits", "--seeds", "3", "--runs", str(places)]
    monkeypatch.setattr("sys.argv", ["", *asked, "--", *SMALL])
    bench.main()
    run = records.read()["runs"][-1]
    assert run["command"] == f"OMP_NUM_THREADS=1 scratchvit train --recipe vit_digits {' '.join(SMALL)}"
    assert run["recipe"] == "vit_digits" and run["seed"] == 3 and 0 < run["cpu_seconds"] < 100
    printed = re.search(r"test accuracy ([\d.]+)%", (places / "abc1234" / "vit_digits-3.log").read_text("utf-8"))[1]
    assert f"{100 * run['figures']['accuracy']:.2f}" == printed
    assert f"| {records.result([run])} | 3 |" in table("classification")[-1]

    monkeypatch.setattr(bench, "train", lambda *_: pytest.fail("it is trained again"))
    bench.main()
    with pytest.raises(pytest.fail.Exception, match="again"):       # another command, in the same folder
        monkeypatch.setattr("sys.argv", [*bench.sys.argv, "--lr", "1e-2"])
        bench.main()
    assert records.read()["runs"][-1] == run and "vit_digits, seed 3" in capsys.readouterr().out


@needs_wait4
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "options", "name", "printed", "section"),
    [
        ("igpt_digits", ["--epochs", "1", "--embed-dim", "16", "--depth", "1"], "bits_per_pixel",
         r"([\d.]+) bits per pixel", "generation"),
        ("detect_folder", ["--data", "animals", *DETR], "AP", r"^AP +([\d.]+)", "detection"),
    ],
)
def test_the_figures_are_those_that_the_command_printed(recipe, options, name, printed, section, places, monkeypatch):
    bench = import_script("bench_accuracy.py")
    monkeypatch.chdir(places)
    for part in ("train", "val", "test"):
        write_coco(places / "animals", part, coco(4))
    monkeypatch.setattr("sys.argv", ["", "--recipes", recipe, "--runs", str(places), "--", *options])
    bench.main()
    log = (places / "abc1234" / f"{recipe}-0.log").read_text("utf-8")
    figure = re.search(printed, log, re.MULTILINE)[1]
    assert f"{records.read()['runs'][-1]['figures'][name]:.3f}" == figure and float(figure) > 0
    assert figure in table(section)[-1]


@needs_wait4
def test_bench_accuracy_says_what_is_wrong_before_it_trains(places, monkeypatch):
    bench = import_script("bench_accuracy.py")
    monkeypatch.setattr(bench, "train", lambda *_: pytest.fail("it is trained"))
    monkeypatch.setattr("sys.argv", ["", "--recipes", "vit_digits", "swin_digit"])
    with pytest.raises(SystemExit, match="no recipe 'swin_digit'; did you mean 'swin_digits'"):
        bench.main()
    monkeypatch.setattr("sys.argv", ["", "--from", str(places)])
    with pytest.raises(SystemExit, match=r"has no process\.json"):
        bench.main()


@needs_wait4
def test_a_run_that_fails_ends_the_script_with_its_last_words(places, monkeypatch):
    bench = import_script("bench_accuracy.py")
    with pytest.raises(bench.ScratchvitError, match=r"--lr -1 failed; (?s:.*)lr must be at least 0"):
        bench.train(["scratchvit", "train", "--recipe", "vit_digits", "--lr", "-1"], 0, places / "run")


def test_bench_records_a_step(places, monkeypatch):
    bench = import_script("bench.py")
    version = bench.importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu" if name == "torch" else version(name))
    monkeypatch.setattr("sys.argv", ["bench.py", "--model", "resnet18", "--record"])
    args = argparse.Namespace(model="resnet18", batch=8, steps=3, record=True, json=places / "record.json")
    training, inference = bench.Times([2.0, 3.0, 4.0], [1.0, 2.0, 2.0]), bench.Times([1.0, 1.0, 2.0], [2.0, 2.0, 2.0])
    found = bench.Measured((3, 32, 32), training, inference, 0.5)
    bench.report(args, found, {"ours": 3 << 29, "torch": 3 << 29})
    row = table("steps")[-1]
    assert json.loads(args.json.read_text("utf-8")) == records.read()["steps"][-1]
    assert "| `resnet18`, 3×32×32, batch 8 | **2.00** (1.50 to 2.00) | 3 | 3 / 2 / 0.5 s | 1.5 / 1.5 GiB |" in row
    assert "abc1234; PyTorch 2.13.0 | `" in row and row.endswith("python scripts/bench.py --model resnet18` |")


def test_bench_table_records_its_rows_and_draws_the_models(places, monkeypatch):
    """A row of a model comes from bench.py; here its record is written by hand, that of the chain is measured."""
    bench = import_script("bench_table.py")
    (name, *_), origin = bench.rows(), records.origin("python scripts/bench.py --batch 32 --steps 6")
    spread = {"median": 0.9, "least": 0.8, "most": 1.1}
    record = {
        "ratio": spread, "inference_ratio": {**spread, "median": 0.85}, "seconds": 2.0, "products_seconds": 1.0,
        "gib": 1.0, "torch_gib": 2.0, "targets": {"ratio": 0.95, "inference_ratio": None}, "torch_version": "2.13.0",
    }
    rows = {name: lambda: {**record, **origin}, "import scratchvit": bench.of_import}
    monkeypatch.setattr(bench, "rows", lambda: rows)
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(bench, "PICTURE", places / "speed.png")
    bench.main(None, record=True)
    written = [line for line in table("against") if "abc1234" in line]
    first, second = (next(line for line in written if line.startswith(f"| {row} |")) for row in rows)
    assert f"| {name} | **0.90** (0.80 to 1.10), wanted 0.95 | **0.85** (0.80 to 1.10) | 2.00 | 0.50 | " in first
    assert re.match(r"\| import scratchvit \| \d\.\d\d s, wanted 0\.25 s \|  \|  \|  \| ", second)
    assert bench.PICTURE.read_bytes().startswith(b"\x89PNG")


def test_bench_loader_records_a_row_for_each_number_of_workers(places, monkeypatch, capsys):
    bench = import_script("bench_loader.py")
    options = ["--data", "digits", "--batch", "8", "--batches", "2", "--repeats", "1", "--workers", "0"]
    monkeypatch.setattr("sys.argv", ["bench_loader.py", *options, "--record"])
    bench.main()
    record = records.read()["loader"][-1]
    assert record["command"].endswith(f"python scripts/bench_loader.py {' '.join(options)}")
    (row,) = record["rows"]
    assert f"{row['alone']['median']:,.0f} (" in capsys.readouterr().out and set(row["training"]) == set(bench.MODELS)
    cells = table("loader")[-1].strip("| ").split(" | ")
    assert cells[:2] == ["digits, 8×8×1", "0"] and cells[2].startswith(f"{row['alone']['median']:,.0f} (")
    assert json.loads(records.RECORDS.read_text("utf-8")) == records.read()
