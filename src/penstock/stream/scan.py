"""What SQL sees of a stream: events that count, with the step that brought each, and those that do not, with why.

An event does not count where its clock was ahead of its arrival (``skewed``), where it came after the watermark
had passed what it could still change (``late``), and where one of its id was there before (``duplicate``). Each
is a function of the event, of the steps before it and of events before it, so it does not depend on windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from penstock.log import EventStream, Log
from penstock.log.delta import DataFile
from penstock.stream.doubles import Doubles
from penstock.stream.spec import Pipeline, StreamSpec
from penstock.stream.sql import Database, identifier, literal

__all__ = ["Range", "Scanner", "bucket"]

_FAR = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Event times [from, to) in microseconds, and places [first, end) in a stream."""

    from_us: int = -_FAR
    to_us: int = _FAR
    first: int = 0
    end: int = _FAR
    among: str | None = None
    """A table of places ``_seq``: these events alone."""


def bucket(time: str, slide_us: int) -> str:
    """SQL of where the slice of event time begins in which ``time`` lies, also before 1970."""
    return f"({time} - (({time} % {slide_us}) + {slide_us}) % {slide_us})"


class Scanner:
    """Names relations for a pipeline's streams in one database; but for the streams' own, names begin with
    ``_``."""

    def __init__(self, log: Log, pipeline: Pipeline, database: Database) -> None:
        self.log, self.pipeline, self.database = log, pipeline, database
        self._local = "://" not in log.place
        self._doubles: dict[str, Doubles] = {}
        self._steps: dict[str, pa.Table] = {}

    def columns(self, name: str) -> list[str]:
        """The events' own columns."""
        return list(self._stream(name).schema.names)

    def newest(self, name: str, first: int, end: int, steps: pa.Table) -> list[tuple[int, str, int | None, int]]:
        """(step, source, newest event time without wrong clocks, last arrival) of places [first, end)."""
        stream, spec = self._stream(name, end), self.pipeline.streams[name]
        scan = self._scan(stream, Range(first=first, end=end), [], f"_steps_newest_{name}", steps)
        return self.database.rows(
            f"select _step, _source, max(case when _t <= _a + {spec.skew_us} then _t end), max(_a) from ({scan}) "
            "group by all order by all"
        )

    def counts(
        self, name: str, where: Range, steps: pa.Table, slide_us: int
    ) -> tuple[list[int], list[int], list[int]]:
        """Events by slices of event time and by step: where each slice begins, the step, how many."""
        scan = self._scan(self._stream(name, where.end), where, [], f"_steps_counts_{name}", steps)
        rows = self.database.rows(
            f"select {bucket('_t', slide_us)}, _step, count(*) from ({scan}) group by all order by all"
        )
        buckets, numbers, counts = zip(*rows, strict=True) if rows else ((), (), ())
        return list(buckets), list(numbers), list(counts)

    def most(self, name: str, where: Range) -> int:
        """How many events there are at most in a range of event times: those of the files that may have some."""
        files = self._stream(name).files(from_us=where.from_us, to_us=where.to_us, from_seq=where.first)
        return sum(file.rows for file in files)

    def any_of(self, name: str, where: Range) -> bool:
        """Whether there are events in a range."""
        step = pa.table({"first_seq": [0], "step": [0]})
        scan = self._scan(self._stream(name, where.end), where, [], f"_steps_any_{name}", step)
        return bool(self.database.rows(f"select 1 from ({scan}) limit 1"))

    def define(self, relation: str, name: str, where: Range, steps: pa.Table, readmitted: pa.Table) -> None:
        """Define a view ``relation`` of the events of a stream that count, with ``_t``, ``_seq`` and ``_step``.

        ``steps`` are those that brought events, ``readmitted`` (``_seq``, ``_step``) what was quarantined and
        counts from a later step on.
        """
        stream = self._stream(name, where.end)
        columns = ", ".join(identifier(column) for column in stream.schema.names)
        judged = self.judged(relation, name, where, steps)
        view = f"select {columns}, _t, _seq, _arrived, _step from ({judged}) where _reason is null"
        if readmitted.num_rows:
            again = f"_readmitted_{relation}"
            self.database.register(again, readmitted)
            view += (
                f" union all select {columns}, _t, _seq, _arrived, a._step from ({judged}) j "
                f"join {again} a using (_seq) where _reason is not null"
            ).replace("a._step from", "a._step as _step from")
        self.database.run(f"create or replace temp view {identifier(relation)} as {view}")

    def uncounted(self, name: str, first: int, end: int, steps: pa.Table) -> pa.Table:
        """The events of places [first, end) that do not count, all columns and ``_reason``, by place."""
        stream, spec = self._stream(name, end), self.pipeline.streams[name]
        scan = self._scan(stream, Range(first=first, end=end), [], f"_steps_uncounted_{name}", steps)
        low, high = self.database.rows(f"select min(_t), max(_t) from ({scan}) where _t <= _a + {spec.skew_us}")[0]
        # Only these can be duplicates, so ids are looked up near them alone.
        where = Range(from_us=low, to_us=high + 1, first=first, end=end) if low is not None else None
        found = []
        if where is not None:
            judged = self.judged("_uncounted", name, where, steps)
            found.append(self.database.table(f"select * from ({judged}) where _reason is not null"))
        everything = self._scan(
            stream, Range(first=first, end=end), stream.schema.names, f"_steps_uncounted_{name}", steps
        )
        found.append(
            self.database.table(
                f"select *, 'skewed' as _reason, _a as _arrived from ({everything}) where _t > _a + {spec.skew_us}"
                + (f" and not (_t >= {where.from_us} and _t < {where.to_us})" if where is not None else "")
            )
        )
        tables = [table.drop_columns(["_a"]) for table in found]
        return pa.concat_tables([table.select(tables[-1].column_names) for table in tables]).sort_by("_seq")

    def define_all(self, relation: str, name: str, where: Range, more: str) -> None:
        """Define a view of all events in a range, counted or not; ``more`` is SQL of further columns."""
        stream = self._stream(name, where.end)
        step = pa.table({"first_seq": [0], "step": [0]})
        scan = self._scan(stream, where, stream.schema.names, f"_steps_all_{relation}", step)
        self.database.run(f"create or replace temp view {identifier(relation)} as select *{more} from ({scan})")

    def judged(self, relation: str, name: str, where: Range, steps: pa.Table) -> str:
        """SQL of a stream's events, each with ``_reason``: null where it counts."""
        stream, spec = self._stream(name, where.end), self.pipeline.streams[name]
        doubles = self._judge_doubles(name, where, steps)
        scan = self._scan(stream, where, stream.schema.names, f"_steps_view_{relation}", steps)
        judged = self._reason(name, spec)
        if doubles is not None:
            judged = f"coalesce({judged}, case when _seq in (select _seq from {doubles}) then 'duplicate' end)"
        return f"select *, {judged} as _reason from (select *, _a as _arrived from ({scan}))"

    def _reason(self, name: str, spec: StreamSpec) -> str:
        allowed = self.pipeline.wait_us if name == self.pipeline.primary else spec.within_us
        return f"case when _t > _a + {spec.skew_us} then 'skewed' when _t + {allowed} < _mark then 'late' end"

    def _judge_doubles(self, name: str, where: Range, steps: pa.Table) -> str | None:
        """The table of duplicates' places, complete for a range; None where there is no id, or no duplicate."""
        stream, spec = self._stream(name, where.end), self.pipeline.streams[name]
        id_ = spec.id or stream.settings.id
        if id_ is None:
            return None
        self._steps[name] = steps
        doubles = self._doubles.get(name)
        if doubles is None:
            key = identifier(id_)
            reason = self._reason(name, spec)

            def candidates(from_us: int, to_us: int, first: int, end: int) -> str:
                near = Range(from_us=from_us, to_us=to_us, first=first, end=end)
                scan = self._scan(
                    self._stream(name, end), near, [id_], f"_steps_doubles_{name}", self._steps[name]
                )
                return f"select {key} as id, _t, _seq from ({scan}) where {key} is not null and {reason} is null"

            doubles = Doubles(
                self.database, f"_doubles_{name}", spec.dedup_us, candidates, self._stream(name).hours
            )
            self._doubles[name] = doubles
        from_us, to_us = where.from_us, where.to_us
        if from_us <= -_FAR // 2 or to_us >= _FAR // 2:
            scan = self._scan(stream, where, [], f"_steps_range_{name}", steps)
            found = self.database.rows(f"select min(_t), max(_t) from ({scan}) where _t <= _a + {spec.skew_us}")
            low, high = found[0]
            from_us, to_us = (low, high + 1) if low is not None else (0, 0)
        doubles.judge(from_us, to_us, where.end)
        return doubles.table if self.database.rows(f"select 1 from {doubles.table} limit 1") else None

    def _stream(self, name: str, end: int = 0) -> EventStream:
        """A stream, at a version that has all events of places below ``end``."""
        stream = self.log.known(name)
        if end < _FAR and stream.end < end:
            stream.refresh()
        return stream

    def _scan(
        self, stream: EventStream, where: Range, columns: Sequence[str], steps_name: str, steps: pa.Table
    ) -> str:
        """SQL of all events in a range, with ``_t``, ``_a``, ``_seq``, ``_source``, ``_step`` and ``_mark``."""
        files = stream.files(from_us=where.from_us, to_us=where.to_us, from_seq=where.first)
        files = [file for file in files if file.lows.get("_seq", 0) < where.end]
        time = identifier(stream.settings.time)
        wanted = list(dict.fromkeys([*columns, stream.settings.time, "_arrival", "_seq", "_source"]))
        rows = self._files(stream, files, wanted)
        conditions = [f"_seq < {where.end}"]
        if where.first:
            conditions.append(f"_seq >= {where.first}")
        if where.among is not None:
            conditions.append(f"_seq in (select _seq from {where.among})")
        if where.from_us > -_FAR // 2:
            conditions.append(f"{time} >= make_timestamptz({where.from_us})")
        if where.to_us < _FAR // 2:
            conditions.append(f"{time} < make_timestamptz({where.to_us})")
        own = ", ".join(identifier(column) for column in columns)
        hidden = f"epoch_us({time}) as _t, epoch_us(_arrival) as _a, _seq, _source"
        base = f"select {own + ', ' if own else ''}{hidden} from ({rows}) where {' and '.join(conditions)}"
        has_mark = "mark" in steps.column_names
        if steps.num_rows > 1:
            # Of many steps, those that brought places [first, end).
            begins = np.asarray(steps["first_seq"])
            low = max(0, int(np.searchsorted(begins, where.first, side="right")) - 1)
            steps = steps.slice(low, int(np.searchsorted(begins, where.end, side="left")) - low)
        if steps.num_rows == 1:
            mark = f", {steps['mark'][0].as_py()}::bigint as _mark" if has_mark else ""
            return f"select *, {steps['step'][0].as_py()}::bigint as _step{mark} from ({base})"
        self.database.register(steps_name, steps)
        mark = ", t.mark as _mark" if has_mark else ""
        return (
            f"select r.*, t.step as _step{mark} from ({base}) r asof join {steps_name} t on r._seq >= t.first_seq"
        )

    def _files(self, stream: EventStream, files: Sequence[DataFile], columns: Sequence[str]) -> str:
        """SQL of the rows of these files; a column that came later is null in files before."""
        names = ", ".join(identifier(column) for column in columns)
        types = {field.name: field.type for field in [*stream.schema, *_HIDDEN]}
        empty = f"_schema_{stream.name}"
        schema = pa.schema([(name, types[name]) for name in stream.schema.names + [f.name for f in _HIDDEN]])
        self.database.register(empty, schema.empty_table())
        if not files:
            return f"select {names} from {empty}"
        if self._local:
            places = ", ".join(literal(stream.folder.place(file)) for file in files)
            scanned = f"read_parquet([{places}], union_by_name = true, hive_partitioning = false)"
        else:
            # A view is read later, so each set of files has a name of its own.
            paths = "\n".join(file.path for file in files).encode()
            scanned = f"_files_{stream.name}_{hashlib.sha256(paths).hexdigest()[:16]}"
            data: Any = ds.dataset(
                [file.path for file in files],
                schema=schema,
                format="parquet",
                filesystem=stream.folder.file_system,
            )
            self.database.register(scanned, data)
        return f"select {names} from (select * from {empty} union all by name select * from {scanned})"


_HIDDEN = [
    pa.field("_arrival", pa.timestamp("us", tz="UTC")),
    pa.field("_seq", pa.int64()),
    pa.field("_source", pa.string()),
]
