"""How fast a machine is at most: its float32 matrix products and its memory, both measured in half a second.

The *roofline* (Williams, Waterman & Patterson, CACM 2009) is the limit that they set for an op. An op with F
floating-point operations that moves Q bytes between memory and processor has the intensity I = F / Q. It runs at

    min(peak, I · bandwidth)  FLOP/s at most,  that is, it takes  max(F / peak, Q / bandwidth)  at least.

>>> machine = Machine(flops=100e9, bandwidth=10e9)
>>> machine.at_best(flops=2e9, nbytes=10**8), machine.at_best(flops=0, nbytes=10**8)    # limited by 2e9 FLOP; by memory
(0.02, 0.01)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scratchvit.backend import Array, Backend, current
from scratchvit.threads import parallel_rows

SECONDS = 0.25              # for each of the two measurements, without the time to make their arrays
COPY_BYTES = 256 << 20      # of the array that is copied: larger than the caches
SIDES = (1024, 8192)        # of the matrices that are multiplied: the smallest and the largest
FEWEST = 3                  # calls that are timed, however long they take
LONG_ENOUGH = 0.01          # seconds: a shorter product is doubled in size, since the call itself takes some time


@dataclass(frozen=True)
class Machine:
    """What a machine can do at most, as measured by `measure`."""

    flops: float            # floating-point operations per second in float32 products, a multiply-add being two
    bandwidth: float        # bytes per second in a copy, which are read and written

    def at_best(self, flops: float, nbytes: int) -> float:
        """The shortest time, in seconds, in which the roofline allows this work (see the top of this file)."""
        return max(flops / self.flops, nbytes / self.bandwidth)


def measure() -> Machine:
    """Measure the device in use."""
    device = current()
    return Machine(product_speed(device, SECONDS), copy_speed(device, SECONDS))


def product_speed(device: Backend, seconds: float) -> float:
    """The speed of float32 matrix products in FLOP/s, the best of those made in this many seconds."""
    side, largest = SIDES
    while side < largest and shortest(_product(device, side), device, seconds=0) < LONG_ENOUGH:
        side *= 2
    return 2 * side**3 / shortest(_product(device, side), device, seconds)


def _product(device: Backend, side: int) -> Callable[[], Any]:
    matrix = device.xp.ones((side, side), dtype=device.xp.float32)
    result = device.xp.empty_like(matrix)
    return lambda: device.xp.matmul(matrix, matrix, out=result)


def copy_speed(device: Backend, seconds: float) -> float:
    """The speed of a copy in bytes/s, read and written. On the CPU it is dealt to all cores, as ops are."""
    source = device.xp.ones((COPY_BYTES // 4096, 1024), dtype=device.xp.float32)
    target = device.xp.zeros_like(source)

    def copy(rows: Array, into: Array) -> None:
        into[...] = rows

    return 2 * COPY_BYTES / shortest(lambda: parallel_rows(copy, source, target), device, seconds)


def shortest(function: Callable[[], Any], device: Backend, seconds: float) -> float:
    """The shortest time of a call, in seconds, of those made in this many seconds, at least FEWEST, after a warm-up."""
    function()              # compiles kernels and allocates memory
    device.synchronize()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < FEWEST or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        function()
        device.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
