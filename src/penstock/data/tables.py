"""What all readers do with Arrow tables: cut them into batches of one size, compare schemas, take a sample.

No files and no formats here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from penstock.data.source import BATCH_ROWS, Chunk
from penstock.errors import DataError

__all__ = [
    "check_arrays",
    "check_columns",
    "check_same_schema",
    "first_rows",
    "plain_schema",
    "plain_type",
    "rebatch",
]

_SHOWN = 30


def check_columns(place: str, columns: Sequence[str], has: Sequence[str]) -> None:
    """All of ``columns`` are there.

    Raises:
        DataError: ``place`` has no such column; with those that it has.
    """
    for name in columns:
        if name not in has:
            shown = ", ".join(has[:_SHOWN]) + (f" and {len(has) - _SHOWN} more" if len(has) > _SHOWN else "")
            raise DataError(f"{place} has no column {name!r}, it has {shown}")


def check_arrays(batch: pa.RecordBatch, known: dict[str, pa.Array]) -> None:
    """Arrays that come from a file as they stand there keep to their buffers, and text is UTF-8.

    Whatever computes with them trusts offsets and indices. ``known`` has the dictionaries that were checked
    before, since many batches can share a long one.

    Raises:
        pa.ArrowInvalid: one does not.
    """
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        if not isinstance(array, pa.DictionaryArray):
            array.validate(full=True)
            continue
        if name not in known or _addresses(known[name]) != _addresses(array.dictionary):
            array.dictionary.validate(full=True)
            known[name] = array.dictionary
        array.indices.validate(full=True)
        ends = pc.min_max(array.indices).as_py()
        if ends["min"] is not None and not 0 <= ends["min"] <= ends["max"] < len(array.dictionary):
            raise pa.ArrowInvalid(f"column {name}: an index is outside of its dictionary")


def _addresses(array: pa.Array) -> list[int]:
    return [len(array), array.offset, *(buffer.address for buffer in array.buffers() if buffer is not None)]


def rebatch(
    tables: Iterable[pa.Table], columns: Sequence[str], batch_rows: int, skip: int
) -> Iterator[pa.RecordBatch]:
    """Batches of ``batch_rows`` rows (the last may be shorter) of tables of any size, less ``skip`` rows.

    Columns are plain arrays, none of a view type. Batches cut from one table share its memory, dictionaries
    included, so whatever is computed of a dictionary can be kept from batch to batch.
    """
    rest: pa.Table | None = None
    for table in tables:
        table = _plain(table.select(list(columns)))
        dropped = min(skip, table.num_rows)
        skip -= dropped
        table = table.slice(dropped)
        if rest is not None and rest.num_rows:
            table = _concatenated(rest, table)
        whole = table.num_rows - table.num_rows % batch_rows
        yield from _slices(table.slice(0, whole), batch_rows)
        rest = table.slice(whole)
    if rest is not None:
        yield from _slices(rest, batch_rows)


def _concatenated(a: pa.Table, b: pa.Table) -> pa.Table:
    """Both, one after the other; a column that is laid out in two ways becomes plain."""
    if a.schema != b.schema:
        pairs = zip(a.schema, b.schema, strict=True)
        common = pa.schema([(f.name, f.type if f.type == g.type else _wide(plain_type(f.type))) for f, g in pairs])
        a, b = a.cast(common), b.cast(common)
    return pa.concat_tables([a, b])


def _wide(type_: pa.DataType) -> pa.DataType:
    return {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(type_, type_)


def _slices(table: pa.Table, batch_rows: int) -> Iterator[pa.RecordBatch]:
    for batch in table.combine_chunks().to_batches():
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


def _plain(table: pa.Table) -> pa.Table:
    schema = plain_schema(table.schema)
    return table if schema.equals(table.schema) else table.cast(schema)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that batches have: without metadata, and without view types."""
    return pa.schema([(field.name, _without_views(field.type)) for field in schema])


def _without_views(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary_view(type_):
        return pa.large_binary()
    return type_


def plain_type(type_: pa.DataType) -> pa.DataType:
    """The type of a column's values, however they are laid out: dictionary, large or view."""
    if pa.types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.list_(plain_type(type_.value_type))
    return type_


def check_same_schema(place: str, schema: pa.Schema, first_place: str, first: pa.Schema) -> None:
    """Two parts of one source have the same columns, in any order, with values of the same types.

    Raises:
        DataError: with the part, the column and its type.
    """
    _check_distinct(place, schema)
    for field in first:
        if field.name not in schema.names:
            raise DataError(f"{place} has no column {field.name!r} ({field.type}), {first_place} has")
    for field in schema:
        if field.name not in first.names:
            raise DataError(f"{place} has an extra column {field.name!r} ({field.type}), {first_place} has not")
        allowed = first.field(field.name).type
        if plain_type(field.type) != plain_type(allowed):
            raise DataError(
                f"{place}, column {field.name}: got {field.type}, allowed: {allowed} as in {first_place}"
            )


def _check_distinct(place: str, schema: pa.Schema) -> None:
    name, times = max(Counter(schema.names).items(), key=lambda item: item[1], default=("", 0))
    if times > 1:
        raise DataError(f"{place}: got {times} columns named {name!r}, allowed: distinct names")


def first_rows(chunks: Iterable[Chunk], schema: pa.Schema, rows: int) -> pa.Table:
    """A table of the first ``rows`` rows, or fewer, in the types of ``schema``."""
    batch_rows = max(1, min(rows, BATCH_ROWS))
    tables = [schema.empty_table()]
    missing = rows
    for batch in (batch for chunk in chunks for batch in chunk.batches(schema.names, batch_rows)):
        tables.append(pa.Table.from_batches([batch]).cast(schema).slice(0, missing))
        missing -= tables[-1].num_rows
        if missing <= 0:
            break
    return pa.concat_tables(tables)
