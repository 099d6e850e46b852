"""Rows as requests bring them, to record batches of the types that training saw, so that their keys are the same.

A column that a row lacks is missing in it, as null is; a column that the model does not know is ignored. A value
of another type is refused where training would not have read it as the same thing: text is no number, while 17,
17.0 and "17" are one category.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.errors import InputError
from penstock.features import FeaturePlan, ValueEncoder

__all__ = ["BadRow", "RowReader", "read_values"]

Row = Mapping[str, Any]
_Column = tuple[str, pa.DataType, Callable[[Any], Any], str]

_SHOWN = 50


class BadRow(InputError):
    """A row of a request that cannot be scored; ``row`` counts from 0."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row, self.message = row, message


class RowReader:
    """Makes record batches for one plan."""

    def __init__(self, plan: FeaturePlan) -> None:
        self._columns = [_column(plan, name) for name in plan.inputs]
        self._names = [name for name, _, _, _ in self._columns]
        self._known = frozenset(self._names)
        self._schema = pa.schema([(name, type_) for name, type_, _, _ in self._columns])

    def check(self, rows: Sequence[Row]) -> None:
        """Each row is an object that has some of the model's columns.

        Raises:
            BadRow: one is not.
        """
        known = self._known
        for n, row in enumerate(rows):
            if not isinstance(row, dict):
                raise BadRow(n, f"got {_shown(row)}, allowed: an object of columns")
            if known.isdisjoint(row):
                raise BadRow(n, f"has none of the model's columns; they are {_listed(self._names)}")

    def read(self, rows: Sequence[Row]) -> pa.RecordBatch:
        """A record batch of the model's columns, of rows that were checked.

        Raises:
            BadRow: a value is of another type.
        """
        return pa.RecordBatch.from_arrays(
            [_array(column, [row.get(column[0]) for row in rows]) for column in self._columns], schema=self._schema
        )


def read_values(
    encoder: ValueEncoder, rows: Sequence[Row]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], pa.Array] | None:
    """Rows as a ``ValueEncoder`` takes them; None where ``RowReader`` must look at what is wrong, or unusual."""
    values = [row.get(name) for name in encoder.numbers for row in rows]
    if not _PLAIN_NUMBERS.issuperset(map(type, values)):
        return None
    texts = [row.get(name) for name in encoder.texts for row in rows]
    try:
        numbers = np.array(values, np.float64).reshape(len(encoder.numbers), len(rows))
        if not _PLAIN_TEXTS.issuperset(map(type, texts)):
            texts = [value if value is None else _category(value) for value in texts]
        strings = pa.array(texts, pa.string())
    except (TypeError, ValueError, OverflowError, pa.ArrowException):
        return None
    if None not in values:
        return numbers, np.zeros(numbers.shape, np.bool_), strings
    return numbers, np.array([value is None for value in values]).reshape(numbers.shape), strings


_PLAIN_NUMBERS = frozenset((float, int, bool, type(None)))
_PLAIN_TEXTS = frozenset((str, type(None)))


def _array(column: _Column, values: list[Any]) -> pa.Array:
    name, type_, convert, allowed = column
    if not (pa.types.is_list(type_) or pa.types.is_map(type_)):
        try:
            return pa.array(values, type_)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
            pass  # some values are of other types
    converted = []
    for n, value in enumerate(values):
        try:
            converted.append(None if value is None else convert(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise BadRow(n, f"column {name!r} is {_shown(value)}; allowed: {allowed}, or null") from error
    return pa.array(converted, type_)


def _column(plan: FeaturePlan, name: str) -> _Column:
    found = next((column for column in plan.columns if column.name == name), None)
    if found is None or found.kind == "categorical":
        return name, pa.string(), _category, "text, a number or a boolean"
    if found.kind == "list":
        return name, pa.list_(pa.string()), _categories, "a list of texts, numbers or booleans"
    if found.kind == "map":
        return name, pa.map_(pa.string(), pa.float64()), _weighted, "an object of numbers"
    # As f32 numbers round differently than as f64.
    narrow = found.type in ("float", "halffloat")
    return name, pa.float32() if narrow else pa.float64(), _number, "a number"


def _number(value: Any) -> float:
    if not isinstance(value, bool | int | float):
        raise TypeError
    return float(value)


def _category(value: Any) -> str:
    """The text whose key is that of the value."""
    if isinstance(value, str):
        value.encode()  # a lone surrogate is no text
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        if value.is_integer() and abs(value) < 2.0**63:
            return str(int(value))
        text: str = pa.scalar(value).cast(pa.string()).as_py()
        return text
    raise TypeError


def _categories(value: Any) -> list[str | None]:
    if not isinstance(value, list):
        raise TypeError
    return [None if item is None else _category(item) for item in value]


def _weighted(value: Any) -> list[tuple[str, float | None]]:
    if not isinstance(value, dict):
        raise TypeError
    return [(key, None if item is None else _number(item)) for key, item in value.items()]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 8 else f"{', '.join(names[:5])}, ... ({len(names)} columns)"
