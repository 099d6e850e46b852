"""Parquet files: a chunk is a row group.

String columns that were written with a dictionary are read as dictionary arrays, which is several times
faster than to spell out the strings, and lets each value be hashed once; for local files by ``pages``. Columns
whose writer gave up the dictionary are read as they are: to build a new dictionary is slower still.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.data.files import is_local, nbytes_of, open_file, reading
from penstock.data.source import Chunk, Source
from penstock.data.tables import check_arrays, check_columns, check_same_schema, first_rows, plain_schema, rebatch
from penstock.errors import DataError

if TYPE_CHECKING:
    from penstock.data.pages import IndexedColumn

__all__ = ["ParquetSource"]

DECODED_ROWS = 1 << 18
"""Rows decoded at a time: as fast as a whole row group of a million, in a quarter of its memory."""
DECODED_VALUES = 1 << 24
"""Values decoded at a time, for tables of hundreds of columns: some 100 MB."""

PAGE_OVERHEAD_NBYTES = 1024
"""What page headers, with their statistics, may add to a column of few rows."""


@dataclass(frozen=True, kw_only=True)
class ParquetChunk(Chunk):
    """One row group; ``size`` is its rows, ``first_row`` the place of its first one in the file.

    About ``decoded_rows`` are decoded at a time.
    """

    index: int
    size: int
    path: str
    row_group: int
    first_row: int
    decoded_rows: int

    def batches(self, columns: Sequence[str], batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
        return rebatch(self._tables(columns, batch_rows), columns, batch_rows, skip)

    def _tables(self, columns: Sequence[str], batch_rows: int) -> Iterator[pa.Table]:
        decoded_rows = min(self.decoded_rows, DECODED_VALUES // max(1, len(columns)))
        decoded_rows = batch_rows * max(1, decoded_rows // batch_rows)
        with reading(self.path):
            footer = _footer(self.path)
            if self.row_group >= footer.num_row_groups or footer.row_group(self.row_group).num_rows != self.size:
                raise DataError(f"{self.path} was changed after it was opened")
            check_columns(self.path, columns, footer.schema.to_arrow_schema().names)
            indexed = self._indexed_columns(footer, columns)
            others = [name for name in columns if name not in indexed]
            known: dict[str, pa.Array] = {}
            for n_rows, batch in self._decoded(footer, others, decoded_rows):
                check_arrays(batch, known)
                arrays = {name: self._read(column, n_rows) for name, column in indexed.items()}
                yield pa.table({name: arrays[name] if name in arrays else batch[name] for name in columns})

    def _decoded(
        self, footer: pq.FileMetaData, columns: list[str], decoded_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """What Arrow reads, with the number of rows, which an empty record batch does not have."""
        if not columns:
            for first in range(0, self.size, decoded_rows):
                yield min(decoded_rows, self.size - first), pa.record_batch([], names=[])
            return
        with _open(self.path, footer, _dictionary_columns(self.path, footer, self.row_group, columns)) as file:
            for batch in file.iter_batches(
                batch_size=decoded_rows, row_groups=[self.row_group], columns=columns, use_threads=False
            ):
                yield batch.num_rows, batch

    def _indexed_columns(self, footer: pq.FileMetaData, columns: Sequence[str]) -> dict[str, IndexedColumn]:
        if not is_local(self.path):
            return {}
        # Its kernels bring Numba, which looking at a schema can do without.
        from penstock.data.pages import indexed_column

        types, group = footer.schema.to_arrow_schema(), footer.row_group(self.row_group)
        found = {}
        with open_file(self.path) as file:
            for number in range(group.num_columns):
                leaf = footer.schema.column(number)
                # The path of a nested column, a.b, may be the name of a flat one.
                is_flat = (
                    leaf.path == leaf.name and not leaf.max_repetition_level and leaf.max_definition_level <= 1
                )
                if not is_flat or leaf.path not in columns:
                    continue
                nullable = leaf.max_definition_level == 1
                column = indexed_column(file, group, number, types.field(leaf.path).type, nullable)
                if column is not None:
                    found[leaf.path] = column
        return found

    def _read(self, column: IndexedColumn, n_rows: int) -> pa.Array:
        try:
            return column.read(n_rows)
        except DataError as error:
            raise DataError(f"{self.path}: row group {self.row_group}, {error}") from error

    def locate(self, row: int) -> str:
        return f"{self.path} row {self.first_row + row}"


class ParquetSource(Source):
    """Parquet files of one schema.

    Raises:
        DataError: a file is missing, empty, damaged or no Parquet; schemas differ; there is no row at all.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        self._row_groups: list[list[int]] = []
        for path in self.files:
            nbytes_of(path)
            with reading(path):
                footer = _footer(path)
                schema = plain_schema(footer.schema.to_arrow_schema())
            if path == self.files[0]:
                self.schema = schema
            check_same_schema(path, schema, self.files[0], self.schema)
            self._row_groups.append([footer.row_group(i).num_rows for i in range(footer.num_row_groups)])
        self.size = sum(map(sum, self._row_groups))
        self.repeatable = True
        if not self.size:
            raise DataError(f"{self.files[0]} has no rows")

    def chunks(self, start: int = 0) -> Iterator[ParquetChunk]:
        index = 0
        for path, row_groups in zip(self.files, self._row_groups, strict=True):
            first_row = 0
            for row_group, rows in enumerate(row_groups):
                if index >= start:
                    yield ParquetChunk(
                        index=index,
                        size=rows,
                        path=path,
                        row_group=row_group,
                        first_row=first_row,
                        decoded_rows=DECODED_ROWS,
                    )
                index += 1
                first_row += rows

    def sample(self, rows: int) -> pa.Table:
        chunks = (replace(chunk, decoded_rows=rows) for chunk in self.chunks())
        return first_rows(chunks, self.schema, rows)


def _footer(path: str) -> pq.FileMetaData:
    if not is_local(path):
        with open_file(path) as file:
            return pq.read_metadata(file)
    status = Path(path).stat()
    return _local_footer(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _local_footer(path: str, mtime_ns: int, nbytes: int) -> pq.FileMetaData:
    """A file of many row groups has a long footer, and each of its chunks needs it."""
    return pq.read_metadata(path, memory_map=True)


def _open(path: str, footer: pq.FileMetaData, dictionary_columns: list[str]) -> pq.ParquetFile:
    local = is_local(path)
    return pq.ParquetFile(
        path if local else open_file(path),
        metadata=footer,
        read_dictionary=dictionary_columns,
        memory_map=local,
        pre_buffer=not local,
    )


def _dictionary_columns(path: str, footer: pq.FileMetaData, row_group: int, columns: Sequence[str]) -> list[str]:
    """Those of the string columns that are worth reading as dictionaries in this row group.

    Of a local file they would have been read by ``pages``.
    """
    if is_local(path):
        return []
    wanted = set(columns)
    group = footer.row_group(row_group)
    parts = (group.column(i) for i in range(group.num_columns))
    return [part.path_in_schema for part in parts if part.path_in_schema in wanted and _has_dictionary(part)]


def _has_dictionary(part: pq.ColumnChunkMetaData) -> bool:
    """Whether (nearly) all of a column chunk is written as indices into a dictionary.

    A writer whose dictionary page grows too long (1 MB in most) writes the rest of the strings as they are,
    and the footer does not say so. But an index takes at most the bits that number the dictionary's entries
    and one for null or not, and compression makes it no longer; strings that differ so much take more.
    """
    if part.physical_type != "BYTE_ARRAY" or not part.has_dictionary_page or not part.num_values:
        return False
    dictionary_nbytes = part.data_page_offset - part.dictionary_page_offset
    # An entry takes two bytes at the very least, even compressed, for its length and what sets it apart.
    entries = max(2, min(dictionary_nbytes // 2, part.num_values))
    index_nbytes = part.num_values * (math.ceil(math.log2(entries)) + 1) / 8
    data_nbytes = part.total_compressed_size - dictionary_nbytes
    return bool(data_nbytes <= index_nbytes + PAGE_OVERHEAD_NBYTES)
