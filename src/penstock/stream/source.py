"""A pipeline as a source of data: its pieces are chunks, so whatever trains from files trains from a log.

For whoever follows a log while it grows there is ``Feed``; this reads what is sealed now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from penstock.data import Chunk, Source
from penstock.data.tables import check_columns, rebatch
from penstock.errors import DataError
from penstock.log import Log
from penstock.stream.feed import Feed
from penstock.stream.labels import check_label
from penstock.stream.replay import Examples, Replay
from penstock.stream.spec import Pipeline

__all__ = ["PipelineSource"]


class PipelineSource(Source):
    """The examples of the windows that begin in [from, to), in the order in which a live run learns them."""

    unit = "rows"
    repeatable = True

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        from_us: int | None = None,
        to_us: int | None = None,
        follow: bool = False,
    ) -> None:
        """Bind the query to the log's streams.

        Raises:
            ConfigError, DataError: they do not fit; see ``Replay``.
        """
        self.pipeline, self.from_us, self.to_us, self.follow = pipeline, from_us, to_us, follow
        replay = Replay(Log(pipeline.log), pipeline, from_us=from_us, to_us=to_us)
        self.schema = replay.schema
        replay.close()
        if pipeline.label is not None:
            check_label(pipeline.label, replay.query.columns, replay.schema)
        self.files = [f"{pipeline.log}/{name}" for name in pipeline.streams]
        self.size = None

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """The pieces in order, each of the rows that are learnt: what is sealed now, or will be by ``to``."""
        with self.feed(start=start, follow=self.follow and self.to_us is not None) as feed:
            for examples in feed:
                if examples is not None:
                    yield _PieceChunk(self, examples)

    def sample(self, rows: int) -> pa.Table:
        """The first rows of the first piece that has any: the same however far the log has come since.

        Where the source follows the log, it waits for that piece.
        """
        with self.feed(start=0, follow=self.follow) as feed:
            for examples in feed:
                if examples is not None and examples.rows.num_rows:
                    return examples.rows.slice(0, rows)
        return self.schema.empty_table()

    def feed(self, *, start: int, follow: bool) -> Feed:
        """Pieces from number ``start``; with ``follow`` also those to come."""
        return Feed(
            self.pipeline.log,
            self.pipeline,
            from_us=self.from_us,
            to_us=self.to_us,
            start=start,
            follow=follow,
        )

    def read_as(self, types: Mapping[str, pa.DataType]) -> Source:
        """Types are the query's."""
        return self


class _PieceChunk(Chunk):
    def __init__(self, source: PipelineSource, examples: Examples) -> None:
        self.index, self._piece = examples.piece.index, examples.piece
        label = source.pipeline.label
        self._rows = examples.rows if label is None else source.pipeline.late.taken(examples.rows, label)
        self.size = self._rows.num_rows

    def batches(self, columns: Sequence[str], batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
        """Record batches of these columns."""
        check_columns("the pipeline's output", columns, self._rows.column_names)
        yield from rebatch([self._rows], columns, batch_rows, skip)

    def locate(self, row: int) -> str:
        """The example's event."""
        if row >= self.size:
            raise DataError(f"piece {self.index} has {self.size} rows, not {row}")
        seq, time = self._rows["_seq"][row].as_py(), self._rows["_time"][row].as_py()
        return f"the example of event {seq} ({time.isoformat()})"
