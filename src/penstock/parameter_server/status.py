"""What the figures of servers say of a cluster as a whole: hot keys, and how evenly it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["hottest", "skew"]

_SHOWN = 10


def hottest(figures: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Keys that most micro-batches ask for: [key, table, share of pulls]."""
    hot = [one for of_server in figures for one in of_server.get("hot", ())]
    return sorted(hot, key=lambda one: (-one[2], one[0]))[:_SHOWN]


def skew(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The most over the mean: of ``rows``, and of keys that were pulled (``load``)."""
    rows = [sum(one.get("rows", {}).values()) for one in figures]
    pulled = [one.get("pulled_keys", 0) for one in figures]
    return {
        name: max(numbers) * len(numbers) / sum(numbers)
        for name, numbers in (("rows", rows), ("load", pulled))
        if sum(numbers)
    }
