"""A curve of bounded length: points are added for ever, and neighbours become one where there are too many.

A reader says how far it has come, and is given the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["POINTS", "Cursor", "Series"]

POINTS = 1_200
"""Of a curve, at most: more are not seen on a page."""

Point = TypeVar("Point")
Cursor = tuple[int, int, int]
"""How far a reader has come: epoch, points it has, points that had been added by then."""


class Series(Generic[Point]):
    """Points in their order; threads may add and read at the same time."""

    def __init__(self, merge: Callable[[Point, Point], Point], most: int = POINTS) -> None:
        """``merge`` makes one point of two neighbours, the earlier first. ``most`` is even."""
        self._merge, self._most = merge, most
        self._lock = threading.Lock()
        self._items: list[Point] = []
        self._epoch = 0
        self._stride = 1
        self._in_last = 0
        """How many were added to the last point."""
        self._added = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def items(self) -> list[Point]:
        """All points, oldest first."""
        return list(self._items)

    @property
    def last(self) -> Point | None:
        """The newest point."""
        return self._items[-1] if self._items else None

    def add(self, point: Point) -> None:
        """Add a point at the end."""
        with self._lock:
            self._add(point)

    def _add(self, point: Point) -> None:
        self._added += 1
        if self._items and self._in_last < self._stride:
            self._items[-1] = self._merge(self._items[-1], point)
            self._in_last += 1
            return
        if len(self._items) == self._most:
            pairs = zip(self._items[::2], self._items[1::2], strict=True)
            self._items = [self._merge(a, b) for a, b in pairs]
            self._stride *= 2
            self._epoch += 1
        self._items.append(point)
        self._in_last = 1

    def keep(self, wanted: Callable[[Point], bool]) -> None:
        """Forget the points that are not wanted."""
        with self._lock:
            self._items = [point for point in self._items if wanted(point)]
            self._in_last = self._stride
            self._epoch += 1
            self._added += 1

    def clear(self) -> None:
        """Forget all points, and begin with fine ones."""
        self.keep(lambda point: False)
        self._stride = 1

    def since(self, cursor: Cursor | None) -> tuple[Cursor, int, list[Point]] | None:
        """What a reader lacks: its new cursor, the place from which its points are replaced, the points.

        None where it has all.
        """
        epoch, length, added = cursor if cursor is not None else (-1, 0, -1)
        with self._lock:
            if (epoch, added) == (self._epoch, self._added):
                return None
            # The last point that it has may have become another since.
            begin = max(0, length - 1) if epoch == self._epoch and 0 <= length <= len(self._items) else 0
            return (self._epoch, len(self._items), self._added), begin, self._items[begin:]
