"""Tables as Arrow IPC streams, from senders that nobody trusts.

Arrow checks that a stream is well-formed, not that it is modest: a buffer of a few bytes may unpack to gigabytes,
a column of nulls has as many rows as it says, and views may show the same bytes a million times. So sizes are
looked up in the messages' metadata before anything is unpacked.
Layouts: Arrow's ``Message.fbs`` and the internals of FlatBuffers (tables, vtables, vectors).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from penstock.transport.http import Refused

__all__ = ["ARROW", "TableLimits", "read_table", "write_table"]

ARROW = "application/vnd.apache.arrow.stream"
_VIEW_NBYTES = 16
"""A view begins with the length of its text."""
_PREFIX = struct.Struct("<q")


@dataclass(frozen=True, kw_only=True)
class TableLimits:
    """Of one table."""

    nbytes: int
    """Of all its buffers, when they are decompressed."""
    rows: int
    """Also of the items in all lists of a record batch."""
    batches: int = 4096


def read_table(body: bytes, columns: Collection[str], limits: TableLimits) -> pa.Table:
    """The columns of these names, as far as they are there; of flat types, or lists or maps of them.

    Raises:
        Refused: the body is no Arrow stream, is larger than allowed, or a column has a type that is not taken.
    """
    buffer = pa.py_buffer(body)
    try:
        _check_sizes(buffer, limits)
        with pa.ipc.open_stream(buffer) as stream:
            schema = stream.schema
            places = [n for n, name in enumerate(schema.names) if name in columns]
            for n in places:
                _check_type(schema.field(n))
            if len({schema.names[n] for n in places}) < len(places):
                raise Refused(400, "a column is there twice")
            table = stream.read_all().select(places)
        table.validate(full=True)
        if sum(_viewed_nbytes(chunk) for column in table.columns for chunk in column.chunks) > limits.nbytes:
            raise _too_large(limits)
    except (pa.ArrowException, OSError, ValueError, MemoryError, struct.error) as error:
        raise Refused(400, f"the body is no Arrow stream: {' '.join(str(error).split())[:200]}") from error
    return table


def write_table(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _check_sizes(buffer: pa.Buffer, limits: TableLimits) -> None:
    rows = nbytes = 0
    for n, message in enumerate(pa.ipc.MessageReader.open_stream(buffer)):
        if n > limits.batches:
            raise Refused(413, f"the table has more than {limits.batches:,} record batches; send longer ones")
        batch = _batch(message)
        if batch is None:
            continue
        rows += batch.length if message.type == "record batch" else 0
        if max(rows, batch.length, *batch.node_lengths) > limits.rows:
            raise Refused(413, f"the table has more than {limits.rows:,} rows, or items of lists")
        nbytes += batch.nbytes(message.body)
        if nbytes > limits.nbytes:
            raise _too_large(limits)


def _too_large(limits: TableLimits) -> Refused:
    return Refused(413, f"the table has more than {limits.nbytes:,} bytes, decompressed")


class _Table:
    """A table of FlatBuffers; ``field`` gives where a field's value is, or 0."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at
        self._vtable = at - self.read("<i", at)
        self._nbytes = self.read("<H", self._vtable)

    def read(self, form: str, at: int) -> int:
        if at < 0:
            raise struct.error("an offset is before the message")
        value: int = struct.unpack_from(form, self.data, at)[0]
        return value

    def field(self, n: int) -> int:
        place = 4 + 2 * n
        offset = self.read("<H", self._vtable + place) if place < self._nbytes else 0
        return self.at + offset if offset else 0

    def table(self, n: int) -> _Table | None:
        at = self.field(n)
        return _Table(self.data, at + self.read("<I", at)) if at else None

    def structs(self, n: int, form: str) -> Iterator[tuple[int, ...]]:
        """Items of a vector of structs."""
        at = self.field(n)
        if not at:
            return iter(())
        at += self.read("<I", at)
        end = at + 4 + self.read("<I", at) * struct.calcsize(form)
        if end > len(self.data):
            raise struct.error("a vector ends behind the message")
        return struct.iter_unpack(form, self.data[at + 4 : end])


class _Batch:
    """``RecordBatch`` of ``Message.fbs``."""

    def __init__(self, table: _Table) -> None:
        length = table.field(0)
        self.length = table.read("<q", length) if length else 0
        self.node_lengths = [length for length, _ in table.structs(1, "<qq")]
        self._buffers = list(table.structs(2, "<qq"))
        self._compressed = table.table(3) is not None
        if min([self.length, *self.node_lengths, *(min(pair) for pair in self._buffers)]) < 0:
            raise struct.error("a length is negative")

    def nbytes(self, body: pa.Buffer) -> int:
        """Of its buffers, decompressed."""
        if not self._compressed:
            return sum(length for _, length in self._buffers)
        data = memoryview(body)
        total = 0
        for offset, length in self._buffers:
            if length:
                (unpacked,) = _PREFIX.unpack_from(data, offset)
                total += length if unpacked == -1 else unpacked
                if unpacked < -1:
                    raise struct.error("a length is negative")
        return total


def _batch(message: pa.Message) -> _Batch | None:
    """What a message has, if it has rows."""
    if message.type not in ("record batch", "dictionary"):
        return None
    data = memoryview(message.metadata)
    header = _Table(data, int(struct.unpack_from("<I", data)[0])).table(2)
    if header is not None and message.type == "dictionary":
        header = header.table(1)
    return _Batch(header) if header is not None else None


def _check_type(field: pa.Field) -> None:
    type_ = field.type
    if pt.is_dictionary(type_):
        taken = _is_flat(type_.value_type)
    elif pt.is_map(type_):
        taken = _is_flat(type_.key_type) and _is_flat(type_.item_type)
    elif pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_):
        taken = _is_flat(type_.value_type)
    else:
        taken = pt.is_null(type_) or _is_flat(type_)
    if not taken:
        raise Refused(
            400,
            f"column {field.name!r} is a {str(type_)[:100]}; allowed: numbers, booleans, texts, dates and times, "
            "dictionaries, lists or maps of them",
        )


_FLAT: tuple[Callable[[pa.DataType], bool], ...] = (
    pt.is_boolean,
    pt.is_integer,
    pt.is_floating,
    pt.is_decimal,
    pt.is_string,
    pt.is_large_string,
    pt.is_binary,
    pt.is_large_binary,
    pt.is_temporal,
    pt.is_string_view,
)


def _is_flat(type_: pa.DataType) -> bool:
    return any(is_it(type_) for is_it in _FLAT)


def _viewed_nbytes(array: pa.Array) -> int:
    """Of the texts that views show; they may show the same bytes many times."""
    type_ = array.type
    if pt.is_dictionary(type_):
        return _viewed_nbytes(array.dictionary)
    if pt.is_map(type_):
        return _viewed_nbytes(array.keys) + _viewed_nbytes(array.items)
    if pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_):
        return _viewed_nbytes(array.values)
    if not pt.is_string_view(type_) or not len(array):
        return 0
    lengths = np.frombuffer(array.buffers()[1], np.int32)[:: _VIEW_NBYTES // 4]
    return int(np.maximum(lengths[array.offset : array.offset + len(array)], 0).sum(dtype=np.int64))
