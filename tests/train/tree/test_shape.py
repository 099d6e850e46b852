"""The tree of sums: the fan-in of Spark's treeAggregate, every partition once, whatever the depth."""

from __future__ import annotations

import math

import pytest

from penstock.train.tree.shape import levels


@pytest.mark.parametrize(
    ("partitions", "depth", "want"),
    [
        (1, 2, []),
        (2, 2, []),
        (5, 2, []),
        (8, 2, [[[0, 2, 4, 6], [1, 3, 5, 7]]]),
        (8, 1, []),
        (7, 3, [[[0, 3, 6], [1, 4], [2, 5]]]),
        (27, 3, [[[p + 9 * i for i in range(3)] for p in range(9)], [[p, p + 3, p + 6] for p in range(3)]]),
    ],
)
def test_small_trees(partitions: int, depth: int, want: list[list[list[int]]]) -> None:
    assert levels(partitions, depth) == want


def spark(partitions: int, depth: int) -> list[int]:
    """Partitions left after each level, by the loop of Spark 3.5's ``RDD.treeAggregate``."""
    scale = max(math.ceil(partitions ** (1 / depth) - 1e-9), 2)
    left = []
    while partitions > scale + math.ceil(partitions / scale):
        partitions //= scale
        left.append(partitions)
    return left


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_any_tree_adds_up_every_partition_once(depth: int) -> None:
    for partitions in range(1, 200):
        alive = set(range(partitions))
        found = levels(partitions, depth)
        assert [len(level) for level in found] == spark(partitions, depth)
        for level in found:
            assert sorted(number for group in level for number in group) == sorted(alive)
            assert all(group == sorted(group) for group in level)
            alive = {group[0] for group in level}
        assert alive == set(range(len(alive)))
