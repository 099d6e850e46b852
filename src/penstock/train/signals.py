"""Ctrl-C and SIGTERM, as a wish that somebody looks at now and then."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """While in the context a first signal is noted; a second one acts at once, as it would have without.

    Threads other than the main one cannot handle signals: there it notes none.
    """

    def __init__(self) -> None:
        self.by: str | None = None
        """What came: Ctrl-C or SIGTERM."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _notice(self, number: int, frame: Any) -> None:
        self.by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
