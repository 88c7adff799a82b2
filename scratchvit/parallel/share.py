"""Which images of a batch belong to which process."""

from __future__ import annotations


def share_of(whole: int, rank: int, size: int) -> slice:
    """The rows of rank `rank` of `size`, of `whole` rows: [whole · rank // size, whole · (rank + 1) // size).

    Every row belongs to one rank, and two ranks differ by one row at most. A rank has none if there are more ranks
    than rows.
    """
    return slice(whole * rank // size, whole * (rank + 1) // size)
