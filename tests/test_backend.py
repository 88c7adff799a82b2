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


@pytest.mark.parametrize("rows", [0, 1, 7, 5000])
def test_parallel_rows_sees_every_row_once_and_keeps_their_order(monkeypatch, rows):
    monkeypatch.setattr(backend, "cpu_threads", lambda: 2)
    x = np.arange(rows * 100, dtype=np.float32).reshape(rows, 100)
    y = np.zeros_like(x)

    def double(x, y):
        y += 2 * x
        return x[0, 0] if len(x) else None

    starts = backend.parallel_rows(double, x, y, block_bytes=1 << 14)
    assert np.array_equal(y, 2 * x)
    assert starts == sorted(starts, key=lambda s: (s is None, s))
    if rows == 5000:
        assert len(starts) > 8


def test_an_error_in_a_thread_arrives(monkeypatch):
    monkeypatch.setattr(backend, "cpu_threads", lambda: 2)
    x = np.zeros((4000, 500), np.float32)
    x[3999, 0] = 1

    def fail_at_the_mark(x):
        if x.any():
            raise ArithmeticError("found")

    with pytest.raises(ArithmeticError, match="found"):
        backend.parallel_rows(fail_at_the_mark, x)


def keep_freed_memory():
    return backend.keep_freed_memory()


def test_keep_freed_memory_tells_glibc_where_there_is_one():
    try:
        ctypes.CDLL("libc.so.6")
    except OSError:
        assert not alone(keep_freed_memory)
    else:
        assert alone(keep_freed_memory)
