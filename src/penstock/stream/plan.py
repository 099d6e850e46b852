"""Pieces: the order in which a pipeline's examples come out, cut into parts that can each be computed alone.

Steps come one after the other. Each first seals windows, in order of time, and then corrects what its events
change in windows sealed before. A piece is some windows of one step, or the corrections of one step. Which pieces
there are depends on the log alone, so (piece, row) is a position, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.stream.scan import Range, Scanner
from penstock.stream.timeline import NEVER, Timeline

__all__ = ["PIECE_ROWS", "Piece", "Planner"]

_Ints = NDArray[np.int64]

PIECE_ROWS = 1 << 17
"""A piece ends where it has so many events of the primary stream; a window is never cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of what a step brings about."""

    index: int
    """From 0, in the order of pieces."""
    step: int
    kind: Literal["sealed", "corrected"]
    begin_us: int
    """Of ``sealed``: windows that begin in [begin, end)."""
    end_us: int
    windows: tuple[int, ...]
    """Where those begin that are not empty."""
    events: int
    """Events of the primary stream in them, counted or not; of ``corrected``: new events of the others."""


class Planner:
    """Plans the pieces of a timeline, windows that begin in [from, to) alone."""

    def __init__(self, timeline: Timeline, scanner: Scanner, *, from_us: int | None, to_us: int | None) -> None:
        self._timeline, self._scanner, self._pipeline = timeline, scanner, timeline.pipeline
        slide = self.slide_us = self._pipeline.slide_us or self._pipeline.window_us
        self.from_us = None if from_us is None else from_us // slide * slide
        self.to_us = None if to_us is None else to_us // slide * slide
        self._planned = 0
        self._next = 0

    def plan(self) -> Iterator[Piece]:
        """The pieces of the steps that are new since the last call."""
        timeline, pipeline = self._timeline, self._pipeline
        first, last = self._planned, len(timeline.points) - 1
        if last < first:
            return
        windows = self._windows(first, last)
        self._planned = last + 1
        for step in range(first, last + 1):
            yield from self._sealed(step, windows.get(step, []))
            before = timeline.points[step - 1].ends if step else {}
            ends = timeline.points[step].ends
            brought = sum(ends[name] - before.get(name, 0) for name in pipeline.others)
            readmitted = timeline.steps[step].readmitted
            if (brought and timeline.sealed_to(step - 1) != NEVER) or readmitted:
                yield self._piece(step, "corrected", 0, 0, (), brought)

    def final(self, last: int) -> Iterator[Piece]:
        """All windows sealed by the step ``last``, as they stand after it; numbered for themselves, from 0."""
        timeline = self._timeline
        counts: dict[int, int] = {}
        for begins, _, numbers in self._counted(timeline.sealed_to(-1), timeline.sealed_to(last), last):
            for begin, count in zip(begins.tolist(), numbers.tolist(), strict=True):
                counts[begin] = counts.get(begin, 0) + count
        planned, self._next = self._next, 0
        pieces = list(self._sealed(last, sorted(counts.items())))
        self._next = planned
        yield from pieces

    def _sealed(self, step: int, windows: list[tuple[int, int]]) -> Iterator[Piece]:
        part: list[int] = []
        events = 0
        for begin, count in windows:
            if part and events + count > PIECE_ROWS:
                yield self._piece(step, "sealed", part[0], part[-1] + self.slide_us, tuple(part), events)
                part, events = [], 0
            part.append(begin)
            events += count
        if part:
            yield self._piece(step, "sealed", part[0], part[-1] + self.slide_us, tuple(part), events)

    def _piece(
        self,
        step: int,
        kind: Literal["sealed", "corrected"],
        begin_us: int,
        end_us: int,
        windows: tuple[int, ...],
        events: int,
    ) -> Piece:
        self._next += 1
        return Piece(
            index=self._next - 1,
            step=step,
            kind=kind,
            begin_us=begin_us,
            end_us=end_us,
            windows=windows,
            events=events,
        )

    def _windows(self, first: int, last: int) -> dict[int, list[tuple[int, int]]]:
        """By step of [first, last], the windows that it seals and their numbers of events; none is empty."""
        timeline = self._timeline
        found: dict[int, dict[int, int]] = {}
        for begins, steps, counts in self._counted(timeline.sealed_to(first - 1), timeline.sealed_to(last), last):
            sealing = timeline.sealing_steps(begins)
            take = (steps <= sealing) & (sealing >= first) & (sealing <= last)
            for begin, step, count in zip(
                begins[take].tolist(), sealing[take].tolist(), counts[take].tolist(), strict=True
            ):
                of_step = found.setdefault(step, {})
                of_step[begin] = of_step.get(begin, 0) + count
        return {step: sorted(of_step.items()) for step, of_step in found.items()}

    def _counted(self, low: int, high: int, last: int) -> Iterator[tuple[_Ints, _Ints, _Ints]]:
        """Windows that begin in [low, high), the step of some of their events, and how many these are."""
        name, slide = self._pipeline.primary, self.slide_us
        low = max(low, self.from_us) if self.from_us is not None else low
        high = min(high, self.to_us) if self.to_us is not None else high
        if high <= low:
            return
        overlap = self._pipeline.window_us - slide
        where = Range(from_us=low, to_us=high + overlap, end=self._timeline.points[last].ends[name])
        rows = self._scanner.counts(name, where, self._timeline.steps_of(name), slide)
        buckets, steps, counts = (np.array(column, np.int64) for column in rows)
        for shift in range(0, overlap + 1, slide):
            begins = buckets - shift
            take = (begins >= low) & (begins < high)
            yield begins[take], steps[take], counts[take]
