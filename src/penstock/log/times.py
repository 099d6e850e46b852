"""Times and durations: how people and logs write them, and the one form that is kept (microseconds, UTC)."""

from __future__ import annotations

import datetime
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.errors import ConfigError

__all__ = [
    "DAY_US",
    "HOUR_US",
    "SECOND_US",
    "TIMESTAMP",
    "as_times",
    "format_duration",
    "format_time",
    "now_us",
    "parse_duration",
    "parse_time",
]

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
DAY_US = 24 * HOUR_US
TIMESTAMP = pa.timestamp("us", tz="UTC")
"""How event and arrival times are kept."""

_UNITS = {"us": 1, "ms": 1_000, "s": SECOND_US, "m": 60 * SECOND_US, "h": HOUR_US, "d": DAY_US, "w": 7 * DAY_US}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d|w)")
_DURATIONS = re.compile(rf"\s*(?:{_DURATION.pattern}\s*)+")
_DATE = re.compile(r"[12]\d{7}")
_LONGEST_US = 100 * 366 * DAY_US
_EARLIEST_US, _LATEST_US = -62_135_596_800 * SECOND_US, 253_402_300_800 * SECOND_US
"""Years 1 to 9999, which is what Python, DuckDB and Spark can all show."""


def now_us() -> int:
    """The clock of this machine, in microseconds since 1970."""
    return int(datetime.datetime.now(datetime.UTC).timestamp() * SECOND_US)


def parse_duration(text: Any, where: str) -> int:
    """``5m``, ``1h 30m``, ``0.5s`` in microseconds; 0 needs no unit.

    Raises:
        ConfigError: it is something else, or longer than a century.
    """
    if text in (0, "0"):
        return 0
    if isinstance(text, str) and _DURATIONS.fullmatch(text):
        found = round(sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text)))
        if found <= _LONGEST_US:
            return found
    raise ConfigError(
        f"{where}: got {text!r}, allowed: a duration up to 100 years, such as 500ms, 30s, 5m, 2h, 1d, 1h30m"
    )


def format_duration(us: int) -> str:
    """The shortest form that ``parse_duration`` reads back."""
    if us == 0:
        return "0s"
    parts = []
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, us = divmod(us, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_time(text: Any, where: str) -> int:
    """A date or time of ISO 8601 (UTC where it has no zone) in microseconds since 1970.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(text, datetime.datetime):
        time = text
    elif isinstance(text, datetime.date):
        time = datetime.datetime(text.year, text.month, text.day)
    else:
        try:
            time = datetime.datetime.fromisoformat(text)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{where}: got {text!r}, allowed: a date or time such as 2026-11-01 or 2026-11-01T12:30:00Z"
            ) from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    since = time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since // datetime.timedelta(microseconds=1)


def format_time(us: int) -> str:
    """ISO 8601 in UTC, without a fraction that is zero."""
    time = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=us)
    return time.isoformat(timespec="microseconds" if us % SECOND_US else "seconds").replace("+00:00", "Z")


def as_times(column: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """A column as event times, ``TIMESTAMP``, and which rows are none (null there).

    Taken are timestamps (UTC where they have no zone), dates, text of ISO 8601, and numbers since 1970, whose
    unit (seconds, milli-, micro- or nanoseconds) is told by their size, each for itself.
    """
    type_ = column.type
    if pt.is_dictionary(type_):
        column, type_ = column.dictionary_decode(), type_.value_type
    if pt.is_timestamp(type_):
        us = _within(_cast(column, pa.timestamp("us", tz=type_.tz)).cast(pa.int64()))
    elif pt.is_date(type_):
        us = column.cast(pa.timestamp("us")).cast(pa.int64())
    elif pt.is_integer(type_) or pt.is_floating(type_) or pt.is_decimal(type_):
        us = _from_numbers(column)
    elif pt.is_string(type_) or pt.is_large_string(type_):
        us = _from_text(column)
    else:
        us = pa.nulls(len(column), pa.int64())
    bad = np.asarray(pc.is_null(us))
    return us.cast(TIMESTAMP), bad


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    return pc.cast(column, type_, safe=False)  # nanoseconds are cut off


def _within(us: pa.Array) -> pa.Array:
    """Null where the year is not 1 to 9999."""
    inside = pc.and_(pc.greater_equal(us, _EARLIEST_US), pc.less(us, _LATEST_US))
    return pc.if_else(inside, us, pa.scalar(None, pa.int64()))


def _from_numbers(column: pa.Array) -> pa.Array:
    values = np.asarray(pc.cast(column, pa.float64(), safe=False).fill_null(np.nan))
    size = np.abs(values)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.select([size < 1e11, size < 1e14, size < 1e17], [1e6, 1e3, 1.0], 1e-3)
        known = size < 1e20
        us = np.where(known, np.rint(values * scale), 0).astype(np.int64)
    if pt.is_integer(column.type):
        # Above 2^53 a float cannot hold every integer.
        exact = np.asarray(pc.cast(column, pa.int64(), safe=False).fill_null(0))
        us = np.where(scale >= 1, exact * np.maximum(scale, 1).astype(np.int64), exact // 1_000)
    return _within(pa.array(us, mask=~known | np.isnan(values)))


def _from_text(column: pa.Array) -> pa.Array:
    for target in (TIMESTAMP, pa.timestamp("us")):
        try:
            return _within(pc.cast(column, target).cast(pa.int64()))
        except pa.ArrowInvalid:
            continue
    return pa.array([_from_one_text(text) for text in column.to_pylist()], pa.int64())


def _from_one_text(text: str | None) -> int | None:
    if text is None:
        return None
    text = text.strip()
    try:
        # Python reads many a number as a date without dashes; of those only 20261101 is meant as one.
        number = float(text) if not _DATE.fullmatch(text) else None
    except ValueError:
        number = None
    if number is not None:
        us: int | None = _from_numbers(pa.array([number]))[0].as_py()
        return us
    try:
        return parse_time(text, "")
    except ConfigError:
        return None
