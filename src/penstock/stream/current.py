"""A pipeline's aggregates as of now, kept in memory: read from the log step by step, looked up by key.

Which events count, and from when on, is asked of the same SQL that makes training examples, of what is new alone.
One thread advances; any thread may look up at the same time, and holds the other up for a part of a millisecond.
Nothing here is written down: whoever starts anew reads the events of the longest window again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.errors import ConfigError, StorageError
from penstock.log import Log
from penstock.log.times import SECOND_US
from penstock.stream.evaluator import Evaluator
from penstock.stream.scan import Range
from penstock.stream.spec import Aggregate, Pipeline
from penstock.stream.sql import identifier
from penstock.stream.windows import Value, Windows, exact_parts

__all__ = ["SLACK_US", "Current", "key_of"]

SLACK_US = 60 * SECOND_US
"""How long before now a moment may lie that is asked for."""
_UNWRITABLE_US = 60 * SECOND_US
"""How long a log that could not be written to is only read."""
_READ_EVENTS = 1 << 20
"""Places of a stream that are read at once."""
_TAKEN = 1 << 13
"""Events that are made Python's at once, during which no other thread runs."""


class _Group:
    """The aggregates over one stream by the same columns."""

    def __init__(self, stream: str, by: tuple[str, ...], specs: Sequence[Aggregate], later: int) -> None:
        self.stream, self.by, self.windows = stream, by, Windows(specs)
        keys = [f"{identifier(column)}::varchar" for column in by]
        # As ``key_of`` writes it.
        key = keys[0] if len(keys) == 1 else " || ".join(f"length({each}) || ':' || {each}" for each in keys)
        values = "".join(f", {identifier(of)}::decimal(38, 9)" for of in self.windows.summed)
        there = " and ".join(f"{identifier(column)} is not null" for column in by)
        self.sql = f"select {key}, _t, greatest(_t, _arrived) + {later}{values} from _new where {there}"


def key_of(texts: Sequence[str]) -> str:
    """One text for the values of several columns; other values give another one."""
    return texts[0] if len(texts) == 1 else "".join(f"{len(text)}:{text}" for text in texts)


class Current:
    """The aggregates of one pipeline."""

    def __init__(self, log: Log, pipeline: Pipeline, now_us: int) -> None:
        """Bind the pipeline to the log; nothing is read before ``advance``.

        Raises:
            ConfigError: the pipeline does not fit the log's streams, or a key cannot be looked up.
            DataError: a stream is not there.
        """
        self.pipeline, self._log = pipeline, log
        self._evaluator = Evaluator(log, pipeline, threads=1)
        self.schema = self._evaluator.schema
        """Of examples."""
        self.query = self._evaluator.query
        self.streams = {name: log.known(name) for name in pipeline.streams}
        specs = sorted(pipeline.aggregates, key=lambda spec: (spec.stream, spec.by))
        self.groups = [
            _Group(stream, by, list(each), 1 if stream == pipeline.primary else 0)
            for (stream, by), each in groupby(specs, key=lambda spec: (spec.stream, spec.by))
        ]
        for group in self.groups:
            self._check_keys(group)
        self.steps = 0
        """That have been taken in."""
        self._writes_from_us = now_us
        """Before this, no step is taken here: the log could not be written to."""
        self._from_us = now_us - SLACK_US
        self._read = dict.fromkeys((group.stream for group in self.groups), 0)
        self._seen: dict[str, int] | None = None
        """Ends of the streams when they were last looked at."""
        self._readmitted: dict[str, set[int]] = {name: set() for name in self._read}
        """Places of events that were taken in although they had not counted at first."""
        for group in self.groups:
            group.windows.forget(self._from_us)

    def _check_keys(self, group: _Group) -> None:
        primary, stream = self.streams[self.pipeline.primary], self.streams[group.stream]
        for column in group.by:
            types = [each.schema.field(column).type for each in (primary, stream)]
            kinds = {_kind(type_) for type_ in types}
            if len(kinds) > 1 or None in kinds:
                raise ConfigError(
                    f"aggregates.{group.windows.names[0]}.by: {column!r} is {types[0]} in {primary.name} and "
                    f"{types[1]} in {stream.name}; allowed for serving: both text, both integers, or both booleans"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the aggregates."""
        return tuple(name for group in self.groups for name in group.windows.names)

    def type_of(self, name: str) -> pa.DataType:
        """The type of an aggregate's column."""
        what = next(spec.what for spec in self.pipeline.aggregates if spec.name == name)
        return pa.int64() if what == "count" else pa.float64()

    @property
    def events(self) -> int:
        """Events that are held, one in several groups once in each."""
        return sum(group.windows.events for group in self.groups)

    @property
    def reach_us(self) -> int:
        """The earliest moment that can be asked for."""
        return max((group.windows.reach_us for group in self.groups), default=self._from_us)

    def close(self) -> None:
        """Free the memory that reading takes."""
        self._evaluator.close()

    def look_up(self, group: int, key: str | None, at_us: int) -> tuple[Value, ...]:
        """The aggregates of a group, in its order, at a moment since ``reach_us``."""
        return self.groups[group].windows.look_up(key, at_us)

    def advance(self, now_us: int, say: Callable[[str, int, int], None] | None = None) -> bool:
        """Take in what is new; whether something was.

        Args:
            now_us: the clock, and the tick of a step that is taken here where events wait for one since the last
                call.
            say: told, while much is read, the stream, and how many events of how many there are.

        Raises:
            DataError, StorageError: the log cannot be read; what is known stays.
        """
        self._log.check_there()
        timeline = self._evaluator.timeline
        timeline.extend()
        self._take_step(now_us)
        last = len(timeline.points) - 1
        new = last >= self.steps
        if new:
            self._evaluator.as_of(last)
            for name in self._read:
                self._read_new(name, timeline.points[last].ends[name], say)
                self._readmit(name)
            self.steps = last + 1
        self._forget(now_us)
        return new

    def _take_step(self, now_us: int) -> None:
        """Events are known by a step. Whoever trains takes them; where nobody does, it is us."""
        timeline = self._evaluator.timeline
        known = timeline.points[-1].ends if timeline.points else dict.fromkeys(self._read, 0)
        ends = {name: self._log.stream(name).end for name in self._read}
        # Whoever begins waits for nobody.
        waiting = ends if self._seen is None else self._seen
        self._seen = ends
        if now_us >= self._writes_from_us and any(end > known[name] for name, end in waiting.items()):
            try:
                self._log.step(tick_us=now_us, unchanged=False)
            except StorageError:  # somebody who may write will take it
                self._writes_from_us = now_us + _UNWRITABLE_US
            timeline.extend()

    def _read_new(self, name: str, end: int, say: Callable[[str, int, int], None] | None) -> None:
        first = self._read[name]
        longest = max(group.windows.longest_us for group in self.groups if group.stream == name)
        # What is older is in no window; and many events of old times may come at once.
        where = Range(from_us=self._from_us - longest, first=first, end=end)
        files = (
            self.streams[name].files(from_us=where.from_us, from_seq=first) if end - first > _READ_EVENTS else []
        )
        lows = [file.lows["_seq"] for file in files if "_seq" in file.lows]
        begin = start = max(first, min(lows)) if len(lows) == len(files) and lows else first
        while begin < end:
            until = min(begin + _READ_EVENTS, end)
            self._take(name, Range(from_us=where.from_us, first=begin, end=until))
            begin = self._read[name] = until
            if say is not None:
                say(name, begin - start, end - start)

    def _readmit(self, name: str) -> None:
        """What counts after all, and was read before."""
        steps = self._evaluator.timeline.readmitted(name)
        again = sorted(steps.keys() - self._readmitted[name])
        if again:
            table = {
                "_seq": pa.array(again, pa.int64()),
                "_step": pa.array([steps[seq] for seq in again], pa.int64()),
            }
            self._evaluator.database.register("_again", pa.table(table))
            self._take(name, Range(among="_again"))

    def _take(self, name: str, where: Range) -> None:
        database, readmitted = self._evaluator.database, self._evaluator.timeline.readmitted(name)
        self._evaluator.define("_new", name, where)
        groups = [group for group in self.groups if group.stream == name]
        # All are read before one is added: what cannot be read is read again, and nothing counts twice.
        # One that had counted from the start has another step here than the one that readmits it.
        condition = " and (_seq, _step) in (select _seq, _step from _again)" if where.among else ""
        tables = [database.table(group.sql + condition) for group in groups]
        for group, table in zip(groups, tables, strict=True):
            for batch in table.to_batches(max_chunksize=_TAKEN):
                keys, times, known, *values = batch.columns
                exact = np.array([_exact(each) for each in values], np.int64).reshape(len(values), 4, len(batch))
                group.windows.add(keys.to_pylist(), np.asarray(times), np.asarray(known), exact)
        self._readmitted[name] |= {seq for seq in readmitted if where.among or where.first <= seq < where.end}

    def _forget(self, now_us: int) -> None:
        for group in self.groups:
            before = now_us - SLACK_US
            if before - group.windows.reach_us < max(group.windows.longest_us // 8, SECOND_US):
                continue
            group.windows.forget(before)


def _exact(column: pa.Array) -> NDArray[np.int64]:
    """Decimals, as the windows take them."""
    # Arrow keeps each as 16 bytes, the low ones first.
    halves = np.frombuffer(column.buffers()[1], np.int64)[2 * column.offset : 2 * (column.offset + len(column))]
    there = column.is_valid().to_numpy(zero_copy_only=False)
    return exact_parts(
        np.ascontiguousarray(halves[::2]).view(np.uint64), np.ascontiguousarray(halves[1::2]), there
    )


def _kind(type_: pa.DataType) -> str | None:
    if pa.types.is_string(type_):
        return "text"
    if pa.types.is_integer(type_):
        return "integers"
    return "booleans" if pa.types.is_boolean(type_) else None
