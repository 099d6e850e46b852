"""What the page shows of a cluster: from a coordinator's status to tables, a ring of segments, a histogram.

A status may be of an older or newer coordinator: what it does not say is left out.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["Cluster", "event_kind", "runs_of"]

COLUMNS = 24
"""Of the histogram of staleness."""
GONE = 20
"""Members that went, of which the page still tells."""
_SPAN_S = 6.0
"""Of which speeds are means."""


class _Member(msgspec.Struct):
    name: str = "?"
    heartbeat_s: float = 0.0
    memory_nbytes: float = 0
    bytes_in: float = 0
    bytes_out: float = 0
    cpu_s: float = 0


class _Server(_Member):
    address: str = ""
    segments: int = 0
    rows: dict[str, int] = {}
    table_nbytes: float = 0
    pulled_keys: float = 0
    complete: int | None = None
    waiting: int = 0
    duplicates: int = 0
    staleness: dict[int, int] = {}


class _Worker(_Member):
    clock: int | None = None
    done: int = 0
    stolen: int = 0
    rows: int = 0
    busy_s: float = 0
    waits: dict[str, float] = {}


class _Status(msgspec.Struct):
    phase: str = "?"
    consistency: str = ""
    checkpoint: int | None = None
    clock: int | None = None
    stopped_by: str | None = None
    servers: list[_Server] = []
    workers: list[_Worker] = []
    skew: dict[str, float] = {}
    hot: list[tuple[int, str, float]] = []


class Cluster:
    """Takes one status after the other; some figures are speeds between them."""

    def __init__(self) -> None:
        self._before: deque[tuple[float, dict[str, float]]] = deque(maxlen=64)
        self._seen: dict[str, dict[str, Any]] = {}
        self.shown: dict[str, Any] | None = None
        """The newest, as the page gets it."""
        self.ring: list[list[int]] | None = None
        """Runs of segments, [server, segments], in the order of the hash space."""

    def take(self, line: Mapping[str, Any]) -> None:
        """Take a line of the history; one that is not understood changes nothing."""
        try:
            status = msgspec.convert(line.get("cluster"), _Status, strict=False)
            owners = msgspec.convert(line.get("owners") or [], list[int])
            at = msgspec.convert(line.get("at", 0.0), float)
        except (msgspec.ValidationError, OverflowError):
            return
        if owners:
            self.ring = runs_of(owners)
        counts = {f"server {one.name}": one.pulled_keys for one in status.servers}
        counts |= {f"worker {one.name}": float(one.rows) for one in status.workers}
        if self._before and at < self._before[-1][0]:
            self._before.clear()
        self._before.append((at, counts))
        lead = max((one.clock for one in status.workers if one.clock is not None), default=None)
        servers = [self._server(one) for one in status.servers]
        workers = [self._worker(one, lead) for one in status.workers]
        self.shown = {
            "phase": status.phase,
            "consistency": status.consistency,
            "checkpoint": status.checkpoint,
            "clock": status.clock,
            "stopped_by": status.stopped_by,
            "servers": servers,
            "workers": sorted([*workers, *self._gone(workers)], key=lambda one: one["name"]),
            "waits": sorted({cause for one in status.workers for cause in one.waits}),
            "skew": status.skew,
            # A key has 64 bits, of which JavaScript's numbers hold 53.
            "hot": [[f"{key:#018x}", table, share] for key, table, share in status.hot],
            "staleness": _histogram(status.servers),
        }

    def _speed(self, name: str) -> float | None:
        """By how much a count has risen a second, lately."""
        now, counts = self._before[-1]
        then = next((each for each in self._before if now - each[0] <= _SPAN_S and name in each[1]), None)
        if then is None or now - then[0] < 0.5:
            return None
        return max(0.0, counts[name] - then[1][name]) / (now - then[0])

    def _server(self, one: _Server) -> dict[str, Any]:
        median, most = _median_and_most(one.staleness)
        return {
            **_of_member(one),
            "address": one.address,
            "segments": one.segments,
            "rows": sum(one.rows.values()),
            "table_nbytes": one.table_nbytes,
            "keys_per_s": self._speed(f"server {one.name}"),
            "pulled_keys": one.pulled_keys,
            "complete": one.complete,
            "waiting": one.waiting,
            "duplicates": one.duplicates,
            "staleness": [median, most],
        }

    def _worker(self, one: _Worker, lead: int | None) -> dict[str, Any]:
        return {
            **_of_member(one),
            "clock": one.clock,
            "behind": None if one.clock is None or lead is None else lead - one.clock,
            "done": one.done,
            "stolen": one.stolen,
            "rows": one.rows,
            "rows_per_s": self._speed(f"worker {one.name}"),
            "busy_s": round(one.busy_s, 2),
            "waits": {cause: round(seconds, 2) for cause, seconds in one.waits.items()},
        }

    def _gone(self, workers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Workers that were there, as they were last seen."""
        here = {one["name"] for one in workers}
        gone = [one for name, one in self._seen.items() if name not in here][-GONE:]
        self._seen = {one["name"]: one for one in [*gone, *workers]}
        return [{**one, "gone": True, "rows_per_s": None, "behind": None} for one in gone]


def runs_of(owners: Sequence[int]) -> list[list[int]]:
    """Neighbours of one owner together: [0, 0, 2, 0] as [[0, 2], [2, 1], [0, 1]]."""
    runs: list[list[int]] = []
    for owner in owners:
        if runs and runs[-1][0] == owner:
            runs[-1][1] += 1
        else:
            runs.append([owner, 1])
    return runs


_KINDS = (
    ("failure", r"\b(failed|fails|failure|could not|cannot|diverged|damaged|errors?)\b"),
    ("failover", r"\breplica|\btakes? over|\btook over|promoted|takes? the place|\bmoved?\b"),
    ("loss", r"\bis out\b|\bgone\b|\bsilent\b|\bleft\b|came back|\blost\b|no worker"),
    ("join", r"\bjoin"),
    ("checkpoint", r"checkpoint"),
)


def event_kind(text: str) -> str:
    """What an event of a coordinator is about: failure, failover, loss, join, checkpoint or run."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, text)), "run")


def _of_member(one: _Member) -> dict[str, Any]:
    return {
        "name": one.name,
        "heartbeat_s": round(one.heartbeat_s, 1),
        "memory_nbytes": one.memory_nbytes,
        "bytes_in": one.bytes_in,
        "bytes_out": one.bytes_out,
        "cpu_s": round(one.cpu_s, 1),
    }


def _median_and_most(counts: Mapping[int, int]) -> tuple[int | None, int | None]:
    seen, total = 0, sum(counts.values())
    for at in sorted(counts):
        seen += counts[at]
        if 2 * seen >= total > 0:
            return at, max(at for at, n in counts.items() if n)
    return None, None


def _histogram(servers: Sequence[_Server]) -> list[list[Any]]:
    """[updates behind, pushes] of all servers; the last column holds all that is staler."""
    counts: Counter[int] = Counter()
    for server in servers:
        counts.update(server.staleness)
    total = sum(counts.values())
    if not total:
        return []
    seen, span = 0, 0
    for at in sorted(counts):
        seen, span = seen + counts[at], at + 1
        if seen >= 0.995 * total:
            break
    width = -(-span // COLUMNS)
    columns = [0] * max(2, -(-span // width))
    more = 0
    for at, n in counts.items():
        if at // width < len(columns):
            columns[at // width] += n
        else:
            more += n
    texts = [str(n) if width == 1 else f"{n * width}–{(n + 1) * width - 1}" for n in range(len(columns))]
    found: list[list[Any]] = [[text, n] for text, n in zip(texts, columns, strict=True)]
    return [*found, [f"≥{len(columns) * width}", more]] if more else found
