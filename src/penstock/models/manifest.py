"""The manifest of a model folder: what is valid there. Replacing it is the commit of a new version.

Version folders are begun (``new_version``), filled by one process or many, and committed or discarded by one.
What the files hold is in ``files``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from penstock.errors import ConfigError, ModelError, StorageError
from penstock.features import FeaturePlan
from penstock.kill import kill_point
from penstock.table.layout import SEGMENTS_MAX
from penstock.version import __version__

__all__ = [
    "EXAMPLES",
    "FORMAT_VERSION",
    "FileEntry",
    "Manifest",
    "build_manifest",
    "check_not_foreign",
    "commit_manifest",
    "discard_version",
    "new_version",
    "parse_manifest",
    "read_manifest",
    "storage_errors",
    "table_files",
    "table_layers",
    "write_atomically",
]

EXAMPLES = "_examples.json"
"""Is in a folder of a pipeline's examples, which are replaced as a whole."""
FORMAT = "penstock-model"
FORMAT_VERSION = 2
"""2: some table has more than one layer. A model of one layer is written as 1, which older code reads."""

_VERSIONS = "v[0-9][0-9][0-9][0-9][0-9][0-9]"


class FileEntry(msgspec.Struct):
    """A file, with what is needed to tell whether it is whole and whether it is wanted."""

    path: str
    sha256: str
    rows: int | None = None
    segments: list[Any] | None = None
    """Runs [first, last]; in folders of older code a single one, not in a list."""

    def runs(self, segments: int) -> list[tuple[int, int]] | None:
        """Runs of a table's segments that its rows lie in; None where the manifest does not say.

        Raises:
            ValueError: they are no runs.
        """
        if self.segments is None:
            return None
        listed = [self.segments] if all(isinstance(s, int) for s in self.segments) else self.segments
        for run in listed:
            ok = isinstance(run, list) and len(run) == 2 and all(type(s) is int for s in run)
            if not ok or not 0 <= run[0] <= run[1] < segments:
                raise ValueError(f"{self.path}: segments must be runs [first, last] below {segments}, got {run!r}")
        return [(first, last) for first, last in listed]


class LayerEntry(msgspec.Struct):
    """Rows of a table that replace, or add to, those of the layers before, but for the removed keys."""

    files: list[FileEntry]
    removed: list[FileEntry] = []


class _Table(msgspec.Struct):
    rows: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    segments: Annotated[int, msgspec.Meta(ge=2, le=SEGMENTS_MAX)]
    dim: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 1
    optimizer: dict[str, str | float] | None = None
    files: list[FileEntry] | None = None
    layers: Annotated[list[LayerEntry], msgspec.Meta(min_length=1)] | None = None

    def all_layers(self) -> list[LayerEntry]:
        return self.layers if self.layers is not None else [LayerEntry(self.files or [])]


class _Model(msgspec.Struct):
    kind: str
    settings: dict[str, Any] = {}


class _Lineage(msgspec.Struct):
    files: list[str] = []
    rows: int = 0
    settings: dict[str, Any] = {}


class Manifest(msgspec.Struct):
    """What is relied on when a manifest is read; the rest is passed through."""

    version: int
    created: str
    code_version: str
    model: _Model
    features: dict[str, Any]
    optimizer: dict[str, str | float]
    tables: dict[str, _Table]
    names: FileEntry | None
    metrics: dict[str, dict[str, float | None] | None] = {}
    lineage: _Lineage | None = None

    def table_spec(self, name: str) -> dict[str, Any]:
        """The description of a table, as ``Layout.from_dict`` takes it."""
        table = self.tables[name]
        return {"dim": table.dim, "segments": table.segments, "optimizer": table.optimizer or self.optimizer}


def build_manifest(
    spec: Mapping[str, Any],
    *,
    version: int,
    layers: Mapping[str, Sequence[Mapping[str, Any]]],
    rows: Mapping[str, int],
    names: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a version that was written, to be committed.

    Args:
        spec: the model's (``Model.to_spec``)
        layers: of each table, its layers ``{"files": [...], "removed": [...]}`` of file entries, oldest first.
            The first is complete; a later one has the rows that changed since, and the keys of those that
            went. An incremental checkpoint repeats the layers of the manifest before (``table_layers``)
            and adds one.
        rows: of each table, how many there are in the end
        names: the file entry of ``write_names``
        metadata: ``metrics`` and ``lineage``
        progress: where a run stands; anything that JSON can hold, passed through
    """
    tables: dict[str, Any] = {}
    for name, table in spec["tables"].items():
        entry = {"dim": table["dim"], "segments": table["segments"], "rows": rows[name]}
        if table["optimizer"] != spec["optimizer"]:
            entry["optimizer"] = table["optimizer"]
        written = table_layers({"layers": layers[name]})
        if len(written) == 1 and not written[0]["removed"]:
            entry["files"] = written[0]["files"]
        else:
            entry["layers"] = written
        tables[name] = entry
    settings = {"settings": spec["settings"]} if spec.get("settings") else {}
    manifest = {
        "format": FORMAT,
        "format_version": 2 if any("layers" in table for table in tables.values()) else 1,
        "version": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code_version": __version__,
        "model": {"kind": spec["kind"], **settings},
        "optimizer": dict(spec["optimizer"]),
        "features": FeaturePlan.from_dict(spec["features"]).to_dict(),
        "tables": tables,
        "names": names,
        **(metadata or {}),
    }
    if progress is not None:
        manifest["progress"] = dict(progress)
    return manifest


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
    parse_manifest(root, manifest)
    return manifest


def parse_manifest(root: str | Path, manifest: Mapping[str, Any]) -> Manifest:
    """The parts of a manifest that are relied on.

    Raises:
        ModelError: one is missing, or of another type.
    """
    file = Path(root) / "manifest.json"
    try:
        parsed = msgspec.convert(manifest, Manifest)
        for name, table in parsed.tables.items():
            if (table.files is None) == (table.layers is None):
                raise ModelError(f"{file}: damaged: table {name!r} must have either files or layers")
            if table.segments & (table.segments - 1):
                raise ModelError(f"{file}: segments must be a power of two >= 2, got {table.segments}")
            for layer in table.all_layers():
                for entry in (*layer.files, *layer.removed):
                    entry.runs(table.segments)
    except (msgspec.ValidationError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file}: damaged: {error}") from error
    return parsed


def table_layers(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of ``manifest["tables"][name]``, oldest first, as ``build_manifest`` takes them."""
    layers = table.get("layers", [table])
    return [{"files": list(one["files"]), "removed": list(one.get("removed", ()))} for one in layers]


def table_files(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every file entry of ``manifest["tables"][name]``."""
    return [entry for layer in table_layers(table) for entry in (*layer["files"], *layer["removed"])]


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
        version = max((int(p.name[1:]) for p in root.glob(_VERSIONS)), default=0) + 1
        while True:
            folder = root / f"v{version:06d}"
            try:
                folder.mkdir()
                return version, folder
            except FileExistsError:
                version += 1  # somebody else saves at the same time


def commit_manifest(root: str | Path, manifest: Mapping[str, Any]) -> None:
    """Make a version the valid one, in one step that survives a power cut; then remove what nothing refers to.

    Every file that it names must have been written by now (their writers have made them durable). Folders of
    older versions stay as long as the manifest names a file there.

    Raises:
        StorageError: a file is not there, or the disk is full; the manifest before is still the valid one.
        ConfigError: another program's manifest stands there.
    """
    root = Path(root)
    with storage_errors(root):
        check_not_foreign(root)
        entries = [entry for table in manifest["tables"].values() for entry in table_files(table)]
        if manifest.get("names") is not None:
            entries.append(manifest["names"])
        for entry in entries:
            _check_there(root, entry)
        folder = root / f"v{manifest['version']:06d}"
        _sync_folder(folder)
        kill_point(f"{root}: files written, manifest not")
        write_atomically(root / "manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        kill_point(f"{root}: manifest replaced, older versions not removed")
        kept = {folder.name, *(entry["path"].split("/")[0] for entry in entries)}
        for old in root.glob(_VERSIONS):
            # A newer one is being written by somebody.
            if old.name not in kept and old.name < folder.name:
                shutil.rmtree(old, ignore_errors=True)
        for left in root.glob(".manifest.json.*.tmp"):
            left.unlink(missing_ok=True)


def discard_version(root: str | Path, version: int) -> None:
    """Remove the folder of a version that failed, unless it was committed."""
    root = Path(root)
    with contextlib.suppress(ModelError):
        if read_manifest(root)["version"] == version:
            return
    shutil.rmtree(root / f"v{version:06d}", ignore_errors=True)


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


def write_atomically(file: Path, data: bytes) -> None:
    """Replace a file's contents in one step that survives a power cut."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        kill_point(f"{file}: written beside, not replaced")
        temporary.replace(file)
        _sync_folder(file.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Errors of the system while a model is written, in our words."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{root}: cannot write the model: {error.strerror or error}") from error


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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
