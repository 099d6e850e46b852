"""Bugs, one at a time, that a protocol like this could have: what the simulation must find."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.parameter_server.client import Client
from penstock.parameter_server.coordinator import Coordinator
from penstock.parameter_server.effects import Effect, Send
from penstock.parameter_server.history import History
from penstock.parameter_server.messages import Ack, BatchName, Committed, Message, Part, Pull, Push, Report, Save
from penstock.parameter_server.server import Server
from penstock.parameter_server.work import WorkQueue
from tests.simulation.cluster import Machines

__all__ = ["PLANTED", "Planted"]


class _NoDeduplication(Server):
    def _new_parts(self, name: BatchName, tables: Mapping[str, Part]) -> Mapping[str, Part] | None:
        return tables


class _BoundOneTooMany(Server):
    def _is_due(self, pull: Pull) -> bool:
        one_less = None if pull.clock is None else pull.clock - 1
        return super()._is_due(msgspec.structs.replace(pull, clock=one_less))


class _AcknowledgesFirst(Server):
    """Acknowledges a push, and applies it when the next push or pull comes: a save between the two lacks it."""

    _late: tuple[str, Push] | None = None

    def handle(self, sender: str, message: Message, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._late is not None and isinstance(message, Pull | Push):
            (of, push), self._late = self._late, None
            effects += super().handle(of, push, now)
        if isinstance(message, Push):
            self._late = sender, message
            return [*effects, Send(sender, Ack(id=message.id))]
        return effects + super().handle(sender, message, now)

    def validate(self) -> None:
        """What is late is in no state."""


class _ForgetsLost(WorkQueue):
    """What a dead worker held goes to nobody."""

    def lost(self, worker: str) -> int:
        n = super().lost(worker)
        self._returned.clear()
        return n

    def validate(self) -> None:
        """Left out: it would find it at once."""


class _FinishesEarly(WorkQueue):
    """A chunk counts as learnt one micro-batch before its end."""

    def _finish(self, chunk: int) -> None:
        length = self._lengths.get(chunk % self._chunks)
        if length is not None and len(self._partial.get(chunk, ())) >= max(1, length - 1):
            self._finished.add(chunk)
            del self._partial[chunk]

    def validate(self) -> None:
        """Left out: it would find it at once."""


class _AppliesEarly(Server):
    """Under BSP each micro-batch is applied as it comes, not all of a clock at once."""

    def _hold(self, push: Push, at: int) -> None:
        if push.clock < self._clocks.complete or not self._clocks.arrive(at, push.clock, push.ends):
            return
        for name, part in push.tables.items():
            self.tables[name].push(part.keys, part.gradients)
        for history in self._histories:
            history.add(push.name)


class _AppliesWithoutLast(Server):
    """Under BSP a clock is applied when all but one of its micro-batches are there."""

    def _hold(self, push: Push, at: int) -> None:
        super()._hold(push, at)
        lanes = len(self._clocks._next)
        if self._held and len(self._held) >= lanes - 1 and self._held.keys() != {at}:
            for lane in range(lanes):
                self._clocks.arrive(lane, push.clock, False)
            for held in self._held.values():
                for name, part in held.tables.items():
                    self.tables[name].push(part.keys, part.gradients)
                for history in self._histories:
                    history.add(held.name)
            self._held.clear()

    def validate(self) -> None:
        """Left out: it would find it at once."""


class _ReusesNames(Client):
    """Two micro-batches share the name of a push."""

    def computed(self, name: BatchName, gradients: Any, figures: Any, now: float) -> list[Effect]:
        effects = super().computed(name, gradients, figures, now)
        for request in self._requests.values():
            if isinstance(request.message, Push):
                request.message.name = BatchName(name.chunk, name.batch // 2)
        return effects


class _NamesNotSaved(Server):
    def _names_of(self, number: int, history: History) -> dict[str, Any]:
        return super()._names_of(number, History())


class _RecordAfterRows(Coordinator):
    """A checkpoint lists what was learnt when it is committed, not when the rows were taken."""

    def _commit_if_complete(self) -> list[Effect]:
        saving = self._checkpoints.at_hand
        if saving is not None and saving.record is not None:
            saving.record, saving.metrics = self.queue.record(), self._checkpoints._sink.state()
        return super()._commit_if_complete()


class _CountsAgain(Coordinator):
    """A report that is sent again is counted again."""

    def _report(self, sender: str, report: Report, now: float) -> list[Effect]:
        worker = next((w for w in self._workers.values() if w.incarnation == report.incarnation), None)
        if worker is not None and report.number == worker.number:
            for figures in report.figures:
                if figures is not None:
                    self._checkpoints._sink.add(figures)
        return super()._report(sender, report, now)


class _AnswersStalePulls(Server):
    """Under BSP a pull of a clock that is applied here, but not everywhere, gets the rows after it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._keep_before = False


class _SameNumbers(Client):
    """Answers to an earlier incarnation fit this one's requests."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._ids, self._numbers = itertools.count(1), itertools.count(1)


class _SameRouting(Coordinator):
    """Workers of an earlier run can push to the servers of this one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"routing": 1})


class _SavesTooLate(WorkQueue):
    """A BSP save is named for a clock of which micro-batches are already granted."""

    @property
    def highest(self) -> int:
        return self.frontier


class _SavesAgain(Server):
    """A save that was committed, and comes again, is done again."""

    def _committed(self, committed: Committed) -> list[Effect]:
        effects = super()._committed(committed)
        self._checkpoint = 0
        return effects


class _ForgetsFailedSave(Server):
    """What a checkpoint had that failed is not in the next one."""

    def _give_up(self, saving: Any) -> None:
        """Nothing."""


class _NeverTakesBelow(Client):
    """A worker whose micro-batches all wait takes no earlier one, which a dead worker has left."""

    def _blocked(self, now: float) -> bool:
        return False


class _SavesTooEarly(Server):
    """Under BSP a save is taken at once, not at its clock."""

    def _save(self, sender: str, save: Save) -> list[Effect]:
        return super()._save(sender, msgspec.structs.replace(save, clock=None))


class _IgnoresEnds(Server):
    """A lane's end, which only reading tells, is not noticed."""

    def _push(self, sender: str, push: Push) -> list[Effect]:
        return super()._push(sender, msgspec.structs.replace(push, ends=False))


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A bug; ``theme`` are the faults that show it most, ``found_by`` the checks that may."""

    machines: Machines
    found_by: frozenset[str]
    theme: str | None = None


def _planted(found_by: str, theme: str | None = None, **machines: Any) -> Planted:
    return Planted(machines=Machines(**machines), theme=theme, found_by=frozenset(found_by.split(", ")))


PLANTED: dict[str, Planted] = {
    "skips the deduplication": _planted("checkpoint", server=_NoDeduplication),
    "bound is one too many": _planted("staleness", server=_BoundOneTooMany),
    "acknowledges before applying": _planted("checkpoint", server=_AcknowledgesFirst),
    "forgets what a dead worker held": _planted("deadline, error", queue=_ForgetsLost),
    "marks a chunk as finished too early": _planted("figures", queue=_FinishesEarly),
    "applies each micro-batch of a BSP clock": _planted("bsp pull, bsp oracle", server=_AppliesEarly),
    "applies a BSP clock without its last": _planted("staleness, checkpoint", server=_AppliesWithoutLast),
    "reuses the name of a push": _planted("checkpoint, staleness", client=_ReusesNames),
    "saves no names": _planted("checkpoint", server=_NamesNotSaved),
    "lists what was learnt after the rows": _planted("checkpoint", coordinator=_RecordAfterRows),
    "counts a report twice": _planted("figures", coordinator=_CountsAgain),
    "answers stale BSP pulls": _planted("bsp pull", "deaths", server=_AnswersStalePulls),
    "numbers requests alike in each incarnation": _planted(
        "deadline, staleness, ValueError, exactly once", "returns", client=_SameNumbers
    ),
    "has one routing version for all runs": _planted(
        "checkpoint, histogram, bsp oracle, staleness", "ends", coordinator=_SameRouting
    ),
    "saves a clock that is under way": _planted("save, figures", "saves", queue=_SavesTooLate),
    "saves again what is committed": _planted("disk", "saves", server=_SavesAgain),
    "forgets what a failed save had": _planted("checkpoint", "saves", server=_ForgetsFailedSave),
    "never takes what is below": _planted("error, deadline", "deaths", client=_NeverTakesBelow),
    "saves before its clock": _planted("checkpoint", server=_SavesTooEarly),
    "ignores the end of a lane": _planted("error, deadline", server=_IgnoresEnds),
}
