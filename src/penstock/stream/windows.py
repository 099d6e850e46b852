"""Running aggregates in memory: of each key, how many events were in the window at a moment, and their sum.

An event is added at the moment at which it is known, and expires when it is older than the window. So the state at
a moment is what had been added by then, less what had expired: two searches in moments that are kept in order,
each with its running sums. That holds for any moment since ``reach_us``, in whichever order events are told. The
same rule is computed in SQL by ``aggregates``; this is its form for one key at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.kernels import windows as kernels
from penstock.stream.spec import Aggregate

__all__ = ["SCALE", "Value", "Windows", "as_double", "exact_parts"]

SCALE = 10**9
"""Sums are exact in steps of one in this many."""
Value = int | float | None
_Ints = NDArray[np.int64]
_SWEPT = 1 << 14
"""Keys that are looked at for expired events while nobody can look up."""
_ADDED = 1 << 10
"""Events that are added while nobody can."""
_SLOTS = 1 << 12


def exact_parts(low: NDArray[np.uint64], high: _Ints, there: NDArray[np.bool_]) -> _Ints:
    """Numbers of 128 bits, of which the halves are given, as kernels take them: i64[4, n]."""
    bits = np.uint64(kernels.BITS)
    mask = np.uint64((1 << kernels.BITS) - 1)
    middle = (low >> bits) | (high.view(np.uint64) << (np.uint64(64) - bits))
    parts = [there, low & mask, middle & mask, high >> np.int64(2 * kernels.BITS - 64)]
    return np.stack([np.where(there, part.astype(np.int64), 0) for part in parts])


class Windows:
    """Aggregates over the events of one stream by the same columns. One thread adds; any may look up.

    An event takes 8 bytes, and 8 for each length of window; 32 more in each of these for a column that is summed;
    up to twice that, as room is given in powers of two. A key takes some 200 besides.
    """

    def __init__(self, specs: Sequence[Aggregate]) -> None:
        """No event yet. The specs have one stream and one ``by``."""
        self.names = tuple(spec.name for spec in specs)
        self.summed = tuple(sorted({spec.of for spec in specs if spec.of is not None}))
        """Columns whose values events must bring."""
        self._overs = np.array(sorted({spec.over_us for spec in specs}), np.int64)
        self._specs = np.array(
            [
                (
                    1 + self._overs.tolist().index(spec.over_us),
                    -1 if spec.of is None else self.summed.index(spec.of),
                )
                for spec in specs
            ],
            np.int64,
        )
        self._whats = tuple(spec.what for spec in specs)
        self.nothing = tuple(_value(what, 0, 0) for what in self._whats)
        """What a key without events has."""
        self.reach_us = -(1 << 62)
        """The earliest moment that can be asked for."""
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self._texts: list[str] = []
        self._unused: list[int] = []
        runs = 1 + len(self._overs)
        self._keys = (np.full(1, -1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
        self._runs = (np.empty((runs, 0), np.int64), np.empty((runs * len(self.summed), 4, 0), np.int64))
        self._state = np.full(kernels.STATE, -1, np.int64)
        self._state[:2] = 0
        self._out = np.zeros((len(specs), 4), np.int64)

    @property
    def longest_us(self) -> int:
        """The longest window."""
        return int(self._overs[-1])

    @property
    def keys(self) -> int:
        """How many keys have events."""
        return len(self._ids)

    @property
    def events(self) -> int:
        """Events that are held."""
        return int(self._state[1])

    @property
    def nbytes(self) -> int:
        """Memory of the events: slots that were handed out."""
        moments, totals = self._runs
        of_slot = moments.shape[0] + totals.shape[0] * totals.shape[1]
        return int(self._state[0]) * of_slot * moments.itemsize

    def add(self, keys: Sequence[str], times_us: _Ints, known_us: _Ints, values: _Ints) -> None:
        """Add events: their keys, when they happened, and from when on they are known, i64[n] each.

        Args:
            values: i64[F, 4, n], for each of ``summed`` what ``exact_parts`` gives, in steps of 1 / ``SCALE``.
        """
        for begin in range(0, len(keys), _ADDED):
            part = slice(begin, begin + _ADDED)
            times, known = times_us[part], known_us[part]
            counts = times + self._overs[-1] > np.maximum(known, self.reach_us)
            if counts.all():
                self._add(keys[part], times, known, values[:, :, part])
            else:  # a key has an id while it has events, no longer
                some = [key for key, taken in zip(keys[part], counts.tolist(), strict=True) if taken]
                self._add(some, times[counts], known[counts], values[:, :, part][:, :, counts])

    def _add(self, keys: Sequence[str], times: _Ints, known: _Ints, values: _Ints) -> None:
        ids = np.array([self._id(key) for key in keys], np.int64)
        if len(self._texts) > len(self._keys[0]):
            self._grow_keys()
        done = 0
        while done < len(ids):
            part = np.ascontiguousarray(values[:, :, done:])
            with self._lock:
                done += kernels.add(
                    ids[done:],
                    times[done:],
                    known[done:],
                    part,
                    self._overs,
                    self._keys,
                    self._runs,
                    self._state,
                )
            if done < len(ids):
                self._grow_runs()

    def _id(self, key: str) -> int:
        found = self._ids.get(key)
        if found is None:
            if self._unused:
                found = self._unused.pop()
                self._texts[found] = key
            else:
                found = len(self._texts)
                self._texts.append(key)
            self._ids[key] = found
        return found

    def _grow_keys(self) -> None:
        size = 2 * len(self._texts)
        grown = []
        for array, fill in zip(self._keys, (-1, 0, 0), strict=True):
            larger = np.full(size, fill, np.int64)
            larger[: len(array)] = array
            grown.append(larger)
        with self._lock:
            self._keys = (grown[0], grown[1], grown[2])

    def _grow_runs(self) -> None:
        """Nobody else changes them, so who looks up waits for the exchange alone."""
        grown = []
        for array in self._runs:
            # What is not written to yet takes no memory.
            larger = np.empty((*array.shape[:-1], max(_SLOTS, 2 * array.shape[-1])), np.int64)
            larger[..., : array.shape[-1]] = array
            grown.append(larger)
        with self._lock:
            self._runs = (grown[0], grown[1])

    def look_up(self, key: str | None, at_us: int) -> tuple[Value, ...]:
        """The aggregates of a key at a moment, which is ``reach_us`` or later; none has events of the key None."""
        with self._lock:
            found = self._ids.get(key) if key is not None else None
            # A key that has just come has an id before it has an event.
            if found is None or found >= len(self._keys[0]):
                return self.nothing
            if not kernels.look_up(found, at_us, self._specs, self._keys, self._runs, self._out):
                return self.nothing
            parts = self._out.tolist()
        return tuple(
            [
                count if what == "count" else _value(what, count, _whole(low, middle, high))
                for what, (count, low, middle, high) in zip(self._whats, parts, strict=True)
            ]
        )

    def forget(self, before_us: int) -> None:
        """Let go of the events that no moment from ``before_us`` on can see."""
        self.reach_us = max(self.reach_us, before_us)
        gone = np.empty(_SWEPT, np.int64)
        for begin in range(0, len(self._texts), _SWEPT):
            with self._lock:
                count = kernels.expire(self.reach_us, begin, self._keys, self._runs, self._state, gone)
                for each in gone[:count].tolist():
                    del self._ids[self._texts[each]]
                    self._texts[each] = ""
                    self._unused.append(each)


def as_double(exact: int) -> float:
    """A sum in steps of 1 / ``SCALE``, rounded once, as DuckDB (2.0) casts a decimal(38,9) to a double."""
    return exact / SCALE


def _whole(low: int, middle: int, high: int) -> int:
    return low + (middle << kernels.BITS) + (high << 2 * kernels.BITS)


def _value(what: str, count: int, total: int) -> Value:
    if what == "count":
        return count
    if what == "mean":
        return as_double(total) / count if count else None
    return as_double(total)
