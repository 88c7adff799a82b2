"""`scratchvit play`: what it opens, and how it ends."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import webbrowser

import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.play import server
from tests.support.processes import SECONDS


@pytest.fixture
def routes(monkeypatch):
    """What `play` would serve, in a list, and the addresses that it opens in the browser."""
    served, opened = [], []

    def serve(routes, listening, ready):
        served.append(routes)
        ready()

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(webbrowser, "open_new_tab", opened.append)
    return served, opened


def about(routes):
    return routes["GET model"](server.Question())


def test_without_a_run_the_trained_vit_is_shown_in_the_browser(routes, capsys):
    served, opened = routes
    assert main(["play"]) == 0
    model = about(served[0])
    assert model["kind"] == "classifier" and model["name"] == "vit_digits"
    [address] = opened
    assert address.startswith("http://127.0.0.1:") and capsys.readouterr().out.startswith(f"{address}\n")
    assert main(["play", "--no-browser"]) == 0 and len(opened) == 1


def test_names_weights_and_detectors_are_opened(routes, tmp_path):
    served, _ = routes
    assert main(["play", "detr_scenes", "--no-browser"]) == 0
    assert about(served[-1])["kind"] == "detector"
    vit = sv.create_model("vit_tiny_patch16_224", num_classes=2, img_size=16, patch_size=8, depth=1, embed_dim=24)
    safetensors.numpy.save_file(vit.state_dict(), tmp_path / "own.safetensors")
    sizes = ["--model", "vit_tiny_patch16_224", "--depth", "1", "--embed-dim", "24"]
    assert main(["play", str(tmp_path / "own.safetensors"), *sizes, "--no-browser"]) == 0
    assert about(served[-1])["classes"] == ("class 0", "class 1") and about(served[-1])["grid"] == [2, 2]


@pytest.mark.parametrize(("words", "status", "says"), [
    (["nowhere"], 1, "nowhere"),
    (["detr_scenes", "--img-size", "64"], 1, "leave out --img-size"),
    (["--port", "70000"], 2, "ports go to 65,535"),
    (["--port", "0"], 2, "must be at least 1"),
])
def test_what_cannot_be_opened_is_a_sentence(words, status, says, routes, capsys):
    assert main(["play", *words]) == status
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_port_in_use_is_a_sentence(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["play", "--port", str(port), "--no-browser"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"scratchvit: port {port} cannot be used (") and said.count("\n") == 1


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_one_sentence(package, monkeypatch, capsys):
    pytest.importorskip(package)
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    assert main(["play", "--no-browser"]) == 1
    said = capsys.readouterr().err
    assert f"pip install {package}" in said and said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_it_quietly():
    pytest.importorskip("uvicorn")
    process = subprocess.Popen(
        [sys.executable, "-m", "scratchvit", "play", "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert process.stdout.readline() == "Ctrl-C ends it\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert process.stdout.read() == process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
