"""Training in one process: read, hash and learn in source order, predicting each example before learning it.

With one learning thread the result depends on the data alone; with several (Hogwild) each example is learnt
exactly once, in an order that the machine chooses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from penstock.data import BATCH_ROWS, Source, open_source
from penstock.errors import ConfigError, DataError, Interrupted, ModelError
from penstock.features import Encoder
from penstock.metrics import BinaryMetrics, Scores
from penstock.models import Linear
from penstock.train.folder import RunFolder
from penstock.train.holdout import Holdout
from penstock.train.learners import Hogwild, Learner, MiniBatches
from penstock.train.progress import JsonLines, Progress, Report, Reporter, reporter_for
from penstock.train.scoring import evaluate_stream
from penstock.train.stream import Encoded, EncodedStream, Keep, read_for

__all__ = ["Online", "Run", "fit"]

MINIBATCH_MAX = 1 << 16
SAMPLE_ROWS = 16_384
"""Rows that fix standardisation constants and name features."""


@dataclass(frozen=True, kw_only=True)
class Online:
    """Learn in one process: example by example, or in mini-batches.

    ``threads`` > 1 learn on one table at once, without locks (Niu et al. 2011, "Hogwild!"). ``minibatch`` sums
    the gradients of so many consecutive examples before each update, as the parameter server does; a chunk of the
    source (a row group, 8 MiB of text) may end with fewer.
    """

    threads: int = 1
    minibatch: int | None = None

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads must be >= 1, got {self.threads}")
        if self.minibatch is not None and not 1 <= self.minibatch <= MINIBATCH_MAX:
            raise ConfigError(f"minibatch must be 1 to {MINIBATCH_MAX:,}, got {self.minibatch}")
        if self.minibatch is not None and self.threads > 1:
            raise ConfigError("minibatch learns in one thread; give either minibatch or threads")

    @property
    def batch_rows(self) -> int:
        """Rows of a batch that a learner is given: of whole mini-batches, and enough for every thread."""
        if self.minibatch is not None:
            return self.minibatch * max(1, BATCH_ROWS // self.minibatch)
        return BATCH_ROWS * self.threads

    def learner(self, model: Linear) -> Learner:
        """What learns so; a context."""
        if self.minibatch is not None:
            return MiniBatches(model, self.minibatch)
        return Hogwild(model, self.threads) if self.threads > 1 else Learner(model)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a fit returns."""

    model: Linear
    metrics: Scores
    """Progressive validation over the first pass: each example predicted before it was learnt."""
    holdout: Scores | None
    rows: int
    """Rows learnt, in all passes."""
    seconds: float
    history: list[Report]


@dataclass
class _State:
    """Where a run stands; what a checkpoint adds to the model."""

    pass_: int = 0
    chunk: int = 0
    row: int = 0
    rows: int = 0
    seconds: float = 0.0
    work: float = 0.0


def fit(
    model: Linear,
    data: Any,
    *,
    passes: int = 1,
    strategy: Online | None = None,
    holdout: Holdout | float | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float | None = 300.0,
    progress: bool | None = None,
    readers: int | None = None,
    job: dict[str, Any] | None = None,
) -> Run:
    """Train ``model`` on ``data`` (see ``open_source``), in place.

    Args:
        passes: times to go over the data.
        strategy: ``Online(threads=1)`` where None.
        holdout: rows to evaluate on afterwards instead of learning them; a float is a fraction.
        output: folder for the model; with it, Ctrl-C (or SIGTERM) leaves a checkpoint there.
        resume: go on from the checkpoint in ``output``; data and settings must be those of the run before.
        checkpoint_every_s: seconds between checkpoints while training; None for only when interrupted.
        progress: show it (None: only on a terminal).
        readers: threads that read and hash; as many as cores where None.
        job: kept in checkpoints, so that whoever resumes knows what to run.

    Raises:
        DataError, ConfigError, StorageError, FolderBusy: see ``errors``; the model on disk is unharmed.
        Interrupted: after the checkpoint was written.
    """
    strategy = strategy if strategy is not None else Online()
    if isinstance(holdout, int | float):
        holdout = Holdout(fraction=holdout)
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
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(RunFolder(output)) if output is not None else None
        trainer = _Trainer(model, source, strategy, passes, holdout, folder, readers, job)
        trainer.checkpoint_every_s = checkpoint_every_s
        if folder is not None and resume:
            trainer.resume()
        elif folder is not None:
            folder.begin()
        try:
            trainer.warm_up()
        except KeyboardInterrupt as error:
            kept = "; the checkpoint is as it was" if resume else ""
            raise Interrupted(f"stopped by Ctrl-C before a row was learnt{kept}") from error
        return trainer.run(reporter_for(progress))


class _Trainer:
    """One run of ``fit``."""

    checkpoint_every_s: float | None = None

    def __init__(
        self,
        model: Linear,
        source: Source,
        strategy: Online,
        passes: int,
        holdout: Holdout | None,
        folder: RunFolder | None,
        readers: int | None,
        job: dict[str, Any] | None,
    ) -> None:
        self.model, self.strategy, self.passes = model, strategy, passes
        self.holdout, self.folder, self.readers, self.job = holdout, folder, readers, job
        sample = source.sample(SAMPLE_ROWS)
        self.plan = model.resolve(sample)
        model.keep_sample(sample)
        self.source = read_for(source, self.plan)
        self.learnt: Keep | None = None
        self.held_out: Keep | None = None
        if holdout is not None:
            self.learnt, self.held_out = holdout.split(self.plan)
        self.state = _State()
        self.metrics = BinaryMetrics()
        self.history: list[Report] = []
        self._stop_by: str | None = None

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
        self.model.table = loaded.table
        try:
            self.state = msgspec.convert(saved["state"], _State)
        except msgspec.ValidationError as error:
            raise ModelError(f"{self.folder.checkpoint}/manifest.json: damaged: {error}") from error
        self.metrics = BinaryMetrics.from_state(saved["metrics"])

    def warm_up(self) -> None:
        """Learn a few rows with a model that is thrown away, so that kernels are loaded (or compiled) before the
        clock starts."""
        first = Encoder(self.plan).columns
        batch = self.model.sample_batch(first, 8)
        if not len(batch):
            return
        model = Linear(self.plan, optimizer=self.model.optimizer, slots=1, segments=2)
        # What is wrong with these rows will be met again, and said where it stands.
        with contextlib.suppress(DataError), self.strategy.learner(model) as learner:
            encoded = Encoder(self.plan).encode(batch)
            out = np.empty(len(batch), np.float32)
            learner.learn(encoded, out)
            BinaryMetrics().update(out, encoded.labels, encoded.weights)

    def run(self, shown: Reporter | None) -> Run:
        """Learn every pass, evaluate the hold-out, and write the model."""
        reporters: list[Reporter] = [shown] if shown else []
        reporters.append(_History(self.history))
        if self.folder is not None:
            reporters.append(JsonLines(self.folder.progress))
        size = self.source.size * self.passes if self.source.size else None
        with contextlib.ExitStack() as stack:
            for reporter in reporters:
                stack.enter_context(reporter)
            if self.folder is not None:
                stack.enter_context(self._signals())
            progress = Progress(reporters, self.metrics, size=size)
            progress.rows, progress.seconds_before = self.state.rows, self.state.seconds
            learner = stack.enter_context(self.strategy.learner(self.model))
            last_checkpoint_s = time.perf_counter()
            while self.state.pass_ < self.passes:
                for item in self._batches():
                    self._learn(learner, item, progress)
                    now_s = time.perf_counter()
                    if self._stop_by is not None:
                        self._interrupt(progress)
                    if self.checkpoint_every_s and now_s - last_checkpoint_s >= self.checkpoint_every_s:
                        self._checkpoint(progress)
                        last_checkpoint_s = time.perf_counter()
                self.state.pass_, self.state.chunk, self.state.row = self.state.pass_ + 1, 0, 0
            if not self.state.rows:
                raise DataError("there are no rows to learn from")
            progress.tick(self.state.work, len(self.model.table), self.model.table.nbytes, final=True)
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
        )

    def _batches(self) -> Iterator[Encoded]:
        stream = EncodedStream(
            self.source,
            self.plan,
            start=(self.state.chunk, self.state.row),
            keep=self.learnt,
            readers=self.readers,
            batch_rows=self.strategy.batch_rows,
            extra_columns=self._times(),
        )
        with stream:
            yield from stream

    def _learn(self, learner: Learner, item: Encoded, progress: Progress) -> None:
        batch = item.batch
        if len(batch):
            out = np.empty(len(batch), np.float32)
            learner.learn(batch, out)
            if not np.isfinite(out).all():
                bad = int(np.flatnonzero(~np.isfinite(out))[0])
                raise DataError(
                    f"training diverged near {item.chunk.locate(item.row)}: got probability {out[bad]}, "
                    "allowed: 0 to 1; lower the learning rate, or standardise numbers"
                )
            if self.state.pass_ == 0:
                self.metrics.update(out, batch.labels, batch.weights)
        state = self.state
        state.rows += len(batch)
        state.chunk, state.row = (
            (item.chunk.index + 1, 0) if item.last else (item.chunk.index, item.row + item.rows)
        )
        if self.source.unit == "rows":
            state.work += item.rows
        elif item.last:
            state.work += item.chunk.size
        progress.rows = state.rows
        progress.tick(state.work, len(self.model.table), self.model.table.nbytes)

    def _settings(self) -> dict[str, Any]:
        holdout = dataclasses.asdict(self.holdout) if self.holdout else None
        return {
            "passes": self.passes,
            "strategy": dataclasses.asdict(self.strategy),
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
        if not self.source.repeatable:
            raise Interrupted(
                f"stopped by {self._stop_by} after {self.state.rows:,} rows; nothing was saved, as data from an "
                "iterator cannot be resumed"
            )
        self._checkpoint(progress)
        raise Interrupted(
            f"stopped by {self._stop_by} after {self.state.rows:,} rows; the checkpoint is in "
            f"{self.folder.checkpoint}; go on with: penstock train --resume -o {self.folder.path}"
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let a signal be noticed between two batches; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}

        def notice(number: int, frame: Any) -> None:
            self._stop_by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            for each, handler in before.items():
                signal.signal(each, handler)

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, notice)
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _evaluate_holdout(self, progress: Progress) -> Scores | None:
        if self.held_out is None:
            return None

        def check() -> None:
            if self._stop_by is not None:
                self._interrupt(progress)

        stream = EncodedStream(
            self.source, self.plan, keep=self.held_out, readers=self.readers, extra_columns=self._times()
        )
        return evaluate_stream(self.model, stream, after_each=check).scores()

    def _times(self) -> tuple[str, ...]:
        """The column that the hold-out looks at."""
        by_time = self.holdout is not None and self.holdout.after is not None
        return (self.plan.time,) if by_time and self.plan.time is not None else ()

    def _metadata(self, held: Scores | None, seconds: float) -> dict[str, Any]:
        return {
            "metrics": {
                "progressive": self.metrics.scores().to_json(),
                "holdout": held.to_json() if held else None,
            },
            "lineage": {
                "files": list(self.source.files),
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
