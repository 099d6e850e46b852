"""Small tables that a log keeps of itself (progress, sealed windows, quarantine), each batch written once.

A batch is committed under a name and a number that grows; what was committed under this number or a higher one is
not committed again. So whoever dies in between repeats what it did, and nothing is there twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from penstock.errors import DataError, StorageError
from penstock.log.delta import Conflict, DataFile, DeltaFolder

__all__ = ["Ledger"]

_TRIES = 100
_COMPACT_EVERY = 100
"""Commits; a table of many small files is slow to open."""


class Ledger:
    """An append-only table with a fixed schema."""

    def __init__(self, uri: str, schema: pa.Schema, *, ordered_by: str) -> None:
        """Name it; ``ordered_by`` is an integer column by which files can be told apart. Nothing is touched."""
        self.uri, self.schema, self.ordered_by = uri, schema, ordered_by
        self._folder: DeltaFolder | None = None

    def open(self) -> DeltaFolder | None:
        """The table at its newest version; None where nothing was written yet."""
        if self._folder is None:
            if not DeltaFolder.exists(self.uri):
                return None
            self._folder = DeltaFolder(self.uri)
        else:
            self._folder.refresh()
        return self._folder

    def number(self, name: str) -> int:
        """The number committed last under this name, -1 before the first."""
        folder = self.open()
        found = folder.transaction(name) if folder is not None else None
        return -1 if found is None else found

    def append(
        self, rows: pa.Table | Sequence[Mapping[str, Any]], name: str, number: int, *, durable: bool = False
    ) -> bool:
        """Commit the rows under a name and number; whether they were not there before.

        Raises:
            StorageError: the disk is full, or too many others write.
        """
        for _ in range(_TRIES):
            if self.number(name) >= number:
                return False
            try:
                self.append_at(rows, {name: number}, durable=durable)
            except Conflict:
                continue
            return True
        raise StorageError(f"{self.uri}: others committed {_TRIES} times in between; try again")

    def append_at(
        self,
        rows: pa.Table | Sequence[Mapping[str, Any]],
        transactions: Mapping[str, int],
        *,
        durable: bool = False,
    ) -> int:
        """Commit the rows if nobody committed since ``open``; the new version.

        Raises:
            Conflict: somebody did; nothing of ours is there.
        """
        if not isinstance(rows, pa.Table):
            rows = pa.Table.from_pylist([dict(row) for row in rows], self.schema)
        folder = self._folder
        if folder is None:
            folder = self._folder = DeltaFolder.create(self.uri, self.schema, partition_by=(), properties={})
        written = [folder.write(rows, {}, [self.ordered_by], durable=durable)] if rows.num_rows else []
        try:
            version = folder.commit(written, transactions, durable=durable)
        except BaseException:
            folder.discard(written)
            raise
        if version % _COMPACT_EVERY == 0:
            with contextlib.suppress(Conflict):  # whoever was in our way can do it another time
                folder.compact()
        return version

    def read(self, above: int | None = None) -> pa.Table:
        """Rows, those with ``ordered_by`` above a number alone; sorted by it."""
        folder = self.open()
        if folder is None:
            return self.schema.empty_table()
        files = folder.files()
        if above is not None:
            files = [file for file in files if (high := _high(file, self.ordered_by)) is None or high > above]
        if not files:
            return self.schema.empty_table()
        try:
            table = ds.dataset(
                [file.path for file in files], schema=self.schema, format="parquet", filesystem=folder.file_system
            ).to_table()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.uri}: cannot be read: {' '.join(str(error).split())[:300]}") from error
        if above is not None:
            table = table.filter(ds.field(self.ordered_by) > above)
        return table.sort_by(self.ordered_by)


def _high(file: DataFile, column: str) -> int | None:
    found: int | None = file.highs.get(column)
    return found
