"""Training from a log while it grows: each piece of the pipeline is learnt once, in order, and then for ever on.

The model is published every so often for whoever serves it; checkpoints, from which a stopped or killed run goes
on, are apart from that. The same log gives the same model, whenever and with however many interruptions it is
learnt.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import ConfigError, DataError
from penstock.features import Encoder
from penstock.features.memory import Memory
from penstock.log.times import SECOND_US, format_duration, format_time, now_us
from penstock.models import Model
from penstock.stream.feed import Standing
from penstock.stream.replay import Examples
from penstock.stream.source import PipelineSource
from penstock.stream.timeline import NEVER
from penstock.train.folder import RunFolder
from penstock.train.learners import Learner
from penstock.train.online import Online, OnlineSession
from penstock.train.progress import Progress, Reporter
from penstock.train.publishing import Publish
from penstock.train.session import Run, State, run_session

__all__ = ["fit_live"]

_FORK = "fork"


@dataclass
class _State(State):
    piece: int = 0
    """The next piece to learn."""
    step: int = -1
    watermark: str | None = None
    sealed_to: str | None = None
    newest_us: int | None = None
    """Event time of the newest example that was learnt."""
    ends: dict[str, int] = dataclasses.field(default_factory=dict)


def fit_live(
    model: Model,
    source: PipelineSource,
    *,
    strategy: Online | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float | None = 300.0,
    publish: Publish = Publish(every_s=60.0),  # noqa: B008 - frozen
    fork: bool = False,
    on_learnt: Callable[[Examples], None] | None = None,
    on_swap: Callable[[Path], None] | None = None,
    progress: bool | None = None,
    job: dict[str, Any] | None = None,
) -> Run:
    """Train ``model`` on the examples of a pipeline, in place: what is there, and what comes
    where the source follows the log.

    Args:
        strategy: ``Online()`` where None.
        output: folder for the model; with it, Ctrl-C leaves a checkpoint there.
        resume: go on from the checkpoint in ``output``.
        publish: versions of the model in ``output``, for whoever serves it.
        fork: train apart, in the folder ``fork`` of ``output``, while the model there is served and perhaps
            trained by another run; once all that the log has is learnt, take its place. The other run is asked to
            stop.
        on_learnt: is given each piece once it is learnt.
        on_swap: is given the folder whose model the fork has taken the place of.

    Raises:
        ConfigError: the pipeline does not know which column is the label.
        Interrupted: after the checkpoint was written.
    """
    if source.pipeline.label is None:
        raise ConfigError("a pipeline that is trained on needs features.label")
    if fork and output is None:
        raise ConfigError("fork needs an output folder, whose model it takes the place of")
    with contextlib.ExitStack() as stack:
        own = Path(output) / _FORK if fork and output is not None else output
        kept = publish if not fork else Publish()
        folder = stack.enter_context(RunFolder(own, kept)) if own is not None else None
        if resume and folder is not None:
            folder.read_checkpoint()
        session = _LiveSession(
            model,
            source,
            1,
            None,
            folder=folder,
            readers=None,
            checkpoint_every_s=checkpoint_every_s,
            job=job,
        )
        session.strategy = strategy if strategy is not None else Online()
        session.publish = publish
        session.place_of = Path(output) if fork and output is not None else None
        session.stack, session.on_learnt = stack, on_learnt
        session.recent_rows = _Recent()
        session.on_swap = on_swap or (lambda path: None)
        return run_session(session, resume=resume, progress=progress)


class _LiveSession(OnlineSession):
    state_type = _State  # type: ignore[assignment]
    state: _State  # type: ignore[assignment]
    source: PipelineSource
    place_of: Path | None
    """The folder whose model the fork will replace; None where it has, or there is no fork."""
    stack: contextlib.ExitStack
    on_swap: Callable[[Path], None]
    on_learnt: Callable[[Examples], None] | None
    recent_rows: _Recent

    def settings(self) -> dict[str, Any]:
        pipeline = self.source.pipeline
        return {
            **dataclasses.asdict(self.strategy),
            "pipeline": pipeline.fingerprint,
            "from": None if self.source.from_us is None else format_time(self.source.from_us),
            "late": dataclasses.asdict(pipeline.late),
        }

    def steps(self, progress: Progress) -> Iterator[None]:
        encoder, memory = Encoder(self.plan), Memory()
        with (
            self.strategy.learner(self.model) as learner,
            self.source.feed(start=self.state.piece, follow=self.source.follow) as feed,
        ):
            for examples in feed:
                if examples is not None:
                    self._learn_piece(learner, encoder, memory, examples)
                    self._stand(examples)
                    if self.on_learnt is not None:
                        self.on_learnt(examples)
                elif self.place_of is not None and feed.standing is not None:
                    self._swap(progress)
                progress.standing, progress.pipeline = _shown(feed.standing), _detailed(feed.standing)
                self.tell(progress)
                yield
            # A run that ends with what is sealed may have learnt it before the feed said where it stood.
            progress.standing, progress.pipeline = _shown(feed.standing), _detailed(feed.standing)

    def _learn_piece(self, learner: Learner, encoder: Encoder, memory: Memory, examples: Examples) -> None:
        policy = self.source.pipeline.late
        assert self.source.pipeline.label is not None
        rows = policy.taken(examples.rows, self.source.pipeline.label).select(encoder.columns)
        size = self.strategy.batch_rows
        for begin in range(0, rows.num_rows, size):
            part = rows.slice(begin, size).combine_chunks().to_batches()[0]
            batch = encoder.encode(part, memory=memory)
            predicted = self.model.predict_batch(batch) if policy.needs_predictions else None
            weights = policy.weights(batch.labels, predicted)
            if weights is not None:
                batch = dataclasses.replace(
                    batch, weights=weights if batch.weights is None else batch.weights * weights
                )
            out = np.empty(len(batch), np.float32)
            learner.learn(batch, out)
            if not np.isfinite(out).all():
                raise DataError(
                    f"training diverged in piece {examples.piece.index} of the pipeline; lower the learning rate, "
                    "or standardise numbers"
                )
            self.observe(out, batch.labels, batch.weights)
            self.state.rows += len(batch)
        self.recent_rows.add(rows)

    def _stand(self, examples: Examples) -> None:
        state, point = self.state, examples.point
        state.piece, state.step = examples.piece.index + 1, point.step
        state.ends = dict(point.ends)
        state.watermark = _time(point.marks[self.source.pipeline.primary])
        state.sealed_to = _time(examples.sealed_to_us)
        if examples.rows.num_rows:
            newest_us = pc.max(examples.rows["_time"]).cast(pa.int64()).as_py()
            state.newest_us = newest_us if state.newest_us is None else max(state.newest_us, newest_us)
        state.work += examples.piece.events

    def _swap(self, progress: Progress) -> None:
        """The fork has caught up: its model replaces the one that is served, and the run goes on in that
        folder."""
        assert self.place_of is not None and self.folder is not None
        fork, taken = self.folder, RunFolder.take_over(self.place_of, self.publish)
        self.stack.push(taken)
        self.place_of = None
        self.move_to(taken)
        self._publish(progress)
        self._checkpoint(progress)
        fork.forget_checkpoint()
        self.on_swap(taken.path)

    def may_publish(self) -> bool:
        return self.place_of is None and super().may_publish()

    def recent(self) -> pa.Table | None:
        return self.recent_rows.table()

    def run(self, shown: Reporter | None) -> Run:
        found = super().run(shown)
        if self.place_of is not None:  # all was learnt before the feed had a moment of silence
            with RunFolder.take_over(self.place_of, self.publish) as folder:
                folder.finish(self.model)
        return found

    def _metadata(self, held: Any, seconds: float) -> dict[str, Any]:
        found = super()._metadata(held, seconds)
        found["lineage"]["position"] = {
            name: getattr(self.state, name) for name in ("piece", "step", "watermark", "sealed_to", "ends")
        }
        if self.state.newest_us is not None:
            found["lineage"]["newest_event"] = format_time(self.state.newest_us)
        aggregates = [each.name for each in self.source.pipeline.aggregates if each.name in self.plan.inputs]
        if aggregates:
            found["lineage"]["aggregates"] = aggregates
        return found


class _Recent:
    """The last rows that were learnt, as they were when they were."""

    _ROWS = 4096

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        if rows.num_rows:
            self._parts.append(rows.slice(max(0, rows.num_rows - self._ROWS)))
            while sum(part.num_rows for part in self._parts[1:]) >= self._ROWS:
                del self._parts[0]

    def table(self) -> pa.Table | None:
        """None where nothing has been learnt."""
        if not self._parts:
            return None
        table = pa.concat_tables(self._parts).combine_chunks()
        self._parts = [table.slice(max(0, table.num_rows - self._ROWS))]
        return self._parts[0]


def _time(us: int | None) -> str | None:
    return None if us is None or us == NEVER else format_time(us)


def _detailed(standing: Standing | None) -> dict[str, Any]:
    """Where each stream stands, as plain values."""
    if standing is None:
        return {}
    now = now_us()
    return {
        "step": standing.step,
        "sealed_to": _time(standing.sealed_to_us),
        "quarantined": standing.quarantined,
        "streams": {
            held.stream: {
                "events": standing.ends.get(held.stream, 0),
                "watermark": _time(held.mark_us),
                "lag_s": None if held.mark_us is None else max(0, now - held.mark_us) / SECOND_US,
                "source": held.source,
                "why": held.policy,
            }
            for held in standing.streams
        },
    }


def _shown(standing: Standing | None) -> dict[str, Any]:
    if standing is None:
        return {}
    lag = standing.lag_us(now_us())
    shown: dict[str, Any] = {"watermark": standing.watermark_text}
    if lag is not None:
        shown["lag"] = format_duration(lag // 100_000 * 100_000)
    if standing.quarantined:
        shown["quarantined"] = f"{standing.quarantined:,}"
    return shown
