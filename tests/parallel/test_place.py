"""What of a machine a rank takes: cores that ranks share are divided, and each has a GPU of its own."""

from __future__ import annotations

import os

import pytest

from scratchvit import gpu
from scratchvit.errors import ScratchvitError
from scratchvit.parallel import ALONE
from scratchvit.parallel.place import device_of_rank, share_of_cores, take_cores
from tests.support.ranks import RankFailed, run_ranks


@pytest.mark.parametrize(("cores", "threads"), [
    ([range(8), range(8), range(8)], [2, 2, 2]),            # all may use all: 8 // 3
    ([range(0, 2), range(2, 4), range(4, 8)], [2, 2, 4]),   # bound by the launcher
    ([range(0, 4), range(0, 4), range(4, 5)], [2, 2, 1]),   # bound to sockets, which two share
    ([range(1), range(1), range(1)], [1, 1, 1]),            # more ranks than cores
])
def test_cores_that_ranks_share_are_divided(cores: list[range], threads: list[int]) -> None:
    found = run_ranks(3, lambda ranks: share_of_cores(ranks, list(cores[ranks.rank])))
    assert found == threads


def test_one_process_keeps_all_cores() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    take_cores(ALONE)
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_each_rank_has_a_gpu_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "number_of_gpus", lambda: 4)
    assert run_ranks(3, lambda ranks: device_of_rank("gpu", ranks)) == ["gpu", "gpu:1", "gpu:2"]
    assert run_ranks(2, lambda ranks: device_of_rank("cpu", ranks)) == ["cpu", "cpu"]
    assert device_of_rank("gpu:3", ALONE) == "gpu:3"
    monkeypatch.setattr(gpu, "number_of_gpus", lambda: 1)       # a launcher that shows each process its own
    assert run_ranks(3, lambda ranks: device_of_rank("gpu", ranks)) == ["gpu", "gpu", "gpu"]


def test_fewer_gpus_than_ranks_and_one_for_all_are_errors(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "number_of_gpus", lambda: 2)
    with pytest.raises(RankFailed, match="has 2 GPUs for 3 ranks: start at most 2 ranks there"):
        run_ranks(3, lambda ranks: device_of_rank("gpu", ranks))
    with pytest.raises(RankFailed, match=r"gpu:1 is one GPU, and each of 2 ranks needs its own") as failed:
        run_ranks(2, lambda ranks: device_of_rank("gpu:1", ranks))
    assert isinstance(failed.value.__cause__, ScratchvitError)
