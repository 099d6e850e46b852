"""Versions of a model that is being trained, published while it learns: all rows once, then what has changed.

Each version's manifest names a base and the layers on it, oldest first, so a reader that has the version before
reads one layer more, and one that comes late reads them all. When layers become many they are merged, and when
their rows become many all are written anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.batch import Keys
from penstock.errors import StorageError
from penstock.models.base import Model
from penstock.models.commit import commit_manifest, discard_version, new_version
from penstock.models.files import write_names, write_recent, write_removed, write_rows
from penstock.models.history import History, KeepVersions
from penstock.models.manifest import build_manifest, table_layers
from penstock.storage import storage_errors
from penstock.table import Table, unique_keys

__all__ = ["CheckpointPublisher", "Publisher"]

_LAYERS = 32
"""On a base, until they are merged."""
_CHANGED = 0.25
"""Of all rows, changed since the base was written, until there is a new one."""

_Entries = Sequence[Mapping[str, Any]]


class _Published:
    """What has been published of one table."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self.changed: list[Keys] = []
        """Since the base."""
        self.removed: list[Keys] = []
        self.pending: list[Keys] = []
        """Since the last version."""
        self.gone: list[Keys] = []

    def take(self, table: Table) -> None:
        """What happened since the last version; it stays at hand until a version that has it is committed."""
        self.pending.append(table.take_changed())
        self.gone.append(table.take_removed())

    def changed_rows(self) -> int:
        """At most."""
        if len(self.changed) > 4:
            self.changed = [_union(self.changed)]
        return sum(map(len, self.changed)) + sum(map(len, self.pending))

    def done(self, layers: list[dict[str, Any]], *, base: bool) -> None:
        """A version with these layers is valid."""
        self.layers = layers
        self.changed = [] if base else [*self.changed, *self.pending]
        self.removed = [] if base else [*self.removed, *self.gone]
        self.pending, self.gone = [], []


class CheckpointPublisher:
    """Publishes checkpoints of a run that writes them anyway, under the same disk's other folder: by links."""

    def __init__(self, root: str | Path, keep: KeepVersions | None = None) -> None:
        self._root = Path(root)
        self._history = History(self._root, keep or KeepVersions())
        self._linked: dict[str, str] = {}
        """By path in the checkpoint, the path here."""

    def publish(self, checkpoint: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Make the model of a checkpoint's manifest the folder's newest version; returns its manifest here.

        Raises:
            StorageError: it could not be written; the version before is valid.
        """
        version, folder = new_version(self._root)
        linked: dict[str, str] = {}
        try:
            with storage_errors(self._root):
                tables = {
                    name: {**table, **self._table(checkpoint, folder, table, linked)}
                    for name, table in manifest["tables"].items()
                }
            found = {key: value for key, value in manifest.items() if key != "progress"}
            found |= {"version": version, "tables": tables, "names": None}
            commit_manifest(self._root, found, self._history)
        except BaseException:
            discard_version(self._root, version)
            raise
        self._linked = linked
        return found

    def _table(
        self, checkpoint: Path, folder: Path, table: Mapping[str, Any], linked: dict[str, str]
    ) -> dict[str, Any]:
        if "layers" not in table:
            return {"files": [self._file(checkpoint, folder, entry, linked) for entry in table["files"]]}
        kinds = ("files", "removed")
        return {
            "layers": [
                {kind: [self._file(checkpoint, folder, entry, linked) for entry in layer[kind]] for kind in kinds}
                for layer in table_layers(table)
            ]
        }

    def _file(
        self, checkpoint: Path, folder: Path, entry: Mapping[str, Any], linked: dict[str, str]
    ) -> dict[str, Any]:
        path = self._linked.get(entry["path"])
        if path is None or not (self._root / path).exists():
            path = f"{folder.name}/{entry['path'].replace('/', '-')}"
            try:
                (self._root / path).hardlink_to(checkpoint / entry["path"])
            except OSError:  # a disk that knows no links
                shutil.copyfile(checkpoint / entry["path"], self._root / path)
                with (self._root / path).open("rb") as handle:
                    os.fsync(handle.fileno())
        linked[entry["path"]] = path
        return {**entry, "path": path}


class Publisher:
    """Publishes one model in one folder; nobody else takes what changed in its tables."""

    def __init__(self, root: str | Path, keep: KeepVersions | None = None) -> None:
        """Begins with all rows, whatever is there."""
        self._root = Path(root)
        self._history = History(self._root, keep or KeepVersions())
        self._tables: dict[str, _Published] = {}
        self._names: Mapping[str, Any] | None = None

    def publish(self, model: Model, recent: pa.Table | None = None) -> dict[str, Any]:
        """Make the model as it is now the folder's newest version; returns its manifest.

        ``recent`` are labelled rows that were learnt last, for those who want to see how good it is.

        Raises:
            StorageError: it could not be written; the version before is valid, and the next will have all of it.
        """
        self._tables = self._tables or {name: _Published() for name in model.tables()}
        for name, table in model.tables().items():
            self._tables[name].take(table)
        version, folder = new_version(self._root)
        try:
            base, merge = self._what_to_write(model)
            layers = {
                name: self._layers(table, folder, name, base, merge) for name, table in model.tables().items()
            }
            if base or self._names is None:
                self._names = _name(model, folder)
            manifest = build_manifest(
                model.to_spec(),
                version=version,
                layers=layers,
                rows={name: len(table) for name, table in model.tables().items()},
                names=self._names,
                recent=write_recent(recent, folder) if recent is not None else None,
                metadata=model.metadata,
            )
            commit_manifest(self._root, manifest, self._history)
        except BaseException:
            discard_version(self._root, version)
            self._names = None
            raise
        for name, published in self._tables.items():
            published.done(layers[name], base=base)
        return manifest

    def _what_to_write(self, model: Model) -> tuple[bool, bool]:
        """Whether all rows, and whether all that changed since the base."""
        published = self._tables.values()
        if not all(each.layers for each in published):
            return True, False
        if sum(each.changed_rows() for each in published) > _CHANGED * model.rows:
            return True, False
        if not all(self._is_there(each.layers[0], checked=False) for each in published):
            return True, False
        for each in published:
            # What was written last is read once more, so that a torn file is not what others wait for.
            whole = all(self._is_there(layer, checked=layer is each.layers[-1]) for layer in each.layers[1:])
            if not whole or len(each.layers) > _LAYERS:
                return False, True
        return False, False

    def _layers(self, table: Table, folder: Path, name: str, base: bool, merge: bool) -> list[dict[str, Any]]:
        published = self._tables[name]
        if base:
            return [{"files": write_rows(table, folder, name), "removed": []}]
        before = published.layers[:1] if merge else published.layers
        changed = [*published.changed, *published.pending] if merge else published.pending
        gone = [*published.removed, *published.gone] if merge else published.gone
        removed = _without_rows(table, _union(gone))
        keys = np.setdiff1d(_union(changed), removed, assume_unique=True) if len(removed) else _union(changed)
        layer = {
            "files": write_rows(table, folder, name, keys=keys),
            "removed": write_removed(folder, name, table.layout, removed),
        }
        return [*before, layer] if layer["files"] or layer["removed"] else before

    def _is_there(self, layer: Mapping[str, _Entries], *, checked: bool) -> bool:
        """Whether a layer's files are as they were written: by their sizes, or read once more."""
        for entry in (*layer["files"], *layer["removed"]):
            path = self._root / entry["path"]
            try:
                if path.stat().st_size != entry["nbytes"]:
                    return False
                if checked:
                    with path.open("rb") as handle:
                        if hashlib.file_digest(handle, "sha256").hexdigest() != entry["sha256"]:
                            return False
            except FileNotFoundError:
                return False
            except OSError as error:
                raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
        return True


def _union(parts: Sequence[Keys]) -> Keys:
    """Distinct keys, rising."""
    if len(parts) == 1:
        return parts[0]
    return unique_keys(np.concatenate([np.empty(0, np.uint64), *parts]))[0]


def _without_rows(table: Table, keys: Keys) -> Keys:
    """Those that have not come back."""
    if not len(keys):
        return keys
    return keys[~table.contains(keys)]


def _name(model: Model, folder: Path) -> dict[str, Any] | None:
    """Names of the strongest features as they are now; later ones are named anew, from the same sample."""
    sample = model.sample
    written = write_names(model.name_features(), folder)
    if sample is not None:
        model.keep_sample(sample)
    return written
