"""Batch = stream = Lambda: the same examples come out of each, or the first row that differs is shown.

*Batch* computes every example once, as the log stands after the last step, in windows of a day. *Stream* goes
through the steps with the pipeline's own windows, and corrects. *Lambda* begins with the batch as of a step in
the middle, and goes on with what the stream brings after that step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.log import Log
from penstock.log.times import DAY_US
from penstock.stream.evaluator import EXTRA
from penstock.stream.replay import Examples, Replay
from penstock.stream.spec import Pipeline
from penstock.stream.sql import Database, identifier

__all__ = ["Difference", "Proof", "prove"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An example that comes out otherwise."""

    way: str
    """``stream`` or ``lambda``."""
    batch: dict[str, Any] | None
    """What batch says; None for nothing."""
    other: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared."""

    examples: int
    """That batch gave."""
    steps: int
    corrections: int
    """By which the stream changed what it had given out."""
    cut: int | None
    """The step at which Lambda goes over from batch to stream; None where there is but one."""
    differing: int
    first: Difference | None


class _Held:
    """A digest of each example that is in force, by its event's place."""

    def __init__(self, size: int) -> None:
        self.digests: NDArray[np.uint64] = np.zeros(size, np.uint64)
        self.there: NDArray[np.bool_] = np.zeros(size, bool)

    def put(self, seqs: NDArray[np.int64], digests: NDArray[np.uint64], gone: NDArray[np.bool_]) -> None:
        """Take in rows in their order: a retraction takes an example away, anything else puts it there."""
        self.there[seqs[gone]] = False
        self.there[seqs[~gone]] = True
        self.digests[seqs[~gone]] = digests[~gone]


def prove(
    pipeline: Pipeline,
    *,
    from_us: int | None = None,
    to_us: int | None = None,
    on_progress: Callable[[str, int], None] | None = None,
) -> Proof:
    """Compare the three ways row by row, for events of [from, to) that all of them have sealed.

    A sliding pipeline is compared by its tumbling windows. ``on_progress`` is told the way and its rows so far.
    """
    pipeline = dataclasses.replace(pipeline, slide_us=None)
    tell = on_progress if on_progress is not None else (lambda way, rows: None)
    log = Log(pipeline.log)
    stream = Replay(log, pipeline, from_us=from_us, to_us=to_us)
    digest = _Digest(stream)
    stream.timeline.extend()
    points = stream.timeline.points
    if not points:
        return Proof(examples=0, steps=0, corrections=0, cut=None, differing=0, first=None)
    last = len(points) - 1
    size = points[last].ends[pipeline.primary]
    batch = _Held(size)
    for rows in _told(_batch(log, pipeline, stream, last), "batch", tell):
        batch.put(*digest.of(rows))
    cut = _cut(stream, last)
    merged = _Held(size)
    if cut is not None:
        for rows in _told(stream.final(cut), "lambda", tell):
            merged.put(*digest.of(rows))
    streamed, corrections, count = _Held(size), 0, 0
    for examples in stream.run():
        rows = examples.rows
        count += rows.num_rows
        tell("stream", count)
        corrections += pa.compute.sum(pa.compute.equal(rows["_kind"], "correction")).as_py() or 0
        held = digest.of(rows)
        streamed.put(*held)
        if cut is not None and examples.piece.step > cut:
            merged.put(*held)
    ways = [("stream", streamed)] + ([("lambda", merged)] if cut is not None else [])
    differing = {
        way: np.flatnonzero((held.there != batch.there) | (held.there & (held.digests != batch.digests)))
        for way, held in ways
    }
    first = next(
        (
            _difference(way, int(seqs[0]), log, pipeline, stream, last)
            for way, seqs in differing.items()
            if len(seqs)
        ),
        None,
    )
    found = Proof(
        examples=int(batch.there.sum()),
        steps=len(points),
        corrections=corrections,
        cut=cut,
        differing=sum(len(seqs) for seqs in differing.values()),
        first=first,
    )
    stream.close()
    return found


class _Digest:
    """64 bits of an example's columns; those that say when it was given out are left out."""

    def __init__(self, replay: Replay) -> None:
        own = [name for name in replay.schema.names if name not in EXTRA.names]
        self._columns = ", ".join(identifier(name) for name in own)
        self._database = Database(threads=1)

    def of(self, rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.bool_]]:
        """Places, digests, and which are retractions."""
        self._database.register("rows", rows)
        table = self._database.table(f"select hash({self._columns}) as digest from rows")
        gone = np.asarray(pa.compute.equal(rows["_kind"], "retraction"))
        return np.asarray(rows["_seq"]), np.asarray(table["digest"]), gone


def _told(found: Iterator[Examples], way: str, tell: Callable[[str, int], None]) -> Iterator[pa.Table]:
    count = 0
    for examples in found:
        count += examples.rows.num_rows
        tell(way, count)
        yield examples.rows


def _batch(log: Log, pipeline: Pipeline, stream: Replay, last: int) -> Iterator[Examples]:
    """Every example once: by windows of a day where all of a day is sealed, by the pipeline's own after that."""
    low, high = stream.planner.from_us, stream.planner.to_us
    daily = Replay(
        log,
        dataclasses.replace(pipeline, window_us=max(DAY_US, pipeline.window_us)),
        from_us=low,
        to_us=None if high is None else high + DAY_US,
    )
    daily.timeline.extend()
    whole = daily.timeline.sealed_to(last)
    whole = whole if high is None else min(whole, high)
    for examples in daily.final(last):
        # Days begin at midnight; what is asked for may not.
        times = examples.rows["_time"].cast(pa.int64())
        keep = pa.compute.less(times, whole)
        if low is not None:
            keep = pa.compute.and_(keep, pa.compute.greater_equal(times, low))
        yield dataclasses.replace(examples, rows=examples.rows.filter(keep))
    daily.close()
    begin = whole if low is None else max(whole, low)
    if high is not None and begin >= high:
        return
    rest = Replay(log, pipeline, from_us=begin, to_us=high)
    rest.timeline.extend()
    yield from rest.final(last)
    rest.close()


def _cut(stream: Replay, last: int) -> int | None:
    """A step in the middle of those after which something was sealed."""
    sealing = [step for step in range(last) if stream.timeline.sealed_to(step) > stream.timeline.sealed_to(-1)]
    return sealing[len(sealing) // 2] if sealing else None


def _difference(way: str, seq: int, log: Log, pipeline: Pipeline, stream: Replay, last: int) -> Difference:
    """Both rows of an event, looked up again."""
    found: list[dict[str, Any] | None] = []
    again = Replay(log, pipeline, from_us=stream.planner.from_us, to_us=stream.planner.to_us)
    for rows in (_batch(log, pipeline, stream, last), again.run()):
        row = None
        for examples in rows:
            for each in examples.rows.filter(pa.compute.equal(examples.rows["_seq"], seq)).to_pylist():
                row = None if each["_kind"] == "retraction" else each
        found.append(row)
    again.close()
    return Difference(way=way, batch=found[0], other=found[1])
