"""Several results of one event become one; two versions of a result are compared."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.stream.changes import changed, one_each
from tests.stream.oracle import rank

NAN = float("nan")


def table(**columns: tuple[pa.DataType, list[Any]]) -> pa.Table:
    return pa.table({name: pa.array(values, type_) for name, (type_, values) in columns.items()})


def plain(rows: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(rank(value) for value in row.values()) for row in rows.to_pylist()]


def test_one_row_each_is_left_alone() -> None:
    rows = table(k=(pa.int64(), [3, 1, 2]), v=(pa.int64(), [1, 1, 1]))
    assert one_each(rows, ["k"]) == (rows, 0)
    for few in (rows.slice(0, 0), rows.slice(0, 1)):
        assert one_each(few, ["k"]) == (few, 0)


def test_the_least_is_taken_column_by_column_with_null_last() -> None:
    rows = table(
        k=(pa.int64(), [5, 5, 5, 1, 2, 2]),
        a=(pa.int64(), [None, 2, 2, 9, None, None]),
        b=(pa.string(), ["a", "z", "y", "x", None, "n"]),
    )
    found, ambiguous = one_each(rows, ["k"])
    assert found.to_pylist() == [
        {"k": 5, "a": 2, "b": "y"},
        {"k": 1, "a": 9, "b": "x"},
        {"k": 2, "a": None, "b": "n"},
    ]
    assert ambiguous == 2


def test_rows_that_are_equal_are_not_ambiguous() -> None:
    rows = table(k=(pa.int64(), [1, 1, 2, 2]), v=(pa.float64(), [NAN, NAN, None, None]))
    found, ambiguous = one_each(rows, ["k"])
    assert (plain(found), ambiguous) == ([((0, 1), (1,)), ((0, 2), (2,))], 0)


def test_nan_is_more_than_any_number_and_less_than_null() -> None:
    inf = float("inf")
    rows = table(k=(pa.int64(), [1, 1, 1, 2, 2]), v=(pa.float64(), [None, NAN, inf, None, NAN]))
    found, ambiguous = one_each(rows, ["k"])
    assert (plain(found), ambiguous) == ([((0, 1), (0, inf)), ((0, 2), (1,))], 2)


def test_equal_keys_that_are_no_neighbours_stay_apart() -> None:
    rows = table(a=(pa.int64(), [1, 1, 1, 2]), b=(pa.int64(), [1, 2, 1, 1]), v=(pa.int64(), [4, 3, 2, 1]))
    assert one_each(rows, ["a", "b"])[0] == rows


TYPES: list[tuple[pa.DataType, list[Any]]] = [
    (pa.int64(), [0, 1, -(2**63), 2**63 - 1, None]),
    (pa.float64(), [0.0, 1.5, NAN, float("-inf"), None]),
    (pa.float32(), [0.0, 1.5, NAN, None]),
    (pa.string(), ["", "a", "aa", "b", None]),
    (pa.binary(), [b"", b"\x00", b"\xff", None]),
    (pa.bool_(), [True, False, None]),
    (pa.date32(), [datetime.date(1969, 1, 1), datetime.date(2026, 1, 1), None]),
    (pa.timestamp("us", tz="UTC"), [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), None]),
    (pa.decimal128(38, 0), [Decimal(0), Decimal(10**30), Decimal(-5), None]),
    (pa.list_(pa.int64()), [[], [1], [1, 2], [None], None]),
    (pa.list_(pa.float64()), [[NAN], [1.0], None]),
    (pa.struct([("x", pa.int64()), ("y", pa.string())]), [{"x": 1, "y": "a"}, {"x": None, "y": None}, None]),
    (pa.map_(pa.string(), pa.int64()), [[("a", 1)], [("a", 2)], [], None]),
]
"""Each with values that all differ."""


@pytest.mark.parametrize("of", TYPES, ids=lambda of: str(of[0]))
def test_values_of_each_type_are_equal_to_themselves_alone(of: tuple[pa.DataType, list[Any]]) -> None:
    type_, values = of
    pairs = [(a, b) for a in range(len(values)) for b in range(len(values))]
    old = table(v=(type_, [values[a] for a, _ in pairs]))
    new = table(v=(type_, [values[b] for _, b in pairs]))
    assert changed(old, new, ["v"]).tolist() == [a != b for a, b in pairs]
    assert changed(old, new, []).tolist() == [False] * len(pairs)


@pytest.mark.parametrize("of", TYPES, ids=lambda of: str(of[0]))
def test_of_values_of_each_type_one_is_taken_whatever_their_order(of: tuple[pa.DataType, list[Any]]) -> None:
    type_, values = of
    for a in range(len(values)):
        for b in range(len(values)):
            taken = set()
            for pair in ((a, b), (b, a)):
                rows = table(k=(pa.int64(), [7, 7]), v=(type_, [values[n] for n in pair]))
                found, ambiguous = one_each(rows, ["k"])
                assert found.num_rows == 1
                assert ambiguous == int(a != b)
                taken.add(repr(found["v"].to_pylist()))
            assert len(taken) == 1
            nothing = len(values) - 1
            if nothing in (a, b) and a != b:
                assert taken != {"[None]"}, "null is last"


def test_a_column_that_is_not_asked_for_does_not_count() -> None:
    old = table(v=(pa.int64(), [1, 2]), w=(pa.int64(), [1, 2]))
    new = table(v=(pa.int64(), [1, 2]), w=(pa.int64(), [1, 3]))
    assert changed(old, new, ["v"]).tolist() == [False, False]
    assert changed(old, new, ["v", "w"]).tolist() == [False, True]


ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([0.0, 1.0, NAN, None]),
        st.sampled_from(["a", "b", None]),
        st.sampled_from([[], [1], [1, 2], None]),
    ),
    max_size=12,
)
SCHEMA = pa.schema(
    [("k", pa.int64()), ("v", pa.float64()), ("s", pa.string()), ("l", pa.list_(pa.int64()))],
)


def of_rows(rows: list[tuple[Any, ...]], cut: int = 0) -> pa.Table:
    """In two chunks."""
    parts = [rows[:cut], rows[cut:]]
    return pa.concat_tables(
        [
            pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in part], SCHEMA)
            for part in parts
        ]
    )


def in_order(row: tuple[Any, ...]) -> list[Any]:
    """Lists by how they are written, ``[1, 2]`` before ``[1]``: which is first does not matter."""
    return [rank(row[0]), rank(row[1]), rank(row[2]), rank(None if row[3] is None else repr(row[3]))]


@settings(deadline=None, max_examples=200)
@given(ROWS, st.integers(0, 12))
def test_one_each_is_the_least_of_each_group(rows: list[tuple[Any, ...]], cut: int) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    groups: dict[int, list[tuple[Any, ...]]] = {}
    for row in rows:
        groups.setdefault(row[0], []).append(row)
    found, ambiguous = one_each(of_rows(rows, cut), ["k"])
    got = [in_order(tuple(row.values())) for row in found.to_pylist()]
    assert got == [min(in_order(row) for row in group) for group in groups.values()]
    assert ambiguous == sum(any(in_order(row) != in_order(group[0]) for row in group) for group in groups.values())


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(ROWS.filter(bool), ROWS.filter(bool)), max_size=8), st.integers(0, 8))
def test_changed_is_a_row_that_differs(pairs: list[tuple[list[Any], list[Any]]], cut: int) -> None:
    old, new = [a[0] for a, _ in pairs], [b[0] for _, b in pairs]
    found = changed(of_rows(old, cut), of_rows(new), SCHEMA.names)
    assert found.tolist() == [in_order(a) != in_order(b) for a, b in zip(old, new, strict=True)]
