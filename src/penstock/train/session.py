"""What every way of training does around its loop: resume, report, checkpoint, stop, evaluate, write the model.

The loop itself is ``Session.steps``; how examples are learnt is not known here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pyarrow as pa

from penstock.batch import Floats
from penstock.data import Chunk, Source, open_source
from penstock.errors import ConfigError, DataError, Interrupted, ModelError
from penstock.metrics import BinaryMetrics, Scores
from penstock.models import Model, read_manifest
from penstock.train.folder import RunFolder
from penstock.train.holdout import Holdout
from penstock.train.progress import JsonLines, Progress, Report, Reporter, reporter_for
from penstock.train.publishing import Publish
from penstock.train.scoring import evaluate_holdout
from penstock.train.signals import StopSignals
from penstock.train.stream import Keep, read_for

__all__ = ["Run", "Session", "State", "as_holdout", "check_finite", "open_data", "run_session"]

SAMPLE_ROWS = 16_384
"""Rows that fix standardisation constants and name features."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a fit returns."""

    model: Model
    metrics: Scores
    """Progressive validation over the first pass: each example predicted before it was learnt."""
    holdout: Scores | None
    rows: int
    """Rows learnt, in all passes."""
    seconds: float
    history: list[Report]
    figures: Mapping[str, int] = field(default_factory=dict)
    """What a way of training counts besides, such as bytes moved."""


@dataclass
class State:
    """Where a run stands; what a checkpoint adds to the model."""

    pass_: int = 0
    rows: int = 0
    seconds: float = 0.0
    work: float = 0.0
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    """A name for it, the same when it is resumed."""


def open_data(
    data: Any, *, passes: int, holdout: Holdout | None, resume: bool, output: str | Path | None
) -> Source:
    """The source, once it is known that it can be trained on so.

    Raises:
        ConfigError: passes below 1, a resume without its folder, or data that can be read once alone.
        ModelError: there is no checkpoint to resume from.
    """
    if passes < 1:
        raise ConfigError(f"passes must be >= 1, got {passes}")
    if resume and output is None:
        raise ConfigError("resume needs the output folder of the interrupted run")
    source = data if isinstance(data, Source) else open_source(data)
    if not source.repeatable and (passes > 1 or holdout is not None):
        what = f"{passes} passes" if passes > 1 else "a hold-out"
        raise ConfigError(f"{what}: data must be readable again, got an iterator; allowed: a list, a table, files")
    if resume and output is not None:
        RunFolder(output).read_checkpoint()
    return source


def as_holdout(holdout: Holdout | float | None) -> Holdout | None:
    """A fraction as what it stands for."""
    return Holdout(fraction=holdout) if isinstance(holdout, int | float) else holdout


def check_finite(predicted: Floats, chunk: Chunk, row: int) -> None:
    """Stop a run whose weights have become infinite or nan; ``predicted`` begins near ``row`` of ``chunk``.

    Raises:
        DataError: with the place.
    """
    if not np.isfinite(predicted).all():
        bad = int(np.flatnonzero(~np.isfinite(predicted))[0])
        raise DataError(
            f"training diverged near {chunk.locate(row)}: got probability {predicted[bad]}, "
            "allowed: 0 to 1; lower the learning rate, or standardise numbers"
        )


def run_session(session: Session, *, resume: bool, progress: bool | None) -> Run:
    """From an entered folder to the trained model."""
    if session.folder is not None and resume:
        session.resume()
    elif session.folder is not None:
        session.folder.begin()
    try:
        session.warm_up()
    except KeyboardInterrupt as error:
        kept = "; the checkpoint is as it was" if resume else ""
        raise Interrupted(f"stopped by Ctrl-C before a row was learnt{kept}") from error
    return session.run(reporter_for(progress))


class Session(ABC):
    """One run; a subclass has the loop, and what is to be the same when it is resumed."""

    state_type: ClassVar[type[State]] = State
    """A dataclass of plain JSON values."""
    how_to_resume: str | None = "penstock train --resume"
    """None where a run of this kind cannot be resumed: then no checkpoint is written."""

    def __init__(
        self,
        model: Model,
        source: Source,
        passes: int,
        holdout: Holdout | None,
        *,
        folder: RunFolder | None,
        readers: int | None,
        checkpoint_every_s: float | None,
        job: dict[str, Any] | None,
    ) -> None:
        self.model, self.passes = model, passes
        self.holdout, self.folder, self.readers, self.job = holdout, folder, readers, job
        self.checkpoint_every_s = checkpoint_every_s
        sample = source.sample(SAMPLE_ROWS)
        self.plan = model.resolve(sample)
        model.keep_sample(sample)
        model.begin()
        self.source = read_for(source, self.plan)
        self.learnt: Keep | None = None
        if holdout is not None:
            self.learnt, _ = holdout.split(self.plan)
        self.state = self.state_type()
        self.size = self.source.size * passes if self.source.size else None
        self.metrics = BinaryMetrics()
        self.history: list[Report] = []
        self.publish = Publish()
        self._not_before = 0
        self._published: int | None = None
        """Rows that had been learnt at the last version."""
        self._signals = StopSignals()
        self._lines: JsonLines | None = None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """How examples are learnt, as plain JSON values: what a resumed run must share."""

    @abstractmethod
    def warm_up(self) -> None:
        """Learn a few rows with a model that is thrown away, so that kernels are loaded (or compiled) before the
        clock starts."""

    @abstractmethod
    def steps(self, progress: Progress) -> Iterator[None]:
        """Learn everything from ``state`` on; at a yield model and state fit together, as a checkpoint needs."""

    def figures(self) -> dict[str, int]:
        """What is counted besides."""
        return {}

    def resume(self) -> None:
        """Take model and position from the checkpoint.

        Raises:
            ModelError: there is none, or data or settings are not those of the run that wrote it.
        """
        assert self.folder is not None
        saved = self.folder.read_checkpoint()
        now = self._settings()
        for name, value in now.items():
            if saved["settings"].get(name) != value:
                raise ModelError(
                    f"{self.folder.path}: cannot resume: {name} was {saved['settings'].get(name)!r}, "
                    f"is now {value!r}"
                )
        loaded = self.folder.load_checkpoint()
        if loaded.optimizer != self.model.optimizer:
            raise ModelError(
                f"{self.folder.path}: cannot resume: optimizer was {loaded.optimizer}, is {self.model.optimizer}"
            )
        if loaded.plan != self.plan:
            was, is_ = loaded.plan.to_dict() if loaded.plan else {}, self.plan.to_dict()
            name = next(name for name in is_ if was.get(name) != is_[name])
            raise ModelError(f"{self.folder.path}: cannot resume: features differ in {name!r} from those before")
        self.model.adopt(loaded)
        try:
            self.state = msgspec.convert(saved["state"], self.state_type)
        except msgspec.ValidationError as error:
            raise ModelError(f"{self.folder.checkpoint}/manifest.json: damaged: {error}") from error
        self.metrics = BinaryMetrics.from_state(saved["metrics"])
        with contextlib.suppress(ModelError, KeyError, TypeError, ValueError):
            lineage = read_manifest(self.folder.path)["lineage"]
            if lineage["run"] == self.state.run:
                self._not_before = int(lineage["rows"])

    def run(self, shown: Reporter | None) -> Run:
        """Learn every pass, evaluate the hold-out, and write the model."""
        reporters: list[Reporter] = [shown] if shown else []
        reporters.append(_History(self.history))
        if self.folder is not None:
            self._lines = JsonLines(self.folder.progress)
            reporters.append(self._lines)
        with contextlib.ExitStack() as stack:
            for reporter in reporters:
                stack.enter_context(reporter)
            if self.folder is not None:
                stack.enter_context(self._signals)
            progress = Progress(reporters, self.metrics, size=self.size)
            progress.rows, progress.seconds_before = self.state.rows, self.state.seconds
            last_checkpoint_s = last_version_s = time.perf_counter()
            for _ in stack.enter_context(contextlib.closing(self.steps(progress))):  # type: ignore[type-var]
                self.check_stop(progress)
                if self.publish.every_s and time.perf_counter() - last_version_s >= self.publish.every_s:
                    first = self._publish(progress)
                    last_version_s = time.perf_counter()
                    if first and self.checkpoint_every_s and self.how_to_resume is not None:
                        # Who has seen a version expects to go on after it, if the run is killed.
                        self._checkpoint(progress)
                        last_checkpoint_s = time.perf_counter()
                if not self.checkpoint_every_s or self.how_to_resume is None:
                    continue
                if time.perf_counter() - last_checkpoint_s >= self.checkpoint_every_s:
                    self._checkpoint(progress)
                    last_checkpoint_s = time.perf_counter()
            if not self.state.rows:
                raise DataError("there are no rows to learn from")
            self.tell(progress, final=True)
            seconds = progress.seconds
            held = self._evaluate_holdout(progress)
            self.model.metadata = self._metadata(held, seconds)
            if self.folder is not None:
                # A signal that comes now is too late to be of use: the model is there before it could be.
                self.folder.finish(self.model)
        return Run(
            model=self.model,
            metrics=self.metrics.scores(),
            holdout=held,
            rows=self.state.rows,
            seconds=seconds,
            history=self.history,
            figures=self.figures(),
        )

    def tell(self, progress: Progress, *, final: bool = False) -> None:
        """Pass on where the run stands."""
        progress.rows = self.state.rows
        progress.tick(self.state.work, self.model.rows, self.model.nbytes, final=final)

    def observe(self, predicted: Floats, labels: Floats, weights: Floats | None) -> None:
        """Count predictions f32[B] that were made before their examples were learnt."""
        if self.state.pass_ == 0:
            self.metrics.update(predicted, labels, weights)

    def check_stop(self, progress: Progress) -> None:
        """Leave a checkpoint and raise ``Interrupted``, where a signal has come."""
        if self._signals.by is not None:
            self._interrupt(progress)

    def move_to(self, folder: RunFolder) -> None:
        """Go on in another folder, which is entered: checkpoints, reports and the model go there from now on."""
        self.folder = folder
        if self._lines is not None:
            self._lines.path = folder.progress

    def may_publish(self) -> bool:
        """Whether what has been learnt is to be seen by others. A run that goes on from a checkpoint first learns
        again what it had learnt, and published, since."""
        return self.state.rows >= self._not_before

    def recent(self) -> pa.Table | None:
        """Labelled rows that were learnt last, if they are at hand."""
        return None

    def _publish(self, progress: Progress) -> bool:
        """Make what has been learnt a version, if it is more than at the last one; whether it is the first."""
        rows = self.state.rows
        if self.folder is None or not rows or rows == self._published or not self.may_publish():
            return False
        self.model.metadata = self._metadata(None, progress.seconds)
        self.folder.publish(self.model, self.recent())
        first, self._published = self._published is None, rows
        return first

    def _settings(self) -> dict[str, Any]:
        holdout = dataclasses.asdict(self.holdout) if self.holdout else None
        return {
            "passes": self.passes,
            "strategy": self.settings(),
            "holdout": holdout,
            "files": list(self.source.files),
            "size": self.source.size,
        }

    def _checkpoint(self, progress: Progress) -> None:
        assert self.folder is not None
        self.state.seconds = progress.seconds
        saved = {
            "state": dataclasses.asdict(self.state),
            "settings": self._settings(),
            "metrics": self.metrics.to_state(),
            "job": self.job,
        }
        self.folder.save_checkpoint(self.model, saved)

    def _interrupt(self, progress: Progress) -> None:
        assert self.folder is not None
        if not self.source.repeatable or self.how_to_resume is None:
            what = "this solver" if self.source.repeatable else "data from an iterator"
            raise Interrupted(
                f"stopped by {self._signals.by} after {self.state.rows:,} rows; nothing was saved, as {what} "
                "cannot be resumed"
            )
        self._checkpoint(progress)
        raise Interrupted(
            f"stopped by {self._signals.by} after {self.state.rows:,} rows; the checkpoint is in "
            f"{self.folder.checkpoint}; go on with: {self.how_to_resume} -o {self.folder.path}"
        )

    def _evaluate_holdout(self, progress: Progress) -> Scores | None:
        if self.holdout is None:
            return None
        return evaluate_holdout(
            self.model,
            self.source,
            self.holdout,
            readers=self.readers,
            after_each=lambda: self.check_stop(progress),
        ).scores()

    def times(self) -> tuple[str, ...]:
        """The column that the hold-out looks at."""
        return self.holdout.columns(self.plan) if self.holdout is not None else ()

    def _metadata(self, held: Scores | None, seconds: float) -> dict[str, Any]:
        return {
            "metrics": {
                "progressive": self.metrics.scores().to_json(),
                "holdout": held.to_json() if held else None,
            },
            "lineage": {
                "files": list(self.source.files),
                "run": self.state.run,
                "rows": self.state.rows,
                "seconds": round(seconds, 3),
                "settings": {k: v for k, v in self._settings().items() if k not in ("files", "size")},
                "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        }


class _History:
    """Keeps the reports."""

    interval_s = 0.5

    def __init__(self, history: list[Report]) -> None:
        self._history = history

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def report(self, report: Report) -> None:
        """Keep it."""
        self._history.append(report)
