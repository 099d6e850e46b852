"""A stream of events: a Delta table to which producers append, each event with its place in the stream.

Columns are the event's own, under their own names and types, so that anybody's SQL can filter them; and beside
them ``_seq`` (the place, from 0 without gaps, which compaction does not change), ``_arrival``, ``_source`` (what
the watermark watches), and the partition, ``event_date`` and ``event_hour``, of the event time.

Producers are idempotent: an append says which part of its source it brings, from position to position, and that is
committed with the events or not at all. A process that was thought dead, or a repeated append, changes nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from penstock.errors import ConfigError, DataError, PenstockError, StorageError
from penstock.log.delta import Conflict, DataFile, DeltaFolder, Written
from penstock.log.quarantine import Quarantine, Rejected
from penstock.log.times import HOUR_US, TIMESTAMP, as_times, format_time, now_us
from penstock.log.types import conform, new_fields, plain_columns

__all__ = ["HIDDEN", "PARTITION", "Appended", "EventStream", "PositionMoved", "StreamSettings", "Timed", "timed"]

HIDDEN = ("_arrival", "_seq", "_source")
PARTITION = ("event_date", "event_hour")
_FORMAT = "1"
_SEQ = "penstock.seq"
_PRODUCER = "penstock.producer/"
_TRIES = 100
_COMPACT_EVERY = 100
"""Commits."""
_COMPACTED_NBYTES = 16 << 20
_EPOCH = datetime.date(1970, 1, 1)
_HIDDEN_FIELDS = [
    pa.field("_arrival", TIMESTAMP),
    pa.field("_seq", pa.int64()),
    pa.field("_source", pa.string()),
    pa.field("event_date", pa.date32()),
    pa.field("event_hour", pa.int32()),
]


class PositionMoved(PenstockError):
    """Another process brought this part of the source; ``position`` is where to go on."""

    def __init__(self, producer: str, position: int) -> None:
        super().__init__(f"producer {producer}: another process has come to position {position}")
        self.producer, self.position = producer, position


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What is fixed when a stream is made."""

    time: str
    """Column of the event time."""
    id: str | None = None
    """Column that identifies an event, if there is one; pipelines drop what comes twice by it."""


@dataclass(frozen=True, kw_only=True)
class Appended:
    """What an append did."""

    rows: int
    rejected: int
    end: int
    """The stream's end after it."""
    version: int


class EventStream:
    """One stream of a log. A handle is not for several threads at once; open one for each."""

    def __init__(self, name: str, folder: DeltaFolder, quarantine: Quarantine) -> None:
        """Wrap an open table.

        Raises:
            DataError: it was not made by Penstock, or by a newer one.
        """
        self.name, self._folder, self.quarantine = name, folder, quarantine
        properties = folder.properties
        if properties.get("penstock.format") != _FORMAT:
            raise DataError(
                f"{folder.uri}: is a Delta table, but its format as an event stream is "
                f"{properties.get('penstock.format', 'none')!r}, allowed: {_FORMAT!r}"
            )
        self.settings = StreamSettings(time=properties["penstock.time"], id=properties.get("penstock.id"))
        self._schema: tuple[int, pa.Schema] | None = None

    @staticmethod
    def create(
        name: str, uri: str, fields: Sequence[pa.Field], settings: StreamSettings, quarantine: Quarantine
    ) -> EventStream:
        """Make an empty stream with these columns; the time column becomes a timestamp.

        Raises:
            DataError: no such column, or a name or type that cannot be kept.
        """
        names = [field.name for field in fields]
        for what, column in (("time", settings.time), ("id", settings.id)):
            if column is not None and column not in names:
                raise DataError(f"stream {name}: {what} column {column!r} is not there, got {', '.join(names)}")
        own = [
            pa.field(field.name, TIMESTAMP if field.name == settings.time else field.type)
            for field in new_fields(f"stream {name}", pa.schema(fields), pa.schema([]))
        ]
        properties = {"penstock.format": _FORMAT, "penstock.time": settings.time}
        if settings.id is not None:
            properties["penstock.id"] = settings.id
        folder = DeltaFolder.create(
            uri, pa.schema([*own, *_HIDDEN_FIELDS]), partition_by=PARTITION, properties=properties
        )
        stream = EventStream(name, folder, quarantine)
        if stream.settings != settings:
            raise ConfigError(
                f"stream {name} was made at the same moment with {stream.settings}, got {settings}; try again"
            )
        return stream

    @property
    def uri(self) -> str:
        """Where it is."""
        return self._folder.uri

    @property
    def schema(self) -> pa.Schema:
        """The events' own columns and types, at the version of this handle."""
        if self._schema is None or self._schema[0] != self._folder.version:
            hidden = {*HIDDEN, *PARTITION}
            own = pa.schema([field for field in self._folder.schema if field.name not in hidden])
            self._schema = (self._folder.version, own)
        return self._schema[1]

    @property
    def end(self) -> int:
        """One more than the last event's place."""
        return self._folder.transaction(_SEQ) or 0

    @property
    def version(self) -> int:
        """Of the table."""
        return self._folder.version

    @property
    def folder(self) -> DeltaFolder:
        """The table, for maintenance."""
        return self._folder

    def refresh(self) -> None:
        """Take what others committed."""
        self._folder.refresh()

    def position(self, producer: str) -> int:
        """Where a producer goes on: one more than what it brought last, 0 before its first."""
        return self._folder.transaction(_PRODUCER + producer) or 0

    def files(self, *, from_us: int | None = None, to_us: int | None = None, from_seq: int = 0) -> list[DataFile]:
        """Files that may have events of these times [from, to) and places, by place."""
        found = []
        for file in self._folder.files():
            begin_us = _partition_us(file)
            if from_us is not None and begin_us + HOUR_US <= from_us:
                continue
            if to_us is not None and begin_us >= to_us:
                continue
            if file.highs.get("_seq", from_seq) < from_seq:
                continue
            found.append(file)
        return sorted(found, key=lambda file: (file.lows.get("_seq", 0), file.path))

    def hours(self, from_us: int, to_us: int) -> list[tuple[int, int]]:
        """The hours of event time that have events and overlap [from, to): where each begins, and how many."""
        rows: dict[int, int] = {}
        for file in self._folder.files():
            begin = _partition_us(file)
            if begin + HOUR_US > from_us and begin < to_us:
                rows[begin] = rows.get(begin, 0) + file.rows
        return sorted(rows.items())

    def append(
        self,
        events: pa.Table,
        *,
        producer: str = "",
        start: int = 0,
        end: int = 0,
        source: str = "",
        positions: NDArray[np.int64] | None = None,
        rejected: Sequence[Rejected] = (),
        arrival: pa.Array | None = None,
        durable: bool = False,
        parts: Mapping[str, tuple[int, int]] | None = None,
    ) -> Appended:
        """Append events, all or none, and return when they are in the log.

        Args:
            events: their columns; new ones become columns of the stream, missing ones are null.
            producer: whose part of a source this is; without one the append cannot be repeated safely.
            start, end: the part: the producer stood at ``start``, and stands at ``end`` afterwards.
            source: what the watermark watches: a broker's partition, "files", ...
            positions: int64[rows], where each event stands in the source, for the quarantine.
            rejected: what could not be read as events; it goes to the quarantine first.
            arrival: when each event arrived, for history; now where None.
            durable: survive a power cut, not just the death of a process.
            parts: by producer, start and end of parts of other sources that are in these events too.

        Raises:
            PositionMoved: another process brought this part already.
            DataError: a column of another type than before; both are named.
            StorageError: it cannot be written; nothing was.
        """
        where = f"stream {self.name}"
        events, bad = timed(where, plain_columns(where, events), self.settings.time, positions)
        if arrival is not None:
            arrival, _ = as_times(arrival)
            arrival = arrival.filter(~bad.mask) if bad.rows else arrival
        rejected = [*rejected, *bad.rows]
        if rejected:
            self.quarantine.reject(rejected, source=source, producer=producer, durable=durable)
        moves = {**({producer: (start, end)} if producer else {}), **(parts or {})}
        arrived_us = now_us()
        for attempt in range(_TRIES):
            if attempt:
                # Whoever was in the way gets a moment, each another one.
                time.sleep(random.uniform(0, min(0.002 * 2**attempt, 0.2)))
            self._folder.refresh()
            for name, (begin, _) in moves.items():
                if self.position(name) != begin:
                    raise PositionMoved(name, self.position(name))
            try:
                self._widen(events.schema)
                return self._try(
                    conform(where, events, self.schema),
                    {_PRODUCER + name: stop for name, (_, stop) in moves.items()},
                    source,
                    arrival,
                    arrived_us,
                    len(rejected),
                    durable,
                )
            except Conflict:
                continue
        raise StorageError(f"{where}: others appended {_TRIES} times in between; try again")

    def _widen(self, schema: pa.Schema) -> None:
        new = new_fields(f"stream {self.name}", schema, self.schema)
        if new:
            self._folder.add_columns(new)

    def _try(
        self,
        events: pa.Table,
        transactions: dict[str, int],
        source: str,
        arrival: pa.Array | None,
        arrived_us: int,
        rejected: int,
        durable: bool,
    ) -> Appended:
        rows, begin = events.num_rows, self.end
        if arrival is None:
            arrival = pa.array(np.full(rows, arrived_us, np.int64)).cast(TIMESTAMP)
        events = events.append_column("_arrival", arrival)
        events = events.append_column("_seq", pa.array(np.arange(begin, begin + rows, dtype=np.int64)))
        events = events.append_column(
            "_source", pa.array([source], pa.string()).take(pa.array(np.zeros(rows, int)))
        )
        written: list[Written] = []
        try:
            for hour, part in _by_hour(events, self.settings.time):
                date, number = format_time(hour * HOUR_US)[:10], str(hour % 24)
                written.append(
                    self._folder.write(
                        part,
                        {"event_date": date, "event_hour": number},
                        ["_seq", "_arrival", self.settings.time],
                        durable=durable,
                    )
                )
            version = self._folder.commit(written, {_SEQ: begin + rows, **transactions}, durable=durable)
        except BaseException:
            self._folder.discard(written)
            raise
        if version % _COMPACT_EVERY == 0:
            # Many small files are slow to read; those that were merged to this size stay as they are.
            with contextlib.suppress(Conflict, StorageError):
                self._folder.compact(target_nbytes=_COMPACTED_NBYTES)
        return Appended(rows=rows, rejected=rejected, end=begin + rows, version=version)


@dataclass(frozen=True)
class Timed:
    """Which events have no time."""

    mask: NDArray[np.bool_]
    rows: list[Rejected]


def timed(
    where: str, events: pa.Table, name: str, positions: NDArray[np.int64] | None = None
) -> tuple[pa.Table, Timed]:
    """Events with their time column as a timestamp, without those that have no time.

    Raises:
        DataError: there is no such column.
    """
    if name not in events.column_names:
        if not events.num_rows:
            return events.append_column(name, pa.array([], TIMESTAMP)), Timed(np.zeros(0, bool), [])
        raise DataError(f"{where}: the time column {name!r} is missing, got {', '.join(events.column_names)}")
    column = events[name].combine_chunks()
    times, mask = as_times(column)
    events = events.set_column(events.column_names.index(name), name, times)
    if not mask.any():
        return events, Timed(mask, [])
    shown = events.set_column(events.column_names.index(name), name, column).filter(pa.array(mask))
    places = np.flatnonzero(mask) if positions is None else positions[mask]
    rejects = [
        Rejected(
            position=int(place),
            reason="time",
            detail=f"{name} is missing" if row[name] is None else f"{name}: got {row[name]!r}, allowed: a time",
            event={column: value for column, value in row.items() if value is not None},
        )
        for place, row in zip(places, shown.to_pylist(), strict=True)
    ]
    return events.filter(pa.array(~mask)), Timed(mask, rejects)


def _partition_us(file: DataFile) -> int:
    date, hour = file.partition["event_date"], file.partition["event_hour"]
    days: int = (date - _EPOCH).days
    return (days * 24 + int(hour)) * HOUR_US


def _by_hour(events: pa.Table, time_column: str) -> list[tuple[int, pa.Table]]:
    if not events.num_rows:
        return []
    hours = np.asarray(pc.cast(events[time_column], pa.int64())) // HOUR_US
    if hours[0] == hours[-1] and (hours == hours[0]).all():
        return [(int(hours[0]), events)]
    order = np.argsort(hours, kind="stable")
    bounds = np.flatnonzero(np.diff(hours[order])) + 1
    return [(int(hours[part[0]]), events.take(pa.array(np.sort(part)))) for part in np.split(order, bounds)]
