"""The GPU, its driver and clocks, the versions of what computes on it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from scratchvit.gpu import cuda_driver_version
from scripts.gpu_parts.part import ROOT, Row, Setting, not_run

PACKAGES = ("numpy", "scipy", "torch", "torchvision", "timm", "triton", "pytest", "pytest-xdist", "pytest-timeout",
            "hypothesis", "pycocotools", "scikit-learn")


def device(setting: Setting) -> Row:
    """The device, after it has computed three small things right (gpu.prove)."""
    used = setting.use()
    if not setting.on_gpu:
        return {"ok": True, "result": f"the CPU, {_processor()}", "name": _processor()}
    runtime = used.xp.cuda.runtime
    properties = runtime.getDeviceProperties(used.xp.cuda.Device().id)
    free, total = runtime.memGetInfo()
    name = properties["name"].decode()
    capability = f"{properties['major']}.{properties['minor']}"
    processors = properties["multiProcessorCount"]
    return {
        "ok": True, "name": name, "capability": capability, "processors": processors,
        "l2_bytes": properties.get("l2CacheSize"), "free_bytes": free, "total_bytes": total,
        "result": f"{name}, compute capability {capability}, {processors} processors, {free / 2**30:.1f} of "
        f"{total / 2**30:.1f} GiB free",
    }


def versions(setting: Setting) -> Row:
    """What was measured, by what."""
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name in PACKAGES or name.startswith(("cupy", "nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cudnn")):
            found[name] = distribution.version
    row: dict[str, Any] = {
        "ok": True, "commit": _commit(), "sources": _sources(), "python": platform.python_version(),
        "versions": dict(sorted(found.items())), "driver": cuda_driver_version(), "processor": _processor(),
        "cores": os.cpu_count(),
    }
    if setting.on_gpu:
        cupy = setting.use().xp
        row["nvrtc"] = cupy.cuda.nvrtc.getVersion()
        row["cuda_runtime"] = cupy.cuda.runtime.runtimeGetVersion()
        row["cublas"] = cupy.cuda.cublas.getVersion(cupy.cuda.device.get_cublas_handle())
        row["accelerators"] = cupy._core.get_routine_accelerators()
    named = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if "cupy" in name
                      or name in ("numpy", "torch"))
    return {**row, "result": f"Python {row['python']}, {named}; commit {row['commit'][:12]}, sources {row['sources']}"}


def nvidia_smi(setting: Setting) -> Row:
    """What the driver says of the GPU: clocks, the bus, power, other programs. Nothing is changed."""
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,pcie.link.gen.current,pcie.link.width.current," \
             "power.draw,temperature.gpu,memory.used,compute_mode,mig.mode.current"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
        details = subprocess.run(
            ["nvidia-smi", "-q", "-d", "CLOCK,PERFORMANCE,PCIE,ECC"], capture_output=True, text=True, timeout=20
        )
    except FileNotFoundError:
        return not_run("there is no nvidia-smi")
    answer = (done.stdout or done.stderr).strip()
    values = [value.strip() for value in answer.splitlines()[0].split(",")] if answer else []
    return {
        "ok": True if done.returncode == 0 else None, "result": ", ".join(values) or "no answer",
        "fields": dict(zip(fields.split(","), values)), "details": details.stdout[:8000],
    }


def cupy_configuration(setting: Setting) -> Row:
    """CuPy's own list of what it found."""
    if not setting.on_gpu:
        return not_run("on the CPU")
    setting.use()
    import cupyx

    return {"ok": True, "result": "see details", "details": str(cupyx.get_runtime_info())}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    return "unknown"


def _sources() -> str:
    """A hash of the package's Python files: a copy may come without Git's history."""
    files = sorted((ROOT / "scratchvit").rglob("*.py"))
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files))
    return digest.hexdigest()[:12]


FACTS = {
    "device": device, "versions": versions, "nvidia-smi": nvidia_smi, "CuPy's configuration": cupy_configuration,
}
