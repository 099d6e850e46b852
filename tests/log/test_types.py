"""Columns: what a log keeps, and what happens to another type."""

from __future__ import annotations

import datetime
import decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import DataError
from penstock.log.times import TIMESTAMP
from penstock.log.types import conform, new_fields, plain_columns, plain_type

FLAT = st.sampled_from(
    [
        *(pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()),
        *(pa.bool_(), pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary(4)),
        *(pa.date32(), pa.date64(), pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.decimal128(10, 2)),
        pa.dictionary(pa.int32(), pa.string()),
    ]
)
TYPES = st.recursive(
    FLAT,
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda types: pa.struct([(f"f{n}", t) for n, t in enumerate(types)])
        ),
        inner.map(lambda item: pa.map_(pa.string(), item)),
    ),
    max_leaves=4,
)


@given(TYPES)
def test_a_plain_type_is_its_own_plain_type(type_: pa.DataType) -> None:
    plain = plain_type(type_)
    assert plain is not None
    assert plain_type(plain) == plain


@pytest.mark.parametrize(
    "type_", [pa.time32("s"), pa.duration("s"), pa.null(), pa.decimal256(60), pa.list_(pa.time64("us"))]
)
def test_types_that_a_log_does_not_keep(type_: pa.DataType) -> None:
    assert plain_type(type_) is None


@given(TYPES)
def test_a_table_of_plain_columns_conforms_to_its_own_schema(type_: pa.DataType) -> None:
    table = pa.table({"a": pa.nulls(3, type_)})
    plain = plain_columns("s", table)
    assert plain.schema.field("a").type == plain_type(type_)
    assert conform("s", plain, plain.schema).equals(plain)


def test_values_are_kept() -> None:
    table = pa.table(
        {
            "u": pa.array([0, 255], pa.uint8()),
            "d": pa.array(["x", None]).dictionary_encode(),
            "t": pa.array([1, 2], pa.timestamp("s")),
            "n": pa.nulls(2),
            "l": pa.array([[], None], pa.list_(pa.null())),
        }
    )
    plain = plain_columns("s", table)
    assert plain.column_names == ["u", "d", "t"]
    assert plain["u"].to_pylist() == [0, 255]
    assert plain["d"].to_pylist() == ["x", None]
    assert plain["t"].type == TIMESTAMP


def test_a_table_of_nulls_alone_keeps_its_rows() -> None:
    assert plain_columns("s", pa.table({"a": pa.nulls(3)})).num_rows == 3


def test_what_does_not_fit_is_said_in_one_line() -> None:
    with pytest.raises(DataError, match=r"^stream s, column 'u': uint64 does not fit int64: .*"):
        plain_columns("stream s", pa.table({"u": pa.array([2**64 - 1], pa.uint64())}))
    with pytest.raises(DataError, match="cannot keep values of type time32"):
        plain_columns("s", pa.table({"u": pa.nulls(1, pa.time32("s"))}))
    with pytest.raises(DataError, match="got 2 columns named 'a'"):
        plain_columns("s", pa.table([pa.array([1]), pa.array([1])], names=["a", "a"]))


@pytest.mark.parametrize("name", ["", "_x", "event_date", "Event_Hour", "a\nb", "\x00"])
def test_names_that_a_column_cannot_have(name: str) -> None:
    with pytest.raises(DataError, match="allowed: printable names"):
        new_fields("s", pa.schema([(name, pa.int64())]), pa.schema([]))


def test_names_that_differ_in_case_alone() -> None:
    with pytest.raises(DataError, match="got column 'ID' beside 'id'"):
        new_fields("s", pa.schema([("ID", pa.int64())]), pa.schema([("id", pa.int64())]))
    with pytest.raises(DataError, match="beside"):
        new_fields("s", pa.schema([("a", pa.int64()), ("A", pa.int64())]), pa.schema([]))


NUMBERS = [pa.int8(), pa.int32(), pa.int64(), pa.float32(), pa.float64()]


@given(st.integers(-128, 127), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS))
def test_numbers_widen_and_never_lose_a_fraction(value: int, got: pa.DataType, kept: pa.DataType) -> None:
    table, schema = pa.table({"a": pa.array([value], got)}), pa.schema([("a", kept)])
    if pa.types.is_floating(got) and pa.types.is_integer(kept):
        with pytest.raises(DataError, match=f"got {got}, allowed: {kept} as in the stream"):
            conform("s", table, schema)
    else:
        assert conform("s", table, schema)["a"].to_pylist() == [value]


@pytest.mark.parametrize(
    ("value", "kept"),
    [("1", pa.int64()), (1, pa.string()), (True, pa.int64()), ([1], pa.list_(pa.string())), (1, TIMESTAMP),
     (datetime.date(2026, 1, 1), pa.string()), (decimal.Decimal("1.5"), pa.float64()),
     ({"x": 1}, pa.struct([("y", pa.int64())]))],
)  # fmt: skip
def test_another_type_is_refused_with_both(value: object, kept: pa.DataType) -> None:
    with pytest.raises(DataError, match=r"column 'a': got .*, allowed: .* as in the stream"):
        conform("s", pa.table({"a": [value]}), pa.schema([("a", kept)]))


def test_a_number_outside_of_the_range_is_refused() -> None:
    with pytest.raises(DataError, match="int64 does not fit int8"):
        conform("s", pa.table({"a": [1000]}), pa.schema([("a", pa.int8())]))


def test_missing_columns_are_null_and_nested_ones_widen() -> None:
    schema = pa.schema(
        [
            ("a", pa.list_(pa.float64())),
            ("b", pa.string()),
            ("c", pa.struct([("x", pa.float64()), ("y", pa.string())])),
        ]
    )
    table = conform("s", pa.table({"a": [[1, 2]], "c": [{"x": 1}]}), schema)
    assert table.to_pylist() == [{"a": [1.0, 2.0], "b": None, "c": {"x": 1.0, "y": None}}]
