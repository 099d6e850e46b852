"""What a server is asked for, sampled: how much, and which keys most often.

Counts are of whole pulls, one of every ``EVERY``; rare keys are forgotten when there are too many (lossy counting,
Manku and Motwani 2002). A worker asks once for each distinct key of a micro-batch, so a key's share is that of the
micro-batches that have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from penstock.batch import Keys

__all__ = ["Load"]

EVERY = 64
KEPT = 1 << 16
SHOWN = 10


class Load:
    """Of one server, since it began."""

    def __init__(self) -> None:
        self._pulls = 0
        self._sampled = 0
        self._keys = 0
        self._looked = 0
        self._hot: list[list[Any]] = []
        self._counts: dict[str, Counter[int]] = {}

    def pulled(self, tables: Mapping[str, Keys]) -> None:
        """A pull was answered."""
        self._keys += sum(len(keys) for keys in tables.values())
        if self._pulls % EVERY == 0:
            self._sampled += 1
            for table, keys in tables.items():
                counts = self._counts.setdefault(table, Counter())
                counts.update(keys.tolist())
                if len(counts) > KEPT:
                    self._counts[table] = Counter({key: n for key, n in counts.items() if n > 1})
        self._pulls += 1

    def _hottest(self) -> list[list[Any]]:
        # Looked for again only when there is a quarter more to look at: it goes over all that is counted.
        if self._sampled >= self._looked + max(1, self._looked // 4):
            self._looked = self._sampled
            found = [
                (n, key, table) for table, counts in self._counts.items() for key, n in counts.most_common(SHOWN)
            ]
            found.sort(key=lambda one: (-one[0], one[1]))
            self._hot = [[key, table, n / self._sampled] for n, key, table in found[:SHOWN]]
        return self._hot

    def figures(self) -> dict[str, Any]:
        """``pulled_keys`` in all, and the hottest: [key, table, share of pulls]."""
        return {"pulled_keys": self._keys, "hot": self._hottest()}
