"""Versions of a model folder: begun, filled by one process or many, and committed or discarded by one.

Replacing ``manifest.json`` is the commit. Where a folder keeps versions that were before (``history``), they stay.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import ConfigError, ModelError, StorageError
from penstock.kill import kill_point
from penstock.models.history import History, version_file
from penstock.models.manifest import FORMAT, all_files, read_manifest
from penstock.storage import storage_errors, sync_folder, write_atomically

__all__ = [
    "EXAMPLES",
    "check_not_foreign",
    "commit_manifest",
    "discard_version",
    "new_version",
]

EXAMPLES = "_examples.json"
"""Is in a folder of a pipeline's examples, which are replaced as a whole."""
_VERSION = re.compile(r"v(\d{6}|[1-9]\d{6,})")


def new_version(root: str | Path) -> tuple[int, Path]:
    """Begin a version that is not there yet: its number, and its folder, empty. Makes ``root`` if need be.

    Raises:
        ConfigError: another program's manifest stands there.
        StorageError: the folder cannot be made.
    """
    root = Path(root)
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        check_not_foreign(root)
        version = max(_versions(root), default=0) + 1
        while True:
            folder = root / f"v{version:06d}"
            try:
                folder.mkdir()
                return version, folder
            except FileExistsError:
                version += 1  # somebody else saves at the same time


def commit_manifest(root: str | Path, manifest: Mapping[str, Any], history: History | None = None) -> None:
    """Make a version the valid one, in one step that survives a power cut; then remove what nothing refers to.

    Every file that it names must have been written by now (their writers have made them durable). Folders of
    older versions stay as long as the manifest names a file there, or that of a version that is kept: by
    ``history``, or by the folder's own where it has one.

    Raises:
        StorageError: a file is not there, or the disk is full; the manifest before is still the valid one.
        ConfigError: another program's manifest stands there.
    """
    root = Path(root)
    with storage_errors(root):
        check_not_foreign(root)
        entries = all_files(manifest)
        for entry in entries:
            _check_there(root, entry)
        folder = root / f"v{manifest['version']:06d}"
        sync_folder(folder)
        kill_point(f"{root}: files written, manifest not")
        history = history if history is not None else History.of(root)
        if history is not None:
            history.add(manifest)
        write_atomically(root / "manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        kill_point(f"{root}: manifest replaced, older versions not removed")
        kept = {folder.name, *(entry["path"].split("/")[0] for entry in entries)}
        kept |= history.prune() if history is not None else set()
        for version, old in _versions(root).items():
            # A newer one is being written by somebody.
            if old.name not in kept and version < manifest["version"]:
                shutil.rmtree(old, ignore_errors=True)
        for left in root.glob(".manifest.json.*.tmp"):
            left.unlink(missing_ok=True)


def discard_version(root: str | Path, version: int) -> None:
    """Remove the folder of a version that failed, unless it was committed."""
    root = Path(root)
    with contextlib.suppress(ModelError):
        if read_manifest(root)["version"] == version:
            return
    with contextlib.suppress(OSError):
        (root / version_file(version)).unlink(missing_ok=True)
    shutil.rmtree(root / f"v{version:06d}", ignore_errors=True)


def _versions(root: Path) -> dict[int, Path]:
    """Folders of versions, by number."""
    return {int(found[1]): path for path in root.iterdir() if (found := _VERSION.fullmatch(path.name))}


def check_not_foreign(root: Path) -> None:
    """No other program's ``manifest.json`` stands there, to be overwritten.

    Raises:
        ConfigError: one does.
    """
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        manifest = msgspec.json.decode((root / "manifest.json").read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ConfigError(f"{root}: has a manifest.json of something else; name another folder for the model")
    if (root / EXAMPLES).exists():
        raise ConfigError(f"{root}: has examples of a pipeline; name another folder for the model")


def _check_there(root: Path, entry: Mapping[str, Any]) -> None:
    path = root / entry["path"]
    try:
        nbytes = path.stat().st_size
    except FileNotFoundError as error:
        raise StorageError(
            f"{path}: was written, but is not there; all processes must write to one shared folder"
        ) from error
    if nbytes != entry["nbytes"]:
        raise StorageError(f"{path}: must have {entry['nbytes']} bytes, has {nbytes}")
