"""Aggregates: equal to a loop over all events; and what is served at a moment is what is trained with later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.log import Log
from penstock.log.times import TIMESTAMP
from penstock.stream.replay import Replay
from penstock.stream.spec import Pipeline

SECOND = 1_000_000
T0 = 1_793_491_200 * SECOND
VIEWS = [pa.field("ts", TIMESTAMP), pa.field("user", pa.string()), pa.field("cost", pa.float64())]


def times(seconds: list[int]) -> pa.Array:
    return pa.array(T0 + np.array(seconds, np.int64) * SECOND).cast(TIMESTAMP)


def add(log: Log, name: str, events: list[tuple[int, int, str | None, float | None]]) -> None:
    """Events (time, arrival, user, cost), in seconds."""
    stream = log.stream(name)
    table = pa.table(
        {
            "ts": times([event[0] for event in events]),
            "user": pa.array([event[2] for event in events], pa.string()),
            "cost": pa.array([event[3] for event in events], pa.float64()),
        }
    )
    stream.append(table, source="files", arrival=times([event[1] for event in events]))


def pipeline(place: Path, aggregates: list[dict[str, Any]], **settings: Any) -> Pipeline:
    return Pipeline.from_dict(
        {
            "streams": {"views": {"lateness": "1m"}, "buys": {"lateness": "1m", "within": "1m", "skew": "1d"}},
            "pipeline": {"log": str(place), "window": "10s", "query": "select i.* from views i", **settings},
            "aggregates": aggregates,
        },
        "test",
    )


ALL = [
    {"name": "n_short", "stream": "buys", "by": "user", "over": "5s"},
    {"name": "n_long", "stream": "buys", "by": ["user"], "over": "30s"},
    {"name": "spent", "stream": "buys", "by": "user", "over": "30s", "what": "sum", "of": "cost"},
    {"name": "mean_spent", "stream": "buys", "by": "user", "over": "7s", "what": "mean", "of": "cost"},
    {"name": "seen", "stream": "views", "by": "user", "over": "20s"},
]

event = st.tuples(
    st.integers(0, 40),
    st.integers(0, 15),
    st.sampled_from(["a", "b", None]),
    st.sampled_from([1.0, 0.1, -2.5, None]),
).map(lambda e: (e[0], e[0] + e[1], e[2], e[3]))


def naive(
    view: tuple[int, int, str | None, float | None], at: int, spec: dict[str, Any], events: list[tuple[int, Any]]
) -> Any:
    """A loop over (step, event) of a stream."""
    over, own = int(spec["over"][:-1]), spec["stream"] == "views"
    seen = [
        e
        for step, e in events
        if step <= at
        and e[2] is not None
        and e[2] == view[2]
        and view[0] - over < e[0]
        and (max(e[0], e[1]) < view[0] if own else max(e[0], e[1]) <= view[0])
    ]
    values = [e[3] for e in seen if e[3] is not None]
    if spec.get("what", "count") == "count":
        return len(seen)
    if spec["what"] == "sum":
        return pytest.approx(sum(values), abs=1e-9)
    return pytest.approx(sum(values) / len(values), abs=1e-9) if values else None


@settings(max_examples=40, deadline=None)
@given(
    views=st.lists(event, min_size=1, max_size=6),
    first=st.lists(event, max_size=8),
    second=st.lists(event, max_size=8),
)
def test_equal_to_a_loop(tmp_path_factory: pytest.TempPathFactory, views: list, first: list, second: list) -> None:
    place = tmp_path_factory.mktemp("log")
    log = Log(str(place))
    log.create("views", VIEWS)
    log.create("buys", VIEWS)
    add(log, "views", [*views, (200, 200, "z", None)])
    add(log, "buys", first)
    log.step(tick_us=T0 + 200 * SECOND)
    add(log, "buys", second)
    log.step(tick_us=T0 + 201 * SECOND)
    replay = Replay(log, pipeline(place, ALL))
    rows = {row["_seq"]: row for found in replay.run() for row in found.rows.to_pylist()}
    assert set(range(len(views))) <= set(rows)
    of_views = [(0, view) for view in views]
    of_buys = [(0, e) for e in first] + [(1, e) for e in second]
    for seq, view in enumerate(views):
        for spec in ALL:
            expected = naive(view, 0, spec, of_views if spec["stream"] == "views" else of_buys)
            assert rows[seq][spec["name"]] == expected, (spec, view)


def test_what_is_served_is_what_is_trained_with(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    moments = sorted(rng.integers(0, 300, 60).tolist())
    users = [str(user) for user in rng.integers(0, 4, 60)]
    buys = [(t, t + int(d), str(u), 1.0) for t, d, u in rng.integers(0, [300, 40, 4], (120, 3)).tolist()]
    specs = [spec for spec in ALL if spec["stream"] == "buys"]

    whole = Log(str(tmp_path / "whole"))
    whole.create("views", VIEWS)
    whole.create("buys", VIEWS)
    add(whole, "buys", buys)
    add(whole, "views", [(t, t, u, None) for t, u in zip(moments, users, strict=True)])
    add(whole, "views", [(1000, 1000, "z", None)])
    whole.step(tick_us=T0 + 1000 * SECOND)
    trained = {
        row["_seq"]: row
        for found in Replay(whole, pipeline(tmp_path / "whole", specs)).run()
        for row in found.rows.to_pylist()
    }

    live = Log(str(tmp_path / "live"))
    live.create("views", VIEWS)
    live.create("buys", VIEWS)
    serving = Replay(live, pipeline(tmp_path / "live", specs))
    by_arrival = sorted(buys, key=lambda e: e[1])
    for seq, (moment, user) in enumerate(zip(moments, users, strict=True)):
        arrived = [e for e in by_arrival if e[1] <= moment]
        by_arrival = by_arrival[len(arrived) :]
        if arrived:
            add(live, "buys", arrived)
        live.step(tick_us=T0 + moment * SECOND)
        served = serving.look_up(pa.table({"user": [user]}), T0 + moment * SECOND).to_pylist()[0]
        assert served == {spec["name"]: trained[seq][spec["name"]] for spec in specs}
    assert any(row["n_long"] > 1 for row in trained.values())


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (
            {"name": "user", "stream": "buys", "by": "user", "over": "1s"},
            "aggregates.user: stream views has",
        ),
        ({"name": "n", "stream": "buys", "by": "who", "over": "1s"}, "aggregates.n.by: stream buys has no column"),
        (
            {"name": "n", "stream": "buys", "by": "user", "over": "1s", "what": "sum", "of": "user"},
            "aggregates.n.of: got a column of type string, allowed: numbers",
        ),
        (
            {"name": "n", "stream": "buys", "by": "user", "over": "1s", "what": "sum", "of": "x"},
            "aggregates.n.of: stream buys has no column 'x'",
        ),
        ({"name": "n", "stream": "sales", "by": "user", "over": "1s"}, "aggregates.n: there is no stream 'sales'"),
        (
            {"name": "n", "stream": "buys", "by": "user", "over": "1s", "what": "max"},
            "aggregates[0].what: got",
        ),
        ({"name": "n", "stream": "buys", "by": "user", "over": "1s", "of": "cost"}, "count takes no `of`"),
        ({"name": "n", "stream": "buys", "by": "user"}, "aggregates[0]: over is missing"),
    ],
)
def test_bad_input(tmp_path: Path, aggregate: dict[str, Any], message: str) -> None:
    log = Log(str(tmp_path))
    log.create("views", VIEWS)
    log.create("buys", VIEWS)
    with pytest.raises(ConfigError) as caught:
        Replay(log, pipeline(tmp_path, [aggregate]))
    assert message in str(caught.value)
