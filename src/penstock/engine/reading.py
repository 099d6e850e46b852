"""Micro-batches of chunks, for whoever is granted them: read, hashed, and their distinct keys found.

A worker mostly reads a chunk from its beginning to its end; where it is given micro-batches of another's chunk it
opens that too, and what lies between is decoded and not hashed. Not for two threads at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.batch import Keys, SparseBatch
from penstock.data import BATCH_ROWS, Chunk, Source
from penstock.errors import DataError, RowError
from penstock.features import Encoder
from penstock.features.memory import Memory
from penstock.models import Model
from penstock.parameter_server.messages import BatchName
from penstock.table import unique_keys
from penstock.train.stream import Keep

__all__ = ["MicroBatch", "Reading"]

_OPEN_MOST = 16
"""Chunks that are open at once."""


@dataclass(slots=True, eq=False)
class _Block:
    """Some consecutive micro-batches, encoded together; its memory is used again when all of them are done."""

    first: int
    batch: SparseBatch
    bounds: NDArray[np.int64]
    """Where each micro-batch begins, and the last ends, in ``batch``."""
    memory: Memory
    users: int = 0
    current: bool = True


@dataclass(slots=True, eq=False)
class MicroBatch:
    """A micro-batch, ready to be pulled for."""

    name: BatchName
    batch: SparseBatch
    keys: Mapping[str, Keys]
    """Distinct, rising, of each table."""
    index: Mapping[str, Any]
    last: bool
    """Of its chunk."""
    where: str
    """For messages: where its rows stand."""
    block: _Block


@dataclass(slots=True, eq=False)
class _Cursor:
    """An open chunk."""

    chunk: Chunk
    records: Iterator[pa.RecordBatch]
    following: pa.RecordBatch | None
    next_block: int = 0
    block: _Block | None = None
    length: int | None = None


class Reading:
    """Micro-batches of ``minibatch`` rows (before ``keep``) of a source's chunks."""

    def __init__(
        self,
        model: Model,
        source: Source,
        *,
        minibatch: int,
        keep: Keep | None = None,
        extra_columns: tuple[str, ...] = (),
    ) -> None:
        assert model.plan is not None
        self._model, self._source = model, source
        self._chunks = list(source.chunks())
        self._minibatch = minibatch
        self._per_block = max(1, BATCH_ROWS // minibatch)
        self._keep = keep
        self._encoder = Encoder(model.plan)
        self._columns = list(dict.fromkeys([*self._encoder.columns, *extra_columns]))
        self._open: OrderedDict[int, _Cursor] = OrderedDict()
        self._unused: list[Memory] = []

    @staticmethod
    def lengths(source: Source, minibatch: int) -> list[int | None]:
        """Micro-batches of each chunk, None where only reading will tell."""
        chunks = source.chunks()
        if source.unit != "rows":
            return [None for _ in chunks]
        return [max(1, -(-chunk.size // minibatch)) for chunk in chunks]

    def read(self, name: BatchName) -> MicroBatch | int:
        """The micro-batch; or the chunk's number of micro-batches, where it is fewer.

        Raises:
            DataError: a row is bad; the message says where.
        """
        number, wanted = name.chunk % len(self._chunks), name.batch // self._per_block
        cursor = self._cursor(number, wanted)
        while cursor.block is None or cursor.block.first != wanted * self._per_block:
            if cursor.length is not None:
                return cursor.length
            self._next_block(cursor, wanted)
        if cursor.length is not None and name.batch >= cursor.length:
            return cursor.length
        block, place = cursor.block, name.batch - cursor.block.first
        batch = block.batch.slice(int(block.bounds[place]), int(block.bounds[place + 1]))
        distinct = {table: unique_keys(keys) for table, keys in self._model.keys(batch).items()}
        block.users += 1
        last = cursor.length == name.batch + 1
        if last:
            del self._open[number]
            block.current = False
        return MicroBatch(
            name=name,
            batch=batch,
            keys={table: keys for table, (keys, _) in distinct.items()},
            index={table: index for table, (_, index) in distinct.items()},
            last=last,
            where=f"chunk {number}, batch {name.batch}",
            block=block,
        )

    def locate(self, name: BatchName) -> str:
        """Where a micro-batch begins, for messages; may be slow."""
        return self._chunks[name.chunk % len(self._chunks)].locate(name.batch * self._minibatch)

    def release(self, micro: MicroBatch) -> None:
        """The arrays of a micro-batch are not needed any more."""
        micro.block.users -= 1
        self._reuse(micro.block)

    def _reuse(self, block: _Block) -> None:
        if not block.users and not block.current:
            self._unused.append(block.memory)

    def _cursor(self, number: int, block: int) -> _Cursor:
        """The open chunk, at the block or before it."""
        cursor = self._open.get(number)
        if cursor is not None and block < cursor.next_block:
            at_hand = cursor.block is not None and cursor.block.first == block * self._per_block
            cursor = cursor if at_hand else None
        if cursor is None:
            cursor = self._begin(number, block)
            if cursor.following is None and block:
                # It ends before: where, only reading from its beginning tells.
                cursor = self._begin(number, 0)
        self._open.move_to_end(number)
        while len(self._open) > _OPEN_MOST:
            _, closed = self._open.popitem(last=False)
            self._leave(closed)
        return cursor

    def _begin(self, number: int, block: int) -> _Cursor:
        before = self._open.get(number)
        if before is not None:
            self._leave(before)
        chunk, rows = self._chunks[number], self._per_block * self._minibatch
        records = chunk.batches(self._columns, rows, block * rows)
        cursor = _Cursor(chunk, records, next(records, None), next_block=block)
        self._open[number] = cursor
        return cursor

    def _leave(self, cursor: _Cursor) -> None:
        if cursor.block is not None:
            cursor.block.current = False
            self._reuse(cursor.block)
            cursor.block = None

    def _next_block(self, cursor: _Cursor, wanted: int) -> None:
        """Decode the next block, and encode it if it is the wanted one."""
        self._leave(cursor)
        records, cursor.following = cursor.following, next(cursor.records, None)
        block, cursor.next_block = cursor.next_block, cursor.next_block + 1
        first = block * self._per_block
        if cursor.following is None:
            # An empty chunk has one micro-batch, without rows, so that its lane knows that it has passed.
            rows = 0 if records is None else len(records)
            cursor.length = max(1, first + -(-rows // self._minibatch))
        if block == wanted:
            records = records if records is not None else pa.RecordBatch.from_pylist([], self._schema())
            cursor.block = self._encode(cursor.chunk, records, first)

    def _schema(self) -> pa.Schema:
        return pa.schema([self._source.schema.field(name) for name in self._columns])

    def _encode(self, chunk: Chunk, records: pa.RecordBatch, first: int) -> _Block:
        row, kept, mask = first * self._minibatch, records, None
        steps = np.arange(0, len(records) + self._minibatch, self._minibatch).clip(max=len(records))
        bounds = steps if len(steps) > 1 else np.zeros(2, np.int64)
        if self._keep is not None:
            mask = self._keep(records, chunk, row)
            kept = records.filter(pa.array(mask))
            bounds = np.concatenate([[0], np.cumsum(mask)])[bounds]
        memory = self._unused.pop() if self._unused else Memory()
        try:
            batch = self._encoder.encode(kept, memory=memory)
        except RowError as error:
            bad = error.row if mask is None else int(np.flatnonzero(mask)[error.row])
            raise DataError(f"{chunk.locate(row + bad)}: {error.message}") from error
        return _Block(first, batch, bounds, memory)
