"""What is known now, in sections and curves, and for each reader what is new since it last asked."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from penstock.dash.live.series import Cursor, Series

__all__ = ["Board", "Seen"]

_SERIES = 64
"""Of which a reader may say how far it has come."""


class Seen(msgspec.Struct, forbid_unknown_fields=True):
    """How far a reader has come: what an answer had under ``seen``."""

    boot: str
    rev: int
    series: dict[str, Cursor] = {}


class Board:
    """Written by one thread, read by others."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(4)
        """Of this board: a reader of another one, before a restart, has nothing of this."""
        self._lock = threading.Lock()
        self._rev = 0
        self._looked_at = time.time()
        self._sections: dict[str, tuple[int, bytes]] = {}
        self._series: dict[str, tuple[Series[Any], Callable[[Any], Any]]] = {}

    def put(self, name: str, value: Any) -> None:
        """Replace a section, of plain values."""
        written = msgspec.json.encode(value)
        with self._lock:
            if name not in self._sections or self._sections[name][1] != written:
                self._rev += 1
                self._sections[name] = self._rev, written

    def show(self, name: str, series: Series[Any], point: Callable[[Any], Any]) -> None:
        """Have a curve on the board; ``point`` makes plain values of one of its points."""
        with self._lock:
            if name in self._series or len(self._series) < _SERIES:
                self._series[name] = series, point

    def looked(self) -> None:
        """All is as it is now."""
        self._looked_at = time.time()

    def answer(self, seen: Seen | None = None) -> bytes:
        """JSON of what a reader lacks, and of how far it has come with that.

        ==========  =====================================================================================
        seen        to be sent with the next question
        now         seconds since 1970
        looked_at   the same, of when all this was looked at last
        sections    those that changed, whole
        series      by name ``[begin, points]``: what the reader has from place ``begin`` on is replaced
        ==========  =====================================================================================
        """
        with self._lock:
            if seen is None or seen.boot != self._boot:
                seen = Seen(boot=self._boot, rev=0)
            cursors, news = {}, {}
            for name, (series, point) in self._series.items():
                found = series.since(seen.series.get(name))
                if found is None:
                    cursors[name] = seen.series[name]
                else:
                    cursors[name], begin, points = found
                    news[name] = [begin, [point(each) for each in points]]
            answer = {
                "seen": Seen(boot=self._boot, rev=self._rev, series=cursors),
                "now": round(time.time(), 1),
                "looked_at": round(self._looked_at, 1),
                "sections": {
                    name: msgspec.Raw(written) for name, (rev, written) in self._sections.items() if rev > seen.rev
                },
                "series": news,
            }
            return msgspec.json.encode(answer)
