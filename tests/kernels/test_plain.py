"""Every op gives the same by its plain form, which is its definition, as by its kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.plain import is_plain, plain_forms
from scratchvit.random import Generator
from tests.cases import CASES
from tests.cases.case import Case
from tests.support.margins import assert_all_close, named, rounding
from tests.support.one_op import run
from tests.support.seeds import moved, seeded


def assert_same(function: Callable[..., Any], arrays: list[np.ndarray]) -> None:
    with plain_forms(False):
        fast = named(run(function, arrays))
    with plain_forms():
        plain = named(run(function, arrays))
        bounds = rounding(lambda: run(function, arrays), dtype=arrays[0].dtype.type)
    assert {name: x.dtype for name, x in plain.items()} == {name: x.dtype for name, x in fast.items()}
    assert_all_close(fast, plain, bounds)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_shapes(case: Case, dtype: Any) -> None:
    assert_same(case.ours, case.make(dtype))


def attend(dropout: float = 0.0, **options: Any) -> Callable[..., Any]:
    return lambda q, k, v: ops.attention(q, k, v, dropout=dropout, generator=Generator(moved(3)), **options)


MASK = np.arange(67) % 5 > 0
LARGE: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    # Large enough to be cut into blocks, with a rest.
    "layer_norm": (lambda x, w, b: ops.layer_norm(x, 131, w, b), [(3001, 131), (131,), (131,)]),
    "layer_norm of columns": (lambda x: ops.layer_norm(x.permute((1, 0)), 3001), [(3001, 131)]),
    "add_layer_norm": (
        lambda x, y, w, b: ops.add_layer_norm(x, y, 131, w, b, p=0.3, generator=Generator(moved(3))),
        [(3001, 131), (3001, 131), (131,), (131,)],
    ),
    "group_norm": (lambda x, w, b: ops.group_norm(x, 3, w, b), [(7, 9, 67, 61), (9,), (9,)]),
    "batch_norm": (
        lambda x, w, b: ops.batch_norm(x, None, None, w, b, training=True), [(7, 9, 67, 61), (9,), (9,)],
    ),
    "batch_norm of small planes": (
        lambda x, w, b: ops.batch_norm(x, None, None, w, b, training=True), [(9, 301, 11, 13), (301,), (301,)],
    ),
    "weight_standardization": (ops.weight_standardization, [(701, 41, 3, 3)]),
    "gelu": (ops.gelu, [(300_007,)]),
    "gelu, tanh": (lambda x: ops.gelu(x, "tanh"), [(3, 100_003)]),
    "linear": (ops.linear, [(1543, 97), (131, 97), (131,)]),
    "linear of few rows": (ops.linear, [(3, 7, 97), (2311, 97), (2311,)]),
    "linear_gelu": (ops.linear_gelu, [(1543, 97), (131, 97), (131,)]),
    "linear_parts": (
        lambda x, y, w, b: ops.linear_parts([x, y], w, b, (200, 31)), [(1543, 97), (3, 97), (231, 97), (231,)],
    ),
    "matmul": (ops.matmul, [(5, 1, 211, 64), (7, 64, 173)]),
    "einsum": (lambda x, y: ops.einsum("bqd,bkd->bkq", x, y), [(9, 211, 64), (9, 173, 64)]),
    "sum": (lambda x: x.sum(0), [(20_011, 31)]),
    "attention": (attend(), [(9, 3, 65, 16), (9, 3, 67, 16), (9, 3, 67, 24)]),
    "attention, dropout and mask": (attend(0.2, mask=MASK), [(9, 3, 65, 16), (9, 3, 67, 16), (9, 3, 67, 24)]),
    "attention in blocks": (attend(0.2, mask=MASK, blocks=True), [(3, 3, 65, 16), (3, 3, 67, 16), (3, 3, 67, 24)]),
    "conv2d": (lambda x, w, b: ops.conv2d(x, w, b, 2, 1), [(5, 7, 67, 61), (13, 7, 3, 3), (13,)]),
    "conv2d of patches": (lambda x, w, b: ops.conv2d(x, w, b, 7), [(5, 3, 67, 61), (13, 3, 7, 7), (13,)]),
    "conv2d, 1×1": (ops.conv2d, [(5, 33, 41, 43), (29, 33, 1, 1), (29,)]),
    "conv2d, one image": (lambda x, w, b: ops.conv2d(x, w, b, 1, 1), [(1, 33, 61, 67), (40, 33, 3, 3), (40,)]),
    "conv2d in groups": (lambda x, w: ops.conv2d(x, w, None, 1, 2, 2, 3), [(4, 9, 41, 43), (6, 3, 3, 3)]),
    "conv2d, depth-wise": (lambda x, w: ops.conv2d(x, w, None, 2, 1, 1, 37), [(9, 37, 41, 43), (37, 1, 3, 3)]),
    "conv3d": (lambda x, w: ops.conv3d(x, w, None, 1, 1), [(2, 3, 9, 23, 21), (5, 3, 3, 3, 3)]),
    "max_pool2d": (lambda x: ops.max_pool2d(x, 3, 2, 1), [(5, 29, 47, 43)]),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, 3, 2, 1), [(5, 29, 47, 43)]),
    "interpolate": (lambda x: ops.interpolate(x, (51, 39), mode="bilinear"), [(5, 29, 47, 43)]),
}


@pytest.mark.parametrize("name", list(LARGE))
def test_large_odd_shapes(name: str) -> None:
    function, shapes = LARGE[name]
    rng = seeded(4)
    assert_same(function, [rng.standard_normal(shape, dtype=np.float32) for shape in shapes])


def test_an_optimiser_updates_alike() -> None:
    found = []
    for plain in (False, True):
        with plain_forms(plain):
            rng = seeded(0)
            w, b = (sv.nn.Parameter(rng.standard_normal(n, dtype=np.float32)) for n in ((331, 301), (17,)))
            optimizer = sv.optim.AdamW([w, b], lr=0.1)
            for _ in range(3):
                for p in (w, b):
                    p.grad = rng.standard_normal(p.shape, dtype=np.float32)
                optimizer.step()
            found.append([w.numpy().copy(), b.numpy().copy()])
    assert all(map(np.array_equal, *found))


def test_plain_forms_are_those_of_a_thread_and_of_the_environment() -> None:
    seen = []
    with plain_forms():
        assert is_plain()
        thread = threading.Thread(target=lambda: seen.append(is_plain()))
        thread.start()
        thread.join()
        with plain_forms(False):
            assert not is_plain()
        assert is_plain()
    program = "import scratchvit.plain as plain; print(plain.is_plain())"
    for value, expected in (("1", "True"), ("0", "False"), ("", "False")):
        environment = {**os.environ, "SCRATCHVIT_PLAIN": value}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr
    assert seen == [os.environ.get("SCRATCHVIT_PLAIN", "0") == "1"]
