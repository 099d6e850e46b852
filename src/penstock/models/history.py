"""Versions of a model folder that were valid before: kept for whoever still reads them, and to go back to.

    model/versions/v000041.json   the manifest that was valid; its files stay as long as it does
    model/pin.json                the version that is to be served, whatever is published

All of the newest are kept, and a few older ones; the one that is pinned is kept too.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import ConfigError, ModelError
from penstock.models.manifest import all_files, read_manifest, table_layers
from penstock.storage import storage_errors, write_atomically

__all__ = [
    "PIN",
    "VERSIONS",
    "VERSION_NAME",
    "History",
    "KeepVersions",
    "Kept",
    "Pin",
    "kept_versions",
    "list_versions",
    "new_pin",
    "pin_version",
    "read_pin",
    "read_version",
    "version_file",
]

VERSIONS = "versions"
PIN = "pin.json"
VERSION_NAME = re.compile(r"v(\d{6,})\.json")
"""Of a manifest that is kept."""


@dataclass(frozen=True, kw_only=True)
class KeepVersions:
    """Which versions stay: the ``newest``, and of those before as many again, spread over ``for_s`` seconds."""

    newest: int = 16
    for_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.newest < 1 or not self.for_s >= 0:
            raise ConfigError(
                f"versions to keep: allowed: 1 or more, for 0 s or more; got {self.newest} and {self.for_s:g} s"
            )


class Pin(msgspec.Struct):
    """The version that is to be served."""

    version: int
    since: str
    reason: str = ""


def version_file(version: int) -> str:
    """Where a version's manifest is kept, relative to the folder."""
    return f"{VERSIONS}/v{version:06d}.json"


def read_version(root: str | Path, version: int) -> dict[str, Any]:
    """The manifest of a version that is kept, or valid.

    Raises:
        ModelError: there is none.
    """
    root = Path(root)
    file = root / version_file(version)
    if not file.exists():
        manifest = read_manifest(root)
        if manifest["version"] == version:
            return manifest
        kept = sorted({*kept_versions(root), manifest["version"]})
        shown = ", ".join(map(str, kept[-8:]))
        raise ModelError(f"{root}: there is no version {version}; the newest that are there: {shown}")
    return read_manifest(root, file)


def read_pin(root: str | Path) -> Pin | None:
    """The pin of a folder, if there is one.

    Raises:
        ModelError: it is damaged.
    """
    file = Path(root) / PIN
    try:
        return msgspec.json.decode(file.read_bytes(), type=Pin)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: damaged: {' '.join(str(error).split())}") from error


def pin_version(root: str | Path, version: int | None, reason: str = "") -> None:
    """Have a version served from now on; None for whatever is newest.

    Raises:
        ModelError: there is no such version.
        StorageError: the folder cannot be written.
    """
    root = Path(root)
    with storage_errors(root, "the pin"):
        if version is None:
            (root / PIN).unlink(missing_ok=True)
            return
        read_version(root, version)
        write_atomically(root / PIN, msgspec.json.encode(new_pin(version, reason)))


def new_pin(version: int, reason: str) -> Pin:
    """A pin of this moment."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Pin(version, since, reason)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is told of a version that is kept."""

    version: int
    created: str
    rows: int
    changed: int | None
    """Rows that it changed, or removed, of the version before it; None for one that has all anew."""
    logloss: float | None
    newest_event: str | None
    notes: list[str]


def list_versions(root: str | Path) -> list[Kept]:
    """Versions that are there, newest first.

    Raises:
        ModelError: there is no model there, or a damaged one.
    """
    root = Path(root)
    valid, pin = read_manifest(root), read_pin(root)
    found = []
    for version in sorted({*kept_versions(root), valid["version"]}, reverse=True):
        manifest = valid if version == valid["version"] else read_version(root, version)
        last = [table_layers(table)[-1] for table in manifest["tables"].values()]
        new = [entry for layer in last for entry in (*layer["files"], *layer["removed"])]
        one_layer = all(len(table_layers(table)) == 1 for table in manifest["tables"].values())
        changed = sum(entry.get("rows") or 0 for entry in new if entry["path"].startswith(f"v{version:06d}/"))
        progressive = (manifest.get("metrics") or {}).get("progressive") or {}
        notes = ["newest"] if version == valid["version"] else []
        if pin is not None and pin.version == version:
            notes.append(f"pinned since {pin.since}" + (f": {pin.reason}" if pin.reason else ""))
        found.append(
            Kept(
                version=version,
                created=manifest["created"],
                rows=sum(int(table["rows"]) for table in manifest["tables"].values()),
                changed=None if one_layer else changed,
                logloss=progressive.get("logloss"),
                newest_event=(manifest.get("lineage") or {}).get("newest_event"),
                notes=notes,
            )
        )
    return found


class History:
    """Keeps versions of one folder."""

    def __init__(self, root: Path, keep: KeepVersions | None) -> None:
        """``keep`` says which stay; None for all."""
        self._root, self._keep = root, keep
        self._known: dict[int, tuple[float, frozenset[str]]] = {}
        """Of versions that were read before: when they were written, and the folders of their files."""

    @staticmethod
    def of(root: Path) -> History | None:
        """The folder's, if it keeps versions; nothing that was published is forgotten by it."""
        return History(root, None) if (root / VERSIONS).is_dir() else None

    def add(self, manifest: Mapping[str, Any]) -> None:
        """Keep a version that is about to become valid."""
        (self._root / VERSIONS).mkdir(exist_ok=True)
        file = self._root / version_file(manifest["version"])
        write_atomically(file, msgspec.json.encode(manifest))

    def prune(self) -> set[str]:
        """Forget versions that need not stay; the folders of files that those which stay refer to."""
        there = sorted(kept_versions(self._root), reverse=True)
        for version in there:
            if version not in self._known:
                with contextlib.suppress(ModelError):
                    manifest = read_manifest(self._root, self._root / version_file(version))
                    folders = frozenset(entry["path"].split("/")[0] for entry in all_files(manifest))
                    self._known[version] = _seconds(manifest["created"]), folders
        with contextlib.suppress(ModelError):
            pin = read_pin(self._root)
            kept = self._kept(there) | ({pin.version} if pin is not None else set())
            for version in there:
                if version not in kept:
                    (self._root / version_file(version)).unlink(missing_ok=True)
                    self._known.pop(version, None)
        return {folder for _, folders in self._known.values() for folder in folders}

    def _kept(self, there: list[int]) -> set[int]:
        """Of versions, newest first: the newest, and one of each slice of time before."""
        if self._keep is None:
            return set(there)
        kept = set(there[: self._keep.newest])
        now_s, slice_s = time.time(), self._keep.for_s / self._keep.newest
        slices: dict[int, int] = {}
        for version in there[self._keep.newest :]:
            written_s, _ = self._known.get(version, (0.0, frozenset()))
            if now_s - written_s <= self._keep.for_s:
                slices[int(written_s // slice_s)] = version  # the oldest of a slice, so that it stays the same one
        return kept | set(slices.values())


def kept_versions(root: Path) -> list[int]:
    """Numbers of versions that are kept, in any order."""
    with contextlib.suppress(FileNotFoundError):
        return [int(m[1]) for p in (root / VERSIONS).iterdir() if (m := VERSION_NAME.fullmatch(p.name))]
    return []


def _seconds(text: str) -> float:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
