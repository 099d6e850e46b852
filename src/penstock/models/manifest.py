"""The manifest of a model folder: what is valid there, and how that is written down.

What its files hold is in ``files``, how a version is begun and committed in ``commit``.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from penstock.errors import ModelError
from penstock.features import FeaturePlan
from penstock.table.layout import SEGMENTS_MAX
from penstock.version import __version__

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "FileEntry",
    "LayerEntry",
    "Manifest",
    "all_files",
    "build_manifest",
    "parse_manifest",
    "read_manifest",
    "table_files",
    "table_layers",
]

FORMAT = "penstock-model"
FORMAT_VERSION = 2
"""2: some table has more than one layer. A model of one layer is written as 1, which older code reads."""


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
    recent: FileEntry | None = None
    """Labelled rows that were learnt last, as Parquet: to see whether the model is any good."""
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
    recent: Mapping[str, Any] | None = None,
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
        recent: the file entry of ``write_recent``
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
        **({"recent": recent} if recent is not None else {}),
        **(metadata or {}),
    }
    if progress is not None:
        manifest["progress"] = dict(progress)
    return manifest


def read_manifest(root: str | Path, file: Path | None = None) -> dict[str, Any]:
    """The manifest of a model folder; or that of another version of it, in ``file``.

    Raises:
        ModelError: there is none, or it is not one of ours, or of a newer format.
    """
    file = file if file is not None else Path(root) / "manifest.json"
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


def all_files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every file entry of a manifest."""
    entries = [entry for table in manifest["tables"].values() for entry in table_files(table)]
    return entries + [manifest[name] for name in ("names", "recent") if manifest.get(name) is not None]
