"""Columns whose values repeat, and no others."""

from __future__ import annotations

import pyarrow as pa

from penstock.data.dictionaries import repeating_columns


def test_those_that_repeat() -> None:
    table = pa.table(
        {
            "id": [f"i{n}" for n in range(100)],
            "site": [f"s{n % 7}" for n in range(100)],
            "number": [n // 2 for n in range(100)],
            "nothing": pa.nulls(100, pa.string()),
            "yes": [True] * 100,
            "list": [[1]] * 100,
        }
    )
    assert repeating_columns(table) == ["site", "number", "nothing"]


def test_of_one_row_or_none() -> None:
    assert repeating_columns(pa.table({"a": ["x"]})) == ["a"]
    assert repeating_columns(pa.schema([("a", pa.string())]).empty_table()) == ["a"]
