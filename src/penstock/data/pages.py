"""Columns of texts in a local Parquet file, page by page, as indices into the dictionary that was written.

Arrow's reader puts each entry of a dictionary into a hash table, which costs more than all the rest of reading
where a row group has many. Here a dictionary stays as it stands in the file. Only flat columns that are indices
throughout are read so; the others, and whatever is not as expected, are left to Arrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from penstock.data.tables import plain_type
from penstock.errors import DataError
from penstock.kernels.parquet import HEADER, MALFORMED, decode_dictionary, decode_indices, list_pages

__all__ = ["CODECS", "IndexedColumn", "indexed_column"]

CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd"}
"""Those of which it can be told whether all of a page was there."""
PAGES_MAX = 1 << 16
NBYTES_MAX = (1 << 31) - 1
"""Of a page: offsets into its text are i32."""

# Places in a header as ``list_pages`` leaves it: fields of parquet.thrift's PageHeader and of the structs in it.
_TYPE, _RAW_NBYTES, _BODY_AT, _BODY_NBYTES = 1, 2, 90, 91
_V1_VALUES, _V1_ENCODING, _V1_LEVELS = 51, 52, 53
_ENTRIES, _ENTRIES_ENCODING = 71, 72
_V2_VALUES, _V2_ENCODING, _V2_LEVELS_NBYTES, _V2_REPEATS_NBYTES, _V2_COMPRESSED = 81, 84, 85, 86, 87
_DATA_V1, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8

_NO_BYTES = np.empty(0, np.uint8)
_NO_ROWS = np.empty(0, np.uint32), np.empty(0, np.uint8)


class _DamagedError(Exception):
    """A page is not what its header says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Page:
    """A dictionary, or indices; ``levels`` (which are there) is None where it stands at the begin of ``body``.

    ``raw_nbytes`` is the length of ``body`` once it is decompressed.
    """

    n_values: int
    levels: pa.Buffer | None = None
    body: pa.Buffer
    compressed: bool = True
    raw_nbytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layout:
    """What the footer says of a column; ``codec`` None says that pages are not compressed."""

    name: str
    type: pa.DataType
    nullable: bool
    codec: str | None


class IndexedColumn:
    """A column chunk of a row group, to be read once, from its first row on."""

    def __init__(self, layout: _Layout, dictionary: _Page, pages: Sequence[_Page]) -> None:
        self._layout = layout
        self._codec = pa.Codec(layout.codec) if layout.codec else None
        self._dictionary_page = dictionary
        self._dictionary: pa.Array | None = None
        self._pages = iter(pages)
        self._rest = _NO_ROWS

    def read(self, rows: int) -> pa.DictionaryArray:
        """The next ``rows`` rows, of those that there are; all that is read has one dictionary.

        Raises:
            DataError: a page is damaged; it does not say of which file.
        """
        indices, valid = _empty(rows, np.uint32), _empty(rows, np.uint8)
        try:
            if self._dictionary is None:
                self._dictionary = self._decode_dictionary(self._dictionary_page)
            done = self._take_rest(indices, valid)
            while done < rows:
                page = next(self._pages, None)
                if page is None:
                    raise _DamagedError
                if page.n_values <= rows - done:
                    end = done + page.n_values
                    self._decode(page, indices[done:end], valid[done:end])
                    done = end
                else:
                    self._rest = _empty(page.n_values, np.uint32), _empty(page.n_values, np.uint8)
                    self._decode(page, *self._rest)
                    done += self._take_rest(indices[done:], valid[done:])
        except (_DamagedError, pa.ArrowException, OSError) as error:
            raise DataError(f"column {self._layout.name} has a damaged page") from error
        return self._array(indices, valid)

    def _take_rest(self, indices: NDArray[np.uint32], valid: NDArray[np.uint8]) -> int:
        """Fill as much as there is of a page that was read in part."""
        rest_indices, rest_valid = self._rest
        taken = min(len(indices), len(rest_indices))
        indices[:taken], valid[:taken] = rest_indices[:taken], rest_valid[:taken]
        self._rest = rest_indices[taken:], rest_valid[taken:]
        return taken

    def _array(self, indices: NDArray[np.uint32], valid: NDArray[np.uint8]) -> pa.DictionaryArray:
        nulls = len(valid) - int(np.count_nonzero(valid)) if self._layout.nullable else 0
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little")) if nulls else None
        numbers = pa.Array.from_buffers(pa.int32(), len(indices), [bitmap, pa.py_buffer(indices)], nulls)
        return pa.DictionaryArray.from_arrays(numbers, self._dictionary, safe=False)

    def _decode_dictionary(self, page: _Page) -> pa.Array:
        body = self._raw(page)
        text_nbytes = len(body) - 4 * page.n_values
        if text_nbytes < 0:
            raise _DamagedError
        offsets, text = _empty(page.n_values + 1, np.int32), _empty(text_nbytes, np.uint8)
        found = decode_dictionary(_as_bytes(body), offsets, text)
        if found == MALFORMED:
            raise _DamagedError
        array = pa.Array.from_buffers(
            self._layout.type, page.n_values, [None, pa.py_buffer(offsets), pa.py_buffer(text)], 0
        )
        if found:
            array.validate(full=True)
        return array

    def _decode(self, page: _Page, indices: NDArray[np.uint32], valid: NDArray[np.uint8]) -> None:
        items = self._raw(page)
        levels = None
        if self._layout.nullable:
            levels = page.levels
            if levels is None:
                nbytes = int.from_bytes(items[:4].to_pybytes(), "little")
                if 4 + nbytes > len(items):
                    raise _DamagedError
                levels, items = items.slice(4, nbytes), items.slice(4 + nbytes)
            if not len(levels):
                raise _DamagedError
        entries = len(self._dictionary or ())
        if decode_indices(_as_bytes(levels), _as_bytes(items), entries, indices, valid) == MALFORMED:
            raise _DamagedError

    def _raw(self, page: _Page) -> pa.Buffer:
        if not page.raw_nbytes:
            return page.body.slice(0, 0)  # nothing, though most codecs write some bytes for it
        if self._codec is None or not page.compressed:
            return page.body
        if _promised_nbytes(self._layout.codec, page.body) not in (None, page.raw_nbytes):
            raise _DamagedError  # the codec would leave the rest of the memory as it was
        return self._codec.decompress(page.body, decompressed_size=page.raw_nbytes)


def _empty(n: int, dtype: Any) -> NDArray[Any]:
    """Memory from Arrow's pool, which keeps what is freed: NumPy's goes back to the system, page by page."""
    return np.frombuffer(pa.allocate_buffer(n * np.dtype(dtype).itemsize), dtype)


def _promised_nbytes(codec: str | None, body: pa.Buffer) -> int | None:
    """Length that a compressed page says it has once decompressed; None where its codec checks that itself."""
    if codec == "gzip":  # RFC 1952: the last 4 bytes
        tail: bytes = body.slice(max(0, len(body) - 4)).to_pybytes()
        return int.from_bytes(tail, byteorder="little", signed=False)
    if codec != "snappy":
        return None
    nbytes = 0
    head: bytes = body.slice(0, 5).to_pybytes()
    for i, byte in enumerate(head):  # Snappy's format: a varint in front
        nbytes |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return nbytes
    return -1


def _as_bytes(buffer: pa.Buffer | None) -> NDArray[np.uint8]:
    return np.frombuffer(buffer, np.uint8) if buffer is not None and len(buffer) else _NO_BYTES


def indexed_column(
    file: pa.NativeFile, group: pq.RowGroupMetaData, column: int, type_: pa.DataType, nullable: bool
) -> IndexedColumn | None:
    """A column chunk that is a flat column of indices into texts, None if it is not that.

    Args:
        file: open for reading; what is read of it is not copied where it is memory-mapped
        group: the row group
        column: number of the column in it
        type_: of the column, as Arrow has it
        nullable: whether values can be null
    """
    part = group.column(column)
    value_type = plain_type(type_)
    if value_type not in (pa.string(), pa.binary()) or part.compression not in CODECS:
        return None
    if part.physical_type != "BYTE_ARRAY" or not part.has_dictionary_page or part.num_values != group.num_rows:
        return None
    begin = part.dictionary_page_offset
    if begin is None or not 0 < begin < part.data_page_offset or not 0 < part.num_values <= NBYTES_MAX:
        return None
    nbytes = part.total_compressed_size
    if nbytes <= 0 or begin + nbytes > file.size():
        return None
    file.seek(begin)
    chunk = file.read_buffer(nbytes)
    first, *rest = _headers(_as_bytes(chunk), part.num_values) or [[]]
    if not first or not rest or first[_TYPE] != _DICTIONARY or first[_ENTRIES] < 0:
        return None
    limit = min(part.total_uncompressed_size, NBYTES_MAX)
    dictionary = _dictionary_page(chunk, first, limit)
    pages = [_data_page(chunk, header, limit) for header in rest]
    if dictionary is None or None in pages:
        return None
    layout = _Layout(name=part.path_in_schema, type=value_type, nullable=nullable, codec=CODECS[part.compression])
    return IndexedColumn(layout, dictionary, [page for page in pages if page is not None])


def _headers(chunk: NDArray[np.uint8], n_values: int) -> list[list[int]]:
    """Headers of all pages of a column chunk; none where they are not in order, or very many."""
    n_pages = 16
    while n_pages <= PAGES_MAX:
        headers = np.empty((n_pages, HEADER), np.int64)
        found = list_pages(chunk, n_values, headers)
        if found < n_pages:
            return headers[: max(found, 0)].tolist()  # type: ignore[no-any-return]
        n_pages *= 8
    return []


def _dictionary_page(chunk: pa.Buffer, header: list[int], limit: int) -> _Page | None:
    if header[_ENTRIES_ENCODING] not in (_PLAIN, _PLAIN_DICTIONARY) or not 0 <= header[_RAW_NBYTES] <= limit:
        return None
    return _Page(
        n_values=header[_ENTRIES],
        body=chunk.slice(header[_BODY_AT], header[_BODY_NBYTES]),
        raw_nbytes=header[_RAW_NBYTES],
    )


def _data_page(chunk: pa.Buffer, header: list[int], limit: int) -> _Page | None:
    """None where it is no page of indices into the dictionary."""
    indexed = (_PLAIN_DICTIONARY, _RLE_DICTIONARY)
    body = chunk.slice(header[_BODY_AT], header[_BODY_NBYTES])
    if not 0 <= header[_RAW_NBYTES] <= limit:
        return None
    if header[_TYPE] == _DATA_V1:
        if header[_V1_ENCODING] not in indexed or header[_V1_LEVELS] != _RLE or header[_V1_VALUES] < 0:
            return None
        return _Page(n_values=header[_V1_VALUES], body=body, raw_nbytes=header[_RAW_NBYTES])
    nbytes = header[_V2_LEVELS_NBYTES]
    if header[_TYPE] != _DATA_V2 or header[_V2_ENCODING] not in indexed or header[_V2_REPEATS_NBYTES]:
        return None
    if header[_V2_VALUES] < 0 or not 0 <= nbytes <= min(len(body), header[_RAW_NBYTES]):
        return None
    return _Page(
        n_values=header[_V2_VALUES],
        levels=body.slice(0, nbytes),
        body=body.slice(nbytes),
        compressed=header[_V2_COMPRESSED] != 0,
        raw_nbytes=header[_RAW_NBYTES] - nbytes,
    )
