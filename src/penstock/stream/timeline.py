"""A pipeline's view of a log's steps: what was known, how far each stream was complete, which windows were sealed.

Everything here is computed from the log's steps and events, and comes out the same for whoever computes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.errors import ConfigError
from penstock.log import EventStream, Log, Step
from penstock.stream.clocks import Held, Seen, StreamClock
from penstock.stream.scan import Scanner
from penstock.stream.spec import Pipeline

__all__ = ["NEVER", "Point", "Timeline"]

NEVER = -(1 << 62)
"""A watermark that has not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a step means to a pipeline."""

    step: int
    tick_us: int
    ends: Mapping[str, int]
    marks: Mapping[str, int]
    """Watermarks after it by stream, ``NEVER`` where nothing is known."""


class Timeline:
    """All steps of a log so far, as one pipeline sees them."""

    def __init__(self, log: Log, pipeline: Pipeline, scanner: Scanner) -> None:
        self.log, self.pipeline, self._scanner = log, pipeline, scanner
        self.points: list[Point] = []
        self.steps: list[Step] = []
        self._clocks = {name: StreamClock(name, spec) for name, spec in pipeline.streams.items()}
        self._marks: NDArray[np.int64] = np.zeros(0, np.int64)
        empty = pa.schema([(name, pa.int64()) for name in ("first_seq", "step", "mark")]).empty_table()
        self._steps_of = dict.fromkeys(pipeline.streams, empty)
        self._readmitted: dict[str, dict[int, int]] = {name: {} for name in pipeline.streams}

    def extend(self) -> bool:
        """Take in the steps that there are; whether some are new."""
        new = list(self.log.progress.steps()[len(self.points) :])
        if new:
            self._take(new)
        return bool(new)

    def look(self, tick_us: int) -> None:
        """Take in the steps that there are, and then as a last one what is there now, which is not recorded.

        After this the timeline is good for looking at alone.
        """
        self.extend()
        streams = {name: self.log.stream(name) for name in self.pipeline.streams}
        self._take(
            [
                Step(
                    number=len(self.points),
                    tick_us=max([tick_us, *(point.tick_us for point in self.points[-1:])]),
                    ends={name: stream.end for name, stream in streams.items()},
                    versions={name: stream.version for name, stream in streams.items()},
                )
            ]
        )

    def _take(self, new: Sequence[Step]) -> None:
        first = len(self.points)
        seen = {name: self._seen(name, new) for name in self.pipeline.streams}
        for step in new:
            marks = {}
            for name, clock in self._clocks.items():
                mark = clock.advance(step.tick_us, seen[name].get(step.number, ()))
                marks[name] = NEVER if mark is None else mark
            ends = {name: step.ends.get(name, 0) for name in self.pipeline.streams}
            self.points.append(Point(step=step.number, tick_us=step.tick_us, ends=ends, marks=marks))
        self.steps += new
        for name in self.pipeline.streams:
            self._tabulate(name, first)
        primary = self.pipeline.primary
        new_marks = np.array([point.marks[primary] for point in self.points[first:]], np.int64)
        self._marks = np.concatenate([self._marks, new_marks])

    def _seen(self, name: str, new: Sequence[Step]) -> dict[int, list[Seen]]:
        """What each new step brought of a stream, by step."""
        before = self.points[-1].ends.get(name, 0) if self.points else 0
        ends = [step.ends.get(name, 0) for step in new]
        if ends[-1] <= before:
            return {}
        starts = [before, *ends[:-1]]
        table = pa.table(
            {
                "first_seq": pa.array([a for a, b in zip(starts, ends, strict=True) if b > a], pa.int64()),
                "step": pa.array(
                    [s.number for s, a, b in zip(new, starts, ends, strict=True) if b > a], pa.int64()
                ),
            }
        )
        found: dict[int, list[Seen]] = {}
        for step, source, newest, arrived in self._scanner.newest(name, before, ends[-1], table):
            found.setdefault(step, []).append(Seen(source=source, newest_us=newest, arrived_us=arrived))
        return found

    def stream(self, name: str) -> EventStream:
        """The stream, with the time and id columns that the pipeline expects.

        Raises:
            ConfigError: it was made with another time or id column.
        """
        stream = self.log.stream(name)
        spec = self.pipeline.streams[name]
        if spec.time is not None and spec.time != stream.settings.time:
            raise ConfigError(
                f"streams.{name}.time: got {spec.time!r}, allowed: {stream.settings.time!r} as in the log"
            )
        if spec.id is not None and spec.id not in stream.schema.names:
            raise ConfigError(
                f"streams.{name}.id: got {spec.id!r}, allowed: a column of the stream, which has "
                f"{', '.join(stream.schema.names)}"
            )
        return stream

    def sealed_to(self, index: int) -> int:
        """Windows that begin before this time are sealed after the step of this index; ``NEVER`` for none."""
        if index < 0 or self._marks[index] == NEVER:
            return NEVER
        return self._sealed_by(int(self._marks[index]))

    def _sealed_by(self, mark_us: int) -> int:
        pipeline = self.pipeline
        slide = pipeline.slide_us or pipeline.window_us
        return (mark_us - pipeline.wait_us - pipeline.window_us) // slide * slide + slide

    def sealing_steps(self, begins: NDArray[np.int64]) -> NDArray[np.int64]:
        """For windows by where they begin, the step that sealed each; ``len(points)`` for none yet."""
        pipeline = self.pipeline
        needed = begins + pipeline.window_us + pipeline.wait_us
        return np.searchsorted(self._marks, needed, side="left").astype(np.int64)

    def mark(self, index: int, name: str) -> int:
        """A stream's watermark after the step of this index; ``NEVER`` before the first."""
        return self.points[index].marks[name] if index >= 0 else NEVER

    def would_seal(self, tick_us: int) -> int:
        """``sealed_to`` after a step at this tick that brings nothing."""
        mark = self._clocks[self.pipeline.primary].peek(tick_us)
        return NEVER if mark is None else self._sealed_by(mark)

    def steps_of(self, name: str) -> pa.Table:
        """The steps that brought events of a stream: where each begins, and the watermark before it."""
        return self._steps_of[name]

    def readmitted(self, name: str) -> Mapping[int, int]:
        """Of a stream's events that were readmitted, by place: the step."""
        return self._readmitted[name]

    def _tabulate(self, name: str, first: int) -> None:
        """Add what the steps from number ``first`` on say of a stream."""
        rows: dict[str, list[int]] = {"first_seq": [], "step": [], "mark": []}
        before = self.points[first - 1].ends[name] if first else 0
        for point, step in zip(self.points[first:], self.steps[first:], strict=True):
            # What is readmitted again, or before it came, is nothing new.
            self._readmitted[name] |= {
                seq: step.number
                for seq in step.readmitted.get(name, ())
                if seq not in self._readmitted[name] and seq < point.ends[name]
            }
            if point.ends[name] > before:
                rows["first_seq"].append(before)
                rows["step"].append(point.step)
                rows["mark"].append(self.mark(point.step - 1, name))
                before = point.ends[name]
        new = pa.table({column: pa.array(values, pa.int64()) for column, values in rows.items()})
        self._steps_of[name] = pa.concat_tables([self._steps_of[name], new]).combine_chunks()

    def held(self) -> list[Held]:
        """Why each stream's watermark stands where it stands."""
        return [clock.held() for clock in self._clocks.values()]
