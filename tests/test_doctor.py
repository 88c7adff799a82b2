"""What `scratchvit doctor` reports, with and without a GPU."""

import importlib.metadata
import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special

import scratchvit as sv
from scratchvit import backend, doctor
from scratchvit.cli import main


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.01)


def without_gpu(monkeypatch, sentence="the GPU needs CuPy, which is not installed"):
    def refuse():
        raise sv.ScratchvitError(sentence)

    monkeypatch.setattr(backend, "_gpu", refuse)


def test_a_machine_without_gpu(monkeypatch, capsys):
    without_gpu(monkeypatch)
    assert main(["doctor"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.replace("\n  ", "").splitlines())
    assert lines["NumPy"].startswith(np.__version__) and re.search("thread|does not know", lines["NumPy"])
    assert lines["SciPy"] and lines["Python"] and lines["scratchvit"].startswith(sv.__version__)
    assert lines["GPU"] == "the GPU needs CuPy, which is not installed"


def test_the_speed_is_measured_on_the_cpu_and_the_cpu_stays_in_use(monkeypatch):
    without_gpu(monkeypatch)
    found = dict(doctor.report())
    assert "GFLOP/s" in found["speed, CPU"] and "Gelem/s in gelu" in found["speed, CPU"]
    assert "speed, GPU" not in found
    assert sv.device() == "cpu"


def test_missing_packages_come_with_the_line_that_installs_them(monkeypatch):
    without_gpu(monkeypatch)
    version = importlib.metadata.version

    def absent(name):
        if name == "matplotlib":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name) if name == "scipy" else "1.0"

    monkeypatch.setattr(importlib.metadata, "version", absent)
    found = dict(doctor.report())
    assert "pip install matplotlib" in found["matplotlib"]
    assert found["pooch"] == "1.0"


def test_a_machine_with_gpu(monkeypatch):
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: {"name": b"NVIDIA H200", "major": 9, "minor": 0},
        memGetInfo=lambda: (100 * 2**30, 139 * 2**30),
    )
    cuda = SimpleNamespace(runtime=runtime, Device=lambda number: nullcontext())
    cupy = SimpleNamespace(**{**vars(np), "__version__": "14.2.0", "cuda": cuda})
    gpu = backend.Backend("gpu", cupy, scipy.special, np.ndarray, np.asarray)
    monkeypatch.setattr(backend, "_gpu", lambda: gpu)
    monkeypatch.setattr(backend, "cuda_driver_version", lambda: (13, 0))
    monkeypatch.setattr(backend, "_by_array_type", dict(backend._by_array_type))
    found = dict(doctor.report())
    assert found["CUDA driver"] == "CUDA 13.0"
    assert found["CuPy"] == "14.2.0"
    assert found["GPU 0"] == "NVIDIA H200, compute capability 9.0, 100.0 of 139.0 GiB free"
    assert "GFLOP/s" in found["speed, GPU"]
