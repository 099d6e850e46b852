"""Watermarks: how far a stream is complete, as a pure function of steps and events.

A stream's watermark is the time before which no more events are expected: the least, over its sources, of the
newest event time less the allowed lateness. An event whose clock is ahead of its own arrival by more than ``skew``
advances nothing. A source that has been idle does not hold the others back; where all are idle, the stream is
taken to be complete up to now. A watermark never goes back (Akidau et al. 2015, "The Dataflow Model").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.log.times import SECOND_US, format_duration, format_time
from penstock.stream.spec import StreamSpec

__all__ = ["Held", "Seen", "StreamClock"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a step brought of one source of a stream."""

    source: str
    newest_us: int | None
    """The newest event time, without those of wrong clocks; None where there are no others."""
    arrived_us: int
    """When its last event arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Why a watermark stands where it stands."""

    stream: str
    source: str | None
    """The source that holds it; None where all are idle, or there are none yet."""
    mark_us: int | None
    since_us: int | None
    """Since when (by ticks) it has stood there."""
    policy: str


class StreamClock:
    """One stream's watermark, step by step."""

    def __init__(self, stream: str, spec: StreamSpec) -> None:
        self.stream, self._spec = stream, spec
        self.mark_us: int | None = None
        self._newest: dict[str, int] = {}
        self._arrived: dict[str, int] = {}
        self._since_us: int | None = None
        self._tick_us = 0

    def advance(self, tick_us: int, seen: Iterable[Seen]) -> int | None:
        """Take in what a step brought, and return the watermark after it; None while nothing is known."""
        for each in seen:
            if each.newest_us is not None:
                self._newest[each.source] = max(each.newest_us, self._newest.get(each.source, each.newest_us))
            self._arrived[each.source] = max(each.arrived_us, self._arrived.get(each.source, each.arrived_us))
        self._tick_us = tick_us
        found = self._found()
        if found is not None and (self.mark_us is None or found > self.mark_us):
            self.mark_us, self._since_us = found, tick_us
        return self.mark_us

    def peek(self, tick_us: int) -> int | None:
        """The watermark at a later tick, if nothing came until then."""
        now, self._tick_us = self._tick_us, tick_us
        found = self._found()
        self._tick_us = now
        return self.mark_us if found is None else max(found, self.mark_us if self.mark_us is not None else found)

    def held(self) -> Held:
        """Which source holds the watermark, since when, and by which policy."""
        spec = self._spec
        lateness = f"lateness {format_duration(spec.lateness_us)}"
        idle = "never idle" if spec.idle_us is None else f"idle after {format_duration(spec.idle_us)}"
        active = self._active()
        source = min(active, key=lambda name: (self._newest[name], name)) if active else None
        if not self._arrived:
            policy = "no event yet"
        elif source is None:
            policy = f"all sources are idle: complete up to now less {lateness}"
        else:
            newest = self._newest[source] // SECOND_US * SECOND_US
            policy = f"newest event {format_time(newest)}, {lateness}, {idle}"
        return Held(
            stream=self.stream, source=source, mark_us=self.mark_us, since_us=self._since_us, policy=policy
        )

    def _active(self) -> list[str]:
        idle_us = self._spec.idle_us
        return [
            source for source in self._newest if idle_us is None or self._tick_us - self._arrived[source] < idle_us
        ]

    def _found(self) -> int | None:
        active = self._active()
        if active:
            return min(self._newest[source] for source in active) - self._spec.lateness_us
        idle_us = self._spec.idle_us
        if idle_us is None or not self._arrived:
            return None
        if any(self._tick_us - arrived < idle_us for arrived in self._arrived.values()):
            return None  # events come, but their clocks are wrong
        return self._tick_us - self._spec.lateness_us
