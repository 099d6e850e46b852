"""Standard input into a log: JSON lines, for as long as they come.

The position is the number of the line; with a producer's name the lines that are in the log already are passed
over, so that a pipe can be set up again from the beginning.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.errors import DataError
from penstock.log.events import Appended, EventStream
from penstock.log.log import Log
from penstock.log.quarantine import Rejected
from penstock.log.sources.blocks import Block, Blocks
from penstock.log.sources.decode import Decoder, Lines
from penstock.log.sources.files import NewStream, make_stream, too_long
from penstock.log.sources.pump import BATCH_NBYTES, BATCH_ROWS, Batch, Delivery, Taken, append, json_batch

__all__ = ["append_stdin"]

_COMMIT_S = 1.0
"""What came is committed after this time, however little it is."""
_GATHER_S = 0.02
_LOOK_S = 0.2


def append_stdin(
    log: Log,
    name: str,
    how: Delivery,
    new: NewStream,
    on_commit: Callable[[Appended], None],
    stopping: Callable[[], bool] = lambda: False,
    descriptor: int = 0,
) -> Taken:
    """Append lines until there are no more, or until ``stopping``; what was read by then is in the log.

    Raises:
        DataError: there is no event in it, or they do not fit the stream.
        PositionMoved: another process appends as the same producer.
    """
    return _Feed(log, name, how, new, on_commit).run(Blocks(_reader(descriptor, stopping), 0))


def _reader(descriptor: int, stopping: Callable[[], bool]) -> Callable[[int], bytes | None]:
    def read(nbytes: int) -> bytes | None:
        if stopping():
            return b""
        if not _is_ready(descriptor, _LOOK_S):
            return None
        pieces, missing = [], nbytes
        while piece := os.read(descriptor, missing):
            pieces.append(piece)
            missing -= len(piece)
            if not missing or not _is_ready(descriptor, _GATHER_S):
                break
        return b"".join(pieces)

    return read


def _is_ready(descriptor: int, timeout_s: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


class _Feed:
    def __init__(
        self, log: Log, name: str, how: Delivery, new: NewStream, on_commit: Callable[[Appended], None]
    ) -> None:
        self._log, self._name, self._how, self._new, self._on_commit = log, name, how, new, on_commit
        self._taken = Taken()
        self._line = 0
        self._stream: EventStream | None = None
        self._position = 0
        if log.has(name):
            self._open(make_stream(log, name, new, lambda types: []))
        self._clear()

    def _open(self, stream: EventStream) -> None:
        self._stream = stream
        self._decoder = Decoder(stream.schema, time=stream.settings.time, types=self._new.types)
        self._position = stream.position(self._how.producer) if self._how.producer else 0

    def _clear(self) -> None:
        self._blocks: list[tuple[Lines, NDArray[np.int64]]] = []
        self._rejected: list[Rejected] = []
        self._nbytes, self._rows, self._since = 0, 0, time.monotonic()

    def run(self, blocks: Iterable[Block]) -> Taken:
        for block in blocks:
            if block.is_too_long:
                self._keep_too_long(block)
            elif block.text:
                self._keep(block)
            full = self._rows >= BATCH_ROWS or self._nbytes >= BATCH_NBYTES
            if full or time.monotonic() - self._since >= _COMMIT_S:
                self._commit(full)
        self._commit(True)
        return self._taken

    def _keep_too_long(self, block: Block) -> None:
        if self._line >= self._position:
            self._rejected.append(replace(too_long(block), position=self._line))
            self._rows += 1
        self._line += 1

    def _keep(self, block: Block) -> None:
        lines = Lines(block.text)
        begin, known = self._line, self._position - self._line
        self._line += len(lines)
        if known >= len(lines):
            return
        if known > 0:
            begin, lines = self._position, Lines(block.text[lines.starts[known] :])
        self._blocks.append((lines, np.arange(begin, self._line)))
        self._nbytes += len(lines.block)
        self._rows += len(lines)

    def _commit(self, must: bool) -> None:
        if not self._rows:
            self._since = time.monotonic()
            return
        if self._stream is None and not self._make(must):
            return
        assert self._stream is not None
        start, end = self._position, max(self._line, self._position)
        batch: Batch = json_batch(self._decoder, self._blocks, self._rejected, start=start, end=end)
        appended = append(self._stream, batch, self._how)
        self._taken.add(appended)
        self._position = end
        self._on_commit(appended)
        self._clear()

    def _make(self, must: bool) -> bool:
        """Make the stream from what came so far, if that has an event."""
        decoder = Decoder(pa.schema([]), types=self._new.types)
        rejected = json_batch(decoder, self._blocks, [], start=0, end=0).rejected
        if not len(decoder.schema):
            if must:
                first = f"; the first line: {rejected[0].detail}" if rejected else ""
                raise DataError(f"standard input: has no event{first}")
            return False
        self._open(make_stream(self._log, self._name, self._new, lambda types: list(decoder.schema)))
        return True
