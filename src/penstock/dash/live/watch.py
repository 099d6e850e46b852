"""Looks at a run and at servers once a second, in a thread, and keeps the board; readers only read that."""

from __future__ import annotations

import logging
import threading

from penstock.dash.live.board import Board
from penstock.dash.live.run import Seer
from penstock.dash.live.servers import Servers

__all__ = ["Watch"]

LOOK_S = 1.0
_log = logging.getLogger(__name__)


class Watch:
    """A context that looks while entered; it has looked once when it is."""

    def __init__(self, seer: Seer, servers: Servers) -> None:
        self.board = Board()
        self._seer, self._servers = seer, servers
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="looks at the run", daemon=True)

    def __enter__(self) -> Watch:
        self.look()
        self._servers.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._servers.__exit__(*error)
        self._thread.join(10.0)

    def look(self) -> None:
        """Look now."""
        self._seer.look()
        self._seer.view.show(self.board, self._servers)
        self.board.looked()

    def _look_on(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.look()
            except Exception:  # a defect of ours: the page stands still, and says since when
                _log.exception("looking at the run")
