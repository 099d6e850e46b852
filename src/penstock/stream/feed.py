"""Examples as they come: a thread that takes steps, computes pieces and hands them over, ahead of whoever learns.

Where it follows the log it goes on for ever, and says now and then that there is nothing new; where it does not,
it takes one step and ends with what that seals.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from penstock.log import Log
from penstock.log.times import SECOND_US, format_time, now_us
from penstock.stream.clocks import Held
from penstock.stream.replay import Examples, Replay
from penstock.stream.spec import Pipeline
from penstock.stream.timeline import NEVER

__all__ = ["Feed", "Standing", "take_step"]

_WAITING_PIECES = 8
_BEAT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a pipeline stands."""

    step: int
    watermark_us: int | None
    sealed_to_us: int | None
    ends: dict[str, int]
    quarantined: int
    streams: tuple[Held, ...] = ()
    """Of each stream its watermark, and why it stands there."""

    @property
    def watermark_text(self) -> str:
        """The watermark for people."""
        return "none yet" if self.watermark_us is None else format_time(self.watermark_us // SECOND_US * SECOND_US)

    def lag_us(self, at_us: int) -> int | None:
        """How far the watermark is behind a clock."""
        return None if self.watermark_us is None else max(0, at_us - self.watermark_us)


def take_step(replay: Replay, tick_us: int | None = None) -> bool:
    """Take a step where something came, or where silence has lasted long enough to seal a window that has events.

    Returns whether one was taken, by us or by somebody else.
    """
    log, timeline = replay.log, replay.timeline
    tick = now_us() if tick_us is None else tick_us
    last = timeline.points[-1] if timeline.points else None
    ends = {name: log.stream(name).end for name in replay.pipeline.streams}
    if last is None or any(end > last.ends[name] for name, end in ends.items()):
        log.step(tick_us=tick)
        return timeline.extend()
    if timeline.extend():
        return True
    sealed, would = timeline.sealed_to(len(timeline.points) - 1), timeline.would_seal(tick)
    if would > sealed and replay.has_unsealed(sealed, would):
        log.step(tick_us=tick)
        return timeline.extend()
    return False


class Feed:
    """Iterate over it once, in a ``with``: leaving it stops the thread."""

    def __init__(
        self,
        place: str,
        pipeline: Pipeline,
        *,
        from_us: int | None = None,
        to_us: int | None = None,
        start: int = 0,
        follow: bool,
        poll_s: float = 0.1,
        threads: int | None = None,
    ) -> None:
        """Pieces from number ``start`` of the windows that begin in [from, to)."""
        self._make: Callable[[], Replay] = lambda: Replay(
            Log(place), pipeline, from_us=from_us, to_us=to_us, threads=threads
        )
        self._start, self._follow, self._poll_s, self._to_us = start, follow, poll_s, to_us
        self._queue: queue.Queue[Examples | BaseException | None] = queue.Queue(_WAITING_PIECES)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="penstock-feed", daemon=True)
        self.standing: Standing | None = None
        """As of the newest step."""

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():
            # A thread that waits for room in the queue gets some, sees the stop, and ends.
            try:
                self._queue.get(timeout=0.01)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[Examples | None]:
        """Pieces in order; None where nothing came for a moment."""
        while True:
            try:
                item = self._queue.get(timeout=_BEAT_S)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            replay = self._make()
            try:
                self._feed(replay)
            finally:
                replay.close()
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)

    def _feed(self, replay: Replay) -> None:
        replay.timeline.extend()
        while not self._stop.is_set():
            new = take_step(replay)
            for examples in replay.run(self._start):
                self._queue.put(examples)
                if self._stop.is_set():
                    return
            if replay.timeline.points:
                self._record(replay)
            if self._ended(replay):
                return
            if not new:
                self._stop.wait(self._poll_s)

    def _record(self, replay: Replay) -> None:
        last = len(replay.timeline.points) - 1
        replay.records.sealed(last)
        replay.records.uncounted(last)
        point = replay.timeline.points[last]
        mark, sealed = replay.timeline.mark(last, replay.pipeline.primary), replay.timeline.sealed_to(last)
        self.standing = Standing(
            step=last,
            watermark_us=None if mark == NEVER else mark,
            sealed_to_us=None if sealed == NEVER else sealed,
            ends=dict(point.ends),
            quarantined=replay.records.quarantined,
            streams=tuple(replay.timeline.held()),
        )

    def _ended(self, replay: Replay) -> bool:
        if not self._follow:
            return True
        to_us = replay.planner.to_us
        return to_us is not None and replay.timeline.sealed_to(len(replay.timeline.points) - 1) >= to_us
