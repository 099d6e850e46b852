"""What a pipeline's examples are, by the book: loops over all events, begun anew at every step.

Nothing here is shared with ``penstock.stream`` but the settings (``Pipeline``), and nothing is kept from one step
to the next. Times are microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.stream.spec import Pipeline

SECOND = 1_000_000


@dataclass(frozen=True)
class Event:
    """An event as it stands in a stream."""

    seq: int
    time: int
    arrival: int
    source: str
    id: str | None
    fields: Mapping[str, Any]
    """Times in it are microseconds."""

    def __getitem__(self, column: str) -> Any:
        return self.fields[column]


@dataclass(frozen=True)
class Taken:
    """A step as it was taken."""

    tick: int
    ends: Mapping[str, int]
    readmitted: Mapping[str, Sequence[int]] = field(default_factory=dict)


Seen = Mapping[str, Sequence[Event]]


@dataclass(frozen=True)
class Question:
    """A query, in SQL and in Python: the rows that one event of the primary stream gives."""

    name: str
    streams: tuple[str, ...]
    sql: str
    columns: tuple[str, ...]
    rows: Callable[[Event, Seen], list[tuple[Any, ...]]]

    def __repr__(self) -> str:
        return f"Question({self.name})"


@dataclass(frozen=True)
class Example:
    """One that comes out."""

    values: tuple[Any, ...]
    kind: str
    time: int
    window: int
    age: float
    seq: int
    step: int


class Oracle:
    """A pipeline over a log, from ``from_us`` to ``to_us``."""

    def __init__(
        self,
        pipeline: Pipeline,
        question: Question,
        steps: Sequence[Taken],
        events: Mapping[str, Sequence[Event]],
        from_us: int | None = None,
        to_us: int | None = None,
    ) -> None:
        self.pipeline, self.question, self.steps, self.events = pipeline, question, steps, events
        self.slide = pipeline.slide_us or pipeline.window_us
        self.from_us = None if from_us is None else from_us // self.slide * self.slide
        self.to_us = None if to_us is None else to_us // self.slide * self.slide
        self.wait = pipeline.label_wait_us
        if pipeline.late.mode == "wait":
            self.wait = max([self.wait, *(pipeline.streams[name].within_us for name in pipeline.others)])
        self._marks = {name: self._all_marks(name) for name in pipeline.streams}
        self._reasons = {
            name: {event.seq: self._reason(name, event) for event in events[name]} for name in pipeline.streams
        }

    # Steps and watermarks.

    def step_of(self, name: str, event: Event) -> int | None:
        """The first step that knows an event."""
        for number, step in enumerate(self.steps):
            if event.seq < step.ends[name]:
                return number
        return None

    def is_skewed(self, name: str, event: Event) -> bool:
        return event.time > event.arrival + self.pipeline.streams[name].skew_us

    def mark(self, name: str, step: int) -> int | None:
        """A stream's watermark after a step; None where there is none, or no such step."""
        return self._marks[name][step] if step >= 0 else None

    def _all_marks(self, name: str) -> list[int | None]:
        marks: list[int | None] = []
        for number in range(len(self.steps)):
            now = self._mark_alone(name, number)
            before = marks[-1] if marks else None
            marks.append(now if before is None else before if now is None else max(before, now))
        return marks

    def _mark_alone(self, name: str, number: int) -> int | None:
        """What a step says by itself, which may be less than what one before said."""
        spec, step = self.pipeline.streams[name], self.steps[number]
        known = [event for event in self.events[name] if event.seq < step.ends[name]]
        sources = {event.source for event in known}
        idle = set()
        newest = {}
        for source in sources:
            own = [event for event in known if event.source == source]
            if spec.idle_us is not None and step.tick - max(event.arrival for event in own) >= spec.idle_us:
                idle.add(source)
            times = [event.time for event in own if not self.is_skewed(name, event)]
            if times:
                newest[source] = max(times)
        active = [newest[source] for source in newest if source not in idle]
        if active:
            return min(active) - spec.lateness_us
        if sources and idle == sources:
            return step.tick - spec.lateness_us
        return None

    # What counts.

    def _is_late(self, name: str, event: Event) -> bool:
        step = self.step_of(name, event)
        if step is None:
            return False
        mark = self.mark(name, step - 1)
        is_primary = name == self.pipeline.primary
        grace = self.wait if is_primary else self.pipeline.streams[name].within_us
        return mark is not None and event.time + grace < mark

    def _reason(self, name: str, event: Event) -> str | None:
        if self.is_skewed(name, event):
            return "skewed"
        if self._is_late(name, event):
            return "late"
        for other in self.events[name]:
            if (
                other.seq < event.seq
                and event.id is not None
                and other.id == event.id
                and not self.is_skewed(name, other)
                and not self._is_late(name, other)
                and abs(other.time - event.time) <= self.pipeline.streams[name].dedup_us
            ):
                return "duplicate"
        return None

    def reason(self, name: str, event: Event) -> str | None:
        """Why an event did not count when it came; None where it did."""
        return self._reasons[name][event.seq]

    def readmitted_at(self, name: str, event: Event) -> int | None:
        for number, step in enumerate(self.steps):
            if event.seq < step.ends[name] and event.seq in step.readmitted.get(name, ()):
                return number
        return None

    def counts_from(self, name: str, event: Event) -> int | None:
        """The step from which on an event counts; None where it never does."""
        if self.step_of(name, event) is None:
            return None
        return self.step_of(name, event) if self.reason(name, event) is None else self.readmitted_at(name, event)

    # Windows.

    def windows_of(self, event: Event) -> list[int]:
        """Where those begin that an event lies in, and that are asked for."""
        found = []
        begin = event.time // self.slide * self.slide
        while begin + self.pipeline.window_us > event.time:
            if (self.from_us is None or begin >= self.from_us) and (self.to_us is None or begin < self.to_us):
                found.append(begin)
            begin -= self.slide
        return sorted(found)

    def sealed_at(self, window: int) -> int | None:
        """The step that seals a window."""
        for number in range(len(self.steps)):
            mark = self.mark(self.pipeline.primary, number)
            if mark is not None and mark >= window + self.pipeline.window_us + self.wait:
                return number
        return None

    def result(self, event: Event, step: int) -> tuple[Any, ...] | None:
        """What the query says of an event as of a step: the least row, or None where there is none."""
        seen: dict[str, list[Event]] = {}
        for name in self.pipeline.others:
            spec = self.pipeline.streams[name]
            seen[name] = []
            for other in self.events[name]:
                counts = self.counts_from(name, other)
                if counts is None or counts > step:
                    continue
                if event.time - spec.before_us <= other.time <= event.time + spec.within_us:
                    seen[name].append(other)
        rows = self.question.rows(event, seen)
        return min(rows, key=lambda row: [rank(value) for value in row]) if rows else None

    def examples(self) -> list[Example]:
        """All of them, in order."""
        found: list[Example] = []
        primary = self.pipeline.primary
        placed = []
        for event in self.events[primary]:
            counts = self.counts_from(primary, event)
            if counts is not None:
                placed += [(window, event, counts) for window in self.windows_of(event)]
        placed.sort(key=lambda each: (each[0], each[1].time, each[1].seq))
        for step in range(len(self.steps)):
            for window, event, counts in placed:
                if self.sealed_at(window) == step and counts <= step:
                    result = self.result(event, step)
                    if result is not None:
                        found.append(self._example(result, "first", event, window, step))
            for window, event, counts in placed:
                sealed = self.sealed_at(window)
                if sealed is None or sealed >= step or counts > step:
                    continue
                new = self.result(event, step)
                if counts == step:
                    if new is not None:
                        found.append(self._example(new, "late", event, window, step))
                    continue
                old = self.result(event, step - 1)
                if same(old, new):
                    continue
                if old is not None:
                    found.append(self._example(old, "retraction", event, window, step))
                if new is not None:
                    found.append(self._example(new, "correction", event, window, step))
        return found

    def final(self, step: int) -> list[Example]:
        """Every example of the windows sealed by a step, as it stands after it."""
        primary = self.pipeline.primary
        found = []
        for event in self.events[primary]:
            counts = self.counts_from(primary, event)
            for window in self.windows_of(event) if counts is not None and counts <= step else []:
                sealed = self.sealed_at(window)
                result = self.result(event, step) if sealed is not None and sealed <= step else None
                if result is not None:
                    found.append(self._example(result, "first", event, window, step))
        return sorted(found, key=lambda each: (each.window, each.time, each.seq))

    def _example(self, values: tuple[Any, ...], kind: str, event: Event, window: int, step: int) -> Example:
        mark = self.mark(self.pipeline.primary, step)
        assert mark is not None
        age = max(0, mark - event.time) / SECOND
        return Example(values, kind, event.time, window, age, event.seq, step)


def rank(value: Any) -> tuple[Any, ...]:
    """By which values compare: NaN after all numbers, null last."""
    if value is None:
        return (2,)
    if isinstance(value, float) and math.isnan(value):
        return (1,)
    return (0, value)


def same(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    """Whether two results are equal, NaN to NaN too."""
    if a is None or b is None:
        return a is b
    return [rank(value) for value in a] == [rank(value) for value in b]
