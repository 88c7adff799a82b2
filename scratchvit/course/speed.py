"""Chapter 11: how long things take on the reader's machine, and softmax and sums in the steps of a kernel."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.costs.machine import Machine
from scratchvit.costs.profiling import Row
from scratchvit.plain import plain_forms
from scratchvit.tensor import Tensor
from scratchvit.threads import parallel_rows

Floats = NDArray[np.float32]

LANES = 32              # threads of a warp
MEBIBYTE = 1 << 20


def seconds(function: Callable[[], Any], times: int = 3) -> float:
    """The shortest time of a call, of so many after one to warm up. It depends on the machine and on its other work."""
    function()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def additions(sizes: Sequence[float]) -> list[tuple[float, float]]:
    """Nanoseconds an entry of a + b, for arrays of these sizes in MiB: into a new array, and into one that exists."""
    found = []
    for size in sizes:
        a = np.ones(int(size * MEBIBYTE) // 4, np.float32)
        b, out = np.ones_like(a), np.empty_like(a)
        into_new, into_old = functools.partial(np.add, a, b), functools.partial(np.add, a, b, out=out)
        found.append((1e9 * seconds(into_new) / a.size, 1e9 * seconds(into_old) / a.size))
    return found


def update(w: Floats, g: Floats, m: Floats, v: Floats, t: Floats) -> None:
    """A step of Adam (without its correction) as 12 operations of NumPy, each of which goes over whole arrays.

    w, g, m, v: weights, gradients and moments. t: for what lies between.
    """
    m *= np.float32(0.9)
    np.multiply(g, np.float32(0.1), out=t)
    m += t
    v *= np.float32(0.999)
    np.multiply(g, g, out=t)
    t *= np.float32(0.001)
    v += t
    np.sqrt(v, out=t)
    t += np.float32(1e-8)
    np.divide(m, t, out=t)
    t *= np.float32(1e-3)
    w -= t


def updates(block_bytes: Sequence[int], rows: int = 8192, columns: int = 512) -> tuple[list[float], float]:
    """The seconds of `update` on arrays (rows, columns): in blocks of rows of these sizes, and on whole arrays."""
    rng = np.random.default_rng(0)
    arrays = [rng.random((rows, columns), np.float32) for _ in range(5)]
    blocks = [seconds(functools.partial(parallel_rows, update, *arrays, block_bytes=size)) for size in block_bytes]
    return blocks, seconds(functools.partial(update, *arrays))


class Compared(NamedTuple):
    """An op in its plain and its fast form: seconds of each, and the largest difference between their results."""

    name: str
    plain: float
    fast: float
    difference: float


def plain_and_fast(rows: int = 1024, dim: int = 192, images: int = 4, tokens: int = 197) -> list[Compared]:
    """Time ops on arrays of the size of a ViT-Ti in both forms, and compare the results."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, dim)).astype(np.float32)
    q, k, v = (rng.standard_normal((images, 3, tokens, dim // 3)).astype(np.float32) for _ in range(3))
    weight, bias = np.ones(dim, np.float32), np.zeros(dim, np.float32)
    cases: dict[str, Callable[[], Tensor]] = {
        "gelu": lambda: ops.gelu(x), "layer_norm": lambda: ops.layer_norm(x, dim, weight, bias),
        "attention": lambda: ops.attention(q, k, v),
    }
    found = []
    for name, case in cases.items():
        fast, of_fast = seconds(case), case().numpy()
        with plain_forms():
            plain, of_plain = seconds(case), case().numpy()
        found.append(Compared(name, plain, fast, float(np.abs(of_plain - of_fast).max())))
    return found


class Step(NamedTuple):
    """What attention without the matrix knows of a query after a block of keys: m and l, and y (e,), not divided yet.
    """

    end: int
    m: float
    l: float
    y: Floats


def online(scores: Floats, values: Floats, block: int) -> list[Step]:
    """Softmax(scores) values block by block, for one query: scores (M,), values (M, e). At the end it is y / l."""
    m, l, y = -np.inf, 0.0, np.zeros(values.shape[1])
    steps = []
    for start in range(0, len(scores), block):
        s, v = scores[start : start + block], values[start : start + block]
        m_new = max(m, float(s.max()))
        p, rescale = np.exp(s - m_new), float(np.exp(m - m_new))
        l, y, m = l * rescale + float(p.sum()), y * rescale + p @ v, m_new
        steps.append(Step(start + len(s), m, l, y))
    return steps


def joined(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """(m, l) of two blocks of keys together, from those of each."""
    m = max(first[0], second[0])
    return m, sum(l * float(np.exp(of_block - m)) for of_block, l in (first, second))


def in_blocks_and_whole(tokens: int, dim: int = 32) -> float:
    """The largest difference between attention in blocks, which has no matrix, and by its definition."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, tokens, dim)).astype(np.float32) for _ in range(3))
    in_blocks = ops.attention(q, k, v, blocks=True).numpy()
    with plain_forms():
        whole = ops.attention(q, k, v, blocks=False).numpy()
    return float(np.abs(in_blocks - whole).max())


def attention_bytes(tokens: int, heads: int = 1) -> tuple[int, int]:
    """Bytes in float32 of all attention matrices of a layer, and of m and l instead."""
    return 4 * heads * tokens**2, 4 * heads * 2 * tokens


def warp_steps(values: Floats) -> list[Floats]:
    """The registers of the 32 lanes of a warp before and after each exchange of `warp_sum` (kernels/cuda/warps.py)."""
    lanes = np.arange(LANES)
    steps, apart = [values.astype(np.float32)], LANES // 2
    while apart:
        steps.append(steps[-1] + steps[-1][lanes ^ apart])
        apart //= 2
    return steps


def busiest(rows: Sequence[Row], most: int = 8) -> list[Row]:
    """The rows of a profile that the machine would take longest for at best, in this order."""
    return sorted(rows, key=lambda row: -row.at_best)[:most]


def share_of_peak(machine: Machine, intensity: float) -> float:
    """The share of a machine's FLOP/s that an op of this intensity, FLOP per byte, can reach at most."""
    nbytes = 1 << 30
    flops = intensity * nbytes
    return flops / machine.at_best(flops, nbytes) / machine.flops
