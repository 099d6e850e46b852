"""The history of a cluster in its folder: each event once, bounded, evenly thinned out, over several sittings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.metrics import BinaryMetrics
from penstock.train import cluster_history
from penstock.train.cluster_history import ClusterHistory, thinned_lines


def status_of(seconds: float = 1.0, rows: int = 10, events: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {
        "phase": "training",
        "seconds": seconds,
        "seconds_before": 0.0,
        "now": seconds,
        "rows": rows,
        "done": 0.5,
        "servers": [{"name": "s", "rows": {"weights": 5, "bias": 1}, "table_nbytes": 7, "memory_nbytes": 9}] * 2,
        "workers": [],
        "events": [[float(n), text] for n, text in enumerate(events)],
        "events_total": len(events),
        "owners": [0, 1],
        "metrics": {"secret": "large"},
        **more,
    }


def metrics_of(rows: int) -> BinaryMetrics:
    metrics = BinaryMetrics()
    metrics.update(np.full(rows, 0.5, np.float32), (np.arange(rows) % 2).astype(np.float32))
    return metrics


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_a_report_and_the_status(tmp_path: Path) -> None:
    path = tmp_path / "cluster.jsonl"
    history = ClusterHistory(path, BinaryMetrics())
    history.add(status_of(2.0, 100, ("a joined",), seconds_before=3.0), metrics_of(100))
    history.add(status_of(3.0, 150, ("a joined", "b joined"), seconds_before=3.0), metrics_of(150))
    first, second = lines_of(path)
    assert (
        first["seconds"] == 5.0
        and first["rows"] == 100
        and first["features"] == 12
        and first["memory_nbytes"] == 18
    )
    assert (
        first["recent"]["rows"] == 100 and second["recent"]["rows"] == 50 and second["progressive"]["rows"] == 150
    )
    assert first["cluster"]["phase"] == "training" and "metrics" not in first["cluster"]
    # What stays is written once; each event once, with when it was.
    assert first["owners"] == [0, 1] and "owners" not in second
    assert [[text for _, text in line["events"]] for line in (first, second)] == [["a joined"], ["b joined"]]
    assert first["events"][0][0] == pytest.approx(first["at"] - 2.0, abs=0.01)


def test_of_events_beyond_those_that_a_status_keeps_the_newest_are_written(tmp_path: Path) -> None:
    history = ClusterHistory(tmp_path / "cluster.jsonl", BinaryMetrics())
    history.add(status_of(events=("a", "b")), metrics_of(1))
    history.add(status_of(events=("x", "y", "z"), events_total=9), metrics_of(1))
    assert [text for _, text in lines_of(tmp_path / "cluster.jsonl")[1]["events"]] == ["x", "y", "z"]


def test_a_resumed_run_goes_on_with_the_file_and_its_scores(tmp_path: Path) -> None:
    path = tmp_path / "cluster.jsonl"
    ClusterHistory(path, BinaryMetrics()).add(status_of(events=("a",)), metrics_of(100))
    ClusterHistory(path, metrics_of(100)).add(status_of(events=("b",)), metrics_of(120))
    first, second = lines_of(path)
    assert second["recent"]["rows"] == 20 and second["owners"] == [0, 1]
    assert [line["events"][0][1] for line in (first, second)] == ["a", "b"]


def test_the_file_stays_small_and_loses_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_history, "RECENT", 5)
    monkeypatch.setattr(cluster_history, "OLDER", 10)
    path, clock = tmp_path / "cluster.jsonl", iter(range(10_000))
    monkeypatch.setattr(cluster_history.time, "time", lambda: 1_800_000_000.0 + next(clock))
    history, most = ClusterHistory(path, BinaryMetrics()), 0
    events: tuple[str, ...] = ()
    for n in range(200):
        if n % 20 == 0:
            events = (*events, f"event {n}")
        history.add(status_of(float(n), n, events), metrics_of(n))
        most = max(most, len(path.read_text().splitlines()))
    found = lines_of(path)
    assert most == 20 and len(found) <= 20
    assert [text for line in found for _, text in line["events"]] == list(events)
    assert found[0]["owners"] == [0, 1] and found[-1]["rows"] == 199
    # What is old is thinned out evenly, what is new stands as it was.
    assert [line["rows"] for line in found[-5:]] == [195, 196, 197, 198, 199]
    assert not list(tmp_path.glob(".*"))


@given(
    gaps=st.lists(st.floats(0.0, 5000.0), max_size=60),
    most=st.integers(1, 20),
    events=st.lists(st.integers(0, 59), max_size=30),
)
def test_thinned_lines_are_few_in_order_and_keep_events(gaps: list[float], most: int, events: list[int]) -> None:
    at, lines = 1000.0, []
    for n, gap in enumerate(gaps):
        at += gap
        lines.append({"at": at, "n": n, "events": [[at, f"{n}"]] * events.count(n)})
    if lines:
        lines[0]["owners"] = [1, 2]
    kept = thinned_lines(lines, most)
    assert len(kept) <= most and [line["n"] for line in kept] == sorted(line["n"] for line in kept)
    assert kept == [] or (kept[-1]["n"] == lines[-1]["n"] and kept[0]["owners"] == [1, 2])
    assert [event for line in kept for event in line["events"]] == [
        event for line in lines for event in line["events"]
    ]


def test_of_very_many_events_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_history, "EVENTS_KEPT", 3)
    lines = [{"at": float(n), "events": [[n, f"{n}"], [n, f"{n}b"]]} for n in range(4)]
    assert [[text for _, text in line["events"]] for line in thinned_lines(lines, 10)] == [
        [],
        [],
        ["2b"],
        ["3", "3b"],
    ]


def test_what_json_cannot_hold_ends_no_run(tmp_path: Path) -> None:
    history = ClusterHistory(tmp_path / "cluster.jsonl", BinaryMetrics())
    history.add(status_of(events=("checkpoint failed: /data/\udcff",)), metrics_of(1))
    history.add(status_of(rows=20, events=("checkpoint failed: /data/\udcff", "a joined")), metrics_of(1))
    assert [line["rows"] for line in lines_of(tmp_path / "cluster.jsonl")] == [20]


def test_a_run_goes_on_where_its_history_cannot_be_written(tmp_path: Path) -> None:
    ClusterHistory(tmp_path / "nowhere" / "cluster.jsonl", BinaryMetrics()).add(status_of(), metrics_of(1))
    assert not list(tmp_path.iterdir())
