"""Features that say what had happened before: how many clicks of this user in the last ten minutes.

An example sees the events that had arrived by its own event time, and no others, so that the feature it is trained
with is the one that it was, or would have been, served with. An event counts from the moment at which it had both
happened and arrived until it is older than the window; so at most two changes for each event, whose running
sums are looked up by time. Sums are exact (in steps of 10^-9), so they do not depend on where a sum begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import pyarrow as pa

from penstock.errors import ConfigError
from penstock.log import EventStream
from penstock.stream.scan import Range
from penstock.stream.spec import Aggregate, Pipeline
from penstock.stream.sql import Database, identifier

__all__ = ["Aggregates"]

_EXACT = "decimal(38, 9)"


class Aggregates:
    """A pipeline's aggregates, computed in one database."""

    def __init__(self, pipeline: Pipeline, database: Database, define: Callable[[str, str, Range], None]) -> None:
        """``define(relation, stream, range)`` makes a view of the events that count."""
        self._pipeline, self._database, self._define = pipeline, database, define
        self._specs = sorted(pipeline.aggregates, key=lambda spec: (spec.stream, spec.by))
        self.names = tuple(spec.name for spec in pipeline.aggregates)

    def check(self, streams: dict[str, EventStream]) -> None:
        """All columns are there.

        Raises:
            ConfigError: one is not, or cannot be summed, or a name is taken.
        """
        primary = streams[self._pipeline.primary]
        for spec in self._specs:
            where = f"aggregates.{spec.name}"
            if spec.name in primary.schema.names:
                raise ConfigError(f"{where}: stream {primary.name} has a column of this name")
            for column in spec.by:
                for stream in (streams[spec.stream], primary):
                    if column not in stream.schema.names:
                        raise ConfigError(
                            f"{where}.by: stream {stream.name} has no column {column!r}, it has "
                            f"{', '.join(stream.schema.names)}"
                        )
            if spec.of is not None:
                schema = streams[spec.stream].schema
                if spec.of not in schema.names:
                    there = ", ".join(schema.names)
                    raise ConfigError(
                        f"{where}.of: stream {spec.stream} has no column {spec.of!r}, it has {there}"
                    )
                type_ = schema.field(spec.of).type
                if not (pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)):
                    raise ConfigError(f"{where}.of: got a column of type {type_}, allowed: numbers")

    def compute(self, rows: str, begin_us: int, end_us: int) -> str:
        """A table of ``_seq`` and the aggregates of the rows of a relation.

        ``rows`` has ``_seq``, ``_t`` in [begin, end), the ``by`` columns and ``_at``, the step by which an event
        must have been known.
        """
        parts = []
        for number, ((stream, by), specs) in enumerate(groupby(self._specs, key=lambda s: (s.stream, s.by))):
            parts.append(self._of(number, rows, stream, by, list(specs), begin_us, end_us))
        names = ", ".join(identifier(name) for name in self.names)
        joined = " ".join(f"join {part} using (_seq)" for part in parts[1:])
        self._database.run(
            f"create or replace temp table _aggregates as select _seq, {names} from {parts[0]} {joined}"
        )
        return "_aggregates"

    def _of(
        self,
        number: int,
        rows: str,
        stream: str,
        by: Sequence[str],
        specs: Sequence[Aggregate],
        begin_us: int,
        end_us: int,
    ) -> str:
        """The aggregates over one stream by the same columns."""
        longest = max(spec.over_us for spec in specs)
        events = f"_events_{number}"
        self._define(events, stream, Range(from_us=begin_us - longest, to_us=end_us))
        keys = [identifier(column) for column in by]
        listed = ", ".join(keys)
        # An example does not see itself: of its own stream, only what was there before.
        later = 1 if stream == self._pipeline.primary else 0
        moments = f"_moments_{number}"
        values = "".join(f", {identifier(of)}::{_EXACT} as x{n}" for n, of in enumerate(self._summed(specs)))
        self._database.run(
            f"create or replace temp table {moments} as "
            f"select {listed}, greatest(_t, _arrived) + {later} as v, _t as t, _step as step{values} "
            f"from {events} where {' and '.join(f'{key} is not null' for key in keys)}"
        )
        columns, joins = [], []
        for n, spec in enumerate(specs):
            joins.append(self._running(f"{number}_{n}", moments, rows, by, spec, specs))
            columns.append(f"{_value(spec, f'a{n}')} as {identifier(spec.name)}")
        table = f"_part_{number}"
        joined = " ".join(f"join {running} a{n} using (_seq)" for n, running in enumerate(joins))
        self._database.run(
            f"create or replace temp table {table} as select r._seq, {', '.join(columns)} from {rows} r {joined}"
        )
        return table

    def _summed(self, specs: Sequence[Aggregate]) -> list[str]:
        return sorted({spec.of for spec in specs if spec.of is not None})

    def _running(
        self, suffix: str, moments: str, rows: str, by: Sequence[str], spec: Aggregate, specs: Sequence[Aggregate]
    ) -> str:
        """A table of ``_seq``, the number n of events in the window, and their sum x."""
        listed = ", ".join(identifier(column) for column in by)
        value = f"x{self._summed(specs).index(spec.of)}" if spec.of is not None else f"0::{_EXACT}"
        counted = f"(case when {value} is null then 0 else 1 end)" if spec.of is not None else "1"
        table = f"_running_{suffix}"
        on = " and ".join(f"r.{identifier(column)} = c.{identifier(column)}" for column in by)
        self._database.run(
            f"create or replace temp table {table} as with changes as ("
            f"select {listed}, v as m, {counted} as n, coalesce({value}, 0) as x from {moments} union all "
            f"select {listed}, greatest(v, t + {spec.over_us}), -{counted}, -coalesce({value}, 0) "
            f"from {moments}), "
            f"at_once as (select {listed}, m, sum(n) as n, sum(x)::{_EXACT} as x from changes group by all), "
            f"sums as (select {listed}, m, sum(n) over w as n, sum(x) over w as x from at_once "
            f"window w as (partition by {listed} order by m rows unbounded preceding)), "
            f"found as (select r._seq, coalesce(c.n, 0) as n, coalesce(c.x, 0) as x from {rows} r "
            f"asof left join sums c on {on} and r._t >= c.m), "
            # What had arrived by its own clock, but was not known yet when the example was made.
            f"unknown as (select r._seq, sum({counted}) as n, sum(coalesce({value}, 0)) as x from {rows} r "
            f"join {moments} c on {on} and c.step > r._at and c.v <= r._t and c.t > r._t - {spec.over_us} "
            "group by r._seq) "
            "select f._seq, (f.n - coalesce(u.n, 0))::bigint as n, "
            f"(f.x - coalesce(u.x, 0))::{_EXACT} as x from found f left join unknown u using (_seq)"
        )
        return table


def _value(spec: Aggregate, running: str) -> str:
    if spec.what == "count":
        return f"{running}.n"
    if spec.what == "sum":
        return f"{running}.x::double"
    return f"case when {running}.n > 0 then ({running}.x::double) / {running}.n end"
