"""Drives the machines on a virtual clock: roles, what they ask of their driver, and the faults that befall them.

One ``Cluster`` is one life: it ends when the run is over or everything is killed. ``run.py`` puts lives in a row.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penstock.parameter_server.client import Client, Timing
from penstock.parameter_server.consistency import Consistency
from penstock.parameter_server.coordinator import Coordinator, Patience
from penstock.parameter_server.effects import Commit, Compute, Effect, End, Prepare, Read, Rejoin, Send, WriteRows
from penstock.parameter_server.history import History
from penstock.parameter_server.member import Manners, Member
from penstock.parameter_server.messages import BatchName, Figures, Message, Push, Record, Saved, StopRequest
from penstock.parameter_server.server import Server
from penstock.parameter_server.work import WorkQueue
from tests.simulation.checks import Checks, Wrong
from tests.simulation.faults import Faults, Trouble
from tests.simulation.model import DIMS, SEGMENTS, Data, Store, gradients
from tests.simulation.network import Network

TICK_S = 0.2
TIMING = Timing(retry_s=0.6, silence_s=7.5, wait_s=40.0, poll_s=0.2)
PATIENCE = Patience(retry_s=0.6, silence_s=7.5, gone_s=1.5, gather_s=20.0, load_s=20.0, save_s=90.0)
MANNERS = Manners(retry_s=0.6, beat_s=0.6, silence_s=7.5)
LIMIT_S = 240.0
"""A life is over by then, or something waits for ever."""


@dataclass(frozen=True)
class Machines:
    """The classes under test; planted bugs are subclasses of them."""

    coordinator: type[Coordinator] = Coordinator
    queue: type[WorkQueue] = WorkQueue
    server: type[Server] = Server
    client: type[Client] = Client


@dataclass(frozen=True)
class Settings:
    """Of all lives of a run."""

    family: int
    data: Data
    consistency: Consistency
    depth: int
    known: bool
    """Whether the lengths of chunks are known beforehand."""
    machines: Machines


@dataclass
class Manifest:
    """A committed checkpoint."""

    rows: dict[str, dict[int, np.ndarray]]
    names: list[dict[str, Any]]
    record: Record
    metrics: frozenset[BatchName]


@dataclass
class Disk:
    """What outlives the cluster."""

    folders: dict[str, dict[str, dict[str, tuple[Any, Any]]]] = field(default_factory=dict)
    committed: Manifest | None = None
    valid: set[str] = field(default_factory=set)
    """Folders of committed checkpoints."""


class Metrics:
    """The sink: which micro-batches were counted, and how many rows."""

    def __init__(self, before: Iterable[BatchName]) -> None:
        self.before = frozenset(before)
        self.names = set(self.before)

    def add(self, figures: Figures) -> None:
        name = BatchName(*map(int, figures.bins))
        if name in self.names:
            raise Wrong("figures", f"{name} is counted twice")
        self.names.add(name)

    def state(self) -> frozenset[BatchName]:
        return frozenset(self.names)


class Role:
    """A process: it may be paused, and dies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = 0.0
        self.life = 0
        """Counts incarnations; what was begun in an earlier one is dropped."""
        self.ticks = 0
        """Counts chains of ticks; the last one goes on."""
        self.half_push = False
        """It dies in the middle of its next push."""
        self.ended: str | None = ""
        """Why it ended, where it did so by itself."""
        self.member: Member | None = None
        self.machine: Any = None


Event = tuple[float, int, Role, int | None, Callable[..., Any], tuple[Any, ...]]
"""When, which of those at that time, of whom, in which of its lives, what."""


class Cluster:
    """One life, from ``now`` on; ``run`` gives how the life ended."""

    def __init__(
        self,
        settings: Settings,
        disk: Disk,
        faults: Faults,
        r: random.Random,
        *,
        servers: int,
        workers: int,
        now: float,
        survivors: Iterable[Role] = (),
        pending: Iterable[Event] = (),
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.settings, self.disk, self.faults, self.r = settings, disk, faults, r
        self.now = self.began = now
        self.network = Network(r, faults)
        self.trace = trace
        self.heap: list[Event] = []
        self.seq = itertools.count()
        self.roles: dict[str, Role] = {}
        self.checks = Checks(settings.family, settings.data, settings.consistency, self)
        self.excused: set[str] = set()
        self.killed_server: tuple[str, float] | None = None
        self.crashed = self.doomed = False
        self.over_at: float | None = None
        self.events = 0
        committed = disk.committed
        self.fresh = committed is None
        data = settings.data
        lengths = [len(chunk) if settings.known else None for chunk in data.chunks]
        queue = settings.machines.queue(
            lengths,
            passes=data.passes,
            lanes=data.lanes,
            bound=settings.consistency.bound,
            ahead=r.choice([0, 1, 2]),
            record=committed.record if committed else None,
        )
        self.metrics = Metrics(committed.metrics if committed else ())
        coordinator = self._add(Role("coordinator"))
        self.coordinator = coordinator.machine = settings.machines.coordinator(
            spec={},
            n_servers=servers,
            segments=SEGMENTS,
            consistency=settings.consistency,
            queue=queue,
            sink=self.metrics,
            routing=r.randrange(1, 1 << 31),
            checkpoint_every_s=faults.every_s,
            patience=PATIENCE,
            now=now,
        )
        self.servers = [self._add(Role(f"server-{i}")) for i in range(servers)]
        self.stores: dict[str, dict[str, Store]] = {}
        self.workers: list[Role] = []
        for survivor in survivors:
            # A worker of the life before, which does not know that it is over.
            self.roles[survivor.name] = survivor
            self.workers.append(survivor)
            survivor.paused = max(survivor.paused, now + r.choice([0.0, 0.0, 1.0, 3.0]))
            self._begin_ticks(survivor)
        for when, _, role, life, do, args in pending:
            self.at(max(when, now), role, getattr(self, do.__name__), *args, life=life)
        for role in self.servers:
            self._join(role)
        for i in range(workers):
            if f"worker-{i}" not in self.roles:
                self._add_worker(i)
        for trouble in faults.troubles:
            self.at(now + trouble.at, coordinator, self._trouble, trouble)
        # Whatever happened: after the last fault there is a worker.
        self.at(now + faults.until + 1.0, coordinator, self._revive)

    # The loop.

    def at(self, when: float, role: Role, do: Callable[..., Any], *args: Any, life: int | None = None) -> None:
        """Call later, unless the role has died by then; while it is paused, after that."""
        heapq.heappush(self.heap, (when, next(self.seq), role, life, do, args))

    def run(self) -> str:
        """Returns done, stopped, failed or crashed."""
        while self.heap and not self.crashed:
            when, seq, role, life, do, args = heapq.heappop(self.heap)
            if role.paused > when:
                heapq.heappush(self.heap, (role.paused, seq, role, life, do, args))
                continue
            self.now = when
            if self.over_at is not None and when > self.over_at + 20.0:
                break
            if when > self.began + LIMIT_S:
                raise Wrong("deadline", f"not over after {LIMIT_S:.0f} s: {self.waiting()}")
            if not role.alive or (life is not None and life != role.life):
                continue
            do(*args)
            self.events += 1
            if self.events % 16 == 0:
                self.validate()
        self.validate()
        if self.crashed:
            return "crashed"
        if self.over_at is None:
            raise Wrong("deadline", f"nothing happens any more: {self.waiting()}")
        for role in self.roles.values():
            if role.alive and role.ended == "" and role.paused < self.now and role.name != "coordinator":
                raise Wrong("deadline", f"{role.name} goes on after the end of the run")
        self.checks.end_of_life()
        return self.coordinator.phase

    def pending(self, roles: list[Role]) -> list[Event]:
        """What some roles had begun when the cluster was cut off."""
        return [event for event in sorted(self.heap) if event[2] in roles and event[4] != self._tick]

    def validate(self) -> None:
        for role in self.roles.values():
            for state in (role.machine, role.member) if role.alive else ():
                try:
                    if state is not None:
                        state.validate()
                except AssertionError as error:
                    raise Wrong("validate", f"{role.name}: {error!r}") from error

    def waiting(self) -> str:
        """Who waits for what."""
        queue = self.coordinator.queue
        parts = [f"coordinator {self.coordinator.phase}, frontier {queue.frontier}, ceiling {queue.ceiling}"]
        for role in self.workers:
            if isinstance(role.machine, Client) and role.alive:
                items = [(tuple(i.grant.name), i.grant.clock, i.at.value) for i in role.machine._items.values()]
                parts.append(f"{role.name} ended={role.ended!r} {items}")
        servers = [role for role in self.servers if role.machine is not None]
        parts += [f"{role.name} complete {role.machine._clocks.complete}" for role in servers]
        return "; ".join(parts)

    # Roles.

    def _add(self, role: Role) -> Role:
        self.roles[role.name] = role
        self._begin_ticks(role)
        return role

    def _begin_ticks(self, role: Role) -> None:
        role.ticks += 1
        self.at(self.now + self.r.random() * TICK_S, role, self._tick, role, role.ticks)

    def _add_worker(self, number: int) -> None:
        role = self._add(Role(f"worker-{number}"))
        self.workers.append(role)
        self.at(self.now + self.r.choice([0.0, 0.0, 1.0, 4.0]), role, self._join, role)

    def _join(self, role: Role) -> None:
        role.life += 1
        role.machine, role.ended = None, ""
        kind = "server" if role in self.servers else "worker"
        incarnation = self.r.randrange(1 << 31)
        role.member = Member(role=kind, name=role.name, incarnation=incarnation, manners=MANNERS, now=self.now)
        self.perform(role, role.member.start(self.now))

    def _tick(self, role: Role, chain: int) -> None:
        if chain != role.ticks:
            return
        if role.ended == "":
            if role.member is not None:
                self.perform(role, role.member.tick({}, self.now))
            if role.ended == "" and role.machine is not None and role not in self.servers:
                self.perform(role, role.machine.tick(self.now))
        self.at(self.now + TICK_S, role, self._tick, role, chain)

    def deliver(self, role: Role, sender: str, message: Message) -> None:
        if self.trace:
            self.trace(f"{self.now:8.3f} {sender} → {role.name}  {_short(message)}")
        if role.name == "coordinator":
            if isinstance(message, Saved) and message.error not in (None, "disk full"):
                raise Wrong("save", f"{message.error}")
            self.perform(role, role.machine.handle(sender, message, self.now))
            return
        if role.ended != "" or role.member is None:
            return
        if sender == "coordinator":
            member, was = role.member, role.member.welcome
            self.perform(role, member.handle(message, self.now))
            if was is None and member.welcome is not None:
                if role in self.servers:
                    self.at(self.now + self._loads(), role, self._load, role, life=role.life)
                else:
                    self._start_client(role)
                return
        if role.machine is not None and role.ended == "":
            self.perform(role, role.machine.handle(sender, message, self.now))

    def _start_client(self, role: Role) -> None:
        w = role.member.welcome if role.member else None
        assert w is not None
        role.machine = self.settings.machines.client(
            role.name,
            incarnation=w.incarnation,
            servers=w.servers,
            owners=w.owners,
            routing=w.routing,
            dims=DIMS,
            depth=self.settings.depth,
            clocked=self.settings.consistency.bound is not None,
            timing=TIMING,
            now=self.now,
        )
        self.perform(role, role.machine.start(self.now))

    def _load(self, role: Role) -> None:
        w = role.member.welcome if role.member else None
        assert w is not None
        index, data = w.servers.index(role.name), self.settings.data
        stores = {table: Store(table, data.universe) for table in DIMS}
        server = self.settings.machines.server(
            role.name,
            index=index,
            incarnation=w.incarnation,
            tables=stores,
            consistency=self.settings.consistency,
            owners=w.owners,
            routing=w.routing,
            lanes=w.lanes,
        )
        committed = self.disk.committed
        if committed is not None:
            for table, rows in committed.rows.items():
                mine = [key for key in sorted(rows) if w.owners[key >> 60] == index]
                if mine:
                    stores[table].load(np.array(mine, np.uint64), np.stack([rows[key] for key in mine]))
            names = [(part["segments"], History.from_state(part["names"])) for part in committed.names]
            server.restore(committed.record, names)
        role.machine = server
        self.stores[role.name] = stores
        assert role.member is not None
        self.perform(role, role.member.ready(self.now))

    # Effects.

    def perform(self, role: Role, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.send(role, effect.to, effect.message)
                case Read():
                    self.checks.grant(effect.grant)
                    self.at(self.now + self._takes(role, 0.1), role, self._read, role, effect, life=role.life)
                case Compute():
                    self.checks.compute(role, effect)
                    name = effect.grant.name
                    batch = self.settings.data.batch(name)
                    assert batch is not None
                    found = gradients(name, batch, effect.rows)
                    figures = Figures(
                        rows=batch.rows,
                        scored=batch.rows,
                        loss=0.0,
                        bins=np.array(name, np.int64),
                        sums=np.empty(0),
                    )
                    self.at(
                        self.now + self._takes(role, self.faults.compute_s),
                        role,
                        self._computed,
                        role,
                        name,
                        found,
                        figures,
                        life=role.life,
                    )
                case WriteRows():
                    self.at(self.now + self.r.random(), role, self._write, role, effect, life=role.life)
                case Prepare():
                    self.at(self.now + 0.05, role, self._prepare, effect)
                case Commit():
                    self.at(self.now + self.r.random() * 0.3, role, self._commit, effect)
                case Rejoin():
                    role.life += 1
                    role.machine = role.member = None
                    self.at(self.now + self.r.random(), role, self._join, role, life=role.life)
                case End():
                    self._ended(role, effect.error)

    def _loads(self) -> float:
        return self.faults.load_s * (0.5 + self.r.random())

    def _takes(self, role: Role, seconds: float) -> float:
        number = int(role.name.rpartition("-")[2])
        return seconds * (0.5 + self.r.random()) * self.faults.slow.get(number, 1.0)

    def send(self, role: Role, to: str, message: Message) -> None:
        target = self.roles.get(to)
        if target is None:
            return
        arrivals = self.network.arrivals(role.name, to, self.now)
        if self.trace and not arrivals:
            self.trace(f"{self.now:8.3f} {role.name} → {to}  {_short(message)}  LOST")
        for when in arrivals:
            self.at(when, target, self.deliver, target, role.name, message)

    def _read(self, role: Role, read: Read) -> None:
        name, data = read.grant.name, self.settings.data
        chunk = data.chunks[name.chunk % len(data.chunks)]
        batch = data.batch(name)
        if batch is None:
            effects = role.machine.batch_missing(name, len(chunk), self.now)
        else:
            last = name.batch == len(chunk) - 1
            keys = dict.fromkeys(DIMS, batch.keys)
            effects = role.machine.batch_ready(name, keys, last, len(chunk) if last else None, self.now)
        self.perform(role, effects)

    def _computed(self, role: Role, name: BatchName, found: Any, figures: Figures) -> None:
        effects = role.machine.computed(name, found, figures, self.now)
        if role.half_push:
            pushes = [e for e in effects if isinstance(e, Send) and isinstance(e.message, Push)]
            self.perform(role, list(self.r.sample(pushes, self.r.randrange(len(pushes) + 1))))
            self._crash(role)
            if self.r.random() < 0.5:
                self.at(self.now + self.r.uniform(0.1, 9.0), self.roles["coordinator"], self._reborn, role)
        else:
            self.perform(role, effects)
        self.crashed = self.doomed

    def _write(self, role: Role, write: WriteRows) -> None:
        error, files = None, {"server": role.name}
        if self._disk_is_full():
            error = "disk full"
        else:
            rows = write.rows
            if rows is None:
                stores = self.stores[role.name]
                rows = {t: s.copy_all() if write.full else s.copy_changed() for t, s in stores.items()}
            if write.folder in self.disk.valid:
                raise Wrong("disk", f"{role.name} writes into {write.folder}, which is committed")
            self.disk.folders.setdefault(write.folder, {})[role.name] = dict(rows)
        self.perform(role, role.machine.written(write.checkpoint, files, error))

    def _prepare(self, prepare: Prepare) -> None:
        if self._disk_is_full():
            effects = self.coordinator.not_prepared(prepare.checkpoint, "disk full", self.now)
        else:
            full = self.disk.committed is None or self.r.random() < 0.3
            folder = f"{self.began:.3f}/{prepare.checkpoint}"
            effects = self.coordinator.save(prepare.checkpoint, folder, full=full, now=self.now)
        self.perform(self.roles["coordinator"], effects)

    def _commit(self, commit: Commit) -> None:
        error = None
        if self._disk_is_full():
            error = "disk full"
        else:
            before = self.disk.committed
            rows: dict[str, dict[int, np.ndarray]] = {table: {} for table in DIMS}
            if not commit.full:
                assert before is not None
                rows = {table: dict(old) for table, old in before.rows.items()}
            for file in commit.files:
                for table, (keys, words) in self.disk.folders[commit.folder][file["server"]].items():
                    rows[table].update(zip(keys.tolist(), words, strict=True))
            manifest = Manifest(rows, commit.names, commit.record, commit.metrics)
            self.checks.checkpoint(manifest, commit)
            self.disk.committed = manifest
            self.disk.valid.add(commit.folder)
        # What is on disk may be committed although the coordinator does not live to hear of it.
        self.at(self.now + 0.1, self.roles["coordinator"], self._committed, commit.checkpoint, error)

    def _committed(self, checkpoint: int, error: str | None) -> None:
        self.perform(self.roles["coordinator"], self.coordinator.committed(checkpoint, error, self.now))

    def _disk_is_full(self) -> bool:
        if self.now - self.began < self.faults.until and self.r.random() < self.faults.disk_full:
            self.excused.add("could not be saved")
            return True
        return False

    def _ended(self, role: Role, error: str | None) -> None:
        if self.trace:
            self.trace(f"{self.now:8.3f} {role.name} ends: {error}")
        role.ended = error
        if role.name == "coordinator":
            self.over_at = self.now
            self.checks.end(error)
        elif role in self.workers and self.over_at is None:
            if error is not None:
                self.checks.expected(error)
            self.at(self.now + self.r.uniform(0.2, 2.0), role, self._restart, role)

    def _restart(self, role: Role) -> None:
        if self.over_at is None and role.ended != "":
            self._join(role)

    # Troubles.

    def _trouble(self, trouble: Trouble) -> None:
        if self.over_at is not None:
            return
        if self.trace:
            self.trace(f"{self.now:8.3f} TROUBLE {trouble}")
        worker = self.workers[trouble.who % len(self.workers)]
        server = self.servers[trouble.other % len(self.servers)]
        coordinator = self.roles["coordinator"]
        until = self.now + trouble.seconds
        match trouble.what:
            case "crash":
                self._crash(worker)
                self.at(until, coordinator, self._reborn, worker)
            case "return":
                self._crash(worker)
                self.at(self.now + self.r.choice([0.01, 0.1, 0.5]), coordinator, self._reborn, worker)
            case "death":
                self._crash(worker)
            case "half push":
                worker.half_push = True
            case "pause":
                worker.paused = until
            case "partition":
                other = self.r.choice([server, coordinator])
                self.network.cut(worker.name, other.name, until)
                self.excused.update((worker.name, other.name) if trouble.seconds > 2.0 else ())
            case "join":
                if len(self.workers) < 5:
                    self._add_worker(1 + max(int(w.name.rpartition("-")[2]) for w in self.workers))
            case "leave":
                if worker.machine is not None and worker.alive and worker.ended == "":
                    self.excused.add("no worker")
                    self.perform(worker, worker.machine.leave(None))
            case "kill server":
                server.alive = False
                self.excused.update((server.name, "waited"))
                self.killed_server = server.name, self.now
            case "crash all":
                # Half of the times just when a worker has sent its pushes.
                self.doomed = self.r.random() < 0.5
                self.crashed = not self.doomed
            case "stop":
                self.excused.add("stopped by request")
                for i in range(4):
                    stop = StopRequest(id=i, reason="stopped by request")
                    self.at(self.now + i, coordinator, self.deliver, coordinator, "observer", stop)
            case "pause long":
                server.paused = until
                self.excused.update((server.name, "waited"))
            case "cut server":
                self.network.cut(server.name, "coordinator", until)
                self.excused.update((server.name, "coordinator", "waited"))
            case "pause coordinator":
                coordinator.paused = until
                self.excused.update(("server", "coordinator"))

    def _crash(self, worker: Role) -> None:
        worker.alive = worker.half_push = False
        self.excused.add("no worker")
        if self.r.random() < 0.5:  # its connections break, at once
            self.perform(self.roles["coordinator"], self.coordinator.disconnected(worker.name, self.now))
            for server in self.servers:
                if server.machine is not None:
                    server.machine.forget(worker.name)

    def _reborn(self, worker: Role) -> None:
        if self.over_at is None and not worker.alive:
            worker.alive = True
            self._join(worker)
            self._begin_ticks(worker)

    def _revive(self) -> None:
        if not any(worker.alive for worker in self.workers):
            self._reborn(self.workers[0])


def _short(message: Message) -> str:
    text = repr(message).replace("\n", "")
    return text if len(text) < 300 else text[:300] + " ..."
