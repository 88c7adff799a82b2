"""One product of a warp by tensor cores, 16 × 8 × 16 and in TF32 16 × 8 × 8: does a lane hold what mma.py says?

tests/fakegpu computes such products by NVIDIA's manual, so that an error in reading it would show on a device only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchvit.kernels.cuda import draws, mma, modules
from scripts.gpu_parts.part import Row, Setting, not_run

TEXT = r"""
// s (16, STEP) = a bᵀ and y (16, 8) = s w, for a (16, STEP), b (STEP, STEP), w (STEP, 8): attention without softmax.
extern "C" __global__ void probe_tensor_cores(const T* a, const T* b, const T* w, float* s, float* y) {
    Sums scores[STEP / 8] = {}, sums = {};
    for (int j = 0; j < STEP / 8; j++) {
        add_product(scores[j], left(a, STEP), right_transposed(b + j * 8 * STEP, STEP));
        for (int i = 0; i < 4; i++) s[row_of(i) * STEP + j * 8 + column_of(i)] = scores[j].at[i];
    }
    add_product(sums, left_of(scores), right(w, 8));
    for (int i = 0; i < 4; i++) y[row_of(i) * 8 + column_of(i)] = sums.at[i];
}
"""


def products(xp: Any, dtype: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{array of the kernel: as it is, as it should be}: small integers, so that nothing is rounded in any type."""
    dtype = np.dtype(dtype)
    step = 16 if dtype.itemsize == 2 else 8
    rng = np.random.default_rng(0)
    a, b, w = (rng.integers(-2, 3, shape) for shape in ((16, step), (step, step), (step, 8)))
    kernel = xp.RawKernel(
        "\n".join([modules.head_of(dtype.char), draws.TEXT, mma.TEXT, TEXT]), "probe_tensor_cores", ("--std=c++17",)
    )
    s, y = xp.empty((16, step), np.float32), xp.empty((16, 8), np.float32)
    kernel((1,), (32,), (*(xp.asarray(x.astype(dtype)) for x in (a, b, w)), s, y))
    return {"s": (s.get(), a @ b.T), "y": (y.get(), a @ b.T @ w)}


def tensor_cores(setting: Setting) -> Row:
    """The products of mma.py, of numbers of 16 bits and in TF32, against NumPy's; the number of wrong entries."""
    if not setting.on_gpu:
        return not_run("on the CPU")
    xp = setting.use().xp
    if int(xp.cuda.Device().compute_capability) < 80:
        return not_run("this GPU has no such instructions")
    dtypes: dict[str, Any] = {"TF32": np.float32, "float16": np.float16}
    try:
        from ml_dtypes import bfloat16

        dtypes["bfloat16"] = bfloat16
    except ModuleNotFoundError:
        pass
    wrong = {
        f"{name}, {array}": int((found != expected).sum())
        for name, dtype in dtypes.items() for array, (found, expected) in products(xp, dtype).items()
    }
    failed = ", ".join(f"{count} entries of {array}" for array, count in wrong.items() if count)
    result = f"wrong: {failed}" if failed else f"products of {', '.join(dtypes)} are right"
    return {"ok": not failed, "wrong": wrong, "result": result}
