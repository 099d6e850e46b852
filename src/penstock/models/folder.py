"""A model on disk: a folder that DuckDB, Spark and pandas can read, replaced by one atomic step.

    model/
      manifest.json                 what is valid: format, plan, optimizer, metrics, lineage, files, checksums
      v000002/weights-0000-0511.parquet     rows of segments 0 to 511, by rising key (so by rising segment)
      v000002/names.parquet         column=value of some keys

Contents go to a new version folder; then the manifest is replaced, and that is the commit. A reader that
finds its version gone reads the manifest again. A segment never spans two files.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from penstock.errors import ConfigError, ModelError, PenstockError, StorageError
from penstock.features import FeaturePlan
from penstock.models.linear import Linear
from penstock.optim import optimizer_from_dict
from penstock.table import Table
from penstock.version import __version__

__all__ = ["FORMAT_VERSION", "check_not_foreign", "load_model", "read_manifest", "save_model", "write_atomically"]

FORMAT = "penstock-model"
FORMAT_VERSION = 1
_ROWS_PER_FILE = 1 << 21
_ROWS_PER_GROUP = 1 << 16
_SEGMENTS_MAX = 1 << 20


class _File(msgspec.Struct):
    path: str
    sha256: str


class _Table(msgspec.Struct):
    rows: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    segments: Annotated[int, msgspec.Meta(ge=2, le=_SEGMENTS_MAX)]
    files: list[_File]


class _Model(msgspec.Struct):
    kind: str


class _Lineage(msgspec.Struct):
    files: list[str] = []
    rows: int = 0
    settings: dict[str, Any] = {}


class _Manifest(msgspec.Struct):
    """What is relied on when a manifest is read; the rest is passed through."""

    version: int
    created: str
    code_version: str
    model: _Model
    features: dict[str, Any]
    optimizer: dict[str, str | float]
    tables: dict[str, _Table]
    names: _File | None
    metrics: dict[str, dict[str, float | None] | None] = {}
    lineage: _Lineage | None = None


def save_model(model: Linear, path: str | Path, *, progress: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the model and commit it; ``progress`` is where a run stands, in a checkpoint. Returns the manifest.

    Raises:
        StorageError: see ``Linear.save``.
        ModelError: the model has never been fitted; nothing is written.
    """
    if model.plan is None:
        raise ModelError("a model that has not been fitted cannot be saved: it knows no columns yet")
    root = Path(path)
    with _storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        check_not_foreign(root)
        version = _new_version(root)
        folder = root / f"v{version:06d}"
        try:
            manifest = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "version": version,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "code_version": __version__,
                "model": {"kind": model.kind},
                "optimizer": model.optimizer.to_dict(),
                "features": model.plan.to_dict(),
                "tables": {
                    name: {
                        "dim": table.dim,
                        "segments": table.segments,
                        "rows": len(table),
                        "files": _write_rows(table, folder, name),
                    }
                    for name, table in model.tables().items()
                },
                # The strongest features are those at the end of the run.
                "names": _write_names(model.names if progress is not None else model.name_features(), folder),
                **model.metadata,
            }
            if progress is not None:
                manifest["progress"] = progress
            _sync_folder(folder)
            write_atomically(root / "manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        except BaseException:
            if not _is_committed(root, version):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        for old in root.glob("v[0-9][0-9][0-9][0-9][0-9][0-9]"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        for left in root.glob(".manifest.json.*.tmp"):
            left.unlink(missing_ok=True)
    return manifest


def load_model(path: str | Path, *, slots: int | None = None) -> Linear:
    """Read a model, checking every byte against its checksum.

    Raises:
        ModelError: no model there, a damaged file, or a format newer than this code; the message names the file.
    """
    root = Path(path)
    manifest = read_manifest(root)
    while True:
        try:
            return _load(root, manifest, slots)
        except FileNotFoundError as error:
            # A writer may have replaced the model meanwhile.
            again = read_manifest(root)
            if again == manifest:
                raise ModelError(f"{error.filename}: the manifest names this file, but it is missing") from error
            manifest = again


def read_manifest(root: str | Path) -> dict[str, Any]:
    """The manifest of a model folder.

    Raises:
        ModelError: there is none, or it is not one of ours, or of a newer format.
    """
    file = Path(root) / "manifest.json"
    try:
        manifest = msgspec.json.decode(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        unfinished = (Path(root) / "checkpoint" / "manifest.json").exists()
        hint = f"; its run has not ended, go on with: penstock train --resume -o {root}" if unfinished else ""
        raise ModelError(f"{root}: no model there (no manifest.json){hint}") from error
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{file}: damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{file}: not a model of Penstock")
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
        raise ModelError(
            f"{file}: format version {version!r}, written by Penstock {manifest.get('code_version')}; "
            f"this one reads up to {FORMAT_VERSION}"
        )
    try:
        msgspec.convert(manifest, _Manifest)
    except msgspec.ValidationError as error:
        raise ModelError(f"{file}: damaged: {error}") from error
    return manifest


def check_not_foreign(root: Path) -> None:
    """No other program's ``manifest.json`` stands there, to be overwritten.

    Raises:
        ConfigError: one does.
    """
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        manifest = msgspec.json.decode((root / "manifest.json").read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ConfigError(f"{root}: has a manifest.json of something else; name another folder for the model")


def write_atomically(file: Path, data: bytes) -> None:
    """Replace a file's contents in one step that survives a power cut."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
        _sync_folder(file.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _load(root: Path, manifest: dict[str, Any], slots: int | None) -> Linear:
    where = root / "manifest.json"
    try:
        contents = msgspec.convert(manifest, _Manifest)
        if contents.model.kind != Linear.kind:
            raise ModelError(f"{where}: model kind {contents.model.kind!r} is not known; allowed: {Linear.kind}")
        plan = FeaturePlan.from_dict(contents.features)
        spec = contents.tables["weights"]
        # Twice the rows, as segments of the table fill up to between 1/2 and 3/4.
        room = slots if slots is not None else max(1 << 16, 2 * spec.rows)
        optimizer = optimizer_from_dict(contents.optimizer)
        model = Linear(plan, optimizer=optimizer, slots=room, segments=spec.segments)
        for file in spec.files:
            for batch in _read_checked(root, file, model.table.arrow_schema()):
                model.table.insert_arrow(batch)
        if len(model.table) != spec.rows:
            raise ModelError(f"{where}: {spec.rows} rows promised, {len(model.table)} found")
        if contents.names is not None:
            for batch in _read_checked(root, contents.names, None):
                names = batch.to_pydict()
                model.names.update(zip(names["key"], names["name"], strict=True))
    except (ModelError, FileNotFoundError):
        raise
    except PenstockError as error:
        raise ModelError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, OSError, MemoryError) as error:
        message = " ".join(str(error).split())
        raise ModelError(f"{where}: damaged: {type(error).__name__}: {message}") from error
    model.metadata = {key: manifest[key] for key in ("metrics", "lineage") if key in manifest}
    model.table.take_changed()
    return model


def _write_rows(table: Table, folder: Path, name: str) -> list[dict[str, Any]]:
    count = 1
    while count < table.segments and len(table) > count * _ROWS_PER_FILE:
        count *= 2
    per_file = table.segments // count
    files = []
    for first in range(0, table.segments, per_file):
        path = folder / f"{name}-{first:04d}-{first + per_file - 1:04d}.parquet"
        rows = 0
        writer = pq.ParquetWriter(
            path, table.arrow_schema(), compression="zstd", compression_level=1, use_dictionary=False
        )
        with writer:
            for group in _row_groups(table, range(first, first + per_file)):
                if len(group):
                    writer.write_table(group, row_group_size=len(group))
                rows += len(group)
        files.append({**_seal(path), "segments": [first, first + per_file - 1], "rows": rows})
    return files


def _row_groups(table: Table, segments: range) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for segment in segments:
        held.append(table.to_arrow(segment))
        if sum(map(len, held)) >= _ROWS_PER_GROUP or segment == segments[-1]:
            yield pa.Table.from_batches(held).combine_chunks()
            held = []


def _write_names(names: dict[int, str], folder: Path) -> dict[str, Any] | None:
    if not names:
        return None
    keys = sorted(names)
    path = folder / "names.parquet"
    columns = {
        "key": pa.array(keys, pa.uint64()),
        "name": pa.array([names[key] for key in keys], pa.string()),
    }
    pq.write_table(pa.table(columns), path)
    return _seal(path)


def _seal(path: Path) -> dict[str, Any]:
    """Make a finished file durable and note its checksum."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {
        "path": f"{path.parent.name}/{path.name}",
        "nbytes": path.stat().st_size,
        "sha256": digest,
    }


def _read_checked(root: Path, file: _File, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    path = root / file.path
    if not file.path.isprintable() or root.resolve() not in path.resolve().parents:
        raise ModelError(f"{root / 'manifest.json'}: names a file outside of the model: {file.path!r}")
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != file.sha256:
        raise ModelError(f"{path}: damaged: its checksum is not the one in the manifest")
    try:
        with pq.ParquetFile(path) as parquet:
            if schema is not None and parquet.schema_arrow.remove_metadata() != schema:
                raise ModelError(f"{path}: columns {parquet.schema_arrow.names}, expected {schema.names}")
            yield from parquet.iter_batches(batch_size=_ROWS_PER_GROUP)
    except pa.ArrowInvalid as error:
        raise ModelError(f"{path}: damaged: {error}") from error


def _new_version(root: Path) -> int:
    """Make the folder of a version that is not there yet; returns its number."""
    versions = [int(p.name[1:]) for p in root.glob("v[0-9][0-9][0-9][0-9][0-9][0-9]")]
    version = max(versions, default=0) + 1
    while True:
        try:
            (root / f"v{version:06d}").mkdir()
            return version
        except FileExistsError:
            version += 1  # somebody else saves at the same time


def _is_committed(root: Path, version: int) -> bool:
    """Whether the manifest on disk names this version."""
    try:
        return bool(read_manifest(root)["version"] == version)
    except ModelError:
        return False


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _storage_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{root}: cannot write the model: {error.strerror or error}") from error
