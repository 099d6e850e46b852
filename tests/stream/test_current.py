"""Aggregates kept in memory: after each step what SQL finds in the log, and what examples are trained with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError, PenstockError, StorageError
from penstock.log import Log
from penstock.log.times import TIMESTAMP
from penstock.stream.current import SLACK_US, Current, key_of
from penstock.stream.evaluator import Evaluator
from penstock.stream.replay import Replay
from penstock.stream.spec import Pipeline

SECOND = 1_000_000
T0 = 1_793_491_200 * SECOND
FIELDS = [
    pa.field("ts", TIMESTAMP),
    pa.field("id", pa.string()),
    pa.field("user", pa.string()),
    pa.field("ad", pa.int64()),
    pa.field("cost", pa.float64()),
]
Event = tuple[int, int, "str | None", "int | None", "float | None", "str | None"]
"""Time, arrival (seconds), user, ad, cost, id."""
AGGREGATES = [
    {"name": "n_short", "stream": "buys", "by": "user", "over": "5s"},
    {"name": "spent", "stream": "buys", "by": "user", "over": "30s", "what": "sum", "of": "cost"},
    {"name": "mean_spent", "stream": "buys", "by": "user", "over": "7s", "what": "mean", "of": "cost"},
    {"name": "of_ad", "stream": "buys", "by": ["user", "ad"], "over": "30s"},
    {"name": "seen", "stream": "views", "by": "user", "over": "20s"},
]
USERS, ADS = ["a", "b", None], [1, 12, None]

event = st.tuples(
    st.integers(0, 40),
    st.integers(-3, 15),
    st.sampled_from(USERS),
    st.sampled_from(ADS),
    st.sampled_from([1.0, 0.1, -2.5, 1e20, None]),
    st.sampled_from(["x", "y", None]),
).map(lambda e: (e[0], e[0] + e[1], *e[2:]))


def times(seconds: list[int]) -> pa.Array:
    return pa.array(T0 + np.array(seconds, np.int64) * SECOND).cast(TIMESTAMP)


def add(log: Log, name: str, events: list[Event]) -> None:
    columns = [times([e[0] for e in events]), *(pa.array([e[n] for e in events]) for n in (5, 2, 3, 4))]
    table = pa.table([column.cast(f.type) for column, f in zip(columns, FIELDS, strict=True)], pa.schema(FIELDS))
    log.stream(name).append(table, source="s", arrival=times([e[1] for e in events]))


def new_log(place: Path) -> Log:
    log = Log(str(place))
    for name in ("views", "buys"):
        log.create(name, FIELDS, id="id")
    return log


def pipeline(place: Path | str, aggregates: list[dict[str, Any]] = AGGREGATES, **more: Any) -> Pipeline:
    streams = {
        "views": {"lateness": "100s", "skew": "2s", "dedup": "10s"},
        "buys": {"lateness": "1s", "within": "4s", "skew": "2s", "dedup": "10s"},
    }
    section = {"log": str(place), "window": "10s", "query": "select i.* from views i", **more}
    return Pipeline.from_dict({"streams": streams, "pipeline": section, "aggregates": aggregates}, "test")


def served(current: Current, user: str | None, ad: int | None, at_us: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, group in enumerate(current.groups):
        values = {"user": user, "ad": ad}
        texts = [str(values[column]) for column in group.by]
        key = None if any(values[column] is None for column in group.by) else key_of(texts)
        found |= zip(group.windows.names, current.look_up(number, key, at_us), strict=True)
    return found


@settings(
    max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), phases=set(Phase) - {Phase.shrink}
)
@given(
    turns=st.lists(
        st.tuples(
            st.lists(event, min_size=1, max_size=5),
            st.lists(event, max_size=6),
            st.lists(st.integers(0, 8), max_size=2),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    ats=st.lists(st.integers(0, 60), min_size=2, max_size=2),
)
def test_equal_to_sql_after_each_step_and_to_examples(
    tmp_path_factory: pytest.TempPathFactory, turns: list[Any], ats: list[int]
) -> None:
    place = tmp_path_factory.mktemp("log")
    try:
        _compare(place, turns, ats)
    finally:
        shutil.rmtree(place)


def _compare(place: Path, turns: list[Any], ats: list[int]) -> None:
    log, declared = new_log(place), pipeline(place)
    now = T0 + 50 * SECOND
    current = Current(log, declared, now)
    oracle = Evaluator(Log(str(place)), declared, threads=1)
    asked = [(user, ad) for user in USERS for ad in ADS]
    rows = pa.table({"user": [user for user, _ in asked], "ad": [ad for _, ad in asked]})
    for number, (views, buys, again, looks) in enumerate(turns):
        add(log, "views", views)
        if buys:
            add(log, "buys", buys)
        log.step(tick_us=T0 + number * SECOND, readmit={"buys": again} if again else None)
        if not looks:  # then two steps are taken in at once
            continue
        assert current.advance(now)
        assert not current.advance(now)
        for at in ats:
            expected = oracle.look_up(rows, T0 + at * SECOND).to_pylist()
            for (user, ad), row in zip(asked, expected, strict=True):
                assert served(current, user, ad, T0 + at * SECOND) == row, (user, ad, at)
    # A view that ends it all: every window is sealed by one step, with all that came before.
    add(log, "views", [(300, 300, "z", None, None, None)])
    last = log.step(tick_us=T0 + 300 * SECOND)
    current.advance(now)
    replay = Replay(Log(str(place)), declared, threads=1)
    rows_of = [row for found in replay.run() for row in found.rows.to_pylist()]
    assert {(row["_kind"], row["_step"]) for row in rows_of} <= {("first", last.number)}
    begun = Current(Log(str(place)), declared, now)  # a server that starts anew
    begun.advance(now)
    for row in rows_of:
        if row["ts"].timestamp() * SECOND >= current.reach_us:
            at = round(row["ts"].timestamp() * SECOND)
            expected = {spec["name"]: row[spec["name"]] for spec in AGGREGATES}
            assert served(current, row["user"], row["ad"], at) == expected
            assert served(begun, row["user"], row["ad"], at) == expected
    for each in (current, begun, oracle, replay):
        each.close()


def test_steps_are_taken_where_nobody_takes_them(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    current = Current(Log(str(tmp_path)), pipeline(tmp_path), T0)
    assert not current.advance(T0)
    add(log, "buys", [(0, 0, "a", 1, 1.0, None)])
    assert not current.advance(T0)  # somebody else may take it
    assert current.advance(T0 + SECOND)
    assert [step.tick_us for step in log.progress.steps()] == [T0 + SECOND]
    assert served(current, "a", 1, T0)["n_short"] == 1
    add(log, "buys", [(1, 1, "a", 1, 1.0, None)])
    assert not current.advance(T0 + SECOND)
    log.step(tick_us=T0 + SECOND)
    assert current.advance(T0 + SECOND)
    assert len(log.progress.steps()) == 2
    again = Current(Log(str(tmp_path)), pipeline(tmp_path), T0)
    add(log, "buys", [(2, 2, "a", 1, 1.0, None)])
    assert again.advance(T0 + 2 * SECOND)  # whoever begins takes what is there
    assert served(again, "a", 1, T0 + 2 * SECOND)["n_short"] == 3


def test_a_log_that_cannot_be_written_to_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, reader = new_log(tmp_path), Log(str(tmp_path))
    current = Current(reader, pipeline(tmp_path), T0)
    real, tries = reader.step, []

    def refused(**options: Any) -> Any:
        tries.append(options["tick_us"])
        raise StorageError("read-only")

    monkeypatch.setattr(reader, "step", refused)
    add(log, "buys", [(0, 0, "a", 1, 1.0, None)])
    for second in (0, 1, 59, 60, 61):
        assert not current.advance(T0 + second * SECOND)
    assert tries == [T0, T0 + 60 * SECOND]
    log.step(tick_us=T0 + 62 * SECOND)
    assert current.advance(T0 + 62 * SECOND)
    monkeypatch.setattr(reader, "step", real)
    add(log, "buys", [(70, 70, "a", 1, 1.0, None)])
    assert not current.advance(T0 + 119 * SECOND)
    assert not current.advance(T0 + 119 * SECOND)
    assert current.advance(T0 + 120 * SECOND)


def test_a_log_that_cannot_be_read_changes_nothing_and_is_read_on(tmp_path: Path) -> None:
    place = tmp_path / "log"
    log = new_log(place)
    add(log, "buys", [(0, 0, "a", 1, 1.0, None), (0, 0, "b", 1, 1.0, None)])
    log.step(tick_us=T0)
    current = Current(Log(str(place)), pipeline(place), T0)
    current.advance(T0)
    place.rename(tmp_path / "away")
    with pytest.raises((PenstockError, OSError)):
        current.advance(T0)
    assert served(current, "a", 1, T0)["of_ad"] == 1
    (tmp_path / "away").rename(place)
    add(log, "buys", [(1, 1, "a", 1, 1.0, None)])
    log.step(tick_us=T0)
    current.advance(T0)
    assert served(current, "a", 1, T0 + SECOND)["of_ad"] == 2


def test_what_is_read_in_part_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = new_log(tmp_path)
    add(log, "views", [(0, 0, "a", 1, 1.0, None)] * 3)
    add(log, "buys", [(0, 0, "a", 1, 1.0, None)] * 3)
    log.step(tick_us=T0)
    monkeypatch.setattr("penstock.stream.current._READ_EVENTS", 2)
    current = Current(Log(str(tmp_path)), pipeline(tmp_path), T0)
    real, calls = current._take, []

    def fails_once(name: str, where: Any) -> None:
        calls.append(name)
        if len(calls) == 4:
            raise OSError("no such disk")
        real(name, where)

    monkeypatch.setattr(current, "_take", fails_once)
    with pytest.raises(OSError, match="no such disk"):
        current.advance(T0)
    said: list[tuple[str, int, int]] = []
    assert current.advance(T0, lambda *told: said.append(told))
    found = served(current, "a", 1, T0 + 1)
    assert (found["n_short"], found["of_ad"], found["seen"]) == (3, 3, 3)
    assert said == [("views", 1, 1)]


def test_memory_is_bounded_by_the_longest_window(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    current = Current(Log(str(tmp_path)), pipeline(tmp_path), T0)
    for n in range(6):
        at = 100 * n
        add(log, "buys", [(at, at, f"user{k}", 1, 1.0, None) for k in range(50)])
        log.step(tick_us=T0 + at * SECOND)
        current.advance(T0 + at * SECOND)
        # Two groups, and of each user one event in the window, or in the slack before.
        assert current.events == 2 * 50
        assert current.reach_us >= T0 + at * SECOND - SLACK_US - 30 * SECOND // 8
    current.advance(T0 + 1000 * SECOND)
    assert current.events == 0


@pytest.mark.parametrize("by", ["cost", ["user", "cost"]])
def test_keys_that_cannot_be_looked_up(tmp_path: Path, by: Any) -> None:
    new_log(tmp_path)
    bad = [{"name": "n", "stream": "buys", "by": by, "over": "1s"}]
    with pytest.raises(ConfigError, match=r"aggregates\.n\.by: 'cost' is double in views and double in buys"):
        Current(Log(str(tmp_path)), pipeline(tmp_path, bad), T0)
