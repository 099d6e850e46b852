"""How far the lanes have come, as a server sees it: which clocks are complete.

A lane is a sequence of micro-batches: chunks i, i + M, i + 2 M ... of M lanes, one after the other. The
micro-batches at place t of all lanes make global batch t; t is their clock. So a clock depends on the data alone,
whoever computes it, and a worker that keeps to a lane reads each chunk once.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.parameter_server.messages import LaneStart

__all__ = ["LaneClocks"]


class LaneClocks:
    """Arrivals at each lane, in any order."""

    def __init__(self, starts: Sequence[LaneStart]) -> None:
        self._next = [start.clock for start in starts]
        self._beyond = [set(start.beyond) for start in starts]
        self._end: list[int | None] = [start.end for start in starts]
        self.complete = 0
        """Clocks below this have arrived in every lane that has them."""
        self._advance()

    def arrive(self, lane: int, clock: int, ends: bool) -> bool:
        """Note a micro-batch; returns whether it had not arrived before."""
        if ends:
            self._end[lane] = clock + 1
        new = clock >= self._next[lane] and clock not in self._beyond[lane]
        if new:
            self._beyond[lane].add(clock)
            while self._next[lane] in self._beyond[lane]:
                self._beyond[lane].remove(self._next[lane])
                self._next[lane] += 1
        self._advance()
        return new

    def behind(self, clock: int) -> list[int]:
        """Lanes in which a clock below ``clock`` is missing."""
        return [lane for lane in range(len(self._next)) if self._next[lane] < clock and not self._over(lane)]

    def reached(self, clock: int) -> bool:
        """Whether all clocks below ``clock`` that there are have arrived."""
        return self.complete >= clock or self.over

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return len(self._next)

    @property
    def over(self) -> bool:
        """Whether every lane has come to its end."""
        return all(self._over(lane) for lane in range(len(self._next)))

    def validate(self) -> None:
        """Check that what was noted fits together."""
        for next_, beyond, end in zip(self._next, self._beyond, self._end, strict=True):
            assert not beyond or min(beyond) > next_
            assert end is None or max([next_, *(clock + 1 for clock in beyond)]) <= end

    def _over(self, lane: int) -> bool:
        return self._next[lane] == self._end[lane]

    def _advance(self) -> None:
        open_ = [self._next[lane] for lane in range(len(self._next)) if not self._over(lane)]
        self.complete = max(self.complete, min(open_, default=max(self._next, default=0)))
