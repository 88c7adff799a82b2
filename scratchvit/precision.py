"""How exact products of float32 matrices are on a GPU: in float32, or faster in TF32.

    sv.set_matmul_precision("tf32")         # before the model computes

From compute capability 8.0 on, GPUs multiply matrices several times as fast if the numbers that go in are rounded to
TF32: 8 bits of exponent as in float32, 10 bits of mantissa as in float16. Sums are made in float32. TF32 concerns
products alone: statistics of norms, sums of softmax and gradients of biases stay in float32.
"""

from __future__ import annotations

from scratchvit.errors import WrongValue

PRECISIONS = ("float32", "tf32")

_precision = "float32"


def set_matmul_precision(precision: str) -> None:
    """Compute products of float32 matrices on GPUs in "float32", the default, or in "tf32", in the whole process.

    It is `torch.set_float32_matmul_precision` with "highest" or "high". Products of other dtypes and on the CPU stay as
    they are. CUPY_TF32=1 in the environment concerns the products that CuPy makes itself: those of `einsum`.

    Raises ScratchvitError for another name.
    """
    global _precision
    if precision not in PRECISIONS:
        raise WrongValue(f"set_matmul_precision: {precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
    _precision = precision


def matmul_precision() -> str:
    """What `set_matmul_precision` was given: "float32" or "tf32"."""
    return _precision
