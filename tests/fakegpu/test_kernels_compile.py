"""NVIDIA's own compiler takes every CUDA text of the package, for GPUs from Volta to Blackwell."""

import pytest
from fakegpu import nvrtc

from scratchvit.kernels.cuda import modules


@pytest.mark.parametrize(("module", "char"), modules.variants())
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES.split(","))
def test_compiles(module, char, arch):
    """Without spilling registers to memory, which would make a kernel slow without a word."""
    used = nvrtc.compile(modules.text_of(module, char), arch)
    assert used and {name for name, kernel in used.items() if kernel.spilled} == set()
