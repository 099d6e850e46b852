"""The shape of the tree: which partial sums are added where, and in which order.

It depends on the number of partitions and the depth alone, so a sum is the same wherever it is computed.
"""

from __future__ import annotations

import math

__all__ = ["levels"]


def levels(partitions: int, depth: int) -> list[list[list[int]]]:
    """Levels of groups of partitions; a group's sums are added in its order, and its first member has the result.

    What is left after the last level is added by the driver, by rising number. As Spark's ``RDD.treeAggregate``
    does: fan-in ``max(ceil(partitions ** (1 / depth)), 2)``, and no further level where it would not pay.
    ``levels(8, 2) == [[[0, 2, 4, 6], [1, 3, 5, 7]]]``.
    """
    # The root of a power (27 ** (1/3)) may come out a little above.
    scale = max(math.ceil(round(partitions ** (1.0 / depth), 9)), 2)
    found = []
    left = partitions
    while left > scale + math.ceil(left / scale):
        fewer = left // scale
        found.append([list(range(first, left, fewer)) for first in range(fewer)])
        left = fewer
    return found
