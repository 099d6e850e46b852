"""Rows of delimited text to an Arrow table, and what is wrong with a row that does not parse.

Files and chunks are in ``delimited``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv

from penstock.data.text import Quoting, line_ends, line_of
from penstock.errors import DataError

__all__ = ["Layout", "column_names", "infer_schema", "parse"]

_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file's rows are to be read: ``names`` in the order of its columns, types from ``schema``."""

    names: tuple[str, ...]
    schema: pa.Schema
    quoting: Quoting
    null_values: tuple[str, ...]


def parse(data: bytes, layout: Layout, columns: Sequence[str], path: str, offset: int) -> pa.Table:
    """These columns of whole rows that stand at ``offset`` of a file. Empty fields become null.

    Raises:
        DataError: with the line, the column, what stands there and what may.
    """
    try:
        return _parse(data, layout, columns)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _blame(data, layout, columns, path, offset, error) from error


def infer_schema(data: bytes, layout: Layout, path: str, offset: int) -> pa.Schema:
    """Types that fit these rows; text where no field of a column is filled.

    Raises:
        DataError: a row has too few or too many fields.
    """
    table = parse(data, layout, (), path, offset)
    # Arrow says binary where text is no UTF-8; reading it as text then says where.
    no_type = (pa.null(), pa.binary())
    return pa.schema(
        [(field.name, pa.string() if field.type in no_type else field.type) for field in table.schema]
    )


def column_names(row: bytes, quoting: Quoting, header: bool) -> tuple[str, ...]:
    """The fields of a header row; f0, f1, ... for a row that is none.

    Raises:
        UnicodeDecodeError: names are no UTF-8.
    """
    # Arrow takes one line without its end for none.
    row = row if row.endswith(b"\n") else row + b"\n"
    table = pa.csv.read_csv(
        pa.py_buffer(row),
        read_options=pa.csv.ReadOptions(
            use_threads=False, block_size=len(row) + 1, autogenerate_column_names=not header
        ),
        parse_options=_parse_options(quoting),
    )
    return tuple(table.column_names)


def _parse_options(quoting: Quoting, **options: Any) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(
        delimiter=quoting.delimiter,
        quote_char=quoting.quote or False,
        newlines_in_values=quoting.quote is not None,
        **options,
    )


def _parse(data: bytes, layout: Layout, columns: Sequence[str], **options: Any) -> pa.Table:
    """The types of ``columns`` are those of the layout; without columns it is all, in types that fit."""
    return pa.csv.read_csv(
        pa.py_buffer(data),
        # One block: a row that is longer than a block cannot be parsed.
        read_options=pa.csv.ReadOptions(
            use_threads=False, block_size=len(data) + 1, column_names=list(layout.names)
        ),
        parse_options=_parse_options(layout.quoting, **options),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: layout.schema.field(name).type for name in columns},
            include_columns=list(columns),
            null_values=["", *layout.null_values],
            strings_can_be_null=True,
            # Arrow's check takes a tenth of all parsing.
            check_utf8=not data.isascii(),
        ),
    )


def _fails(data: bytes, layout: Layout, columns: Sequence[str]) -> bool:
    try:
        _parse(data, layout, columns)
    except (pa.ArrowException, UnicodeDecodeError):
        return True
    return False


def _blame(
    data: bytes, layout: Layout, columns: Sequence[str], path: str, offset: int, error: Exception
) -> DataError:
    """Find the first row that does not parse by bisection, then what is wrong with it."""
    ends = [0, *line_ends(data, layout.quoting).tolist()]
    if ends[-1] < len(data):
        ends.append(len(data))
    good, bad = 0, len(ends) - 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if _fails(data[: ends[middle]], layout, columns):
            bad = middle
        else:
            good = middle
    row = data[ends[good] : ends[bad]]
    place = f"{path} line {line_of(path, offset + ends[good])}"
    return _blame_row(row, layout, columns, place) or DataError(f"{place}: {' '.join(str(error).split())}")


def _blame_row(row: bytes, layout: Layout, columns: Sequence[str], place: str) -> DataError | None:
    fields: list[int] = []

    def count(invalid: Any) -> str:
        fields.append(invalid.actual_columns)
        return "skip"

    for name in columns or layout.names[:1]:
        as_bytes = Layout(
            names=layout.names,
            schema=pa.schema([(name, pa.binary())]),
            quoting=layout.quoting,
            null_values=(),
        )
        table = _parse(row, as_bytes, [name], invalid_row_handler=count)
        if fields:
            return DataError(f"{place}: got {fields[0]} fields, allowed: {len(layout.names)}")
        if columns and _fails(row, layout, [name]):
            got = _shown(table[name][0].as_py())
            return DataError(
                f"{place}, column {name}: got {got}, allowed: {_allowed(layout.schema.field(name).type)}"
            )
    return None


def _shown(field: bytes) -> str:
    text = repr(field.decode("utf-8", "backslashreplace"))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...'"


def _allowed(type_: pa.DataType) -> str:
    if pa.types.is_integer(type_):
        return f"a whole number ({type_})"
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return f"a number ({type_})"
    if pa.types.is_boolean(type_):
        return "true or false"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_dictionary(type_):
        return "text in UTF-8"
    return f"a {type_}"
