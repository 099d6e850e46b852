"""What a pipeline adds to a request's row: its aggregates as of now, and columns that its query computes.

A row brings columns of the primary stream. What a model needs besides is looked up in memory, in microseconds, and
only expressions of the query that are more than a column go to the query's engine. What cannot be had from one row
is refused when a model is loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.errors import ConfigError, DataError, PenstockError
from penstock.features import FeaturePlan
from penstock.log import Log
from penstock.log.times import TIMESTAMP, as_times, format_time, now_us
from penstock.serve.rows import BadRow, category, check_rows, shown
from penstock.serve.scorer import Scorer
from penstock.stream.current import Current, key_of
from penstock.stream.query_rows import RowColumn
from penstock.stream.row_query import RowQuery
from penstock.stream.spec import Pipeline

__all__ = ["Bound", "Features"]

_PIECE_ROWS = 1024
"""Of a table that are completed at once: they are Python objects meanwhile, and others wait for them."""
POLL_S = 0.1
"""Between two looks at the log."""
_log = logging.getLogger(__name__)
Row = Mapping[str, Any]


class Features:
    """One pipeline's, for all models that were trained on it."""

    def __init__(self, pipeline: Pipeline, *, clock_us: Callable[[], int] = now_us) -> None:
        """Bind the pipeline to its log; ``clock_us`` is the time of requests that bring none.

        Raises:
            ConfigError, DataError: it does not fit, or the log is not there.
        """
        self._clock_us = clock_us
        self.pipeline = pipeline
        self.current = Current(Log(pipeline.log), pipeline, clock_us())
        self._looked_s = time.monotonic()
        self._told = ""
        self._bound: dict[tuple[str, ...], Bound] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"penstock-features-{pipeline.name}", daemon=True)

    @property
    def age_s(self) -> float:
        """Since the log was last looked at to its end."""
        return time.monotonic() - self._looked_s

    @property
    def events(self) -> int:
        """Events that are held."""
        return self.current.events

    def bind(self, plan: FeaturePlan | None) -> Bound:
        """What completes rows for a plan; the same for equal inputs.

        Raises:
            ConfigError: a column of the plan cannot be had from a request.
        """
        assert plan is not None
        inputs = tuple(plan.inputs)
        found = self._bound.get(inputs)
        if found is None:
            found = self._bound[inputs] = Bound(self.current, inputs, self._clock_us)
        return found

    def check(self, scorer: Scorer) -> None:
        """A version of a model can be served.

        Raises:
            ConfigError: a column of it cannot be had from a request.
        """
        self.bind(scorer.model.plan)

    def load(self, say: Callable[[str, int, int], None]) -> None:
        """Read what the windows hold; ``say`` is told the stream, and how many events of how many.

        Raises:
            DataError, StorageError: the log cannot be read.
        """
        self.current.advance(self._clock_us(), say)
        self._looked_s = time.monotonic()

    def start(self) -> None:
        """Follow the log from now on, in a thread that ends with the process, or by ``stop``."""
        if self.current.groups:
            self._thread.start()

    def stop(self) -> None:
        """Have the thread end, wait for it, and free what reading took."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.current.close()

    def look(self) -> None:
        """Take in what is new; a log that cannot be read is told once, and what is known stays."""
        try:
            self.current.advance(self._clock_us())
        except (PenstockError, OSError) as error:
            if str(error) != self._told:
                self._told = str(error)
                _log.error("pipeline %s: aggregates stay as they are: %s", self.pipeline.name, error)
            return
        if self._told:
            _log.warning("pipeline %s: the log can be read again", self.pipeline.name)
        self._told, self._looked_s = "", time.monotonic()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.look()
            except Exception:  # a defect of ours: it is told, and what is known goes on being served
                _log.exception("pipeline %s: the log could not be looked at", self.pipeline.name)


@dataclass(frozen=True, slots=True)
class _Group:
    """Aggregates that are looked up by one key."""

    number: int
    by: tuple[str, ...]
    names: tuple[str, ...]


class Bound:
    """Completes rows for the inputs of one plan; for any thread."""

    def __init__(self, current: Current, inputs: Sequence[str], clock_us: Callable[[], int]) -> None:
        """Find out where each input comes from.

        Raises:
            ConfigError: one cannot be had from a request.
        """
        self._current, self._clock_us = current, clock_us
        stream = current.streams[current.pipeline.primary]
        self._time, self._schema = stream.settings.time, stream.schema
        raw = set(stream.schema.names)
        found = {column.name: column for column in current.query.row_columns()}
        needed = [_of(name, found) for name in inputs]
        used = {name for column in needed for name in column.columns}
        self._groups = [
            _Group(number, group.by, group.windows.names)
            for number, group in enumerate(current.groups)
            if used.intersection(group.windows.names)
        ]
        self._renamed = [
            (column.name, column.columns[0], column.name not in raw)
            for column in needed
            if column.plain and column.columns[0] != column.name
        ]
        computed = [column for column in needed if not column.plain]
        self._computed = [(column.name, column.name not in raw) for column in computed]
        self._query = _query(current, computed, stream.schema)
        keys = [name for group in self._groups for name in group.by]
        names = dict.fromkeys([*(name for name in stream.schema.names if name in used), *keys])
        self.inputs = {name: _kind(stream.schema.field(name).type) for name in names}
        """Columns of the primary stream that a request should bring, and their kinds, as a plan says them."""
        self._known = frozenset([*self.inputs, *inputs, *used])
        self.names = self._known | {self._time}
        self._made = [c.name for c in needed if not (c.plain and c.columns == (c.name,) and c.name in raw)]
        """What is not in a row as it comes."""
        self._types = current.schema

    def rows(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Rows with what the plan needs. What a row brings under a name that is no column of the primary stream is
        as the model takes it, and stays.

        Raises:
            BadRow: a key or time cannot be read, or lies before what is known.
        """
        check_rows(rows, self._known, list(self.inputs))
        times = self._times(rows)
        full = [dict(row) for row in rows]
        for n, row in enumerate(full):
            self._look_up(n, row, times[n])
        updates: list[dict[str, Any]] = [
            {to: row.get(of) for to, of, own in self._renamed if not (own and to in row)} for row in full
        ]
        if self._query is not None:
            self._compute(full, times, updates)
        for row, update in zip(full, updates, strict=True):
            row.update(update)
        return full

    def _look_up(self, n: int, row: dict[str, Any], at_us: int) -> None:
        for group in self._groups:
            if all(name in row for name in group.names):
                continue
            key = self._key(n, row, group.by)
            if at_us < self._current.reach_us:
                reach = format_time(self._current.reach_us)
                raise BadRow(n, f"column {self._time!r} is {format_time(at_us)}; allowed: from {reach} on")
            for name, value in zip(group.names, self._current.look_up(group.number, key, at_us), strict=True):
                row.setdefault(name, value)

    def _key(self, n: int, row: Row, by: Sequence[str]) -> str | None:
        texts = []
        for column in by:
            value = row.get(column)
            if value is None:
                return None
            if not isinstance(value, str):
                try:
                    value = category(value)
                except (TypeError, ValueError) as error:
                    raise BadRow(
                        n, f"column {column!r} is {shown(value)}; allowed: text, a number or a boolean, or null"
                    ) from error
            texts.append(value)
        return key_of(texts)

    def _times(self, rows: Sequence[Row]) -> list[int]:
        now = self._clock_us()
        times = []
        for n, row in enumerate(rows):
            value = row.get(self._time)
            if value is None:
                times.append(now)
                continue
            moment = _moment(value)
            if moment is None:
                raise BadRow(n, f"column {self._time!r} is {shown(value)}; allowed: a time (ISO 8601), or null")
            times.append(moment)
        return times

    def _compute(self, rows: Sequence[Row], times: Sequence[int], updates: Sequence[dict[str, Any]]) -> None:
        query = self._query
        assert query is not None
        columns = [
            pa.array(times, pa.int64()).cast(TIMESTAMP)
            if field.name == self._time
            else _array(field, [row.get(field.name) for row in rows])
            for field in query.schema
        ]
        table = pa.Table.from_arrays(columns, schema=query.schema)
        try:
            found = query.compute(table)
        except DataError as error:
            if len(rows) == 1:
                raise BadRow(0, str(error)) from error
            n, why = _first_refused(query, table, error)  # the one at fault is told, and no other
            raise BadRow(n, str(why)) from why
        for name, own in self._computed:
            for row, update, value in zip(rows, updates, found[name].to_pylist(), strict=True):
                if not (own and name in row):
                    update[name] = value

    def table(self, table: pa.Table) -> pa.Table:
        """A table with what the plan needs, in the types of training.

        Raises:
            DataError: a column has a value that no row may have, or a time lies before what is known.
        """
        brought = table.select([name for name in table.column_names if name in self.names])
        pieces: dict[str, list[pa.Array]] = {name: [] for name in self._made}
        for begin in range(0, table.num_rows, _PIECE_ROWS):
            try:
                rows = self.rows(brought.slice(begin, _PIECE_ROWS).to_pylist())
            except BadRow as error:
                raise DataError(str(BadRow(begin + error.row, error.message))) from error
            for name, made_of in pieces.items():
                made_of.append(pa.array([row[name] for row in rows], self._types.field(name).type))
        for name, made_of in pieces.items():
            made = pa.chunked_array(made_of, self._types.field(name).type)
            place = table.schema.get_field_index(name)
            table = table.append_column(name, made) if place < 0 else table.set_column(place, name, made)
        return table


def _first_refused(query: RowQuery, table: pa.Table, error: DataError) -> tuple[int, DataError]:
    """Number of a row that a query refuses, where it has refused the table, and why."""
    begin, size = 0, table.num_rows
    while size > 1:
        half = size // 2
        try:
            query.compute(table.slice(begin, half))
        except DataError as of_half:
            size, error = half, of_half
        else:
            begin, size = begin + half, size - half
    return begin, error


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "raw"
    return "list" if pa.types.is_list(type_) else "map" if pa.types.is_map(type_) else "categorical"


def _of(name: str, found: Mapping[str, RowColumn]) -> RowColumn:
    column = found.get(name)
    if column is None:
        raise ConfigError(
            f"the model's column {name!r} is none of the pipeline's query, which gives {', '.join(found)}"
        )
    if column.refused is not None:
        raise ConfigError(
            f"the model's column {name!r} cannot be served: {column.sql} {column.refused}; leave it out of the "
            "features ([features] ignore)"
        )
    return column


def _query(current: Current, columns: Sequence[RowColumn], stream: pa.Schema) -> RowQuery | None:
    if not columns:
        return None
    for column in columns:
        type_ = current.schema.field(column.name).type
        if not any(fits(type_) for fits in _COMPUTED):
            raise ConfigError(
                f"the model's column {column.name!r} cannot be served: {column.sql} is of type {type_}; allowed: "
                "text, numbers, booleans and lists"
            )
    fields = [*stream, *(pa.field(name, current.type_of(name)) for name in current.names)]
    return RowQuery(columns, current.query.alias, pa.schema(fields), current.schema)


_COMPUTED = (
    pa.types.is_string,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_list,
)


def _moment(value: Any) -> int | None:
    """A time in microseconds, as the log takes it; None where it is none."""
    if isinstance(value, bool | list | dict):
        return None
    try:
        found, bad = as_times(pa.array([value]))
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None
    return None if bad[0] else int(found.cast(pa.int64())[0].as_py())


def _array(field: pa.Field, values: list[Any]) -> pa.Array:
    """Values of one of the stream's columns, as the log would have kept them."""
    try:
        return _converted(field.type, values)
    except _UNFIT:
        pass
    for n, value in enumerate(values):
        try:
            _converted(field.type, [value])
        except _UNFIT as error:
            raise BadRow(n, f"column {field.name!r} is {shown(value)}; allowed: {field.type}, or null") from error
    raise BadRow(0, f"column {field.name!r} has values of several types; allowed: {field.type}, or null")


_UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


def _converted(type_: pa.DataType, values: Sequence[Any]) -> pa.Array:
    if pa.types.is_string(type_):
        return pa.array([None if value is None else category(value) for value in values], type_)
    if pa.types.is_timestamp(type_):
        times = [None if value is None else _moment(value) for value in values]
        if times.count(None) > list(values).count(None):
            raise ValueError("no time")
        return pa.array(times, pa.int64()).cast(type_)
    return pa.array(values, type_)
