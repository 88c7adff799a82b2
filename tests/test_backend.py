"""The device in use, and moving data to it. (test_gpu.py: what is said when there is no GPU that computes.)"""

import ctypes

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import backend
from tests.support.processes import alone


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
