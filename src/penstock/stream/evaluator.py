"""What a pipeline's query is asked of: relations of the rows that count, as of a step, with aggregates.

It names the relations, runs the query and gives rows the form of examples. Which rows, and in which order, is the
business of ``replay`` and ``corrections``.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import ConfigError
from penstock.log import Log
from penstock.log.times import SECOND_US, TIMESTAMP
from penstock.log.types import plain_type
from penstock.stream.aggregates import Aggregates
from penstock.stream.plan import Planner
from penstock.stream.query import Query, Reach
from penstock.stream.scan import Range, Scanner, bucket
from penstock.stream.spec import Pipeline
from penstock.stream.sql import Database, identifier
from penstock.stream.timeline import Timeline

__all__ = ["EXTRA", "Evaluator"]

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


class Evaluator:
    """Evaluates one pipeline's query in one database."""

    def __init__(
        self,
        log: Log,
        pipeline: Pipeline,
        *,
        from_us: int | None = None,
        to_us: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Bind the query to the log's streams.

        Raises:
            ConfigError: the query is none that Penstock can compute, or does not fit the streams.
            DataError: a stream is not there.
        """
        self.log, self.pipeline = log, pipeline
        self.database = Database(threads=threads)
        self.scanner = Scanner(log, pipeline, self.database)
        self.timeline = Timeline(log, pipeline, self.scanner)
        self.planner = Planner(self.timeline, self.scanner, from_us=from_us, to_us=to_us)
        streams = {name: self.timeline.stream(name) for name in pipeline.streams}
        self._last = 0
        self._aggregates = Aggregates(pipeline, self.database, self.define)
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
        self.versioned = self.query.versioned()
        """SQL; it reads relations of the streams' names."""
        self.schema = self._schema()
        """Of examples."""

    def close(self) -> None:
        """Free the memory."""
        self.database.close()

    def _visible(self, name: str) -> tuple[str, ...]:
        """The columns of a stream that a query sees."""
        more = self._aggregates.names if name == self.pipeline.primary else ()
        return (*self.scanner.columns(name), *more)

    def results(self, sql: str) -> pa.Table:
        """Rows of the versioned query, the user's columns in the types of ``schema``."""
        found = self.database.table(sql)
        extra = {*EXTRA.names, "_t", "_as_of"}
        return found.cast(pa.schema([f if f.name in extra else self.schema.field(f.name) for f in found.schema]))

    def aggregate(self, rows: str, begin_us: int, end_us: int) -> None:
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

    def no_aggregates(self) -> str:
        return "".join(f", null as {identifier(name)}" for name in self._aggregates.names)

    def define_primary(self, begin_us: int, end_us: int, last: int, *, among: str | None = None) -> None:
        """View ``_primary`` of the rows of these times as of a step; of those in a table alone."""
        name = self.pipeline.primary
        self._last = last
        begin_us = max(begin_us, self.planner.from_us) if self.planner.from_us is not None else begin_us
        self.define("_primary", name, Range(from_us=begin_us, to_us=end_us, among=among))

    def define_others(self, begin_us: int, end_us: int, last: int) -> int:
        """Views of the other streams, of the times that rows of the primary one in [begin, end) can reach.

        Returns how many events the largest of them has at most.
        """
        most = 0
        for name in self.query.streams[1:]:
            spec = self.pipeline.streams[name]
            where = Range(from_us=begin_us - spec.before_us, to_us=end_us + spec.within_us)
            self.define(name, name, where)
            most = max(most, self.scanner.most(name, where))
        return most

    def as_of(self, step: int) -> None:
        """Relations that are defined from now on have what was known by this step."""
        self._last = step

    def define(self, relation: str, name: str, where: Range) -> None:
        """A view of the events that count in a range, as of the last step that is looked at."""
        where = dataclasses.replace(where, end=min(where.end, self.timeline.points[self._last].ends[name]))
        again = [(seq, step) for seq, step in self.timeline.readmitted(name).items() if seq < where.end]
        readmitted = pa.table(
            {
                "_seq": pa.array([seq for seq, _ in again], pa.int64()),
                "_step": pa.array([step for _, step in again], pa.int64()),
            }
        )
        self.scanner.define(relation, name, where, self.timeline.steps_of(name), readmitted)

    def examples(self, results: pa.Table, kinds: pa.Array) -> pa.Table:
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
        bound = self.database.table(f"select * from ({self.versioned}) limit 0").schema
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


def _kept(field: pa.Field) -> pa.DataType:
    kept = plain_type(field.type)
    if kept is None:
        what = "null in every row" if pa.types.is_null(field.type) else f"of type {field.type}"
        raise ConfigError(
            f"pipeline.query: column {field.name!r} is {what}, which examples cannot keep; cast it "
            "(of a difference of times, take epoch(...))"
        )
    return kept
