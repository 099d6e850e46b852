"""How a cluster stood, as JSON lines in its run's folder, for whoever looks while it runs or later.

A line is one of ``progress.jsonl``, and has the status of the coordinator besides. The file is bounded: the last
minutes have a line a second, what was before is thinned out, evenly.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import PenstockError
from penstock.metrics import BinaryMetrics
from penstock.storage import write_atomically
from penstock.train.progress import Report

__all__ = ["ClusterHistory", "cluster_line", "thinned_lines"]

RECENT: int = 500
"""Lines that stand as they were written, at least."""
OLDER: int = 1_500
"""Lines that are left of all before them, at most."""
EVENTS_KEPT: int = 1_000
_APART = frozenset(
    ("metrics", "events", "events_total", "now", "owners", "seconds", "seconds_before", "rows", "done", "output")
)


class ClusterHistory:
    """Appends to the file; where it cannot be written (a full disk) the run goes on without."""

    def __init__(self, path: Path, metrics: BinaryMetrics) -> None:
        """Go on with what an earlier sitting of the run has left, if there is any; ``metrics`` are its."""
        self._path = path
        self._then = metrics.copy()
        self._events = 0
        """How many have been written."""
        self._owners: Sequence[int] = ()
        self._lines = 0
        with contextlib.suppress(OSError), path.open("rb") as file:
            self._lines = sum(1 for _ in file)

    def add(self, status: Mapping[str, Any], metrics: BinaryMetrics) -> None:
        """Write how the cluster stands now: ``Coordinator.status`` with ``owners`` and ``seconds_before``."""
        # A name or a message that JSON cannot hold is no reason to end a run either.
        with contextlib.suppress(OSError, PenstockError, ValueError):
            self._append(status, metrics)

    def _append(self, status: Mapping[str, Any], metrics: BinaryMetrics) -> None:
        line = cluster_line(status, metrics, self._then)
        self._then = metrics
        new = status["events_total"] - self._events
        line["events"] = line["events"][-new:] if new else []
        self._events = status["events_total"]
        if line["owners"] == self._owners:
            del line["owners"]
        else:
            self._owners = line["owners"]
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
        self._lines += 1
        if self._lines > OLDER + 2 * RECENT:
            self._thin_out()

    def _thin_out(self) -> None:
        lines = []
        with self._path.open("rb") as file:
            for text in file:
                with contextlib.suppress(msgspec.DecodeError):
                    lines.append(msgspec.json.decode(text, type=dict[str, Any]))
        kept = thinned_lines(lines[:-RECENT], OLDER) + lines[-RECENT:]
        write_atomically(self._path, b"".join(msgspec.json.encode(line) + b"\n" for line in kept))
        self._lines = len(kept)


def cluster_line(status: Mapping[str, Any], metrics: BinaryMetrics, then: BinaryMetrics) -> dict[str, Any]:
    """A status as a line: that of a ``Report``, and under ``cluster`` the rest.

    ``metrics`` are progressive, of all that is learnt; ``then`` what they were at the line before. Times of events
    are seconds since 1970: where ``seconds`` counts from moves, when the first worker reports.
    """
    at_s, servers = time.time(), status["servers"]
    report = Report(
        seconds=status.get("seconds_before", 0.0) + status["seconds"],
        rows=status["rows"],
        done=status["done"],
        scores=metrics.scores(),
        recent=metrics.since(then).scores(),
        features=sum(sum(server.get("rows", {}).values()) for server in servers),
        table_nbytes=sum(server.get("table_nbytes", 0) for server in servers),
        memory_nbytes=sum(server.get("memory_nbytes", 0) for server in servers),
        at_s=at_s,
    )
    return {
        **report.to_json(),
        "cluster": {name: value for name, value in status.items() if name not in _APART},
        "owners": list(status.get("owners", ())),
        "events": [[round(at_s - status["now"] + at, 3), text] for at, text in status["events"]],
    }


def thinned_lines(lines: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most ``most`` lines: of those that are near each other in time the last, with the events of all, the
    newest thousand."""
    stride_s = 1
    while len({int(line.get("at", 0)) // stride_s for line in lines}) > most:
        stride_s *= 2
    kept: list[dict[str, Any]] = []
    for line in lines:
        last = kept[-1] if kept else None
        if last is None or int(line.get("at", 0)) // stride_s != int(last.get("at", 0)) // stride_s:
            kept.append(dict(line))
            continue
        owners = line.get("owners", last.get("owners"))
        events = [*last.get("events", ()), *line.get("events", ())]
        kept[-1] = {**line, "events": events, **({} if owners is None else {"owners": owners})}
    left = EVENTS_KEPT
    for line in reversed(kept):
        line["events"] = line.get("events", [])[-left:] if left else []
        left -= len(line["events"])
    return kept
