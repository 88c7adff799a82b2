"""What `scratchvit doctor` reports, with and without a GPU."""

import importlib.metadata
import re
import sys

import numpy as np
import pytest
import scipy.special

import scratchvit as sv
from scratchvit import backend, doctor, gpu
from scratchvit.cli import main
from scratchvit.errors import is_installed
from scratchvit.parallel.world import mpiexec_of_wheel
from tests.support.fake_cupy import NO_NVRTC, FakeCuPy, cupy_error


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.01)


def without_gpu(monkeypatch, sentence="the GPU needs CuPy, which is not installed"):
    def refuse(number):
        raise sv.ScratchvitError(sentence)

    monkeypatch.setattr(backend, "_gpu", refuse)
    monkeypatch.setattr(gpu, "installed", dict)
    monkeypatch.setitem(sys.modules, "cupy", None)


def with_gpus(monkeypatch, cupy):
    """A driver, CuPy's package, and this module in its place."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", scipy.special)
    monkeypatch.setattr(gpu, "installed", lambda: {"cupy-cuda12x": "14.2.0"})
    monkeypatch.setattr(gpu, "cuda_driver_version", lambda: (13, 0))
    monkeypatch.setattr(backend, "_by_array_type", dict(backend._by_array_type))
    monkeypatch.setattr(backend, "_gpu", backend._gpu.__wrapped__)      # not kept for the tests that follow
    return cupy


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
    with_gpus(monkeypatch, FakeCuPy(devices=2))
    computes = backend.Backend("gpu", np, scipy.special, np.ndarray, np.asarray)
    monkeypatch.setattr(backend, "_gpu", lambda number: computes)
    found = dict(doctor.report())
    assert found["CUDA driver"] == "CUDA 13.0"
    assert found["CuPy"] == "cupy-cuda12x 14.2.0"
    assert found["GPU 0"] == "NVIDIA T0, compute capability 9.0, 1.0 of 16.0 GiB free; computes"
    assert found["GPU 1"] == "NVIDIA T1, compute capability 9.1, 2.0 of 16.0 GiB free; --device gpu:1; computes"
    assert "GFLOP/s" in found["speed, GPU"]


class OneIsBroken(FakeCuPy):
    """Two GPUs, of which the second, or each, cannot compute."""

    def __init__(self, which, error):
        super().__init__(devices=2)
        self.which, self.error = which, error

    def made(self, part, values):
        if part == "product" and self.current in self.which:
            raise self.error
        return super().made(part, values)


def test_every_gpu_is_tried(monkeypatch):
    unknown = cupy_error("CUDARuntimeError", "cudaErrorUnknown: unknown")
    cupy = with_gpus(monkeypatch, OneIsBroken({1}, unknown))
    found = dict(doctor.report())
    assert "GPU" not in found and found["GPU 0"].endswith(" GiB free; computes")
    assert found["GPU 1"].endswith(
        "; --device gpu:1; does not compute: the GPU reports an error (cudaErrorUnknown: unknown): see `nvidia-smi`, "
        "or run `scratchvit doctor`"
    )
    assert cupy.calls.count("kernel") == 3 and sv.device() == "cpu"     # one for each, and one for the speed


def test_a_reason_that_all_gpus_have_is_told_once(monkeypatch):
    with_gpus(monkeypatch, OneIsBroken({0, 1}, KeyError("nothing")))
    found = dict(doctor.report())
    assert found["GPU"].startswith("GPU 0 cannot compute (KeyError: 'nothing'): ")
    assert found["GPU 0"].endswith(" GiB free; does not compute, for the reason above")
    assert found["GPU 1"].endswith(" GiB free; --device gpu:1; does not compute, for the reason above")


@pytest.mark.parametrize(("part", "error", "says"), [
    ("kernel", NO_NVRTC, 'does not find libnvrtc.so.13 or libnvrtc.so.12, with which it computes: pip install "cupy-'),
    ("kernel", KeyError("nothing"), "GPU 0 cannot compute (KeyError: 'nothing'): pip uninstall cupy-cuda12x"),
    ("getDeviceCount", OSError("all is lost"),
     "CuPy 14.2.0 is installed but finds no GPU: the driver supports CUDA 13.0, but all is lost"),
])
def test_whatever_cupy_raises_is_reported_and_the_report_goes_on(monkeypatch, capsys, part, error, says):
    with_gpus(monkeypatch, FakeCuPy()).fails = {part: error}
    found = dict(doctor.report())
    assert says in found["GPU"] and found["CuPy"] == "cupy-cuda12x 14.2.0"
    assert ("GPU 0" in found) == (part == "kernel")         # what it is like is known even if it does not compute
    assert "GFLOP/s" in found["speed, CPU"] and "speed, GPU" not in found
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "Traceback" not in printed and "speed, CPU" in printed


def test_a_gpu_that_fails_later(monkeypatch):
    """In the query of its memory, and in the measurement of its speed: FakeCuPy has no ones."""
    unknown = cupy_error("CUDARuntimeError", "cudaErrorUnknown: unknown")
    with_gpus(monkeypatch, FakeCuPy()).fails = {"memGetInfo": unknown}
    found = dict(doctor.report())
    assert found["GPU 0"].startswith("the GPU reports an error (cudaErrorUnknown: unknown)") and "GPU" not in found
    assert found["speed, GPU"] == "AttributeError: 'FakeCuPy' object has no attribute 'ones'"
    assert sv.device() == "cpu"


def test_mpi_and_the_mpiexec_that_belongs_to_it(monkeypatch):
    own = mpiexec_of_wheel()
    if own is None or not is_installed("mpi4py"):
        pytest.skip("needs mpi4py, and an mpiexec beside this Python")
    monkeypatch.setattr(gpu, "installed", dict)
    monkeypatch.setenv("PMI_SIZE", "2")         # as within an mpiexec, which this process does not take part in
    monkeypatch.setenv("PATH", str(own.parent))
    library, mpiexec, nccl = doctor._mpi().split("; ")
    assert re.fullmatch(r"mpi4py [\d.]+, \w.* [\d.]+", library) and mpiexec == str(own) and "CuPy" in nccl
    monkeypatch.setenv("PATH", "")
    assert f"start ranks with {own}, which is not in PATH" in doctor._mpi()


def test_without_mpi4py_the_line_about_mpi_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(doctor, "is_installed", lambda name: False)
    assert doctor._mpi().startswith("missing: pip install mpi4py mpich")
