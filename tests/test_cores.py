"""The CPU's cores: work in blocks, the same bits for any number of threads, and BLAS left as the user wants it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import scratchvit as sv
from scratchvit import ops, threads
from scratchvit.backend import asarray
from tests.support.processes import alone
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("rows", [0, 1, 7, 5000])
def test_parallel_rows_sees_every_row_once_and_keeps_their_order(monkeypatch, rows):
    monkeypatch.setattr(threads, "cpu_threads", lambda: 2)
    x = np.arange(rows * 100, dtype=np.float32).reshape(rows, 100)
    y = np.zeros_like(x)

    def double(x, y):
        y += 2 * x
        return x[0, 0] if len(x) else None

    starts = threads.parallel_rows(double, x, y, block_bytes=1 << 14)
    assert np.array_equal(y, 2 * x)
    assert starts == sorted(starts, key=lambda s: (s is None, s))
    if rows == 5000:
        assert len(starts) > 8


def test_an_error_in_a_thread_arrives(monkeypatch):
    monkeypatch.setattr(threads, "cpu_threads", lambda: 2)
    x = np.zeros((4000, 500), np.float32)
    x[3999, 0] = 1

    def fail_at_the_mark(x):
        if x.any():
            raise ArithmeticError("found")

    with pytest.raises(ArithmeticError, match="found"):
        threads.parallel_rows(fail_at_the_mark, x)


def blas_threads():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


def blas_threads_before_and_after_two_users():
    before = blas_threads()
    x = np.ones((4000, 400), np.float32)

    def use() -> None:
        for _ in range(20):
            threads.parallel_rows(np.negative, x)

    users = [threading.Thread(target=use) for _ in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    return threads.cpu_threads(), before, blas_threads()


def test_two_threads_leave_blas_as_it_was():
    number, before, after = alone(blas_threads_before_and_after_two_users, OMP_NUM_THREADS="2")
    if number == 1:
        pytest.skip("BLAS has one thread on this machine anyway")
    assert after == before


def test_the_error_state_reaches_the_threads():
    x = asarray(np.full((4000, 400), 1e38, np.float32))
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        threads.parallel_rows(lambda x: x * x, x)



def after_a_fork() -> int:
    """The exit status of a child that was forked after an op on threads, and that runs one itself."""
    threads.cpu_threads = lambda: 2
    x = np.ones((4096, 512), np.float32)
    ops.gelu(x)                         # makes the pool of threads
    child = os.fork()
    if child == 0:
        ops.gelu(x)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    assert alone(after_a_fork) == 7


# --- the number of threads ---


def blas_is_limited(number: int) -> list[int]:
    """What BLAS has inside a block and outside, and how many threads compute, while a user limits BLAS."""
    seen: list[int] = []
    with sv.plain_forms(False), threadpoolctl.threadpool_limits(number, user_api="blas"):
        threads.parallel_rows(lambda x: seen.append(max(blas_threads())), np.ones((4000, 400), np.float32))
        return [max(seen), max(blas_threads()), threads.cpu_threads()]


def test_a_limit_on_blas_is_a_limit_on_our_threads() -> None:
    """`threadpool_limits` is how programs share a machine; products of NumPy outside of ops keep their threads."""
    cores = threads.cpu_cores()
    assert alone(blas_is_limited, 1, OMP_NUM_THREADS="2") == [1, 1, 1]
    assert alone(blas_is_limited, 2, OMP_NUM_THREADS="2") == [1, 2, min(2, cores)]


def test_blocks_within_a_block_are_computed_by_its_thread() -> None:
    x = np.ones((64, 8192), np.float32)
    outer: list[bool] = []

    def block(rows: Any) -> None:
        here = threading.get_ident()
        inner = threads.parallel_rows(lambda x: threading.get_ident() == here, rows, block_bytes=1 << 15)
        outer.append(all(inner))

    threads.parallel_rows(block, x)
    assert len(outer) == 8 and all(outer) and not threads.inside_block()


def test_an_error_leaves_no_thread_inside_a_block() -> None:
    with pytest.raises(ZeroDivisionError):
        threads.deal(lambda x: 1 // 0, [(1,)])
    assert not threads.inside_block()


def step_of(model: str, options: dict[str, Any], image: tuple[int, ...]) -> list[np.ndarray]:
    """The loss and all gradients of a model, with dropout."""
    net = sv.create_model(model, seed=0, num_classes=5, **options)
    net.set_generator(sv.random.Generator(0))
    x = seeded(1).standard_normal(image, dtype=np.float32)
    loss = ops.cross_entropy(net(x), np.arange(len(x)) % 5)
    loss.backward()
    return [loss.numpy(), *(np.asarray(parameter.grad) for parameter in net.parameters())]


MODELS = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "patch_size": 4, "depth": 2, "drop_rate": 0.1}, (8, 3, 64, 64)),
    "resnet": ("resnet18", {"img_size": 64}, (6, 3, 64, 64)),
    "one image": ("resnet18", {"img_size": 96}, (1, 3, 96, 96)),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (2, 2), "num_heads": (2, 4)}, (4, 3, 56, 56)),
    "mvit": ("mvitv2_tiny", {"img_size": 64, "depths": (1, 1)}, (4, 3, 64, 64)),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_any_number_of_threads_gives_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for number in (1, 2, 4):
        monkeypatch.setattr(threads, "cpu_threads", lambda number=number: number)
        results.append(step_of(*MODELS[name]))
    for other in results[1:]:
        assert all(map(np.array_equal, results[0], other))


ORDERS = {
    "numpy first": "import numpy, scratchvit",
    "scratchvit first": "import scratchvit, numpy",
}
PROGRAM = """
import os, threadpoolctl
{order}
x = numpy.random.default_rng(0).standard_normal((600, 384), numpy.float32)
y = scratchvit.ops.linear(x, x).numpy()
blas = [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
print(max(blas, default=0), "OPENBLAS_THREAD_TIMEOUT" in os.environ, hash(y.tobytes()))
"""


def test_it_makes_no_difference_what_is_imported_first() -> None:
    """Neither to the results nor to the user's own products, whose threads are not touched."""
    variables = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "2"}
    printed = {
        subprocess.run([sys.executable, "-c", PROGRAM.format(order=order)], check=True, capture_output=True, text=True,
                       env={**os.environ, **variables}).stdout
        for order in ORDERS.values()
    }
    assert len(printed) == 1
    number, changed, _ = printed.pop().split()
    assert changed == "False" and number in ("0", "2")
