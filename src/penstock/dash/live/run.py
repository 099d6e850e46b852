"""What a run shows, wherever it is looked at from: its curve, its cluster, its streams, what happened when."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from penstock.dash.figures import one_line
from penstock.dash.live.board import Board
from penstock.dash.live.cluster import Cluster, event_kind
from penstock.dash.live.curve import COLUMNS, Curve
from penstock.dash.live.servers import Servers
from penstock.dash.live.versions import Versions

__all__ = ["EVENTS", "RunView", "Seer"]

EVENTS = 200
"""The newest, of which the page tells."""


class Seer(Protocol):
    """Looks at a run when asked to."""

    @property
    def view(self) -> RunView:
        """What it has seen."""

    def look(self) -> None:
        """Take in what is new."""


class _Stream(msgspec.Struct):
    events: int | None = None
    watermark: str | None = None
    lag_s: float | None = None
    source: str | None = None
    why: str | None = None


class _Pipeline(msgspec.Struct):
    step: int | None = None
    sealed_to: str | None = None
    quarantined: int | None = None
    streams: dict[str, _Stream] = {}


class RunView:
    """Of one run; whoever looks fills it in, and ``show`` puts it on the board."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name = one_line(name, 100)
        self.curve, self.cluster = Curve(), Cluster()
        self.versions = Versions(folder) if folder is not None else None
        self.state, self.detail = "unknown", ""
        self.reported_at: float | None = None
        """When it last said something, seconds since 1970."""
        self.done: float | None = None
        self._pipeline: _Pipeline | None = None
        self._events: deque[tuple[float, str]] = deque(maxlen=EVENTS)

    def forget_cluster(self) -> None:
        """Its history is read anew."""
        self.cluster = Cluster()
        self._events.clear()

    def take_report(self, line: Mapping[str, Any]) -> None:
        """A line of progress."""
        self.curve.add(line)
        done, at = line.get("done"), line.get("at")
        self.done = float(done) if isinstance(done, int | float) else None
        if isinstance(at, int | float):
            self.reported_at = float(at)
        try:
            found = msgspec.convert(line.get("pipeline"), _Pipeline | None)
        except (msgspec.ValidationError, OverflowError):
            return
        self._pipeline = found

    def take_cluster(self, line: Mapping[str, Any]) -> None:
        """A line of a cluster's history."""
        self.cluster.take(line)
        try:
            self._events += msgspec.convert(line.get("events") or [], list[tuple[float, str]])
        except (msgspec.ValidationError, OverflowError):
            return

    def show(self, board: Board, servers: Servers) -> None:
        """Put all of it on the board."""
        board.show("curve", self.curve.series, self.curve.point)
        board.put("run", self._run())
        board.put("cluster", self.cluster.shown)
        board.put("ring", self.cluster.ring)
        board.put("streams", None if self._pipeline is None else msgspec.to_builtins(self._pipeline))
        versions = self.versions.shown() if self.versions is not None else []
        board.put("versions", {"pinned": self.versions and self.versions.pinned, "versions": versions})
        board.put("serving", servers.shown())
        for name, series in servers.ages.items():
            board.show(f"age of {name}", series, lambda point: point)
        board.put("events", self._all_events(versions, servers.switched()))

    def _run(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "detail": self.detail,
            "reported_at": self.reported_at,
            "done": self.done,
            "columns": COLUMNS,
            "streams": self.curve.streams,
        }

    def _all_events(
        self, versions: Sequence[Mapping[str, Any]], switched: Sequence[tuple[float, str]]
    ) -> list[list[Any]]:
        """[seconds of the run or None, time since 1970 or None, kind, text], in the order of time."""
        dated = [(at, event_kind(text), text) for at, text in self._events]
        dated += [(at, "served", text) for at, text in switched]
        dated += [
            (one["created_s"], "version", f"version {one['version']} published")
            for one in versions
            if one["created_s"] is not None
        ]
        dated.sort(key=lambda each: each[0])
        dated = dated[-EVENTS:]
        seconds = self.curve.seconds_at([at for at, _, _ in dated])
        found: list[list[Any]] = [
            [None if second is None else round(second, 1), at, kind, text[:500]]
            for second, (at, kind, text) in zip(seconds, dated, strict=True)
        ]
        found += [
            [round(second, 1), None, "run", f"went on from a checkpoint, at {rows:,} rows"]
            for second, rows in self.curve.resumed[-EVENTS:]
        ]
        return sorted(found, key=lambda each: each[0] or 0.0)
