"""What could not be taken as it came: kept as it came, with the reason, so that it can be looked at and mended.

Two kinds share a table: what could not be read as an event (``malformed``, ``time``, ``type``), with the position
in its source; and events of the log that a pipeline does not count (``late``, ``duplicate``, ``skewed``), with
their place in the stream.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from penstock.log.ledger import Ledger
from penstock.log.times import TIMESTAMP, now_us

__all__ = ["SCHEMA", "Quarantine", "Rejected", "as_text"]

SCHEMA = pa.schema(
    [
        ("at", TIMESTAMP),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source", pa.string()),
        ("producer", pa.string()),
        ("position", pa.int64()),
        ("pipeline", pa.string()),
        ("step", pa.int64()),
        ("seq", pa.int64()),
        ("event_time", TIMESTAMP),
        ("event", pa.string()),
    ]
)
_TEXT_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Something that is no event."""

    position: int
    reason: str
    detail: str
    event: Any
    """Its text or bytes, or its fields."""


class Quarantine:
    """The quarantine of one stream."""

    def __init__(self, uri: str) -> None:
        """Name it; nothing is touched."""
        self._ledger = Ledger(uri, SCHEMA, ordered_by="seq")

    def reject(self, rejected: Sequence[Rejected], *, source: str, producer: str, durable: bool = False) -> None:
        """Keep what a producer brought and no stream can take; what it brought before is there already."""
        name = f"producer/{producer}" if producer else "at"
        at = now_us()
        while True:
            known, new = self._ledger.number(name), list(rejected)
            if producer and any(each.position <= known for each in new):
                # Somebody was here before; and what he took for events may be none by now.
                there = self._positions(producer)
                new = [each for each in new if each.position not in there]
            if not new:
                return
            rows = [
                {
                    "at": at,
                    "reason": each.reason,
                    "detail": each.detail,
                    "source": source,
                    "producer": producer,
                    "position": each.position,
                    "event": as_text(each.event),
                }
                for each in new
            ]
            # Without a producer one name for all, or the table would remember a name for each of them.
            last = max(each.position for each in new) if producer else 0
            if self._ledger.append(rows, name, max(known + 1, last), durable=durable):
                return

    def _positions(self, producer: str) -> set[int]:
        table = self._ledger.read()
        return set(table.filter(pc.equal(table["producer"], producer))["position"].to_pylist())

    def record(self, rows: pa.Table, *, pipeline: str, step: int) -> bool:
        """Keep what a pipeline did not count of the events that a step brought; whether it was new."""
        return self._ledger.append(rows, f"pipeline/{pipeline}", step)

    def recorded(self, pipeline: str) -> int:
        """The step up to which a pipeline's quarantine is recorded, -1 before the first."""
        return self._ledger.number(f"pipeline/{pipeline}")

    def read(self, reason: str | None = None) -> pa.Table:
        """Everything in it, oldest first."""
        table = self._ledger.read().sort_by([("at", "ascending"), ("position", "ascending"), ("seq", "ascending")])
        if reason is not None:
            table = table.filter(pc.equal(table["reason"], reason))
        return table


def as_text(event: Any) -> str:
    """An event as one line of text: JSON, or what came where that is none."""
    if isinstance(event, bytes):
        text = event.decode("utf-8", errors="backslashreplace")
    elif isinstance(event, str):
        text = event
    elif isinstance(event, Mapping):
        text = msgspec.json.encode(event, enc_hook=_plain).decode()
    else:
        text = repr(event)
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "…"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value)
