"""What a reader is: a source cut into chunks, each of which any thread can open on its own.

A chunk is the unit of handing out (a row group of a Parquet file, a byte range of a text file), and with a
number of rows it is a position: a run resumes at (chunk index, rows of it that are done). The cutting
depends on the data alone, so the same files give the same chunks and the same batches each time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import pyarrow as pa

__all__ = ["BATCH_ROWS", "Chunk", "Source"]

BATCH_ROWS = 8192
"""Rows of a record batch: large enough to hide the cost of a kernel call, small enough for the caches."""


class Chunk(ABC):
    """A range of a source. Reading one does not disturb another; any thread may do it."""

    index: int
    """Its place among the source's chunks, from 0."""
    size: int
    """How much work it is, in the unit of ``Source.size``: rows where they are known, else bytes."""

    @abstractmethod
    def batches(self, columns: Sequence[str], batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
        """Record batches of these columns (at least one), in this order, without the first ``skip`` rows.

        ``skip`` is a multiple of ``batch_rows``, so batches are cut at the same rows as without it; all but
        the last batch of the chunk have exactly ``batch_rows`` rows. A text column may come as dictionary
        arrays in one chunk and plain in another; batches may share a dictionary.

        Raises:
            DataError: a truncated file, a row with too few fields, a value of another type.
        """

    @abstractmethod
    def locate(self, row: int) -> str:
        """Where the chunk's row (from 0) stands, for messages: ``clicks.csv line 17``; may be slow."""


class Source(ABC):
    """A readable set of examples: files, a table, or a stream of record batches."""

    schema: pa.Schema
    """Columns and types; the same for every chunk."""
    files: Sequence[str]
    """What it was read from, for lineage; empty for data in memory."""
    size: int | None
    """Sum of the chunks' sizes, None where it is not known before reading."""
    unit: Literal["rows", "bytes"] = "rows"
    """What sizes count."""
    repeatable: bool
    """Whether ``chunks`` can be asked again (a second pass, a resumed run); False for an iterator."""

    @abstractmethod
    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """The chunks in order, from number ``start``."""

    @abstractmethod
    def sample(self, rows: int) -> pa.Table:
        """About the first ``rows`` rows (fewer if there are fewer), all columns; does not use them up."""

    def read_as(self, types: Mapping[str, pa.DataType]) -> Source:
        """The same source with these columns read as these types, where the format leaves a choice (CSV)."""
        return self
