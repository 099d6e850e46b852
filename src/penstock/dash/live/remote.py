"""Looks at a cluster by asking its coordinator; what was before the first answer is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.dash.live.run import RunView
from penstock.errors import PenstockError
from penstock.metrics import BinaryMetrics
from penstock.train.cluster_history import cluster_line

__all__ = ["CoordinatorSeer"]


_ENDED = {"done": "finished", "stopped": "stopped", "failed": "failed"}


class CoordinatorSeer:
    """Of one coordinator."""

    def __init__(self, address: str, ask: Callable[[], dict[str, Any]]) -> None:
        """``ask`` gives ``Coordinator.status``, and raises where there is no answer in time."""
        self.view = RunView(f"cluster at {address}", None)
        self._address, self._ask = address, ask
        self._then = BinaryMetrics()
        self._events = 0
        self._routing: object = None

    def look(self) -> None:
        """Ask, and take in the answer; that there was none is said on the page."""
        view = self.view
        try:
            status = self._ask()
            metrics = BinaryMetrics.from_state(status["metrics"])
            if status["routing"] != self._routing or metrics.rows < self._then.rows:
                self._begin(status, metrics)
            line = cluster_line(status, metrics, self._then)
        except (PenstockError, KeyError, TypeError, ValueError) as error:
            if view.state not in _ENDED.values():  # a coordinator whose run is over goes
                view.state, view.detail = "unknown", f"{self._address} does not answer: {error}"[:300]
            return
        new = status["events_total"] - self._events
        line["events"] = line["events"][-new:] if new > 0 else []
        self._then, self._events = metrics, status["events_total"]
        view.take_cluster(line)
        view.take_report(line)
        phase = status["phase"]
        view.state = _ENDED.get(phase, "running")
        view.detail = f"{phase}, output {status.get('output', '?')}"

    def _begin(self, status: dict[str, Any], metrics: BinaryMetrics) -> None:
        """Another run than before answers at this address, or a run has its servers now."""
        if self._routing is not None:
            self.view.curve.clear()
            self.view.forget_cluster()
            self._events = 0
        self._then = metrics
        self._routing = status["routing"]
