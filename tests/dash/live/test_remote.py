"""A cluster seen by its coordinator: another run at the same address, answers that do not come, the end."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from penstock.dash.live.board import Board
from penstock.dash.live.remote import CoordinatorSeer
from penstock.dash.live.servers import Servers
from penstock.errors import TransportError
from penstock.metrics import BinaryMetrics
from tests.dash.live.helpers import server_of, worker_of


class Answers:
    """A coordinator whose next answer the test makes."""

    def __init__(self) -> None:
        self.metrics = BinaryMetrics()
        self.status: dict[str, Any] = {
            "phase": "training",
            "seconds": 0.0,
            "seconds_before": 0.0,
            "now": 0.0,
            "rows": 0,
            "done": 0.0,
            "routing": 1,
            "events": [],
            "events_total": 0,
            "owners": [0, 1],
            "output": "/shared/run",
            "servers": [server_of("server-0")],
            "workers": [worker_of("worker-0", clock=1, rows=0)],
        }
        self.error: Exception | None = None

    def learn(self, rows: int, seconds: float) -> None:
        labels = (np.arange(rows) % 4 == 0).astype(np.float32)
        self.metrics.update(np.full(rows, 0.25, np.float32), labels)
        self.status |= {"rows": self.status["rows"] + rows, "seconds": seconds, "now": seconds}

    def happens(self, at: float, text: str) -> None:
        self.status["events"] = [*self.status["events"], [at, text]][-3:]
        self.status["events_total"] += 1

    def __call__(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {**self.status, "metrics": self.metrics.to_state()}


def look(seer: CoordinatorSeer) -> dict[str, Any]:
    seer.look()
    board = Board()
    seer.view.show(board, Servers(()))
    found: dict[str, Any] = json.loads(board.answer())
    return found


def test_answers_become_a_curve_tables_and_events() -> None:
    answers = Answers()
    seer = CoordinatorSeer("trainer:7077", answers)
    answers.happens(0.0, "worker-0 joined")
    look(seer)
    for n in range(1, 6):
        answers.learn(100, float(n))
        answers.happens(float(n), f"checkpoint {n}")
        found = look(seer)
    assert [point[1] for point in found["series"]["curve"][1]] == [100, 200, 300, 400, 500]
    assert [text for *_, text in found["sections"]["events"]] == [
        "worker-0 joined",
        *(f"checkpoint {n}" for n in range(1, 6)),
    ]
    assert found["sections"]["run"]["state"] == "running" and found["sections"]["cluster"]["phase"] == "training"
    assert "metrics" not in json.dumps(found["sections"]["cluster"])


def test_another_run_at_the_same_address_begins_anew() -> None:
    answers = Answers()
    seer = CoordinatorSeer("trainer:7077", answers)
    answers.learn(500, 5.0)
    answers.happens(1.0, "worker-0 joined")
    look(seer)
    again = Answers()
    again.status["routing"] = 2
    again.learn(100, 1.0)
    seer._ask = again
    found = look(seer)
    assert [point[1] for point in found["series"]["curve"][1]] == [100] and found["sections"]["events"] == []


def test_no_answer_is_said_until_there_is_one_and_not_after_the_end() -> None:
    answers = Answers()
    seer = CoordinatorSeer("trainer:7077", answers)
    answers.error = TransportError("no answer within 5.0 s")
    run = look(seer)["sections"]["run"]
    assert run["state"] == "unknown" and run["detail"] == "trainer:7077 does not answer: no answer within 5.0 s"
    answers.error = None
    assert look(seer)["sections"]["run"]["state"] == "running"
    answers.status["phase"] = "done"
    assert look(seer)["sections"]["run"]["state"] == "finished"
    answers.error = TransportError("closed")
    assert look(seer)["sections"]["run"]["state"] == "finished"


def test_an_answer_that_is_none_of_a_coordinator() -> None:
    assert look(CoordinatorSeer("a:1", lambda: {"phase": "x"}))["sections"]["run"]["state"] == "unknown"
