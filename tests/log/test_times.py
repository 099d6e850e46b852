"""Times and durations: what people and logs write, against Python's own."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.log.times import (
    TIMESTAMP,
    as_times,
    format_duration,
    format_time,
    parse_duration,
    parse_time,
)

US = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def times(values: list[object], type_: pa.DataType | None = None) -> list[int | None]:
    column, bad = as_times(pa.array(values, type_))
    assert column.type == TIMESTAMP
    found: list[int | None] = column.cast(pa.int64()).to_pylist()
    assert [each is None for each in found] == bad.tolist()
    return found


@given(st.integers(0, 100 * 365 * 86_400_000_000))
def test_durations_come_back(us: int) -> None:
    assert parse_duration(format_duration(us), "") == us


@pytest.mark.parametrize(
    ("text", "us"), [("5m", 300_000_000), ("1h 30m", 5_400_000_000), ("0.5s", 500_000), (0, 0)]
)
def test_durations_as_people_write_them(text: str, us: int) -> None:
    assert parse_duration(text, "") == us


@pytest.mark.parametrize("text", ["", "5", "5 minutes", "-5m", "m", "1e3s", 5, None, "200000d", [], True])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ConfigError, match=r"window: got .*, allowed: a duration"):
        parse_duration(text, "window")


@given(US)
def test_times_come_back(us: int) -> None:
    assert parse_time(format_time(us), "") == us
    assert times([format_time(us)]) == [us]


@given(st.lists(US | st.none(), min_size=1))
def test_text_of_any_form_beside_each_other(values: list[int | None]) -> None:
    forms = [str, lambda t: t.replace("Z", "+00:00"), lambda t: t.replace("T", " "), lambda t: f" {t} "]
    text = [None if v is None else forms[n % 4](format_time(v)) for n, v in enumerate(values)]
    assert times(text, pa.string()) == values


@given(st.integers(10**9, 4 * 10**9), st.sampled_from([1, 1_000, 1_000_000, 1_000_000_000]))
def test_the_unit_of_a_number_is_told_by_its_size(seconds: int, unit: int) -> None:
    assert times([seconds * unit]) == [seconds * 1_000_000]
    assert times([str(seconds * unit)]) == [seconds * 1_000_000]


@given(st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)))
def test_timestamps_of_any_unit(time: datetime.datetime) -> None:
    us = (time.replace(tzinfo=datetime.UTC) - EPOCH) // datetime.timedelta(microseconds=1)
    assert times([time], pa.timestamp("us")) == [us]
    assert times([abs(us) * 1000 + 999], pa.timestamp("ns", tz="UTC")) == [abs(us)]
    assert times([us // 1000], pa.timestamp("ms", tz="Europe/Berlin")) == [us // 1000 * 1000]
    assert times([time.date()], pa.date32()) == [us // 86_400_000_000 * 86_400_000_000]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "2026-13-01",
        "nan",
        "inf",
        "-inf",
        float("nan"),
        float("inf"),
        1e300,
        "9" * 40,
        True,
    ],
)
def test_what_is_no_time(value: object) -> None:
    assert times([value]) == [None]


def test_digits_alone_are_a_number_but_for_a_date() -> None:
    assert times(["1392122050000", "20260101", "1.5"]) == [1_392_122_050_000_000, 1_767_225_600_000_000, 1_500_000]


def test_zones_are_taken_into_account() -> None:
    assert times(["2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00Z"]) == [1_767_225_600_000_000] * 2
    with pytest.raises(ConfigError, match="--from: got 'x', allowed: a date or time"):
        parse_time("x", "--from")


def test_dictionaries_and_nanoseconds_of_a_number() -> None:
    column = pa.array(["2026-01-01", "x", None]).dictionary_encode()
    found, bad = as_times(column)
    assert bad.tolist() == [False, True, True]
    assert found[0].as_py() == datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert times([1_767_225_600_123_456_789]) == [1_767_225_600_123_456]
