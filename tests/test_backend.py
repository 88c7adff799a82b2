"""Choosing a device, moving data, and the row-parallel helper."""

import ctypes
import sys

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import backend
from tests.support.processes import alone


def test_unknown_device():
    with pytest.raises(sv.ScratchvitError, match="unknown device 'tpu'"):
        sv.use("tpu")


@pytest.fixture
def fresh_gpu_lookup():
    backend._gpu.cache_clear()
    yield
    backend._gpu.cache_clear()


@pytest.mark.parametrize(
    ("version", "package"), [(None, "cuda13"), ((12, 4), "cuda12"), ((13, 0), "cuda13")], ids=str
)
def test_gpu_without_cupy_names_the_package_for_the_driver(monkeypatch, fresh_gpu_lookup, version, package):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(backend, "cuda_driver_version", lambda: version)
    with pytest.raises(sv.ScratchvitError, match=rf"CuPy, which is not installed .*pip install cupy-{package}x$"):
        sv.use("gpu")


@pytest.mark.parity
def test_gpu_without_a_device(monkeypatch, fresh_gpu_lookup):
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(backend, "cuda_driver_version", lambda: None)
    with pytest.raises(sv.ScratchvitError, match=r"is installed but finds no GPU: no CUDA driver was found"):
        sv.use("gpu")
    assert sv.device() == "cpu"


def test_the_environment_sets_the_default(monkeypatch):
    monkeypatch.setattr(backend, "_current", None)
    monkeypatch.setenv("SCRATCHVIT_DEVICE", "nonsense")
    with pytest.raises(sv.ScratchvitError, match="nonsense"):
        sv.device()
    monkeypatch.setenv("SCRATCHVIT_DEVICE", "cpu")
    assert sv.device() == "cpu"


def test_asarray_makes_python_floats_single_and_keeps_arrays(device):
    assert sv.backend.asarray([1.0, 2.0]).dtype == np.float32
    assert sv.backend.asarray(1.5).dtype == np.float32
    assert sv.backend.asarray(np.ones(2)).dtype == np.float64
    assert sv.backend.asarray(np.ones(2), np.float32).dtype == np.float32
    assert sv.backend.asarray([1, 2]).dtype == np.int64
    assert isinstance(sv.backend.asnumpy(sv.backend.asarray([1.0])), np.ndarray)


def keep_freed_memory():
    return backend.keep_freed_memory()


def test_keep_freed_memory_tells_glibc_where_there_is_one():
    try:
        ctypes.CDLL("libc.so.6")
    except OSError:
        assert not alone(keep_freed_memory)
    else:
        assert alone(keep_freed_memory)
