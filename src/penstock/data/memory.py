"""Data that is in memory already: Arrow tables, pandas and Polars data frames, iterables of record batches.

pandas and Polars are recognised by name and never imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.data.source import Chunk, Source
from penstock.data.tables import check_columns, check_same_schema, first_rows, plain_schema, rebatch
from penstock.errors import DataError

__all__ = ["BatchesSource", "TableSource", "to_table"]

CHUNK_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TableChunk(Chunk):
    """A slice of a table; ``what`` is the word for the whole, ``first_row`` the slice's place in it."""

    index: int
    size: int
    table: pa.Table
    first_row: int
    what: str

    def batches(self, columns: Sequence[str], batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
        check_columns(self.what, columns, self.table.column_names)
        return rebatch([self.table], columns, batch_rows, skip)

    def locate(self, row: int) -> str:
        return f"{self.what} row {self.first_row + row}"


class TableSource(Source):
    """An Arrow table in chunks of 65,536 rows.

    Raises:
        DataError: the table has no rows, or two columns of one name.
    """

    def __init__(self, table: pa.Table) -> None:
        self.schema = plain_schema(table.schema)
        check_same_schema("table", self.schema, "table", self.schema)
        if not table.num_rows:
            raise DataError("table has no rows")
        self._table = table
        self.files: Sequence[str] = ()
        self.size = table.num_rows
        self.repeatable = True

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        for index in range(start, -(-self._table.num_rows // CHUNK_ROWS)):
            part = self._table.slice(index * CHUNK_ROWS, CHUNK_ROWS)
            yield TableChunk(
                index=index, size=part.num_rows, table=part, first_row=index * CHUNK_ROWS, what="table"
            )

    def sample(self, rows: int) -> pa.Table:
        return first_rows(self.chunks(), self.schema, rows)


class BatchesSource(Source):
    """Record batches from an iterable, in chunks of 65,536 rows; each pass iterates once more.

    An iterator gives its batches once, so it is not repeatable; what a sample takes is kept for the pass.

    Raises:
        DataError: there is no row, an item is no record batch, or its schema differs from the first's.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = batches
        iterator = iter(batches)
        self.repeatable = iterator is not batches
        self.files: Sequence[str] = ()
        self.size = None
        checked = _checked(iterator)
        first = next((batch for batch in checked if batch.num_rows), None)
        if first is None:
            raise DataError("stream has no rows")
        self.schema = plain_schema(first.schema)
        self._seen: list[pa.RecordBatch] = [first]
        self._unseen: Iterator[pa.RecordBatch] | None = checked

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        if self.repeatable:
            batches = _checked(self._batches)
        else:
            batches = itertools.chain(self._seen, self._once())
            self._seen, self._unseen = [], None
        return itertools.islice(self._cut(batches), start, None)

    def _once(self) -> Iterator[pa.RecordBatch]:
        if self._unseen is None:
            raise DataError("an iterator of record batches can be read once; pass a list or files")
        return self._unseen

    def _cut(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        tables = (pa.Table.from_batches([batch]) for batch in batches)
        for index, batch in enumerate(rebatch(tables, self.schema.names, CHUNK_ROWS, 0)):
            yield TableChunk(
                index=index,
                size=batch.num_rows,
                table=pa.Table.from_batches([batch]),
                first_row=index * CHUNK_ROWS,
                what="stream",
            )

    def sample(self, rows: int) -> pa.Table:
        if self.repeatable:
            return first_rows(self.chunks(), self.schema, rows)
        unseen = self._once()
        while sum(batch.num_rows for batch in self._seen) < rows:
            batch = next(unseen, None)
            if batch is None:
                break
            self._seen.append(batch)
        return first_rows(self._cut(iter(self._seen)), self.schema, rows)


def _checked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    first: pa.Schema | None = None
    for i, batch in enumerate(batches):
        if not isinstance(batch, pa.RecordBatch):
            raise DataError(f"stream batch {i}: got {type(batch).__name__}, allowed: pyarrow.RecordBatch")
        first = first or batch.schema
        check_same_schema(f"stream batch {i}", batch.schema, "batch 0", first)
        yield batch


def to_table(data: Any) -> pa.Table | None:
    """An Arrow table of a table-like object, None if it is none.

    Columns of data frames become Arrow columns; NaN of pandas becomes null; an index is left out.

    Raises:
        DataError: a column holds values of several types.
    """
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    library = type(data).__module__.partition(".")[0]
    try:
        if library == "pandas":
            return pa.Table.from_pandas(data, preserve_index=False)
        if library == "polars" and hasattr(data, "to_arrow"):
            table = data.to_arrow()
            return table if isinstance(table, pa.Table) else pa.table(data)
        if hasattr(data, "__arrow_c_stream__") and not isinstance(data, pa.RecordBatchReader):
            return pa.table(data)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        message = " ".join(str(part) for part in error.args)
        raise DataError(f"{type(data).__name__} cannot become an Arrow table: {message}") from error
    return None
