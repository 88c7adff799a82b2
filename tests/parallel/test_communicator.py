"""The collectives, by the table at the head of parallel/communicator.py."""

from __future__ import annotations

import numpy as np
import pytest

from scratchvit.parallel.communicator import ALONE, Communicator
from tests.support.ranks import RankFailed, run_ranks


def all_collectives(ranks: Communicator) -> dict[str, list[float]]:
    """What each collective gives on this rank, of arrays that tell the ranks apart."""
    x = np.array([1.0, 10.0, 100.0, 1000.0], np.float32)[: 2 * ranks.size] * (ranks.rank + 1)
    whole, part = x.copy(), np.empty(len(x) // ranks.size, np.float32)
    ranks.sum(whole)
    ranks.start_sum_of_part(x, part).wait()
    joined = np.empty_like(x)
    ranks.start_join(part, joined).wait()
    first = x.copy()
    ranks.broadcast(first)
    return {
        "sum": whole.tolist(), "part": part.tolist(), "join": joined.tolist(), "broadcast": first.tolist(),
        "gather": ranks.gather({"rank": ranks.rank})[-1]["rank"],
        "rows": ranks.gather_rows(np.full((ranks.rank, 2), ranks.rank)).tolist(),
    }


def test_two_ranks():
    first, second = run_ranks(2, all_collectives)
    assert first["sum"] == second["sum"] == [3, 30, 300, 3000]
    assert first["part"] == [3, 30] and second["part"] == [300, 3000]
    assert first["join"] == second["join"] == [3, 30, 300, 3000]
    assert first["broadcast"] == second["broadcast"] == [1, 10, 100, 1000]
    assert first["gather"] == second["gather"] == 1
    assert first["rows"] == second["rows"] == [[1, 1]]


def test_one_rank_keeps_what_it_has():
    assert all_collectives(ALONE) == {
        "sum": [1, 10], "part": [1, 10], "join": [1, 10], "broadcast": [1, 10], "gather": 0, "rows": [],
    }


def test_ranks_in_different_collectives_are_noticed():
    def mixed_up(ranks: Communicator) -> None:
        (ranks.broadcast if ranks.rank else ranks.sum)(np.zeros(2))

    with pytest.raises(RankFailed, match="different collectives"):
        run_ranks(2, mixed_up)
