"""Files into a log: JSON lines, Parquet, and what else ``data`` reads in columns.

A file is a producer of its own, named by its place and by how it begins, and its position is how much of it is in
the log. So a command that is repeated appends nothing twice, a file that grew gives what is new, and one that was
replaced is another file.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from penstock.data import CsvOptions, Source, open_source
from penstock.data.ahead import ahead
from penstock.data.delimited import DelimitedSource
from penstock.data.files import find_files, is_local, nbytes_of, open_file, reading
from penstock.data.text import compression_of
from penstock.errors import ConfigError, DataError
from penstock.log.events import Appended, EventStream, PositionMoved
from penstock.log.log import Log
from penstock.log.quarantine import Rejected
from penstock.log.sources.blocks import Block, Blocks
from penstock.log.sources.decode import BOM, LINE_NBYTES_MAX, Decoder, Lines
from penstock.log.sources.pump import BATCH_NBYTES, BATCH_ROWS, Batch, Delivery, Taken, deliver, json_batch
from penstock.log.types import plain_columns

__all__ = ["FORMATS", "NewStream", "append_file", "find", "make_from_values", "make_stream", "too_long"]

FORMATS = ("jsonl", "parquet", "csv", "tsv", "arrow")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_COMPRESSED = (".gz", ".zst", ".bz2")
_HEAD_NBYTES = 1 << 16
_FOOTER_NBYTES = 8
_READ_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class NewStream:
    """What is said about a stream that may have to be made."""

    time: str | None = None
    id: str | None = None
    types: Mapping[str, pa.DataType] | None = None


def find(places: Sequence[str], format: str | None) -> list[tuple[str, str]]:
    """Files at these places, with their formats.

    Raises:
        DataError: nothing is there.
        ConfigError: a format cannot be told.
    """
    return [(path, format or _format_of(path)) for path in find_files(places)]


def _format_of(path: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes[-2:]]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    known = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if known is not None:
        return known
    with ExitStack() as open_, reading(path):
        head = _open_text(path, open_)[0](_HEAD_NBYTES)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.removeprefix(BOM).lstrip().startswith(b"{"):
        return "jsonl"
    raise ConfigError(f"{path}: its format cannot be told, name it with --format, one of {', '.join(FORMATS)}")


def append_file(
    log: Log,
    name: str,
    path: str,
    format: str,
    how: Delivery,
    new: NewStream,
    on_commit: Callable[[float, Appended], None],
    csv: CsvOptions | None = None,
) -> tuple[Taken, int]:
    """Append what is new in a file; what came of it, and how many bytes at its end are no whole line yet.

    Args:
        how: its producer is that of the file where none is named.
        on_commit: gets the share of the file that is done, 0 to 1.

    Raises:
        DataError: the file cannot be read, or does not fit the stream.
    """
    opened: _File = _JsonLines(path) if format == "jsonl" else _Columns(path, format, csv)
    how = replace(
        how, producer=how.producer or f"file/{_absolute(path)}#{opened.digest}", source=how.source or "files"
    )
    stream = make_stream(log, name, new, opened.fields)
    opened.suit(stream, new)
    while True:
        position = stream.position(how.producer)
        opened.check(position)
        try:
            taken = deliver(
                stream,
                ahead(opened.batches(position)),
                how,
                lambda batch, done: on_commit(opened.share(batch.end), done),
            )
        except PositionMoved:
            stream.refresh()
            continue
        return taken, opened.unfinished


def make_stream(
    log: Log, name: str, new: NewStream, fields: Callable[[Mapping[str, pa.DataType]], Sequence[pa.Field]]
) -> EventStream:
    """The stream; if it is not there, a new one with these columns."""
    types = dict(new.types or {})
    if not log.has(name):
        return log.create(name, fields(types), time=new.time, id=new.id)
    stream = log.create(name, [], time=new.time, id=new.id)
    for column, type_ in types.items():
        if column in stream.schema.names and stream.schema.field(column).type != type_:
            raise ConfigError(
                f"stream {name}: column {column!r} is {stream.schema.field(column).type} since it was made, got "
                f"--type {column}={type_}"
            )
    return stream


def make_from_values(
    log: Log, name: str, new: NewStream, values: Sequence[bytes], where: str, must: bool
) -> EventStream | None:
    """The stream with the columns of these messages; None where none is an event, which ``must`` refuses."""
    decoder, lines = Decoder(pa.schema([]), types=new.types), Lines.of(values)
    rejected = decoder.decode(lines, np.arange(len(lines))).rejected
    if len(decoder.schema):
        return make_stream(log, name, new, lambda types: list(decoder.schema))
    if must and rejected:
        raise DataError(f"{where}: has no event; the first message: {rejected[0].detail}")
    return None


def too_long(block: Block) -> Rejected:
    """What is said of a line that was passed over."""
    return Rejected(
        position=block.begin,
        reason="too long",
        detail=f"a line of {block.end - block.begin:,} bytes, allowed: {LINE_NBYTES_MAX:,}",
        event=block.text,
    )


def _absolute(path: str) -> str:
    return os.path.realpath(path) if is_local(path) else path


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


class _File:
    """A file that is read from a position on."""

    digest: str
    unfinished = 0

    def fields(self, types: Mapping[str, pa.DataType]) -> Sequence[pa.Field]:
        """Its columns, for a new stream."""
        raise NotImplementedError

    def suit(self, stream: EventStream, new: NewStream) -> None:
        """Prepare to be read for this stream."""
        raise NotImplementedError

    def check(self, position: int) -> None:
        """Refuse a file that is shorter than what was taken of it."""

    def batches(self, position: int) -> Iterator[Batch]:
        """What comes from there on."""
        raise NotImplementedError

    def share(self, position: int) -> float:
        """How much of the file that is."""
        raise NotImplementedError


def _open_bytes(path: str, open_: ExitStack) -> Any:
    # Not memory-mapped: whoever cuts a mapped file short kills its readers.
    if is_local(path):
        return open_.enter_context(Path(path).open("rb"))
    return open_.enter_context(open_file(path))


def _open_text(path: str, open_: ExitStack) -> tuple[Callable[[int], bytes], Callable[[], int], str | None]:
    """Functions that read on, and that tell the offset in the file; and the compression."""
    file = _open_bytes(path, open_)
    compression = compression_of(file.read(4))
    file.seek(0)
    if compression == "gzip":
        return open_.enter_context(gzip.GzipFile(fileobj=file)).read, file.tell, compression
    if compression is not None:
        stream = open_.enter_context(pa.CompressedInputStream(pa.PythonFile(file, "r"), compression))
        return stream.read, file.tell, compression
    return file.read, file.tell, None


class _JsonLines(_File):
    def __init__(self, path: str) -> None:
        self.path = path
        self._nbytes = nbytes_of(path)
        with ExitStack() as open_, _reading_text(path):
            read, _, self._compression = _open_text(path, open_)
            head = read(_HEAD_NBYTES)
        first = head.split(b"\n", 1)[0]
        self.digest = _digest(first.rstrip(b"\r"))
        _refuse_array(path, head)

    def fields(self, types: Mapping[str, pa.DataType]) -> Sequence[pa.Field]:
        decoder = Decoder(pa.schema([]), types=types)
        rejected: list[Rejected] = []
        for block in self._blocks(0):
            if block.is_too_long:
                rejected.append(too_long(block))
                continue
            lines = Lines(block.text)
            rejected += decoder.decode(lines, lines.starts).rejected
            if len(decoder.schema):
                return list(decoder.schema)
        first = f"; the first line: {rejected[0].detail}" if rejected else ""
        raise DataError(f"{self.path}: has no event{first}")

    def suit(self, stream: EventStream, new: NewStream) -> None:
        self._decoder = Decoder(stream.schema, time=stream.settings.time, types=new.types)

    def check(self, position: int) -> None:
        if self._compression is None and position > self._nbytes:
            raise DataError(
                f"{self.path}: has {self._nbytes:,} bytes, but {position:,} of a file that began the same are in "
                f"the log; if it is another file, name it with --producer"
            )

    def _blocks(self, position: int) -> Iterator[Block]:
        with ExitStack() as open_, _reading_text(self.path):
            read, tell, compression = _open_text(self.path, open_)
            self._skip(read, position)
            blocks = Blocks(read, position, grows=compression is None)
            for block in blocks:
                self._done = block.end, tell()
                yield block
            self.unfinished = blocks.unfinished

    def _skip(self, read: Callable[[int], bytes], position: int) -> None:
        while position > 0 and (piece := read(min(position, BATCH_NBYTES))):
            position -= len(piece)

    def batches(self, position: int) -> Iterator[Batch]:
        start, blocks, rejected, rows = position, [], [], 0
        end = position
        for block in self._blocks(position):
            end = block.end
            if block.is_too_long:
                rejected.append(too_long(block))
            else:
                lines = Lines(block.text)
                blocks.append((lines, block.begin + lines.starts))
                rows += len(lines)
            if rows >= BATCH_ROWS or end - start >= BATCH_NBYTES:
                yield json_batch(self._decoder, blocks, rejected, start=start, end=end)
                start, blocks, rejected, rows = end, [], [], 0
        if end > start:
            yield json_batch(self._decoder, blocks, rejected, start=start, end=end)

    def share(self, position: int) -> float:
        end, offset = self._done
        return min(1.0, position / end * offset / self._nbytes)


def _refuse_array(path: str, head: bytes) -> None:
    text = head.removeprefix(BOM).lstrip()
    if not text.startswith(b"["):
        return
    first = text.split(b"\n", 1)[0]
    try:
        msgspec.json.decode(first)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise DataError(f"{path}: is one JSON array, allowed: one object a line; as by: jq -c '.[]'") from None


@contextlib.contextmanager
def _reading_text(path: str) -> Iterator[None]:
    """``reading``, and what decompression raises besides."""
    with reading(path):
        try:
            yield
        except (EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


class _Columns(_File):
    """A file that comes in columns: one of another type than in the stream is an error, not a matter of rows."""

    def __init__(self, path: str, format: str, csv: CsvOptions | None) -> None:
        self.path = path
        nbytes_of(path)
        if format == "parquet":
            self._open_parquet()
            return
        self._source: Source = open_source(path, format=format, csv=csv)
        with reading(path), ExitStack() as open_:
            head = _open_text(path, open_)[0](_HEAD_NBYTES)
        # Files of one kind have the same first line; the second one tells them apart.
        self.digest = _digest(*head.split(b"\n", 2)[:2]) if format in ("csv", "tsv") else _digest(head)
        self._tables = self._read_source
        self._schema = self._source.schema
        self._rows = self._source.size if self._source.unit == "rows" else None

    def _open_parquet(self) -> None:
        with reading(self.path), ExitStack() as open_:
            file = _open_bytes(self.path, open_)
            parquet = pq.ParquetFile(file)
            self._schema, self._rows = parquet.schema_arrow, parquet.metadata.num_rows
            file.seek(-_FOOTER_NBYTES, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-_FOOTER_NBYTES - length, os.SEEK_END)
            self.digest = _digest(file.read(length))
        self._tables = self._read_parquet

    def fields(self, types: Mapping[str, pa.DataType]) -> Sequence[pa.Field]:
        for name in types:
            if name not in self._schema.names:
                raise ConfigError(
                    f"--type {name}: {self.path} has no such column, got {', '.join(self._schema.names)}"
                )
        table = plain_columns(self.path, self._schema.empty_table())
        return [field.with_type(types.get(field.name, field.type)) for field in table.schema]

    def suit(self, stream: EventStream, new: NewStream) -> None:
        types = {**{field.name: field.type for field in stream.schema}, **dict(new.types or {})}
        types.pop(stream.settings.time, None)
        self._types = {name: type_ for name, type_ in types.items() if name in self._schema.names}
        source = getattr(self, "_source", None)
        if isinstance(source, DelimitedSource):
            # What a text file has is text; the stream says what it means.
            self._source = source.read_as({n: t for n, t in self._types.items() if not pa.types.is_nested(t)})

    def batches(self, position: int) -> Iterator[Batch]:
        start, tables, rows = position, [], 0
        for table in self._tables(position):
            tables.append(table)
            rows += table.num_rows
            if rows >= BATCH_ROWS or sum(each.nbytes for each in tables) >= 4 * BATCH_NBYTES:
                yield self._batch(tables, start, start + rows)
                start, tables, rows = start + rows, [], 0
        if rows:
            yield self._batch(tables, start, start + rows)

    def _batch(self, tables: Sequence[pa.Table], start: int, end: int) -> Batch:
        return Batch(
            events=pa.concat_tables(tables, promote_options="permissive"),
            positions=np.arange(start, end),
            rejected=[],
            start=start,
            end=end,
        )

    def _read_parquet(self, position: int) -> Iterator[pa.Table]:
        with reading(self.path), ExitStack() as open_:
            file = _open_bytes(self.path, open_)
            parquet = pq.ParquetFile(file)
            groups: list[int] = []
            skip = position
            for number in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(number).num_rows
                if not groups and skip >= rows:
                    skip -= rows
                else:
                    groups.append(number)
            if groups:
                yield from _without_first(
                    (
                        pa.Table.from_batches([batch])
                        for batch in parquet.iter_batches(_READ_ROWS, row_groups=groups, use_threads=False)
                    ),
                    skip,
                )

    def _read_source(self, position: int) -> Iterator[pa.Table]:
        names = self._source.schema.names
        tables = (
            pa.Table.from_batches([_spelled_out(batch)])
            for chunk in self._source.chunks()
            for batch in chunk.batches(names, _READ_ROWS)
        )
        yield from _without_first(tables, position)

    def share(self, position: int) -> float:
        return min(1.0, position / self._rows) if self._rows else 0.0


def _spelled_out(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Without dictionaries, which may differ from batch to batch."""
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns
    ]
    return pa.record_batch(columns, names=batch.schema.names)


def _without_first(tables: Iterable[pa.Table], skip: int) -> Iterator[pa.Table]:
    for table in tables:
        if skip >= table.num_rows:
            skip -= table.num_rows
            continue
        yield table.slice(skip)
        skip = 0
