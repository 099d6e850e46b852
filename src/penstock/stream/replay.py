"""From the log to examples: the pieces of a pipeline, computed in order, many at a time.

One query serves batch, stream and corrections: each row of the primary stream carries the step as of which it is
looked at, and sees what other streams had brought by then. How many pieces one query computes is a matter of speed
alone; what comes out is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from penstock.log import Log
from penstock.stream.changes import one_each
from penstock.stream.corrections import Corrections
from penstock.stream.evaluator import Evaluator
from penstock.stream.plan import Piece
from penstock.stream.records import Records
from penstock.stream.scan import Range, bucket
from penstock.stream.spec import Pipeline
from penstock.stream.sql import identifier
from penstock.stream.timeline import Point

__all__ = ["Examples", "Replay"]

QUERY_ROWS = 1 << 20
"""Events of the primary stream that one query takes at most, unless a piece alone has more."""
_MANY = 1.5
"""Where another stream has so many times the events, the primary stream's are the ones to hold in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """A piece, computed."""

    piece: Piece
    rows: pa.Table
    """The query's columns, then those of ``EXTRA``."""
    point: Point
    """What its step means."""
    sealed_to_us: int
    """Windows that begin before are sealed by then."""
    ambiguous: int
    """Examples for which the query gave several rows that differ; the least was taken."""


class Replay(Evaluator):
    """Computes a pipeline's pieces, of the windows that begin in [from, to). Not for several threads at once."""

    def __init__(
        self,
        log: Log,
        pipeline: Pipeline,
        *,
        from_us: int | None = None,
        to_us: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Prepare to compute them; see ``Evaluator`` for what is raised."""
        super().__init__(log, pipeline, from_us=from_us, to_us=to_us, threads=threads)
        self.records = Records(log, self.timeline, self.scanner, f"{from_us}-{to_us}")
        self._corrections = Corrections(self)

    def has_unsealed(self, sealed_us: int, would_us: int) -> bool:
        """Whether there are events in windows that begin in [sealed, would)."""
        overlap = self.pipeline.window_us - self.planner.slide_us
        where = Range(
            from_us=sealed_us, to_us=would_us + overlap, end=self.timeline.points[-1].ends[self.pipeline.primary]
        )
        return self.scanner.any_of(self.pipeline.primary, where)

    def run(self, start: int = 0, *, after_step: int = -1) -> Iterator[Examples]:
        """The pieces of all steps that are new since the last call: from one's index on, and after a step,
        alone."""
        self.timeline.extend()
        for batch in _batches(self._planned(start, after_step)):
            yield from self.compute(batch)

    def _planned(self, start: int, after_step: int) -> Iterator[Piece]:
        for piece in self.planner.plan():
            self.records.seal(piece)
            if piece.index >= start and piece.step > after_step:
                yield piece

    def final(self, step: int | None = None) -> Iterator[Examples]:
        """Every example of the windows sealed by a step once, as it stands after it: a batch job.

        The last step where None; then steps that are new are taken in.
        """
        if step is None:
            self.timeline.extend()
            step = len(self.timeline.points) - 1
        if step < 0:
            return
        for batch in _batches(self.planner.final(step)):
            yield from self.compute(batch)

    def compute(self, pieces: Sequence[Piece]) -> Iterator[Examples]:
        """These pieces, which follow each other."""
        sealed = [piece for piece in pieces if piece.kind == "sealed"]
        corrected = [piece for piece in pieces if piece.kind == "corrected"]
        rows = {"sealed": self._sealed(sealed), "corrected": self._corrections.compute(corrected)}
        for piece in pieces:
            table, ambiguous = rows[piece.kind]
            part = table.filter(_of(piece, table)) if len(pieces) > 1 else table
            yield Examples(
                piece=piece,
                rows=part,
                point=self.timeline.points[piece.step],
                sealed_to_us=self.timeline.sealed_to(piece.step),
                ambiguous=ambiguous,
            )
            rows[piece.kind] = (table, 0)

    def _sealed(self, pieces: Sequence[Piece]) -> tuple[pa.Table, int]:
        if not pieces:
            return self.schema.empty_table(), 0
        last = max(piece.step for piece in pieces)
        overlap = self.pipeline.window_us - self.planner.slide_us
        begin, end = min(p.begin_us for p in pieces), max(p.end_us for p in pieces) + overlap
        self.define_primary(begin, end, last)
        others = self.define_others(begin, end, last)
        self.aggregate("_primary", begin, end)
        if not overlap and all(piece.step == last for piece in pieces):
            many = others > _MANY * sum(piece.events for piece in pieces)
            results = self._of_one_step(last, many_others=many)
        else:
            results = self._of_steps(pieces)
        results, ambiguous = one_each(results, ["_as_of", "_window", "_seq"])
        return self.examples(results, pa.repeat("first", results.num_rows)), ambiguous

    def _of_one_step(self, step: int, *, many_others: bool) -> pa.Table:
        """Of tumbling windows that one step seals, which is nearly all of a log that was loaded at once.

        They follow each other, and what lies in empty ones between them came later: nothing is to be looked up.
        """
        primary = f"select *, {step}::bigint as _as_of from _featured where _step <= {step}"
        if many_others:
            # DuckDB takes no hints. A join that keeps every row lets it expect fewer, and so hold these in memory
            # rather than a day of another stream, whose conditions let it expect a twentyfifth of what there is.
            self.database.register("_now", pa.table({"step": pa.array([step], pa.int64())}))
            primary = f"select * from ({primary}) semi join _now on _as_of = _now.step"
        self.database.run(f"create or replace temp view {identifier(self.pipeline.primary)} as {primary}")
        window = bucket("_t", self.planner.slide_us)
        return self.results(f"select *, {window} as _window from ({self.versioned}) order by _t, _seq")

    def _of_steps(self, pieces: Sequence[Piece]) -> pa.Table:
        """Of windows that overlap, or that several steps seal."""
        slide = self.planner.slide_us
        shifts = range(0, self.pipeline.window_us - slide + 1, slide)
        windows = [(window, piece.step, s) for piece in pieces for window in piece.windows for s in shifts]
        seal = pa.table(
            {
                "bucket": pa.array([window + shift for window, _, shift in windows], pa.int64()),
                "window": pa.array([window for window, _, _ in windows], pa.int64()),
                "step": pa.array([step for _, step, _ in windows], pa.int64()),
            }
        )
        self.database.register("_seal", seal)
        self.database.run(
            f"create or replace temp view {identifier(self.pipeline.primary)} as "
            "select p.*, s.step as _as_of from _featured p "
            f"join (select distinct bucket, step from _seal) s on {bucket('p._t', slide)} = s.bucket "
            "where p._step <= s.step"
        )
        return self.results(
            f"select q.*, s.window as _window from ({self.versioned}) q join _seal s "
            f"on {bucket('q._t', slide)} = s.bucket and q._as_of = s.step "
            "order by q._as_of, s.window, q._t, q._seq"
        )


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """As many pieces together as one query takes."""
    batch: list[Piece] = []
    for piece in pieces:
        if batch and sum(each.events for each in batch) + piece.events > QUERY_ROWS:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _of(piece: Piece, table: pa.Table) -> pa.ChunkedArray:
    mine = pc.equal(table["_step"], piece.step)
    if piece.kind == "corrected":
        return mine
    window = table["_window"].cast(pa.int64())
    return pc.and_(mine, pc.and_(pc.greater_equal(window, piece.begin_us), pc.less(window, piece.end_us)))
