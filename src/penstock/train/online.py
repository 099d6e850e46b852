"""Training in one process: read, hash and learn in source order, predicting each example before learning it.

With one learning thread the result depends on the data alone; with several (Hogwild) each example is learnt
exactly once, in an order that the machine chooses.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.data import BATCH_ROWS
from penstock.errors import ConfigError, DataError
from penstock.features import Encoder
from penstock.metrics import BinaryMetrics
from penstock.models import Linear, Model
from penstock.train.folder import RunFolder
from penstock.train.holdout import Holdout
from penstock.train.learners import ByExample, Hogwild, Learner, MiniBatches
from penstock.train.progress import Progress
from penstock.train.publishing import Publish
from penstock.train.session import Run, Session, State, as_holdout, check_finite, open_data, run_session
from penstock.train.stream import Encoded, EncodedStream

__all__ = ["Online", "OnlineSession", "fit"]

MINIBATCH_MAX = 1 << 16


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

    def learner(self, model: Model) -> Learner:
        """What learns so; a context.

        Raises:
            ConfigError: the model can learn in mini-batches alone.
        """
        if self.minibatch is not None:
            return MiniBatches(model, self.minibatch)
        if not isinstance(model, Linear):
            raise ConfigError(f"a model of kind {model.kind!r} learns in mini-batches; give Online(minibatch=512)")
        return Hogwild(model, self.threads) if self.threads > 1 else ByExample(model)


@dataclass
class _State(State):
    chunk: int = 0
    row: int = 0


def fit(
    model: Model,
    data: Any,
    *,
    passes: int = 1,
    strategy: Online | None = None,
    holdout: Holdout | float | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float | None = 300.0,
    publish: Publish = Publish(),  # noqa: B008 - frozen
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
        publish: versions of the model in ``output`` while it learns, for whoever serves it.
        progress: show it (None: only on a terminal).
        readers: threads that read and hash; as many as cores where None.
        job: kept in checkpoints, so that whoever resumes knows what to run.

    Raises:
        DataError, ConfigError, StorageError, FolderBusy: see ``errors``; the model on disk is unharmed.
        Interrupted: after the checkpoint was written.
    """
    strategy = strategy if strategy is not None else Online()
    holdout = as_holdout(holdout)
    source = open_data(data, passes=passes, holdout=holdout, resume=resume, output=output)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(RunFolder(output, publish)) if output is not None else None
        trainer = OnlineSession(
            model,
            source,
            passes,
            holdout,
            folder=folder,
            readers=readers,
            checkpoint_every_s=checkpoint_every_s,
            job=job,
        )
        trainer.strategy, trainer.publish = strategy, publish
        return run_session(trainer, resume=resume, progress=progress)


class OnlineSession(Session):
    """One run of ``fit``."""

    state_type = _State
    state: _State
    strategy: Online

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.strategy)

    def warm_up(self) -> None:
        first = Encoder(self.plan).columns
        batch = self.model.sample_batch(first, 8)
        if not len(batch):
            return
        model = self.model.shell(segments=2)
        # What is wrong with these rows will be met again, and said where it stands.
        with contextlib.suppress(DataError), self.strategy.learner(model) as learner:
            encoded = Encoder(self.plan).encode(batch)
            out = np.empty(len(batch), np.float32)
            learner.learn(encoded, out)
            BinaryMetrics().update(out, encoded.labels, encoded.weights)

    def steps(self, progress: Progress) -> Iterator[None]:
        with self.strategy.learner(self.model) as learner:
            while self.state.pass_ < self.passes:
                for item in self._batches():
                    self._learn(learner, item, progress)
                    yield
                self.state.pass_, self.state.chunk, self.state.row = self.state.pass_ + 1, 0, 0

    def _batches(self) -> Iterator[Encoded]:
        stream = EncodedStream(
            self.source,
            self.plan,
            start=(self.state.chunk, self.state.row),
            keep=self.learnt,
            readers=self.readers,
            batch_rows=self.strategy.batch_rows,
            extra_columns=self.times(),
        )
        with stream:
            yield from stream

    def _learn(self, learner: Learner, item: Encoded, progress: Progress) -> None:
        batch = item.batch
        if len(batch):
            out = np.empty(len(batch), np.float32)
            learner.learn(batch, out)
            check_finite(out, item.chunk, item.row)
            self.observe(out, batch.labels, batch.weights)
        state = self.state
        state.rows += len(batch)
        state.chunk, state.row = (
            (item.chunk.index + 1, 0) if item.last else (item.chunk.index, item.row + item.rows)
        )
        if self.source.unit == "rows":
            state.work += item.rows
        elif item.last:
            state.work += item.chunk.size
        self.tell(progress)
