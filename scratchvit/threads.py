"""The CPU's cores: blocks of work are distributed to threads of our own, with a single-threaded BLAS inside.

NumPy's BLAS has threads for its matrix products, but everything between two products runs on one core, and BLAS's
threads wait for the next product in a busy loop that takes a core from everything else. So here products too are cut
into blocks (`kernels.products`), and BLAS is limited to one thread for as long as blocks are computed.

Blocks fit in a core's cache where that is possible, but a NumPy call on a block should take 50 µs or more: threads that
make shorter calls wait for Python's global lock, and two of them may take longer than one.

How work is cut into blocks depends on the sizes of the arrays and never on the number of threads. The results are
therefore the same, bit for bit, for any number of threads.
"""

from __future__ import annotations

import contextvars
import functools
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import threadpoolctl

from scratchvit.backend import CPU, Array, backend_of
from scratchvit.plain import is_plain

BLOCK_BYTES = 1 << 20       # 1 MiB: small enough for the cache, large enough that Python's share is small
PARALLEL_BYTES = 1 << 20    # for smaller arrays, distributing rows to threads costs more than it saves
BLOCKS = 8                  # larger arrays have at least so many blocks, for as many threads


def cpu_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_threads() -> int:
    """The number of threads for work on the CPU: that of BLAS, but at most the number of cores.

    BLAS's number comes from OMP_NUM_THREADS or from threadpoolctl's `threadpool_limits`.
    """
    return max(1, min(_blas.threads() or _threads_in_environment() or cpu_cores(), cpu_cores()))


def limit_cpu_threads(number: int) -> None:
    """From now on, use at most so many threads. Called before blocks are computed."""
    number = min(number, cpu_threads())
    os.environ["OMP_NUM_THREADS"] = str(number)     # for Accelerate, and for processes that this one starts
    threadpoolctl.threadpool_limits(number, user_api="blas")


def _threads_in_environment() -> int | None:
    """OMP_NUM_THREADS, for a BLAS that threadpoolctl does not know: Accelerate, which NumPy uses on macOS."""
    number = os.environ.get("OMP_NUM_THREADS", "")
    return int(number) if number.isdecimal() else None


class _Blas:
    """A context in which NumPy's BLAS has one thread. It may be entered by several threads at once.

    The number of threads belongs to the whole process. The first thread that enters saves it, and the last one that
    leaves restores it, so products outside have as many threads as before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: list[int] = []

    @functools.cached_property
    def _libraries(self) -> list[Any]:
        return threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers

    def threads(self) -> int:
        """The number of threads outside of this context; 0 if threadpoolctl knows no BLAS here."""
        with self._lock:
            return max(self._saved if self._inside else self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        return [library.get_num_threads() for library in self._libraries]

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = self._numbers()
                self._set([1] * len(self._saved))
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(self._saved)

    def _set(self, numbers: Sequence[int]) -> None:
        for library, saved, number in zip(self._libraries, self._saved, numbers):
            if saved != 1:
                library.set_num_threads(number)

    def leave_to_child(self) -> None:
        """After `os.fork`: the threads that were inside do not exist in the child."""
        inside, self._inside, self._lock = self._inside, 0, threading.Lock()
        if inside:
            self._set(self._saved)


_blas = _Blas()
single_threaded = _blas         # `with single_threaded:` for a product that is not worth distributing
_at_work = threading.local()    # whether this thread computes a block


def inside_block() -> bool:
    """Whether the calling thread computes a block of `deal`: what it does then needs no further threads."""
    return getattr(_at_work, "block", False)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cpu_cores(), thread_name_prefix="scratchvit")


def _forget_threads() -> None:
    _pool.cache_clear()
    _at_work.block = False
    _blas.leave_to_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def deal(fn: Callable[..., Any], blocks: Sequence[tuple[Array, ...]], parallel: bool = True) -> list[Any]:
    """Call `fn(*block)` for every block in a pool of threads; returns the results in the order of the blocks.

    NumPy releases the GIL inside each call, so Python threads run in parallel. Their matrix products are
    single-threaded. Inside of a block, and with parallel=False, all is computed by the calling thread.
    """
    results: list[Any] = [None] * len(blocks)
    remaining = iter(enumerate(blocks))

    def work() -> None:
        _at_work.block = True
        try:
            for number, block in remaining:     # the iterator is shared: each block goes to one thread
                results[number] = fn(*block)
        finally:
            _at_work.block = False

    if inside_block():
        return [fn(*block) for block in blocks]
    with single_threaded:
        threads = min(cpu_threads(), len(blocks)) if parallel else 1
        # Each thread runs in a copy of this thread's context, which includes NumPy's error state.
        others = [_pool().submit(contextvars.copy_context().run, work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
    return results


def parallel_rows(
    fn: Callable[..., Any], *arrays: Array, block_bytes: int = BLOCK_BYTES, largest: int = 0
) -> list[Any]:
    """Call `fn(*blocks)` for blocks of rows (axis 0) of the arrays, which all have the same number of rows.

    On the CPU, the blocks of the largest array have about block_bytes, which fits in the cache, and are distributed to
    threads: a chain of NumPy calls on one block then runs at the speed of the cache on every core. If fn itself makes
    larger arrays, `largest` is their size in bytes for all rows. On a GPU, fn is called once with the whole arrays, as
    it is for plain forms. Returns a list of the results of fn in the order of the rows, so that their sum is
    reproducible.
    """
    rows = len(arrays[0])
    if backend_of(arrays[0]) is not CPU or rows == 0 or is_plain():
        return [fn(*arrays)]
    largest = max(largest, *(a.nbytes for a in arrays))
    step = rows_of_a_block(rows, largest, block_bytes)
    blocks = [tuple(a[i : i + step] for a in arrays) for i in range(0, rows, step)]
    return deal(fn, blocks, largest >= PARALLEL_BYTES)


def rows_of_a_block(rows: int, largest: int, block_bytes: int = BLOCK_BYTES) -> int:
    """How many of an array's rows `parallel_rows` puts into a block; largest: the size of all of them in bytes."""
    step = max(1, rows * block_bytes // max(1, largest))
    return min(step, math.ceil(rows / BLOCKS)) if largest >= PARALLEL_BYTES else step
