"""JSON lines to events, and what of them is none.

Arrow reads a block at once, with the types that the stream has. It stops at the first line that it does not like,
so such a block is looked at line by line: what is no event is rejected, with the reason, and the rest is read as
before. Each line that is not blank is either taken or rejected, once, and which of the two does not depend on its
neighbours, but for columns that nobody has seen before: their type is that of the first value.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.errors import DataError
from penstock.log.quarantine import Rejected
from penstock.log.times import as_times, format_time
from penstock.log.types import new_fields

__all__ = ["BOM", "LINE_NBYTES_MAX", "Decoded", "Decoder", "Lines"]

BOM = b"\xef\xbb\xbf"
LINE_NBYTES_MAX = 1 << 20
_SHOWN_NBYTES = 1 << 16
"""Of a line that is too long."""
_DEPTH_MAX = 32
_DEEP_NBYTES = 512
"""Shorter lines cannot be nested so deep that it does harm."""
_COLUMNS_MAX = 1000
_NOT_JSON = (b"NaN", b"Inf")
"""Arrow takes these for numbers."""
_OPEN, _CLOSE, _LF, _CR = b"{}\n\r"
_INTEGERS = {
    8: (-(1 << 7), 1 << 7),
    16: (-(1 << 15), 1 << 15),
    32: (-(1 << 31), 1 << 31),
    64: (-(1 << 63), 1 << 63),
}


class Lines:
    """A block of text, and where its lines begin and end."""

    def __init__(self, block: bytes) -> None:
        """Find them; the last one may lack its newline."""
        self.block = block
        self.data = np.frombuffer(block, np.uint8)
        ends: NDArray[np.int64] = np.flatnonzero(self.data == _LF)
        if block and block[-1] != _LF:
            ends = np.append(ends, len(block))
        self.starts = np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1] + 1])
        """Offset of each line."""
        after_cr = (ends > self.starts) & (self.data[np.maximum(ends, 1) - 1] == _CR)
        self.ends = ends - after_cr
        self.texts = self.starts.copy()
        """Offset of its text: a byte order mark is none."""
        if block.startswith(BOM):
            self.texts[0] = min(len(BOM), self.ends[0])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> bytes:
        begin, end = self._spans[number]
        return self.block[begin:end]

    @functools.cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.texts.tolist(), self.ends.tolist(), strict=True))

    @staticmethod
    def of(values: Sequence[bytes]) -> Lines:
        """One line for each value. A newline in a value, which JSON allows between its parts, becomes a space."""
        return Lines(b"".join(_one_line(value) for value in values))


def _one_line(value: bytes) -> bytes:
    return value.removeprefix(BOM).replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a block had."""

    events: pa.Table
    positions: NDArray[np.int64]
    """Of each event."""
    rejected: list[Rejected]


class _Bad(Exception):
    """A line is no event."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Decoder:
    """Reads lines as events of one stream, and learns new columns as they come. Not for several threads."""

    def __init__(
        self, schema: pa.Schema, *, time: str | None = None, types: Mapping[str, pa.DataType] | None = None
    ) -> None:
        """Start from the columns of a stream.

        Args:
            schema: its own columns; none for a stream that is not there yet.
            time: the column of the event time, whose values ``EventStream.append`` reads.
            types: of columns that are not there yet.
        """
        self._time, self._types = time, dict(types or {})
        self.adopt(schema)

    def adopt(self, schema: pa.Schema) -> None:
        """Take the columns of the stream as they are by now."""
        self.schema = schema

    def decode(self, lines: Lines, positions: NDArray[np.int64]) -> Decoded:
        """The events of these lines; ``positions`` has the place of each line."""
        return _Block(self.schema, self._time, self._types, lines, positions).decode(self)


class _Block:
    """The decoding of one block."""

    def __init__(
        self,
        schema: pa.Schema,
        time: str | None,
        types: Mapping[str, pa.DataType],
        lines: Lines,
        positions: NDArray[np.int64],
    ) -> None:
        self.known = {field.name: field.type for field in schema}
        self.schema, self.time, self.types, self.lines, self.positions = schema, time, types, lines, positions
        self.new: dict[str, pa.DataType] = {}
        self.names: dict[str, str | None] = {}
        self.rejected: list[Rejected] = []
        self.rewritten: dict[int, bytes] = {}
        self.expected = {name: _expectation(type_) for name, type_ in self.known.items()}
        self.is_utf8 = _is_utf8(lines.block)
        self.times = {name for name, type_ in self.known.items() if pt.is_timestamp(type_)}
        self.times |= set() if time is None else {time}
        self.time_values: dict[str, list[tuple[int, Any]]] = {}
        """Of lines that were looked at."""
        self.as_numbers: set[str] = set()
        """Columns of times that come as numbers."""

    def decode(self, decoder: Decoder) -> Decoded:
        numbers, odd = self._sort_out()
        self._see_times(numbers)
        if len(odd):
            numbers = np.sort(np.concatenate([numbers, self._inspect(odd)]))
        table = self._read(numbers)
        if table is None:
            table, numbers = self._read_with_care(np.union1d(numbers, odd))
        table, numbers = self._finish(table, numbers)
        grown = [pa.field(name, type_) for name, type_ in self._new_types().items()]
        if grown:
            decoder.adopt(pa.schema([*self.schema, *grown]))
        self.rejected.sort(key=lambda each: each.position)
        return Decoded(events=table, positions=self.positions[numbers], rejected=self.rejected)

    def _sort_out(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lines that look as Arrow reads them, each an object of its own; and others that are not blank."""
        lines = self.lines
        lengths = lines.ends - lines.texts
        some = np.flatnonzero(lengths > 0)
        data = lines.data
        plain = (data[lines.texts[some]] == _OPEN) & (data[lines.ends[some] - 1] == _CLOSE)
        plain &= lengths[some] <= LINE_NBYTES_MAX
        if any(word in lines.block for word in _NOT_JSON) or not self.is_utf8:
            plain[:] = False
        for at in np.flatnonzero(plain & (lengths[some] > _DEEP_NBYTES)):
            plain[at] = not _may_be_deep(lines[some[at]])
        return some[plain], some[~plain]

    def _see_times(self, numbers: NDArray[np.int64]) -> None:
        """Whether the first event has its times as numbers."""
        if not self.times or not len(numbers):
            return
        try:
            event = msgspec.json.decode(self.lines[numbers[0]])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        self.as_numbers = {name for name in self.times if type(event.get(name)) in (int, float)}

    def _reject(self, number: int, reason: str, detail: str) -> None:
        event = self.lines[number]
        self.rejected.append(
            Rejected(
                position=int(self.positions[number]), reason=reason, detail=detail, event=event[:_SHOWN_NBYTES]
            )
        )

    # ---- line by line

    def _inspect(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the lines that are events; the others are rejected."""
        good = []
        self.time_values = {name: [] for name in self.times}
        for number in numbers.tolist():
            line = self.lines[number]
            if not line.strip(b" \t\r"):
                continue
            try:
                event = self._object(line)
                self._check(event)
            except _Bad as bad:
                self._reject(number, bad.reason, bad.detail)
                continue
            good.append(number)
            for name, values in self.time_values.items():
                value = event.get(name)
                if value is not None:
                    values.append((number, value))
        return np.array(good, np.int64)

    def _object(self, line: bytes) -> dict[str, Any]:
        if len(line) > LINE_NBYTES_MAX:
            raise _Bad("too long", f"a line of {len(line):,} bytes, allowed: {LINE_NBYTES_MAX:,}")
        try:
            if not self.is_utf8:
                line.decode()
            event = msgspec.json.decode(line)
        except UnicodeDecodeError as error:
            raise _Bad("malformed", f"byte {error.start} is not UTF-8") from None
        except msgspec.MsgspecError as error:
            raise _Bad("malformed", str(error)) from None
        except RecursionError:
            raise _Bad("malformed", f"nested deeper than {_DEPTH_MAX} levels") from None
        if not isinstance(event, dict):
            raise _Bad("malformed", f"got {_kind(event)}, allowed: an object")
        if _may_be_deep(line) and _depth(event) > _DEPTH_MAX:
            raise _Bad("malformed", f"nested deeper than {_DEPTH_MAX} levels")
        return event

    def _check(self, event: dict[str, Any]) -> None:
        """Compare an event with the columns; what is new is remembered if all of it can be taken."""
        new: dict[str, pa.DataType] = {}
        for name, value in event.items():
            if value is None:
                continue
            fits = self.expected.get(name)
            if fits is not None:
                if name != self.time and not fits(value):
                    raise _Bad("type", _mismatch(name, value, self.known[name]))
            elif not _says_nothing(kind := _kind(value)):
                new[name] = self._new_column(name, value, kind)
        self.new.update(new)

    def _new_column(self, name: str, value: Any, kind: pa.DataType) -> pa.DataType:
        if name == self.time:
            return pa.null()
        if name not in self.names:
            self.names[name] = self._refusal(name)
        refusal = self.names[name]
        if refusal is not None:
            raise _Bad("column", refusal)
        wanted = self.types.get(name)
        if wanted is not None:
            if not _expectation(wanted)(value):
                raise _Bad("type", f"column {name!r}: got {_short(kind)}, allowed: {wanted} as was said")
            return wanted
        if _beyond(value):
            raise _Bad("type", f"column {name!r}: got an integer beyond 64 bits")
        seen = self.new.get(name)
        merged = kind if seen is None else _merge(seen, kind)
        if merged is None:
            raise _Bad("type", f"column {name!r}: got {_short(kind)}, allowed: {_short(seen)} as before")
        return merged

    def _refusal(self, name: str) -> str | None:
        """Why a new column cannot have this name."""
        if len(self.known) + len(self.names) >= _COLUMNS_MAX:
            return f"column {name!r} is one too many, allowed: {_COLUMNS_MAX:,} columns"
        others = [pa.field(other, pa.null()) for other in [*self.known, *self.names]]
        try:
            new_fields("", pa.schema([(name, pa.null())]), pa.schema(others))
        except DataError as error:
            return str(error).removeprefix(": ")
        return None

    # ---- by Arrow

    def _new_types(self) -> dict[str, pa.DataType]:
        """New columns, and of their types what says something."""
        pruned = {name: _prune(type_) for name, type_ in self.new.items()}
        return {name: type_ for name, type_ in pruned.items() if type_ is not None}

    def _explicit(self) -> dict[str, pa.DataType]:
        """Columns with the types as which Arrow reads them; others it finds out."""
        found = {}
        for name, type_ in {**self.known, **self._new_types()}.items():
            if name == self.time or pt.is_timestamp(type_):
                if name not in self.as_numbers:
                    found[name] = pa.string()
            elif (read := _read_type(type_)) is not None:
                found[name] = read
        if self.time is not None and self.time not in self.as_numbers:
            found[self.time] = pa.string()
        return found

    def _text(self, numbers: NDArray[np.int64]) -> bytes:
        lines = self.lines
        if len(numbers) == np.count_nonzero(lines.ends > lines.texts) and not self.rewritten:
            return lines.block
        if not self.rewritten:
            return b"\n".join([lines[number] for number in numbers.tolist()])
        return b"\n".join([self.rewritten.get(number) or lines[number] for number in numbers.tolist()])

    def _read(self, numbers: NDArray[np.int64]) -> pa.Table | None:
        """The lines as a table with a row for each; None where Arrow says no, or finds what is not known."""
        explicit = self._explicit()
        if not len(numbers):
            return pa.schema(list(explicit.items())).empty_table()
        text = self._text(numbers)
        try:
            table = pj.read_json(
                pa.BufferReader(text),
                read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
                parse_options=pj.ParseOptions(
                    explicit_schema=pa.schema(list(explicit.items())), unexpected_field_behavior="infer"
                ),
            )
        except pa.ArrowException:
            return None
        if table.num_rows != len(numbers):
            return None
        columns = {}
        for field, column in zip(table.schema, table.columns, strict=True):
            name = field.name
            wanted = explicit.get(name)
            if wanted is not None:
                if field.type != wanted and (column := _without_extras(column, wanted)) is None:
                    return None
                columns[name] = column
            elif name in self.as_numbers:
                columns[name] = pa.nulls(len(column), pa.string()) if pt.is_null(field.type) else column
            elif not _says_nothing(field.type):
                return None
        # Without columns a table would forget how many rows it has.
        return pa.table(columns) if columns else pa.table({"": pa.nulls(len(numbers))})

    def _read_with_care(self, numbers: NDArray[np.int64]) -> tuple[pa.Table, NDArray[np.int64]]:
        """Read what is left when each line was looked at."""
        self.rejected.clear()
        self.new, self.names = {}, {}
        numbers = self._inspect(numbers)
        self._agree_on_times()
        table = self._read(numbers)
        if table is not None:
            return table, numbers
        numbers = self._without_repeated_keys(numbers)
        table = self._read(numbers)
        return (table, numbers) if table is not None else self._read_by_halves(numbers)

    def _agree_on_times(self) -> None:
        """Where a column of times has numbers and something else, write all of it as text."""
        self.as_numbers = set()
        for name, values in self.time_values.items():
            kinds = {type(value) for _, value in values}
            if kinds and kinds <= {int, float}:
                self.as_numbers.add(name)
            elif kinds != {str}:
                for number, value in values:
                    if not isinstance(value, str):
                        self._rewrite(number, name, _time_as_text(value))

    def _rewrite(self, number: int, name: str, text: str) -> None:
        try:
            event = json.loads(self.rewritten.get(number) or self.lines[number], object_pairs_hook=_distinct)
        except _Bad:
            return  # Arrow stops at it, and it is rejected then
        self.rewritten[number] = json.dumps({**event, name: text}).encode()

    def _without_repeated_keys(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        good = []
        for number in numbers:
            try:
                json.loads(self.lines[number], object_pairs_hook=_distinct)
            except _Bad as bad:
                self._reject(int(number), bad.reason, bad.detail)
            else:
                good.append(number)
        return np.array(good, np.int64)

    def _read_by_halves(self, numbers: NDArray[np.int64]) -> tuple[pa.Table, NDArray[np.int64]]:
        """Find the lines that Arrow does not take, whatever the reason."""
        table = self._read(numbers)
        if table is not None:
            return table, numbers
        if len(numbers) == 1:
            self._reject(int(numbers[0]), "malformed", "JSON that cannot be read as columns")
            return self._read_by_halves(numbers[:0])
        middle = len(numbers) // 2
        parts = [self._read_by_halves(numbers[:middle]), self._read_by_halves(numbers[middle:])]
        whole = pa.concat_tables([table for table, _ in parts], promote_options="permissive")
        return whole, np.concatenate([taken for _, taken in parts])

    def _finish(self, table: pa.Table, numbers: NDArray[np.int64]) -> tuple[pa.Table, NDArray[np.int64]]:
        """Turn text into the types that JSON does not have; a time column is there in any case."""
        bad = np.zeros(len(numbers), bool)
        for name, type_ in {**self.known, **self._new_types()}.items():
            if name == self.time or name not in table.column_names or table[name].type == type_:
                continue
            column = table[name].combine_chunks()
            converted, wrong = _convert(column, type_)
            for at in np.flatnonzero(wrong & ~bad):
                self._reject(int(numbers[at]), "type", _mismatch(name, column[at].as_py(), type_))
            bad |= wrong
            table = table.set_column(table.column_names.index(name), name, converted)
        if self.time is not None and self.time not in table.column_names:
            table = table.append_column(self.time, pa.nulls(len(numbers), pa.string()))
        if "" in table.column_names:
            table = table.drop_columns([""])
        if bad.any():
            table, numbers = table.filter(pa.array(~bad)), numbers[~bad]
        return table, numbers


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _may_be_deep(line: bytes) -> bool:
    return line.count(b"{") + line.count(b"[") > _DEPTH_MAX


def _depth(value: Any) -> int:
    """How deep a value is nested, up to one more than is allowed."""
    depth, level = 0, [value]
    while level and depth <= _DEPTH_MAX:
        depth += 1
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
    return depth


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Bad("malformed", f"key {key!r} comes twice")
        found[key] = value
    return found


def _kind(value: Any) -> pa.DataType:
    """The type that a value has by itself."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, list):
        merged = pa.null()
        for each in value:
            both = _merge(merged, _kind(each))
            if both is None:
                raise _Bad("type", f"a list has {_short(merged)} and {_short(_kind(each))}, allowed: one type")
            merged = both
        return pa.list_(merged)
    return pa.struct([(name, _kind(inner)) for name, inner in value.items()])


def _merge(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """A type for the values of both, if there is one."""
    if a == b or pt.is_null(b):
        return a
    if pt.is_null(a):
        return b
    if {a, b} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pt.is_list(a) and pt.is_list(b):
        inner = _merge(a.value_type, b.value_type)
        return None if inner is None else pa.list_(inner)
    if pt.is_struct(a) and pt.is_struct(b):
        fields = {field.name: field.type for field in a}
        for field in b:
            merged = _merge(fields.get(field.name, pa.null()), field.type)
            if merged is None:
                return None
            fields[field.name] = merged
        return pa.struct(list(fields.items()))
    return None


def _says_nothing(type_: pa.DataType) -> bool:
    return _prune(type_) is None


def _prune(type_: pa.DataType) -> pa.DataType | None:
    """The type without what was only ever null or empty; None where nothing is left."""
    if pt.is_null(type_):
        return None
    if pt.is_list(type_):
        inner = _prune(type_.value_type)
        return None if inner is None else pa.list_(inner)
    if pt.is_struct(type_):
        fields = [(field.name, _prune(field.type)) for field in type_]
        kept = [(name, inner) for name, inner in fields if inner is not None]
        return pa.struct(kept) if kept else None
    return type_


def _beyond(value: Any) -> bool:
    """Whether there is an integer that no column can hold."""
    if isinstance(value, int):
        return not _INTEGERS[64][0] <= value < _INTEGERS[64][1]
    if isinstance(value, list):
        return any(map(_beyond, value))
    return isinstance(value, dict) and any(map(_beyond, value.values()))


def _read_type(type_: pa.DataType) -> pa.DataType | None:
    """As which type Arrow reads values of a column; None where it cannot."""
    if pt.is_timestamp(type_) or pt.is_date(type_) or pt.is_decimal(type_) or pt.is_binary(type_):
        return pa.string()
    return type_ if _is_plain(type_) else None


def _is_plain(type_: pa.DataType) -> bool:
    if pt.is_list(type_):
        return _is_plain(type_.value_type)
    if pt.is_struct(type_):
        return all(_is_plain(field.type) for field in type_)
    return bool(pt.is_string(type_) or pt.is_boolean(type_) or pt.is_integer(type_) or pt.is_floating(type_))


def _expectation(type_: pa.DataType) -> Callable[[Any], bool]:
    """Whether a value can be one of a column of this type."""
    if pt.is_string(type_) or pt.is_date(type_) or pt.is_decimal(type_) or pt.is_binary(type_):
        return lambda value: type(value) is str
    if pt.is_timestamp(type_):
        return lambda value: type(value) in (str, int, float)
    if pt.is_boolean(type_):
        return lambda value: type(value) is bool
    if pt.is_integer(type_):
        low, high = _INTEGERS[type_.bit_width]
        return lambda value: type(value) is int and low <= value < high
    if pt.is_floating(type_):
        return lambda value: type(value) in (int, float)
    if pt.is_list(type_):
        inner = _expectation(type_.value_type)
        return lambda value: type(value) is list and all(each is None or inner(each) for each in value)
    if pt.is_struct(type_) and _is_plain(type_):
        fields = {field.name: _expectation(field.type) for field in type_}
        return lambda value: type(value) is dict and all(_fits_field(fields, *item) for item in value.items())
    return lambda value: False


def _fits_field(fields: Mapping[str, Callable[[Any], bool]], name: str, value: Any) -> bool:
    if value is None:
        return True
    fits = fields.get(name)
    return fits(value) if fits is not None else _says_nothing(_kind(value))


def _mismatch(name: str, value: Any, type_: pa.DataType) -> str:
    try:
        got = _short(_kind(value))
    except _Bad as bad:
        got = bad.detail
    if _beyond(value):
        got = "an integer beyond 64 bits"
    elif isinstance(value, str) and (pt.is_timestamp(type_) or pt.is_date(type_) or pt.is_decimal(type_)):
        got = repr(value[:100])
    return f"column {name!r}: got {got}, allowed: {_short(type_)} as in the stream"


def _time_as_text(value: Any) -> str:
    """A time that came as a number, as text; what is no time stays what it is, and ``append`` says so."""
    if type(value) in (int, float):
        us, bad = as_times(pa.array([value if not _beyond(value) else float(value)]))
        if not bad[0]:
            return format_time(us.cast(pa.int64())[0].as_py())
    return json.dumps(value)


def _short(type_: pa.DataType) -> str:
    text = str(type_)
    return text if len(text) <= 120 else text[:120] + "…"


def _without_extras(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray | None:
    """The column without parts that say nothing; None where it has others than are wanted."""
    if _prune(column.type) is None or not _covers(wanted, column.type):
        return None
    try:
        return pc.cast(column, wanted)
    except pa.ArrowException:
        return None


def _covers(wanted: pa.DataType, got: pa.DataType) -> bool:
    if pt.is_struct(wanted) and pt.is_struct(got):
        fields = {field.name: field.type for field in wanted}
        return all(
            _covers(fields[field.name], field.type) if field.name in fields else _says_nothing(field.type)
            for field in got
        )
    if pt.is_list(wanted) and pt.is_list(got):
        return _covers(wanted.value_type, got.value_type)
    return bool(wanted == got)


def _convert(column: pa.Array, type_: pa.DataType) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The column as another type, and which values are none of it."""
    missing = np.asarray(pc.is_null(column))
    if pt.is_timestamp(type_):
        times, bad = as_times(column)
        return times, bad & ~missing
    try:
        return pc.cast(column, type_), np.zeros(len(column), bool)
    except pa.ArrowException:
        pass
    values = [_convert_one(value, type_) for value in column]
    converted = pa.array(values, type_)
    return converted, np.asarray(pc.is_null(converted)) & ~missing


def _convert_one(value: pa.Scalar, type_: pa.DataType) -> Any:
    try:
        return value.cast(type_).as_py()
    except pa.ArrowException:
        return None
