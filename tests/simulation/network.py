"""Messages between roles: dropped, delayed, doubled, overtaken, and cut off for a while."""

from __future__ import annotations

import random
from collections import defaultdict

from tests.simulation.faults import Faults

_LOST_IN_A_ROW = 1
"""More than this are never lost on the way from one role to another, so that who keeps asking is answered before
it must take the other for dead; what loses more is a partition."""
LATE_S = 2.0


class Network:
    """Says when a message arrives; () if never, two times if doubled."""

    def __init__(self, r: random.Random, faults: Faults) -> None:
        self._r, self._faults = r, faults
        self._cut: dict[frozenset[str], float] = {}
        self._lost: dict[tuple[str, str], int] = defaultdict(int)

    def cut(self, one: str, other: str, until: float) -> None:
        """Nothing gets through between two roles for a while."""
        pair = frozenset((one, other))
        self._cut[pair] = max(self._cut.get(pair, 0.0), until)

    def arrivals(self, sender: str, to: str, now: float) -> tuple[float, ...]:
        """When a message sent now arrives."""
        if self._cut and self._cut.get(frozenset((sender, to)), 0.0) > now:
            return ()
        faults, random_ = self._faults, self._r.random
        if now >= faults.until:
            return (now + faults.delay_s * (0.5 + random_()),)
        if random_() < faults.drop and self._lost[sender, to] < _LOST_IN_A_ROW:
            self._lost[sender, to] += 1
            return ()
        self._lost[sender, to] = 0
        times = (now + self._delay(),)
        return (*times, now + self._delay()) if random_() < faults.double else times

    def _delay(self) -> float:
        if self._r.random() < self._faults.late:
            return self._r.uniform(0.1, LATE_S)
        return self._faults.delay_s * (0.5 + self._r.random())
