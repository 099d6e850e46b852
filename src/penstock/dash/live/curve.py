"""The learning curve: from lines of ``progress.jsonl`` (or of ``cluster.jsonl``) to the points of the page.

A run that was resumed goes on from a checkpoint: what it had learnt after that is learnt again, and is forgotten
here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from penstock.dash.live.series import POINTS, Series

__all__ = ["COLUMNS", "Curve"]

WINDOW_SHARE = 0.05
WINDOW_S = 60.0
_SCORES = ("logloss", "auc", "calibration")
COLUMNS = (
    "seconds",
    "rows",
    "at",
    "features",
    "memory_nbytes",
    *_SCORES,
    *(f"recent_{name}" for name in _SCORES),
)
"""Of a point as the page gets it, before the lags of the streams."""


class _Scores(msgspec.Struct):
    rows: int = 0
    weight: float | None = None
    logloss: float | None = None
    auc: float | None = None
    calibration: float | None = None
    base_rate: float | None = None
    mean_prediction: float | None = None


class _Stream(msgspec.Struct):
    lag_s: float | None = None


class _Pipeline(msgspec.Struct):
    streams: dict[str, _Stream] = {}


class _Line(msgspec.Struct):
    """What is looked at of a line."""

    seconds: float
    rows: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    at: float | None = None
    features: float | None = None
    memory_nbytes: float | None = None
    progressive: _Scores = msgspec.field(default_factory=_Scores)
    recent: _Scores = msgspec.field(default_factory=_Scores)
    pipeline: _Pipeline = msgspec.field(default_factory=_Pipeline)


class Curve:
    """Of one run."""

    def __init__(self, most: int = POINTS) -> None:
        self.series: Series[_Line] = Series(lambda a, b: b, most)
        self._window = _Window()
        self.streams: list[str] = []
        """Whose lags are told of, in the order of the columns."""
        self.resumed: list[tuple[float, int]] = []
        """When (seconds of the run) it went on from a checkpoint, and with how many rows."""

    def clear(self) -> None:
        """Another run begins."""
        self.series.clear()
        self._window.clear()
        self.streams.clear()
        self.resumed.clear()

    def add(self, line: Mapping[str, Any]) -> None:
        """Take a line; one that is not understood is left out, and so is one before the first row."""
        try:
            new = msgspec.convert(line, _Line)
        except (msgspec.ValidationError, OverflowError):
            return
        last = self.series.last
        if new.recent.rows > new.rows - (0 if last is None else last.rows):
            new.recent = _Scores()  # whoever wrote it does not know what had been learnt before
        # Servers of a cluster have not said yet what they hold.
        new.features, new.memory_nbytes = new.features or None, new.memory_nbytes or None
        if last is not None and (new.rows < last.rows or new.seconds < last.seconds):
            self.resumed = [one for one in self.resumed if one[0] <= new.seconds]
            self.resumed.append((new.seconds, new.rows))
            rows, seconds = new.rows, new.seconds
            self.series.keep(lambda point: point.rows <= rows and point.seconds <= seconds)
            self._window.clear()
        self.streams += [name for name in new.pipeline.streams if name not in self.streams]
        if new.rows > 0:
            self.series.add(msgspec.structs.replace(new, recent=self._window.add(new)))

    def point(self, line: _Line) -> list[float | None]:
        """A point as the page gets it: ``COLUMNS``, then a lag for each stream, seconds."""
        shown: list[float | None] = [
            round(line.seconds, 2),
            line.rows,
            line.at,
            line.features,
            line.memory_nbytes,
        ]
        for scores in (line.progressive, line.recent):
            shown += [_rounded(getattr(scores, name)) for name in _SCORES]
        for name in self.streams:
            stream = line.pipeline.streams.get(name)
            shown.append(None if stream is None else _rounded(stream.lag_s, 1))
        return shown

    def seconds_at(self, at_s: Sequence[float]) -> list[float | None]:
        """When (seconds of the run) times since 1970 were; None where the run does not say.

        Between two points by their share; times long before the first point or after the last are
        put there.
        """
        known = [(line.at, line.seconds) for line in self.series.items if line.at is not None]
        if not known:
            return [None] * len(at_s)
        return [_between(known, at) for at in at_s]


def _between(known: Sequence[tuple[float, float]], at: float) -> float:
    low, high = 0, len(known)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if known[middle][0] < at else (low, middle)
    if low == 0:
        first_at, first_s = known[0]
        return max(0.0, first_s - (first_at - at))
    if low == len(known):
        return known[-1][1]
    (before_at, before_s), (after_at, after_s) = known[low - 1], known[low]
    # A run that stood still in between, stopped and resumed, has clocks that went on.
    return min(after_s, before_s + (at - before_at)) if after_at > before_at else after_s


class _Window:
    """Scores of the newest lines together: a twentieth of all rows so far, or a minute where that is less.

    Lines a second apart are of few rows, or of one window of a pipeline, and jump. Exact but for AUC, which is the
    mean of theirs.
    """

    def __init__(self) -> None:
        self._lines: deque[tuple[float, int, tuple[float, ...]]] = deque()
        self._sums = [0.0] * 9

    def clear(self) -> None:
        """Forget all."""
        self._lines.clear()
        self._sums = [0.0] * 9

    def add(self, line: _Line) -> _Scores:
        """Take a line, and give the scores of the window that ends with it."""
        parts = _parts(line.recent)
        self._lines.append((line.seconds, line.rows, parts))
        self._sums = [a + b for a, b in zip(self._sums, parts, strict=True)]
        while len(self._lines) > 1:
            # Without its first line the window must still be long enough.
            first_s, first_rows, first = self._lines[0]
            if line.rows - first_rows < WINDOW_SHARE * line.rows and line.seconds - first_s < WINDOW_S:
                break
            self._lines.popleft()
            self._sums = [a - b for a, b in zip(self._sums, first, strict=True)]
        weight, loss, positive, predicted, of_auc, auc, weighted, with_positives, with_auc = self._sums
        # Numbers of lines are exact; of the other sums rounding may have left a trace.
        return _Scores(
            logloss=loss / weight if weighted else None,
            auc=auc / of_auc if with_auc else None,
            calibration=predicted / positive if with_positives else None,
        )


def _parts(scores: _Scores) -> tuple[float, ...]:
    """What is added up: weight, loss, labels, predictions; weight of what has an AUC, and that times it; and
    whether there is any weight, any positive, an AUC."""
    weight = scores.weight or 0.0
    positive = weight * (scores.base_rate or 0.0)
    of_auc = 0.0 if scores.auc is None else weight
    return (
        weight,
        weight * (scores.logloss or 0.0),
        positive,
        weight * (scores.mean_prediction or 0.0),
        of_auc,
        of_auc * (scores.auc or 0.0),
        *(float(each > 0) for each in (weight, positive, of_auc)),
    )


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else round(value, digits)
