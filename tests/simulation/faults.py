"""What goes wrong in a run, drawn from its seed; and when it stops going wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["THEMES", "Faults", "Trouble", "draw"]


@dataclass(frozen=True)
class Trouble:
    """Something that happens to a role at a time, in virtual seconds."""

    at: float
    what: str
    who: int
    """Drawn; whoever drives the cluster picks a role by it."""
    other: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Of one life of the cluster."""

    drop: float = 0.0
    double: float = 0.0
    late: float = 0.0
    """Share of messages that take up to 2 s."""
    delay_s: float = 0.02
    disk_full: float = 0.0
    """Share of writes that fail."""
    every_s: float | None = 2.0
    """Between checkpoints."""
    slow: dict[int, float] = field(default_factory=dict)
    """By how much some workers compute slower."""
    compute_s: float = 0.5
    load_s: float = 0.5
    """That servers take to load their rows."""
    troubles: list[Trouble] = field(default_factory=list)
    until: float = 12.0
    """No fault begins, and no message is lost, after this."""


_ANY = ("crash", "death", "half push", "pause", "partition", "partition", "join", "leave")
_RUN_TROUBLES = ("kill server", "crash all", "crash all", "stop", "pause long", "cut server", "pause coordinator")


THEMES = ("quiet", "any", "any", "any", "returns", "deaths", "saves", "ends")


def draw(r: random.Random, *, last: bool, theme: str | None = None) -> Faults:
    """``last`` life: nothing that ends a run, and in the end everything works.

    A life has a theme, so that faults come together that are rare together: workers that come back while answers
    to their former selves are under way, workers that die and leave work behind, checkpoints one after the other,
    clusters that are killed while workers live on.
    """
    theme = theme or r.choice(THEMES)
    if theme == "quiet":
        return Faults(until=0.0)
    kinds = {"returns": ("return",), "deaths": ("death", "half push", "half push")}.get(theme, _ANY)
    troubles = []
    for _ in range(r.choice([3, 5, 8]) if theme in ("returns", "deaths") else r.choice([0, 1, 2, 3, 5])):
        # Half of the pauses and partitions are shorter than the silence that a role is allowed.
        seconds = r.uniform(0.2, 4.0) if r.random() < 0.5 else r.uniform(6.5, 12.0)
        at = r.uniform(0.0, r.choice([2.0, 8.0]))
        troubles.append(Trouble(at, r.choice(kinds), r.randrange(99), r.randrange(99), seconds))
    if not last and (theme == "ends" or r.random() < 0.5):
        what = "crash all" if theme == "ends" else r.choice(_RUN_TROUBLES)
        seconds = r.uniform(8.0, 14.0)
        troubles.append(Trouble(r.uniform(0.5, 7.0), what, r.randrange(99), r.randrange(99), seconds))
    noisy = theme in ("returns", "saves") or r.random() < 0.6
    return Faults(
        drop=r.choice([0.0, 0.02, 0.1]) * noisy,
        double=r.choice([0.0, 0.05, 0.3]) * noisy,
        late=(0.3 if theme == "returns" else r.choice([0.0, 0.01, 0.1, 0.3])) * noisy,
        delay_s=r.choice([0.001, 0.02, 0.1]),
        disk_full=r.choice([0.0, 0.3]) if theme == "saves" and not last else 0.0,
        every_s=r.choice([0.4, 1.0]) if theme == "saves" else r.choice([None, 1.0, 2.5, 6.0]),
        slow={w: r.uniform(2.0, 6.0) for w in range(5) if r.random() < 0.2},
        compute_s=r.choice([0.05, 0.3, 0.6]),
        load_s=r.choice([0.01, 0.5, 9.0]),
        troubles=sorted(troubles, key=lambda t: t.at),
    )
