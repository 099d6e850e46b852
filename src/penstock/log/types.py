"""Columns of events: which types a log keeps, and what happens where a later event has another one."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from penstock.errors import DataError
from penstock.log.times import TIMESTAMP

__all__ = ["conform", "new_fields", "plain_columns", "plain_type"]

_RESERVED = ("event_date", "event_hour")


def plain_type(type_: pa.DataType) -> pa.DataType | None:
    """The type as which a log keeps these values; None where it keeps none of these.

    Delta Lake has no unsigned integers, no dictionaries and no times of day; a timestamp without a zone is UTC.
    """
    if pt.is_dictionary(type_):
        return plain_type(type_.value_type)
    if pt.is_large_string(type_) or pt.is_string_view(type_) or pt.is_string(type_):
        return pa.string()
    if (
        pt.is_large_binary(type_)
        or pt.is_binary_view(type_)
        or pt.is_fixed_size_binary(type_)
        or pt.is_binary(type_)
    ):
        return pa.binary()
    if pt.is_timestamp(type_):
        return TIMESTAMP
    if pt.is_date(type_):
        return pa.date32()
    if pt.is_float16(type_):
        return pa.float32()
    if pt.is_unsigned_integer(type_):
        return {8: pa.int16(), 16: pa.int32()}.get(type_.bit_width, pa.int64())
    if pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_):
        inner = plain_type(type_.value_type)
        return None if inner is None else pa.list_(inner)
    if pt.is_struct(type_):
        fields = [(field.name, plain_type(field.type)) for field in type_]
        return None if any(t is None for _, t in fields) else pa.struct(fields)
    if pt.is_map(type_):
        key, item = plain_type(type_.key_type), plain_type(type_.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if pt.is_decimal(type_):
        return pa.decimal128(type_.precision, type_.scale) if type_.precision <= 38 else None
    if pt.is_integer(type_) or pt.is_floating(type_) or pt.is_boolean(type_):
        return type_
    return None


def plain_columns(where: str, events: pa.Table) -> pa.Table:
    """The events in types that a log keeps, without columns that are null throughout and have no type.

    Raises:
        DataError: a type or name that cannot be kept, or a value outside of what is kept of its type.
    """
    name, times = max(Counter(events.column_names).items(), key=lambda item: item[1], default=("", 0))
    if times > 1:
        raise DataError(f"{where}: got {times} columns named {name!r}, allowed: distinct names")
    columns: dict[str, pa.ChunkedArray] = {}
    for field, column in zip(events.schema, events.columns, strict=True):
        if _has_nulls_alone(field.type):
            continue
        type_ = plain_type(field.type)
        if type_ is None:
            raise DataError(f"{where}, column {field.name!r}: a log cannot keep values of type {field.type}")
        columns[field.name] = column if column.type == type_ else _cast(where, field.name, column, type_)
    if not columns:
        return pa.table({"": pa.nulls(events.num_rows)}).select([])
    return pa.table(columns)


def _has_nulls_alone(type_: pa.DataType) -> bool:
    """Whether the type says no more than that nothing is known; in a list, an element of such a type."""
    if pt.is_null(type_):
        return True
    if pt.is_list(type_) or pt.is_large_list(type_):
        return _has_nulls_alone(type_.value_type)
    return False


def new_fields(where: str, schema: pa.Schema, known: pa.Schema) -> list[pa.Field]:
    """Columns that are not known yet.

    Raises:
        DataError: a name that is reserved, or differs from a known one in case alone.
    """
    folded = {name.lower(): name for name in known.names}
    found = []
    for field in schema:
        if field.name in known.names:
            continue
        name = field.name
        if not name or name.startswith("_") or name.lower() in _RESERVED or not name.isprintable():
            raise DataError(
                f"{where}: got a column named {name!r}; allowed: printable names that do not begin with _ and are "
                f"none of {', '.join(_RESERVED)}"
            )
        twin = folded.get(name.lower())
        if twin is not None:
            raise DataError(f"{where}: got column {name!r} beside {twin!r}; SQL cannot tell them apart")
        folded[name.lower()] = name
        found.append(pa.field(name, field.type))
    return found


def conform(where: str, events: pa.Table, schema: pa.Schema) -> pa.Table:
    """The events with exactly the columns and types of ``schema``; what is missing is null.

    Raises:
        DataError: a column of another type, with both; numbers that the column's type can hold exactly are none.
    """
    columns = []
    for field in schema:
        if field.name not in events.column_names:
            columns.append(pa.nulls(events.num_rows, field.type))
            continue
        column = events[field.name]
        if column.type != field.type:
            if not _widens(column.type, field.type):
                raise DataError(
                    f"{where}, column {field.name!r}: got {column.type}, allowed: {field.type} as in the stream"
                )
            column = _cast(where, field.name, column, field.type)
        columns.append(column)
    return pa.table(columns, schema=schema)


def _widens(got: pa.DataType, kept: pa.DataType) -> bool:
    numbers = (pt.is_integer(got) or pt.is_floating(got)) and (pt.is_integer(kept) or pt.is_floating(kept))
    if numbers:
        return not (pt.is_floating(got) and pt.is_integer(kept))
    if pt.is_list(got) and pt.is_list(kept):
        return got.value_type == kept.value_type or _widens(got.value_type, kept.value_type)
    if pt.is_struct(got) and pt.is_struct(kept):
        inner = {field.name: field.type for field in kept}
        return all(f.name in inner and (f.type == inner[f.name] or _widens(f.type, inner[f.name])) for f in got)
    return False


def _cast(where: str, name: str, column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    try:
        safe = not pt.is_timestamp(type_)  # nanoseconds are cut off
        return pc.cast(column, type_, safe=safe)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where}, column {name!r}: {column.type} does not fit {type_}: {reason}") from error
