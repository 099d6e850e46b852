"""Text files as blocks of whole lines, compressed or not, and the line number of a place in them.

A block ends with a newline outside quotes. What is in a line is the business of the readers.
"""

from __future__ import annotations

import mmap
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.data.files import is_local, open_file, reading
from penstock.data.source import Chunk, Source
from penstock.data.tables import first_rows
from penstock.errors import DataError

__all__ = [
    "BLOCK_NBYTES",
    "Quoting",
    "TextFile",
    "TextRange",
    "TextSource",
    "blocks",
    "compression_of",
    "line_ends",
    "line_of",
]

BLOCK_NBYTES = 8 << 20
ROW_NBYTES_MAX = 64 << 20
"""A longer row is taken for a quote that was left open."""

_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bz2"))
_LF, _CR = b"\n"[0], b"\r"[0]


@dataclass(frozen=True, kw_only=True)
class Quoting:
    """In which fields a newline does not end a row: those that begin with ``quote``; none if it is None."""

    delimiter: str = ","
    quote: str | None = None


@dataclass(frozen=True, kw_only=True)
class TextRange:
    """Bytes ``begin <= i < end`` of a file once it is decompressed; to its end, where that is None."""

    path: str
    begin: int
    end: int | None


def compression_of(head: bytes) -> str | None:
    """The compression that a file's first bytes tell, as Arrow names it."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def line_ends(data: bytes, quoting: Quoting) -> NDArray[np.int64]:
    """Offsets behind the newlines that end a row; ``b'a\\n"b\\nc"\\nd' -> [2, 8]``.

    ``data`` begins at the begin of a row. A quote opens only at the begin of a field, and closes where it
    is not doubled, as in RFC 4180 and in Arrow; elsewhere it is a character as any other.
    """
    characters = np.frombuffer(data, np.uint8)
    ends: NDArray[np.int64] = np.flatnonzero(characters == _LF) + 1
    if quoting.quote is None or quoting.quote.encode() not in data:
        return ends
    quotes = np.flatnonzero(characters == ord(quoting.quote))
    # Where every other quote stands at the begin of a field, or doubles the one before it, counting tells.
    opening = quotes[::2]
    before = characters[opening - 1]
    regular = np.isin(before, [ord(quoting.delimiter), _LF, _CR, ord(quoting.quote)]) | (opening == 0)
    outside: NDArray[np.bool_]
    if regular.all():
        outside = np.searchsorted(quotes, ends) % 2 == 0
        return ends.compress(outside)
    spans = np.array([match.span() for match in _quoted_field(quoting).finditer(data)])
    if not len(spans):
        return ends
    span = np.searchsorted(spans[:, 0], ends) - 1
    outside = (span < 0) | (ends > spans[span, 1])
    return ends.compress(outside)


def _quoted_field(quoting: Quoting) -> re.Pattern[bytes]:
    quote, delimiter = re.escape(str(quoting.quote)).encode(), re.escape(quoting.delimiter).encode()
    return re.compile(
        rb"(?:\A|(?<=[\n\r]|%b))%b[^%b]*+(?:%b%b[^%b]*+)*+(?:%b|\Z)"
        % (delimiter, quote, quote, quote, quote, quote, quote)
    )


def blocks(text: TextRange, quoting: Quoting, block_nbytes: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The range in blocks of whole rows (of 8 MiB), each with its offset; the last may lack its newline.

    A range that ends before its file does was cut there, and is one block. Call it inside ``reading``.

    Raises:
        DataError: a row is longer than 64 MiB, or a quote is still open where the file ends.
    """
    block_nbytes = BLOCK_NBYTES if block_nbytes is None else block_nbytes
    with open_file(text.path) as file:
        compression = compression_of(file.read(4))
        file.seek(0)
        stream = file if compression is None else pa.CompressedInputStream(file, compression)
        if compression is None:
            file.seek(text.begin)
        else:
            stream.read(text.begin)
        if text.end is not None:
            yield text.begin, stream.read(text.end - text.begin)
            return
        offset, rest = text.begin, b""
        # Of a long row as much again is read each time, since all of it is looked at again.
        while data := stream.read(max(block_nbytes, len(rest))):
            rest += data
            end = _last_end(rest, quoting)
            if end:
                yield offset, rest[:end]
                offset, rest = offset + end, rest[end:]
            elif len(rest) > ROW_NBYTES_MAX:
                raise _too_long(text.path, offset)
        if rest:
            _check_closed(text.path, offset, rest, quoting)
            yield offset, rest


def _last_end(data: bytes, quoting: Quoting) -> int:
    """Behind the last newline that ends a row; 0 if there is none."""
    if quoting.quote is None or quoting.quote.encode() not in data:
        return data.rfind(b"\n") + 1
    ends = line_ends(data, quoting)
    return int(ends[-1]) if len(ends) else 0


def _check_closed(path: str, offset: int, data: bytes, quoting: Quoting) -> None:
    """No quote is open at the end of a file, whose last rows these are."""
    if quoting.quote is None or quoting.quote.encode() not in data:
        return
    ends = line_ends(data + b"\n", quoting)
    if not len(ends) or ends[-1] <= len(data):
        last_row = offset + (int(ends[-1]) if len(ends) else 0)
        if last_row < offset + len(data):
            raise DataError(f"{path} line {line_of(path, last_row)}: got a quote that is never closed")


def _too_long(path: str, offset: int) -> DataError:
    limit = f"{ROW_NBYTES_MAX >> 20} MiB"
    return DataError(f"{path} line {line_of(path, offset)}: got a row longer than {limit}; is a quote left open?")


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A file whose rows begin at offset ``begin``, behind its header, once it is decompressed.

    ``nbytes`` is the work that it is: its size on disk, without the header where that can be told.
    """

    path: str
    nbytes: int
    begin: int
    quoting: Quoting

    def ranges(self) -> Iterator[tuple[TextRange, int]]:
        """Ranges of about 8 MiB that end where rows end, each with its bytes on disk.

        Only a local file that is not compressed is cut: of others a range could not be read by itself, or
        only once the file had been read to find the cuts.
        """
        with reading(self.path):
            with open_file(self.path) as file:
                compression = compression_of(file.read(4))
            if compression or not is_local(self.path):
                yield TextRange(path=self.path, begin=self.begin, end=None), self.nbytes
                return
            with (
                Path(self.path).open("rb") as local,
                mmap.mmap(local.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                begin = self.begin
                while begin < len(data):
                    end = _next_cut(self.path, data, begin, self.quoting)
                    yield TextRange(path=self.path, begin=begin, end=end), end - begin
                    begin = end


def _next_cut(path: str, data: mmap.mmap, begin: int, quoting: Quoting) -> int:
    nbytes = BLOCK_NBYTES
    while begin + nbytes < len(data):
        stop = begin + nbytes
        if quoting.quote is None or data.find(quoting.quote.encode(), begin, stop) < 0:
            end = data.rfind(b"\n", begin, stop) + 1
        else:
            end = begin + _last_end(data[begin:stop], quoting)
        if end > begin:
            return end
        if nbytes >= ROW_NBYTES_MAX:
            raise _too_long(path, begin)
        nbytes *= 2
    if quoting.quote is not None:
        _check_closed(path, begin, data[begin:], quoting)
    return len(data)


def line_of(path: str, offset: int) -> int:
    """Number, from 1, of the line at an offset of the file once decompressed; reads all before it."""
    lines = 1
    if offset:
        for start, block in blocks(TextRange(path=path, begin=0, end=None), Quoting()):
            if start + len(block) >= offset:
                return lines + block.count(b"\n", 0, offset - start)
            lines += block.count(b"\n")
    return lines


class TextSource(Source):
    """Text files in ranges of whole rows; a reader says how a range becomes a chunk."""

    unit = "bytes"

    def __init__(self, files: Sequence[TextFile], schema: pa.Schema) -> None:
        self.files = [file.path for file in files]
        self.schema = schema
        self.repeatable = True
        self._text_files = files
        self._known: dict[int, list[tuple[TextRange, int]]] = {}
        self.size = sum(file.nbytes for file in files)

    @abstractmethod
    def _chunk(self, number: int, text: TextRange, index: int, size: int) -> Chunk:
        """The chunk of a range of file ``number``."""

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        index = 0
        for number in range(len(self._text_files)):
            for text, size in self._ranges(number):
                if index >= start:
                    yield self._chunk(number, text, index, size)
                index += 1

    def _ranges(self, number: int) -> Iterator[tuple[TextRange, int]]:
        """Those of one file; kept for the next pass, since with quotes the file is read to find them."""
        if number in self._known:
            yield from self._known[number]
            return
        found = []
        for item in self._text_files[number].ranges():
            found.append(item)
            yield item
        self._known[number] = found

    def sample(self, rows: int) -> pa.Table:
        return first_rows(self.chunks(), self.schema, rows)
