"""Parts for the tests of scripts/gpu_parts/runner.py: items that pass, raise, crash, hang, and lose the device."""

import os
import signal
import sys
import time
import types

import pytest

from scripts.gpu_parts.part import Part


def passes(setting):
    return {"ok": True, "result": f"on {setting.device}", "process": os.getpid()}


def raises(setting):
    raise RuntimeError("no kernel image")


def skipped(setting):
    pytest.skip("timm is missing")


def without_torch(setting):
    import torch_is_not_here  # type: ignore[import-not-found]

    return torch_is_not_here


def missing_torch(setting):
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def crashes(setting):
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(setting):
    print("before it hangs", flush=True)
    time.sleep(600)


def ends(setting):
    sys.exit(7)


def loses_the_device(setting):
    """As after a kernel with an illegal access: this call fails, and every later one."""
    def fails():
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    runtime = types.SimpleNamespace(deviceSynchronize=fails)
    sys.modules["cupy"] = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    fails()


PARTS = (
    Part("failures", "each of another kind", {
        "first": passes, "raises": raises, "skipped": skipped, "without torch": missing_torch,
        "another package": without_torch, "same process": passes, "crashes": crashes, "after the crash": passes,
        "loses the device": loses_the_device, "after the loss": passes, "ends": ends, "last": passes,
    }, 600),
    Part("hanging", "one item hangs", {"first": passes, "hangs": hangs, "last": passes}, 600, 2),
    Part("slow", "the part is too slow", {"hangs": hangs, "last": passes}, 5),
    Part("alone", "each in its own process", {"first": passes, "second": passes}, 600, 60, True),
)


def find(name):
    return next((part for part in PARTS if part.name == name), None)
