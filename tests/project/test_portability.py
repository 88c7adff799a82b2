"""Text, names and annotations that must not depend on the machine: encodings, orders, quotes, a newer Python."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path, PurePath

import pytest

import scratchvit as sv
from scratchvit import signature
from scratchvit.cli import main
from scratchvit.cli._options import command_line
from scratchvit.data import ImageFolder
from scratchvit.data.folder import picture_files
from scratchvit.detection.data.source import load_detection
from scratchvit.weights.labels import read_labels
from tests.support.data_samples import write_picture
from tests.support.detection_samples import voc_object, voc_xml, write_voc, write_yolo
from tests.support.platforms import words_of

ROOT = Path(__file__).parents[2]
TINY = ["--embed-dim=16", "--depth=1", "--num-heads=2", "--patch-size=4", "--epochs=1", "--batch-size=256"]

# --- encodings ---


def opens_text(call):
    """Whether a call opens a file for text: open(…), path.open(…), path.read_text(…), path.write_text(…)."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)     # not scratchvit.files.read_text, which knows encodings
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if name != "open" or (isinstance(owner, ast.Name) and owner.id in ("os", "Image", "tarfile", "gzip")):
        return False
    modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
    return not any(isinstance(mode, str) and "b" in mode for mode in modes)


def says_its_encoding(call):
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return True
    return call.func.attr == "read_text" and bool(call.args) if isinstance(call.func, ast.Attribute) else False


def without_encoding(source):
    """The lines that open a text file in whatever encoding the machine has: UTF-8 here, a code page on Windows."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return sorted(call.lineno for call in calls if opens_text(call) and not says_its_encoding(call))


def test_every_text_file_has_an_encoding():
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("scratchvit", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for line in without_encoding(path.read_text("utf-8"))
    }
    assert not found


def test_files_of_others_are_read_in_any_encoding():
    """Only files that the package writes itself are read without scratchvit.files.read_text, which heeds a BOM."""
    own = {"course/prose.py", "reports/page.py", "training/folder.py", "weights/pretrained.py"}
    package = ROOT / "scratchvit"
    found = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if ".read_text(" in p.read_text("utf-8")}
    assert found == own


def test_what_has_none_is_seen():
    source = """
path.read_text()
path.read_text("utf-8")
path.write_text(text)
path.write_text(text, encoding="utf-8")
path.open()
path.open("w", newline="")
path.open("rb")
open(path, "w")
open(path, mode="rb")
open(path, encoding="utf-8")
Image.open(path)
"""
    assert without_encoding(source) == [2, 4, 6, 7, 9]


COMMANDS = [
    "train", "eval", "predict", "models", "cost", "inspect", "export", "show-augment", "detect-train", "detect-eval",
    "detect", "report", "complete", "probe", "doctor", "profile",
]


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS), ["cost", "vit_tiny_patch16_224"]], ids=str)
def test_what_is_printed_can_be_printed_everywhere(words, encoding, monkeypatch):
    """A pipe on Windows has a code page without →, ⁰ or τ."""
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    assert main(words if len(words) == 2 else [*words, "--help"]) == 0
    sys.stdout.flush()
    assert len(printed.getvalue()) > 100


def test_the_commands_above_are_all():
    with pytest.raises(SystemExit):
        sv.cli._command("nothing")
    for command in COMMANDS:
        assert callable(sv.cli._command(command))


@pytest.mark.slow
def test_without_any_encoding_a_run_writes_what_it_always_writes(tmp_path):
    """The C locale, in which text is ASCII unless a program says otherwise."""
    code = "import sys; from scratchvit.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["train", *TINY, "--out", str(tmp_path / "run")]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, *words], env=os.environ | plain, capture_output=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "● differs from the default." in page
    assert json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))["epochs"] == 1
    assert (tmp_path / "run" / "metrics.csv").read_bytes().count(b"\r") == 0


# --- the order of names ---


@pytest.fixture
def as_windows_sorts(monkeypatch):
    """Its paths compare without regard to case; names as text do not."""
    monkeypatch.setattr(PurePath, "__lt__", lambda one, other: str(one).casefold() < str(other).casefold())


def test_the_order_of_classes_and_pictures_is_the_same_everywhere(tmp_path, as_windows_sorts):
    for name in ("Zebra", "ant"):
        for picture in ("b.png", "C.png", "A.png"):
            write_picture(tmp_path / "train" / name / picture)
    assert sorted(tmp_path.joinpath("train").iterdir())[0].name == "ant"        # so that the fixture does something
    pictures = ImageFolder.scan(tmp_path / "train", 8)
    assert pictures.classes == ("Zebra", "ant") == tuple(read_labels(tmp_path, "torchvision"))
    assert [path.name for path in pictures.paths] == ["A.png", "C.png", "b.png"] * 2
    assert [path.name for path in picture_files(tmp_path / "train" / "ant")] == ["A.png", "C.png", "b.png"]


def test_the_order_of_annotated_pictures_is_the_same_everywhere(tmp_path, as_windows_sorts):
    for part in ("train", "val"):
        root = write_yolo(tmp_path / "yolo", part, B="0 .5 .5 .2 .2\n", a="0 .5 .5 .2 .2\n")
    assert [path.stem for path in load_detection(root).train.paths] == ["B", "a"]
    for name in ("other", "VOC"):
        for part in ("train", "val"):
            write_voc(tmp_path / "voc" / name, part, **{f"{name}{part}": voc_xml(voc_object())})
    assert [path.stem for path in load_detection(tmp_path / "voc").train.paths] == ["VOCtrain", "othertrain"]


# --- command lines ---


def test_a_command_line_is_quoted_as_the_systems_shells_read_it():
    words = ["scratchvit", "train", "--data", r"C:\my photos", "--resume", r"runs\a b"]
    assert command_line(words, windows=True) == r'scratchvit train --data "C:\my photos" --resume "runs\a b"'
    assert command_line(words, windows=False) == r"scratchvit train --data 'C:\my photos' --resume 'runs\a b'"
    assert words_of(command_line(words)) == words


# --- annotations ---

OP = """
from collections.abc import Sequence
from scratchvit.backend import Array
def mixed(x: Array, factor: float, bias: Array | None, others: Sequence[Array], *rest: Array): ...
"""


def test_an_op_may_be_written_with_and_without_postponed_annotations():
    """Python 3.14 evaluates annotations when they are asked for; a __future__ import keeps their text."""
    found = []
    for source in (OP, "from __future__ import annotations\n" + OP):
        names = {}
        exec(source, names)  # noqa: S102
        found.append(signature.differentiable_parameters(names["mixed"]))
    assert found[0] == found[1] == [
        (0, "x", False, False, False), (2, "bias", False, False, False), (3, "others", True, False, False),
        (4, "rest", False, True, False),
    ]
