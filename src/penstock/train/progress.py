"""How a run tells what it does: a live bar on a terminal, plain lines without one, JSON lines in its folder."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from penstock.metrics import BinaryMetrics, Scores

__all__ = ["Bar", "JsonLines", "Lines", "Report", "Reporter", "human", "memory_nbytes", "reporter_for"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where a run stands."""

    seconds: float
    rows: int
    done: float | None
    """Share of the work, 0 to 1; None where it is not known before reading."""
    scores: Scores
    """Progressive: each example predicted before it was learnt."""
    recent: Scores
    """The same, of the rows since the last report."""
    features: int
    table_nbytes: int
    memory_nbytes: int = field(default_factory=lambda: memory_nbytes())
    """Largest resident size so far: of this process, or of all that hold the model."""
    standing: Mapping[str, Any] = field(default_factory=dict)
    """Where the data stand, of a run that follows a log, for people: watermark, lag, ..."""
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs: of each stream its watermark, how far behind it is, and what holds it."""
    at_s: float = field(default_factory=time.time)
    """When, in seconds since 1970."""

    @property
    def rows_per_s(self) -> float:
        """Mean speed of this run."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """A line of ``progress.jsonl``."""
        return {
            "at": round(self.at_s, 3),
            "seconds": round(self.seconds, 3),
            "rows": self.rows,
            "done": self.done,
            "rows_per_s": round(self.rows_per_s, 1),
            "features": self.features,
            "table_nbytes": self.table_nbytes,
            "memory_nbytes": self.memory_nbytes,
            "progressive": self.scores.to_json(),
            "recent": self.recent.to_json(),
            **({"standing": dict(self.standing)} if self.standing else {}),
            **({"pipeline": dict(self.pipeline)} if self.pipeline else {}),
        }


class Reporter(Protocol):
    """Receives a report now and then; a context that may own the terminal."""

    interval_s: float

    def __enter__(self) -> Reporter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def report(self, report: Report) -> None:
        """Show it."""


def memory_nbytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def human(number: float, unit: str = "") -> str:
    """A number of at most four digits: ``1.23 M``."""
    for power, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= 0.9995 * power:
            return f"{number / power:.3g}{letter}{unit}"
    return f"{number:.3g}{' ' if unit else ''}{unit}"


_SILENCE_S = 60.0


class _Plain:
    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Lines(_Plain):
    """A table that grows by a line every few seconds."""

    interval_s = 2.0
    _HEAD = f"{'seconds':>8} {'rows':>12} {'rows/s':>8} {'logloss':>8} {'AUC':>7} {'features':>9} {'memory':>8}"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = False
        self._rows, self._said_s = -1, 0.0

    def report(self, report: Report) -> None:
        """Print a line, the first time with a head; while nothing is learnt, one a minute."""
        if report.rows == self._rows and report.seconds < self._said_s + _SILENCE_S:
            return
        self._rows, self._said_s = report.rows, report.seconds
        if not self._began:
            print(self._HEAD, file=self._stream)
            self._began = True
        scores = report.scores
        print(
            f"{report.seconds:8.1f} {report.rows:12,} {human(report.rows_per_s):>8} {scores.logloss:8.5f} "
            f"{scores.auc:7.4f} {human(report.features):>9} {human(report.memory_nbytes, 'B'):>8}"
            + "".join(f"  {name} {value}" for name, value in report.standing.items()),
            file=self._stream,
            flush=True,
        )


class JsonLines(_Plain):
    """Appends every report to a file of the run's folder, for plots and for other programs.

    Where it cannot be written (a full disk) the run goes on without. The longer a run, the rarer are its lines:
    a day has some 10,000.
    """

    interval_s = 0.5
    _SLOWEST_S, _PER_RUN = 10.0, 2_000

    def __init__(self, path: Path) -> None:
        self.path = path

    def report(self, report: Report) -> None:
        """Write a line."""
        self.interval_s = min(self._SLOWEST_S, max(self.interval_s, report.seconds / self._PER_RUN))
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(report.to_json()) + "\n")


class Bar:
    """A live line on a terminal."""

    interval_s = 0.2

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        bar_width = 24 if console.width >= 120 else 8
        self._room = console.width - bar_width - len("train  100% 0:00:00  ")
        self._progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=bar_width),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._task = self._progress.add_task("train", total=1.0, text="")

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, report: Report) -> None:
        """Redraw the line."""
        scores = report.scores
        parts = (
            f"{human(report.rows)} rows",
            f"{human(report.rows_per_s)}/s",
            *(f"{name} {value}" for name, value in report.standing.items()),
            f"logloss {scores.logloss:.4f}",
            f"AUC {scores.auc:.4f}",
            f"{human(report.features)} features",
            human(report.memory_nbytes, "B"),
        )
        text = parts[0]
        for part in parts[1:]:
            if len(text) + len(part) + 2 <= self._room:
                text += "  " + part
        self._progress.update(self._task, completed=report.done or 0.0, text=text)


def reporter_for(show: bool | None) -> Reporter | None:
    """A bar where standard error is a terminal, lines elsewhere; None where ``show`` is False.

    ``show`` None shows only on a terminal: what a library does.
    """
    terminal = sys.stderr.isatty()
    if show is False or (show is None and not terminal):
        return None
    return Bar() if terminal else Lines(sys.stderr)


@dataclass
class _Pace:
    """A reporter, and when and with which metrics it was last called."""

    reporter: Reporter
    then: BinaryMetrics
    last_s: float = 0.0


class Progress:
    """Counts a run's rows and passes reports on to reporters, each at its own pace."""

    def __init__(self, reporters: list[Reporter], metrics: BinaryMetrics, *, size: float | None) -> None:
        self.metrics = metrics
        self.rows = 0
        self.seconds_before = 0.0
        """Of the interrupted run that this one resumes."""
        self._size = size
        self.standing: Mapping[str, Any] = {}
        self.pipeline: Mapping[str, Any] = {}
        self._began_s = time.perf_counter()
        self._reporters = [_Pace(reporter, metrics.copy()) for reporter in reporters]

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return self.seconds_before + time.perf_counter() - self._began_s

    def tick(self, work_done: float, features: int, nbytes: int, *, final: bool = False) -> None:
        """Report where it is time to, or ``final``."""
        now = time.perf_counter()
        for pace in self._reporters:
            if not final and now - pace.last_s < pace.reporter.interval_s:
                continue
            report = Report(
                seconds=self.seconds,
                rows=self.rows,
                done=min(1.0, work_done / self._size) if self._size else None,
                scores=self.metrics.scores(),
                recent=self.metrics.since(pace.then).scores(),
                features=features,
                table_nbytes=nbytes,
                standing=self.standing,
                pipeline=self.pipeline,
            )
            pace.then, pace.last_s = self.metrics.copy(), now
            pace.reporter.report(report)
