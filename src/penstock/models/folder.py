"""A model on disk: a folder that DuckDB, Spark and pandas can read, replaced by one atomic step.

    model/
      manifest.json                 what is valid: format, plan, optimizer, metrics, lineage, files, checksums
      v000002/weights-0000-0511.parquet     rows of segments 0 to 511, by rising key (so by rising segment)
      v000002/names.parquet         column=value of some keys

Contents go to a new version folder (``files``); then the manifest is replaced (``manifest``), and that is the
commit. A reader that finds its version gone reads the manifest again. A segment never spans two files. A
checkpoint of a table may be layers: all rows, then those that changed since, and the keys of those that went.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError, ModelError, PenstockError
from penstock.features import FeaturePlan
from penstock.models.base import Model, model_from_spec
from penstock.models.commit import commit_manifest, discard_version, new_version
from penstock.models.files import REMOVED, read_checked, write_names, write_rows
from penstock.models.history import read_version
from penstock.models.manifest import FileEntry, Manifest, build_manifest, parse_manifest, read_manifest
from penstock.optim import optimizer_from_dict
from penstock.table import Layout

__all__ = ["load_model", "load_shell", "load_version", "read_rows", "save_model"]

_NO_KEYS = np.empty(0, np.uint64)


def save_model(model: Model, path: str | Path, *, progress: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the model and commit it; ``progress`` is where a run stands, in a checkpoint. Returns the manifest.

    Raises:
        StorageError: see ``Model.save``.
        ModelError: the model has never been fitted; nothing is written.
    """
    if model.plan is None:
        raise ModelError("a model that has not been fitted cannot be saved: it knows no columns yet")
    spec = model.to_spec()
    version, folder = new_version(path)
    try:
        layers = {name: [{"files": write_rows(table, folder, name)}] for name, table in model.tables().items()}
        manifest = build_manifest(
            spec,
            version=version,
            layers=layers,
            rows={name: len(table) for name, table in model.tables().items()},
            # The strongest features are those at the end of the run.
            names=write_names(model.names if progress is not None else model.name_features(), folder),
            metadata=model.metadata,
            progress=progress,
        )
        commit_manifest(path, manifest)
    except BaseException:
        discard_version(path, version)
        raise
    return manifest


def load_model(path: str | Path, *, slots: int | None = None, version: int | None = None) -> Model:
    """Read a model of any registered kind, checking every byte against its checksum; or, of a model that was
    published while it learnt, a ``version`` that was valid before.

    Raises:
        ModelError: no model there, a damaged file, or a format newer than this code; the message names the file.
    """
    return load_version(path, slots=slots, version=version)[0]


def load_version(
    path: str | Path, *, slots: int | None = None, version: int | None = None
) -> tuple[Model, dict[str, Any]]:
    """``load_model``, and the manifest of the version that it read.

    Raises:
        ModelError: as ``load_model``.
    """
    root = Path(path)
    manifest = read_manifest(root) if version is None else read_version(root, version)
    while True:
        try:
            return _load(root, manifest, slots), manifest
        except FileNotFoundError as error:
            # A writer may have replaced the model meanwhile.
            again = read_manifest(root)
            if again == manifest or version is not None:
                raise _missing(error) from error
            manifest = again


def read_rows(
    root: str | Path, manifest: Mapping[str, Any], table: str, segments: Collection[int] | None = None
) -> Iterator[tuple[Keys, Floats]]:
    """Rows of a table of a model folder, in parts: keys u64[n] and words f32[n, width], for ``Table.insert``.

    They come layer by layer, so a later row of a key replaces an earlier one; rows of keys that were removed since
    are left out. With ``segments`` only rows of these: what holds none of them is not read, or not decoded.

    Raises:
        ModelError: a file is damaged or missing, or the manifest has no such table.
        ConfigError: the table has no such segments, or an optimizer that is not known here.
    """
    root = Path(root)
    contents = parse_manifest(root, manifest)
    try:
        yield from _read_rows(root, contents, table, segments)
    except FileNotFoundError as error:
        raise _missing(error) from error
    except OSError as error:
        raise ModelError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error


def load_shell(root: str | Path, manifest: Mapping[str, Any]) -> Model:
    """The model of a manifest, without its rows: for who looks these up elsewhere.

    Raises:
        ModelError: the manifest is damaged, or of a model that is not known here.
    """
    with _damaged(Path(root) / "manifest.json"):
        model = model_from_spec(_spec_of(parse_manifest(root, manifest), Path(root)), slots=1)
    model.metadata = {key: manifest[key] for key in ("metrics", "lineage") if key in manifest}
    return model


def _spec_of(contents: Manifest, root: Path) -> dict[str, Any]:
    tables = {name: contents.table_spec(name) for name in contents.tables}
    if not tables:
        raise ModelError(f"{root / 'manifest.json'}: damaged: there is no table")
    return {
        "kind": contents.model.kind,
        "settings": contents.model.settings,
        "features": FeaturePlan.from_dict(contents.features).to_dict(),
        "optimizer": optimizer_from_dict(contents.optimizer).to_dict(),
        "segments": next(iter(tables.values()))["segments"],
        "tables": tables,
    }


@contextlib.contextmanager
def _damaged(where: Path) -> Iterator[None]:
    """What goes wrong with a manifest's contents, as a ``ModelError``; files that are missing stay so."""
    try:
        yield
    except (ModelError, FileNotFoundError):
        raise
    except PenstockError as error:
        raise ModelError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, OSError, MemoryError) as error:
        message = " ".join(str(error).split())
        raise ModelError(f"{where}: damaged: {type(error).__name__}: {message}") from error


def _load(root: Path, manifest: dict[str, Any], slots: int | None) -> Model:
    where = root / "manifest.json"
    with _damaged(where):
        contents = parse_manifest(root, manifest)
        # Twice the rows, as segments of a table fill up to between 1/2 and 3/4.
        room = {
            name: slots if slots is not None else max(1 << 16, 2 * table.rows)
            for name, table in contents.tables.items()
        }
        model = model_from_spec(_spec_of(contents, root), slots=room)
        for name, table in model.tables().items():
            for keys, words in _read_rows(root, contents, name, None):
                table.insert(keys, words)
            if len(table) != contents.tables[name].rows:
                raise ModelError(f"{where}: {contents.tables[name].rows} rows promised, {len(table)} found")
            table.take_changed()
        if contents.names is not None:
            for batch in read_checked(root, contents.names, None):
                names = batch.to_pydict()
                model.names.update(zip(names["key"], names["name"], strict=True))
    model.metadata = {key: manifest[key] for key in ("metrics", "lineage") if key in manifest}
    return model


def _read_rows(
    root: Path, contents: Manifest, name: str, segments: Collection[int] | None
) -> Iterator[tuple[Keys, Floats]]:
    if name not in contents.tables:
        known = ", ".join(sorted(contents.tables))
        raise ModelError(f"{root / 'manifest.json'}: there is no table {name!r}; there are: {known}")
    layout = Layout.from_dict(contents.table_spec(name))
    wanted = _Wanted(layout, segments)
    layers = contents.tables[name].all_layers()
    # By layer, the keys that a later one removes.
    gone = [_NO_KEYS]
    for layer in reversed(layers[1:]):
        parts = [keys for file in layer.removed for keys, _ in _parts(root, file, wanted, None) if len(keys)]
        gone.append(np.unique(np.concatenate([gone[-1], *parts])))
    for layer, removed in zip(layers, reversed(gone), strict=True):
        for file in layer.files:
            for keys, words in _parts(root, file, wanted, layout):
                if len(removed):
                    at = np.minimum(np.searchsorted(removed, keys), len(removed) - 1)
                    kept = removed[at] != keys
                    keys, words = keys[kept], words[kept]
                if len(keys):
                    yield keys, words


class _Wanted:
    """Which segments a reader asked for."""

    def __init__(self, layout: Layout, segments: Collection[int] | None) -> None:
        self.layout = layout
        self.all = segments is None
        self.mask: NDArray[np.bool_] = np.full(layout.segments, self.all)
        if segments is not None:
            numbers = np.fromiter(segments, np.int64, len(segments))
            if len(numbers) and not 0 <= np.min(numbers) <= np.max(numbers) < layout.segments:
                raise ConfigError(f"segments must be 0 to {layout.segments - 1}, got {sorted(segments)}")
            self.mask[numbers] = True

    def in_runs(self, runs: list[tuple[int, int]] | None) -> bool:
        """Whether rows of these segments may be wanted."""
        return runs is None or any(self.mask[first : last + 1].any() for first, last in runs)

    def between(self, least: int, largest: int) -> bool:
        """Whether rows of keys from one to the other may be."""
        first, last = self.layout.segments_of(np.array([least, largest], np.uint64))
        return bool(self.mask[first : last + 1].any())


def _parts(root: Path, file: FileEntry, wanted: _Wanted, layout: Layout | None) -> Iterator[tuple[Keys, Floats]]:
    """Wanted rows of a file, or keys where there is no layout."""
    runs = file.runs(wanted.layout.segments)
    if not wanted.in_runs(runs):
        return
    promised = np.full(wanted.layout.segments, runs is None)
    for first, last in runs or ():
        promised[first : last + 1] = True
    schema = layout.schema() if layout is not None else REMOVED
    for batch in read_checked(root, file, schema, None if wanted.all else wanted.between):
        if layout is not None:
            keys, words = layout.from_arrow(batch)
        else:
            keys, words = batch.column("key").to_numpy(), np.empty((len(batch), 0), np.float32)
        segments = wanted.layout.segments_of(keys)
        if not promised[segments].all():
            raise ModelError(f"{root / file.path}: has rows outside of the segments that the manifest names")
        if not wanted.all:
            mine = wanted.mask[segments]
            keys, words = keys[mine], words[mine]
        yield keys, words


def _missing(error: FileNotFoundError) -> ModelError:
    return ModelError(f"{error.filename}: the manifest names this file, but it is missing")
