"""The CPU runs kernels as a GPU does, and notices what is wrong with one: barriers left out, masks, ends."""

import subprocess

import pytest

from tests.fakegpu import kernel_checks
from tests.fakegpu.helpers import start

LOAD_VALUES = "V[e / D][e % D] = j < M ? v[(long long)j * D + e % D] : 0;\n        }\n"
MUTANTS = {     # what is wrong: (a piece of kernels.cu, what is there instead)
    "no barrier after scratch is written": (
        "scratch[threadIdx.x / 32] = value;\n    __syncthreads();", "scratch[threadIdx.x / 32] = value;",
    ),
    "no barrier before scratch is reused": ("    __syncthreads();\n    return value;", "    return value;"),
    "the block's keys are not waited for": (LOAD_VALUES + "        __syncthreads();", LOAD_VALUES),
    "keys are overwritten while they are read": ("first += KEYS) {\n        __syncthreads();", "first += KEYS) {"),
    "a shuffle is left out": ("dot += __shfl_xor_sync(0xffffffffu, dot, 2);", ""),
    "the last keys are not masked": ("s[j] = first + j < M ? dot : -INF;", "s[j] = dot;"),
    "the sum is not scaled to the new maximum": ("total *= fade;", ""),
    "rows beyond the end are written": (
        "if (i < N) {\n        for (int c = 0; c < 16; c++) y", "if (true) {\n        for (int c = 0; c < 16; c++) y",
    ),
    "a shuffle of all lanes stands in a branch": (
        "dot += __shfl_xor_sync(0xffffffffu, dot, 1);", "if (part < 2) dot += __shfl_xor_sync(0xffffffffu, dot, 1);",
    ),
    "a barrier stands in a branch": (
        "    __syncthreads();\n    value = scratch[0];",
        "    if (threadIdx.x < 32) __syncthreads();\n    value = scratch[0];",
    ),
    "shared memory is read before it is written": (
        "if (threadIdx.x % 32 == 0) scratch", "if (threadIdx.x % 32 == 0 && threadIdx.x) scratch",
    ),
}


def test_softmax_layer_norm_and_attention_agree_with_numpy():
    kernel_checks.check(kernel_checks.TEXT)


@pytest.mark.parametrize("order", ["1", "2", "3"])
def test_no_order_of_the_warps_changes_a_correct_kernel(order):
    done = start("-m", "tests.fakegpu.kernel_checks", "#define ROWS 32", "#define ROWS 32", FAKEGPU_ORDER=order)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mutant", MUTANTS)
def test_some_order_of_the_warps_shows_what_is_wrong(mutant):
    for order in "0123":
        try:
            done = start("-m", "tests.fakegpu.kernel_checks", *MUTANTS[mutant], FAKEGPU_ORDER=order)
        except subprocess.TimeoutExpired:       # it hangs, as a GPU would
            return
        if done.returncode:
            assert "AssertionError: " in done.stderr or "fakegpu: kernel " in done.stderr, done.stderr
            return
    pytest.fail("nothing was noticed")
