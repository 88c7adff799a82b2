"""Meters whose sums are those of several processes."""

import numpy as np
import pytest

from scratchvit.parallel.communicator import ALONE
from scratchvit.training.classification.evaluate import Meter
from scratchvit.training.meter import Means, over_ranks
from tests.support.ranks import run_ranks


def test_means_that_only_some_ranks_have():
    """A rank without images knows no names, and another has losses that the first has not."""
    of_rank = [
        Means({}, 0), Means({"loss": 0.5, "bbox": 1.0}, 2), Means({"loss": 2.0, "dn": 4.0}, 3), Means({"loss": 1.5}, 1),
    ]
    for found in run_ranks(4, lambda ranks: over_ranks(of_rank[ranks.rank], ranks)):
        assert found == Means({"loss": 4.0, "bbox": 1.0, "dn": 4.0}, 6)
        assert list(found.sums) == ["loss", "bbox", "dn"]
        assert found.columns("val_")["val_loss"] == 4 / 6


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_are_those_of_the_order_of_ranks_and_the_same_on_all(size):
    terms = [1e16, 1.0, -1e16, 0.1][:size]
    found = run_ranks(size, lambda ranks: over_ranks(Meter(terms[ranks.rank], 1.0, ranks.rank), ranks))
    expected = terms[0]
    for term in terms[1:]:
        expected += term
    assert found == [Meter(expected, float(size), sum(range(size)))] * size
    assert all(isinstance(meter.images, int) for meter in found)


def test_a_sum_that_is_not_finite_is_so_on_all_ranks():
    for found in run_ranks(2, lambda ranks: over_ranks(Means({"loss": [np.nan, 1.0][ranks.rank]}, 1), ranks)):
        assert np.isnan(found.loss) and found.images == 2


def test_one_rank_keeps_its_meter():
    meter = Means({"loss": 0.5}, 2)
    assert over_ranks(meter, ALONE) is meter
