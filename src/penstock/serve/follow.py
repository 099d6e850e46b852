"""A server that follows a folder: each version that a trainer publishes there answers, once loaded and sound.

What is being loaded is apart from what answers, and takes its place between two requests. A version that cannot be
read, or that predicts no number, is refused with the reason, and the one before goes on answering.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from penstock.errors import ModelError, PenstockError
from penstock.models import read_manifest
from penstock.serve.load import load_scorer
from penstock.serve.scorer import Scorer

__all__ = ["Follower", "wait_for_model"]

POLL_S = 0.25
"""Between two looks at a folder."""
_log = logging.getLogger(__name__)


def wait_for_model(folder: str | Path, say: Callable[[str], None]) -> Scorer:
    """The model in a folder, once there is one.

    Raises:
        ModelError: something is there that is no model, or a damaged one.
    """
    waited = False
    while not (Path(folder) / "manifest.json").exists():
        if not waited:
            say(f"waiting for a model in {folder}")
        waited = True
        time.sleep(POLL_S)
    return load_scorer(folder)


class Follower:
    """The thread that looks at one folder; it ends with the process, or by ``stop``."""

    def __init__(
        self, name: str, folder: str | Path, scorer: Scorer, check: Callable[[Scorer], object] | None = None
    ) -> None:
        """``scorer`` is what answers now, loaded from the folder; ``check`` raises what speaks against another."""
        self.name, self.folder = name, Path(folder)
        self._check = check
        self.scorer = scorer
        self.refused = 0
        """Versions that were not switched to."""
        self._refused: tuple[str, str] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._switch: Callable[[Scorer], None] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"penstock-follow-{name}", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop, switch: Callable[[Scorer], None]) -> None:
        """Call ``switch`` in the loop's thread with each new version."""
        self._switch = switch
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Have the thread end; what it is loading is not switched to any more."""
        self._stop.set()

    def look(self) -> Scorer | None:
        """A version that is newer than the one that answers, if there is one that can be switched to."""
        try:
            manifest = read_manifest(self.folder)
            if manifest == self.scorer.manifest:
                return None
            scorer = load_scorer(self.folder)
            _check_sound(scorer)
            if self._check is not None:
                self._check(scorer)
        except PenstockError as error:
            self._refuse(str(error))
            return None
        self._refused, self.scorer = None, scorer
        return scorer

    def _refuse(self, reason: str) -> None:
        version = self.scorer.version
        if (version, reason) != self._refused:  # once, not at every look
            self._refused = version, reason
            self.refused += 1
            _log.error("model %s: version %s goes on answering: %s", self.name, version, reason)

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                scorer = self.look()
            except Exception:  # a defect of ours: it is told, and what answers goes on
                _log.exception("model %s: %s could not be looked at", self.name, self.folder)
                continue
            if scorer is not None and self._loop is not None and self._switch is not None:
                with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                    self._loop.call_soon_threadsafe(self._switch, scorer)


def _check_sound(scorer: Scorer) -> None:
    """No weight is NaN or infinite.

    Raises:
        ModelError: one is.
    """
    for name, table in scorer.model.tables().items():
        norms = table.norms()
        if not np.isfinite([norms.l1, norms.l2_squared]).all():
            raise ModelError(f"version {scorer.version}: table {name} has weights that are not finite")
