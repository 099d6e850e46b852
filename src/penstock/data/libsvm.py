"""libsvm files (``+1 3:1 7:0.5``): a label, and features as a map from index to value.

A chunk is about 8 MiB of whole lines, or a whole file where it is compressed or remote. Bytes are parsed in
``kernels``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.data.files import nbytes_of, reading
from penstock.data.source import Chunk
from penstock.data.tables import check_columns, rebatch
from penstock.data.text import Quoting, TextFile, TextRange, TextSource, blocks, line_of
from penstock.errors import DataError
from penstock.kernels.libsvm import BAD_INDEX, BAD_LABEL, DONE, parse_libsvm

__all__ = ["SCHEMA", "LibsvmSource"]

SCHEMA = pa.schema([("label", pa.float32()), ("features", pa.map_(pa.int64(), pa.float32()))])
_TOKEN = re.compile(rb"[^\s#]*")
_NUMBER = "a number as 0.5 or 1e-3 that fits float"
_INDEX = "a whole number from 0 to 10^18 - 1"


@dataclass(frozen=True, kw_only=True)
class LibsvmChunk(Chunk):
    """Whole lines of a file; ``size`` is its bytes on disk."""

    index: int
    size: int
    text: TextRange

    def batches(self, columns: Sequence[str], batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
        check_columns(self.text.path, columns, SCHEMA.names)
        return rebatch(self._tables(), columns, batch_rows, skip)

    def _tables(self) -> Iterator[pa.Table]:
        for _, rows in self._parsed():
            yield rows.table()

    def _parsed(self) -> Iterator[tuple[int, _Rows]]:
        with reading(self.text.path):
            for offset, data in blocks(self.text, Quoting()):
                yield offset, _parse(data, self.text.path, offset)

    def locate(self, row: int) -> str:
        path = self.text.path
        for offset, rows in self._parsed():
            if row < len(rows.labels):
                return f"{path} line {line_of(path, offset + int(rows.row_at[row]))}"
            row -= len(rows.labels)
        return path


class LibsvmSource(TextSource):
    """libsvm files; columns are ``label`` (0 or 1) and ``features`` (a map).

    Raises:
        DataError: a file is missing or empty, there is no row at all, or a first row is wrong.
    """

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__(
            [TextFile(path=path, nbytes=nbytes_of(path), begin=0, quoting=Quoting()) for path in files], SCHEMA
        )
        if not self.sample(1).num_rows:
            raise DataError(f"{self.files[0]} has no rows")

    def _chunk(self, number: int, text: TextRange, index: int, size: int) -> Chunk:
        return LibsvmChunk(index=index, size=size, text=text)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Parsed lines, as ``parse_libsvm`` leaves them."""

    labels: NDArray[np.float32]
    row_at: NDArray[np.int64]
    offsets: NDArray[np.int32]
    indices: NDArray[np.int64]
    values: NDArray[np.float32]

    def table(self) -> pa.Table:
        features = pa.MapArray.from_arrays(pa.array(self.offsets), pa.array(self.indices), pa.array(self.values))
        return pa.table([pa.array(self.labels), features], schema=SCHEMA)


def _parse(data: bytes, path: str, offset: int) -> _Rows:
    """Parse the lines at an offset of a file.

    Raises:
        DataError: with the line, the token and what may stand there.
    """
    characters = np.frombuffer(data, np.uint8)
    lines = data.count(b"\n") + 1
    items = data.count(b":")
    labels, row_at = np.empty(lines, np.float32), np.empty(lines, np.int64)
    offsets = np.empty(lines + 1, np.int32)
    indices, values = np.empty(items, np.int64), np.empty(items, np.float32)
    long_at, long_item = np.empty(items, np.int64), np.empty(items, np.int64)
    ended, at, n_rows, nnz, n_long, rising = parse_libsvm(
        characters, labels, row_at, offsets, indices, values, long_at, long_item
    )
    if ended != DONE:
        raise _mistake(int(ended), data, int(at), path, offset)
    for start, item in zip(long_at[:n_long].tolist(), long_item[:n_long].tolist(), strict=True):
        values[item] = _long_number(data, start, int(indices[item]), path, offset)
    rows = _Rows(
        labels=labels[:n_rows],
        row_at=row_at[:n_rows],
        offsets=offsets[: n_rows + 1],
        indices=indices[:nnz],
        values=values[:nnz],
    )
    if not rising:
        _check_distinct(rows, path, offset)
    return rows


def _long_number(data: bytes, at: int, index: int, path: str, offset: int) -> np.float32:
    token = _token(data, at)
    with np.errstate(over="ignore"):
        value = np.float32(float(token))
    if not np.isfinite(value):
        place = f"{path} line {line_of(path, offset + at)}, index {index}"
        raise DataError(f"{place}: got value {token[:60]!r}, allowed: {_NUMBER}")
    return value


def _token(data: bytes, at: int) -> str:
    match = _TOKEN.match(data, at)
    return match.group().decode("utf-8", "backslashreplace") if match else ""


def _mistake(ended: int, data: bytes, at: int, path: str, offset: int) -> DataError:
    token = _token(data, at)
    place = f"{path} line {line_of(path, offset + at)}"
    if ended == BAD_LABEL:
        return DataError(f"{place}: got label {token[:60]!r}, allowed: 1, 0 or -1")
    index, colon, value = token.partition(":")
    if not colon:
        return DataError(f"{place}: got {token[:60]!r}, allowed: index:value")
    if ended == BAD_INDEX:
        return DataError(f"{place}: got index {index[:60]!r}, allowed: {_INDEX}")
    return DataError(f"{place}, index {index}: got value {value[:60]!r}, allowed: {_NUMBER}")


def _check_distinct(rows: _Rows, path: str, offset: int) -> None:
    row = np.repeat(np.arange(len(rows.labels)), np.diff(rows.offsets))
    order = np.lexsort((rows.indices, row))
    row, index = row[order], rows.indices[order]
    twice = np.flatnonzero((row[1:] == row[:-1]) & (index[1:] == index[:-1]))
    if len(twice):
        at = int(rows.row_at[row[twice[0]]])
        raise DataError(
            f"{path} line {line_of(path, offset + at)}: got index {index[twice[0]]} twice, allowed: once in a row"
        )
