"""Running aggregates in memory: of each key, how many events were in the window at a moment, and their sum.

An event is added at the moment at which it is known, and expires when it is older than the window. So the state at
a moment is what had been added by then, less what had expired: two searches in moments that are kept in order,
each with its running sums. That holds for any moment since ``reach_us``, in whichever order events are told. The
same rule is computed in SQL by ``aggregates``; this is its form for one key at a time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from penstock.stream.spec import Aggregate

__all__ = ["SCALE", "Value", "Windows", "as_double"]

SCALE = 10**9
"""Sums are exact in steps of one in this many."""
Value = int | float | None
_EXACT_DOUBLE = 1 << 53


class _Run:
    """Moments in order; of each column that is summed, how many values, and which sum, there were before each."""

    __slots__ = ("counts", "moments", "sums")

    def __init__(self, columns: int) -> None:
        self.moments = array("q")
        self.counts = tuple(array("q", [0]) for _ in range(columns))
        self.sums: tuple[list[int], ...] = tuple([0] for _ in range(columns))

    def append(self, moment: int, values: Sequence[int | None]) -> None:
        """Add an event that is no earlier than the others."""
        self.moments.append(moment)
        for counts, sums, value in zip(self.counts, self.sums, values, strict=True):
            counts.append(counts[-1] + (value is not None))
            sums.append(sums[-1] + (value or 0))

    def merge(self, events: list[tuple[int, Sequence[int | None]]]) -> None:
        """Add events of any moments."""
        events.sort(key=lambda event: event[0])
        place = bisect_right(self.moments, events[0][0])
        moments = [*self.moments[place:], *(moment for moment, _ in events)]
        order = sorted(range(len(moments)), key=moments.__getitem__)
        self.moments[place:] = array("q", [moments[n] for n in order])
        for column, (counts, sums) in enumerate(zip(self.counts, self.sums, strict=True)):
            values = [values[column] for _, values in events]
            ones = [b - a for a, b in zip(counts[place:], counts[place + 1 :], strict=False)]
            ones += [int(value is not None) for value in values]
            parts = [b - a for a, b in zip(sums[place:], sums[place + 1 :], strict=False)]
            parts += [value or 0 for value in values]
            counts[place:] = array("q", accumulate((ones[n] for n in order), initial=counts[place]))
            sums[place:] = list(accumulate((parts[n] for n in order), initial=sums[place]))

    def drop(self, count: int) -> None:
        """Forget the first moments; what they came to is the new beginning."""
        del self.moments[:count]
        for counts, sums in zip(self.counts, self.sums, strict=True):
            del counts[:count], sums[:count]


class Windows:
    """Aggregates over the events of one stream by the same columns. Not for several threads at once.

    Costs 8 bytes for each event and each distinct window, and as many once more, plus about 50 for each column
    that is summed in each of these; and some 500 for each key.
    """

    def __init__(self, specs: Sequence[Aggregate]) -> None:
        """No event yet. The specs have one stream and one ``by``."""
        self.names = tuple(spec.name for spec in specs)
        self.summed = tuple(sorted({spec.of for spec in specs if spec.of is not None}))
        """Columns whose values events must bring."""
        self._overs = sorted({spec.over_us for spec in specs})
        self._specs = [
            (
                1 + self._overs.index(spec.over_us),
                -1 if spec.of is None else self.summed.index(spec.of),
                spec.what == "mean",
            )
            for spec in specs
        ]
        self._keys: dict[str, tuple[_Run, ...]] = {}
        self._nothing = tuple(_value(0, 0, of, mean) for _, of, mean in self._specs)
        self.events = 0
        """Events that are held."""
        self.reach_us = -(1 << 62)
        """The earliest moment that can be asked for."""

    @property
    def longest_us(self) -> int:
        """The longest window."""
        return self._overs[-1]

    @property
    def keys(self) -> list[str]:
        """Keys that have events."""
        return list(self._keys)

    def add(
        self,
        keys: Sequence[str],
        times_us: Sequence[int],
        known_us: Sequence[int],
        values: Sequence[Sequence[int | None]] = (),
    ) -> None:
        """Add events: their keys, when they happened, and from when on they are known.

        Args:
            values: for each of ``summed`` the events' values, in steps of 1 / ``SCALE``.
        """
        longest, reach, overs, columns = self.longest_us, self.reach_us, self._overs, len(self.summed)
        rows: Sequence[tuple[int | None, ...]] = list(zip(*values, strict=True)) if values else [()] * len(keys)
        late: dict[int, tuple[_Run, list[tuple[int, Sequence[int | None]]]]] = {}
        for key, time, known, row in zip(keys, times_us, known_us, rows, strict=True):
            last = time + longest
            if last <= known or last <= reach:
                continue  # it is in no window that can be asked for
            self.events += 1
            runs = self._keys.get(key)
            if runs is None:
                runs = self._keys[key] = tuple(_Run(columns) for _ in range(1 + len(overs)))
            for n, run in enumerate(runs):
                moment = known if n == 0 else max(known, time + overs[n - 1])
                if not run.moments or moment >= run.moments[-1]:
                    run.append(moment, row)
                else:
                    late.setdefault(id(run), (run, []))[1].append((moment, row))
        for run, events in late.values():
            run.merge(events)

    def look_up(self, key: str | None, at_us: int) -> tuple[Value, ...]:
        """The aggregates of a key at a moment, which is ``reach_us`` or later; none has events of the key None."""
        runs = self._keys.get(key) if key is not None else None
        if runs is None:
            return self._nothing
        added = runs[0]
        begun = bisect_right(added.moments, at_us)
        found: list[Value] = []
        for n, of, mean in self._specs:
            expired = runs[n]
            ended = bisect_right(expired.moments, at_us)
            if of < 0:
                found.append(begun - ended)
                continue
            count = added.counts[of][begun] - expired.counts[of][ended]
            found.append(_value(count, added.sums[of][begun] - expired.sums[of][ended], of, mean))
        return tuple(found)

    def forget(self, before_us: int, keys: Iterable[str] | None = None) -> None:
        """Let go of what no moment from ``before_us`` on can see, of these keys (all where None).

        Where n events have expired by then, at least n moments of each run lie before it: the first n go, and no
        difference changes.
        """
        self.reach_us = max(self.reach_us, before_us)
        for key in list(self._keys) if keys is None else keys:
            runs = self._keys.get(key)
            if runs is None:
                continue
            moments = runs[-1].moments
            count = bisect_right(moments, before_us)
            self.events -= count
            if count == len(moments):
                del self._keys[key]
            elif count:
                for run in runs:
                    run.drop(count)


def as_double(exact: int) -> float:
    """A sum in steps of 1 / ``SCALE``, with the bits of DuckDB's cast of a decimal(38,9) to a double."""
    if -_EXACT_DOUBLE <= exact <= _EXACT_DOUBLE:
        return exact / SCALE
    whole, rest = divmod(abs(exact), SCALE)
    value = float(whole) + rest / SCALE
    return value if exact > 0 else -value


def _value(count: int, total: int, of: int, mean: bool) -> Value:
    if of < 0:
        return count
    if mean:
        return as_double(total) / count if count else None
    return as_double(total)
