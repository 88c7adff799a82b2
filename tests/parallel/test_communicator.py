"""The collectives, by the table at the head of parallel/communicator.py."""

from __future__ import annotations

import numpy as np
import pytest

from scratchvit.parallel.communicator import ALONE, Communicator
from tests.support.collectives import all_collectives
from tests.support.ranks import RankFailed, run_ranks


def test_two_ranks():
    first, second = run_ranks(2, all_collectives)
    assert first["sum"] == second["sum"] == [3, 6, 12, 24]
    assert first["part"] == [3, 6] and second["part"] == [12, 24]
    assert first["join"] == second["join"] == [3, 6, 12, 24]
    assert first["broadcast"] == second["broadcast"] == [1, 2, 4, 8]
    assert first["gather"] == second["gather"] == 1
    assert first["rows"] == second["rows"] == [[1, 1]]


def test_one_rank_keeps_what_it_has():
    assert all_collectives(ALONE) == {
        "sum": [1, 2], "part": [1, 2], "join": [1, 2], "broadcast": [1, 2], "gather": 0, "rows": [],
    }


def test_ranks_in_different_collectives_are_noticed():
    def mixed_up(ranks: Communicator) -> None:
        (ranks.broadcast if ranks.rank else ranks.sum)(np.zeros(2))

    with pytest.raises(RankFailed, match="different collectives"):
        run_ranks(2, mixed_up)
