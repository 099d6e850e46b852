"""A Delta Lake table in a folder: the one place that imports ``deltalake``.

What it adds to the library: commits that are refused where anybody else committed since the table was read
(compare and swap), Parquet files of our own writing with the statistics that pruning needs, and, where asked for,
files that survive a power cut. Rows and their meaning are the business of ``events`` and ``ledger``.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem

from penstock.data.dictionaries import repeating_columns
from penstock.errors import ConfigError, DataError, StorageError
from penstock.kill import kill_point
from penstock.version import the_extra

__all__ = ["Conflict", "DataFile", "DeltaFolder", "Written", "require_deltalake"]

_ROW_GROUP_ROWS = 1 << 17
_STATISTICS_ROWS = 32
"""Columns that Delta keeps statistics of, by default."""


class Conflict(Exception):
    """Somebody else committed first; nothing of ours is there. Read again, and try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file that the table consists of."""

    path: str
    """Relative to the folder."""
    rows: int
    nbytes: int
    partition: Mapping[str, Any]
    lows: Mapping[str, Any]
    highs: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that was written, and is not yet part of the table."""

    path: str
    nbytes: int
    partition: Mapping[str, str]
    statistics: str


def require_deltalake() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import deltalake
    except ImportError as error:
        raise ConfigError(f"event logs need {the_extra('stream')}") from error
    return deltalake


@contextlib.contextmanager
def _storing(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{place}: cannot be written: {error.strerror or error}") from error


class DeltaFolder:
    """One table; a handle stands at the version that it read last. Not for several threads at once."""

    def __init__(self, uri: str) -> None:
        """Open it.

        Raises:
            DataError: there is none, or its log is damaged.
            ConfigError: the extra is not installed.
        """
        self.uri = uri
        self._fs, self._root = fsspec.core.url_to_fs(uri)
        self._local = "://" not in uri or uri.startswith("file://")
        self._files: tuple[int, list[DataFile]] | None = None
        self._transactions: tuple[int, dict[str, int | None]] | None = None
        delta = require_deltalake()
        try:
            self._table = delta.DeltaTable(uri)
        except delta.exceptions.TableNotFoundError as error:
            raise DataError(f"{uri}: there is no such table") from error
        except Exception as error:
            raise DataError(f"{uri}: the table's log cannot be read: {_one_line(error)}") from error

    @staticmethod
    def exists(uri: str) -> bool:
        """Whether a table is there."""
        return bool(require_deltalake().DeltaTable.is_deltatable(uri))

    @staticmethod
    def create(
        uri: str, schema: pa.Schema, *, partition_by: Sequence[str], properties: Mapping[str, str]
    ) -> DeltaFolder:
        """Make an empty table, or open the one that somebody else made at the same moment."""
        delta = require_deltalake()
        try:
            delta.DeltaTable.create(
                uri,
                schema,
                mode="ignore",
                partition_by=list(partition_by),
                configuration=dict(properties),
                raise_if_key_not_exists=False,
            )
        except Exception as error:
            raise StorageError(f"{uri}: the table cannot be made: {_one_line(error)}") from error
        return DeltaFolder(uri)

    @property
    def version(self) -> int:
        """The version that this handle stands at."""
        return int(self._table.version())

    @property
    def file_system(self) -> Any:
        """Arrow's view of the folder: paths are relative to it."""
        # Arrow's threads in Python code would abort a process that ends while they give something back.
        whole = LocalFileSystem() if self._local else PyFileSystem(FSSpecHandler(self._fs))
        return SubTreeFileSystem(self._root, whole)

    @property
    def properties(self) -> dict[str, str]:
        """The table's properties."""
        return dict(self._table.metadata().configuration)

    @property
    def schema(self) -> pa.Schema:
        """Columns and types, partition columns included."""
        return pa.schema(self._table.schema())

    @property
    def partition_by(self) -> list[str]:
        """Columns that live in the names of folders."""
        return list(self._table.metadata().partition_columns)

    def refresh(self) -> int:
        """Take the newest version, and return it."""
        try:
            self._table.update_incremental()
        except Exception as error:
            raise DataError(f"{self.uri}: the table's log cannot be read: {_one_line(error)}") from error
        return self.version

    def at(self, version: int) -> DeltaFolder:
        """A handle of its own that stands at an earlier version.

        Raises:
            DataError: it is not there (any more).
        """
        other = DeltaFolder(self.uri)
        try:
            other._table.load_as_version(version)
        except Exception as error:
            raise DataError(f"{self.uri}: version {version} is not there: {_one_line(error)}") from error
        return other

    def transaction(self, name: str) -> int | None:
        """The number committed last under this name."""
        # The library reads the table's log for it, which on an object store takes round trips.
        if self._transactions is None or self._transactions[0] != self.version:
            self._transactions = (self.version, {})
        known = self._transactions[1]
        if name not in known:
            try:
                found = self._table.transaction_version(name)
            except Exception as error:
                raise DataError(f"{self.uri}: the table's log cannot be read: {_one_line(error)}") from error
            known[name] = None if found is None else int(found)
        return known[name]

    def files(self) -> list[DataFile]:
        """The files of this version, by path."""
        if self._files is None or self._files[0] != self.version:
            self._files = (self.version, self._read_files())
        return self._files[1]

    def _read_files(self) -> list[DataFile]:
        actions = pa.table(self._table.get_add_actions(flatten=True)).to_pylist()
        found = []
        for action in actions:
            parts: dict[str, dict[str, Any]] = {"partition": {}, "min": {}, "max": {}}
            for name, value in action.items():
                kind, _, column = name.partition(".")
                if column and kind in parts:
                    parts[kind][column] = value
            found.append(
                DataFile(
                    path=action["path"],
                    rows=action["num_records"] or 0,
                    nbytes=action["size_bytes"],
                    partition=parts["partition"],
                    lows=parts["min"],
                    highs=parts["max"],
                )
            )
        return sorted(found, key=lambda file: file.path)

    def place(self, file: DataFile | Written) -> str:
        """Where a file is: a path, or a URL."""
        return f"{self.uri.removeprefix('file://').rstrip('/')}/{file.path}"

    def write(
        self, table: pa.Table, partition: Mapping[str, str], statistics_of: Sequence[str], *, durable: bool
    ) -> Written:
        """Write rows to a new file, which becomes part of the table by ``commit``.

        Raises:
            StorageError: the disk is full, or may not be written; no file is left.
        """
        folder = "/".join(f"{name}={value}" for name, value in partition.items())
        path = f"{folder}/{uuid.uuid4().hex}.parquet" if folder else f"{uuid.uuid4().hex}.parquet"
        whole = f"{self._root}/{path}"
        with _storing(self.uri):
            self._fs.makedirs(_parent(whole), exist_ok=True)
            try:
                with self._fs.open(whole, "wb") as file:
                    pq.write_table(
                        table,
                        file,
                        compression="zstd",
                        compression_level=1,
                        row_group_size=_ROW_GROUP_ROWS,
                        use_dictionary=repeating_columns(table),
                        # Statistics leave nan out, and DuckDB (2.0) then passes over rows that have it.
                        write_statistics=[f.name for f in table.schema if not _has_floats(f.type)],
                    )
                    nbytes = file.tell()
                    if durable and self._local:
                        file.flush()
                        os.fsync(file.fileno())
                if durable and self._local:
                    _sync_folders(whole, self._root)
            except BaseException:
                self._remove(whole)
                raise
        return Written(
            path=path, nbytes=nbytes, partition=dict(partition), statistics=_statistics(table, statistics_of)
        )

    def discard(self, written: Sequence[Written]) -> None:
        """Remove files that will not be committed."""
        for file in written:
            self._remove(f"{self._root}/{file.path}")

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            self._fs.rm(path)

    def commit(
        self,
        written: Sequence[Written],
        transactions: Mapping[str, int],
        *,
        durable: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> int:
        """Make files part of the table, with the numbers of these transactions, all at once; the new version.

        Raises:
            Conflict: the table is not any more at the version of this handle; the files are still there.
            StorageError: the log cannot be written.
        """
        kill_point(f"{self.uri}: files written, not committed")
        delta = require_deltalake()
        before = self.version
        now_ms = int(time.time() * 1000)
        actions = [
            delta.transaction.AddAction(w.path, w.nbytes, dict(w.partition), now_ms, True, w.statistics)
            for w in written
        ]
        properties = delta.CommitProperties(
            app_transactions=[delta.Transaction(name, number) for name, number in transactions.items()],
            custom_metadata=dict(about) if about else None,
            max_commit_retries=0,
        )
        try:
            self._table.create_write_transaction(
                actions,
                "append",
                self._table.schema(),
                self.partition_by,
                commit_properties=properties,
            )
        except Exception as error:
            if self.refresh() != before:
                raise Conflict from error
            raise StorageError(f"{self.uri}: cannot commit: {_one_line(error)}") from error
        kill_point(f"{self.uri}: committed, not synced")
        committed = before + 1
        if durable and self._local:
            with _storing(self.uri):
                log = f"{self._root}/_delta_log/{committed:020d}.json"
                _sync_file(log)
                _sync_folders(log, self._root)
        kill_point(f"{self.uri}: committed")
        self.refresh()
        return committed

    def add_columns(self, fields: Sequence[pa.Field]) -> None:
        """Add columns, null in the rows so far. Somebody else may have added them: look at ``schema`` first.

        Raises:
            Conflict: somebody else changed the table.
            StorageError: it cannot be written.
        """
        delta = require_deltalake()
        kill_point(f"{self.uri}: before new columns")
        before = self.version
        try:
            self._table.alter.add_columns(
                list(delta.Schema.from_arrow(pa.schema([f.with_nullable(True) for f in fields])).fields)
            )
        except Exception as error:
            if self.refresh() != before:
                raise Conflict from error
            raise StorageError(f"{self.uri}: cannot add columns: {_one_line(error)}") from error
        self.refresh()

    def compact(
        self, partitions: Sequence[tuple[str, str, str]] | None = None, *, target_nbytes: int | None = None
    ) -> tuple[int, int]:
        """Merge small files (of these partitions) into large ones; how many went, and how many came.

        Rows do not change. The old files stay for readers of earlier versions, until ``vacuum``.
        """
        delta = require_deltalake()
        try:
            result = self._table.optimize.compact(
                partition_filters=list(partitions) if partitions is not None else None,
                target_size=target_nbytes,
                writer_properties=delta.WriterProperties(
                    column_properties={
                        field.name: delta.ColumnProperties(statistics_enabled="NONE")
                        for field in self.schema
                        if _has_floats(field.type)
                    }
                ),
            )
            self._table.create_checkpoint()
        except delta.exceptions.CommitFailedError as error:
            raise Conflict from error
        except Exception as error:
            raise StorageError(f"{self.uri}: cannot be compacted: {_one_line(error)}") from error
        self.refresh()
        return int(result["numFilesRemoved"]), int(result["numFilesAdded"])

    def delete_partitions(self, predicate: str) -> int:
        """Delete rows by a predicate over partition columns; how many files went."""
        try:
            result = self._table.delete(predicate)
        except Exception as error:
            raise StorageError(f"{self.uri}: cannot delete: {_one_line(error)}") from error
        self.refresh()
        return int(result.get("num_removed_files", 0))

    def vacuum(self, hours: float) -> int:
        """Remove files that no version of the last ``hours`` needs; how many."""
        try:
            gone = self._table.vacuum(retention_hours=int(hours), dry_run=False, enforce_retention_duration=False)
            self._table.cleanup_metadata()
        except Exception as error:
            raise StorageError(f"{self.uri}: cannot be cleaned: {_one_line(error)}") from error
        self.refresh()
        return len(gone)

    def history(self, limit: int) -> list[dict[str, Any]]:
        """The newest commits, newest first."""
        return list(self._table.history(limit))


def _statistics(table: pa.Table, columns: Sequence[str]) -> str:
    """Delta's statistics of a file as JSON; times keep their microseconds."""
    lows, highs, nulls = {}, {}, {}
    for name in columns[:_STATISTICS_ROWS]:
        column = table[name]
        nulls[name] = column.null_count
        ends = pc.min_max(column)
        low, high = ends["min"], ends["max"]
        if low.is_valid:
            lows[name], highs[name] = _plain(low), _plain(high)
    return json.dumps({"numRecords": table.num_rows, "minValues": lows, "maxValues": highs, "nullCount": nulls})


def _has_floats(type_: pa.DataType) -> bool:
    if pa.types.is_nested(type_):
        return any(_has_floats(type_.field(n).type) for n in range(type_.num_fields))
    return bool(pa.types.is_floating(type_))


def _plain(value: pa.Scalar) -> Any:
    if pa.types.is_timestamp(value.type):
        return np.datetime_as_string(np.datetime64(value.cast(pa.int64()).as_py(), "us")) + "Z"
    return value.as_py()


def _sync_file(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folders(path: str, root: str) -> None:
    """The folders of ``path`` up to ``root``, so that the names in them are on the disk too."""
    while len(path) > len(root.rstrip("/")):
        path = _parent(path)
        _sync_file(path)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
