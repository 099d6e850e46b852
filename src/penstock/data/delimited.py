"""CSV and TSV files: a chunk is about 8 MiB of whole rows, or a whole file where it is compressed or remote.

Types are fixed when a source is opened: by inference on the first rows, or by ``read_as``. How rows are
parsed is in ``rows``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.data.files import nbytes_of, open_file, reading
from penstock.data.rows import Layout, column_names, infer_schema, parse
from penstock.data.source import Chunk
from penstock.data.tables import check_columns, rebatch
from penstock.data.text import (
    Quoting,
    TextFile,
    TextRange,
    TextSource,
    blocks,
    compression_of,
    line_ends,
    line_of,
)
from penstock.errors import ConfigError, DataError

__all__ = ["CsvOptions", "DelimitedSource"]

HEAD_NBYTES = 1 << 16
SAMPLE_NBYTES = 4 << 20
"""Types are inferred from so much of the first file that has rows, and samples are taken of it."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class CsvOptions:
    """What a delimited file does not say of itself.

    ===========  ================================================================================
    delimiter    one character; None takes a tab for TSV files, else a comma
    header       whether each file begins with a row of column names
    columns      names of the columns of files without a header; None names them f0, f1, ...
    null_values  texts that stand for null, in addition to the empty field
    quote        the character around fields that may hold delimiters and newlines; None for none
    ===========  ================================================================================

    Raises:
        ConfigError: a character that is not one, names that repeat, or names besides a header.
    """

    delimiter: str | None = None
    header: bool = True
    columns: tuple[str, ...] | None = None
    null_values: tuple[str, ...] = ()
    quote: str | None = '"'

    def __post_init__(self) -> None:
        for name, value in (("delimiter", self.delimiter), ("quote", self.quote)):
            if value is not None and (len(value) != 1 or not value.isascii() or value in "\r\n"):
                raise ConfigError(f"csv {name}: got {value!r}, allowed: one ASCII character, no line end")
        if self.delimiter is not None and self.delimiter == self.quote:
            raise ConfigError(f"csv delimiter and quote are both {self.quote!r}, allowed: two characters")
        if self.columns is None:
            return
        if self.header:
            raise ConfigError("csv columns name the columns of files without a header; set header to false")
        name, times = Counter(self.columns).most_common(1)[0] if self.columns else ("", 0)
        if times != 1:
            raise ConfigError(f"csv columns: got {name!r} {times} times, allowed: distinct names, at least one")


@dataclass(frozen=True, kw_only=True)
class DelimitedChunk(Chunk):
    """Whole rows of a file; ``size`` is its bytes on disk."""

    index: int
    size: int
    text: TextRange
    layout: Layout

    def batches(self, columns: Sequence[str], batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
        check_columns(self.text.path, columns, self.layout.names)
        return rebatch(self._tables(columns), columns, batch_rows, skip)

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        with reading(self.text.path):
            for offset, data in blocks(self.text, self.layout.quoting):
                yield parse(data, self.layout, columns, self.text.path, offset)

    def locate(self, row: int) -> str:
        path = self.text.path
        with reading(path):
            for offset, data in blocks(self.text, self.layout.quoting):
                starts = _row_starts(data, self.layout.quoting)
                if row < len(starts):
                    return f"{path} line {line_of(path, offset + int(starts[row]))}"
                row -= len(starts)
        return path


def _row_starts(data: bytes, quoting: Quoting) -> NDArray[np.int64]:
    """Offsets of rows; empty lines are none."""
    ends = line_ends(data, quoting)
    starts: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), ends])
    starts = starts[starts < len(data)]
    first = np.frombuffer(data, np.uint8)[starts]
    return starts.compress((first != b"\n"[0]) & (first != b"\r"[0]))


def _row_nbytes(data: bytes, quoting: Quoting) -> int:
    ends = line_ends(data, quoting)
    return int(ends[0]) if len(ends) else len(data)


class DelimitedSource(TextSource):
    """CSV or TSV files with the same columns, in any order.

    Raises:
        DataError: a file is missing, empty or has other columns; a header repeats a name or is none; there
            is no row at all.
    """

    def __init__(self, files: Sequence[str], options: CsvOptions, delimiter: str) -> None:
        self._options = options
        self._quoting = Quoting(delimiter=options.delimiter or delimiter, quote=options.quote)
        if self._quoting.delimiter == options.quote:
            raise ConfigError(f"csv delimiter and quote are both {options.quote!r}, allowed: two characters")
        opened = [self._open(path) for path in files]
        self._names = [names for _, names in opened]
        for path, names in zip(files, self._names, strict=True):
            _check_names(path, names, files[0], self._names[0])
        super().__init__([file for file, _ in opened], pa.schema([]))
        self.schema = self._infer()

    @property
    def options(self) -> CsvOptions:
        """How the files are written, with the delimiter that was taken."""
        return dataclasses.replace(self._options, delimiter=self._quoting.delimiter)

    def _open(self, path: str) -> tuple[TextFile, tuple[str, ...]]:
        nbytes = nbytes_of(path)
        with reading(path):
            with open_file(path) as file:
                compression = compression_of(file.read(4))
                file.seek(0)
                start = pa.CompressedInputStream(file, compression) if compression else file
                bom = len(_BOM) if start.read(len(_BOM)) == _BOM else 0
            text = TextRange(path=path, begin=bom, end=None)
            _, body = next(blocks(text, self._quoting, HEAD_NBYTES), (bom, b""))
        starts = _row_starts(body, self._quoting)
        if not len(starts):
            raise DataError(f"{path} has no rows")
        if b"\r" in body.rstrip(b"\r\n") and b"\n" not in body:
            raise DataError(f"{path}: lines end with a carriage return alone, allowed: LF or CR LF")
        first = int(starts[0])
        row = body[first : first + _row_nbytes(body[first:], self._quoting)]
        begin = bom + (first + len(row) if self._options.header else 0)
        return (
            TextFile(
                path=path, nbytes=nbytes if compression else nbytes - begin, begin=begin, quoting=self._quoting
            ),
            self._names_of(path, row, bom + first),
        )

    def _names_of(self, path: str, row: bytes, offset: int) -> tuple[str, ...]:
        place = f"{path} line {line_of(path, offset)}"
        try:
            names = column_names(row, self._quoting, self._options.header)
        except (UnicodeDecodeError, pa.ArrowException) as error:
            got = row[:60].decode("utf-8", "backslashreplace")
            raise DataError(f"{place}: got {got!r}, allowed: column names in UTF-8") from error
        if self._options.header:
            _check_header(place, names)
        return self._options.columns or names

    def _infer(self) -> pa.Schema:
        path, number, offset, data = next(self._blocks(), (self.files[0], 0, 0, b""))
        if not data:
            raise DataError(f"{path} has no rows")
        schema = infer_schema(data, self._layout(number), path, offset)
        return pa.schema([schema.field(name) for name in self._names[0]])

    def _blocks(self) -> Iterator[tuple[str, int, int, bytes]]:
        """Rows, with their file, its number, and where in it they stand."""
        for number, file in enumerate(self._text_files):
            text = TextRange(path=file.path, begin=file.begin, end=None)
            with reading(file.path):
                for offset, data in blocks(text, self._quoting, SAMPLE_NBYTES):
                    if len(_row_starts(data, self._quoting)):
                        yield file.path, number, offset, data

    def sample(self, rows: int) -> pa.Table:
        """The first ``rows`` rows of about ``SAMPLE_NBYTES``; fewer where the inferred types do not fit."""
        found, missing, looked_at = [self.schema.empty_table()], rows, 0
        for path, number, offset, data in self._blocks():
            try:
                table = parse(data, self._layout(number), self.schema.names, path, offset).slice(0, missing)
            except DataError:
                if len(found) == 1:
                    raise
                break
            found.append(table)
            missing -= len(table)
            looked_at += len(data)
            if missing <= 0 or looked_at >= SAMPLE_NBYTES // 2:
                break
        return pa.concat_tables(found)

    def _layout(self, number: int) -> Layout:
        return Layout(
            names=self._names[number],
            schema=self.schema,
            quoting=self._quoting,
            null_values=self._options.null_values,
        )

    def _chunk(self, number: int, text: TextRange, index: int, size: int) -> Chunk:
        return DelimitedChunk(index=index, size=size, text=text, layout=self._layout(number))

    def read_as(self, types: Mapping[str, pa.DataType]) -> DelimitedSource:
        """The same source with these columns read as these types, such as text where digits are labels.

        Raises:
            DataError: no such column.
        """
        check_columns(self.files[0], list(types), self.schema.names)
        other = copy.copy(self)
        other.schema = pa.schema([(field.name, types.get(field.name, field.type)) for field in self.schema])
        return other


def _check_header(place: str, names: Sequence[str]) -> None:
    hint = "if the file has no header, say so with header=False (--no-header)"
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{place}: got {times} columns named {name!r}, allowed: distinct names; {hint}")
    for i, name in enumerate(names):
        # pandas names columns by their number, one later where the index was written first.
        if _is_number(name) and name not in (str(i), str(i - 1)):
            raise DataError(f"{place}: got {name!r} in the header, allowed: column names; {hint}")


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _check_names(path: str, names: Sequence[str], first_path: str, first: Sequence[str]) -> None:
    for name in sorted(set(first) ^ set(names)):
        if name in first:
            raise DataError(f"{path} has no column {name!r}, {first_path} has")
        raise DataError(f"{path} has an extra column {name!r}, {first_path} has not")
