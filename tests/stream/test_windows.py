"""Running aggregates in memory: equal to a loop over all events, whatever was forgotten, to DuckDB's last bit."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import duckdb
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.stream.spec import Aggregate
from penstock.stream.windows import SCALE, Windows, as_double, exact_parts


def spec(name: str, over: int, what: str = "count", of: str | None = None) -> Aggregate:
    return Aggregate(name=name, stream="clicks", by=("user",), over_us=over, what=what, of=of)


SPECS = [
    spec("short", 5),
    spec("long", 20),
    spec("spent", 20, "sum", "cost"),
    spec("mean_spent", 7, "mean", "cost"),
    spec("most", 7, "sum", "amount"),
]
Event = tuple[str, int, int, "int | None", "int | None"]
event = st.tuples(
    st.sampled_from("ab"),
    st.integers(0, 40),
    st.integers(0, 15),
    st.sampled_from([None, 0, 1, -5, 10**9, 10**37]),
    st.sampled_from([None, 3, 10**15]),
).map(lambda e: (e[0], e[1], e[1] + e[2], e[3], e[4]))


def i64(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


def parts_of(*columns: Sequence[int | None]) -> np.ndarray:
    found = []
    for values in columns:
        low = np.array([(value or 0) & (1 << 64) - 1 for value in values], np.uint64)
        high = i64([(value or 0) >> 64 for value in values])
        found.append(exact_parts(low, high, np.array([value is not None for value in values], bool)))
    return np.array(found, np.int64).reshape(len(columns), 4, -1)


def naive(events: list[Event], key: str, at: int, one: Aggregate) -> object:
    seen = [e for e in events if e[0] == key and e[2] <= at and e[1] > at - one.over_us]
    if one.what == "count":
        return len(seen)
    values = [v for v in (e[3] if one.of == "cost" else e[4] for e in seen) if v is not None]
    if one.what == "sum":
        return as_double(sum(values))
    return as_double(sum(values)) / len(values) if values else None


@settings(deadline=None)
@given(
    parts=st.lists(st.tuples(st.lists(event, max_size=8), st.integers(-20, 40)), max_size=6),
    ats=st.lists(st.integers(-1, 80), min_size=1, max_size=4),
)
def test_equal_to_a_loop_whatever_was_forgotten(parts: list[tuple[list[Event], int]], ats: list[int]) -> None:
    windows, events = Windows(SPECS), []
    assert windows.summed == ("amount", "cost")
    for part, before in parts:
        keys, times, known, costs, amounts = zip(*part, strict=True) if part else ((),) * 5
        windows.add(keys, i64(times), i64(known), parts_of(amounts, costs))
        events += part
        windows.forget(before)
        for at in [windows.reach_us, *ats]:
            if at >= windows.reach_us:
                for key in "ab":
                    found = windows.look_up(key, at)
                    assert found == tuple(naive(events, key, at, one) for one in SPECS), (key, at)
    assert windows.look_up(None, 10) == (0, 0, 0.0, None, 0.0)
    # What has gone by the reach is not held.
    held = [e for e in events if max(e[1] + 20, e[2]) > windows.reach_us and e[1] + 20 > e[2]]
    windows.forget(windows.reach_us)
    assert windows.events == len(held)
    assert windows.keys == len({e[0] for e in held})


def test_a_sum_that_began_long_ago_is_exact() -> None:
    windows = Windows([spec("spent", 10, "sum", "cost")])
    for at in range(10_000):
        windows.add(["a"], i64([at]), i64([at]), parts_of([SCALE // 10]))
        windows.forget(at - 20)
    assert windows.look_up("a", 9_999) == (1.0,)
    assert windows.events <= 31


@settings(deadline=None, max_examples=200)
@given(st.integers(-(10**38) + 1, 10**38 - 1) | st.integers(-(1 << 55), 1 << 55))
@example(1 << 53)
@example((1 << 53) + 1)
@example(-(1 << 53) - 1)
def test_doubles_are_those_of_the_engine(exact: int) -> None:
    text = f"{'-' if exact < 0 else ''}{abs(exact) // SCALE}.{abs(exact) % SCALE:09d}"
    assert Fraction(Decimal(text)) * SCALE == exact
    [[found]] = duckdb.execute(f"select '{text}'::decimal(38, 9)::double").fetchall()
    assert as_double(exact) == found
