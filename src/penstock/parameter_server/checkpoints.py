"""Checkpoints as a coordinator makes them: named, asked for, collected and handed on to be committed.

It holds which micro-batches a checkpoint lists, and whose figures belong to it. When one is made, and what it
means if one fails, is the coordinator's matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from penstock.parameter_server.effects import Commit, Effect, Prepare, Send
from penstock.parameter_server.messages import Figures, Grant, Record, Save, SaveAccepted, Saved
from penstock.parameter_server.work import WorkQueue

__all__ = ["Checkpoints", "Saving", "Sink"]


class Sink(Protocol):
    """Takes the figures of micro-batches that are done, each once."""

    def add(self, figures: Figures) -> None:
        """Of a micro-batch."""

    def state(self) -> Any:
        """What was added so far, as a checkpoint keeps it; a copy."""


@dataclass(slots=True)
class Saving:
    """A checkpoint that is being written."""

    save: Save
    record: Record | None
    """None under BSP: known when its clock is complete."""
    metrics: Any
    began: float
    sent: float
    accepted: set[str] = field(default_factory=set)
    saved: dict[str, Saved] = field(default_factory=dict)
    committing: bool = False

    def lists(self, grant: Grant) -> bool:
        """Whether a micro-batch that is done now will be listed."""
        return self.record is not None or grant.clock < (self.save.clock or 0)


class Checkpoints:
    """One after the other; ``together`` says that a checkpoint is the state at a clock, as under BSP."""

    def __init__(self, queue: WorkQueue, sink: Sink, *, together: bool, every_s: float | None, now: float) -> None:
        self.at_hand: Saving | None = None
        self.committed: int | None = None
        """Number of the last one that is valid."""
        self._queue, self._sink, self._together, self._every_s = queue, sink, together, every_s
        self._preparing: int | None = None
        self._last, self._last_at = 0, now
        self._deferred: list[Figures] = []
        """Of micro-batches that the checkpoint at hand does not list; the sink has them after it."""

    @property
    def busy(self) -> bool:
        """Whether one is being made."""
        return self.at_hand is not None or self._preparing is not None

    def due(self, now: float) -> bool:
        """Whether the last one is long enough ago."""
        return self._every_s is not None and now - self._last_at >= self._every_s

    def wait_from(self, now: float) -> None:
        """Count the time to the next one from now."""
        self._last_at = now

    def prepare(self, *, final: bool) -> list[Effect]:
        """Have a folder made, if none is being filled."""
        if self.busy:
            return []
        self._last += 1
        self._preparing = self._last
        return [Prepare(self._preparing, final)]

    def prepared(self, checkpoint: int, now: float) -> bool:
        """A folder is made, or could not be: whether it is the one that was asked for."""
        if checkpoint != self._preparing:
            return False
        self._preparing, self._last_at = None, now
        return True

    def begin(self, checkpoint: int, folder: str, *, full: bool, final: bool, now: float) -> None:
        """Fix what it lists: all that is done; under BSP what lies below a clock that nobody was granted yet."""
        clock = self._queue.highest if self._together and not final else None
        record = metrics = None
        if clock is None:
            record, metrics = self._queue.record(), self._sink.state()
        else:
            # Until every server knows of the clock, nothing of it may be applied.
            self._queue.ceiling = clock
        save = Save(checkpoint=checkpoint, folder=folder, full=full, final=final, clock=clock)
        self.at_hand = Saving(save, record, metrics, now, now)

    def ask(self, servers: Mapping[str, str], now: float) -> list[Effect]:
        """Ask those of ``servers``, by name who they are reached as, that have not saved."""
        saving = self.at_hand
        assert saving is not None
        saving.sent = now
        return [Send(sender, saving.save) for name, sender in servers.items() if name not in saving.saved]

    def answer(self, server: str, answer: SaveAccepted | Saved) -> str | None:
        """A server will save, or has; returns why it could not, where so."""
        saving = self.at_hand
        if saving is None or answer.checkpoint != saving.save.checkpoint:
            return None
        saving.accepted.add(server)
        if isinstance(answer, Saved) and not saving.committing:
            saving.saved[server] = answer
            return answer.error
        return None

    def all_accepted(self, servers: int) -> bool:
        """Whether every server knows what is to be saved."""
        return self.at_hand is not None and len(self.at_hand.accepted) == servers

    def commit_if_complete(self, servers: Mapping[str, str]) -> list[Effect]:
        """Hand it on, once all servers have saved and all that it lists is known to be done."""
        saving = self.at_hand
        if saving is None or saving.committing or len(saving.saved) < len(servers):
            return []
        if saving.record is None:
            assert saving.save.clock is not None
            if self._queue.frontier < saving.save.clock and not self._queue.finished:
                return []  # servers have it all, but a worker has not said so yet
            saving.record, saving.metrics = self._queue.record_below(saving.save.clock), self._sink.state()
            self._count_deferred()
        saving.committing = True
        answers = [saving.saved[name] for name in servers]
        return [
            Commit(
                checkpoint=saving.save.checkpoint,
                folder=saving.save.folder,
                full=saving.save.full,
                final=saving.save.final,
                files=[answer.files for answer in answers],
                names=[part for answer in answers for part in answer.names],
                record=saving.record,
                metrics=saving.metrics,
            )
        ]

    def end(self, *, valid: bool) -> Saving | None:
        """The one at hand, which is at hand no more."""
        saving, self.at_hand = self.at_hand, None
        self._count_deferred()
        if valid and saving is not None:
            self.committed = saving.save.checkpoint
        return saving

    def count(self, grant: Grant, figures: Figures) -> None:
        """Each micro-batch once, and in the first checkpoint that lists it."""
        if self.at_hand is None or self.at_hand.lists(grant):
            self._sink.add(figures)
        else:
            self._deferred.append(figures)

    def validate(self) -> None:
        """Check that the state fits together."""
        assert self.at_hand is None or self._preparing is None
        assert not self._deferred or self.at_hand is not None

    def _count_deferred(self) -> None:
        for figures in self._deferred:
            self._sink.add(figures)
        self._deferred.clear()
