"""What measured delays say: a sentence of advice, a short table, plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from penstock.log.times import SECOND_US, format_duration, format_time
from penstock.stream.delay import Delays
from penstock.stream.delay_costs import Wait

__all__ = ["advice", "percent", "shown_waits", "to_json"]


def percent(share: float) -> str:
    """A share in words: never 0 or 100 where it is not."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def advice(delays: Delays) -> str:
    """One sentence on what to do."""
    pipeline, now = delays.pipeline, delays.current
    policy = pipeline.late
    best = delays.choice(0.95)
    wait = format_duration(now.wait_us)
    if policy.mode == "wait":
        if best is None or best.wait_us >= now.wait_us:
            return f'late_positives = "wait" waits {wait}, and no shorter wait has 95 % of the positives on time.'
        return (
            f'late_positives = "wait" waits {wait}; label_wait = "{format_duration(best.wait_us)}" has '
            f'{percent(best.on_time)} of the positives on time, and late_positives = "duplicate" with '
            f"on_time = {best.on_time:.3f} makes up for the others."
        )
    known = f'label_wait = "{wait}" has {percent(now.on_time)} of the positives on time'
    if now.on_time >= 0.99:
        nearly = delays.choice(0.99)
        if nearly is not None and 2 * nearly.wait_us <= now.wait_us:
            return f'{known}; "{format_duration(nearly.wait_us)}" would have {percent(nearly.on_time)}.'
        return f"{known}: leave it."
    weighted = policy.mode in ("duplicate", "importance")
    if weighted and abs(policy.on_time - now.on_time) <= 0.02:
        keep = f'{known}, and late_positives = "{policy.mode}" makes up for the others: leave it'
    elif weighted:
        keep = f"{known}, but on_time = {policy.on_time:g}: put on_time = {now.on_time:.3f}"
    elif now.on_time < 0.0005:
        keep = known
    else:
        keep = f'{known}: put late_positives = "duplicate" and on_time = {now.on_time:.3f}'
    if now.on_time >= 0.9:
        return f"{keep}."
    if best is None or best.wait_us <= now.wait_us:
        return f"{keep}; no label_wait that is longer has 95 % on time."
    return f'{keep}, or wait "{format_duration(best.wait_us)}" for {percent(best.on_time)}.'


def to_json(delays: Delays) -> dict[str, Any]:
    """Everything, as plain values; durations are seconds."""
    return {
        "pipeline": delays.pipeline.name,
        "label": delays.label,
        "late_positives": delays.pipeline.late.mode,
        "on_time": delays.pipeline.late.on_time,
        "from": format_time(delays.first_us),
        "to": format_time(delays.last_us),
        "examples": delays.examples,
        "measured": delays.measured,
        "positives": delays.positives,
        "left_out": delays.young,
        "final_after_s": delays.final_us / SECOND_US,
        "by": delays.basis,
        "current": {**_row(delays.current), "toml": delays.toml(delays.current)},
        "choices": [
            {"share": each.share}
            if each.wait is None
            else {"share": each.share, **_row(each.wait), "toml": delays.toml(each.wait)}
            for each in delays.choices
        ],
        "waits": [_row(wait) for wait in delays.waits],
        "advice": advice(delays),
        "notes": delays.notes,
    }


def _row(wait: Wait) -> dict[str, Any]:
    row = dataclasses.asdict(wait)
    return {
        "label_wait": format_duration(wait.wait_us),
        "label_wait_s": row.pop("wait_us") / SECOND_US,
        "age_s": row.pop("age_us") / SECOND_US,
        **{key: value for key, value in row.items() if value is not None},
    }


def shown_waits(delays: Delays, most: int = 12) -> Sequence[Wait]:
    """The rows of a short table: where something changes, the current one, and the choices."""
    kept = {delays.current.wait_us, *(c.wait.wait_us for c in delays.choices if c.wait is not None)}
    rest = [wait for wait in delays.waits if wait.wait_us not in kept]
    low = next((n for n, wait in enumerate(rest) if wait.known > 0.02), 1)
    high = next((n for n, wait in enumerate(rest) if wait.on_time > 0.9995), len(rest) - 1)
    rest = rest[max(low - 1, 0) : high + 1]
    room = max(most - len(kept), 2)
    if len(rest) > room:
        rest = [rest[round(n * (len(rest) - 1) / (room - 1))] for n in range(room)]
    return sorted([*(w for w in delays.waits if w.wait_us in kept), *rest], key=lambda wait: wait.wait_us)
