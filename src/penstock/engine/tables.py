"""Tables of a running cluster, from outside of its training: pull, push and functions that run on the servers.

Three verbs and a ticket, always with a deadline::

    with TableClient(access, coordinator) as client:
        ticket = client.push("weights", keys, gradients)
        client.wait(ticket, timeout_s=5)
        rows = client.wait(client.pull("weights", keys), timeout_s=5)
        client.call("norm", "weights").value["l2_squared"]

Keys are rising and distinct, as ``table.unique_keys`` gives them. A push is applied once, however often it is
sent.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from penstock.batch import Floats, Keys
from penstock.engine.node import Access, Links, new_incarnation
from penstock.engine.observer import Observer
from penstock.errors import ConfigError, PenstockError, TransportError
from penstock.parameter_server.arrays import Split
from penstock.parameter_server.functions import Answer, combine
from penstock.parameter_server.messages import (
    Ack,
    BatchName,
    Call,
    Message,
    Part,
    Pull,
    Push,
    Refused,
    Result,
    Rows,
)
from penstock.transport import Identity

__all__ = ["TableClient", "Ticket"]

CONNECT_S = 5.0
RETRY_S = 1.0
_OUTSIDE = 1 << 40
"""Chunks of pushes from outside begin here, so that no chunk of data has their names."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request under way: what each server was asked, and has answered."""

    sent: dict[int, Message]
    """By id."""
    server_of: dict[int, int]
    rows: Floats | None = None
    split: Split | None = None
    answers: dict[int, Answer] = field(default_factory=dict)
    error: str | None = None


class TableClient:
    """Of a cluster; a context. Any thread may ask, each waits for its own tickets."""

    def __init__(self, access: Access, coordinator: str, *, name: str = "tables") -> None:
        """Connect to all servers.

        Raises:
            TransportError: one cannot be reached.
            ConfigError: the cluster has no servers yet.
        """
        with Observer(access, coordinator) as observer:
            status = observer.status()
        if not status["owners"]:
            raise ConfigError(f"{coordinator}: the cluster is {status['phase']}, its tables are not there yet")
        self._routing = int(status["routing"])
        self._owners = np.array(status["owners"], np.uint16)
        self.servers = [server["name"] for server in status["servers"]]
        self._ids = itertools.count(1)
        self._chunk = _OUTSIDE + new_incarnation()
        self._batches = itertools.count()
        self._changed = threading.Condition()
        self._tickets: dict[int, Ticket] = {}
        identity = Identity(role="observer", name=f"{name}-{self._chunk - _OUTSIDE:x}")
        self._links = Links(access, identity, self._take)
        self._links.on_back = self._again
        for server in status["servers"]:
            self._links.dial(server["name"], server["address"], give_up_s=CONNECT_S)

    def __enter__(self) -> TableClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._links.close()

    @property
    def wire_s(self) -> float:
        """Seconds that this side has spent in moving bytes."""
        return self._links.wire_s()

    def pull(self, table: str, keys: Keys, *, dim: int = 1) -> Ticket:
        """Ask for the weights f32[n, dim] of ``keys`` u64[n]."""
        split = Split(keys, self._owners, len(self.servers))
        ticket = Ticket({}, {}, rows=np.empty((len(keys), dim), np.float32), split=split)
        for server in range(len(self.servers)):
            id_ = next(self._ids)
            asked = {table: split.of(server)}
            ticket.sent[id_] = Pull(id=id_, clock=None, routing=self._routing, tables=asked)
            ticket.server_of[id_] = server
        return self._send(ticket)

    def push(self, table: str, keys: Keys, gradients: Floats) -> Ticket:
        """Apply ``gradients`` f32[n, dim] to the rows of ``keys`` u64[n], once."""
        split = Split(keys, self._owners, len(self.servers))
        name = BatchName(self._chunk, next(self._batches))
        ticket = Ticket({}, {})
        for server in range(len(self.servers)):
            id_ = next(self._ids)
            part = Part(keys=split.of(server), gradients=split.take(server, gradients))
            ticket.sent[id_] = Push(
                id=id_,
                name=name,
                lane=None,
                clock=0,
                ends=False,
                version=0,
                routing=self._routing,
                tables={table: part},
            )
            ticket.server_of[id_] = server
        return self._send(ticket)

    def wait(self, ticket: Ticket, timeout_s: float) -> Floats | None:
        """Until all servers have answered; the rows of a pull, None of a push.

        Raises:
            TransportError: one did not in time; the message names it. The request stays under way.
            PenstockError: a server refused.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                left_s = max(0.0, deadline - time.monotonic())
                self._changed.wait_for(lambda: not ticket.sent or ticket.error is not None, min(RETRY_S, left_s))
                unanswered = dict(ticket.sent)
            if ticket.error is not None:
                raise PenstockError(ticket.error)
            if not unanswered:
                return ticket.rows
            if time.monotonic() >= deadline:
                late = sorted({self.servers[ticket.server_of[id_]] for id_ in unanswered})
                raise TransportError(f"{', '.join(late)}: no answer within {timeout_s:.1f} s")
            for id_, message in unanswered.items():
                self._links.send(self.servers[ticket.server_of[id_]], message)

    def call(self, function: str, table: str, *, timeout_s: float = 60.0, **arguments: Any) -> Answer:
        """Run a registered function on all servers; one answer of all.

        Raises:
            TransportError, PenstockError: see ``wait``.
        """
        ticket = Ticket({}, {})
        for server in range(len(self.servers)):
            id_ = next(self._ids)
            ticket.sent[id_] = Call(id=id_, function=function, table=table, arguments=arguments)
            ticket.server_of[id_] = server
        self.wait(self._send(ticket), timeout_s)
        return combine(function, [ticket.answers[server] for server in range(len(self.servers))])

    def _send(self, ticket: Ticket) -> Ticket:
        requests = list(ticket.sent.items())
        with self._changed:
            self._tickets.update((id_, ticket) for id_, _ in requests)
        for id_, message in requests:
            self._links.send(self.servers[ticket.server_of[id_]], message)
        return ticket

    def _again(self, server: str) -> None:
        """The way to a server is open again: ask it again for what it did not answer."""
        with self._changed:
            asked = [
                message
                for id_, ticket in self._tickets.items()
                if self.servers[ticket.server_of[id_]] == server
                for message in [ticket.sent[id_]]
            ]
        for message in asked:
            self._links.send(server, message)

    def _take(self, sender: str, message: Message) -> None:
        if not isinstance(message, Rows | Ack | Result | Refused):
            return
        with self._changed:
            ticket = self._tickets.pop(message.id, None)
            if ticket is None:
                return
            server = ticket.server_of[message.id]
            if isinstance(message, Rows) and ticket.rows is not None and ticket.split is not None:
                for rows in message.tables.values():
                    if rows.shape[1:] == ticket.rows.shape[1:]:
                        ticket.split.put(server, rows, ticket.rows)
                    else:
                        ticket.error = f"{sender}: rows have dim {rows.shape[1]}, not {ticket.rows.shape[1]}"
            elif isinstance(message, Result):
                ticket.answers[server] = Answer(value=message.value, keys=message.keys, floats=message.floats)
            elif isinstance(message, Refused):
                ticket.error = f"{sender}: {message.error}"
            del ticket.sent[message.id]
            self._changed.notify_all()
