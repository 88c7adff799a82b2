"""The command itself: how it is called, what it prints for programs, and errors that nobody foresaw."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import scratchvit as sv
from scratchvit.cli import COMMANDS, HELP, main, models
from scratchvit.cli._bugs import DEBUG
from scratchvit.cli._text import labelled_lines
from scratchvit.files import counted
from scratchvit.models import list_models, model_config
from tests.support.fake_cupy import cupy_error

ONE_OF_EACH = {type(model_config(name)): name for name in list_models()}.values()      # a model of each family
TINY = ["--embed-dim=16", "--depth=1", "--num-heads=2", "--patch-size=4", "--epochs=1", "--batch-size=256"]


def run(*words, **environment):
    """A process of `python -m scratchvit`."""
    return subprocess.run(
        [sys.executable, "-m", "scratchvit", *map(str, words)], capture_output=True, text=True, encoding="utf-8",
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["version"]])
def test_the_version_is_one_line(capsys, words):
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"scratchvit {sv.__version__} (Python ")


def test_help_of_a_command_is_its_help_option(capsys):
    assert main(["help"]) == 0 and main(["--help"]) == 0
    whole = capsys.readouterr().out
    assert whole[: len(whole) // 2] == whole[len(whole) // 2 :]
    assert all(f"scratchvit {name}" in whole for name in COMMANDS)
    assert main(["help", "eval"]) == 0 and main(["eval", "--help"]) == 0
    of_eval = capsys.readouterr().out
    assert of_eval[: len(of_eval) // 2] == of_eval[len(of_eval) // 2 :]
    assert main(["help", "evil"]) == 2
    assert "did you mean 'eval'?" in capsys.readouterr().err


def test_python_m_is_the_command():
    done = run("--version")
    assert done.returncode == 0 and done.stdout.startswith("scratchvit ")
    assert run("evl").returncode == 2


def test_lists_in_an_error_are_lines_and_line_breaks_in_names_are_escaped(tmp_path, capsys):
    weights = sv.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=3).state_dict()
    save_file({**weights, "a\nb": np.ones(1, np.float32)}, tmp_path / "other.safetensors")
    assert main(["train", "--init", str(tmp_path / "other.safetensors"), "--img-size=32", "--patch-size=16",
                 *TINY[:3], "--epochs=1", "--out", str(tmp_path / "run")]) == 1
    first, *lists = capsys.readouterr().err.splitlines()
    assert first.startswith("scratchvit: ") and "do not fit" in first
    assert [line.split(":")[0] for line in lists] == ["  missing", "  unexpected", "  mis-shaped"]
    assert "a\\nb" in lists[1]


@pytest.mark.parametrize(("width", "most"), [("60", 60), ("80", 80), ("400", 100)])
def test_help_fits_the_terminal(capsys, monkeypatch, width, most):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["eval", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert most - 15 < max(map(len, lines)) <= most


@pytest.mark.parametrize(
    "words", [[], *([name] for name in COMMANDS), *(["cost", name] for name in ONE_OF_EACH)], ids=" ".join
)
def test_no_line_of_a_help_is_longer_than_80(capsys, monkeypatch, words):
    """Prose is filled; examples, lists and the options of every family of models are what could be longer."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3 and [line for line in lines if len(line) > 80] == []


def too_long(text):
    """The lines of more than 80 columns, but for those of a command, which can so be copied, or of a long path."""
    assert text.strip()
    return [
        line for line in text.splitlines()
        if len(line) > 80 and not line.startswith("  scratchvit ") and max(map(len, line.split())) <= 60
    ]


@pytest.mark.slow
def test_what_a_run_and_the_commands_about_it_print_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = "runs/with-a-name-as-long-as-that-of-a-model-and-its-data"
    for words in (
        ["train", *TINY, "--out", folder], ["train", "--resume", folder], ["eval", folder],
        ["predict", folder, f"{folder}/sample.png"], ["export", folder, "--out", "timm"], ["doctor"],
    ):
        assert main(words) == 0
        assert too_long(capsys.readouterr().out) == [], words


def test_what_is_printed_about_detections_fits_80_columns(capsys, monkeypatch, trained, animals):
    monkeypatch.setenv("COLUMNS", "80")
    picture = next(animals.rglob("*.png"))
    for words in (["detect-eval", trained.name], ["detect", trained.name, str(picture), "--threshold", "0"]):
        assert main(words) == 0
        assert too_long(capsys.readouterr().out) == [], words


@pytest.mark.parametrize("width", [60, 80])
def test_prose_is_filled_and_words_stay_whole(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    path = "/a/path-of-many-words/" * 2
    lines = labelled_lines([("model", f"{'word ' * 40}from {path}"), ("", None), ("data", "digits")]).splitlines()
    assert lines[0].startswith("model     word word") and lines[-1] == "data      digits"
    assert lines[-2].startswith(" " * 10) and lines[-2].endswith(f" {path}")
    assert all(width - 10 < len(line) <= width for line in lines[:-3])
    assert " ".join(" ".join(lines).split()) == f"model {'word ' * 40}from {path} data digits"
    line = f"digits from {path}{path}"      # which no line can hold
    assert labelled_lines([("data", line)]) == f"data      {line}"


def test_a_number_and_its_noun():
    assert [counted(n, "picture") for n in (0, 1, 2000)] == ["0 pictures", "1 picture", "2,000 pictures"]
    assert [counted(n, "box", "boxes") for n in (1, 2)] == ["1 box", "2 boxes"]


@pytest.mark.parametrize(("typed", "meant"), [
    ("--run-dir", "--out"), ("--learning-rate", "--lr"), ("--weights", "--init"), ("--imgsz", "--img-size"),
    ("--num-workers", "--workers"), ("--epoch", "--epochs"), ("--run_dir", "--out"), ("--batch_size", "--batch-size"),
])
def test_names_that_other_programs_use_are_suggested(capsys, typed, meant):
    assert main(["train", typed, "3"]) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["--imgsz", "--img-size", "--img_size", "--image-size"])
def test_the_size_of_a_detector_s_pictures_is_suggested(capsys, typed):
    assert main(["detect-train", typed, "640"]) == 2
    assert "did you mean --short-side?" in capsys.readouterr().err


# --- errors that nobody foresaw ---


def test_a_bug_is_one_sentence_and_its_traceback_a_file(capsys, monkeypatch, tmp_path):
    def broken(*_):
        raise KeyError("no such thing\nat all")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(models, "list_models", broken)
    assert main(["models", "vit*"]) == 70
    error = capsys.readouterr().err
    assert error.startswith("scratchvit: this is a bug in scratchvit (KeyError:") and error.count("\n") == 1
    (path,) = tmp_path.glob("*/traceback.txt")
    assert str(path) in error
    text = path.read_text("utf-8")
    assert "scratchvit models 'vit*'" in text and "in broken" in text and sv.__version__ in text


def test_a_bug_in_a_run_leaves_its_traceback_in_the_run(capsys, monkeypatch, tmp_path):
    from scratchvit.training import TrainingLoop

    def broken(self):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(TrainingLoop, "_validate", broken)
    folder = tmp_path / "run"
    assert main(["train", *TINY, "--out", str(folder)]) == 70
    assert str(folder / "traceback.txt") in capsys.readouterr().err
    assert "ZeroDivisionError" in (folder / "traceback.txt").read_text("utf-8")


def test_with_the_variable_for_debugging_python_prints_the_traceback(monkeypatch):
    def broken(*_):
        raise KeyError("inside")

    monkeypatch.setenv(DEBUG, "1")
    monkeypatch.setattr(models, "list_models", broken)
    with pytest.raises(KeyError, match="inside"):
        main(["models"])


@pytest.mark.parametrize(("error", "sentence"), [
    (MemoryError("Unable to allocate 3 TiB"), "not enough memory (Unable to allocate 3 TiB): use a smaller batch"),
    (PermissionError(13, "Permission denied", "secret.csv"), "secret.csv: Permission denied"),
])
def test_what_a_machine_refuses_is_no_bug(capsys, monkeypatch, error, sentence):
    def refuses(*_):
        raise error

    monkeypatch.setattr(models, "list_models", refuses)
    assert main(["models"]) == 1
    printed = capsys.readouterr().err
    assert sentence in printed and "bug" not in printed


@pytest.mark.parametrize(("name", "text", "says", "keeps_the_traceback"), [
    ("OutOfMemoryError", "Out of memory allocating 8,388,608 bytes (allocated so far: 0 bytes).",
     "the memory of the GPU is full, 8.0 MiB more are needed", False),
    ("CUDARuntimeError", "cudaErrorIllegalAddress: an illegal memory access was encountered",
     "run it again with CUDA_LAUNCH_BLOCKING=1", True),
    ("CompileException", "error: identifier is undefined", "a kernel could not be compiled for the GPU", True),
    ("DynamicLibNotFoundError", 'Failure finding "libnvrtc.so.12": No such file', "not find libnvrtc.so.12", True),
])
def test_an_error_of_the_gpu_is_no_bug(capsys, monkeypatch, tmp_path, name, text, says, keeps_the_traceback):
    def refuses(*_):
        raise cupy_error(name, text)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(models, "list_models", refuses)
    assert main(["models"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("scratchvit: ") and printed.count("\n") == 1
    assert says in printed and "bug" not in printed
    found = list(tmp_path.glob("*/traceback.txt"))
    assert len(found) == keeps_the_traceback and all(str(path) in printed for path in found)
    assert all("in refuses" in path.read_text("utf-8") for path in found)
    monkeypatch.setenv(DEBUG, "1")
    with pytest.raises(Exception, match=text[:12]):
        main(["models"])


def test_a_wrong_call_of_an_op_is_its_sentence_and_keeps_the_traceback(capsys, monkeypatch, tmp_path):
    """As of batch norm given one image of one pixel: the data can be the reason, or the package."""
    def refuses(*_):
        return sv.ops.linear(np.ones((2, 3), np.float32), np.ones((4, 5), np.float32))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(models, "list_models", refuses)
    assert main(["models"]) == 1
    printed = capsys.readouterr().err
    (path,) = tmp_path.glob("*/traceback.txt")
    assert printed.startswith("scratchvit: linear: ") and str(path) in printed and "bug" not in printed


def test_a_batch_of_one_under_batch_norm_is_one_sentence(capsys, tmp_path):
    words = ["--model", "resnet18", "--img-size", "32", "--batch-size", "1", "--train-fraction", "0.02"]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "batch_norm: " in error and "use more than one image" in error


# --- programs that read the output ---


def test_quiet_and_json_leave_one_line(tmp_path):
    folder = tmp_path / "run"
    done = run("train", *TINY, "--out", folder, "--quiet", "--json")
    assert done.returncode == 0 and not done.stderr, done.stderr
    trained = json.loads(done.stdout)
    assert trained["run"] == str(folder) and trained["epochs"] == trained["best_epoch"] == 1
    assert trained["checkpoint"] == str(folder / "best.safetensors")

    done = run("eval", folder, "--json")
    *text, last = done.stdout.splitlines()
    judged = json.loads(last)
    assert judged["accuracy"] == pytest.approx(trained["test_accuracy"]) and judged["images"] == 360
    assert sum(one["images"] for one in judged["classes"].values()) == 360
    assert any("accuracy" in line for line in text)

    done = run("eval", folder, "--quiet")
    assert done.returncode == 0 and not done.stdout + done.stderr
    done = run("eval", tmp_path / "nowhere", "--quiet", "--json")
    assert done.returncode == 1 and not done.stdout and done.stderr.startswith("scratchvit: ")


def test_numbers_that_are_not_finite_are_null(capsys):
    from scratchvit.cli._output import heed, note_result, output

    with output():
        heed(type("Given", (), {"json": True, "quiet": False})())
        note_result(loss=float("nan"), nested={"a": [1.0, float("inf")]}, path=os, text="→")
    assert json.loads(capsys.readouterr().out) == {
        "loss": None, "nested": {"a": [1.0, None]}, "path": str(os), "text": "→",
    }


def test_no_bar_and_no_carriage_return_in_a_pipe(tmp_path):
    done = run("train", *TINY, "--out", tmp_path / "run")
    assert done.returncode == 0 and "\r" not in done.stdout + done.stderr and not done.stderr


# --- completion in the shell ---


@pytest.mark.parametrize(("line", "expected", "unexpected"), [
    ("scratchvit de", {"detect", "detect-train", "detect-eval"}, {"train"}),
    ("scratchvit train --mod", {"--model"}, {"--epochs"}),
    ("scratchvit train --model swin_ti", {"swin_tiny_patch4_window7_224"}, {"vit_tiny_patch16_224"}),
    ("scratchvit train --optimizer ", {"adamw", "sgd"}, set()),
    ("scratchvit eval runs/", {"runs/digits-1"}, set()),
    ("scratchvit nosuch --", set(), {"--model"}),
])
def test_words_are_completed(tmp_path, line, expected, unexpected):
    pytest.importorskip("argcomplete")
    (tmp_path / "runs/digits-1").mkdir(parents=True)
    (tmp_path / "runs/digits-1/config.json").write_text("{}", "utf-8")
    answer = tmp_path / "answer"
    subprocess.run(
        [sys.executable, "-m", "scratchvit"], cwd=tmp_path, timeout=60, env={
            **os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        },
    )
    found = {word.strip() for word in (answer.read_text("utf-8") if answer.exists() else "").split("\n")}
    assert expected <= found and not found & unexpected, found


def test_the_documented_line_of_completion_exists():
    line = 'pip install argcomplete && eval "$(register-python-argcomplete scratchvit)"'
    assert f"\n  {line}\n" in HELP and line in (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    pytest.importorskip("argcomplete")
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assert shutil.which("register-python-argcomplete", path=folders)
