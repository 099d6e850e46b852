"""What a pipeline leaves in the log of itself: the windows that it sealed, and the events that it did not count.

Both are functions of the log, recorded so that people can look at them; whoever computes a step again records
nothing twice.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

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

    def __init__(self, log: Log, timeline: Timeline, scanner: Scanner) -> None:
        self._log, self._timeline, self._scanner = log, timeline, scanner
        self._pipeline = timeline.pipeline
        self._sealed = Ledger(f"{log.place}/_pipelines/{self._pipeline.name}", SEALED, ordered_by="step")
        self._key = f"{self._pipeline.name}/{self._pipeline.fingerprint}"
        self.quarantined = 0
        """Events that were recorded as not counted, by this process."""

    def sealed(self, pieces: list[Piece], through: int) -> None:
        """The windows of all pieces up to this step, those that are not recorded yet."""
        pipeline = self._pipeline
        known = self._sealed.number(self._key)
        rows = [
            {
                "pipeline": pipeline.name,
                "fingerprint": pipeline.fingerprint,
                "step": piece.step,
                "window_begin": window,
                "window_end": window + pipeline.window_us,
                "watermark": self._timeline.mark(piece.step, pipeline.primary),
            }
            for piece in pieces
            if known < piece.step <= through
            for window in piece.windows
        ]
        if rows:
            self._sealed.append(rows, self._key, through)

    def uncounted(self, through: int) -> None:
        """The events of all steps up to this one that do not count, those that are not recorded yet."""
        for name in self._pipeline.streams:
            quarantine = self._log.quarantine(name)
            known = quarantine.recorded(self._key)
            if known < through:
                self._uncounted(name, quarantine, known + 1, through)

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
