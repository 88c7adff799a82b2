"""What is said when CuPy, a library of CUDA or a device is missing, does not fit or fails; and choosing among devices.

CuPy is a stand-in here (support/fake_cupy.py), which raises what CuPy raises, in its words.
"""

from __future__ import annotations

import importlib.abc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.special

import scratchvit as sv
from scratchvit import backend, gpu
from tests.support.fake_cupy import ILLEGAL_ACCESS, NO_NVRTC, OUT_OF_MEMORY, FakeArray, FakeCuPy, cupy_error

CUDA12 = {"cupy-cuda12x": "14.2.0"}
CUDA13 = {"cupy-cuda13x": "14.2.0"}
NO_CUBLAS = ImportError("libcublas.so.12: cannot open shared object file: No such file or directory")
NO_CUBLAS_LT = ImportError('Failure finding "libcublasLt.so.13 or libcublasLt.so.12": No such file: libcublasLt.so.13')
OLD_DRIVER = cupy_error(
    "CUDARuntimeError",
    "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
)
NO_DEVICE = cupy_error("CUDARuntimeError", "cudaErrorNoDevice: no CUDA-capable device is detected")

Machine = Callable[..., Any]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Makes a machine: the module that `import cupy` finds, the packages that pip knows, the driver's CUDA."""
    def make(cupy: Any, packages: dict[str, str] = CUDA12, driver: tuple[int, int] | None = (12, 4)) -> Any:
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setitem(sys.modules, "cupyx.scipy.special", scipy.special)
        monkeypatch.setattr(gpu, "installed", lambda: packages)
        monkeypatch.setattr(gpu, "cuda_driver_version", lambda: driver)
        monkeypatch.setattr(backend, "_by_array_type", dict(backend._by_array_type))
        backend._gpu.cache_clear()
        return cupy

    yield make
    sv.use("cpu")
    backend._gpu.cache_clear()


def refusal() -> str:
    """What use("gpu") says."""
    with pytest.raises(sv.ScratchvitError) as caught:
        sv.use("gpu")
    assert sv.device() == "cpu"
    text = str(caught.value)
    assert "\n" not in text and not text.endswith(".")
    return text


# --- the proof ------------------------------------------------------------------------------------------------------


def test_a_gpu_computes_three_things_once_in_a_process(machine: Machine) -> None:
    cupy = machine(FakeCuPy())
    assert sv.use("gpu").xp is cupy and sv.device() == "gpu"
    sv.use("cpu")
    assert sv.use("gpu") is sv.use("gpu:0")
    assert cupy.calls == ["allocation", "kernel", "sum", "product"]


@pytest.mark.parametrize(("part", "says"), [
    ("kernel", "an element-wise sum gave [[1.0, 3.0, 5.0], [7.0, 9.0, 11.0]], not [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]"),
    ("sum", "a sum over all entries gave 16.0, not 15.0"),
    ("product", "a matrix product gave [[6.0, 15.0], [15.0, 51.0]], not [[5.0, 14.0], [14.0, 50.0]]"),
])
def test_a_wrong_result_is_told(machine: Machine, part: str, says: str) -> None:
    machine(FakeCuPy()).wrong = {part}
    assert f"GPU 0 computes wrongly: {says}: see `nvidia-smi -q`" in refusal()


@pytest.mark.parametrize(("part", "error", "packages", "driver", "says"), [
    ("kernel", NO_NVRTC, CUDA12, (13, 0), "CuPy does not find libnvrtc.so.13 or libnvrtc.so.12, with which it "
     'computes: pip install "cupy-cuda12x[ctk]>=14"'),
    ("kernel", NO_NVRTC, CUDA13, (13, 0), ': pip install "cupy-cuda13x[ctk]>=14"'),
    ("product", NO_CUBLAS, CUDA12, (12, 4), "CuPy does not find libcublas.so.12, with which it computes: pip install "
     '"cupy-cuda12x[ctk]>=14"'),
    ("product", NO_CUBLAS_LT, CUDA12, (12, 4), "CuPy does not find libcublasLt.so.13 or libcublasLt.so.12, with which"),
    ("kernel", cupy_error("CompileException", 'catastrophic error:\n cannot open source file "cuda_fp16.h"'), CUDA12,
     (12, 4), 'could not be compiled for the GPU (catastrophic error: cannot open source file "cuda_fp16.h"): '),
    ("kernel", cupy_error("CUDADriverError", "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available for execution "
     "on the device"), CUDA12, (12, 4), "CuPy does not suit this GPU and its driver (CUDA_ERROR_NO_BINARY_FOR_GPU: no "
     "kernel image is available for execution on the device; the driver supports CUDA 12.4): pip uninstall "
     'cupy-cuda12x, then pip install "cupy-cuda12x[ctk]>=14"'),
    ("product", cupy_error("CUBLASError", "CUBLAS_STATUS_NOT_INITIALIZED"), CUDA12, (12, 4), "cuBLAS does not start on "
     "the GPU (CUBLAS_STATUS_NOT_INITIALIZED), mostly because too little memory is free (of 16.0 GiB, this process"),
    ("sum", KeyError("sum"), CUDA12, (12, 4), "GPU 0 cannot compute (KeyError: 'sum'): pip uninstall cupy-cuda12x, "
     'then pip install "cupy-cuda12x[ctk]>=14", or continue with use("cpu")'),
    ("kernel", NO_NVRTC, CUDA12 | CUDA13, (12, 4), "cupy-cuda12x 14.2.0 and cupy-cuda13x 14.2.0 are installed, and the "
     "files of each overwrite the other's (DynamicLibNotFoundError: "),
    ("kernel", NO_NVRTC, CUDA12 | CUDA13, (12, 4), "): pip uninstall cupy-cuda12x cupy-cuda13x, then pip install "
     '"cupy-cuda12x[ctk]>=14"'),
    ("allocation", OUT_OF_MEMORY, CUDA12, (12, 4), "GPU 0 has no free memory (of 16.0 GiB, this process holds 14.0 GiB "
     "and 1.0 GiB are free): end the programs that hold it, which `nvidia-smi` lists, or continue with"),
    ("allocation", cupy_error("CUDARuntimeError", "cudaErrorMemoryAllocation: out of memory"), CUDA12, (12, 4),
     "GPU 0 has no free memory"),
])
def test_what_the_first_kernels_raise_is_a_sentence(
    machine: Machine, part: str, error: Exception, packages: dict[str, str], driver: tuple[int, int], says: str
) -> None:
    machine(FakeCuPy(), packages, driver).fails = {part: error}
    assert says in refusal()


def test_a_full_gpu_beside_others(machine: Machine) -> None:
    machine(FakeCuPy(devices=3)).fails = {"allocation": OUT_OF_MEMORY}
    assert "choose another GPU (3 are there: gpu:0 … gpu:2)" in refusal()


# --- CuPy and the driver --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("driver", "package"), [(None, "cuda13x"), ((12, 4), "cuda12x"), ((13, 0), "cuda13x")])
def test_without_cupy_the_package_for_the_driver_is_named(machine: Machine, driver: Any, package: str) -> None:
    machine(None, {}, driver)
    found = "no CUDA driver was found" if driver is None else f"the driver supports CUDA {driver[0]}.{driver[1]}"
    assert refusal() == f'the GPU needs CuPy, which is not installed ({found}): pip install "cupy-{package}[ctk]>=14"'


class Broken(importlib.abc.MetaPathFinder):
    """`import cupy` as CuPy does it where one of its extension modules does not load."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "cupy":
            try:
                raise ImportError("libcuda.so.1: cannot open shared object file:\n No such file or directory")
            except ImportError as error:
                raise ImportError("=" * 60 + "\nFailed to import CuPy.\nIf you installed CuPy via wheels …") from error


@pytest.mark.parametrize(("packages", "says"), [
    (CUDA12, "cupy-cuda12x 14.2.0 is installed but does not load (ImportError: libcuda.so.1: cannot open shared object "
     'file: No such file or directory): pip uninstall cupy-cuda12x, then pip install "cupy-cuda12x[ctk]>=14"'),
    ({"cupy": "13.3.0", **CUDA12}, "cupy 13.3.0 and cupy-cuda12x 14.2.0 are installed, and the files of each overwrite "
     "the other's (ImportError: libcuda.so.1: cannot open shared object file: No such file or directory): pip "
     'uninstall cupy cupy-cuda12x, then pip install "cupy-cuda12x[ctk]>=14"'),
    ({}, "CuPy is installed but does not load (ImportError: libcuda.so.1"),     # built on this machine
])
def test_a_cupy_that_does_not_load_keeps_its_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], says: str
) -> None:
    machine(None, packages)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert says in refusal()


def test_what_is_left_of_an_uninstalled_cupy(machine: Machine) -> None:
    """Uninstalling one of two CuPys removes files of the other: pip still lists it, and the folder has no code."""
    machine(None, CUDA12)
    assert refusal().startswith("cupy-cuda12x 14.2.0 is installed but does not load (ModuleNotFoundError: ")
    machine(type(sys)("cupy"), CUDA12)
    assert "does not load (AttributeError: module 'cupy' has no attribute '__version__'): pip uninstall" in refusal()


def test_an_old_cupy(machine: Machine) -> None:
    machine(FakeCuPy(version="13.6.0"), {"cupy-cuda12x": "13.6.0"})
    assert refusal() == 'CuPy 13.6.0 is too old, 14 or later is needed: pip install "cupy-cuda12x[ctk]>=14"'
    machine(FakeCuPy(version="15.0.0b1"), {"cupy-cuda12x": "15.0.0b1"})
    assert sv.use("gpu").name == "gpu"


@pytest.mark.parametrize(("error", "cuda", "packages", "driver", "says"), [
    (OLD_DRIVER, 13, CUDA13, (12, 4), "CuPy 14.2.0 is installed but finds no GPU: it was built for CUDA 13, the driver "
     'supports CUDA 12.4: pip uninstall cupy-cuda13x, then pip install "cupy-cuda12x[ctk]>=14", or continue with'),
    (OLD_DRIVER, 12, CUDA12, (11, 8), "it was built for CUDA 12, the driver supports CUDA 11.8: install a driver that "
     'supports CUDA 12 or later, or continue with use("cpu")'),
    (OLD_DRIVER, 12, CUDA12, None, 'no CUDA driver was found: install NVIDIA\'s, or continue with use("cpu")'),
    (NO_DEVICE, 12, CUDA12, (12, 4), "the driver supports CUDA 12.4, but cudaErrorNoDevice: no CUDA-capable device is "
     "detected; or continue"),
    (None, 12, CUDA12, (12, 4), "it has no device; `nvidia-smi` should list one, and CUDA_VISIBLE_DEVICES must not"),
])
def test_no_gpu(
    machine: Machine, error: Exception | None, cuda: int, packages: dict[str, str], driver: Any, says: str
) -> None:
    cupy = machine(FakeCuPy(devices=0, cuda=cuda), packages, driver)
    if error:
        cupy.fails = {"getDeviceCount": error}
    assert says in refusal()


@pytest.mark.parity
def test_the_real_cupy_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(gpu, "cuda_driver_version", lambda: None)
    assert "is installed but finds no GPU: no CUDA driver was found" in refusal()


# --- several devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tpu", "gpu:", "gpu:-1", "gpu:x", "gpu1", "GPU", "", "gpu:¹"])
def test_an_unknown_device(name: str) -> None:
    with pytest.raises(sv.ScratchvitError, match=f"unknown device '{name}': choose \"cpu\", \"gpu\""):
        sv.use(name)


def test_an_unknown_number_lists_the_devices(machine: Machine) -> None:
    machine(FakeCuPy(devices=2))
    with pytest.raises(sv.ScratchvitError) as caught:
        sv.use("gpu:7")
    assert str(caught.value) == "there is no GPU 7: CuPy finds gpu:0 (NVIDIA T0), gpu:1 (NVIDIA T1)"


def test_the_second_gpu_is_chosen_in_all_threads(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = machine(FakeCuPy(devices=2))
    sv.use("gpu:1")
    assert sv.device() == "gpu:1" and cupy.current == 1
    assert len(cupy.calls) == 4             # it was proved itself
    found = []

    def elsewhere() -> None:
        before = cupy.current
        found.append((before, backend.asarray(np.ones(2, np.float32)).data.device_id, cupy.current))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(0, 1, 1)]             # CUDA begins every thread with device 0
    sv.use("gpu")
    assert sv.device() == "gpu" and cupy.current == 0
    sv.use("cpu")
    monkeypatch.setenv("SCRATCHVIT_DEVICE", "gpu:1")
    monkeypatch.setattr(backend, "_current", None)
    assert sv.device() == "gpu:1" and cupy.current == 1


def test_an_array_of_another_gpu_is_copied(machine: Machine) -> None:
    machine(FakeCuPy(devices=2))
    sv.use("gpu")
    x = backend.asarray(np.ones(2, np.float32))
    assert backend.asarray(x) is x
    sv.use("gpu:1")
    y = backend.asarray(x)
    assert isinstance(y, FakeArray) and (x.data.device_id, y.data.device_id) == (0, 1)
    assert backend.asarray(y) is y


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "batch_size", "says"), [
    (OUT_OF_MEMORY, 64, "the memory of the GPU is full with a batch of 64 images, 2.0 GiB more are needed (of 16.0 "
     "GiB, this process holds 14.0 GiB and 1.0 GiB are free): use a smaller batch (--batch-size) or compute it "
     "in parts (--accumulate), smaller images (--img-size; --short-side of a detector), or a smaller model"),
    (OUT_OF_MEMORY, None, "the memory of the GPU is full, 2.0 GiB more are needed (of"),
    (cupy_error("CUBLASError", "CUBLAS_STATUS_ALLOC_FAILED"), None, "the memory of the GPU is full (of 16.0 GiB"),
    (cupy_error("CUDADriverError", "CUDA_ERROR_OUT_OF_MEMORY: out of memory"), None, "the memory of the GPU is full"),
    (ILLEGAL_ACCESS, 64, "a kernel failed on the GPU (cudaErrorIllegalAddress: an illegal memory access was "
     "encountered), and whatever this process still asks of the GPU fails too: run it again with "
     "CUDA_LAUNCH_BLOCKING=1 in the environment"),
    (cupy_error("CUDADriverError", "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"), None, "CUDA_LAUNCH_BLOCK"),
    (cupy_error("CUBLASError", "CUBLAS_STATUS_EXECUTION_FAILED"), None, "CUDA_LAUNCH_BLOCKING=1"),
    (cupy_error("CUBLASError", "CUBLAS_STATUS_NOT_SUPPORTED"), None, "a matrix product failed on the GPU "
     "(CUBLAS_STATUS_NOT_SUPPORTED): CuPy and cuBLAS must suit each other: pip uninstall cupy-cuda12x, then pip"),
    (cupy_error("CUDARuntimeError", "cudaErrorUnsupportedPtxVersion: the provided PTX was compiled with an unsupported "
     "toolchain."), None, "CuPy does not suit this GPU and its driver (cudaErrorUnsupportedPtxVersion: "),
    (cupy_error("CUDARuntimeError", "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable"),
     None, "the GPU reports an error (cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavail"),
    (cupy_error("NVRTCError", "NVRTC_ERROR_COMPILATION (6)"), None, "could not be compiled for the GPU (NVRTC_ERROR"),
    (NO_NVRTC, None, 'CuPy does not find libnvrtc.so.13 or libnvrtc.so.12, with which it computes: pip install "cupy-'),
    (NO_CUBLAS, None, "CuPy does not find libcublas.so.12"),
    (cupy_error("DynamicLibNotFoundError", "no idea"), None, "a library of CUDA is missing (no idea): pip install"),
])
def test_what_cupy_s_errors_mean(machine: Machine, error: Exception, batch_size: int | None, says: str) -> None:
    machine(FakeCuPy())
    text = gpu.explain(error, batch_size)
    assert text is not None and says in text and "\n" not in text


def test_a_long_message_is_cut(machine: Machine) -> None:
    machine(FakeCuPy())
    text = gpu.explain(cupy_error("CompileException", "line of a kernel\n" * 10_000))
    assert text is not None and 300 < len(text) < 600 and "…" in text


def test_a_dead_device_does_not_answer_how_full_it_is(machine: Machine) -> None:
    machine(FakeCuPy()).fails = {"memGetInfo": ILLEGAL_ACCESS}
    assert gpu.explain(OUT_OF_MEMORY) == (
        "the memory of the GPU is full, 2.0 GiB more are needed: use a smaller batch (--batch-size), smaller images "
        "(--img-size; --short-side of a detector), or a smaller model"
    )


class OutOfMemoryError(RuntimeError):
    """PyTorch's, for instance."""


@pytest.mark.parametrize("error", [
    OutOfMemoryError("CUDA out of memory"), MemoryError("Unable to allocate 3 TiB"), ValueError("libcublas.so.12"),
    RuntimeError("something else"), KeyError("cudaErrorIllegalAddress"), sv.ScratchvitError("cudaErrorLaunchFailure"),
], ids=lambda error: type(error).__name__)
def test_other_errors_are_not_explained(error: Exception) -> None:
    assert gpu.explain(error) is None
    assert not gpu.is_out_of_memory(error) and not gpu.has_failed_for_good(error)


def test_explaining_does_not_import_cupy() -> None:
    program = (
        "import sys; from tests.support.fake_cupy import ILLEGAL_ACCESS, NO_NVRTC, OUT_OF_MEMORY; "
        "from scratchvit.gpu import explain; "
        "assert all(map(explain, (ILLEGAL_ACCESS, NO_NVRTC, OUT_OF_MEMORY))); assert 'cupy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parity
def test_the_real_cupy_s_classes_are_known() -> None:
    pytest.importorskip("cupy")
    from cupy.cuda import compiler, memory
    from cupy_backends.cuda.api import runtime

    full = memory.OutOfMemoryError(2**31, 2**36, 0)
    assert gpu.is_out_of_memory(full) and "2.0 GiB more are needed" in str(gpu.explain(full))
    try:
        from cupy_backends.cuda.libs import cublas
    except ImportError as error:        # without its extra [ctk]
        assert "CuPy does not find libcublas" in str(gpu.explain(error))
    else:
        assert gpu.has_failed_for_good(cublas.CUBLASError(13))
    assert gpu.explain(compiler.CompileException("a line", "source", "name", ("-x",)))
    assert gpu.is_out_of_memory(runtime.CUDARuntimeError(2))
