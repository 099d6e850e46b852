"""Files of a model: rows as Parquet, written from tables or arrays and read back, each with its checksum.

Any number of processes may write their segments of a table into one version folder; nothing here is a commit
(that is ``manifest``). A writer that fails removes what it began.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from penstock.batch import Floats, Keys
from penstock.errors import ConfigError, ModelError
from penstock.models.manifest import FileEntry
from penstock.storage import storage_errors
from penstock.table import Layout, Table

__all__ = [
    "REMOVED",
    "read_checked",
    "seal",
    "write_arrays",
    "write_names",
    "write_recent",
    "write_removed",
    "write_rows",
]

ROWS_PER_FILE = 1 << 21
ROWS_PER_GROUP = 1 << 16

REMOVED = pa.schema([pa.field("key", pa.uint64())])
"""Columns of a file of removed keys."""

Segments = NDArray[np.int64]
Parts = Iterable[pa.RecordBatch]


def write_rows(
    table: Table,
    folder: str | Path,
    name: str,
    *,
    segments: Sequence[int] | range | None = None,
    tag: str = "",
    keys: Keys | None = None,
) -> list[dict[str, Any]]:
    """Write rows of a table into a version folder; returns the files' entries for the manifest.

    Args:
        folder: from ``new_version``
        name: of the table
        segments: which (any of them, rising), or None for all
        tag: part of the files' names, for a process whose files could be called like another's
        keys: only these rows (an incremental layer); those outside of the segments are left out

    Raises:
        StorageError: the disk is full, or the folder cannot be written; what was begun is removed.
        ValueError: there is no row of one of the keys.
    """
    chosen = np.arange(table.segments) if segments is None else np.asarray(segments, np.int64)
    if (np.diff(chosen) <= 0).any() or (len(chosen) and not 0 <= chosen[0] <= chosen[-1] < table.segments):
        raise ValueError(f"segments must rise from 0 to {table.segments - 1}, got {chosen}")
    layout = table.layout
    if keys is not None:
        keys = np.sort(keys)
        keys = keys[np.isin(layout.segments_of(keys), chosen)]

        def read(begin: int, end: int) -> pa.RecordBatch:
            part = keys[begin:end]
            words, found = table.read(part)
            if found != len(part):
                raise ValueError(f"table {name!r} has rows of only {found} of {len(part)} keys")
            return layout.to_arrow(part, words)

        return _write_sorted(folder, name, layout, keys, read, tag)
    files = []
    for piece in _pieces(chosen, int(table.rows.used[chosen].sum())):
        parts = (table.to_arrow(segment) for segment in piece[table.rows.used[piece] > 0].tolist())
        files.append((_name(name, tag, piece), parts, piece))
    return _write_all(Path(folder), layout.schema(), files)


def write_arrays(
    folder: str | Path, name: str, layout: Layout, keys: Keys, words: Floats, *, tag: str = ""
) -> list[dict[str, Any]]:
    """``write_rows`` of rows that were copied before: ``keys`` u64[n] of any order, ``words`` f32[n, width].

    Raises:
        StorageError: as ``write_rows``.
        ValueError: the arrays' shapes are not those of the layout.
    """
    if words.shape != (len(keys), layout.width):
        raise ValueError(f"words must be f32[{len(keys)}, {layout.width}], got {words.dtype}{list(words.shape)}")
    if (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys)
        keys, words = keys[order], words[order]

    def read(begin: int, end: int) -> pa.RecordBatch:
        return layout.to_arrow(keys[begin:end], words[begin:end])

    return _write_sorted(folder, name, layout, keys, read, tag)


def write_removed(
    folder: str | Path, name: str, layout: Layout, keys: Keys, *, tag: str = ""
) -> list[dict[str, Any]]:
    """Write the keys u64[n] whose rows went since the layer before; returns no entry where there is none.

    Raises:
        StorageError: as ``write_rows``.
    """
    if not len(keys):
        return []
    keys = np.sort(keys)
    segments = np.unique(layout.segments_of(keys))
    parts = [pa.record_batch([pa.array(keys)], schema=REMOVED)]
    return _write_all(Path(folder), REMOVED, [("removed-" + _name(name, tag, segments), parts, segments)])


def write_names(names: dict[int, str], folder: Path) -> dict[str, Any] | None:
    """Write ``column=value`` of some keys; None where there is none."""
    if not names:
        return None
    keys = sorted(names)
    path = folder / "names.parquet"
    columns = {
        "key": pa.array(keys, pa.uint64()),
        "name": pa.array([names[key] for key in keys], pa.string()),
    }
    with storage_errors(folder), _removed_on_failure([path]):
        pq.write_table(pa.table(columns), path)
        return seal(path)


def write_recent(rows: pa.Table, folder: Path) -> dict[str, Any]:
    """Write labelled rows that were learnt last.

    Raises:
        StorageError: as ``write_rows``.
    """
    path = folder / "recent.parquet"
    with storage_errors(folder), _removed_on_failure([path]):
        pq.write_table(rows, path, compression="zstd", compression_level=1)
        return {**seal(path), "rows": rows.num_rows}


def seal(path: Path) -> dict[str, Any]:
    """Make a finished file durable and note its checksum."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {
        "path": f"{path.parent.name}/{path.name}",
        "nbytes": path.stat().st_size,
        "sha256": digest,
    }


def read_checked(
    root: Path,
    file: FileEntry,
    schema: pa.Schema | None,
    wanted: Callable[[int, int], bool] | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows of a file of the manifest, after its bytes were checked; ``wanted`` tells by the least and the largest
    key whether a row group is. Only some ``columns`` where they are given.

    Raises:
        ModelError: damaged, or not what was expected.
        FileNotFoundError: it is not there.
    """
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
            if file.rows is not None and parquet.metadata.num_rows != file.rows:
                raise ModelError(f"{path}: {file.rows} rows promised, {parquet.metadata.num_rows} found")
            groups = list(range(parquet.num_row_groups))
            if wanted is not None:
                groups = [group for group in groups if _may_want(parquet.metadata.row_group(group), wanted)]
            yield from parquet.iter_batches(batch_size=ROWS_PER_GROUP, row_groups=groups, columns=columns)
    except pa.ArrowInvalid as error:
        raise ModelError(f"{path}: damaged: {error}") from error


def _may_want(group: Any, wanted: Callable[[int, int], bool]) -> bool:
    """By the statistics of the first column, which is the key."""
    statistics = group.column(0).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return wanted(statistics.min, statistics.max)


def _pieces(segments: Segments, rows: int) -> list[Segments]:
    """Segments of each file: a segment never spans two."""
    count = 1
    while count < len(segments) and rows > count * ROWS_PER_FILE:
        count *= 2
    return [piece for piece in np.array_split(segments, count) if len(piece)]


def _write_sorted(
    folder: str | Path,
    name: str,
    layout: Layout,
    keys: Keys,
    read: Callable[[int, int], pa.RecordBatch],
    tag: str,
) -> list[dict[str, Any]]:
    """Write rows of rising keys, which ``read(begin, end)`` gives; no file where there is none."""
    of_rows = layout.segments_of(keys)
    files = []
    for piece in _pieces(np.unique(of_rows), len(keys)):
        begin, end = np.searchsorted(of_rows, piece[0]), np.searchsorted(of_rows, piece[-1], "right")
        cuts = [*range(int(begin), int(end), ROWS_PER_GROUP), int(end)]
        parts = itertools.starmap(read, itertools.pairwise(cuts))
        files.append((_name(name, tag, piece), parts, piece))
    return _write_all(Path(folder), layout.schema(), files)


def _write_all(
    folder: Path, schema: pa.Schema, files: Sequence[tuple[str, Parts, Segments]]
) -> list[dict[str, Any]]:
    """Write files of (name, rows, segments), or none."""
    paths = [folder / name for name, _, _ in files]
    entries = []
    with storage_errors(folder), _removed_on_failure(paths):
        for path, (_, parts, segments) in zip(paths, files, strict=True):
            rows = 0
            with path.open("wb") as handle:
                sink = _Hashing(handle)
                how = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
                with pq.ParquetWriter(sink, schema, **how) as writer:
                    for group in _row_groups(parts):
                        writer.write_table(group, row_group_size=len(group))
                        rows += len(group)
                handle.flush()
                os.fsync(handle.fileno())
            entry = {"path": f"{path.parent.name}/{path.name}", "nbytes": sink.nbytes, "sha256": sink.hexdigest()}
            entries.append({**entry, "segments": _runs(segments), "rows": rows})
    return entries


class _Hashing(io.RawIOBase):
    """A file whose checksum is of what was meant to be written, whatever the disk makes of it."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._hash, self.nbytes = handle, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if self._handle.closed:  # a writer that failed ends what it had begun, which is removed
            return view.nbytes
        self._handle.write(view)
        self._hash.update(view)
        self.nbytes += view.nbytes
        return view.nbytes

    def hexdigest(self) -> str:
        """Of all that was written."""
        return self._hash.hexdigest()


def _row_groups(parts: Parts) -> Iterator[pa.Table]:
    """Rows in groups of about the size that readers take at once; none is empty."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for part in parts:
        held.append(part)
        rows += len(part)
        if rows >= ROWS_PER_GROUP:
            yield pa.Table.from_batches(held).combine_chunks()
            held, rows = [], 0
    if rows:
        yield pa.Table.from_batches(held).combine_chunks()


def _runs(segments: Segments) -> list[list[int]]:
    """``[0, 1, 2, 7]`` is ``[[0, 2], [7, 7]]``."""
    breaks = np.flatnonzero(np.diff(segments) > 1)
    first = segments[np.concatenate([[0], breaks + 1])]
    last = segments[np.concatenate([breaks, [len(segments) - 1]])]
    return np.stack([first, last], axis=1).tolist()  # type: ignore[no-any-return]


def _name(name: str, tag: str, segments: Segments) -> str:
    if not name.isidentifier() or not re.fullmatch(r"[A-Za-z0-9_.]*", tag):
        raise ConfigError(
            f"files of table {name!r}, tag {tag!r}: name: an identifier, tag: letters, digits, _ and ."
        )
    middle = f"-{tag}" if tag else ""
    return f"{name}{middle}-{segments[0]:04d}-{segments[-1]:04d}.parquet"


@contextlib.contextmanager
def _removed_on_failure(paths: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
