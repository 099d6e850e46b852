"""Events whose id was there before. Each event is judged once, whoever asks how often.

Whether an event is a duplicate depends on events before it alone, so what was found stays true when the log grows:
only new events, and times that were not asked for before, are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from penstock.log.times import HOUR_US
from penstock.stream.sql import Database

__all__ = ["Doubles"]

_CHUNK_ROWS = 1 << 21
"""So many events are judged in one go, so that memory does not grow with the log."""


class Doubles:
    """The places of one stream's duplicates, in a table."""

    def __init__(
        self,
        database: Database,
        table: str,
        dedup_us: int,
        candidates: Callable[[int, int, int, int], str],
        hours: Callable[[int, int], Sequence[tuple[int, int]]],
    ) -> None:
        """Begin with none judged.

        ``candidates(from, to, first, end)`` is SQL of ``id``, ``_t`` and ``_seq`` of the events of these event
        times and places that count; ``hours(from, to)`` are the hours of event time that have events at all,
        where each begins and how many, rising.
        """
        self._database, self.table, self._dedup_us = database, table, dedup_us
        self._candidates, self._hours = candidates, hours
        self._begun = False
        self._end_then = self._end = 0
        """All events of places [end_then, end) have been judged; of those before, the times that are covered."""
        self._covered: list[tuple[int, int]] = []

    def judge(self, from_us: int, to_us: int, end: int) -> None:
        """Judge all events of places below ``end`` whose times are in [from, to)."""
        if not self._begun:
            self._begun = True
            self._end_then = self._end = end
            self._database.run(f"create or replace temp table {self.table} (_seq bigint)")
        if end > self._end:
            self._judge_new(end)
        for begin, until in self._missing(from_us, to_us):
            for low, high in self._chunks(begin, until):
                self._find(low, high, 0, self._end_then)
        self._cover(from_us, to_us)

    def _judge_new(self, end: int) -> None:
        new = self._candidates(-(1 << 62), 1 << 62, self._end, end)
        low, high = self._database.rows(f"select min(_t), max(_t) from ({new})")[0]
        if low is not None:
            for begin, until in self._chunks(low, high + 1):
                self._find(begin, until, self._end, end)
        self._end = end

    def _chunks(self, from_us: int, to_us: int) -> Iterator[tuple[int, int]]:
        """[from, to) in parts, without the times of which there is no event: an outlier may be years away."""
        begin, end, rows = from_us, from_us, 0
        for hour, of_hour in self._hours(from_us, to_us):
            overlap = min(hour + HOUR_US, to_us) - max(hour, from_us)
            count = max(1, of_hour * overlap // HOUR_US)
            if rows and (hour > end or rows + count > _CHUNK_ROWS):
                yield begin, end
                begin, rows = max(from_us, hour), 0
            if not rows:
                begin = max(from_us, hour)
            end, rows = min(hour + HOUR_US, to_us), rows + count
            parts = -(-rows // _CHUNK_ROWS)
            if parts > 1:  # one hour, of many
                step = -(-(end - begin) // parts)
                yield from ((at, min(at + step, end)) for at in range(begin, end, step))
                begin, rows = end, 0
        if rows:
            yield begin, end

    def _find(self, from_us: int, to_us: int, first: int, end: int) -> None:
        """Ids that come once, nearly all, are told first and by a hash, so that little is left to be compared."""
        near = self._candidates(from_us - self._dedup_us, to_us + self._dedup_us, 0, end)
        self._database.run(
            "create or replace temp table _twice as "
            f"select hash(id) as h from ({near}) group by h having count(*) > 1"
        )
        if not self._database.rows("select 1 from _twice limit 1"):
            return
        self._database.run(
            f"insert into {self.table} with twice as materialized "
            f"(select * from ({near}) where hash(id) in (select h from _twice)) "
            "select distinct b._seq from twice a join twice b on a.id = b.id and a._seq < b._seq "
            f"and abs(a._t - b._t) <= {self._dedup_us} "
            f"where b._t >= {from_us} and b._t < {to_us} and b._seq >= {first}"
        )

    def _missing(self, from_us: int, to_us: int) -> list[tuple[int, int]]:
        """The parts of [from, to) that are not covered."""
        found, at = [], from_us
        for begin, until in self._covered:
            if until <= at:
                continue
            if begin >= to_us:
                break
            if begin > at:
                found.append((at, begin))
            at = max(at, until)
        if at < to_us:
            found.append((at, to_us))
        return found

    def _cover(self, from_us: int, to_us: int) -> None:
        merged: list[tuple[int, int]] = []
        for begin, until in sorted([*self._covered, (from_us, to_us)]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], until))
            else:
                merged.append((begin, until))
        self._covered = merged
