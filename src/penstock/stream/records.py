"""What a pipeline leaves in the log of itself: the windows that it sealed, and the events that it did not count.

Both are functions of the log, recorded so that people can look at them; whoever computes a step again records
nothing twice.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.log import Log, Quarantine
from penstock.log.ledger import Ledger
from penstock.log.quarantine import SCHEMA as QUARANTINE
from penstock.log.quarantine import as_text
from penstock.log.times import TIMESTAMP, format_duration, now_us
from penstock.stream.plan import Piece
from penstock.stream.scan import Scanner
from penstock.stream.timeline import Timeline

__all__ = ["SEALED", "Records"]

SEALED = pa.schema(
    [
        ("pipeline", pa.string()),
        ("fingerprint", pa.string()),
        ("step", pa.int64()),
        ("window_begin", TIMESTAMP),
        ("window_end", TIMESTAMP),
        ("watermark", TIMESTAMP),
    ]
)


class Records:
    """Records one pipeline's doings."""

    def __init__(self, log: Log, timeline: Timeline, scanner: Scanner, range_: str) -> None:
        """``range_`` tells the windows that are looked at from others, in the record's name."""
        self._log, self._timeline, self._scanner, self._range = log, timeline, scanner, range_
        self._noted: list[tuple[int, int]] = []
        self._known: set[int] | None = None
        self._looked: dict[str, int] = {}
        """By stream, the step up to which it was looked for events that do not count."""
        self._pipeline = timeline.pipeline
        self._sealed = Ledger(f"{log.place}/_pipelines/{self._pipeline.name}", SEALED, ordered_by="step")
        self._key = f"{self._pipeline.name}/{self._pipeline.fingerprint}"
        self.quarantined = 0
        """Events that were recorded as not counted, by this process."""

    def seal(self, piece: Piece) -> None:
        """Note the windows of a piece that was planned."""
        self._noted += [(piece.step, window) for window in piece.windows]

    def sealed(self, through: int) -> None:
        """Record the windows that were noted and are not recorded yet, of steps up to this one."""
        pipeline = self._pipeline
        if self._known is None:
            table = self._sealed.read()
            own = pc.equal(table["fingerprint"], pipeline.fingerprint)
            self._known = set(table.filter(own)["window_begin"].cast(pa.int64()).to_pylist())
        new = [(step, window) for step, window in self._noted if window not in self._known]
        self._noted = []
        self._known |= {window for _, window in new}
        rows = [
            {
                "pipeline": pipeline.name,
                "fingerprint": pipeline.fingerprint,
                "step": step,
                "window_begin": window,
                "window_end": window + pipeline.window_us,
                "watermark": self._timeline.mark(step, pipeline.primary),
            }
            for step, window in new
        ]
        if rows:
            self._sealed.append(rows, f"{self._key}/{self._range}", through)

    def uncounted(self, through: int) -> None:
        """The events of all steps up to this one that do not count, those that are not recorded yet."""
        for name in self._pipeline.streams:
            if self._looked.get(name, -1) >= through:
                continue
            quarantine = self._log.quarantine(name)
            known = quarantine.recorded(self._key)
            # Nothing is recorded where all events counted, so what was looked at is known besides.
            first = max(known, self._looked.get(name, -1)) + 1
            if first <= through:
                self._uncounted(name, quarantine, first, through)
            self._looked[name] = through

    def _uncounted(self, name: str, quarantine: Quarantine, first: int, through: int) -> None:
        timeline = self._timeline
        begin = timeline.points[first - 1].ends[name] if first else 0
        end = timeline.points[through].ends[name]
        if end <= begin:
            return
        rows = self._scanner.uncounted(name, begin, end, timeline.steps_of(name))
        if not rows.num_rows:
            return
        at = now_us()
        events = rows.drop_columns(["_reason", "_t", "_arrived", "_seq", "_step", "_mark", "_source"]).to_pylist()
        table = pa.table(
            {
                "at": pa.array([at] * rows.num_rows).cast(TIMESTAMP),
                "reason": rows["_reason"],
                "detail": pa.array([self._detail(name, row) for row in rows.to_pylist()], pa.string()),
                "source": rows["_source"],
                "producer": pa.nulls(rows.num_rows, pa.string()),
                "position": pa.nulls(rows.num_rows, pa.int64()),
                "pipeline": pa.array([self._pipeline.name] * rows.num_rows),
                "step": rows["_step"],
                "seq": rows["_seq"],
                "event_time": rows["_t"].cast(TIMESTAMP),
                "event": pa.array([as_text(event) for event in events], pa.string()),
            }
        ).cast(QUARANTINE)
        if quarantine.record(table, pipeline=self._key, step=through):
            self.quarantined += rows.num_rows

    def _detail(self, name: str, row: dict[str, Any]) -> str:
        if row["_reason"] == "skewed":
            ahead, allowed = row["_t"] - row["_arrived"], self._pipeline.streams[name].skew_us
            return f"{format_duration(ahead)} ahead of its arrival, allowed: {format_duration(allowed)}"
        if row["_reason"] == "late":
            return f"{format_duration(row['_mark'] - row['_t'])} behind the watermark"
        return "an event of this id was there before"
