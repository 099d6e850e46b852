"""Arrow IPC files (also called Feather 2) and streams.

A chunk of a file is a run of its record batches, so that small ones are handed out together. A stream has
no index and is read from its start: it is one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from penstock.data.files import nbytes_of, open_file, reading
from penstock.data.source import Chunk, Source
from penstock.data.tables import check_arrays, check_columns, check_same_schema, first_rows, plain_schema, rebatch
from penstock.errors import DataError

__all__ = ["MAGIC", "IpcSource"]

MAGIC = b"ARROW1"
CHUNK_ROWS = 1 << 16
"""A chunk ends with the record batch that brings it to so many rows."""


@dataclass(frozen=True, kw_only=True)
class IpcChunk(Chunk):
    """Record batches ``first_batch <= i < end_batch`` of a file; all of a stream, where that is None."""

    index: int
    size: int
    path: str
    first_row: int
    first_batch: int
    end_batch: int | None

    def batches(self, columns: Sequence[str], batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
        return rebatch(self._tables(columns), columns, batch_rows, skip)

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        with reading(self.path), open_file(self.path) as file:
            if self.end_batch is None:
                stream = pa.ipc.open_stream(file, options=_options())
                check_columns(self.path, columns, stream.schema.names)
                yield from _checked(columns, stream)
                return
            names = pa.ipc.open_file(file).schema.names
            check_columns(self.path, columns, names)
            fields = [names.index(name) for name in columns]
            reader = pa.ipc.open_file(file, options=_options(fields))
            yield from _checked(columns, map(reader.get_batch, range(self.first_batch, self.end_batch)))

    def locate(self, row: int) -> str:
        return f"{self.path} row {self.first_row + row}"


def _checked(columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    known: dict[str, pa.Array] = {}
    for batch in batches:
        batch = batch.select(list(columns))
        check_arrays(batch, known)
        yield pa.Table.from_batches([batch])


class IpcSource(Source):
    """Arrow files or streams of one schema. Opening reads the sizes of all record batches.

    Raises:
        DataError: a file is missing, empty, damaged or no Arrow; schemas differ; there is no row at all.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        self._chunks: list[Chunk] = []
        for path in self.files:
            nbytes_of(path)
            with reading(path), open_file(path) as file:
                is_file = file.read(len(MAGIC)) == MAGIC
                file.seek(0)
                if not (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file).schema.names:
                    raise DataError(f"{path} has no columns")
                file.seek(0)
                schema, batch_sizes = _file_batches(file) if is_file else _stream_batches(file)
            if path == self.files[0]:
                self.schema = schema
            check_same_schema(path, schema, self.files[0], self.schema)
            self._add_chunks(path, batch_sizes, is_file)
        self.size = sum(chunk.size for chunk in self._chunks)
        self.repeatable = True
        if not self.size:
            raise DataError(f"{self.files[0]} has no rows")

    def _add_chunks(self, path: str, batch_sizes: list[int], is_file: bool) -> None:
        first_row = first_batch = rows = 0
        for i, batch_size in enumerate(batch_sizes):
            rows += batch_size
            last = i + 1 == len(batch_sizes)
            if last or (is_file and rows >= CHUNK_ROWS):
                self._chunks.append(
                    IpcChunk(
                        index=len(self._chunks),
                        size=rows,
                        path=path,
                        first_row=first_row,
                        first_batch=first_batch,
                        end_batch=i + 1 if is_file else None,
                    )
                )
                first_row, first_batch, rows = first_row + rows, i + 1, 0

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        return iter(self._chunks[start:])

    def sample(self, rows: int) -> pa.Table:
        return first_rows(self.chunks(), self.schema, rows)


def _options(fields: list[int] | None = None) -> pa.ipc.IpcReadOptions:
    """Only these columns are decompressed; all of them where that is None (an empty list means so, too)."""
    return pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields or None)


def _file_batches(file: pa.NativeFile) -> tuple[pa.Schema, list[int]]:
    schema = plain_schema(pa.ipc.open_file(file).schema)
    reader = pa.ipc.open_file(file, options=_options([0]))
    return schema, [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]


def _stream_batches(file: pa.NativeFile) -> tuple[pa.Schema, list[int]]:
    schema = plain_schema(pa.ipc.open_stream(file).schema)
    file.seek(0)
    return schema, [batch.num_rows for batch in pa.ipc.open_stream(file, options=_options([0]))]
