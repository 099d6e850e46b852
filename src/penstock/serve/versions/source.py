"""Where versions of a model come from: a folder, or a store from which they are copied to one.

Which is to be served is the newest, unless the folder's pin, or whoever started the server, names another.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from penstock.errors import ModelError
from penstock.models import read_manifest, read_pin, read_version
from penstock.models.history import kept_versions
from penstock.models.manifest import all_files
from penstock.models.remote import RemoteFolder

__all__ = ["LocalVersions", "RemoteVersions", "Versions"]


class Versions(Protocol):
    """Versions of one model."""

    place: str
    root: Path
    """The local folder that their files are in."""
    poll_s: float
    """Between two looks."""

    def there(self) -> bool:
        """Whether there is any."""

    def changed(self) -> bool:
        """Whether there may be another one since this was asked before."""

    def wanted(self, version: int | None) -> tuple[dict[str, Any], bool]:
        """The manifest of the version to serve: of a given one, else the pinned, else the newest; and whether
        somebody has chosen it.

        Raises:
            ModelError: there is none.
            StorageError: the store cannot be reached.
        """

    def before(self, version: int) -> Iterator[dict[str, Any]]:
        """Manifests of versions that were valid before, newest first.

        Raises:
            ModelError: one is damaged.
            StorageError: the store cannot be reached.
        """

    def fetch(self, manifest: dict[str, Any]) -> None:
        """Have its files in ``root``.

        Raises:
            ModelError: one is missing or damaged.
            StorageError: the store cannot be reached.
        """

    def distrust(self) -> None:
        """Something was damaged: look at copies again."""

    def forget_but(self, manifests: list[dict[str, Any]]) -> None:
        """Remove copies of files that none of these names."""


class LocalVersions:
    """Of a folder that a trainer writes."""

    poll_s = 0.1

    def __init__(self, folder: str | Path) -> None:
        self.root = Path(folder)
        self.place = str(folder)
        self._seen: object = None

    def there(self) -> bool:
        """Whether there is any."""
        return (self.root / "manifest.json").exists()

    def changed(self) -> bool:
        """Whether there may be another one since this was asked before."""
        now = [_stamp(self.root / name) for name in ("manifest.json", "pin.json")]
        changed, self._seen = now != self._seen, now
        return changed

    def wanted(self, version: int | None) -> tuple[dict[str, Any], bool]:
        """See ``Versions``."""
        if version is None:
            pin = read_pin(self.root)
            version = pin.version if pin is not None else None
        if version is None:
            return read_manifest(self.root), False
        return read_version(self.root, version), True

    def before(self, version: int) -> Iterator[dict[str, Any]]:
        """See ``Versions``."""
        return _before(self.root, version)

    def fetch(self, manifest: dict[str, Any]) -> None:
        """They are there."""

    def distrust(self) -> None:
        """Nothing is a copy."""

    def forget_but(self, manifests: list[dict[str, Any]]) -> None:
        """Nothing is a copy."""


class RemoteVersions:
    """Of a URL; copies are in a folder of one's own."""

    poll_s = 0.5

    def __init__(self, url: str, root: Path) -> None:
        self.place, self.root = url, root
        self._remote = RemoteFolder(url)

    def there(self) -> bool:
        """Whether there is any."""
        return self._remote.read("manifest.json") is not None

    def changed(self) -> bool:
        """Only by looking."""
        return True

    def wanted(self, version: int | None) -> tuple[dict[str, Any], bool]:
        """See ``Versions``."""
        if version is None:
            pin = self._remote.pin()
            version = pin.version if pin is not None else None
        return self._remote.fetch_manifest(self.root, version), version is not None

    def before(self, version: int) -> Iterator[dict[str, Any]]:
        """See ``Versions``."""
        self._remote.fetch_history(self.root)
        return _before(self.root, version)

    def fetch(self, manifest: dict[str, Any]) -> None:
        """Copy what is not there yet."""
        self._remote.fetch_files(manifest, self.root)

    def distrust(self) -> None:
        """Look at each copy's checksum again."""
        self._remote.distrust()

    def forget_but(self, manifests: list[dict[str, Any]]) -> None:
        """Remove copies of files that none of these names."""
        kept = {entry["path"].split("/")[0] for manifest in manifests for entry in all_files(manifest)}
        for folder in self.root.glob("v[0-9]*"):
            if folder.is_dir() and folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def _before(root: Path, version: int) -> Iterator[dict[str, Any]]:
    for each in sorted(kept_versions(root), reverse=True):
        if each < version:
            with contextlib.suppress(ModelError):  # a damaged one is none to begin with
                yield read_version(root, each)


def _stamp(path: Path) -> tuple[int, ...] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size
    return None
