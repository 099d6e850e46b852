"""Encoded batches of a source, in source order, read and hashed by several threads ahead of the learner.

Each reader thread takes the next chunk and fills a bounded lane of its own; the consumer empties the lanes in
the order of the chunks. So order and batches depend on the data alone, and memory is bounded.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from penstock.batch import SparseBatch
from penstock.data import BATCH_ROWS, Chunk, Source
from penstock.errors import ConfigError, DataError, RowError
from penstock.features import Encoder, FeaturePlan
from penstock.features.memory import Memory

__all__ = ["Encoded", "EncodedStream", "Keep", "available_cores"]

Keep = Callable[[pa.RecordBatch, Chunk, int], NDArray[np.bool_]]
"""Which rows of a record batch to take, given its chunk and the number of its first row there."""

_DEPTH = 8
"""Encoded batches of ``BATCH_ROWS`` that wait in a lane at most; of larger ones fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A batch, and where its rows stand: ``rows`` rows of ``chunk`` from number ``row`` (before ``keep``).

    The batch is valid until the next one is asked for: its memory is used again.
    """

    batch: SparseBatch
    records: pa.RecordBatch
    chunk: Chunk
    row: int
    rows: int
    last: bool
    """Whether the chunk ends here."""
    memory: Memory


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_for(source: Source, plan: FeaturePlan) -> Source:
    """The source with columns read as the plan wants them, where the format leaves a choice (CSV).

    A label or weight that begins with integers may go on with fractions.
    """
    types = dict(plan.read_types)
    for name in (plan.label, plan.weight):
        if name is not None and name in source.schema.names and pt.is_integer(source.schema.field(name).type):
            types[name] = pa.float64()
    return source.read_as({name: type_ for name, type_ in types.items() if name in source.schema.names})


class EncodedStream:
    """Iterate over it once, in a ``with``: leaving it stops the threads, wherever they are."""

    def __init__(
        self,
        source: Source,
        plan: FeaturePlan,
        *,
        labelled: bool = True,
        start: tuple[int, int] = (0, 0),
        keep: Keep | None = None,
        readers: int | None = None,
        batch_rows: int = BATCH_ROWS,
        extra_columns: tuple[str, ...] = (),
    ) -> None:
        """Begin at ``start`` (chunk, row of it), taking the rows that ``keep`` says (all where None)."""
        self.source = source
        self._plan = plan
        self._labelled = labelled
        self._start = start
        self._keep = keep
        self._readers = readers if readers is not None else available_cores()
        if self._readers < 1:
            raise ConfigError(f"readers must be >= 1, got {readers}")
        self._batch_rows = batch_rows
        wanted = Encoder(plan).columns if labelled else plan.inputs
        self._columns = list(dict.fromkeys([*wanted, *extra_columns]))
        self._stop = threading.Event()
        self._local = threading.local()
        self._unused: deque[Memory] = deque()
        self._pool = concurrent.futures.ThreadPoolExecutor(self._readers, thread_name_prefix="penstock-reader")
        self._lanes: deque[tuple[queue.Queue[Encoded | BaseException | None], concurrent.futures.Future[None]]]
        self._lanes = deque()

    def __enter__(self) -> EncodedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        waiting = {future for _, future in self._lanes}
        while waiting:
            for lane, _ in self._lanes:
                # A reader that waits for room in its lane gets some, sees the stop, and ends.
                while not lane.empty():
                    lane.get_nowait()
            waiting = concurrent.futures.wait(waiting, timeout=0.01).not_done
        self._pool.shutdown()

    def __iter__(self) -> Iterator[Encoded]:
        first, skip = self._start
        chunks = self.source.chunks(first)
        # One chunk more than threads, so that none waits until the consumer has emptied a lane.
        for _ in range(self._readers + 1):
            self._hand_out(chunks, skip)
            skip = 0
        while self._lanes:
            lane, _ = self._lanes[0]
            item = lane.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self._lanes.popleft()
                self._hand_out(chunks, 0)
            else:
                yield item
                self._unused.append(item.memory)

    def _hand_out(self, chunks: Iterator[Chunk], skip: int) -> None:
        chunk = next(chunks, None)
        if chunk is not None:
            lane: queue.Queue[Encoded | BaseException | None] = queue.Queue(
                max(1, min(_DEPTH, _DEPTH * BATCH_ROWS // self._batch_rows))
            )
            self._lanes.append((lane, self._pool.submit(self._fill, lane, chunk, skip)))

    def _fill(self, lane: queue.Queue[Encoded | BaseException | None], chunk: Chunk, skip: int) -> None:
        try:
            row = skip
            batches = chunk.batches(self._columns, self._batch_rows, skip)
            following = next(batches, None)
            while following is not None and not self._stop.is_set():
                records, following = following, next(batches, None)
                lane.put(self._encode(records, chunk, row, last=following is None))
                row += len(records)
            lane.put(None)
        except BaseException as error:
            lane.put(error)

    def _encode(self, records: pa.RecordBatch, chunk: Chunk, row: int, *, last: bool) -> Encoded:
        encoder: Encoder | None = getattr(self._local, "encoder", None)
        if encoder is None:
            encoder = self._local.encoder = Encoder(self._plan)
        kept, mask = records, None
        if self._keep is not None:
            mask = self._keep(records, chunk, row)
            kept = records.filter(pa.array(mask))
        try:
            memory = self._unused.pop()
        except IndexError:
            memory = Memory()
        try:
            batch = encoder.encode(kept, labelled=self._labelled, memory=memory)
        except RowError as error:
            bad = error.row if mask is None else int(np.flatnonzero(mask)[error.row])
            raise DataError(f"{chunk.locate(row + bad)}: {error.message}") from error
        return Encoded(
            batch=batch, records=kept, chunk=chunk, row=row, rows=len(records), last=last, memory=memory
        )
