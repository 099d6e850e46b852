"""From a coordinator's status to what the page shows."""

from __future__ import annotations

from itertools import chain, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dash.live.cluster import COLUMNS, Cluster, event_kind, runs_of
from tests.dash.live.helpers import cluster_line_of, server_of, worker_of


def test_a_status_becomes_tables() -> None:
    cluster = Cluster()
    cluster.take(cluster_line_of(1.0, 100))
    shown = cluster.shown
    assert shown is not None
    assert [one["name"] for one in shown["servers"]] == ["server-0", "server-1"]
    assert shown["servers"][0]["rows"] == 500 and shown["servers"][0]["staleness"] == [0, 3]
    assert [(one["clock"], one["behind"]) for one in shown["workers"]] == [(9, 0), (7, 2)]
    assert shown["waits"] == ["pull", "read"]
    assert shown["hot"] == [["0x8000000000000002", "weights", 0.5]]
    assert shown["staleness"] == [["0", 120], ["1", 60], ["2", 0], ["3", 20]]
    assert cluster.ring == [[0, 2], [1, 1], [0, 1], [1, 2]]


def test_speeds_are_those_of_the_last_seconds() -> None:
    cluster = Cluster()
    for n in range(20):
        line = cluster_line_of(float(n), 100 * n, servers=[server_of("server-0", pulled_keys=n * n)])
        cluster.take(line)
    assert cluster.shown is not None
    assert cluster.shown["workers"][0]["rows_per_s"] == pytest.approx(100.0)
    assert cluster.shown["servers"][0]["keys_per_s"] == pytest.approx((19**2 - 13**2) / 6)


def test_a_worker_that_went_stays_as_it_was_and_may_come_back() -> None:
    cluster = Cluster()
    cluster.take(cluster_line_of(1.0, 100))
    cluster.take(cluster_line_of(2.0, 200, workers=[worker_of("worker-1", clock=8, rows=5)]))
    assert cluster.shown is not None
    gone, here = cluster.shown["workers"]
    assert gone["name"] == "worker-0" and gone["gone"] and gone["done"] == 5 and gone["rows_per_s"] is None
    assert here["name"] == "worker-1" and "gone" not in here
    cluster.take(cluster_line_of(3.0, 300))
    assert not any("gone" in one for one in cluster.shown["workers"])


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"cluster": None},
        {"cluster": {"servers": 5}},
        {"cluster": {}, "owners": ["x"]},
        {"cluster": {}, "at": ""},
    ],
)
def test_lines_that_are_not_understood_change_nothing(line: dict) -> None:
    cluster = Cluster()
    cluster.take(line)
    assert cluster.shown is None and cluster.ring is None


def test_a_status_of_an_older_or_newer_coordinator_is_shown_as_far_as_it_goes() -> None:
    cluster = Cluster()
    cluster.take({"cluster": {"phase": "training", "new": {}, "servers": [{"name": "s", "replica_of": "t"}]}})
    assert cluster.shown is not None and cluster.shown["servers"][0]["rows"] == 0


@given(st.lists(st.integers(0, 3), max_size=60))
def test_runs_give_the_owners_back(owners: list[int]) -> None:
    runs = runs_of(owners)
    assert list(chain.from_iterable(repeat(owner, n) for owner, n in runs)) == owners
    assert all(a[0] != b[0] for a, b in zip(runs, runs[1:], strict=False))


@given(st.dictionaries(st.integers(0, 5000), st.integers(0, 1000), max_size=40))
def test_the_histogram_counts_every_push_in_few_columns(staleness: dict[int, int]) -> None:
    cluster = Cluster()
    cluster.take(
        cluster_line_of(1.0, 100, servers=[server_of("s", staleness={str(k): n for k, n in staleness.items()})])
    )
    assert cluster.shown is not None
    columns = cluster.shown["staleness"]
    assert sum(n for _, n in columns) == sum(staleness.values())
    assert len(columns) <= COLUMNS + 1
    assert len({text for text, _ in columns}) == len(columns)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("worker-1 joined", "join"),
        ("worker-1 is out (silent for 5.1 s); 3 of its micro-batches go to others", "loss"),
        ("server-0 (10.0.0.7:9000) is gone: 5.2 s without a heartbeat", "loss"),
        ("server-0 is out: server-1 takes over its 17 segments", "failover"),
        ("checkpoint 3", "checkpoint"),
        ("checkpoint failed: No space left on device", "failure"),
        ("all is learnt", "run"),
        ("asked to stop by SIGINT", "run"),
    ],
)
def test_what_an_event_is_about(text: str, kind: str) -> None:
    assert event_kind(text) == kind
