"""From a source to the log, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from penstock.errors import DataError
from penstock.log.events import Appended, EventStream, PositionMoved
from penstock.log.quarantine import Rejected
from penstock.log.sources.decode import Decoded, Decoder, Lines
from penstock.log.times import TIMESTAMP, as_times, now_us

__all__ = ["BATCH_NBYTES", "BATCH_ROWS", "Batch", "Delivery", "Taken", "append", "deliver", "json_batch"]

BATCH_ROWS = 1 << 18
BATCH_NBYTES = 64 << 20
_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is committed at once."""

    events: pa.Table
    positions: NDArray[np.int64] | None
    rejected: Sequence[Rejected]
    start: int
    """Where the producer stands before."""
    end: int
    """Where it stands afterwards."""
    again: Callable[[pa.Schema], Batch] | None = None
    """Makes it anew from what came, for a stream with these columns; None where that changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How batches are appended."""

    producer: str = ""
    source: str = ""
    arrival: str | None = None
    """The column that says when an event arrived, for history."""
    durable: bool = False


@dataclass(kw_only=True)
class Taken:
    """What came of a source."""

    rows: int = 0
    rejected: int = 0

    def add(self, other: Taken | Appended) -> None:
        """Count it too."""
        self.rows += other.rows
        self.rejected += other.rejected


def json_batch(
    decoder: Decoder, blocks: Sequence[tuple[Lines, NDArray[np.int64]]], rejected: Sequence[Rejected], **where: Any
) -> Batch:
    """A batch of blocks of JSON lines, each with the positions of its lines; ``rejected`` has what was none."""
    parts = [decoder.decode(lines, positions) for lines, positions in blocks]
    whole = _joined(parts)

    def again(schema: pa.Schema) -> Batch:
        decoder.adopt(schema)
        return json_batch(decoder, blocks, rejected, **where)

    everything = [*rejected, *whole.rejected]
    return Batch(events=whole.events, positions=whole.positions, rejected=everything, again=again, **where)


def _joined(parts: Sequence[Decoded]) -> Decoded:
    if not parts:
        return Decoded(events=pa.table({}), positions=np.zeros(0, np.int64), rejected=[])
    return Decoded(
        # A column of times may be text in one block and numbers in the next.
        events=pa.concat_tables(_same_times([part.events for part in parts]), promote_options="default"),
        positions=np.concatenate([part.positions for part in parts]),
        rejected=[each for part in parts for each in part.rejected],
    )


def _same_times(tables: Sequence[pa.Table]) -> Sequence[pa.Table]:
    types: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            types.setdefault(field.name, set()).add(field.type)
    for name in [name for name, seen in types.items() if len(seen) > 1]:
        tables = [_as_text(table, name) for table in tables]
    return tables


def _as_text(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names or pa.types.is_string(table[name].type):
        return table
    text = pa.array([None if value is None else repr(value) for value in table[name].to_pylist()], pa.string())
    return table.set_column(table.column_names.index(name), name, text)


def deliver(
    stream: EventStream, batches: Iterable[Batch], how: Delivery, on_commit: Callable[[Batch, Appended], None]
) -> Taken:
    """Append batches, one commit each.

    Raises:
        PositionMoved: another process brought one of them.
        DataError: a batch does not fit the stream.
        StorageError: it cannot be written.
    """
    taken = Taken()
    for batch in batches:
        appended = append(stream, batch, how)
        taken.add(appended)
        on_commit(batch, appended)
    return taken


def append(stream: EventStream, batch: Batch, how: Delivery) -> Appended:
    """Append one batch. Where others gave the stream another column in between, it is read again."""
    for attempt in range(_TRIES):
        try:
            return stream.append(
                batch.events,
                producer=how.producer,
                start=batch.start,
                end=batch.end,
                source=how.source,
                positions=batch.positions,
                rejected=batch.rejected,
                arrival=_arrival(batch.events, how.arrival),
                durable=how.durable,
            )
        except PositionMoved:
            raise
        except DataError:
            if batch.again is None or attempt == _TRIES - 1:
                raise
            stream.refresh()
            batch = batch.again(stream.schema)
    raise AssertionError


def _arrival(events: pa.Table, column: str | None) -> pa.Array | None:
    if column is None:
        return None
    if column not in events.column_names:
        raise DataError(f"arrival column {column!r} is not there, got {', '.join(events.column_names)}")
    times, _ = as_times(pa.chunked_array(events[column]).combine_chunks())
    return pc.fill_null(times, pa.scalar(now_us()).cast(TIMESTAMP))
