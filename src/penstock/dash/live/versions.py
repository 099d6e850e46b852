"""The versions that were published in a run's folder: by the manifest there, and those before it that are kept."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Versions", "seconds_since_1970"]

KEPT = 100
"""Versions that are told of, the newest."""
_NBYTES = 256 << 20


class _Lineage(msgspec.Struct):
    rows: int | None = None
    newest_event: str | None = None
    position: dict[str, Any] = {}


class _Table(msgspec.Struct):
    rows: int = 0


class _Manifest(msgspec.Struct):
    """What is looked at of a manifest."""

    version: int
    created: str = ""
    metrics: dict[str, dict[str, float | None] | None] = {}
    lineage: _Lineage = msgspec.field(default_factory=_Lineage)
    tables: dict[str, _Table] = {}


class _Pin(msgspec.Struct):
    version: int | None = None


class Versions:
    """Of one folder; reads a manifest again only when it has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[int, int]] = {}
        self.seen: dict[int, dict[str, Any]] = {}
        """By version, as the page gets it; also those that went since this began to look."""
        self.pinned: int | None = None
        """The version that is to be served, whatever is published; None for the newest."""

    def refresh(self) -> None:
        """Look at the folder; what cannot be read is not there."""
        try:
            before = sorted((self._folder / "versions").glob("v*.json"))[-KEPT:]
        except OSError:
            before = []
        for path in [*before, self._folder / "manifest.json"]:
            self._look(path)
        for version in sorted(self.seen)[:-KEPT]:
            del self.seen[version]
        self.pinned = self._pin()

    @property
    def newest(self) -> int | None:
        """The newest that is told of."""
        return max(self.seen, default=None)

    def shown(self) -> list[dict[str, Any]]:
        """Newest first."""
        return [self.seen[version] for version in sorted(self.seen, reverse=True)]

    def _look(self, path: Path) -> None:
        try:
            stat = path.stat()
            stamp = stat.st_mtime_ns, stat.st_size
            if self._read.get(path) == stamp or stat.st_size > _NBYTES:
                return
            found = msgspec.json.decode(path.read_bytes(), type=_Manifest)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        self._read[path] = stamp
        if path.name == "manifest.json" and found.version < (self.newest or 0):
            self.seen.clear()  # another run began here
        position = found.lineage.position
        progressive, held = found.metrics.get("progressive") or {}, found.metrics.get("holdout") or {}
        self.seen[found.version] = {
            "version": found.version,
            "created": found.created,
            "created_s": seconds_since_1970(found.created),
            "rows": found.lineage.rows,
            "features": sum(table.rows for table in found.tables.values()),
            "logloss": progressive.get("logloss"),
            "auc": progressive.get("auc"),
            "calibration": progressive.get("calibration"),
            "holdout_logloss": held.get("logloss"),
            "holdout_auc": held.get("auc"),
            "watermark": _text(position.get("watermark")),
            "newest_event": found.lineage.newest_event,
        }

    def _pin(self) -> int | None:
        try:
            return msgspec.json.decode((self._folder / "pin.json").read_bytes(), type=_Pin).version
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


def seconds_since_1970(text: str) -> float | None:
    """A time as manifests have it, ISO 8601; None where it is none."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
