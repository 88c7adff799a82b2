"""NVIDIA's own compiler takes every CUDA text of the package, for GPUs from Volta to Blackwell."""

import pytest
from fakegpu import nvrtc

from scratchvit.kernels.cuda import modules

ARCHITECTURES = nvrtc.ARCHITECTURES.split(",")

# float32 for all; the other types, whose texts differ in a few lines, for the oldest and the newest GPUs that have
# them: cuBLAS multiplies bfloat16 from 8.0 on.
OLDEST_AND_NEWEST = ARCHITECTURES[0], ARCHITECTURES[-1]
OTHER_TYPES = {"d": OLDEST_AND_NEWEST, "e": OLDEST_AND_NEWEST, "E": ("sm_80", ARCHITECTURES[-1])}
CASES = [
    (arch, module, char) for module, char in modules.variants() if module not in modules.FLASH
    for arch in OTHER_TYPES.get(char, ARCHITECTURES)
]


@pytest.mark.parametrize(("arch", "module", "char"), CASES)
def test_compiles(module, char, arch):
    """Without spilling registers to memory, which would make a kernel slow without a word."""
    used = nvrtc.compile(modules.text_of(module, char), arch)
    assert used and {name for name, kernel in used.items() if kernel.spilled} == set()


# They take seconds. The two types of 16 bits differ in two lines.
@pytest.mark.parametrize(("module", "char", "arch"), [
    *(("flash_64", char, arch) for char in "fE" for arch in ARCHITECTURES[1:]), ("flash_64", "e", "sm_80"),
    *((module, char, "sm_80") for char in "fE" for module in modules.FLASH if module != "flash_64"),
])
def test_attention_by_tensor_cores_compiles(module, char, arch):
    """With heads of more than 64 numbers, not all of what a thread needs has room in its registers."""
    used = nvrtc.compile(modules.text_of(module, char), arch)
    assert len(used) == 3
    assert modules.FLASH[module] > 64 or not any(kernel.spilled for kernel in used.values())
