"""A server that follows a folder: each version that a trainer publishes there answers, once loaded and sound.

What is being loaded is apart from what answers, and takes its place between two requests. A version that is torn,
or does badly on recent rows, is refused with the reason, and the one before goes on answering; it is looked at
again now and then until it is whole, or there is a newer one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from penstock.errors import ModelError, PenstockError
from penstock.models.files import read_checked
from penstock.models.manifest import parse_manifest
from penstock.models.remote import is_url
from penstock.serve.scorer import Scorer
from penstock.serve.versions.gate import Gate
from penstock.serve.versions.load import Loader
from penstock.serve.versions.source import Versions

__all__ = ["Follower"]

_AGAIN_S, _AGAIN_MOST_S = 1.0, 30.0
"""Until a version that was refused is looked at again: at first, and after many times."""
_log = logging.getLogger(__name__)


class Follower:
    """One model of a server, and the thread that looks for its next version."""

    def __init__(
        self,
        name: str,
        versions: Versions,
        loader: Loader,
        *,
        version: int | None = None,
        gate: Gate | None = None,
    ) -> None:
        """``version`` is the one to serve, whatever is published; None for the pinned, else the newest."""
        self.name, self.versions, self.version = name, versions, version
        self.fixed = False
        """Whether no other version is looked for, only whether what answers was found damaged."""
        self.refused = 0
        """Versions that were not switched to."""
        self.scorer: Scorer | None = None
        """What answers."""
        self.check: Callable[[Scorer], object] = lambda scorer: None
        """Raises what else speaks against a version."""
        self._loader, self._gate = loader, gate or Gate()
        self._refused: tuple[tuple[dict[str, Any], bool] | None, str] | None = None
        """What was wanted, and why it was not switched to."""
        self._again_s, self._wait_s = 0.0, _AGAIN_S
        self._pinned: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._switch: Callable[[Scorer], None] | None = None
        self._on_refused: Callable[[], object] = lambda: None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"penstock-follow-{name}", daemon=True)

    def first(self, *, wait: bool, say: Callable[[str], None]) -> Scorer:
        """The version to begin with; with ``wait``, once there is one.

        Raises:
            ModelError: there is none, or it is damaged.
            StorageError: the store cannot be reached.
        """
        waited = False
        while wait and not self.versions.there():
            if not waited:
                there = is_url(self.versions.place) or self.versions.root.exists()
                say(f"waiting for a model in {self.versions.place}{'' if there else ', which is not there yet'}")
            waited = True
            time.sleep(self.versions.poll_s)
        self.versions.changed()
        while True:
            wanted = self.versions.wanted(self.version)
            manifest, chosen = wanted
            try:
                self.scorer = self._load(manifest)
                break
            except ModelError as error:
                if self.versions.wanted(self.version)[0] != manifest:
                    continue  # it was replaced meanwhile
                self.scorer = self._one_before(manifest) if wait and not chosen else None
                if self.scorer is None:
                    raise
                self._refuse(wanted, str(error))
                break
        self._tell_choice(chosen)
        self._clean()
        return self.scorer

    def _load(self, manifest: dict[str, Any]) -> Scorer:
        self.versions.fetch(manifest)
        return self._loader.load(manifest)

    def _one_before(self, manifest: dict[str, Any]) -> Scorer | None:
        """The newest version before that can be loaded, if there is one."""
        for before in self.versions.before(manifest["version"]):
            with contextlib.suppress(ModelError):
                return self._load(before)
        return None

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        switch: Callable[[Scorer], None],
        refused: Callable[[], object] = lambda: None,
    ) -> None:
        """Call ``switch`` in the loop's thread with each new version, ``refused`` for each that is not."""
        self._loop, self._switch, self._on_refused = loop, switch, refused
        self._thread.start()

    def stop(self) -> None:
        """Have the thread end; what it is loading is not switched to any more."""
        self._stop.set()

    def look(self) -> Scorer | None:
        """The version to serve, if it is another than the one that answers and can be switched to."""
        answering = self.scorer
        damaged = answering is not None and answering.damaged
        due = self._refused is not None and time.monotonic() >= self._again_s
        if not (damaged or due or (not self.fixed and self.versions.changed())):
            return None
        before = None if damaged else answering
        wanted = None
        try:
            manifest, chosen = wanted = self.versions.wanted(self.version)
            if answering is not None and manifest == answering.manifest and not damaged:
                self._refused = None
                self._tell_choice(chosen)
                return None
            if self._refused is not None and wanted == self._refused[0] and not due:
                return None
            self.versions.fetch(manifest)
            scorer = self._loader.load(manifest, before)
            if not chosen:  # whoever goes back to a version has his reasons
                self._gate.check(scorer, before, self._recent(manifest))
            self.check(scorer)
        except PenstockError as error:
            self._refuse(wanted, str(error))
            return None
        if self._refused is not None:
            _log.warning("model %s: version %s answers", self.name, scorer.version)
        self._refused, self._wait_s, self.scorer = None, _AGAIN_S, scorer
        self._tell_choice(chosen)
        self._clean()
        return scorer

    def _tell_choice(self, chosen: bool) -> None:
        """Say that somebody has chosen a version, or does no longer; not each version that comes."""
        if self.scorer is None or self.version is not None:
            return
        before, self._pinned = self._pinned, self.scorer.version if chosen else None
        if self._pinned != before:
            what = "to which it is pinned" if chosen else "and follows the newest again"
            _log.warning("model %s: answers by version %s, %s", self.name, self.scorer.version, what)

    def _refuse(self, wanted: tuple[dict[str, Any], bool] | None, reason: str) -> None:
        if (wanted, reason) != self._refused:  # once, not at every look
            self._refused, self._wait_s = (wanted, reason), _AGAIN_S
            self.refused += 1
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                self._on_refused()
            version = self.scorer.version if self.scorer is not None else "none"
            refused = f"version {wanted[0]['version']} is refused, " if wanted is not None else ""
            _log.error("model %s: %sversion %s goes on answering: %s", self.name, refused, version, reason)
        else:
            self._wait_s = min(2 * self._wait_s, _AGAIN_MOST_S)
        self._again_s = time.monotonic() + self._wait_s
        self.versions.distrust()

    def _recent(self, manifest: Mapping[str, Any]) -> pa.Table | None:
        entry = parse_manifest(self.versions.root, manifest).recent
        if entry is None:
            return None
        try:
            return pa.Table.from_batches(list(read_checked(self.versions.root, entry, None)))
        except (FileNotFoundError, pa.ArrowException) as error:
            raise ModelError(f"{self.versions.root / entry.path}: cannot be read: {error}") from error

    def _clean(self) -> None:
        if self.scorer is not None:
            self._loader.forget_but({self.name: self.scorer})
            self.versions.forget_but([self.scorer.manifest])

    def _run(self) -> None:
        while not self._stop.wait(self.versions.poll_s):
            try:
                scorer = self.look()
            except Exception:  # a defect of ours: it is told, and what answers goes on
                _log.exception("model %s: %s could not be looked at", self.name, self.versions.place)
                continue
            if scorer is not None and self._loop is not None and self._switch is not None:
                with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                    self._loop.call_soon_threadsafe(self._switch, scorer)
