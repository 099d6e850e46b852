"""The coordinator as a state machine: who takes part, who learns what, when to save, and when it is over.

It sees no row and no gradient. A worker that falls silent loses its micro-batches to others; a server that does
ends the run, since its rows are gone. It does no I/O: making folders and committing manifests are effects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.errors import DataError, ModelError
from penstock.parameter_server.checkpoints import Checkpoints, Sink
from penstock.parameter_server.consistency import Consistency
from penstock.parameter_server.effects import Effect, End, Send
from penstock.parameter_server.messages import (
    Beat,
    Committed,
    Expelled,
    Failure,
    Heartbeat,
    Join,
    LaneStart,
    Leave,
    Message,
    Nudge,
    Ready,
    Report,
    SaveAccepted,
    Saved,
    Status,
    StatusQuery,
    Stop,
    StopRequest,
    Welcome,
    Work,
)
from penstock.parameter_server.routing import place
from penstock.parameter_server.status import hottest, skew
from penstock.parameter_server.work import WorkQueue

__all__ = ["Coordinator", "Patience"]

_EVENTS_KEPT = 200


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds."""

    retry_s: float = 1.0
    silence_s: float = 5.0
    """A role that says nothing for so long is gone."""
    gone_s: float = 1.5
    """The same, where its connection broke."""
    gather_s: float = 60.0
    """For all servers to come, and a first worker."""
    load_s: float = 3600.0
    """For servers to load a checkpoint; they are heard of meanwhile."""
    save_s: float = 3600.0
    """For servers to save one."""


@dataclass(slots=True)
class _Member:
    """A server or a worker that takes part."""

    name: str
    sender: str
    incarnation: int
    address: str
    heard: float
    gone: float | None = None
    """When its connection broke."""
    ready: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    # Of workers.
    number: int = 0
    answer: Work | None = None
    hungry: bool = False
    waits: dict[str, float] = field(default_factory=dict)


class Coordinator:
    """Of one run: ``n_servers`` servers, any number of workers."""

    def __init__(
        self,
        *,
        spec: dict[str, Any],
        n_servers: int,
        segments: int,
        consistency: Consistency,
        queue: WorkQueue,
        sink: Sink,
        routing: int = 1,
        checkpoint_every_s: float | None = None,
        patience: Patience | None = None,
        now: float = 0.0,
    ) -> None:
        """``spec`` is handed to everybody who joins; nothing here looks into it. ``routing`` must differ from that
        of any earlier run: a worker of one may still push to servers at the same addresses.

        Raises:
            ModelError: a BSP run cannot go on where the queue's record leaves off.
        """
        if consistency.together and not _aligned(queue.starts()):
            raise ModelError(
                "the checkpoint was not written by a BSP run: its lanes have come to different clocks; resume "
                "with the consistency that it was written with"
            )
        self.queue = queue
        self.phase = "gathering"
        """gathering, loading, training, saving, and then done, stopped or failed."""
        self.events: deque[tuple[float, str]] = deque(maxlen=_EVENTS_KEPT)
        self.rows = 0
        self._events_total = 0
        self._spec, self._n_servers, self._segments = spec, n_servers, segments
        self._consistency = consistency
        self._checkpoints = Checkpoints(
            queue, sink, together=consistency.together, every_s=checkpoint_every_s, now=now
        )
        self._patience = patience if patience is not None else Patience()
        self._began = self._loading_since = self._trained_since = now
        self._routing = routing
        self._trains = False
        self._learnt_at: float | None = None
        self._ticked = now
        self._error: str | None = None
        self._servers: dict[str, _Member] = {}
        self._workers: dict[str, _Member] = {}
        self._expelled: set[int] = set()
        self._welcome: Welcome | None = None
        self._stop_reason: str | None = None
        self._without_workers = now

    @property
    def welcome(self) -> Welcome | None:
        """What everybody is told who joins, once all servers are there."""
        return self._welcome

    @property
    def over(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.phase in ("done", "stopped", "failed")

    def handle(self, sender: str, message: Message, now: float) -> list[Effect]:
        """Take a message."""
        match message:
            case StatusQuery():
                return [Send(sender, Status(id=message.id, status=self.status(now)))]
            case _ if self.over:
                return [Send(sender, Stop(error=self._error))]
            case Join():
                return self._join(sender, message, now)
            case Ready():
                return self._ready(sender, message, now)
            case Heartbeat():
                return self._heartbeat(sender, message, now)
            case Report():
                return self._report(sender, message, now)
            case Failure():
                return self._failure(sender, message, now)
            case Leave():
                return self._leave(sender, message, now)
            case SaveAccepted() | Saved():
                return self._save_answer(sender, message, now)
            case StopRequest():
                return self._stop_request(message, now)
        return []

    def disconnected(self, sender: str, now: float) -> list[Effect]:
        """The connection of a role broke; it has a moment to come back."""
        for member in [*self._servers.values(), *self._workers.values()]:
            if member.sender == sender and member.gone is None:
                member.gone = now
        return []

    def tick(self, now: float) -> list[Effect]:
        """Call every tenth of a second or so."""
        if self.over:
            return []
        if now - self._ticked >= self._patience.retry_s:
            # This process was stopped for a while: what it did not hear says nothing of others.
            for member in [*self._servers.values(), *self._workers.values()]:
                member.heard = now
        self._ticked = now
        effects = self._look_for_silence(now)
        if self.over:
            return effects
        waited = now - self._began
        if self.phase == "gathering" and waited >= self._patience.gather_s:
            came = ", ".join(self._servers) or "none"
            return self._fail(f"waited {waited:.0f} s for {self._n_servers} servers; came: {came}", now)
        if self.phase == "loading" and now - self._loading_since >= self._patience.load_s:
            late = ", ".join(server.name for server in self._servers.values() if not server.ready)
            return self._fail(f"not ready after {self._patience.load_s:.0f} s: {late}", now)
        if self.phase == "training" and not self._workers:
            alone = now - self._without_workers
            if alone >= self._patience.gather_s:
                return effects + self._fail(f"no worker took part for {alone:.0f} s", now)
        effects += self._look_after_checkpoint(now)
        if self.phase == "training" and self._checkpoints.due(now) and not self.queue.finished:
            effects += self._checkpoints.prepare(final=False)
        return effects

    def save(self, checkpoint: int, folder: str, *, full: bool, now: float) -> list[Effect]:
        """The folder of a ``Prepare`` is made: ask all servers to save."""
        if self.over or not self._checkpoints.prepared(checkpoint, now):
            return []
        self._checkpoints.begin(checkpoint, folder, full=full, final=self.phase == "saving", now=now)
        return self._checkpoints.ask(self._reached(), now)

    def not_prepared(self, checkpoint: int, error: str, now: float) -> list[Effect]:
        """The folder of a ``Prepare`` cannot be made."""
        if self.over or not self._checkpoints.prepared(checkpoint, now):
            return []
        return self._no_checkpoint(error, now)

    def committed(self, checkpoint: int, error: str | None, now: float) -> list[Effect]:
        """The manifest of a ``Commit`` is written, or could not be."""
        saving = self._checkpoints.at_hand
        if self.over or saving is None or saving.save.checkpoint != checkpoint:
            return []
        if error is not None:
            return self._no_checkpoint(error, now)
        self._checkpoints.end(valid=True)
        committed = Committed(checkpoint=checkpoint, record=saving.record)
        effects: list[Effect] = [Send(server.sender, committed) for server in self._servers.values()]
        if saving.save.final:
            return effects + self._end("done", None)
        if self._stop_reason is not None:
            return effects + self._end("stopped", f"stopped by {self._stop_reason}")
        self._event(now, f"checkpoint {checkpoint}")
        return effects + self._save_at_the_end(now)

    def status(self, now: float) -> dict[str, Any]:
        """How the cluster stands, in plain values."""
        counts = self.queue.counts()
        figures = [server.figures for server in self._servers.values()]
        segments = [0] * len(self._servers)
        if self._welcome is not None:
            for owner in self._welcome.owners.tolist():
                segments[owner] += 1
        return {
            "phase": self.phase,
            "seconds": self.seconds(now),
            "rows": self.rows,
            "done": self.queue.share,
            "clock": self.queue.frontier,
            "consistency": str(self._consistency),
            "routing": self._welcome.routing if self._welcome else None,
            "checkpoint": self._checkpoints.committed,
            "stopped_by": self._stop_reason,
            "servers": [
                {
                    "name": server.name,
                    "address": server.address,
                    "heartbeat_s": now - server.heard,
                    "segments": segments[number],
                    **server.figures,
                }
                for number, server in enumerate(self._servers.values())
            ],
            "workers": [
                {
                    "name": worker.name,
                    "heartbeat_s": now - worker.heard,
                    "waits": worker.waits,
                    **counts.get(worker.name, {}),
                    **worker.figures,
                }
                for worker in self._workers.values()
            ],
            "hot": hottest(figures),
            "skew": skew(figures),
            "events": [[at - self._trained_since, text] for at, text in self.events],
            "events_total": self._events_total,
            "now": now - self._trained_since,
        }

    def seconds(self, now: float) -> float:
        """Time of training: from the first worker's first report to the last push."""
        return (now if self._learnt_at is None else self._learnt_at) - self._trained_since if self._trains else 0.0

    def validate(self) -> None:
        """Check that the state fits together."""
        self.queue.validate()
        assert len(self._servers) <= self._n_servers
        self._checkpoints.validate()
        saving = self._checkpoints.at_hand is not None
        assert self.queue.ceiling is None or saving or self._stop_reason is not None

    # Who takes part.

    def _join(self, sender: str, join: Join, now: float) -> list[Effect]:
        if join.incarnation in self._expelled:
            return [Send(sender, Expelled(incarnation=join.incarnation))]
        members = self._servers if join.role == "server" else self._workers
        known = members.get(join.name)
        if known is not None and known.incarnation == join.incarnation:
            known.heard, known.sender, known.gone = now, sender, None
            return self._welcome_to(known) if self._is_welcome(join.role) else [Send(sender, Beat(silent={}))]
        member = _Member(join.name, sender, join.incarnation, join.address, now)
        if join.role == "server":
            return self._join_server(member, known, now)
        effects: list[Effect] = []
        if known is not None:
            effects = self._expel(known, "came back", now)
        self._workers[join.name] = member
        self._event(now, f"{join.name} joined")
        if self._is_welcome("worker"):
            return effects + self._welcome_to(member)
        return [*effects, Send(sender, Beat(silent={}))]

    def _is_welcome(self, role: str) -> bool:
        return self.phase in (("training", "saving", "loading") if role == "server" else ("training", "saving"))

    def _join_server(self, member: _Member, known: _Member | None, now: float) -> list[Effect]:
        if self.phase == "gathering":
            if known is None and len(self._servers) >= self._n_servers:
                return [Send(member.sender, Stop(error=f"the cluster has its {self._n_servers} servers already"))]
            if known is not None:
                self._expelled.add(known.incarnation)
            self._servers[member.name] = member
            self._event(now, f"{member.name} joined")
            if len(self._servers) == self._n_servers:
                return self._welcome_servers(now)
            return [Send(member.sender, Beat(silent={}))]
        if known is not None:
            return self._fail(f"{member.name} ({member.address}) came back without its rows", now)
        return [Send(member.sender, Stop(error=f"the cluster has its {self._n_servers} servers already"))]

    def _welcome_servers(self, now: float) -> list[Effect]:
        self.phase = "loading"
        self._loading_since = now
        # By name, so that the numbers of servers do not depend on who came first.
        self._servers = dict(sorted(self._servers.items()))
        self._welcome = Welcome(
            name="",
            incarnation=0,
            spec=self._spec,
            routing=self._routing,
            servers=list(self._servers),
            addresses=[server.address for server in self._servers.values()],
            owners=place(list(self._servers), self._segments),
            lanes=self.queue.starts(),
        )
        return [effect for server in self._servers.values() for effect in self._welcome_to(server)]

    def _welcome_to(self, member: _Member) -> list[Effect]:
        assert self._welcome is not None
        welcome = msgspec.structs.replace(self._welcome, name=member.name, incarnation=member.incarnation)
        return [Send(member.sender, welcome)]

    def _ready(self, sender: str, ready: Ready, now: float) -> list[Effect]:
        server = self._member(self._servers, sender, ready.incarnation, now)
        if server is None or self.phase != "loading":
            return []
        server.ready = True
        if not all(other.ready for other in self._servers.values()):
            return []
        self.phase = "training"
        self._trained_since = self._without_workers = now
        self._checkpoints.wait_from(now)
        effects = [effect for worker in self._workers.values() for effect in self._welcome_to(worker)]
        return effects + self._save_at_the_end(now)

    def _heartbeat(self, sender: str, heartbeat: Heartbeat, now: float) -> list[Effect]:
        member = self._member(self._servers, sender, heartbeat.incarnation, now) or self._member(
            self._workers, sender, heartbeat.incarnation, now
        )
        if member is None:  # it never joined, or has lost its place
            return [Send(sender, Expelled(incarnation=heartbeat.incarnation))]
        member.figures = heartbeat.figures or member.figures
        everybody = {**self._servers, **self._workers}.values()
        silent = {m.name: round(now - m.heard, 3) for m in everybody if now - m.heard > self._patience.retry_s}
        return [Send(sender, Beat(silent=silent))]

    def _failure(self, sender: str, failure: Failure, now: float) -> list[Effect]:
        for members in (self._servers, self._workers):
            if self._member(members, sender, failure.incarnation, now) is not None:
                return self._fail(failure.error, now)
        return []

    def _leave(self, sender: str, leave: Leave, now: float) -> list[Effect]:
        worker = self._member(self._workers, sender, leave.incarnation, now)
        if worker is None:
            return []
        if leave.error is not None and len(self._workers) == 1:
            return self._fail(leave.error, now)
        return self._expel(worker, leave.error or "left", now)

    def _member(self, members: dict[str, _Member], sender: str, incarnation: int, now: float) -> _Member | None:
        for member in members.values():
            if member.incarnation == incarnation:
                member.heard, member.sender, member.gone = now, sender, None
                return member
        return None

    def _look_for_silence(self, now: float) -> list[Effect]:
        for server in self._servers.values():
            if self._is_silent(server, now):
                return self._fail(
                    f"{server.name} ({server.address}) is gone: {now - server.heard:.1f} s without a heartbeat",
                    now,
                )
        effects: list[Effect] = []
        for worker in [worker for worker in self._workers.values() if self._is_silent(worker, now)]:
            effects += self._expel(worker, f"silent for {now - worker.heard:.1f} s", now)
        return effects

    def _is_silent(self, member: _Member, now: float) -> bool:
        if member.gone is not None and now - member.gone >= self._patience.gone_s:
            return True
        return now - member.heard >= self._patience.silence_s

    def _expel(self, worker: _Member, why: str, now: float) -> list[Effect]:
        del self._workers[worker.name]
        self._expelled.add(worker.incarnation)
        lost = self.queue.lost(worker.name)
        self._event(now, f"{worker.name} is out ({why}); {lost} of its micro-batches go to others")
        if not self._workers:
            self._without_workers = now
        return [Send(worker.sender, Expelled(incarnation=worker.incarnation)), *self._nudge(everybody=True)]

    # Work.

    def _report(self, sender: str, report: Report, now: float) -> list[Effect]:
        worker = self._member(self._workers, sender, report.incarnation, now)
        if worker is None:
            return [Send(sender, Expelled(incarnation=report.incarnation))]
        if not self._trains:
            # Until now workers were getting ready, which is not training.
            self._trains, self._trained_since = True, now
        if report.number <= worker.number:
            again = worker.answer is not None and report.number == worker.number
            return [Send(sender, worker.answer)] if again and worker.answer is not None else []
        try:
            for chunk, length in report.lengths.items():
                self.queue.ended(chunk, length)
        except DataError as error:
            return self._fail(f"{worker.name}: {error}", now)
        frontier = self.queue.frontier
        for name, figures in zip(report.done, report.figures, strict=True):
            grant = self.queue.done(worker.name, name)
            if grant is not None and figures is not None:
                self.rows += figures.rows
                self._checkpoints.count(grant, figures)
        worker.waits = report.waits
        training = self.phase == "training"
        grants = self.queue.take(worker.name, report.want, report.below) if training else []
        worker.hungry = len(grants) < report.want
        worker.number = report.number
        worker.answer = Work(number=report.number, grants=grants, finished=self.queue.finished)
        effects: list[Effect] = [Send(sender, worker.answer)]
        if report.lengths or self.queue.frontier > frontier:
            effects += self._nudge()
        return effects + self._commit_if_complete() + self._save_at_the_end(now)

    def _nudge(self, *, everybody: bool = False) -> list[Effect]:
        hungry = [worker for worker in self._workers.values() if worker.hungry or everybody]
        return [Send(worker.sender, Nudge()) for worker in hungry]

    # Checkpoints.

    def _reached(self) -> dict[str, str]:
        """Servers by name, and who they are reached as."""
        return {server.name: server.sender for server in self._servers.values()}

    def _look_after_checkpoint(self, now: float) -> list[Effect]:
        saving = self._checkpoints.at_hand
        if saving is None:
            return []
        if now - saving.began >= self._patience.save_s:
            late = ", ".join(name for name in self._servers if name not in saving.saved) or "the manifest"
            return self._no_checkpoint(f"not saved after {now - saving.began:.0f} s: {late}", now)
        if not saving.committing and now - saving.sent >= self._patience.retry_s:
            return self._checkpoints.ask(self._reached(), now)
        return []

    def _save_at_the_end(self, now: float) -> list[Effect]:
        if self.phase == "training" and self.queue.finished and not self._checkpoints.busy:
            self.phase = "saving"
            self._learnt_at = now
            self._event(now, "all is learnt")
            return self._checkpoints.prepare(final=True)
        if self._stop_reason is not None and self.phase == "training":
            return self._checkpoints.prepare(final=False)
        return []

    def _save_answer(self, sender: str, answer: SaveAccepted | Saved, now: float) -> list[Effect]:
        server = self._member(self._servers, sender, answer.incarnation, now)
        if server is None:
            return []
        error = self._checkpoints.answer(server.name, answer)
        effects: list[Effect] = []
        if self._checkpoints.all_accepted(self._n_servers) and self.queue.ceiling is not None:
            effects += self._lift_ceiling()
        if error is not None:
            return effects + self._no_checkpoint(f"{server.name}: {error}", now)
        return effects + self._commit_if_complete()

    def _commit_if_complete(self) -> list[Effect]:
        return self._checkpoints.commit_if_complete(self._reached())

    def _lift_ceiling(self) -> list[Effect]:
        if self._stop_reason is not None:
            return []  # no new work, but what lies below it must be done for a clock to be complete
        self.queue.ceiling = None
        return self._nudge()

    def _no_checkpoint(self, error: str, now: float) -> list[Effect]:
        """A checkpoint failed; training goes on, unless it was the end."""
        self._event(now, f"checkpoint failed: {error}")
        saving = self._checkpoints.end(valid=False)
        effects = self._lift_ceiling()
        if saving is not None:
            never = Committed(checkpoint=saving.save.checkpoint, record=None)
            effects += [Send(server.sender, never) for server in self._servers.values()]
        if self.phase == "saving" or self._stop_reason is not None:
            return effects + self._fail(f"the model could not be saved: {error}", now)
        return effects + self._save_at_the_end(now)

    # The end.

    def _stop_request(self, request: StopRequest, now: float) -> list[Effect]:
        if self._stop_reason is not None or self.phase == "saving":
            return []
        self._event(now, f"asked to stop by {request.reason}")
        if self.phase != "training":
            return self._end("stopped", f"stopped by {request.reason}")
        self._stop_reason = request.reason
        self.queue.ceiling = self.queue.highest if self._consistency.together else 0
        return self._save_at_the_end(now)

    def _fail(self, error: str, now: float) -> list[Effect]:
        self._event(now, error)
        return self._end("failed", error)

    def _end(self, phase: str, error: str | None) -> list[Effect]:
        self.phase, self._error = phase, error
        everybody: Sequence[_Member] = [*self._servers.values(), *self._workers.values()]
        return [*(Send(member.sender, Stop(error=error)) for member in everybody), End(error)]

    def _event(self, now: float, text: str) -> None:
        self.events.append((now, text))
        self._events_total += 1


def _aligned(starts: Sequence[LaneStart]) -> bool:
    """Whether there is a clock of which all lanes have done what is below it, and nothing else."""
    clock = max(start.clock for start in starts)
    return all(not start.beyond and start.clock == min(clock, start.end or clock) for start in starts)
