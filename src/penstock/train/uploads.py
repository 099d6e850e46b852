"""Published versions copied to another store beside the training: the newest, whenever the one before is there."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError, StorageError
from penstock.models.remote import RemoteFolder

__all__ = ["Uploads"]

_AGAIN_S = 2.0
"""Until a copy that failed is tried again, if no newer version comes."""
_LAST_S = 30.0
"""For what is being copied, once nothing more is wanted."""
_log = logging.getLogger(__name__)


class Uploads:
    """A thread that copies versions of a local folder to a URL."""

    def __init__(self, root: Path, url: str) -> None:
        """Begins with the first version that it is given.

        Raises:
            ConfigError: nobody here knows such URLs.
        """
        self._root, self._remote = root, RemoteFolder(url)
        self._state = threading.Condition()
        self._newest: dict[str, Any] | None = None
        """That is not there yet."""
        self._closing = False
        self._failed: str | None = None
        self._thread = threading.Thread(target=self._run, name="penstock-uploads", daemon=True)

    def put(self, manifest: dict[str, Any]) -> None:
        """Have a version copied, instead of one that still waits for it."""
        with self._state:
            self._newest = manifest
            self._state.notify_all()
            if not self._thread.is_alive() and not self._closing:
                self._thread.start()

    def close(self, patience_s: float = 30.0) -> None:
        """Wait for the last version.

        Raises:
            StorageError: it could not be copied in time.
        """
        with self._state:
            self._closing = True
            self._state.notify_all()
            if self._failed is not None:
                _log.warning("trying for %g s more to copy the last version to %s", patience_s, self._remote.url)
            done = self._state.wait_for(lambda: self._newest is None, patience_s)
        self.stop()
        if not done:
            why = f": {self._failed}" if self._failed else ""
            raise StorageError(f"{self._remote.url}: the last version was not copied{why}; it is in {self._root}")

    def stop(self) -> None:
        """Copy nothing more; what is being copied is."""
        with self._state:
            self._closing, self._newest = True, None
            self._state.notify_all()
        if self._thread.is_alive():
            self._thread.join(_LAST_S)

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._newest is not None or self._closing)
                manifest = self._newest
            if manifest is None:
                return
            failed = None
            try:
                self._remote.put(self._root, manifest)
            except PenstockError as error:
                failed = str(error)
            with self._state:
                if failed is None and self._newest is manifest:
                    self._newest = None
                if failed is not None and failed != self._failed:
                    _log.warning("version %s: %s; it is tried again", manifest["version"], failed)
                self._failed = failed
                self._state.notify_all()
                if failed is not None:
                    self._wait_for_another(manifest)

    def _wait_for_another(self, manifest: dict[str, Any]) -> None:
        """Until there is a newer version to copy, or nothing, or it is time to try again."""
        self._state.wait_for(lambda: self._newest is not manifest, _AGAIN_S)
