"""How exact numbers are: products of float32 matrices on a GPU in TF32, and activations in 16 bits.

    sv.set_matmul_precision("tf32")         # before the model computes, for the whole process

From compute capability 8.0 on, GPUs multiply matrices several times as fast if the numbers that go in are rounded to
TF32: 8 bits of exponent as in float32, 10 bits of mantissa as in float16. Sums are made in float32. TF32 concerns
products alone: statistics of norms, sums of softmax and gradients of biases stay in float32.

    with sv.autocast("bfloat16"):           # mixed precision (Micikevicius et al., ICLR 2018, arXiv 1710.03740)
        loss = ops.cross_entropy(model(images), labels)
    loss.backward()

Inside, values of ops, the gradients between them and the operands of products are stored in 16 bits, which takes half
of the memory, half of the time to move them, and products of 16-bit matrices are the fastest that a GPU has. Parameters
stay in float32, their *masters*, with a 16-bit copy for products, and so do statistics, sums and losses. casting.py has
the rules.

    bfloat16    8 bits of exponent, 7 of mantissa: the range of float32. From compute capability 8.0 on
    float16     5 bits of exponent, 10 of mantissa: from 6e-8 to 65,504, so gradients need loss scaling

On the CPU, where 16-bit numbers are not faster but slower, arrays stay float32, and what a GPU would store in 16 bits
is rounded to such numbers: the accuracy of a training run can be measured without a GPU.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import backend, gpu
from scratchvit.errors import ScratchvitError, WrongValue
from scratchvit.recording import mode, storing

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


@dataclass(frozen=True)
class Half:
    """A type of 16-bit numbers: its name, and `dtype.char` of arrays that hold them."""

    name: str
    char: str

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The dtype of arrays on a GPU. Raises ScratchvitError if the package that has bfloat16 is missing."""
        if self.name == "float16":
            return np.dtype(np.float16)
        try:
            import ml_dtypes
        except ImportError:
            raise ScratchvitError(
                "bfloat16 arrays on a GPU need the package ml_dtypes: pip install ml_dtypes, or use float16"
            ) from None
        return np.dtype(ml_dtypes.bfloat16)


HALVES = {half.name: half for half in (Half("bfloat16", "E"), Half("float16", "e"))}


def is_half(x: Any) -> bool:
    """Whether x is an array of 16-bit floating-point numbers."""
    return hasattr(x, "dtype") and x.dtype.char in "eE"


@contextlib.contextmanager
def autocast(dtype: str) -> Iterator[None]:
    """Context manager and decorator in which ops store 16-bit numbers: "bfloat16" or "float16".

    See the top of this file, and casting.py for what stays in float32. With "float32", ops compute as always, also
    inside another autocast. The backward pass needs no autocast: it uses what the forward pass used. It affects the
    current thread only.

    On a GPU, float16 needs loss scaling (`optim.LossScaler`). float64 is never cast. `costs.cost` and
    `costs.peak_memory` do not see it (`peak_memory` has an argument of its own), and `gradcheck` refuses to run.
    Raises ScratchvitError for another name.
    """
    if dtype != "float32" and dtype not in HALVES:
        raise WrongValue(f"autocast: {dtype!r} is unknown: choose one of {', '.join(HALVES)}, or float32 for none")
    with storing(HALVES.get(dtype)):
        yield


def gradient_dtype(weight: Any) -> Any:
    """The dtype of the gradient of a product's weight: inside `autocast` that of its master, float32."""
    is_shadow = mode.get().half is not None and is_half(weight)
    return np.dtype(np.float32) if is_shadow else weight.dtype


# The precisions of a training run, and the autocast of each.
OF_A_RUN = {"float32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Context manager for one of the precisions of a run, OF_A_RUN; with float32 what was set stays."""
    before = matmul_precision()
    if precision == "float32":
        yield
        return
    try:
        if precision == "tf32":
            set_matmul_precision("tf32")
        with autocast(OF_A_RUN[precision]):
            yield
    finally:
        set_matmul_precision(before)


def check_precision(precision: str, capability: tuple[int, int] | None, name: str = "") -> None:
    """Raise ScratchvitError for a precision of a run that its device does not have.

    capability: the compute capability of the GPU in use, and its name; None on the CPU.
    """
    if precision == "tf32" and capability is None:
        raise ScratchvitError(
            "precision tf32 is about matrix products on GPUs from compute capability 8.0 on, and this run is on the "
            "CPU: choose float32, or a GPU with --device gpu"
        )
    if precision not in ("tf32", "bf16") or capability is None or capability >= (8, 0):
        return
    found = f"{name or 'this GPU'} has compute capability {'.'.join(map(str, capability))}"
    if precision == "tf32":
        raise ScratchvitError(f"precision tf32 needs a GPU from compute capability 8.0 on, and {found}: choose float32")
    raise ScratchvitError(
        f"precision bf16 needs a GPU from compute capability 8.0 on, and {found}: choose fp16, which it has"
    )


def use_device(name: str, precision: str) -> None:
    """Use a device from now on, with `computing_in(precision)` later on.

    Raises ScratchvitError for a device that is not there or does not have this precision.
    """
    device = backend.use(name)
    found = gpu.capability(device.xp, backend.gpu_number(name) or 0) if device.has_cuda else (None,)
    check_precision(precision, *found)


def autocast_dtype() -> str:
    """What the innermost `autocast` was given; "float32" outside of it."""
    half: Any = mode.get().half
    return half.name if half else "float32"
