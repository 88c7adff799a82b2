"""Which parts there are, in which order, and their limits in seconds.

What is needed most comes first. A run ends at its budget, so that what comes last may be cut.
"""

from __future__ import annotations

from scripts.gpu_parts.facts import FACTS
from scripts.gpu_parts.kernels import SANITIZER, TABLES
from scripts.gpu_parts.micro import MICRO
from scripts.gpu_parts.part import Part
from scripts.gpu_parts.probes import PROBES
from scripts.gpu_parts.speed import COMPILED_PYTORCH, LONG, OURS, PYTORCH
from scripts.gpu_parts.suite import AGAIN, SUITE
from scripts.gpu_parts.training import FIRST_STEPS, TRAINING

BUDGETS = {"quick": 200, "measure": 460}        # seconds

QUICK = (
    Part("facts", "the GPU, its driver, the libraries", FACTS, 10, 10),
    Part("probes", "what CuPy, cuBLAS and the driver can do here", PROBES, 30, 20),
    Part("device tests", "the tests that use a device", SUITE, 92, 92),
    Part("failed tests again", "those that failed, without CUB, one kernel at a time", AGAIN, 13, 13),
    Part("training", "losses and gradients as on the CPU, and twice the same bits", TRAINING, 20, 15),
    Part("first steps", "until the first step is done, with and without compiled kernels", FIRST_STEPS, 35, 30, True),
)
MEASURE = (
    QUICK[0],
    Part("training steps", "ours", OURS, 110, 40),
    Part("training steps of PyTorch", "the same models, eager", PYTORCH, 70, 30),
    Part("kernels of a step", "their names, number and time", TABLES, 70, 40),
    Part("sanitizer", "NVIDIA's compute-sanitizer on our kernels", SANITIZER, 60, 60),
    Part("long runs", "speed with new data, growth of memory", LONG, 40, 30),
    Part("micro tables", "variants of an operation beside each other", MICRO, 50, 25),
    Part("compiled PyTorch", "torch.compile", COMPILED_PYTORCH, 46, 45),
)
MODES = {"quick": QUICK, "measure": MEASURE}


def find(name: str) -> Part | None:
    """The part of that name, if there is one."""
    return next((part for parts in MODES.values() for part in parts if part.name == name), None)
