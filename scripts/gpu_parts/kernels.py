"""Which kernels a training step consists of, and how long the device is busy with each; and what NVIDIA's
compute-sanitizer says of our own.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scratchvit.costs.profiling import profile
from scripts.gpu_parts.cases import CASES, our_model, our_step
from scripts.gpu_parts.part import ROOT, Item, Row, Setting, kernel_names, not_run
from scripts.gpu_parts.speed import EAGER, torch_precision, torch_step

MOST = 60                   # kernels in a table; the rest are summed up
SANITIZERS = ("/usr/local/cuda/bin", "/opt/nvidia/compute-sanitizer")      # where it may be, beside the PATH
AT_ONCE = 8                 # processes under the sanitizer

# {kind: what names of its kernels contain}; the first that fits
KINDS = {
    "products": ("gemm", "cutlass", "xmma", "cublas", "gemv", "splitk"),
    "convolutions": ("conv", "cudnn", "implicit", "wgrad", "dgrad"),
    "reductions": ("reduce", "cub::", "cupy_sum", "cupy_max", "cupy_mean", "_any", "_all", "argmax"),
    "copies": ("memcpy", "copy"),
    "fills": ("memset", "fill"),
}


# --- which kernels --------------------------------------------------------------------------------------------------


def ours(name: str, setting: Setting) -> Row:
    """By CUPTI, through PyTorch's profiler, which sees the kernels of the whole process. Without it, by op."""
    device = setting.use()
    try:
        import torch

        has_cupti = setting.on_gpu and torch.cuda.is_available()
    except ModuleNotFoundError:
        has_cupti = False
    if not has_cupti:
        return by_op(name, setting)
    step = our_step(CASES[name], setting.small)
    row = by_kernel(torch, step, device.synchronize)
    del step
    device.xp.get_default_memory_pool().free_all_blocks()
    return row


def theirs(name: str, setting: Setting) -> Row:
    """The same of PyTorch's step in float32."""
    import torch

    if not (setting.on_gpu and torch.cuda.is_available()):
        return not_run("PyTorch has no GPU here")
    with torch_precision("float32"):
        step = torch_step(CASES[name], setting.small, "cuda", "float32", EAGER)
        return by_kernel(torch, step, torch.cuda.synchronize)


def by_kernel(torch: Any, step: Callable[[], Any], wait: Callable[[], None]) -> Row:
    """A step after two others: every kernel's name, its count and its microseconds."""
    torch.cuda.init()
    for _ in range(2):
        step()
    wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        step()
        wait()
    table = sorted(
        ((event.key, event.count, _microseconds(event)) for event in found.key_averages() if _microseconds(event)),
        key=lambda row: -row[2],
    )
    kinds: dict[str, list[float]] = {}
    for name, count, us in table:
        kind = kinds.setdefault(kind_of(name), [0, 0.0])
        kind[0] += count
        kind[1] += us
    busy, count = sum(us for *_, us in table) / 1000, sum(count for _, count, _ in table)
    longest_first = sorted(kinds.items(), key=lambda kind: -kind[1][1])
    text = ", ".join(f"{kind} {us / 1000:.2f} ms ({n})" for kind, (n, us) in longest_first)
    return {
        "ok": bool(table), "busy_ms": busy, "operations": count, "kinds": kinds, "kernels": table[:MOST],
        "others": [len(table[MOST:]), sum(us for *_, us in table[MOST:])],
        "result": f"the device is busy for {busy:.2f} ms with {count:,} operations: {text}",
    }


def _microseconds(event: Any) -> float:
    """Of PyTorch's events, whose fields had other names before version 2.4."""
    time = getattr(event, "self_device_time_total", None)
    return float(event.self_cuda_time_total if time is None else time)


def kind_of(name: str) -> str:
    """Ours, by the names in kernels/cuda; products, copies, …; or "element by element" for the rest."""
    plain = name.partition("(")[0].split()[-1] if name.strip() else ""
    if any(plain in names for names in kernel_names().values()):
        return "our kernels"
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)),
                "element by element")


def by_op(name: str, setting: Setting) -> Row:
    """Milliseconds of each op, forward and backward, each with a wait for the device; a DETR's without matching."""
    case = CASES[name]
    found = profile(our_model(case, setting.small), batch_size=2 if setting.small else case.batch, steps=1)
    of_ops: dict[str, float] = {}
    for call in found.steps[0].calls:
        key = f"{call.name}, {call.direction}"
        of_ops[key] = of_ops.get(key, 0.0) + 1000 * call.seconds
    table = dict(sorted(of_ops.items(), key=lambda op: -op[1]))
    text = ", ".join(f"{op} {ms:.2f} ms" for op, ms in list(table.items())[:5])
    return {"ok": bool(table), "ops": table, "result": f"without CUPTI, with a wait after each op: {text}"}


# --- compute-sanitizer ----------------------------------------------------------------------------------------------


def sanitized(tool: str, setting: Setting) -> Row:
    """The tests of our kernels under a tool of compute-sanitizer, which looks at no others. A process for each file."""
    import pytest  # noqa: F401

    path = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *SANITIZERS]))
    if path is None or not setting.on_gpu:
        return not_run("there is no compute-sanitizer" if setting.on_gpu else "on the CPU")
    files = sorted((ROOT / "tests" / "kernels" / "cuda").glob("test_*.py"))
    answers = run_at_once(
        {file.stem: sanitizer_command(path, tool, file) for file in files}, setting,
        time.monotonic() + setting.seconds / 2 - 3,
    )
    wrong = {name: answer for name, answer in answers.items() if answer["errors"]}
    unfinished = [name for name, answer in answers.items() if answer["errors"] is None]
    text = ", ".join(f"{name}: {answer['said']}" for name, answer in wrong.items()) or "no errors"
    done = len(answers) - len(unfinished)
    return {
        "ok": False if wrong else True if done else None, "answers": answers,
        "result": f"{text} in {done} of {len(files)} files"
        + (f"; not finished: {', '.join(unfinished)}" if unfinished else ""),
    }


def sanitizer_command(path: str, tool: str, file: Path) -> list[str]:
    """`kne`: a kernel by its exact name; a kernel of any of these options is looked at."""
    names = dict.fromkeys(name for of_module in kernel_names().values() for name in of_module)
    ours = [word for name in names for word in ("--kernel-name", f"kne={name}")]
    return [
        path, "--tool", tool, "--error-exitcode", "9", *ours, sys.executable, "-m", "pytest", "-o", "addopts=", "-o",
        "filterwarnings=default", "-p", "no:cacheprovider", "-q", "--device", "gpu", str(file),
    ]


def run_at_once(commands: dict[str, Sequence[str]], setting: Setting, end: float) -> dict[str, dict[str, Any]]:
    """{name: {"errors": their number, or None if it did not end in time, "said": its last lines}}."""
    waiting, running, answers = dict(commands), {}, {}
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < AT_ONCE:
                name = next(iter(waiting))
                log = (setting.scratch / f"sanitizer-{name}.log").open("w+", encoding="utf-8")
                running[name] = log, subprocess.Popen(
                    waiting.pop(name), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
                )
            for name in [name for name, (_, process) in running.items() if process.poll() is not None]:
                log, process = running.pop(name)
                log.seek(0)
                answers[name] = verdict(log.read(), process.returncode)
            time.sleep(0.1)
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()
    return {**answers, **{name: {"errors": None, "said": "not finished"} for name in (*running, *waiting)}}


def verdict(output: str, status: int) -> dict[str, Any]:
    """What a run said: the number of errors or hazards, by its summary; its own status if there is none."""
    lines = [line.removeprefix("========= ") for line in output.splitlines() if line.startswith("=========")]
    counts = re.findall(r"SUMMARY: (\d+) (?:error|hazard)", "\n".join(lines))
    errors = int(counts[-1]) if counts else int(status != 0)
    if status not in (0, 9):                # the tests themselves failed, or did not begin
        errors = max(errors, 1)
    return {"errors": errors, "said": " | ".join(lines[-6:] or output.splitlines()[-3:])[-800:], "status": status}


TABLES: dict[str, Item] = {
    **{f"{name}, ours": functools.partial(ours, name) for name in CASES},
    **{f"{name}, PyTorch": functools.partial(theirs, name) for name in CASES},
}
SANITIZER: dict[str, Item] = {tool: functools.partial(sanitized, tool) for tool in ("racecheck", "memcheck")}
