"""From figures to places on a plot: axis ranges, round ticks and how they are written. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.dash.trials import Point
from penstock.train.progress import human

__all__ = ["Axis", "count_axis", "loss_range", "time_unit"]

LOG_FROM = 12.0
"""Curves whose ends are so many times apart are drawn over a logarithm."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An interval of values over an interval of the plot."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value stands; values outside of the interval stand outside."""
        if self.logarithmic:
            value = max(value, self.low * 1e-3)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the interval: 1, 2 or 5 times a power of ten."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for leads in ((1, 2, 5), (1, 3), (1,)):
                ticks = [lead * 10.0**power for power in powers for lead in leads]
                ticks = [tick for tick in ticks if self.low <= tick <= self.high * (1 + 1e-9)]
                if len(ticks) <= most + 2:
                    break
            return ticks
        step = _step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(lead * power for lead in (1, 2, 5, 10) if lead * power >= least * (1 - 1e-9))


def decimals(ticks: Sequence[float]) -> int:
    """Digits after the point by which the ticks differ, at most 6."""
    for digits in range(7):
        if all(abs(round(tick, digits) - tick) < 1e-9 * max(1.0, abs(tick)) for tick in ticks):
            return digits
    return 6


def written(ticks: Sequence[float]) -> list[str]:
    """The ticks in words, alike in digits; large ones with a letter: ``500 k``."""
    if max(map(abs, ticks), default=0) >= 1000:
        return ["0" if tick == 0 else human(tick) for tick in ticks]
    digits = decimals(ticks)
    return [f"{tick:.{digits}f}" for tick in ticks]


def loss_range(curves: Sequence[Sequence[Point]]) -> tuple[float, float]:
    """The interval of log loss to show: of all but the first fifth of each run, with some air.

    The first points are of few rows, and far off; with them on it the plot would be flat. At least 0.5 % of
    the value is shown, so that noise does not look like a difference.
    """
    shown: list[float] = []
    for curve in curves:
        late = [point for point in curve if point.rows >= 0.2 * curve[-1].rows]
        shown += [point.logloss for point in late if point.logloss is not None]
    if not shown:
        return 0.0, 1.0
    low, high = min(shown), max(shown)
    air = max(0.06 * (high - low), (0.005 * high - (high - low)) / 2, 1e-6)
    return max(0.0, low - air), high + air


def count_axis(ends: Sequence[float], start: float, end: float) -> Axis:
    """From nothing to the furthest of the curves' ends; a logarithm where they lie far apart."""
    nearest, furthest = min(ends), max(max(ends), 1e-6)
    if furthest > LOG_FROM * nearest > 0:
        # Four powers of ten at most: what ended sooner stands at the left edge.
        return Axis(low=max(0.1 * nearest, 1e-4 * furthest), high=furthest, start=start, end=end, logarithmic=True)
    return Axis(low=0.0, high=furthest, start=start, end=end)


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds in a unit that suits a span of so many, and its name."""
    if seconds < 300:
        return 1.0, "seconds"
    if seconds < 5 * 3600:
        return 60.0, "minutes"
    return 3600.0, "hours"
