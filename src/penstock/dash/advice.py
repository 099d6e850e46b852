"""One sentence about a comparison, drawn from its figures alone.

The rules, in this order; the first that applies gives the sentence.

1.  No strategy finished.
2.  One finished: its figures; there is nothing to compare it with.
3.  Too short to tell: a strategy took less than ``MIN_SECONDS`` (starting processes and compiling weigh more
    than learning) or learnt fewer than ``MIN_ROWS`` rows (log loss of so few rows is noise).
4.  Rows learnt differ by more than 1 %: their log losses are of different data.
5.  A strategy has no log loss: quality cannot be told.
6.  Quality is the hold-out log loss where every finished strategy has one, else the progressive one. A strategy
    *loses quality* where its log loss is above the best by more than ``noise``: 0.1 % of it, or 0.3/sqrt(rows),
    whichever is more (per-example losses of two models of one kind, on the same rows, differ by about 0.2 in
    standard deviation or less; so about 1.5 standard errors). Staleness of one update costs about 0.2 %.
7.  Time is the seconds in which all rows were learnt. Times within 10 % are the same. (Not the time to a common
    log loss: near the end a curve is so flat that a difference within noise moves that time by a third.)
8.  Those that lose no quality take the same time: chosen is the simplest, in the order online, BSP, SSP, tree,
    ASP.
9.  Else the quickest of them is set against the slowest, with AUC ("the same to 0.001", or both). Where the
    quickest ends no higher, it reached the other's final progressive log loss so much sooner
    (``figures.times_to_worst``); else, or where that says nothing, it ended so much sooner, within noise.
    Chosen are the quickest and all within 10 % of it.
10. Of those that lose quality the quickest is named. If it is also quicker by 10 % than the chosen one, it is
    offered where time matters more, unless the chosen one came down to the other's final log loss sooner. The
    loss is put down to staleness where the mean is 0.5 updates or more, else to the mini-batch where it is
    larger than that of the best.
11. Where the slowest of those that do not lose quality is slower by 10 % than the quickest, or is the only one,
    and its workers were idle for 20 % of their time or more, this is said; with the slow worker if there is one
    (busy time per row at least 1.5 times the median of the others'), which one may remove; else with the wait
    that makes up half of the idle time or more.
12. Strategies that failed are named last; the table has their reasons.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.dash.figures import labels, one_line, seconds_to, times_to_worst
from penstock.dash.trials import Comparison, Trial
from penstock.train.progress import human

__all__ = ["MIN_ROWS", "MIN_SECONDS", "advice", "noise", "slow_worker"]

MIN_SECONDS = 1.0
MIN_ROWS = 10_000
SAME_TIME = 1.1
IDLE = 0.2

WAITS = {
    "pull": "mostly for the servers' rows",
    "push": "mostly for pushes to be acknowledged",
    "read": "mostly for data to be read",
    "work": "mostly for work to be handed out",
}


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A finished trial with its label, the log loss it is judged by, and the seconds."""

    label: str
    trial: Trial
    quality: float
    seconds: float


def advice(comparison: Comparison) -> str:
    """The sentence; see the rules above."""
    both = list(zip(labels(comparison), comparison.trials, strict=True))
    finished = [(label, trial) for label, trial in both if trial.error is None]
    failures = [f"{label} failed" for label, trial in both if trial.error is not None]
    sentence = "; ".join([_verdict(finished), *failures])
    return sentence[0].upper() + sentence[1:] + "."


def noise(rows: int, logloss: float) -> float:
    """Differences of log loss up to here are not told from chance (rule 6)."""
    return max(0.001 * logloss, 0.3 / math.sqrt(max(rows, 1)))


def slow_worker(trial: Trial) -> str | None:
    """The worker whose rows take 1.5 times as long as the others' (median), if there is one such."""
    paces = [(worker.busy_s / worker.rows, worker.name) for worker in trial.by_worker if worker.rows]
    if len(paces) < 2:
        return None
    pace, name = max(paces)
    rest = statistics.median(other for other, who in paces if who != name)
    return one_line(name, 60) if pace >= 1.5 * rest and pace > 0 else None


def _verdict(finished: Sequence[tuple[str, Trial]]) -> str:
    if not finished:
        return "no strategy finished"
    if len(finished) == 1:
        [(label, trial)] = finished
        loss = "" if trial.logloss is None else f" with log loss {trial.logloss:.4f}"
        return (
            f"only {label} finished, at {human(trial.rows_per_s or 0.0)} rows/s{loss}: nothing to compare it with"
        )
    return _too_little(finished) or _compare(finished)


def _too_little(finished: Sequence[tuple[str, Trial]]) -> str | None:
    """Rules 3 to 5."""
    label, short = min(finished, key=lambda pair: pair[1].seconds)
    if short.seconds < MIN_SECONDS:
        return f"too short to tell: {label} took {short.seconds:.1f} s, give each {MIN_SECONDS:.0f} s or more"
    few, (many_label, many) = (pick(finished, key=lambda pair: pair[1].rows) for pick in (min, max))
    if few[1].rows < MIN_ROWS:
        return f"too short to tell: {few[0]} learnt {few[1].rows:,} rows, give each {MIN_ROWS:,} or more"
    if few[1].rows < 0.99 * many.rows:
        return (
            f"not comparable: {few[0]} learnt {few[1].rows:,} rows and {many_label} {many.rows:,}, "
            "so that their log losses are of different data"
        )
    unknown = [label for label, trial in finished if trial.logloss is None]
    if unknown:
        return f"quality cannot be told, since {_join(unknown, 'and')} has no log loss; compare the speeds alone"
    return None


def _compare(finished: Sequence[tuple[str, Trial]]) -> str:
    everyone = _measured(finished)
    best = min(everyone, key=lambda one: one.quality)
    limit = best.quality + noise(_judged_rows([trial for _, trial in finished]), best.quality)
    good = [one for one in everyone if one.quality <= limit]
    lossy = [one for one in everyone if one.quality > limit]
    good.sort(key=lambda one: one.seconds)
    quick, slow = good[0], good[-1]
    ratio = slow.seconds / quick.seconds
    if len(good) > 1 and ratio < SAME_TIME:
        simplest = min(good, key=lambda one: _complexity(one.trial.name))
        who = _join([one.label for one in good], "and") if lossy else "all"
        clauses = [f"{who} end with log loss {best.quality:.4f}, within noise, in the same time to 10 %"]
        choice = simplest.label + _merit(simplest.trial.name)
        chosen = simplest
    else:
        clauses = [_quicker(quick, slow)] if len(good) > 1 else []
        choice = _join([one.label for one in good if one.seconds <= SAME_TIME * quick.seconds], "or")
        chosen = quick
    if lossy:
        other = min(lossy, key=lambda one: one.seconds)
        clause, offer = _against_lossy(chosen, best, other, alone=not clauses)
        clauses.append(clause)
        choice += offer
    idle = _idle(slow) if ratio >= SAME_TIME or len(good) == 1 else None
    if idle is not None:
        clauses.append(idle[0])
        choice += idle[1]
    return f"{'; '.join(clauses)}: choose {choice}"


def _measured(finished: Sequence[tuple[str, Trial]]) -> list[_Named]:
    held_out = _all_held_out([trial for _, trial in finished])
    return [
        _Named(
            label=label,
            trial=trial,
            quality=(trial.holdout or {} if held_out else trial.scores).get("logloss") or 0.0,
            seconds=trial.seconds,
        )
        for label, trial in finished
    ]


def _all_held_out(trials: Sequence[Trial]) -> bool:
    return all((trial.holdout or {}).get("logloss") is not None for trial in trials)


def _judged_rows(trials: Sequence[Trial]) -> int:
    if _all_held_out(trials):
        return int(min((trial.holdout or {}).get("rows") or 0 for trial in trials))
    return min(trial.rows for trial in trials)


def _quicker(quick: _Named, slow: _Named) -> str:
    """Rule 9."""
    a, b = quick.trial.logloss, slow.trial.logloss
    times = times_to_worst([quick.trial, slow.trial])
    if times is not None and a is not None and b is not None and a <= b:
        sooner = _times(times[1] / times[0])
        told = f"{quick.label} reached {slow.label}'s final log loss ({b:.4f}) {sooner} times sooner"
    else:
        both = f"log loss {quick.quality:.4f} against {slow.quality:.4f}, within noise"
        told = (
            f"{quick.label} ended {_times(slow.seconds / quick.seconds)} times sooner than {slow.label} ({both})"
        )
    a, b = (one.trial.scores.get("auc") for one in (quick, slow))
    if a is None or b is None:
        return told
    return told + (
        ", with the same AUC to 0.001" if abs(a - b) <= 0.001 else f", with AUC {a:.4f} against {b:.4f}"
    )


def _against_lossy(chosen: _Named, best: _Named, other: _Named, *, alone: bool) -> tuple[str, str]:
    """Rule 10: what is said of ``other``, and what it adds to the choice."""
    worse = f"{100 * (other.quality / best.quality - 1):.1f} % above {best.label}'s"
    loss = f"log loss is {worse} ({other.quality:.4f} against {best.quality:.4f}{_cause(other, best)})"
    if other.seconds * SAME_TIME > chosen.seconds:
        as_quick = f"{chosen.label} is as quick as any and ends with the best log loss, " if alone else ""
        return f"{as_quick}{other.label}'s {loss}", ""
    times = _times(chosen.seconds / other.seconds)
    told = f"{other.label} was {times} times as fast as {chosen.label}, but its {loss}"
    there = None if other.trial.logloss is None else seconds_to(chosen.trial, other.trial.logloss)
    if there is not None and there < other.seconds:
        return f"{told}, which {chosen.label} reached sooner", ""
    return told, f", or {other.label} where time matters more"


def _cause(other: _Named, best: _Named) -> str:
    counts = other.trial.staleness
    whole = sum(counts.values())
    mean = sum(at * count for at, count in counts.items()) / whole if whole else 0.0
    if mean >= 0.5:
        return f", at a mean staleness of {mean:.1f} updates"
    if other.trial.minibatch > best.trial.minibatch:
        return f", at updates of {other.trial.minibatch:,} rows against {best.trial.minibatch:,}"
    return ""


def _idle(slow: _Named) -> tuple[str, str] | None:
    """Rule 11: what is said, and what may be done about it."""
    shares = slow.trial.idle_shares
    if not shares or sum(shares) / len(shares) < IDLE:
        return None
    mean = sum(shares) / len(shares)
    culprit = slow_worker(slow.trial)
    clause = f"{slow.label}'s workers were idle {100 * mean:.0f} % of the time"
    if culprit:
        return f"{clause} because {culprit} was slow", ", or remove the straggler"
    waits: dict[str, float] = {}
    for worker in slow.trial.by_worker:
        for cause, seconds in worker.waits_s.items():
            waits[cause] = waits.get(cause, 0.0) + seconds
    idle_s = sum(worker.idle_s for worker in slow.trial.by_worker)
    most = max(waits, key=lambda name: waits[name], default=None)
    if most is not None and waits[most] >= 0.5 * idle_s:
        clause += f", {WAITS.get(most, f'mostly for {one_line(most, 40)}')}"
    return clause, ""


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def _complexity(name: str) -> int:
    order = ("online", "bsp", "ssp", "tree", "asp")
    kind = name.partition(":")[0]
    return order.index(kind) if kind in order else len(order)


def _merit(name: str) -> str:
    return {
        "online": ", which needs no other process",
        "bsp": ", whose result does not depend on timing",
    }.get(name, "")


def _join(names: Sequence[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
