"""From the log to examples: the pieces of a pipeline, computed in order, many at a time.

One query serves batch, stream and corrections: each row of the primary stream carries the step as of which it is
looked at, and sees what other streams had brought by then. How many pieces one query computes is a matter of speed
alone; what comes out is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import ConfigError
from penstock.log import Log
from penstock.log.times import SECOND_US, TIMESTAMP
from penstock.log.types import plain_type
from penstock.stream.aggregates import Aggregates
from penstock.stream.changes import changed, one_each
from penstock.stream.plan import Piece, Planner
from penstock.stream.query import Query, Reach
from penstock.stream.records import Records
from penstock.stream.scan import Range, Scanner, bucket
from penstock.stream.spec import Pipeline
from penstock.stream.sql import Database, identifier
from penstock.stream.timeline import Point, Timeline

__all__ = ["EXTRA", "Examples", "Replay"]

QUERY_ROWS = 1 << 20
"""Events of the primary stream that one query takes at most, unless a piece alone has more."""

EXTRA = pa.schema(
    [
        ("_kind", pa.string()),
        ("_time", TIMESTAMP),
        ("_window", TIMESTAMP),
        ("_age", pa.float64()),
        ("_seq", pa.int64()),
        ("_step", pa.int64()),
    ]
)
"""What an example has besides the query's columns: ``first``, ``retraction``, ``correction`` or ``late``; the
event time; where its window begins; for how long (seconds) its label had been waited for; its event's place; its
step."""


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


class Replay:
    """Computes a pipeline's pieces. Not for several threads at once."""

    def __init__(
        self,
        log: Log,
        pipeline: Pipeline,
        *,
        from_us: int | None = None,
        to_us: int | None = None,
        threads: int | None = None,
        memory_mb: int | None = None,
    ) -> None:
        """Prepare to compute the windows that begin in [from, to).

        Raises:
            ConfigError: the query is none that Penstock can compute, or does not fit the streams.
            DataError: a stream is not there.
        """
        self.log, self.pipeline = log, pipeline
        self.database = Database(threads=threads, memory_mb=memory_mb)
        self._scanner = Scanner(log, pipeline, self.database)
        self.timeline = Timeline(log, pipeline, self._scanner)
        self.planner = Planner(self.timeline, self._scanner, from_us=from_us, to_us=to_us)
        self.records = Records(log, self.timeline, self._scanner, f"{from_us}-{to_us}")
        streams = {name: self.timeline.stream(name) for name in pipeline.streams}
        self._last = 0
        self._aggregates = Aggregates(pipeline, self.database, self._define)
        self._aggregates.check(streams)
        self.query = Query.parse(
            pipeline.query,
            primary=pipeline.primary,
            reaches={
                name: Reach(columns=self._visible(name), within_us=spec.within_us, before_us=spec.before_us)
                for name, spec in pipeline.streams.items()
            },
            where="pipeline.query",
        )
        self._versioned = self.query.versioned()
        self.schema = self._schema()
        """Of examples."""

    def _visible(self, name: str) -> tuple[str, ...]:
        """The columns of a stream that a query sees."""
        more = self._aggregates.names if name == self.pipeline.primary else ()
        return (*self._scanner.columns(name), *more)

    def close(self) -> None:
        """Free the memory."""
        self.database.close()

    def has_unsealed(self, sealed_us: int, would_us: int) -> bool:
        """Whether there are events in windows that begin in [sealed, would)."""
        overlap = self.pipeline.window_us - self.planner.slide_us
        where = Range(
            from_us=sealed_us, to_us=would_us + overlap, end=self.timeline.points[-1].ends[self.pipeline.primary]
        )
        return self._scanner.any_of(self.pipeline.primary, where)

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
        rows = {"sealed": self._sealed(sealed), "corrected": self._corrected(corrected)}
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
        self._define_primary(begin, end, last)
        self._define_others(begin, end, last)
        self._aggregate("_primary", begin, end)
        if not overlap and all(piece.step == last for piece in pieces):
            results = self._of_one_step(last)
        else:
            results = self._of_steps(pieces)
        results, ambiguous = one_each(results, ["_as_of", "_window", "_seq"])
        return self._examples(results, pa.repeat("first", results.num_rows)), ambiguous

    def _of_one_step(self, step: int) -> pa.Table:
        """Of tumbling windows that one step seals, which is nearly all of a log that was loaded at once.

        They follow each other, and what lies in empty ones between them came later: nothing is to be looked up.
        """
        self.database.run(
            f"create or replace temp view {identifier(self.pipeline.primary)} as "
            f"select *, {step}::bigint as _as_of from _featured where _step <= {step}"
        )
        window = bucket("_t", self.planner.slide_us)
        return self._results(f"select *, {window} as _window from ({self._versioned}) order by _t, _seq")

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
        return self._results(
            f"select q.*, s.window as _window from ({self._versioned}) q join _seal s "
            f"on {bucket('q._t', slide)} = s.bucket and q._as_of = s.step "
            "order by q._as_of, s.window, q._t, q._seq"
        )

    def _results(self, sql: str) -> pa.Table:
        """Rows of the versioned query, the user's columns in the types of ``schema``."""
        found = self.database.table(sql)
        extra = {*EXTRA.names, "_t", "_as_of"}
        return found.cast(pa.schema([f if f.name in extra else self.schema.field(f.name) for f in found.schema]))

    def _corrected(self, pieces: Sequence[Piece]) -> tuple[pa.Table, int]:
        if not pieces:
            return self.schema.empty_table(), 0
        steps = sorted(piece.step for piece in pieces)
        pairs = self._pairs(steps)
        if not pairs.num_rows:
            return self.schema.empty_table(), 0
        self.database.register("_pairs", pairs)
        begin, end = pc.min(pairs["_t"]).as_py(), pc.max(pairs["_t"]).as_py() + 1
        self._define_primary(begin, end, steps[-1], among="_pairs")
        self._define_others(begin, end, steps[-1])
        primary = identifier(self.pipeline.primary)
        self._aggregate("_primary", begin, end)
        self.database.run(
            f"create or replace temp view {primary} as select p.*, v._as_of from _featured p join "
            "(select _seq, _step as _as_of from _pairs union select _seq, _step - 1 from _pairs where not late) v "
            "using (_seq)"
        )
        results = self._results(f"select * from ({self._versioned}) order by _seq, _as_of")
        results, ambiguous = one_each(results, ["_seq", "_as_of"])
        place = {
            key: row
            for row, key in enumerate(zip(results["_seq"].to_pylist(), results["_as_of"].to_pylist(), strict=True))
        }
        old, new, late, windows, steps_of = [], [], [], [], []
        for pair in pairs.to_pylist():
            new.append(place.get((pair["_seq"], pair["_step"]), -1))
            old.append(-1 if pair["late"] else place.get((pair["_seq"], pair["_step"] - 1), -1))
            late.append(pair["late"])
            windows.append(pair["window"])
            steps_of.append(pair["_step"])
        return self._changes(results, np.array(old), np.array(new), late, windows, steps_of), ambiguous

    def _changes(
        self,
        results: pa.Table,
        old: np.ndarray,
        new: np.ndarray,
        late: list[bool],
        windows: list[int],
        steps: list[int],
    ) -> pa.Table:
        """For each pair a retraction of the old result and a correction with the new one, where they differ."""
        both = (old >= 0) & (new >= 0)
        differ = old != new
        columns = [name for name in results.column_names if name not in ("_seq", "_t", "_as_of")]
        differ[both] = changed(results.take(old[both]), results.take(new[both]), columns)
        rows, kinds, of_windows, of_steps = [], [], [], []
        for n in np.flatnonzero(differ):
            if old[n] >= 0:
                rows.append(old[n])
                kinds.append("retraction")
            if new[n] >= 0:
                rows.append(new[n])
                kinds.append("late" if late[n] else "correction")
            count = int(old[n] >= 0) + int(new[n] >= 0)
            of_windows += [windows[n]] * count
            of_steps += [steps[n]] * count
        taken = results.take(pa.array(rows, pa.int64())).drop_columns(["_as_of"])
        taken = taken.append_column("_as_of", pa.array(of_steps, pa.int64()))
        taken = taken.append_column("_window", pa.array(of_windows, pa.int64()))
        return self._examples(taken, pa.array(kinds, pa.string()))

    def _pairs(self, steps: Sequence[int]) -> pa.Table:
        """Which examples may change by which of these steps: ``_seq``, ``_step``, ``_t``, ``window``, ``late``.

        Sorted as their corrections come out: by step, window, time and place.
        """
        found = [self._affected(name, steps) for name in self.query.streams[1:]]
        found.append(self._readmitted(steps))
        table = pa.concat_tables(found)
        pairs: set[tuple[int, ...]] = set()
        planner, timeline = self.planner, self.timeline
        overlap = self.pipeline.window_us - planner.slide_us
        t = np.asarray(table["_t"])
        late = np.asarray(table["late"])
        step = np.asarray(table["_step"])
        own = np.asarray(table["own"])
        seq = np.asarray(table["_seq"])
        for shift in range(0, overlap + 1, planner.slide_us):
            begins = t - t % planner.slide_us - shift
            sealed = timeline.sealing_steps(begins)
            take = np.where(late, sealed < step, np.maximum(sealed, own) < step)
            if planner.from_us is not None:
                take &= begins >= planner.from_us
            if planner.to_us is not None:
                take &= begins < planner.to_us
            rows = (step[take], begins[take], t[take], seq[take], late[take])
            pairs.update(zip(*(column.tolist() for column in rows), strict=True))
        ordered = sorted(pairs)
        names = ("_step", "window", "_t", "_seq", "late")
        types = (pa.int64(), pa.int64(), pa.int64(), pa.int64(), pa.bool_())
        return pa.table(
            {
                name: pa.array([row[n] for row in ordered], type_)
                for n, (name, type_) in enumerate(zip(names, types, strict=True))
            }
        )

    def _affected(self, name: str, steps: Sequence[int]) -> pa.Table:
        """Rows of the primary stream that new events of another one may concern, and the steps of these."""
        timeline, spec = self.timeline, self.pipeline.streams[name]
        first, last = steps[0], steps[-1]
        again = any(first <= step <= last for step in timeline.readmitted(name).values())
        start = timeline.points[first - 1].ends[name] if first and not again else 0
        self._last = last
        self._define("_new_all", name, Range(first=start))
        self.database.run(
            f"create or replace temp table _new as select * from _new_all where _step between {first} and {last}"
        )
        low, high, count = self.database.rows("select min(_t), max(_t), count(*) from _new")[0]
        if not count:
            return _PAIRS.empty_table()
        begin, end = low - spec.within_us, high + spec.before_us + 1
        sealed = timeline.sealed_to(last - 1) + self.pipeline.window_us
        if self.planner.from_us is not None:
            begin = max(begin, self.planner.from_us)
        end = min(end, sealed)
        if end <= begin:
            return _PAIRS.empty_table()
        self._define_others(begin, end, last)
        # Few rows of many are concerned: these are found first, and then looked at for whether they count.
        primary = self.pipeline.primary
        where = Range(from_us=begin, to_us=end, end=timeline.points[last].ends[primary])
        self._scanner.define_all(primary, primary, where, f", {last}::bigint as _as_of{self._no_aggregates()}")
        affected = self.query.affected(name, "_new")
        self.database.run(f"create or replace temp table _concerned as {affected}")
        self._define_primary(begin, end, last, among="_concerned")
        return self.database.table(
            "select a._seq, a._step, p._t, p._step as own, false as late from _concerned a "
            "join _primary p on p._seq = a._seq"
        ).cast(_PAIRS)

    def _readmitted(self, steps: Sequence[int]) -> pa.Table:
        """Rows of the primary stream that were quarantined, and count from these steps on."""
        name = self.pipeline.primary
        rows = [(seq, step) for seq, step in self.timeline.readmitted(name).items() if step in steps]
        if not rows:
            return _PAIRS.empty_table()
        self._define_primary(-(1 << 62), 1 << 62, steps[-1])
        listed = ", ".join(f"({seq}, {step})" for seq, step in rows)
        return self.database.table(
            "select p._seq, p._step, p._t, p._step as own, true as late from _primary p join "
            f"(values {listed}) r(_seq, _step) on p._seq = r._seq and p._step = r._step"
        ).cast(_PAIRS)

    def _aggregate(self, rows: str, begin_us: int, end_us: int) -> None:
        """View ``_featured`` of rows of the primary stream, with the pipeline's aggregates."""
        if not self._aggregates.names:
            self.database.run(f"create or replace temp view _featured as select * from {rows}")
            return
        slide = self.planner.slide_us
        # Of sliding windows, the one that is sealed first decides what was known.
        earliest = f"({bucket('_t', slide)} - {self.pipeline.window_us - slide})"
        begins = np.array(
            [row[0] for row in self.database.rows(f"select distinct {earliest} from {rows}")], np.int64
        )
        at = pa.table({"earliest": begins, "at": self.timeline.sealing_steps(begins)})
        self.database.register("_sealed_at", at)
        self.database.run(
            "create or replace temp table _to_feature as select r.*, greatest(r._step, s.at) as _at "
            f"from {rows} r join _sealed_at s on {earliest} = s.earliest"
        )
        table = self._aggregates.compute("_to_feature", begin_us, end_us)
        self.database.run(
            "create or replace temp view _featured as select * exclude (_at) from _to_feature "
            f"join {table} using (_seq)"
        )

    def look_up(self, rows: pa.Table, at_us: int) -> pa.Table:
        """The aggregates that examples of this moment see: for serving. ``rows`` has their ``by`` columns.

        What is returned has one row for each, in their order.
        """
        self.timeline.extend()
        last = self._last = len(self.timeline.points) - 1
        self.database.register("_asked", rows)
        self.database.run(
            "create or replace temp table _to_feature as select (row_number() over ()) - 1 as _seq, *, "
            f"{at_us}::bigint as _t, {last}::bigint as _at from _asked"
        )
        table = self._aggregates.compute("_to_feature", at_us, at_us + 1)
        names = ", ".join(identifier(name) for name in self._aggregates.names)
        return self.database.table(f"select {names} from {table} order by _seq")

    def _no_aggregates(self) -> str:
        return "".join(f", null as {identifier(name)}" for name in self._aggregates.names)

    def _define_primary(self, begin_us: int, end_us: int, last: int, *, among: str | None = None) -> None:
        """View ``_primary`` of the rows of these times as of a step; of those in a table alone."""
        name = self.pipeline.primary
        self._last = last
        begin_us = max(begin_us, self.planner.from_us) if self.planner.from_us is not None else begin_us
        self._define("_primary", name, Range(from_us=begin_us, to_us=end_us, among=among))

    def _define_others(self, begin_us: int, end_us: int, last: int) -> None:
        """Views of the other streams, of the times that rows of the primary one in [begin, end) can reach."""
        for name in self.query.streams[1:]:
            spec = self.pipeline.streams[name]
            where = Range(from_us=begin_us - spec.before_us, to_us=end_us + spec.within_us)
            self._define(name, name, where)

    def _define(self, relation: str, name: str, where: Range) -> None:
        """A view of the events that count in a range, as of the last step that is looked at."""
        where = dataclasses.replace(where, end=min(where.end, self.timeline.points[self._last].ends[name]))
        again = [(seq, step) for seq, step in self.timeline.readmitted(name).items() if seq < where.end]
        readmitted = pa.table(
            {
                "_seq": pa.array([seq for seq, _ in again], pa.int64()),
                "_step": pa.array([step for _, step in again], pa.int64()),
            }
        )
        self._scanner.define(relation, name, where, self.timeline.steps_of(name), readmitted)

    def _examples(self, results: pa.Table, kinds: pa.Array) -> pa.Table:
        """Results with ``_t``, ``_seq``, ``_as_of`` and ``_window`` as examples."""
        times = np.asarray(results["_t"])
        steps = pc.unique(results["_as_of"])
        waited = np.array([self._waited_to(step) for step in steps.to_pylist()], np.int64)
        if len(steps) > 1:
            waited = waited[np.asarray(pc.index_in(results["_as_of"], steps))]
        age = np.maximum(waited - times, 0) / SECOND_US
        extra = {
            "_kind": kinds,
            "_time": results["_t"].cast(TIMESTAMP),
            "_window": results["_window"].cast(TIMESTAMP),
            "_age": pa.array(age, pa.float64()),
            "_seq": results["_seq"],
            "_step": results["_as_of"],
        }
        own = [name for name in self.schema.names if name not in EXTRA.names]
        return pa.table({**{name: results[name] for name in own}, **extra}).cast(self.schema)

    def _waited_to(self, step: int) -> int:
        """How far event time had come as of a step."""
        return self.timeline.mark(step, self.pipeline.primary)

    def _schema(self) -> pa.Schema:
        """Of examples; binding the query to the streams' types on the way.

        Raises:
            ConfigError: it does not fit them.
        """
        for name in self.pipeline.streams:
            fields = [*self.log.known(name).schema, *_HIDDEN]
            if name == self.pipeline.primary:
                fields += [
                    pa.field(spec.name, pa.int64() if spec.what == "count" else pa.float64())
                    for spec in self.pipeline.aggregates
                ]
                fields.append(pa.field("_as_of", pa.int64()))
            self.database.register("_empty", pa.schema(fields).empty_table())
            self.database.run(f"create or replace temp table {identifier(name)} as select * from _empty")
        self.query.check_types(self.database.connection)
        bound = self.database.table(f"select * from ({self._versioned}) limit 0").schema
        for name in self.pipeline.streams:
            self.database.run(f"drop table {identifier(name)}")
        own = [pa.field(f.name, _kept(f)) for f in bound if f.name not in ("_seq", "_t", "_as_of")]
        if not own:
            raise ConfigError("pipeline.query gives no column")
        return pa.schema([*own, *EXTRA])


_HIDDEN = [
    pa.field("_t", pa.int64()),
    pa.field("_seq", pa.int64()),
    pa.field("_arrived", pa.int64()),
    pa.field("_step", pa.int64()),
]
_PAIRS = pa.schema(
    [("_seq", pa.int64()), ("_step", pa.int64()), ("_t", pa.int64()), ("own", pa.int64()), ("late", pa.bool_())]
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


def _kept(field: pa.Field) -> pa.DataType:
    kept = plain_type(field.type)
    if kept is None:
        what = "null in every row" if pa.types.is_null(field.type) else f"of type {field.type}"
        raise ConfigError(
            f"pipeline.query: column {field.name!r} is {what}, which examples cannot keep; cast it "
            "(of a difference of times, take epoch(...))"
        )
    return kept


def _of(piece: Piece, table: pa.Table) -> pa.ChunkedArray:
    mine = pc.equal(table["_step"], piece.step)
    if piece.kind == "corrected":
        return mine
    window = table["_window"].cast(pa.int64())
    return pc.and_(mine, pc.and_(pc.greater_equal(window, piece.begin_us), pc.less(window, piece.end_us)))
