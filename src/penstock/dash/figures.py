"""What the table and the page show of each strategy: the columns, which cell is best, how numbers are written.

Also the time to a common log loss, by which strategies of different final quality are compared. Draws nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from penstock.dash.trials import Comparison, Trial
from penstock.train.progress import human

__all__ = ["Cell", "Column", "columns", "labels", "one_line", "seconds_to", "times_to_worst"]

NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure in words, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of all strategies; ``cells`` in the order of the trials."""

    head: str
    explanation: str
    group: Literal["learning", "cost"]
    cells: tuple[Cell, ...]


def labels(comparison: Comparison) -> tuple[str, ...]:
    """A short name for each trial, as people write it: ``BSP``, ``SSP(4)``; a second of a name is ``BSP #2``."""
    seen: Counter[str] = Counter()
    made = []
    for trial in comparison.trials:
        label = _label(trial.name)
        seen[label] += 1
        made.append(label if seen[label] == 1 else f"{label} #{seen[label]}")
    return tuple(made)


def _label(name: str) -> str:
    name = one_line(name, 40) or "unnamed"
    ssp = re.fullmatch(r"ssp:(\d+)", name)
    if ssp:
        return f"SSP({ssp[1]})"
    return name.upper() if name in ("bsp", "asp") else name


def one_line(text: str, most: int = 200) -> str:
    """Text from data as one line of at most ``most`` characters that moves no cursor and turns no direction."""
    text = " ".join(text.split())
    text = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text
    )
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def seconds_to(trial: Trial, logloss: float) -> float | None:
    """When the progressive log loss came down to ``logloss`` for good; None where it did not.

    The first points are of few rows and may be below by luck, so the last crossing counts; between two points
    the line between them.
    """
    points = [(point.seconds, point.logloss) for point in trial.points() if point.logloss is not None]
    if not points or points[-1][1] > logloss:
        return None
    reached = points[0][0]
    for (s0, y0), (s1, y1) in pairwise(points):
        if y0 > logloss >= y1:
            reached = s0 + (s1 - s0) * (y0 - logloss) / (y0 - y1)
    return reached


def times_to_worst(trials: Sequence[Trial]) -> tuple[float, ...] | None:
    """Seconds in which each came down to the worst final log loss among them; None where that says nothing.

    It says nothing where a trial has no log loss, or where the worst one had come down to its final value in
    the first half of its run: then the loss is flat or rises, and crossing it is chance.
    """
    worst = max(trials, key=lambda trial: -1.0 if trial.logloss is None else trial.logloss, default=None)
    if worst is None or worst.logloss is None:
        return None
    target = worst.logloss
    times = [seconds_to(trial, target) for trial in trials]
    own = seconds_to(worst, target)
    if own is None or own < 0.5 * worst.seconds or any(time is None or time <= 0 for time in times):
        return None
    return tuple(time for time in times if time is not None)


def columns(comparison: Comparison) -> tuple[Column, ...]:
    """All columns that have a figure at all; of a failed trial every cell is a dash."""
    trials = comparison.trials
    relative = dict.fromkeys(range(len(trials)), None) | _relative_times(trials)
    at = {id(trial): index for index, trial in enumerate(trials)}
    made = [
        _column(trials, "rows/s", "rows learnt in a second", "learning", _rows_per_s, human, -1),
        _column(trials, "seconds", "wall-clock time to learn all rows", "learning", _seconds, _short, 1),
        _column(
            trials,
            "log loss",
            "progressive: each row predicted before it is learnt; mean over all rows",
            "learning",
            lambda trial: trial.logloss,
            "{:.4f}".format,
            1,
        ),
        _column(trials, "AUC", "progressive", "learning", lambda t: t.scores.get("auc"), "{:.4f}".format, -1),
        _column(
            trials,
            "NE",
            "normalised entropy: log loss over that of the base rate alone",
            "learning",
            lambda trial: trial.scores.get("normalised_entropy"),
            "{:.4f}".format,
            1,
        ),
        _column(
            trials,
            "hold-out log loss",
            "on rows that were not learnt",
            "learning",
            lambda trial: (trial.holdout or {}).get("logloss"),
            "{:.4f}".format,
            1,
        ),
        _column(
            trials,
            "idle mean/max",
            "share of their time that the workers waited: mean over the workers, and the most idle one",
            "cost",
            lambda trial: _mean_max(trial.idle_shares),
            lambda pair: f"{pair[0]:.0%} / {pair[1]:.0%}".replace("%", " %"),
            1,
        ),
        _column(
            trials,
            "staleness p50/p99/max",
            "updates applied between a micro-batch's pull and its push: median, 99th percentile, largest",
            "cost",
            _staleness,
            lambda three: " / ".join(map(str, three)),
            1,
        ),
        _column(
            trials, "bytes/row", "over the wire, in both directions", "cost", lambda t: t.bytes_per_row, human, 1
        ),
        _column(
            trials,
            "time to worst loss",
            "time to the final log loss of the strategy whose is highest, that strategy's own time being 1",
            "cost",
            lambda trial: relative[at[id(trial)]],
            lambda times: f"{times:.2f} ×" if times >= 0.095 else f"{times:.2g} ×",
            1,
        ),
    ]
    return tuple(column for column in made if any(cell.text != NONE for cell in column.cells))


def _column(
    trials: Sequence[Trial],
    head: str,
    explanation: str,
    group: Literal["learning", "cost"],
    value: Callable[[Trial], Any],
    write: Callable[[Any], str],
    better: int,
) -> Column:
    """``better`` 1: less is; -1: more is. Cells that read the same are all best; where all do, none is."""
    values = [None if trial.error is not None else value(trial) for trial in trials]
    texts = [NONE if value is None else write(value) for value in values]
    known = [value for value in values if value is not None]
    best = None
    if known:
        first = min(known) if better > 0 else max(known)
        best = write(first)
        if all(text in (best, NONE) for text in texts):
            best = None
    return Column(
        head=head,
        explanation=explanation,
        group=group,
        cells=tuple(Cell(text=text, best=text == best) for text in texts),
    )


def _relative_times(trials: Sequence[Trial]) -> dict[int, float | None]:
    finished = [index for index, trial in enumerate(trials) if trial.error is None]
    times = times_to_worst([trials[index] for index in finished])
    if times is None or len(times) < 2:
        return {}
    losses = [trials[index].logloss or 0.0 for index in finished]
    own = times[losses.index(max(losses))]
    return {index: time / own for index, time in zip(finished, times, strict=True)}


def _rows_per_s(trial: Trial) -> float | None:
    return trial.rows_per_s


def _seconds(trial: Trial) -> float | None:
    return trial.seconds or None


def _short(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 1000 else f"{seconds:.1f}"


def _mean_max(shares: Sequence[float]) -> tuple[float, float] | None:
    return (sum(shares) / len(shares), max(shares)) if shares else None


def _staleness(trial: Trial) -> tuple[int, int, int] | None:
    median, p99, most = (trial.staleness_at(quantile) for quantile in (0.5, 0.99, 1.0))
    return None if median is None or p99 is None or most is None else (median, p99, most)
