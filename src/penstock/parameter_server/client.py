"""A worker as a state machine: takes micro-batches, pulls their rows, pushes their gradients, reports.

Several micro-batches are under way at once: while one computes, the next is pulled, the one after it is read, and
the last is pushed. What waits longest for what is counted. It does no I/O: reading and computing are effects.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import msgspec
import numpy as np

from penstock.batch import Floats, Keys
from penstock.parameter_server.arrays import Split
from penstock.parameter_server.effects import Compute, Discard, Effect, End, Owners, Read, Rejoin, Send
from penstock.parameter_server.messages import (
    Ack,
    BatchName,
    Beat,
    Expelled,
    Failure,
    Figures,
    Grant,
    Held,
    Leave,
    Message,
    Nudge,
    Part,
    Pull,
    Push,
    Refused,
    Report,
    Rows,
    Stop,
    Work,
)

__all__ = ["Client", "Timing"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds."""

    retry_s: float = 1.0
    """An unanswered request is sent again after this."""
    silence_s: float = 5.0
    """A server that says nothing for so long is dead, or cut off from here."""
    wait_s: float = 120.0
    """A server that answers may take so long: a pull is held while somebody else's work is missing."""
    poll_s: float = 0.05
    """A worker without enough work asks again after this."""


BUSY = 6
"""Times more patience with a server that is alive."""


class _At(Enum):
    READING = "read"
    READ = "turn"
    PULLING = "pull"
    COMPUTING = "compute"
    PUSHING = "push"


@dataclass(slots=True, eq=False)
class _Item:
    """A micro-batch under way."""

    grant: Grant
    at: _At = _At.READING
    last: bool = False
    splits: dict[str, Split] = field(default_factory=dict)
    keys: dict[int, dict[str, Keys]] = field(default_factory=dict)
    """By server and table."""
    pulls: dict[int, int] = field(default_factory=dict)
    """Ids, by server."""
    rows: dict[str, Floats] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)
    """Servers that have not answered the pull or the push."""
    since: float = 0.0
    held_by: dict[int, Held] = field(default_factory=dict)
    figures: Figures | None = None


@dataclass(slots=True)
class _Request:
    """Sent to a server and not answered."""

    server: int
    message: Pull | Push
    item: _Item
    sent: float
    first_sent: float


class Client:
    """One worker; ``dims`` are those of the model's tables.

    ``depth`` micro-batches are under way at once, ``window`` of them between their pull and their push; the others
    are being read, or wait to be acknowledged. A larger window hides more of the wire, and computes from older
    rows.
    """

    def __init__(
        self,
        name: str,
        *,
        incarnation: int,
        servers: list[str],
        owners: Owners,
        routing: int,
        dims: Mapping[str, int],
        depth: int = 4,
        window: int = 2,
        clocked: bool = True,
        timing: Timing | None = None,
        now: float = 0.0,
    ) -> None:
        self.name, self.incarnation, self.servers = name, incarnation, servers
        self._owners, self._routing, self._dims = owners, routing, dict(dims)
        self._depth, self._window, self._clocked = depth, min(window, depth), clocked
        self._timing = timing if timing is not None else Timing()
        self._items: dict[BatchName, _Item] = {}
        self._ready: deque[_Item] = deque()
        self._computing: _Item | None = None
        self._requests: dict[int, _Request] = {}
        # Answers to an earlier incarnation may still come: they must not fit.
        first = ((incarnation & 0x7FFF_FFFF) << 32) + 1
        self._ids = itertools.count(first)
        self._heard = dict.fromkeys(range(len(servers)), now)
        self._done: list[_Item] = []
        self._lengths: dict[int, int] = {}
        self._report: Report | None = None
        """Sent, and not answered."""
        self._report_sent = 0.0
        self._numbers = itertools.count(first)
        self._wants_poll_at = now
        self._failure: Failure | None = None
        """Sent until the run is over."""
        self._failure_sent = now
        self._beaten = False
        self._over = False
        self._ticked = now
        self.waits: dict[str, float] = dict.fromkeys(("work", "read", "pull"), 0.0)
        """Seconds in which nothing was computed, by what it waited for."""
        self._idle_since: float | None = now
        self.silent: dict[str, float] = {}
        """Who has not been heard of by the coordinator, as it last said."""

    @property
    def under_way(self) -> int:
        """Micro-batches granted and not done."""
        return len(self._items)

    def start(self, now: float) -> list[Effect]:
        """Ask for the first work."""
        return self._report_now(now)

    def handle(self, sender: str, message: Message, now: float) -> list[Effect]:
        """Take a message."""
        if self._over:
            return []
        if sender in self.servers:
            self._heard[self.servers.index(sender)] = now
        effects: list[Effect] = []
        match message:
            case Work():
                effects = self._work(message, now)
            case Rows():
                effects = self._rows(message, now)
            case Ack():
                effects = self._ack(message, now)
            case Held():
                request = self._requests.get(message.id)
                if request is not None:
                    request.item.held_by[request.server] = message
            case Refused():
                effects = self._refused(message)
            case Nudge():
                effects = self._report_if_hungry(now)
            case Beat():
                self.silent, self._beaten = message.silent, True
            case Expelled() if message.incarnation == self.incarnation:
                effects = self._rejoin()
            case Stop():
                self._over = True
                effects = [End(message.error)]
        return effects

    def expects(self, name: BatchName) -> bool:
        """Whether a micro-batch is to be read, and is not there yet."""
        item = self._items.get(name)
        return item is not None and item.at is _At.READING

    def batch_ready(
        self, name: BatchName, keys: Mapping[str, Keys], last: bool, length: int | None, now: float
    ) -> list[Effect]:
        """A micro-batch is read: its distinct keys, rising, of each table; ``last`` of its chunk of ``length``."""
        if not self.expects(name):
            return []
        item = self._items[name]
        if length is not None:
            self._lengths[name.chunk] = length
        item.last = last
        for table, distinct in keys.items():
            item.splits[table] = Split(distinct, self._owners, len(self.servers))
        item.at, item.since = _At.READ, now
        return self._pull_next(now)

    def _pull_next(self, now: float) -> list[Effect]:
        """Pull for what is read and may be pulled for now, earliest clocks first."""
        effects: list[Effect] = []
        read = [item for item in self._items.values() if item.at is _At.READ]
        # One that is pushed does not count: on the way to each server, messages keep their order.
        active = [i.grant.clock for i in self._items.values() if i.at in (_At.PULLING, _At.COMPUTING)]
        for item in sorted(read, key=lambda i: (i.grant.clock, i.grant.name)):
            # What all others may be waiting for is not held back.
            if len(active) < self._window or (self._clocked and item.grant.clock < min(active)):
                active.append(item.grant.clock)
                effects += self._pull(item, now)
        return effects

    def _pull(self, item: _Item, now: float) -> list[Effect]:
        for table, split in item.splits.items():
            item.rows[table] = np.empty((len(split.keys), self._dims[table]), np.float32)
        item.at, item.since = _At.PULLING, now
        item.missing = set(range(len(self.servers)))
        clock = item.grant.clock if self._clocked else None
        effects: list[Effect] = []
        for server in range(len(self.servers)):
            asked = {table: split.of(server) for table, split in item.splits.items()}
            item.keys[server] = {table: own for table, own in asked.items() if len(own)}
            pull = Pull(id=next(self._ids), clock=clock, routing=self._routing, tables=item.keys[server])
            item.pulls[server] = pull.id
            effects.append(self._request(server, pull, item, now))
        return effects

    def batch_missing(self, name: BatchName, length: int, now: float) -> list[Effect]:
        """The chunk ended before this micro-batch: it has ``length``."""
        self._lengths[name.chunk] = length
        item = self._items.pop(name, None)
        effects: list[Effect] = [] if item is None else [Discard(item.grant, False)]
        return effects + self._report_if_hungry(now)

    def failed(self, error: str) -> list[Effect]:
        """Reading or computing went wrong, as it would for anybody."""
        self._failure = Failure(incarnation=self.incarnation, error=error)
        return [Send("coordinator", self._failure)]

    def leave(self, error: str | None) -> list[Effect]:
        """Take no part any more; others take what is under way."""
        self._over = True
        return [Send("coordinator", Leave(incarnation=self.incarnation, error=error)), End(error)]

    def computed(
        self, name: BatchName, gradients: Mapping[str, Floats], figures: Figures | None, now: float
    ) -> list[Effect]:
        """Gradients f32[n, dim] of the rows of ``Compute`` are there."""
        item = self._computing
        assert item is not None and item.grant.name == name
        self._computing, self._idle_since = None, now
        item.figures = figures
        item.at, item.since, item.rows = _At.PUSHING, now, {}
        item.missing = set(range(len(self.servers)))
        effects: list[Effect] = []
        for server in range(len(self.servers)):
            tables = {
                table: Part(keys=keys, gradients=item.splits[table].take(server, gradients[table]))
                for table, keys in item.keys[server].items()
            }
            push = Push(
                id=next(self._ids),
                name=name,
                lane=item.grant.lane,
                clock=item.grant.clock,
                ends=item.last and item.grant.final,
                version=item.versions[server],
                routing=self._routing,
                tables=tables,
            )
            self._request(server, push, item, now)
            effects.append(Send(self.servers[server], _without_keys(push, item.pulls[server])))
        return effects + self._pull_next(now) + self._compute_next(now)

    def tick(self, now: float) -> list[Effect]:
        """Call every few hundredths of a second: requests are sent again, deadlines looked at, work asked for."""
        if self._over:
            return []
        stopped = now - self._ticked
        if stopped >= self._timing.retry_s:
            # This process was stopped for a while: what it did not hear says nothing of others.
            self._heard = dict.fromkeys(self._heard, now)
            for request in self._requests.values():
                request.first_sent += stopped
        self._ticked = now
        error = self._deadline(now)
        if error is not None:
            return self.leave(error)
        effects: list[Effect] = []
        if self._failure is not None and now - self._failure_sent >= self._timing.retry_s:
            self._failure_sent = now
            effects.append(Send("coordinator", self._failure))
        for request in self._requests.values():
            if now - request.sent >= self._timing.retry_s:
                request.sent = now
                effects.append(Send(self.servers[request.server], request.message))
        if self._report is not None:
            if now - self._report_sent >= self._timing.retry_s:
                self._report_sent = now
                effects.append(Send("coordinator", self._report))
        elif now >= self._wants_poll_at and (self._hungry or self._done or self._lengths or self._blocked(now)):
            effects += self._report_now(now)
        return effects

    def reconnected(self, peer: str, now: float) -> list[Effect]:
        """The way to a peer is open again: what it did not answer is sent at once."""
        if peer == "coordinator":
            self._report_sent = now
            return [Send(peer, self._report)] if self._report is not None else []
        again = [r for r in self._requests.values() if self.servers[r.server] == peer]
        for request in again:
            request.sent = now
        return [Send(peer, request.message) for request in again]

    def validate(self) -> None:
        """Check that every micro-batch is in one state, and each unanswered request belongs to one."""
        for item in self._items.values():
            assert item.at is not _At.COMPUTING or item is self._computing or item in self._ready
        for request in self._requests.values():
            assert request.server in request.item.missing
            assert self._items.get(request.item.grant.name) is request.item

    # What comes from the coordinator.

    def _work(self, work: Work, now: float) -> list[Effect]:
        if self._report is None or work.number != self._report.number:
            return []
        self._report = None
        self._wants_poll_at = now + self._timing.poll_s
        effects: list[Effect] = []
        for grant in work.grants:
            if grant.name not in self._items:
                self._items[grant.name] = _Item(grant, since=now)
                effects.append(Read(grant))
        if self._done or (work.grants and self._hungry):
            effects += self._report_now(now)
        return effects

    def _report_if_hungry(self, now: float) -> list[Effect]:
        if self._report is None and (self._hungry or self._lengths):
            return self._report_now(now)
        return []

    def _report_now(self, now: float) -> list[Effect]:
        if self._report is not None:
            return []
        done, self._done = self._done, []
        lengths, self._lengths = self._lengths, {}
        blocked = self._blocked(now)
        below = min((i.grant.clock for i in self._items.values()), default=None) if blocked else None
        self._report = Report(
            incarnation=self.incarnation,
            number=next(self._numbers),
            done=[item.grant.name for item in done],
            lengths=lengths,
            want=1 if blocked else max(0, self._depth - len(self._items)),
            below=below,
            figures=[item.figures for item in done],
            waits={cause: round(seconds, 6) for cause, seconds in self.waits.items()},
        )
        self._report_sent = now
        self._wants_poll_at = now + self._timing.poll_s
        return [Send("coordinator", self._report)]

    @property
    def _hungry(self) -> bool:
        return len(self._items) < self._depth

    def _blocked(self, now: float) -> bool:
        """Whether all that it has waits for clocks that others must complete."""
        items = self._items.values()
        pulling = [item for item in items if item.at is _At.PULLING]
        stuck = all(item.held_by and now - item.since >= self._timing.poll_s for item in pulling)
        return (
            len(items) >= self._depth
            and bool(pulling)
            and stuck
            and all(item.at in (_At.PULLING, _At.READ) for item in items)
        )

    # What comes from servers.

    def _rows(self, rows: Rows, now: float) -> list[Effect]:
        request = self._requests.get(rows.id)
        if request is None or not isinstance(request.message, Pull):
            return []
        item, server = request.item, request.server
        asked = {table: (len(keys), self._dims[table]) for table, keys in item.keys[server].items()}
        if {table: values.shape for table, values in rows.tables.items()} != asked:
            return self.failed(f"{self.name}: {self.servers[server]} sent rows of other shapes than {asked}")
        del self._requests[rows.id]
        for table, values in rows.tables.items():
            item.splits[table].put(server, values, item.rows[table])
        item.versions[server] = rows.version
        item.missing.discard(server)
        item.held_by.pop(server, None)
        if item.missing:
            return []
        item.at = _At.COMPUTING
        self._ready.append(item)
        return self._compute_next(now)

    def _compute_next(self, now: float) -> list[Effect]:
        if self._computing is not None or not self._ready:
            return []
        item = min(self._ready, key=lambda i: (i.grant.clock, i.grant.name))
        self._ready.remove(item)
        self._computing = item
        if self._idle_since is not None:
            self.waits[self._cause(item)] += now - self._idle_since
            self._idle_since = None
        return [Compute(item.grant, item.rows)]

    def _cause(self, item: _Item) -> str:
        """What the worker waited for, while nothing was computed: what came last."""
        assert self._idle_since is not None
        return "pull" if item.since <= self._idle_since else "read" if len(self._items) > 1 else "work"

    def _ack(self, ack: Ack, now: float) -> list[Effect]:
        request = self._requests.get(ack.id)
        if request is None or not isinstance(request.message, Push):
            return []
        del self._requests[ack.id]
        item = request.item
        item.missing.discard(request.server)
        if item.missing:
            return []
        del self._items[item.grant.name]
        self._done.append(item)
        effects: list[Effect] = [Discard(item.grant, True), *self._pull_next(now)]
        # Half of the work is left: more of it comes in time, and a report tells of several that are done.
        if self._report is None and len(self._items) <= self._depth // 2:
            effects += self._report_now(now)
        return effects

    def _refused(self, refused: Refused) -> list[Effect]:
        if refused.id not in self._requests:
            return []
        # What is not refused for good is refused for its routing: who joins again is told the one that holds.
        return self.failed(refused.error) if refused.fatal else self._rejoin()

    def _rejoin(self) -> list[Effect]:
        self._over = True
        return [*(Discard(item.grant, False) for item in self._items.values()), Rejoin()]

    def _request(self, server: int, message: Pull | Push, item: _Item, now: float) -> Send:
        self._requests[message.id] = _Request(server, message, item, now, now)
        return Send(self.servers[server], message)

    def _deadline(self, now: float) -> str | None:
        for request in self._requests.values():
            name, kind = self.servers[request.server], type(request.message).__name__.lower()
            silent = now - max(self._heard[request.server], request.first_sent)
            # One that the coordinator hears is alive, and busy with something that takes long.
            patience_s = self._timing.silence_s * (1 if name in self.silent or not self._beaten else BUSY)
            if silent >= patience_s:
                beat = self.silent.get(name)
                heartbeat = "" if beat is None else f"; last heartbeat {beat:.1f} s ago"
                return f"{self.name}: {name} did not answer a {kind} within {silent:.1f} s{heartbeat}"
            waited = now - request.first_sent
            if waited >= self._timing.wait_s:
                held = request.item.held_by.get(request.server)
                if held is None:
                    return f"{self.name}: {name} did not serve a {kind} within {waited:.1f} s"
                lanes = ", ".join(map(str, held.lanes))
                return (
                    f"{self.name}: a pull for clock {request.item.grant.clock} waited {waited:.1f} s at {name} "
                    f"for clocks below {held.clock} in lanes {lanes}"
                )
        return None


def _without_keys(push: Push, pulled: int) -> Push:
    """The push as it is sent first: the server still has the keys. They are a third of all bytes."""
    none = np.empty(0, np.uint64)
    tables = {table: Part(keys=none, gradients=part.gradients) for table, part in push.tables.items()}
    return msgspec.structs.replace(push, pulled=pulled, tables=tables)
