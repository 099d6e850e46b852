"""The role of a server: joins, loads its rows, and serves until the coordinator says stop."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from penstock.engine.node import Access, Links, every, new_incarnation
from penstock.engine.spec import RunSpec
from penstock.errors import PenstockError
from penstock.models import (
    model_from_spec,
    read_manifest,
    read_rows,
    table_layouts,
    write_arrays,
    write_removed,
    write_rows,
)
from penstock.parameter_server.effects import Effect, End, Rejoin, WriteRows
from penstock.parameter_server.history import History
from penstock.parameter_server.member import Manners, Member
from penstock.parameter_server.messages import Failure, Message, Record, Welcome
from penstock.parameter_server.server import Server
from penstock.table import Table
from penstock.train.progress import memory_nbytes
from penstock.transport import Identity

__all__ = ["ServerSpec", "run_server"]

_log: Final = logging.getLogger("penstock.engine")

TICK_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """Where a server finds its cluster, and is found."""

    join: str
    access: Access
    name: str
    listen: str = "127.0.0.1:0"
    advertise: str | None = None
    """Address by which workers reach it, where that is not the one that it listens at."""
    join_s: float = 60.0


def run_server(spec: ServerSpec) -> None:
    """Serve until the run is over.

    Raises:
        PenstockError: the run failed, or this server did; the message says why.
    """
    _ServerRole(spec).run()


class _ServerRole:
    def __init__(self, spec: ServerSpec) -> None:
        self._spec = spec
        self._me = Identity(role="server", name=spec.name)
        self._links = Links(spec.access, self._me, self._take)
        self._links.on_lost = self._lost
        self._lock = threading.Lock()
        """Guards the two machines."""
        self._member: Member
        self._server: Server | None = None
        self._tables: dict[str, Table] = {}
        self._run: RunSpec | None = None
        self._inbox: queue.SimpleQueue[Welcome | WriteRows | End] = queue.SimpleQueue()
        """What is done in the main thread: all that takes long."""
        self._cpu_before_s = 0.0
        self._mine: list[int] = []
        """Segments."""

    def run(self) -> None:
        listener = self._spec.access.listen(self._spec.listen, self._me)
        try:
            self._member = Member(
                role="server",
                name=self._spec.name,
                incarnation=new_incarnation(),
                address=self._spec.advertise or listener.address,
                manners=Manners(join_s=self._spec.join_s),
                now=time.monotonic(),
            )
            listener.serve(self._links.serve)
            self._links.dial("coordinator", self._spec.join, give_up_s=self._spec.join_s)
            self._do(self._member.start(time.monotonic()))
            with every(TICK_S, self._tick, "ticks"):
                self._work()
        finally:
            self._links.close()
            listener.close()

    def _work(self) -> None:
        while True:
            task = self._inbox.get()
            if isinstance(task, End):
                if task.error is not None:
                    raise PenstockError(task.error)
                return
            if isinstance(task, Welcome):
                self._load(task)
            else:
                self._write(task)

    def _take(self, sender: str, message: Message) -> None:
        now, welcome = time.monotonic(), None
        with self._lock:
            effects: list[Effect] = []
            if sender == "coordinator":
                before = self._member.welcome
                effects = self._member.handle(message, now)
                if before is None:
                    welcome = self._member.welcome
            if self._server is not None:
                effects = effects + self._server.handle(sender, message, now)
        if welcome is not None:
            self._inbox.put(welcome)
        self._do(effects)

    def _do(self, effects: list[Effect]) -> None:
        for effect in self._links.send_all(effects):
            if isinstance(effect, Rejoin):
                # A server that was taken for dead has nothing that anybody waits for.
                effect = End(f"{self._spec.name} is no server of this run any more")
            if isinstance(effect, WriteRows | End):
                self._inbox.put(effect)

    def _lost(self, name: str) -> None:
        with self._lock:
            if self._server is not None:
                self._server.forget(name)

    def _tick(self) -> None:
        # A heartbeat must not wait for whatever takes long: then it has no figures.
        figures: dict[str, Any] = {}
        now = time.monotonic()
        if self._server is not None and self._member.beats(now) and self._lock.acquire(timeout=TICK_S):
            try:
                figures = self._figures()
            finally:
                self._lock.release()
        self._do(self._member.tick(figures, now))

    def _figures(self) -> dict[str, Any]:
        assert self._server is not None
        received, sent = self._links.nbytes()
        return {
            **self._server.figures(),
            "cpu_s": time.process_time() - self._cpu_before_s,
            "bytes_in": received,
            "bytes_out": sent,
            "table_nbytes": sum(table.nbytes for table in self._tables.values()),
            "memory_nbytes": memory_nbytes(),
        }

    def _load(self, welcome: Welcome) -> None:
        """Make the tables, and fill them: from a checkpoint, or with the rows that a new model begins with."""
        try:
            run = self._run = RunSpec.from_dict(welcome.spec)
            run.load_imports()
            index = welcome.servers.index(self._spec.name)
            mine = self._mine = np.flatnonzero(welcome.owners == index).tolist()
            layouts = table_layouts(run.model)
            self._tables = {name: Table.of(layout) for name, layout in layouts.items()}
            server = Server(
                self._spec.name,
                index=index,
                incarnation=self._member.incarnation,
                tables=self._tables,
                consistency=run.how,
                owners=welcome.owners,
                routing=welcome.routing,
                lanes=welcome.lanes,
            )
            if run.resume:
                self._restore(server, Path(run.output) / "checkpoint", mine)
            else:
                self._begin(run, mine)
            for table in self._tables.values():
                _compile(table)
        except Exception as error:
            reason = str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
            failure = Failure(incarnation=self._member.incarnation, error=f"{self._spec.name}: {reason}")
            self._links.send("coordinator", failure)
            raise PenstockError(failure.error) from error
        self._cpu_before_s = time.process_time()
        with self._lock:
            self._server = server
            effects = self._member.ready(time.monotonic())
        self._do(effects)

    def _restore(self, server: Server, checkpoint: Path, segments: list[int]) -> None:
        manifest = read_manifest(checkpoint)
        position = manifest["progress"]["position"]
        for name, table in self._tables.items():
            for keys, words in read_rows(checkpoint, manifest, name, segments):
                table.insert(keys, words)
            table.take_changed()
        names = [(part["segments"], History.from_state(part["names"])) for part in position["names"]]
        server.restore(msgspec.convert(position["record"], Record, strict=False), names)

    def _begin(self, run: RunSpec, segments: list[int]) -> None:
        for name, (keys, words) in model_from_spec(run.model).initial_rows().items():
            table = self._tables[name]
            own = np.isin(table.layout.segments_of(keys), segments)
            table.insert(keys[own], words[own])

    def _write(self, task: WriteRows) -> None:
        run, server = self._run, self._server
        assert run is not None and server is not None
        files: dict[str, Any] = {}
        error: str | None = None
        tag = f"s{server.index}"
        try:
            for name, table in self._tables.items():
                if task.rows is None:
                    mine = self._mine
                    entries = write_rows(table, task.folder, name, segments=mine, tag=tag)
                else:
                    entries = write_arrays(task.folder, name, table.layout, *task.rows[name], tag=tag)
                gone = task.removed[name] if not task.full else task.removed[name][:0]
                removed = write_removed(task.folder, name, table.layout, gone, tag=tag)
                files[name] = {"files": entries, "removed": removed, "rows": task.counts[name]}
        except PenstockError as failure:
            error = str(failure)
        with self._lock:
            effects = self._member.beat(self._figures(), time.monotonic())
            effects += server.written(task.checkpoint, files, error)
        self._do(effects)


def _compile(table: Table) -> None:
    """Have the kernels ready before the first request comes: a table of one row like this one, thrown away."""
    other = Table(table.optimizer, dim=table.dim, segments=2, slots=1)
    keys = np.array([2], np.uint64)
    other.push(keys, np.zeros((1, table.dim), np.float32))
    other.pull(keys)
