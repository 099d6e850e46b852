"""Events for the benchmarks of the data layer: impressions, and clicks that come some minutes after some of them.

A function of the seed and the place alone, made in parts of any size, so that 50 million need no more memory than
one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["BEGIN_US", "CLICK_SHARE", "DAY_US", "clicks", "impressions", "parts"]

BEGIN_US = 1_793_491_200_000_000
"""2026-11-01T00:00:00Z."""
DAY_US = 86_400_000_000
CLICK_SHARE = 0.25
"""Of impressions that are clicked: four fifths of the events are impressions."""
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_MEAN_DELAY_US = 600_000_000


def _mixed(values: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """Splitmix64 (Steele et al. 2014): 64 bits that look random, of each number."""
    with np.errstate(over="ignore"):
        z = values + np.uint64((salt * 0x9E3779B97F4A7C15) & (2**64 - 1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _share(values: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (values >> np.uint64(11)).astype(np.float64) / 2**53


def _ids(values: NDArray[np.uint64]) -> pa.Array:
    """16 hexadecimal digits each."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    raw = values.astype(">u8").view(np.uint8).reshape(-1, 8)
    text = np.empty((len(values), 16), np.uint8)
    text[:, 0::2], text[:, 1::2] = digits[raw >> 4], digits[raw & 15]
    offsets = np.arange(len(values) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(text.tobytes()))


def _times(numbers: NDArray[np.uint64], total: int) -> NDArray[np.int64]:
    return BEGIN_US + (numbers.astype(np.float64) * (DAY_US / total)).astype(np.int64)


def impressions(begin: int, end: int, total: int) -> pa.Table:
    """Impressions [begin, end) of ``total``, which are even over a day."""
    numbers = np.arange(begin, end, dtype=np.uint64)
    drawn = _mixed(numbers, 2)
    sites = pa.array([f"site-{n:03d}" for n in range(100)])
    return pa.table(
        {
            "ts": pa.array(_times(numbers, total)).cast(_TIMESTAMP),
            "request_id": _ids(_mixed(numbers, 1)),
            "site": sites.take(pa.array((drawn % np.uint64(100)).astype(np.int64))),
            "user": pa.array((_mixed(numbers, 3) % np.uint64(1_000_000)).astype(np.int64)),
            "price": pa.array(np.round(_share(_mixed(numbers, 4)), 4)),
        }
    )


def clicks(begin: int, end: int, total: int) -> pa.Table:
    """The clicks of these impressions that happen on the day, in order of time."""
    numbers = np.arange(begin, end, dtype=np.uint64)
    numbers = numbers[_share(_mixed(numbers, 5)) < CLICK_SHARE]
    delays = -np.log1p(-_share(_mixed(numbers, 6))) * _MEAN_DELAY_US
    times = _times(numbers, total) + delays.astype(np.int64) + 1
    order = np.argsort(times, kind="stable")
    numbers, times = numbers[order], times[order]
    return pa.table(
        {
            "ts": pa.array(times).cast(_TIMESTAMP),
            "click_id": _ids(_mixed(numbers, 7)),
            "request_id": _ids(_mixed(numbers, 1)),
        }
    )


def parts(total: int, size: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of consecutive parts."""
    for begin in range(0, total, size):
        yield begin, min(begin + size, total)
