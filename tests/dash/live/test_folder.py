"""A run seen by its folder: while it trains, after, resumed, killed, by hand; and damage is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.dash.live.board import Board
from penstock.dash.live.folder import FolderSeer
from penstock.dash.live.servers import Servers
from penstock.errors import ConfigError
from tests.dash.live.helpers import BEGAN, cluster_line_of, line_of, manifest_of, write_lines


def look(seer: FolderSeer) -> dict[str, Any]:
    """Everything that a new reader of the page gets."""
    board = Board()
    seer.look()
    seer.view.show(board, Servers(()))
    answer: dict[str, Any] = json.loads(board.answer())
    return answer


def rows_of(answer: dict[str, Any]) -> list[int]:
    return [point[1] for point in answer["series"]["curve"][1]]


def test_a_folder_without_a_run_yet(tmp_path: Path) -> None:
    answer = look(FolderSeer(tmp_path))
    assert answer["sections"]["run"]["state"] == "waiting" and rows_of(answer) == []
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; name the output of a run, or host:port"):
        FolderSeer(tmp_path / "nowhere")


def test_a_run_of_one_process_while_it_trains_and_after(tmp_path: Path) -> None:
    seer = FolderSeer(tmp_path)
    (tmp_path / ".lock").write_text(f"{os.getpid()}\n")
    write_lines(tmp_path / "progress.jsonl", line_of(1.0, 100))
    assert rows_of(look(seer)) == [100] and look(seer)["sections"]["run"]["state"] == "running"
    write_lines(tmp_path / "progress.jsonl", line_of(2.0, 200, done=0.5))
    assert rows_of(look(seer)) == [100, 200] and look(seer)["sections"]["run"]["done"] == 0.5
    (tmp_path / ".lock").write_text("")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest_of(1)))
    answer = look(seer)
    assert answer["sections"]["run"]["state"] == "finished"
    assert answer["sections"]["versions"]["versions"][0]["rows"] == 500
    assert answer["sections"]["cluster"] is None
    # Whoever comes later sees the same.
    later = look(FolderSeer(tmp_path))
    assert later["series"] == answer["series"] and later["sections"]["events"] == answer["sections"]["events"]


def test_a_run_that_begins_anew_in_the_folder_forgets_the_last(tmp_path: Path) -> None:
    seer = FolderSeer(tmp_path)
    write_lines(tmp_path / "progress.jsonl", *(line_of(float(n), 100 * n) for n in range(1, 5)))
    write_lines(tmp_path / "cluster.jsonl", cluster_line_of(1.0, 100, events=[[BEGAN, "worker-0 joined"]]))
    assert rows_of(look(seer)) == [100, 200, 300, 400]
    for name in ("progress.jsonl", "cluster.jsonl"):
        (tmp_path / name).unlink()
    write_lines(tmp_path / "progress.jsonl", line_of(1.0, 7))
    answer = look(seer)
    assert rows_of(answer) == [7] and answer["sections"]["cluster"] is None and answer["sections"]["events"] == []


def test_a_killed_run_is_not_taken_to_be_running(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / ".lock").write_bytes(gone.stdout)
    write_lines(tmp_path / "progress.jsonl", line_of(1.0, 100, at=1.0))
    run = look(FolderSeer(tmp_path))["sections"]["run"]
    assert run["state"] == "stopped" and f"process {int(gone.stdout)} is gone" in run["detail"]
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "manifest.json").write_text("{}")
    run = look(FolderSeer(tmp_path))["sections"]["run"]
    assert run["state"] == "stopped" and f"penstock train --resume -o {tmp_path}" in run["detail"]


def test_a_cluster_by_hand_has_no_progress_of_its_own(tmp_path: Path) -> None:
    """Its curve comes from the history of the cluster; until a starter's lines are there."""
    seer = FolderSeer(tmp_path)
    events = [[BEGAN + 0.5, "worker-1 is out (left); 2 of its micro-batches go to others"]]
    write_lines(tmp_path / "cluster.jsonl", cluster_line_of(1.0, 100), cluster_line_of(2.0, 200, events=events))
    answer = look(seer)
    assert rows_of(answer) == [100, 200]
    assert answer["sections"]["events"] == [[0.5, BEGAN + 0.5, "loss", events[0][1]]]
    assert answer["sections"]["ring"] == [[0, 2], [1, 1], [0, 1], [1, 2]]
    # The history is thinned out: the file is another one, with fewer lines.
    (tmp_path / "new").write_text(json.dumps(cluster_line_of(2.0, 200, events=events)) + "\n")
    (tmp_path / "new").replace(tmp_path / "cluster.jsonl")
    answer = look(seer)
    assert rows_of(answer) == [200] and len(answer["sections"]["events"]) == 1
    write_lines(tmp_path / "progress.jsonl", line_of(1.5, 150))
    write_lines(tmp_path / "cluster.jsonl", cluster_line_of(3.0, 300))
    assert rows_of(look(seer)) == [150]


def test_a_failed_cluster_says_so(tmp_path: Path) -> None:
    write_lines(tmp_path / "cluster.jsonl", cluster_line_of(1.0, 100, phase="failed"))
    assert look(FolderSeer(tmp_path))["sections"]["run"]["state"] == "failed"


def test_versions_before_are_told_of_where_they_are_kept(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    for n in (1, 2):
        old = manifest_of(n, f"2027-01-15T08:00:{10 * n}+00:00")
        (tmp_path / "versions" / f"v{n:06d}.json").write_text(json.dumps(old))
    newest = manifest_of(3, "2027-01-15T08:00:30+00:00", lineage={"newest_event": "2027-01-15T07:59:59Z"})
    (tmp_path / "manifest.json").write_text(json.dumps(newest))
    (tmp_path / "versions" / "v000009.json").write_text("{damaged")
    (tmp_path / "pin.json").write_text('{"version": 2}')
    write_lines(tmp_path / "progress.jsonl", *(line_of(float(n), 100 * n) for n in (5, 60)))
    answer = look(FolderSeer(tmp_path))
    versions = answer["sections"]["versions"]
    assert [one["version"] for one in versions["versions"]] == [3, 2, 1] and versions["pinned"] == 2
    assert versions["versions"][0]["newest_event"] == "2027-01-15T07:59:59Z"
    kinds = [(seconds, kind) for seconds, _, kind, _ in answer["sections"]["events"]]
    assert kinds == [(10.0, "version"), (20.0, "version"), (30.0, "version")]


def test_streams_are_those_of_the_last_report(tmp_path: Path) -> None:
    streams = {"clicks": {"events": 5, "watermark": None, "lag_s": 1.5, "source": "a", "why": "b"}}
    pipeline = {"step": 3, "sealed_to": None, "quarantined": 2, "streams": streams}
    write_lines(tmp_path / "progress.jsonl", line_of(1.0, 100, pipeline=pipeline))
    answer = look(FolderSeer(tmp_path))
    assert answer["sections"]["streams"] == pipeline
    assert answer["sections"]["run"]["streams"] == ["clicks"] and answer["series"]["curve"][1][0][-1] == 1.5


def test_damage_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("no number")
    (tmp_path / "manifest.json").write_bytes(b"\xff" * 100)
    (tmp_path / "pin.json").write_text('{"version": "x"}')
    (tmp_path / "progress.jsonl").write_text(
        '{"pipeline": 5, "rows": 1, "seconds": 1, "done": "x", "at": []}\n[]\n'
    )
    (tmp_path / "cluster.jsonl").write_text(
        '{"cluster": [], "events": 3}\n{"cluster": {"servers": [{"name": 3}]}}\n'
    )
    answer = look(FolderSeer(tmp_path))
    assert answer["sections"]["cluster"] is None and answer["sections"]["versions"]["versions"] == []
    assert answer["sections"]["run"]["state"] == "finished"
