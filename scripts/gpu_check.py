"""The one command for a machine with a GPU: does everything work there, does it agree with the CPU, is it fast?

    python scripts/gpu_check.py                 # under 9 minutes, no network; writes gpu_check.json
    python scripts/gpu_check.py --device cpu    # a dry run of the same code on a machine without a GPU

Three parts: the tests that use the GPU; 50 training steps on the CPU and on the GPU with the same batches; training
steps of ViT-Ti/16 and ResNet-18 against PyTorch eager on the same device, where PyTorch and timm are installed. A table
comes last; the exit code is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))       # run from the checkout, installed or not

import scratchvit as sv  # noqa: E402
from scratchvit import backend, optim  # noqa: E402
from scratchvit.files import write_atomically  # noqa: E402
from scratchvit.gpu import cuda_driver_version  # noqa: E402

TESTS_SECONDS = 300         # each part has a bound; together they stay under 9 minutes
STEPS_SECONDS = 90
SPEED_SECONDS = 60          # of each model
TIMED = {"ViT-Ti/16": "vit_tiny_patch16_224", "ResNet-18": "resnet18"}
TOLERANCE = 1e-3            # relative, of the loss at any of the 50 steps: two devices, two orders of summation

Row = dict[str, Any]        # {"part", "ok": True, False or None (not run), "result": a sentence, …figures}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a dry run")
    parser.add_argument("--steps", type=int, default=50, help="training steps that are compared")
    parser.add_argument("--batch-size", type=int, default=64, help="of the step that is timed")
    parser.add_argument("--skip-tests", action="store_true", help="leave the test suite out")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_check.json")
    options = parser.parse_args(argv)
    try:
        device = sv.use(options.device)
    except sv.ScratchvitError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1

    start = time.perf_counter()
    parts: dict[str, Callable[[], Row]] = {
        "tests": lambda: run_tests(options.device),
        "CPU = GPU": lambda: compare_steps(backend.CPU, device, options.steps),
        **{name: functools.partial(compare_speed, device, model, options.batch_size) for name, model in TIMED.items()},
    }
    if options.skip_tests:
        del parts["tests"]
    rows = []
    for name, part in parts.items():
        print(f"… {name}", flush=True)
        try:
            row = part()
        except Exception as error:      # the other parts still have something to say
            row = {"ok": False, "result": f"{type(error).__name__}: {error}"}
        rows.append({"part": name, **row})
    sv.use("cpu")

    report = {**versions(device), "seconds": round(time.perf_counter() - start, 1), "parts": rows}
    write_atomically(options.out, (json.dumps(report, indent=2) + "\n").encode())
    print(f"\n{report['gpu'] or 'no GPU'}, commit {report['commit'][:12]}, {report['seconds']} s: {options.out}")
    for row in rows:
        verdict = {True: "passed", False: "FAILED", None: "not run"}[row["ok"]]
        print(f"  {row['part']:<10} {verdict:<8} {row['result']}")
    return int(any(row["ok"] is False for row in rows))


def run_tests(device: str) -> Row:
    """The tests that use the device, as a subprocess, so that its memory and its settings are its own.

    On the CPU all tests run.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    # One process for the one GPU, and without pytest-xdist, which such a machine may lack.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=-q", "--device", device, "-m", "not slow and not parity"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TESTS_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "result": f"not finished after {TESTS_SECONDS} s"}
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    if done.returncode:
        print("\n".join(lines[-60:]))
    summary = next((line for line in reversed(lines) if " passed" in line or " failed" in line), lines[-1])
    return {"ok": done.returncode == 0, "result": summary.strip("= ")}      # the last line says what was left out


# --- the same training on two devices ---


def compare_steps(reference: backend.Backend, other: backend.Backend, steps: int) -> Row:
    """Train the same small ViT on the same batches on both devices: how far do the losses part?"""
    expected, actual = (train_losses(device, steps) for device in (reference, other))
    steps = min(len(expected), len(actual))     # one of the two may have run out of time
    difference = float(np.max(np.abs(actual[:steps] - expected[:steps]) / np.abs(expected[:steps])))
    return {
        "ok": difference < TOLERANCE and bool(expected[steps - 1] < expected[0]),
        "result": f"{steps} steps, loss {expected[0]:.3f} to {expected[steps - 1]:.3f}, "
        f"largest relative difference {difference:.1e} (limit {TOLERANCE:.0e})",
        "difference": difference,
        "losses": [expected.tolist(), actual.tolist()],
    }


def train_losses(device: backend.Backend, steps: int) -> np.ndarray:
    """The losses (steps,) of AdamW on pictures of ten classes that can be learned, dropout and all."""
    sv.use(device)
    rng = np.random.default_rng(0)
    prototypes = rng.standard_normal((10, 1, 28, 28), dtype=np.float32)
    model = sv.create_model(
        "vit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=28, patch_size=7, embed_dim=64, depth=4,
        num_heads=4, proj_drop_rate=0.1, drop_path_rate=0.1,
    )
    optimizer = optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    losses: list[float] = []
    start = time.perf_counter()
    while len(losses) < steps and time.perf_counter() - start < STEPS_SECONDS / 2:
        y = rng.integers(10, size=32)
        x = prototypes[y] + rng.standard_normal((32, 1, 28, 28), dtype=np.float32)
        losses.append(training_step(model, optimizer, x, y).item())
    return np.array(losses)


def training_step(model: Any, optimizer: Any, x: Any, y: Any) -> sv.Tensor:
    optimizer.zero_grad()
    loss = sv.ops.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


# --- against PyTorch ---


def compare_speed(device: backend.Backend, name: str, batch_size: int) -> Row:
    """Milliseconds of a training step of a model at 224², float32, here and in PyTorch eager."""
    sv.use(device)
    backend.keep_freed_memory()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, 3, 224, 224), dtype=np.float32)
    labels = rng.integers(1000, size=batch_size)

    model = sv.create_model(name)
    optimizer = optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    x, y = backend.asarray(images), backend.asarray(labels)
    ours = median_ms(lambda: training_step(model, optimizer, x, y), device.synchronize)
    try:
        theirs = torch_step_ms(device.name, name, images, labels)
    except ImportError as error:
        return {"ok": None, "result": f"{ours:.1f} ms a step; nothing to compare with ({error})", "ms": ours}
    return {
        "ok": True,
        "result": f"batch {batch_size}: {ours:.1f} ms a step, PyTorch eager {theirs:.1f} ms: "
        f"{ours / theirs:.2f} times its time",
        "ms": ours,
        "torch_ms": theirs,
    }


def torch_step_ms(device: str, name: str, images: np.ndarray, labels: np.ndarray) -> float:
    """The same step in PyTorch. Raises ImportError where torch or timm is missing."""
    import torch

    from tests.support.peers import import_timm

    place = "cuda" if device == "gpu" else "cpu"
    model = import_timm().create_model(name).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    x, y = torch.from_numpy(images).to(place), torch.from_numpy(labels).to(place)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return median_ms(step, torch.cuda.synchronize if place == "cuda" else lambda: None)


def median_ms(step: Callable[[], Any], synchronize: Callable[[], None], repeats: int = 20) -> float:
    """The median time of a step, after three that compile, allocate and warm up."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 + repeats and (len(times) < 4 or time.perf_counter() - begin < SPEED_SECONDS / 2):
        start = time.perf_counter()
        step()
        synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def versions(device: backend.Backend) -> dict[str, Any]:
    """What was measured, on what."""
    found = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"].lower()
        if name in ("numpy", "scipy", "torch", "timm") or name.startswith("cupy"):
            found[name] = distribution.version
    commit = ""
    with contextlib.suppress(OSError):      # no git on this machine
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    gpu = None
    if device.name == "gpu":
        properties = device.xp.cuda.runtime.getDeviceProperties(device.xp.cuda.Device().id)
        gpu = properties["name"].decode()
    return {
        "commit": commit or "unknown",
        "gpu": gpu,
        "cuda_driver": cuda_driver_version(),
        "python": platform.python_version(),
        "versions": dict(sorted(found.items())),
    }


if __name__ == "__main__":
    sys.exit(main())
