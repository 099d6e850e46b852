"""How every benchmark measures and reports: contenders in turn, medians, a table, one line of JSON.

What is measured is in the modules beside this one.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "ROOT",
    "Goal",
    "Options",
    "Result",
    "Spread",
    "in_turn",
    "machine",
    "missing",
    "show",
    "table",
    "timed",
]

ROOT = Path(__file__).resolve().parent.parent

Sample = Mapping[str, float]
"""Figures of one repetition: ``{"seconds": 0.8, "logloss": 0.478}``."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    quick: bool = False
    data: Path | None = None

    @property
    def repetitions(self) -> int:
        """Of each contender, besides the warm-up."""
        return 1 if self.quick else 5

    @property
    def rows(self) -> int:
        """Of the click log."""
        return 100_000 if self.quick else 1_000_000


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over its repetitions."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value: ``of([1, 5, 2]) == Spread(median=2, least=1, most=5)``."""
        return Spread(median=statistics.median(values), least=min(values), most=max(values))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on a ratio or a figure: exactly one of ``least`` and ``most``."""

    what: str
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        if (self.least is None) == (self.most is None):
            raise ValueError(f"goal {self.what!r}: give either least or most")

    def __str__(self) -> str:
        return f"{self.what} >= {self.least:g}" if self.least is not None else f"{self.what} <= {self.most:g}"

    def reached(self, value: float | None) -> bool | None:
        """Whether the value is within the bound; None where it was not measured."""
        if value is None:
            return None
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)


@dataclass(kw_only=True)
class Result:
    """What a benchmark found; ``text`` are lines for people, printed before the line of JSON."""

    name: str
    options: Options
    conditions: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    text: list[str] = field(default_factory=list)

    def reached(self) -> dict[str, bool | None]:
        """Each goal, and whether it was reached; None where its peer is missing, and in a quick run.

        Goals are for full runs: with less work, what a contender does once weighs more.
        """
        known = {} if self.options.quick else {**self.figures, **self.ratios}
        return {str(goal): goal.reached(known.get(goal.what)) for goal in self.goals}

    def to_json(self) -> str:
        """One line; figures to five significant digits, ratios to four, as more is noise."""
        return json.dumps(
            {
                "name": self.name,
                "conditions": {"quick": self.options.quick, **self.conditions},
                "figures": {k: _rounded(v, 5) for k, v in self.figures.items()},
                "ratios": {k: _rounded(v, 4) for k, v in self.ratios.items()},
                "reached": self.reached(),
            }
        )


def in_turn(
    contenders: Mapping[str, Callable[[], Sample]], repetitions: int, *, warm_up: bool = True
) -> dict[str, dict[str, Spread]]:
    """Run all contenders once, unmeasured, and then ``repetitions`` times in turn: A B A B.

    In turn, so that what else the machine does at the time falls on all of them.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions must be >= 1, got {repetitions}")
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for round_ in range(-int(warm_up), repetitions):
        for name, run in contenders.items():
            # What the one before left behind is not this one's work.
            gc.collect()
            sample = run()
            if round_ >= 0:
                samples[name].append(sample)
            figures = "  ".join(f"{k} {v:.5g}" for k, v in sample.items())
            note(f"{'warm-up' if round_ < 0 else f'{round_ + 1}/{repetitions}':8} {name:24} {figures}")
    return {
        name: {figure: Spread.of([sample[figure] for sample in runs]) for figure in runs[0]}
        for name, runs in samples.items()
    }


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def missing(package: str) -> str | None:
    """How to name a peer that is not installed; None where it is."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        from penstock.version import (
            DISTRIBUTION,  # not above: peers import this module, from environments of theirs
        )

        return f"{package} is not installed (pip install '{DISTRIBUTION}[bench]'): nothing to compare with"
    return None


def machine(*packages: str) -> dict[str, Any]:
    """What a figure depends on besides the code: processor, cores, versions; absent packages are missing."""
    from penstock.version import DISTRIBUTION

    found = {}
    for package in (DISTRIBUTION, "numpy", "numba", "pyarrow", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "from the checkout" if package == DISTRIBUTION else "missing"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "processor": _processor(), "python": platform.python_version(), "versions": found}


def note(line: str) -> None:
    """Say what is going on, beside the output."""
    print(line, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lines of aligned columns, the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(_pad(cell, w, i) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def show(result: Result) -> None:
    """Print the tables, which goals were reached, and as the last line the JSON object."""
    for text in result.text:
        print(text, end="\n\n")
    words = {
        True: "reached",
        False: "NOT reached",
        None: "only in a full run" if result.options.quick else "not measured",
    }
    known = {**result.figures, **result.ratios}
    goals = [
        (goal, f"{known[goal.what]:.4g}" if goal.what in known else "", words[reached])
        for goal, reached in zip(result.goals, result.reached().values(), strict=True)
    ]
    if goals:
        print(table(("goal", "measured", ""), goals), end="\n\n")
    print(result.to_json())


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
