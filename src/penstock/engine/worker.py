"""The role of a worker: joins, reads what it is granted, pulls, computes, pushes, until the coordinator says stop.

Three kinds of thread: one for each connection, one that reads and hashes ahead, and the main one, which runs the
client's state machine and computes gradients.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from penstock.batch import Floats
from penstock.engine.node import Access, Links, every, new_incarnation
from penstock.engine.reading import MicroBatch, Reading
from penstock.engine.spec import RunSpec, Slowness
from penstock.errors import DataError, PenstockError
from penstock.metrics import BinaryMetrics
from penstock.models import Model, model_from_spec
from penstock.parameter_server.client import Client
from penstock.parameter_server.effects import Compute, Discard, Effect, End, Read, Rejoin
from penstock.parameter_server.member import Manners, Member
from penstock.parameter_server.messages import (
    BatchName,
    Expelled,
    Failure,
    Figures,
    Grant,
    Message,
    Stop,
    Welcome,
    Work,
)
from penstock.train.progress import memory_nbytes
from penstock.transport import Identity

__all__ = ["WorkerSpec", "run_worker"]

_log: Final = logging.getLogger("penstock.engine")

TICK_S: Final = 0.02
STUCK_S: Final = 600.0
"""A step that takes longer is one that never ends: the worker falls silent, and its work goes to others."""
END_S: Final = 60.0
"""For a thread that compiles or decodes to come to an end."""
REDIAL_S: Final = 5.0
"""A server that cannot be reached for so long is not tried again."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """Where a worker finds its cluster."""

    join: str
    access: Access
    name: str
    join_s: float = 60.0
    why_leave: Callable[[], str | None] = lambda: None
    """Looked at now and then: why to leave the cluster, if that is wanted."""


def run_worker(spec: WorkerSpec) -> None:
    """Work until the run is over.

    Raises:
        PenstockError: the run failed, or this worker did; the message says why.
    """
    _WorkerRole(spec).run()


@dataclass(frozen=True, slots=True)
class _Call:
    """Something that happened, for the main thread."""

    act: Callable[[], None]


class _WorkerRole:
    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._inbox: queue.SimpleQueue[tuple[str, Message] | _Call] = queue.SimpleQueue()
        self._links = Links(
            spec.access,
            Identity(role="worker", name=spec.name),
            lambda sender, message: self._inbox.put((sender, message)),
        )
        self._links.on_back = lambda peer: self._inbox.put(_Call(lambda: self._back(peer)))
        self._member = self._new_member()
        self._work: _Work | None = None
        self._making: list[threading.Thread] = []
        self._made: list[_Work] = []
        """Made ready, and not closed yet."""
        self._lock = threading.Lock()
        """Guards the member."""
        self._over = False
        self._stepped = time.monotonic()

    def run(self) -> None:
        try:
            self._links.dial("coordinator", self._spec.join, give_up_s=self._spec.join_s)
            self._do(self._member.start(time.monotonic()))
            with every(TICK_S, self._beat, "heartbeat"):
                while not self._over:
                    self._step()
        finally:
            # A process that ends while a thread of its own compiles or decodes is aborted by C++.
            for thread in self._making:
                thread.join(END_S)
            for work in self._made:
                work.close()
            self._links.close()

    def _new_member(self) -> Member:
        return Member(
            role="worker",
            name=self._spec.name,
            incarnation=new_incarnation(),
            manners=Manners(join_s=self._spec.join_s),
            now=time.monotonic(),
        )

    def _step(self) -> None:
        timeout_s = TICK_S if self._work is None else self._work.next_s(TICK_S)
        with contextlib.suppress(queue.Empty):
            task = self._inbox.get(timeout=timeout_s)
            # All that is there, before time is looked at again.
            while True:
                self._handle(task)
                task = self._inbox.get_nowait()
        now = time.monotonic()
        if self._spec.why_leave() is not None:
            if self._work is not None:
                self._do(self._work.client.leave(None))
            self._over = True
            return
        if self._work is not None:
            self._do(self._work.tick(now))
        self._stepped = now

    def _beat(self) -> None:
        """In a thread of its own, as gradients may take longer than a worker may be silent."""
        now = time.monotonic()
        if now - self._stepped > STUCK_S:
            return
        with self._lock:
            effects = self._member.tick(self._figures() if self._member.beats(now) else {}, now)
        rest = self._links.send_all(effects)
        if rest:
            self._inbox.put(_Call(lambda: self._do(rest)))

    def _handle(self, task: tuple[str, Message] | _Call) -> None:
        if isinstance(task, _Call):
            task.act()
            return
        (sender, message), now = task, time.monotonic()
        if sender == "coordinator":
            with self._lock:
                before = self._member.welcome
                effects = self._member.handle(message, now)
                welcome = self._member.welcome
            self._do(effects)
            if before is None and welcome is not None:
                self._begin(welcome)
                return
        if self._work is not None:
            self._do(self._work.client.handle(sender, message, now))
        elif isinstance(message, Stop):
            self._end(message.error)
            return
        elif isinstance(message, Expelled) and message.incarnation == self._member.incarnation:
            self._rejoin()
            return
        if isinstance(message, Work) and message.finished:
            with self._lock:
                effects = self._member.beat(self._figures(), now)
            self._do(effects)

    def _rejoin(self) -> None:
        if self._work is not None:
            self._work.close()
            self._made.remove(self._work)
            self._work = None
        with self._lock:
            self._member = self._new_member()
            effects = self._member.start(time.monotonic())
        self._do(effects)

    def _figures(self) -> dict[str, Any]:
        received, sent = self._links.nbytes()
        figures = self._work.figures() if self._work is not None else {}
        return figures | {"bytes_in": received, "bytes_out": sent}

    def _begin(self, welcome: Welcome) -> None:
        run = RunSpec.from_dict(welcome.spec)
        run.load_imports()
        for name, address in zip(welcome.servers, welcome.addresses, strict=True):
            with contextlib.suppress(KeyError):
                self._links.dial(name, address, give_up_s=REDIAL_S)

        def call(act: Callable[[], None]) -> None:
            self._inbox.put(_Call(act))

        def make_ready() -> None:
            # Kernels may have to be compiled, which takes longer than a worker may be silent.
            try:
                work = _Work(run, welcome, self._spec.name, call, self._do)
                self._made.append(work)
                call(lambda: self._start(work))
            except Exception as error:
                failure = Failure(incarnation=welcome.incarnation, error=f"{self._spec.name}: {_told(error)}")
                self._links.send("coordinator", failure)
                call(lambda: self._end(failure.error))

        thread = threading.Thread(target=make_ready, name="making ready", daemon=True)
        self._making.append(thread)
        thread.start()

    def _start(self, work: _Work) -> None:
        if work.client.incarnation != self._member.incarnation:
            work.close()
            self._made.remove(work)
            return
        self._work = work
        self._do(work.client.start(time.monotonic()))

    def _back(self, peer: str) -> None:
        if self._work is not None:
            self._do(self._work.client.reconnected(peer, time.monotonic()))

    def _do(self, effects: list[Effect]) -> None:
        """Carry out effects, and what these bring about."""
        for effect in self._links.send_all(effects):
            match effect:
                case Read():
                    assert self._work is not None
                    self._work.read(effect.grant)
                case Compute():
                    assert self._work is not None
                    self._do(self._work.compute(effect))
                case Discard():
                    assert self._work is not None
                    self._work.discard(effect)
                case Rejoin():
                    self._rejoin()
                case End():
                    self._end(effect.error)

    def _end(self, error: str | None) -> None:
        self._over = True
        if error is not None:
            raise PenstockError(error)


class _Work:
    """A worker's part of a run, from one ``Welcome`` on."""

    def __init__(
        self,
        run: RunSpec,
        welcome: Welcome,
        name: str,
        call: Callable[[Callable[[], None]], None],
        do: Callable[[list[Effect]], None],
    ) -> None:
        self._run, self._call, self._do = run, call, do
        self.model: Model = model_from_spec(run.model)
        keep, columns = run.keep()
        self._source = run.open()
        self._reading = Reading(
            self.model, self._source, minibatch=run.minibatch, keep=keep, extra_columns=columns
        )
        self._n_chunks = len(list(self._source.chunks()))
        consistency = run.how
        self.client = Client(
            name,
            incarnation=welcome.incarnation,
            servers=welcome.servers,
            owners=welcome.owners,
            routing=welcome.routing,
            dims={name: table.dim for name, table in self.model.tables().items()},
            depth=run.depth,
            window=run.window,
            clocked=consistency.bound is not None,
            now=time.monotonic(),
        )
        self._slow = run.slow.get(name, run.slow.get("*", Slowness()))
        self._micros: dict[BatchName, MicroBatch] = {}
        self._metrics = BinaryMetrics()
        self._pending: tuple[float, BatchName, dict[str, Floats], Figures | None] | None = None
        """A step that is computed, and due only later."""
        self.busy_s = 0.0
        self.read_s = 0.0
        self.rows = 0
        self._tasks: queue.SimpleQueue[Grant | MicroBatch | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_ahead, name="reader", daemon=True)
        self._closed = threading.Event()
        self._warm_up()
        self._cpu_before_s = time.process_time()
        self._reader.start()

    def _warm_up(self) -> None:
        """Have all kernels loaded (or compiled) before this worker holds anything that others wait for."""
        with contextlib.suppress(DataError):
            micro = self._reading.read(BatchName(0, 0))
            if isinstance(micro, MicroBatch):
                tables = self.model.tables()
                rows = {name: np.zeros((len(k), tables[name].dim), np.float32) for name, k in micro.keys.items()}
                out = np.empty(len(micro.batch), np.float32)
                self.model.gradients(rows, micro.index, micro.batch, out)
                self._figures_of(BatchName(0, 0), micro, out)
                self._reading.release(micro)

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._tasks.put(None)
        self._reader.join(END_S)

    def figures(self) -> dict[str, Any]:
        """For people."""
        cpu_s = time.process_time() - self._cpu_before_s
        return {
            "rows": self.rows,
            "busy_s": self.busy_s,
            "read_s": self.read_s,
            "cpu_s": cpu_s,
            "memory_nbytes": memory_nbytes(),
        }

    def next_s(self, most_s: float) -> float:
        """Seconds until something must be done."""
        if self._pending is None:
            return most_s
        return min(most_s, max(0.0, self._pending[0] - time.monotonic()))

    def tick(self, now: float) -> list[Effect]:
        """What is due."""
        effects: list[Effect] = []
        if self._pending is not None and now >= self._pending[0]:
            _, name, gradients, figures = self._pending
            self._pending = None
            effects += self.client.computed(name, gradients, figures, now)
        return effects + self.client.tick(now)

    def read(self, grant: Grant) -> None:
        """Have a micro-batch read."""
        self._tasks.put(grant)

    def discard(self, effect: Discard) -> None:
        """A micro-batch is done, or not ours any more."""
        micro = self._micros.pop(effect.grant.name, None)
        if micro is not None:
            self._tasks.put(micro)

    def compute(self, effect: Compute) -> list[Effect]:
        """Gradients of a micro-batch whose rows are here."""
        name = effect.grant.name
        micro = self._micros[name]
        began = time.monotonic()
        out = np.empty(len(micro.batch), np.float32)
        try:
            _, gradients = self.model.gradients(effect.rows, micro.index, micro.batch, out)
        except Exception as error:
            return self.client.failed(f"{self._reading.locate(name)}: no gradients: {_told(error)}")
        if not np.isfinite(out).all():
            where = self._reading.locate(name)
            return self.client.failed(
                f"training diverged near {where}: got probability {out[~np.isfinite(out)][0]}, allowed: 0 to 1; "
                "lower the learning rate, or standardise numbers"
            )
        figures = self._figures_of(name, micro, out)
        self.rows += len(out)
        now = time.monotonic()
        due = began + max(self._slow.step_s, self._slow.factor * (now - began))
        self.busy_s += max(now, due) - began if due > now else now - began
        if due > now:
            self._pending = (due, name, gradients, figures)
            return []
        return self.client.computed(name, gradients, figures, now)

    def _figures_of(self, name: BatchName, micro: MicroBatch, out: Floats) -> Figures:
        scored = name.chunk < self._n_chunks
        if scored:
            self._metrics.update(out, micro.batch.labels, micro.batch.weights)
        rows, loss, bins, sums = self._metrics.take()
        return Figures(rows=len(out), scored=rows, loss=loss, bins=bins, sums=sums)

    def _read_ahead(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed.is_set():
            if isinstance(task, MicroBatch):
                self._reading.release(task)
                continue
            began = time.monotonic()
            try:
                found = self._reading.read(task.name)
            except Exception as error:
                message = _told(error)
                self._call(lambda message=message: self._do(self.client.failed(message)))  # type: ignore[misc]
                continue
            self.read_s += time.monotonic() - began
            self._call(lambda name=task.name, found=found: self._got(name, found))  # type: ignore[misc]

    def _got(self, name: BatchName, found: MicroBatch | int) -> None:
        now = time.monotonic()
        if self._closed.is_set():
            return
        if isinstance(found, int):
            self._do(self.client.batch_missing(name, found, now))
            return
        if not self.client.expects(name):
            self._tasks.put(found)  # taken away meanwhile
            return
        self._micros[name] = found
        length = name.batch + 1 if found.last else None
        self._do(self.client.batch_ready(name, found.keys, found.last, length, now))


def _told(error: Exception) -> str:
    """In one line. What is none of ours comes from a model of the user's, or is a bug: the log says where."""
    if isinstance(error, PenstockError):
        return str(error)
    _log.error("%s", error, exc_info=error)
    return f"{type(error).__name__}: {error}"
