"""What a run leaves in its folder, and what ``penstock dash`` makes of it; also of one that was resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Threads

import penstock as ps
from penstock.dash.live.board import Board
from penstock.dash.live.folder import FolderSeer
from penstock.dash.live.servers import Servers
from penstock.engine import coordinator
from penstock.engine.observer import Observer
from penstock.engine.spec import Slowness
from penstock.errors import Interrupted
from penstock.parameter_server import SSP

ROWS = 24_000


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cluster.jsonl").read_text().splitlines()]


def seen(folder: Path) -> dict[str, Any]:
    seer, board = FolderSeer(folder), Board()
    seer.look()
    seer.view.show(board, Servers(()))
    found: dict[str, Any] = json.loads(board.answer())
    return found


def fit(engine: Threads, clicks: Path, folder: Path, *, resume: bool = False, step_s: float = 0.0) -> ps.Run:
    slow = {"*": Slowness(step_s=step_s)}
    strategy = ps.ParameterServer(servers=2, workers=2, consistency=SSP(2), minibatch=256, slow=slow)
    model = ps.Linear(ps.Features(label="clicked", ignore=["time"]), segments=64)
    return ps.fit(
        model, str(clicks), strategy=strategy, engine=engine, output=folder, resume=resume, progress=False
    )


def test_a_run_leaves_how_its_cluster_stood(
    threads: Callable[..., Threads], clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "RECORD_S", 0.01)
    run = fit(threads(), clicks, tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["cluster"]["phase"] == "done" and lines[-1]["rows"] == run.rows == ROWS
    assert lines[-1]["progressive"]["rows"] == sum(line["recent"]["rows"] for line in lines) == ROWS
    assert lines[-1]["features"] == run.model.rows
    said = [text for line in lines for _, text in line["events"]]
    assert sorted(said) == [
        "all is learnt",
        *(f"{role}-{n} joined" for role in ("server", "worker") for n in (0, 1)),
    ]
    found = seen(tmp_path / "run")
    assert found["sections"]["run"]["state"] == "finished"
    assert sum(n for _, n in found["sections"]["ring"]) == 64
    workers = found["sections"]["cluster"]["workers"]
    assert sum(worker["done"] for worker in workers) == 94 and max(worker["clock"] for worker in workers) == 24
    assert [kind for _, _, kind, _ in found["sections"]["events"]].count("join") == 4


def test_a_resumed_run_goes_on_with_its_history(
    threads: Callable[..., Threads], clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "RECORD_S", 0.01)
    asked: list[int] = []

    def stop(cluster: Any, status: dict[str, Any]) -> None:
        if status["rows"] >= 4000 and not asked:
            asked.append(status["rows"])
            with Observer(cluster.access, cluster.address, name="somebody") as observer:
                observer.stop("a test")

    with pytest.raises(Interrupted):
        # Slow enough to be stopped before its end.
        fit(threads(hook=stop), clicks, tmp_path / "run", step_s=0.02)
    before = lines_of(tmp_path / "run")
    assert (
        before[-1]["cluster"]["phase"] == "stopped"
        and seen(tmp_path / "run")["sections"]["run"]["state"] == "stopped"
    )
    fit(threads(), clicks, tmp_path / "run", resume=True)
    lines = lines_of(tmp_path / "run")
    assert len(lines) > len(before) and lines[: len(before)] == before
    # Time and rows are of both sittings; the second says nothing recent of what the first had learnt.
    assert lines[-1]["rows"] == ROWS and lines[-1]["seconds"] > before[-1]["seconds"]
    again = sum(line["recent"]["rows"] for line in lines[len(before) :])
    assert ROWS - before[-1]["rows"] <= again < ROWS - 3000
    found = seen(tmp_path / "run")
    points = found["series"]["curve"][1]
    assert [point[:2] for point in points] == sorted(point[:2] for point in points) and points[-1][1] == ROWS
