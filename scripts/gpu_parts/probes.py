"""What CuPy, its libraries and the driver can do on this device, one question each, in a few seconds altogether.

Questions that only a device answers: does every library load, which limits do batched products have, how accurate is a
product, is a sum the same with CUB and without, can a step be captured, what does running out of memory look like?
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.special

import scratchvit as sv
from scratchvit import backend, gpu
from scratchvit.precision import computing_in
from scratchvit.random import Generator
from scripts.gpu_parts.part import Row, Setting, T, kernel_names, not_run
from scripts.gpu_parts.tensor_cores import tensor_cores
from scripts.gpu_parts.timing import call_times, seconds_of

# float32 has 24 bits. A limit is a few times what rounding explains.
SUM_LIMIT, ERF_LIMIT, PRODUCT_LIMIT, TF32_LIMIT = 1e-5, 1e-6, 1e-5, 2e-3


def our_kernels(setting: Setting) -> Row:
    """Every kernel of kernels/cuda, compiled for this device: its registers, and bytes spilled to memory.

    Those of flash.py for heads of up to 64 numbers only.
    """
    if not setting.on_gpu:
        return not_run("on the CPU")
    capability = int(setting.use().xp.cuda.Device().compute_capability)
    from scratchvit.kernels.cuda import modules

    found, begin = {}, time.perf_counter()
    for module, char in modules.variants():
        rare = module in modules.FLASH and module != "flash_64"         # they take seconds to compile
        if rare or capability < modules.least_capability(module):
            continue
        for name in kernel_names()[module]:
            attributes = modules.kernel(module, name, char).attributes
            found[f"{module}.{name}, {modules.TYPES[char][0]}"] = {
                key: attributes[key] for key in ("num_regs", "local_size_bytes", "shared_size_bytes")
            }
    spilled = [name for name, each in found.items() if each["local_size_bytes"]]
    return {
        "ok": bool(found), "kernels": found, "spilled": spilled,
        "result": f"{len(found)} kernels in {time.perf_counter() - begin:.1f} s; "
        f"{', '.join(spilled) or 'none'} with numbers outside registers",
    }


def sums(setting: Setting) -> Row:
    """Sums over the last and the first axis, and argmax and any, whose CUB variants take seconds to compile."""
    used = setting.use()
    xp, rows = used.xp, setting.pick(12_608, 65)
    host = np.random.default_rng(0).standard_normal((rows, 193), dtype=np.float32)
    x, found, error = used.xp.asarray(host), {}, 0.0
    for way in ("as set", "without CUB") if setting.on_gpu else ("NumPy",):
        with accelerators(xp, [] if way == "without CUB" else None):
            for name, function in {
                "last axis": lambda: x.sum(axis=-1), "first axis": lambda: x.sum(axis=0),
                "argmax": lambda: x.argmax(axis=-1), "any": lambda: (x > 3).any(),
            }.items():
                first = seconds_of(function, used.synchronize)
                found[f"{name}, {way}"] = {"first_s": round(first, 3), **call_times(function, used.synchronize, 0.02)}
            for axis in (-1, 0):
                difference = np.abs(used.to_host(x.sum(axis=axis)) - host.sum(axis=axis, dtype=np.float64))
                error = max(error, float(difference.max() / host.shape[axis] ** 0.5))
    slowest = max(found, key=lambda name: found[name]["first_s"])
    return {
        "ok": error < SUM_LIMIT, "calls": found, "error": error,
        "result": f"error {error:.1e} (limit {SUM_LIMIT:.0e}); the first call of {slowest!r} took "
        f"{found[slowest]['first_s']} s",
    }


def products(setting: Setting) -> Row:
    """The error of a product: ours in float32 and TF32, and CuPy's own, also in cuBLAS' pedantic mode."""
    used = setting.use()
    n = setting.pick(1024, 128)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    exact, errors = a.astype(np.float64) @ b.astype(np.float64), {}
    x, y = used.xp.asarray(a), used.xp.asarray(b)

    def note(way: str, product: Any) -> None:
        errors[way] = float(np.linalg.norm(used.to_host(product) - exact) / np.linalg.norm(exact))

    for precision in ("float32", "TF32"):
        with computing_in(precision.lower()):
            note(precision, sv.kernels.products.matmul(x, y))
    for name in ("DEFAULT", "PEDANTIC") if setting.on_gpu else ():
        with compute_type(used.xp, name):
            note(f"CuPy's {name.lower()}", x @ y)
    text = ", ".join(f"{way} {error:.1e}" for way, error in errors.items())
    return {
        "ok": all(error < (TF32_LIMIT if way == "TF32" else PRODUCT_LIMIT) for way, error in errors.items()),
        "errors": errors,
        "result": f"relative errors at {n}³: {text}",
    }


def stacks(setting: Setting) -> Row:
    """Stacks of 65,535 products and more, by which some of cuBLAS' kernels number their grid; and ours around them."""
    used = setting.use()
    xp, answers = used.xp, {}
    for count in setting.pick((65_535, 65_536, 200_704), (65_535, 65_536)):
        x = xp.arange(count * 4, dtype=np.float32).reshape(count, 1, 4) % 7
        y = xp.ones((count, 4, 1), np.float32)
        expected = x.sum(axis=-1, keepdims=True)
        for name, call in {
            "kernels.products": lambda x=x, y=y: sv.kernels.products.matmul(x, y),
            "strided": lambda x=x, y=y: xp.matmul(x, y),
            "shared factor": lambda x=x, y=y: xp.matmul(x, xp.broadcast_to(y[:1], y.shape)),
        }.items():
            answers[f"{name}, {count}"] = answer_of(lambda call=call, e=expected: bool((call() == e).all()))
    ours = [answer for name, answer in answers.items() if name.startswith("kernels")]
    wrong = [f"{name}: {answer}" for name, answer in answers.items() if answer is not True]
    return {
        "ok": all(answer is True for answer in ours), "answers": answers,
        "result": "; ".join(wrong) or "all sizes are right, by CuPy's own products too",
    }


def indices(setting: Setting) -> Row:
    """Sorting, searching and sums of runs give NumPy's results."""
    used = setting.use()
    host = np.random.default_rng(0).integers(0, 1000, setting.pick(200_000, 3000)).astype(np.int64)
    x = used.xp.asarray(host)
    order = used.to_host(x.argsort())
    found = used.to_host(used.xp.searchsorted(used.xp.sort(x), used.xp.arange(1000)))
    rows = used.xp.cumsum(x)
    right = {
        "argsort": np.array_equal(host[order], np.sort(host)),
        "searchsorted": np.array_equal(found, np.searchsorted(np.sort(host), np.arange(1000))),
        "cumsum": np.array_equal(used.to_host(rows), np.cumsum(host)),
    }
    wrong = [name for name, is_right in right.items() if not is_right]
    return {"ok": not wrong, "result": f"wrong: {', '.join(wrong)}" if wrong else f"{', '.join(right)} are NumPy's"}


def functions(setting: Setting) -> Row:
    """erf against SciPy in float64, and random masks bit by bit against those of the CPU."""
    used = setting.use()
    host = np.linspace(-5, 5, 10_001, dtype=np.float32)
    found = used.to_host(backend.erf(used.xp.asarray(host)))
    error = float(np.abs(found - scipy.special.erf(host.astype(np.float64))).max())
    masks = []
    for name in (setting.device, "cpu"):
        sv.use(name)
        masks.append(backend.asnumpy(Generator(5).bernoulli(0.3, (1000, 33))))
    setting.use()
    same = np.array_equal(*masks)
    return {
        "ok": error < ERF_LIMIT and same,
        "result": f"erf: error {error:.1e}; dropout masks are {'the CPU’s' if same else 'NOT the CPU’s'}",
    }


def copies(setting: Setting) -> Row:
    """Gigabytes per second from the host, from its pinned memory, and within the device (read and written)."""
    if not setting.on_gpu:
        return not_run("on the CPU")
    used = setting.use()
    xp, nbytes = used.xp, setting.pick(256 << 20, 1 << 20)
    import cupyx

    device, other = (xp.empty(nbytes, np.uint8) for _ in range(2))
    pageable, pinned = np.ones(nbytes, np.uint8), cupyx.empty_pinned(nbytes, np.uint8)
    pinned[...] = 1
    speeds = {}
    for name, copy, moved in (
        ("pageable", lambda: device.set(pageable), 1), ("pinned", lambda: device.set(pinned), 1),
        ("within", lambda: xp.copyto(other, device), 2),
    ):
        copy()
        seconds = min(seconds_of(copy, used.synchronize) for _ in range(5))
        speeds[name] = round(moved * nbytes / seconds / 1e9, 1)
    return {"ok": True, "gb_per_s": speeds, "result": ", ".join(f"{name} {s} GB/s" for name, s in speeds.items())}


def launches(setting: Setting) -> Row:
    """Microseconds of the host for a small operation, by how it is started."""
    used = setting.use()
    xp = used.xp
    x, y, matrix = (xp.ones(shape, np.float32) for shape in (64, 64, (16, 16)))
    ways: dict[str, Callable[[], Any]] = {
        "ufunc": lambda: xp.add(x, y, out=y), "allocation": lambda: xp.empty(64, np.float32),
        "product": lambda: matrix @ matrix, "view": lambda: matrix.reshape(-1),
    }
    if setting.on_gpu:
        elementwise = xp.ElementwiseKernel("T x", "T y", "y = x + 1", "probe_add")
        raw = xp.RawKernel(
            'extern "C" __global__ void probe_raw(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }',
            "probe_raw",
        )
        ways |= {"ElementwiseKernel": lambda: elementwise(x, y), "RawKernel": lambda: raw((1,), (64,), (x, y))}
    found = {name: call_times(call, used.synchronize, 0.03) for name, call in ways.items()}
    return {"ok": True, "calls": found,
            "result": ", ".join(f"{name} {times['host_us']} µs" for name, times in found.items())}


def struct_argument(setting: Setting) -> Row:
    """A table of pointers and lengths as one argument of a kernel, as kernels for many tensors at once need it."""
    if not setting.on_gpu:
        return not_run("on the CPU")
    xp = setting.use().xp
    kernel = xp.RawKernel(
        "struct Table { float* at[64]; long long length[64]; };\n"
        'extern "C" __global__ void probe_table(Table t, double by) {\n'
        "    if (threadIdx.x < t.length[blockIdx.x]) t.at[blockIdx.x][threadIdx.x] *= by;\n}", "probe_table",
    )
    arrays = [xp.ones(n % 31 + 1, np.float32) for n in range(64)]
    table = np.zeros((), [("at", np.uint64, 64), ("length", np.int64, 64)])
    table["at"], table["length"] = [each.data.ptr for each in arrays], [each.size for each in arrays]
    kernel((64,), (32,), (table[()], np.float64(3)))
    right = all(bool((each == 3).all()) for each in arrays)
    return {"ok": right, "result": "1,024 bytes are passed" if right else "the values are wrong"}


def capture(setting: Setting) -> Row:
    """A CUDA graph of kernels, of our products, and of CuPy's own, which CuPy 14 refuses to capture."""
    if not setting.on_gpu:
        return not_run("on the CPU")
    xp = setting.use().xp
    x, y = xp.ones((64, 64), np.float32), xp.zeros((64, 64), np.float32)
    answers = {}
    for name, work, expected in (
        ("kernels", lambda: xp.add(x, 1, out=y), 2.0),
        ("our product", lambda: sv.kernels.products.matmul(x, x, out=y), 64.0),
        ("CuPy's product", lambda: xp.matmul(x, x, out=y), 64.0),
    ):
        answers[name] = answer_of(lambda work=work, expected=expected: _replays(xp, work, y, expected))
    text = "; ".join(f"{name}: {'captured' if answer is True else answer}" for name, answer in answers.items())
    return {"ok": answers["kernels"] is True and answers["our product"] is True, "answers": answers, "result": text}


def memory(setting: Setting) -> Row:
    """Running out of memory is a sentence, and the device still computes afterwards."""
    if not setting.on_gpu:
        return not_run("on the CPU")
    xp = setting.use().xp
    pool = xp.get_default_memory_pool()
    pool.set_limit(size=pool.total_bytes() + (1 << 20))
    try:
        xp.empty(64 << 20, np.uint8)
        text = None
    except Exception as error:
        text = gpu.explain(error, batch_size=8) if gpu.is_out_of_memory(error) else None
    finally:
        pool.set_limit(size=0)
    works = float(xp.ones(3).sum()) == 3
    return {"ok": bool(text) and works, "result": text or "no error of memory was raised"}


# --- help -----------------------------------------------------------------------------------------------------------


def answer_of(ask: Callable[[], T]) -> T | str:
    """What a question gives, or its error in a line. Errors after which the device cannot be used are raised."""
    try:
        return ask()
    except Exception as error:
        if gpu.has_failed_for_good(error):
            raise
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]


@contextlib.contextmanager
def accelerators(xp: Any, names: list[str] | None) -> Iterator[None]:
    """CuPy's reductions by these libraries; None: as they are set."""
    if names is None:
        yield
        return
    core = xp._core
    before = core.get_routine_accelerators(), core.get_reduction_accelerators()
    try:
        core.set_routine_accelerators(names)
        core.set_reduction_accelerators(names)
        yield
    finally:
        core.set_routine_accelerators(before[0])
        core.set_reduction_accelerators(before[1])


@contextlib.contextmanager
def compute_type(xp: Any, name: str) -> Iterator[None]:
    """CuPy's own products of float32 matrices in this type of cuBLAS: "DEFAULT", "TF32", "PEDANTIC"."""
    linalg = xp._core._routines_linalg
    before = linalg.get_compute_type(np.float32)
    try:
        linalg.set_compute_type(np.float32, getattr(linalg, f"COMPUTE_TYPE_{name}"))
        yield
    finally:
        linalg.set_compute_type(np.float32, before)


def _replays(xp: Any, work: Callable[[], Any], out: Any, expected: float) -> bool:
    """Whether work can be captured, is not done then, and is done by a replay."""
    stream = xp.cuda.Stream(non_blocking=True)
    xp.cuda.runtime.deviceSynchronize()
    with stream:
        work()                  # the first product in a stream creates a handle and a workspace
        out.fill(0)
        stream.begin_capture()
        try:
            work()
        finally:
            graph = stream.end_capture()
        before = float(out[3, 3])
        graph.launch(stream)
        stream.synchronize()
        return before == 0 and float(out[3, 3]) == expected


PROBES = {
    "our kernels": our_kernels, "sums": sums, "accuracy of products": products, "stacks of products": stacks,
    "sorting and searching": indices, "erf and random masks": functions, "copies": copies, "launches": launches,
    "tensor cores": tensor_cores, "a struct as an argument": struct_argument, "CUDA graphs": capture,
    "out of memory": memory,
}
