"""The first run on a GPU, with CuPy's own compiler functions and its folder of kernels."""

import re

import pytest

from tests.fakegpu.helpers import start

COMPILED = """
import scratchvit as sv
sv.use("gpu")
import cupy
from scratchvit.compiling import COUNT
cupy.arange(6) + 1
"""


def test_kernels_are_compiled_in_the_first_process_only(tmp_path):
    kept = {"CUPY_CACHE_DIR": str(tmp_path), "CUPY_CACHE_IN_MEMORY": "0"}
    first, second = (start("-c", f"{COMPILED}print(COUNT.kernels)", **kept) for _ in range(2))
    compiled = len(list(tmp_path.glob("*.cubin")))
    assert (first.stdout, second.stdout) == (f"{compiled}\n", "0\n") and compiled >= 2, first.stderr
    assert first.stderr.count(f"they are kept in {tmp_path}") == 1 and not second.stderr
    assert len(list(tmp_path.glob("scratchvit-*-cupy-*-nvrtc-*-sm90"))) == 1


@pytest.mark.parametrize(("before", "used"), [("pop('CUPY_NVRTC_USE_PCH', None)", True),
                                              ("update(CUPY_NVRTC_USE_PCH='0')", False)])
def test_headers_are_precompiled_unless_the_user_says_otherwise(before, used):
    done = start("-c", f"import os; os.environ.{before}{COMPILED}print(cupy.cuda.compiler._use_pch)")
    assert done.stdout == f"{used}\n", done.stderr


def test_doctor_compiles_what_training_needs(tmp_path):
    """Of a classifier and of a detector; in the next process there is nothing left to compile."""
    def doctor(*models):
        lines = "\n".join(f"main(['doctor', '--warm', '{model}'])" for model in models)
        code = f"from scratchvit.cli import _warm, main\n_warm.BATCH = 2\n{lines}"
        done = start("-c", code, CUPY_CACHE_DIR=str(tmp_path), CUPY_CACHE_IN_MEMORY="0")
        return " ".join(done.stdout.split())

    vit, detr = "vit_tiny_patch16_224", "detr_tiny"
    first, second = doctor(vit, detr), doctor(vit)
    counts = [int(count) for count in re.findall(r"(\d+) kernels for training \S+ compiled in [\d.]+ s", first)]
    assert sum(counts) == len(list(tmp_path.glob("*.cubin"))) and min(counts) > 20
    assert second == f"all kernels for training {vit} were compiled before; they are kept in {tmp_path}"
