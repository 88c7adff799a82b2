"""What `scratchvit doctor` reports: installed packages, missing ones and how to install them, and speed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import threadpoolctl

import scratchvit
from scratchvit import backend, gpu, ops
from scratchvit.costs.machine import product_speed, shortest
from scratchvit.errors import ScratchvitError, is_installed
from scratchvit.files import counted
from scratchvit.parallel.world import LAUNCHERS, mpiexec_of_wheel
from scratchvit.recording import no_grad

SIZES = {name for launcher in LAUNCHERS for name in launcher[1:]}   # by which MPI knows that it was started by one
SECONDS = 0.4       # for each of the two figures of the speed line

# {package: what it is used for}
OPTIONAL = {
    "scikit-learn": "the digits, the default data of `scratchvit train`",
    "matplotlib": "plots of learning curves and attention",
    "pycocotools": "AP, for `scratchvit detect-train` and `detect-eval`",
    "pooch": "--download",
    "hypothesis": "the tests",
    "torch": "tests against PyTorch",
    "timm": "tests against timm",
}


def report() -> Iterator[tuple[str, str]]:
    """Yield (name, finding) for each line; the speed comes last, as it takes a second. Leaves the CPU selected."""
    yield "scratchvit", f"{scratchvit.__version__}, {Path(scratchvit.__file__).parent}"
    yield "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield "NumPy", f"{np.__version__}, {_blas()}"
    yield "SciPy", importlib.metadata.version("scipy")
    yield from _gpu()
    for package, purpose in OPTIONAL.items():
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, f"missing: pip install {package}  ({purpose})"
    yield "MPI", _mpi()
    yield "allocator", _allocator()
    yield "speed, CPU", _speed("cpu")
    try:
        yield "speed, GPU", _speed("gpu")
    except ScratchvitError:         # already reported by _gpu
        pass
    except Exception as error:
        yield "speed, GPU", gpu.told(error)


def _blas() -> str:
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    if not pools:
        return "a BLAS library unknown to threadpoolctl"
    pool = next((pool for pool in pools if "numpy" in pool["filepath"]), pools[0])
    kernels = f" ({pool['architecture']})" if "architecture" in pool else ""
    return (
        f"{pool['internal_api']} {pool['version']}{kernels} with {counted(pool['num_threads'], 'thread')}; "
        "OMP_NUM_THREADS sets their number"
    )


def _gpu() -> Iterator[tuple[str, str]]:
    driver = gpu.cuda_driver_version()
    yield "CUDA driver", "none found" if driver is None else f"CUDA {driver[0]}.{driver[1]}"
    packages = gpu.installed()
    if packages:
        yield "CuPy", ", ".join(f"{name} {version}" for name, version in packages.items())
    first = _failure(0)
    if first is not None:
        yield "GPU", first
    for number, line in enumerate(gpu.descriptions()):
        failure = _failure(number) if number else first
        if failure is None:
            verdict = "computes"
        elif failure.replace(f"GPU {number}", "GPU 0") == first:
            verdict = "does not compute, for the reason above"
        else:
            verdict = f"does not compute: {failure}"
        chosen_by = f"; --device gpu:{number}" if number else ""
        yield f"GPU {number}", f"{line}{chosen_by}; {verdict}"


def _failure(number: int) -> str | None:
    """Why a GPU does not compute, as a sentence; None if it does. Leaves the CPU selected."""
    try:
        backend.use(f"gpu:{number}")
    except Exception as error:      # whatever CuPy raises: this is where to look for the reason
        return gpu.told(error)
    finally:
        backend.use("cpu")
    return None


def _allocator() -> str:
    if backend.keep_freed_memory():
        return "glibc, set to keep freed memory for the next array (as `scratchvit train` does)"
    return "the system's; with glibc, training would reuse freed memory and be faster"


def _mpi() -> str:
    """What a run on several ranks finds here. MPI is asked in a process of its own, in which it may fail to start."""
    if not is_installed("mpi4py"):
        return "missing: pip install mpi4py mpich  (mpiexec -n 2 scratchvit train: several processes or machines)"
    done = subprocess.run(
        [sys.executable, "-c", "from mpi4py import MPI; print(MPI.Get_library_version().strip('\\0'))"],
        capture_output=True, text=True, env={name: text for name, text in os.environ.items() if name not in SIZES},
    )
    version = f"mpi4py {importlib.metadata.version('mpi4py')}"
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
        return f"{version} finds no MPI library ({reason}): pip install mpich, or load the MPI of this machine"
    library = " ".join(done.stdout.split("\n")[0].split()).replace("MPICH Version:", "MPICH")
    return f"{version}, {library.split(', ')[0]}; {_mpiexec()}; {_nccl()}"


def _mpiexec() -> str:
    own, found = mpiexec_of_wheel(), shutil.which("mpiexec")
    if own is None:
        return f"{found}, which must belong to it" if found else "no mpiexec is in PATH: that of this MPI is needed"
    if found is None:
        return f"start ranks with {own}, which is not in PATH"
    if Path(found).resolve() != own.resolve():
        return f"start ranks with {own}: the one in PATH, {found}, may be of another MPI"
    return str(own)


def _nccl() -> str:
    if not gpu.installed():
        return "arrays of GPUs need CuPy, for NCCL"
    try:
        from cupy.cuda import nccl

        return f"NCCL {nccl.get_version()} for arrays of GPUs" if nccl.available else "no NCCL for arrays of GPUs"
    except Exception as error:
        return f"no NCCL for arrays of GPUs ({gpu.told(error)})"


def _speed(device: str) -> str:
    """Two figures that predict the time of a training step: the speed of matrix products and of element-wise ops."""
    selected = backend.use(device)
    try:
        tokens = selected.xp.ones((16, 197, 768), dtype=selected.xp.float32)
        flops = product_speed(selected, SECONDS)
        with no_grad():
            elements = tokens.size / shortest(lambda: ops.gelu(tokens), selected, SECONDS)
    finally:
        backend.use("cpu")
    return f"{flops / 1e9:,.0f} GFLOP/s in float32 products, {elements / 1e9:.2f} Gelem/s in gelu"

