"""NCCL between processes with a device each: cupy.cuda.nccl is CuPy's own, and the library is the stand-in's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scratchvit.training import load_checkpoint
from tests.support.collectives import all_collectives
from tests.support.mpiexec import needs_mpi, run_mpi
from tests.support.ranks import run_ranks

pytestmark = needs_mpi


def results(size: int, *words: object, **environment: str) -> list[Any]:
    """What the program returned on each rank."""
    done = run_mpi(size, ["-m", "tests.fakegpu.nccl_programs", *words], {"FAKEGPU_DEVICES": str(size), **environment})
    assert done.returncode == 0, done.stderr
    return [result for _, result in sorted(map(json.loads, done.stdout.splitlines()))]


@pytest.mark.parametrize("size", [2, 4])
def test_devices_exchange_what_threads_exchange(size: int) -> None:
    expected = run_ranks(size, lambda ranks: {
        name: all_collectives(ranks, name) for name in ("float32", "float64", "int64")
    })
    assert results(size, "collectives") == expected


@pytest.mark.parametrize("late", ["0", "1"])
def test_large_arrays_on_streams_that_are_on_time_or_late(late: str) -> None:
    assert results(2, "large", FAKEGPU_ASYNC=late) == [[True, True, True]] * 2


def test_the_stream_in_use_waits_for_the_sum_and_would_not_without_it() -> None:
    assert results(2, "waits", 1, FAKEGPU_ASYNC="1") == [128, 128]
    assert results(2, "waits", 0, FAKEGPU_ASYNC="1") != [128, 128]


def test_arrays_that_nccl_cannot_take_are_refused() -> None:
    first, second = results(2, "refused")
    assert first == second == [
        "ranks add arrays of int32, int64, float32, float64, not of bool",
        "NCCL needs contiguous arrays: shape (4,) has strides (32,)",
    ]


@pytest.mark.parametrize("sharded", [0, 1])
def test_a_run_on_two_gpus_is_that_on_one(tmp_path: Path, sharded: int) -> None:
    """With dropout and averaged weights, on streams that are late."""
    for size in (1, 2):
        assert results(size, "train", sharded, tmp_path / f"{size}", FAKEGPU_ASYNC="1")[-1] == size - 1
    one, two = (load_checkpoint(tmp_path / f"{size}" / "last.safetensors") for size in (1, 2))
    for name, weights in one.ema.items():
        # Of lengths, since AdamW makes much of the rounding of a gradient that is nearly 0.
        assert np.linalg.norm(two.ema[name] - weights) <= 1e-3 * np.linalg.norm(weights), name
    assert one.optimizer.keys() == two.optimizer.keys()
