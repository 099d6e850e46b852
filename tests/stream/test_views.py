"""Lambda: whenever it is read, and wherever the batch view was cut, a view is what the log says by then."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ConfigError, DataError, FolderBusy
from penstock.log import Log
from penstock.stream.replay import Replay
from penstock.stream.spec import Pipeline
from penstock.stream.views import Views
from tests.stream.test_killed_anywhere import FIELDS, STREAMS, T0, add

SECOND = 1_000_000
VIEWS: list[dict[str, Any]] = [
    {"name": "by_site", "by": ["site"], "sums": {"buys": "bought", "value": "n"}},
    {"name": "all", "sums": {"buys": "bought"}},
]


def pipeline(place: Path, views: list[dict[str, Any]] = VIEWS) -> Pipeline:
    return Pipeline.from_dict(
        {
            "streams": {"views": {"id": "id", "lateness": "20s"}, "buys": {"within": "80s", "lateness": "1m"}},
            "pipeline": {
                "log": str(place),
                "window": "10s",
                "query": "select i.site, i.id, 0.1 as n, b.id is not null as bought "
                "from views i left join buys b on b.id = i.id",
            },
            "views": views,
        },
        "test",
    )


def expected(place: Path) -> list[dict[str, Any]]:
    """By a loop over the final examples."""
    replay = Replay(Log(str(place)), pipeline(place))
    counts: Counter[str] = Counter()
    buys: dict[str, int] = defaultdict(int)
    for found in replay.final():
        for row in found.rows.to_pylist():
            counts[row["site"]] += 1
            buys[row["site"]] += row["bought"]
    return [
        {"site": site, "examples": n, "buys": float(buys[site]), "value": pytest.approx(n * 0.1)}
        for site, n in sorted(counts.items())
    ]


@pytest.mark.parametrize("seed", range(6))
def test_at_each_step_a_view_is_what_the_log_says(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    log = Log(str(tmp_path))
    for name in STREAMS:
        log.create(name, FIELDS, id="id")
    views = Views(pipeline(tmp_path))
    cuts = set()
    for step in range(8):
        clock = 20 * step
        add(
            log,
            "views",
            [(clock + rng.randrange(20), f"v{rng.randrange(1000)}") for _ in range(rng.randrange(1, 8))],
        )
        ids = log.stream("views").folder.files() and [f"v{rng.randrange(1000)}" for _ in range(30)]
        add(log, "buys", [(clock + rng.randrange(20), id_) for id_ in ids])
        log.step(tick_us=T0 + clock * SECOND)
        what = rng.choice(["speed", "batch", "both", "neither"])
        if what in ("batch", "both"):
            cuts.add(views.batch())
        if what in ("speed", "both"):
            assert views.speed() == step
        if what == "neither":
            continue
        table, cut, through = Views(pipeline(tmp_path)).read("by_site")
        assert through == step
        assert cut == max(cuts, default=-1)
        assert table.to_pylist() == expected(tmp_path)
        whole = views.read("all")[0].to_pylist()
        assert sum(row["examples"] for row in whole) == sum(row["examples"] for row in table.to_pylist())


def test_an_example_that_moves_to_another_group_is_counted_there_alone(tmp_path: Path) -> None:
    """Corrections of what a view groups by; a group that nothing is left of is gone."""
    log = Log(str(tmp_path))
    for name in STREAMS:
        log.create(name, FIELDS, id="id")
    views = Views(pipeline(tmp_path, [{"name": "by_label", "by": "bought"}]))
    add(log, "views", [(1, "a"), (100, "z")])
    log.step(tick_us=T0)
    views.speed()
    assert views.read("by_label")[0].to_pylist() == [{"bought": False, "examples": 1}]
    add(log, "buys", [(2, "a")])
    log.step(tick_us=T0)
    views.speed()
    assert views.read("by_label")[0].to_pylist() == [{"bought": True, "examples": 1}]


def test_bad_input(tmp_path: Path) -> None:
    log = Log(str(tmp_path))
    for name in STREAMS:
        log.create(name, FIELDS, id="id")
    for views, message in (
        ([], "there are no views"),
        ([{"name": "x", "by": "who"}], "views.x: the query gives no column 'who'"),
        ([{"name": "x", "sums": {"s": "site"}}], "views.x.sums: column 'site' is string"),
        ([{"name": "x", "by": "site", "sums": {"site": "n"}}], "views[0]: two columns would be named 'site'"),
        ([{"name": "x", "sums": 3}], "views[0].sums: got 3"),
        ([{"by": "site"}], "views[0]: name is missing"),
    ):
        with pytest.raises(ConfigError) as caught:
            Views(pipeline(tmp_path, views))
        assert message in str(caught.value)
    views_ = Views(pipeline(tmp_path))
    with pytest.raises(DataError, match="there is no step yet"):
        views_.batch()
    with pytest.raises(ConfigError, match="there is no view 'x'; views: by_site, all"):
        views_.read("x")
    log.step(tick_us=T0)
    import fcntl

    views_.batch()
    with (views_._root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FolderBusy):
            views_.batch()
