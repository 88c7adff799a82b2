"""What every collective gives, on ranks of any kind: to be compared between them, and with the table."""

from __future__ import annotations

from typing import Any

import numpy as np

from scratchvit.parallel.communicator import Communicator


def all_collectives(ranks: Communicator, dtype: Any = np.float32, xp: Any = np) -> dict[str, Any]:
    """What each collective gives on this rank, of arrays that tell the ranks apart. xp: NumPy or CuPy."""
    x = (2.0 ** xp.arange(2 * ranks.size) * (ranks.rank + 1)).astype(dtype)     # whose sums are exact in 16 bits too
    whole, part = x.copy(), xp.empty(len(x) // ranks.size, dtype)
    ranks.sum(whole)
    ranks.start_sum_of_part(x, part).wait()
    joined = xp.empty_like(x)
    ranks.start_join(part, joined).wait()
    first = x.copy()
    ranks.broadcast(first)
    return {
        "sum": whole.tolist(), "part": part.tolist(), "join": joined.tolist(), "broadcast": first.tolist(),
        "gather": ranks.gather({"rank": ranks.rank})[-1]["rank"],
        "rows": ranks.gather_rows(np.full((ranks.rank, 2), ranks.rank)).tolist(),
    }


def in_place(ranks: Communicator) -> dict[str, Any]:
    """The collectives of parts that are views of the whole array, and of which several are under way at once."""
    x = np.arange(2 * ranks.size, dtype=np.float32) + 100 * ranks.rank
    own = x[2 * ranks.rank : 2 * ranks.rank + 2]
    ranks.start_sum_of_part(x, own).wait()
    summed = own.tolist()
    ranks.start_join(own, x).wait()
    many = [np.full(n, ranks.rank + n, np.float64) for n in (1, 1000, 0, 100_000)]
    requests = [ranks.start_sum(each) for each in many]
    for request in reversed(requests):
        request.wait()
    scalar = np.array(ranks.rank + 1)
    ranks.sum(scalar)
    return {
        "part": summed, "join": x.tolist(), "many": [sorted(set(each.tolist())) for each in many],
        "scalar": scalar.item(), "long": ranks.gather("x" * 1000 * ranks.rank)[-1],
        "none": ranks.gather_rows(np.zeros((0, 3), np.int64)).shape,
        "all done": all(request.done() for request in requests),
    }
