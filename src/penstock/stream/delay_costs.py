"""What a ``label_wait`` costs, counted from labels through time; and which lengths are worth a look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.log.times import SECOND_US
from penstock.stream.spec import Pipeline

__all__ = ["NEVER_ENDS", "Costs", "Wait", "cost", "ladder", "rounds"]

NEVER_ENDS = 1 << 62
"""The age at which the last label of an example ends."""

_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What one ``label_wait`` means. Shares are 0 to 1."""

    wait_us: int
    known: float
    """Share of positives whose events had happened so long after the example."""
    arrived: float | None
    """Share whose events had also arrived; None where that is not shown."""
    on_time: float
    """q of ``LabelPolicy``: share of positives that are known when their windows are sealed."""
    fake_negatives: float
    """Of the examples given out, the share that are negative then and positive in the end."""
    mean_label: float
    """Mean of the labels as given out, over that of the final ones."""
    learnt: float
    """The same where each changed label is learnt as one more example (``late_positives = "none"``)."""
    corrections_per_day: float
    """Labels that change after they were given out."""
    age_us: int
    """Mean time from an event until its example is given out."""


class _Spans:
    """How many of some intervals [begin, end) hold a value."""

    def __init__(self, begins: _Ints, ends: _Ints) -> None:
        self._begins, self._ends = np.sort(begins), np.sort(ends)

    def at(self, values: _Ints) -> _Ints:
        """For each value."""
        begun = np.searchsorted(self._begins, values, "right")
        found: _Ints = begun - np.searchsorted(self._ends, values, "right")
        return found


class Costs:
    """Labels of examples through time, counted."""

    def __init__(self, pipeline: Pipeline, table: pa.Table, per_day: float) -> None:
        """``table`` as ``delay._Followed._follow`` gives it; ``per_day`` times a count is that of a day."""
        seqs, t, age, state = (np.asarray(table[name], np.int64) for name in ("_seq", "t", "age", "state"))
        begins = np.concatenate([[True], seqs[1:] != seqs[:-1]])
        lasts = np.concatenate([begins[1:], [True]])
        example = np.cumsum(begins) - 1
        ends = np.where(lasts, NEVER_ENDS, np.concatenate([age[1:], [0]]))
        final = state[lasts][example]
        before = np.where(begins, state, np.concatenate([[0], state[:-1]]))
        positive, there = final == 1, state >= 0
        self.positives = int((state[lasts] == 1).sum())
        self._finals = int((state[lasts] >= 0).sum())
        self._per_day = per_day
        self._known = _Spans(age[positive & (state == 1)], ends[positive & (state == 1)])
        slide = pipeline.slide_us or pipeline.window_us
        windows = range(0, pipeline.window_us - slide + 1, slide)
        self._windows = len(windows)
        # For so long, less what label_wait adds, an example waits in each of its windows.
        longest = pipeline.window_us + pipeline.streams[pipeline.primary].lateness_us
        waited = [longest - t % slide - shift for shift in windows]

        def spans(which: NDArray[np.bool_]) -> _Spans:
            # An end that is never reached stays one, whatever is taken from it.
            return _Spans(
                np.concatenate([(age - w)[which] for w in waited]),
                np.concatenate([np.where(ends == NEVER_ENDS, NEVER_ENDS, ends - w)[which] for w in waited]),
            )

        def moments(which: NDArray[np.bool_]) -> _Ints:
            return np.sort(np.concatenate([(age - w)[which] for w in waited]))

        self._on_time, self._positive_there = spans(positive & (state == 1)), spans(positive & there)
        self._ones, self._there = spans(state == 1), spans(there)
        self._to_one = moments((state != before) & (state == 1))
        self._to_any = moments((state != before) & there)
        self._changes = moments(state != before)
        self.mean_waited_us = round(float(np.mean([w[begins].mean() for w in waited])))

    def known(self, after: _Ints) -> NDArray[np.float64]:
        """Share of positives that are known so long after their events."""
        return self._known.at(after) / self.positives

    def on_time(self, waits: _Ints) -> NDArray[np.float64]:
        """Share of positives that are known when their windows are sealed."""
        return self._on_time.at(waits) / (self.positives * self._windows)

    def wait(self, wait_us: int, known: float, arrived: float | None) -> Wait:
        """What a ``label_wait`` means."""
        at = np.array([wait_us], np.int64)
        given, ones = int(self._there.at(at)[0]), int(self._ones.at(at)[0])
        fakes = int(self._positive_there.at(at)[0] - self._on_time.at(at)[0])
        to_one, to_any, changes = (
            len(moments) - int(np.searchsorted(moments, wait_us, "right"))
            for moments in (self._to_one, self._to_any, self._changes)
        )
        final = self.positives / self._finals
        return Wait(
            wait_us=wait_us,
            known=known,
            arrived=arrived,
            on_time=float(self.on_time(at)[0]),
            fake_negatives=fakes / given if given else 0.0,
            mean_label=ones / given / final if given else 0.0,
            learnt=(ones + to_one) / max(given + to_any, 1) / final,
            corrections_per_day=changes / self._windows * self._per_day,
            age_us=wait_us + self.mean_waited_us,
        )


def cost(wait_us: int, by_event: Costs, by_arrival: Costs | None) -> Wait:
    """Of a ``label_wait``: by arrival where that is known."""
    at = np.array([wait_us], np.int64)
    known = float(by_event.known(at)[0])
    if by_arrival is None:
        return by_event.wait(wait_us, known, None)
    return by_arrival.wait(wait_us, known, float(by_arrival.known(at)[0]))


_MINUTE, _HOUR = 60, 3600
_NICE_S = (
    *(1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 45),
    *(each * _MINUTE for each in (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 45)),
    *(each * _HOUR for each in (1, 1.5, 2, 3, 4, 6, 8, 12, 18)),
    *(each * 24 * _HOUR for each in (1, 1.5, 2, 3, 4, 5, 7, 10, 14, 21, 30, 45, 60, 90, 180, 365)),
)


def ladder(limit_us: int) -> list[int]:
    """Durations that people say, from none to the limit: about 40 of them up to weeks."""
    nice = [int(each * SECOND_US) for each in _NICE_S]
    if limit_us < 20 * SECOND_US:
        nice = [limit_us * n // 10 for n in range(1, 10)]
    return sorted({0, limit_us, *(each for each in nice if each < limit_us)})


_GRAINS = tuple(
    each * SECOND_US for each in (1, 5, 10, 30, 60, 300, 600, 1800, _HOUR, 6 * _HOUR, 24 * _HOUR, 7 * 24 * _HOUR)
)


def rounds(limit_us: int) -> list[int]:
    """Round durations up to the limit, each about a tenth longer than the last."""
    grains = _GRAINS
    if limit_us < 20 * SECOND_US:
        grains = tuple(10**power for power in range(7) if 10**power <= max(limit_us // 20, 1))[-1:]
    found, at = [0], 0
    while at < limit_us:
        grain = max((each for each in grains if 10 * each <= at), default=grains[0])
        at = (at // grain + 1) * grain
        found.append(min(at, limit_us))
    return found
