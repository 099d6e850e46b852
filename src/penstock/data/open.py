"""``open_source``: from whatever the user names as data to the reader for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

import pyarrow as pa

from penstock.data.delimited import CsvOptions, DelimitedSource
from penstock.data.files import find_files, nbytes_of, open_file, reading
from penstock.data.ipc import MAGIC, IpcSource
from penstock.data.memory import BatchesSource, TableSource, to_table
from penstock.data.parquet import ParquetSource
from penstock.data.source import Source
from penstock.data.text import compression_of
from penstock.errors import ConfigError, DataError

__all__ = ["FORMATS", "open_source"]

_BY_SUFFIX = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".svm": "libsvm",
    ".libsvm": "libsvm",
}
_COMPRESSED = (".gz", ".zst", ".bz2")
FORMATS = ("arrow", "csv", "libsvm", "parquet", "tsv")
_LIBSVM_LINE = re.compile(rb"[+-]?\d+(\.\d+)?([ \t]+qid:\d+)?([ \t]+\d+:\S+)*\s*(#.*)?")
_HEAD_NBYTES = 1 << 16


def open_source(data: Any, *, format: str | None = None, csv: CsvOptions | None = None) -> Source:
    """Open data for reading in chunks.

    Args:
        data: a path, glob, folder or URL, or a list of them; or an Arrow table, record batch or reader, a
            pandas or Polars data frame, or an iterable of record batches. A folder is read to the bottom,
            without names that begin with ``.`` or ``_``; files of a glob or a folder are sorted.
        format: one of ``FORMATS``; None tells it from the file's name, or else from its first bytes.
        csv: how CSV and TSV files are written.

    Raises:
        DataError: the data is missing, empty, damaged, or not of one format and schema.
        ConfigError: ``data`` is none of these, or its format cannot be told.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format: got {format!r}, allowed: {', '.join(FORMATS)}")
    if isinstance(data, str | list | tuple) and not data:
        raise ConfigError(f"data: got {data!r}, allowed: at least one path, glob, folder or URL")
    if isinstance(data, str | os.PathLike):
        return _open_files([data], format, csv)
    if isinstance(data, Sequence) and data and all(isinstance(place, str | os.PathLike) for place in data):
        return _open_files(data, format, csv)
    if format is not None or csv is not None:
        raise ConfigError(f"format and csv are for files, got {type(data).__name__} as data")
    table = to_table(data)
    if table is not None:
        return TableSource(table)
    if isinstance(data, Iterable) and not isinstance(data, bytes | dict):
        return BatchesSource(data)
    raise ConfigError(
        f"data: got {type(data).__name__}, allowed: a path, glob, folder or URL, a list of them, "
        "a table of Arrow, pandas or Polars, or an iterable of record batches"
    )


def _open_files(places: Sequence[str | os.PathLike[str]], format: str | None, csv: CsvOptions | None) -> Source:
    files = find_files(places)
    format = format or _format_of(files)
    if csv is not None and format not in ("csv", "tsv"):
        raise ConfigError(f"csv options are for csv and tsv, got format {format!r} of {files[0]}")
    if format == "parquet":
        return ParquetSource(files)
    if format == "arrow":
        return IpcSource(files)
    if format == "libsvm":
        # Its kernel brings Numba, which the other formats can do without.
        from penstock.data.libsvm import LibsvmSource

        return LibsvmSource(files)
    return DelimitedSource(files, csv or CsvOptions(), delimiter="\t" if format == "tsv" else ",")


def _format_of(files: Sequence[str]) -> str:
    first = _format_of_file(files[0])
    for path in files[1:]:
        other = _format_of_file(path)
        if other != first:
            raise DataError(f"{path} is {other}, {files[0]} is {first}; allowed: files of one format")
    return first


def _format_of_file(path: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes[-2:]]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    known = _BY_SUFFIX.get(suffixes[-1]) if suffixes else None
    return known or _sniff(path)


def _sniff(path: str) -> str:
    nbytes_of(path)
    with reading(path), open_file(path) as file:
        head = file.read(_HEAD_NBYTES)
        if head.startswith(b"PAR1"):
            return "parquet"
        if head.startswith(MAGIC):
            return "arrow"
        compression = compression_of(head)
        if compression is not None:
            file.seek(0)
            head = pa.CompressedInputStream(file, compression).read(_HEAD_NBYTES)
    lines = head.split(b"\n")
    if len(lines) == 1 and len(head) == _HEAD_NBYTES:
        lines = [head[: max(head.rfind(b" "), head.rfind(b"\t"))]]  # what was cut off in the middle says nothing
    if _LIBSVM_LINE.fullmatch(
        next((line for line in map(bytes.strip, lines) if line[:1] not in (b"", b"#")), b"")
    ):
        return "libsvm"
    raise ConfigError(
        f"{path}: its format cannot be told, name it with format (--format), one of {', '.join(FORMATS)}"
    )
