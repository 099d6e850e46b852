"""A state machine in a process: connections in and out, its messages in their order, its effects carried out.

One lock guards the machine; kernels that it calls release Python's own. Sends happen outside the lock, each
connection has its thread that receives, and a connection that breaks is made again for as long as it is worth it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from penstock.errors import TransportError
from penstock.parameter_server.effects import Effect, Send
from penstock.parameter_server.messages import MESSAGES, Message
from penstock.transport import Codec, Connection, Identity, Listener, connect

__all__ = ["CODEC", "Access", "Links", "new_incarnation"]

_log: Final = logging.getLogger("penstock.engine")

CODEC: Final = Codec(*MESSAGES)

SEND_S: Final = 30.0
CONNECT_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Access:
    """What it takes to be of a cluster."""

    cluster: str
    token: bytes
    server_tls: ssl.SSLContext | None = None
    client_tls: ssl.SSLContext | None = None
    allow_plaintext: bool = False

    def listen(self, address: str, me: Identity) -> Listener:
        """A port for this cluster's members."""
        return Listener.bind(
            address,
            me=me,
            cluster=self.cluster,
            token=self.token,
            codec=CODEC,
            tls=self.server_tls,
            allow_plaintext=self.allow_plaintext,
        )

    def connect(self, address: str, me: Identity, timeout_s: float = CONNECT_S) -> Connection:
        """A connection to a member."""
        return connect(
            address,
            me=me,
            cluster=self.cluster,
            token=self.token,
            codec=CODEC,
            timeout_s=timeout_s,
            tls=self.client_tls,
        )


class OnMessage(Protocol):
    """Takes what a peer sent."""

    def __call__(self, sender: str, message: Message) -> None: ...


def new_incarnation() -> int:
    """A number that no other start of a role has."""
    return int.from_bytes(os.urandom(4), "little") >> 1


class Links:
    """Connections by the peer's name; received messages go to ``on_message``, in a thread of each connection."""

    def __init__(self, access: Access, me: Identity, on_message: OnMessage) -> None:
        self._access, self._me, self._on_message = access, me, on_message
        self._lock = threading.Lock()
        self._by_name: dict[str, Connection] = {}
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._gone_bytes = [0, 0]
        self.on_lost: Callable[[str], None] = lambda name: None
        self.on_back: Callable[[str], None] = lambda name: None

    def serve(self, connection: Connection) -> None:
        """Receive from a peer that connected here; returns when it is gone."""
        self._receive(connection.peer.name, connection)

    def dial(self, name: str, address: str, *, give_up_s: float) -> None:
        """Connect to a peer, and again whenever the connection breaks, until ``give_up_s`` have passed in vain.

        Raises:
            TransportError: the first attempts failed; later ones end in ``on_lost``.
        """
        connection = self._try(address, give_up_s)
        thread = threading.Thread(
            target=self._keep, args=(name, address, connection, give_up_s), name=f"to {name}", daemon=True
        )
        self._threads.append(thread)
        with self._lock:
            self._by_name[name] = connection
        thread.start()

    def send(self, to: str, message: Message) -> bool:
        """Send, if there is a connection; what is lost is sent again by the protocol."""
        with self._lock:
            connection = self._by_name.get(to)
        if connection is None:
            return False
        try:
            connection.send(message, SEND_S)
        except TransportError as error:
            _log.info("%s", error)
            return False
        return True

    def send_all(self, effects: Iterable[Effect]) -> list[Effect]:
        """Carry out what is to be sent; returns the rest."""
        rest = []
        for effect in effects:
            if isinstance(effect, Send):
                self.send(effect.to, effect.message)
            else:
                rest.append(effect)
        return rest

    def nbytes(self) -> tuple[int, int]:
        """Bytes received and sent so far."""
        with self._lock:
            connections = list(self._by_name.values())
            received, sent = self._gone_bytes
        return received + sum(c.bytes_in for c in connections), sent + sum(c.bytes_out for c in connections)

    def wire_s(self) -> float:
        """Seconds spent in moving bytes, over connections that are open."""
        with self._lock:
            return sum(connection.wire_s for connection in self._by_name.values())

    def close(self) -> None:
        """Close all connections and wait for their threads."""
        self._closing.set()
        with self._lock:
            connections = list(self._by_name.values())
        for connection in connections:
            connection.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5.0)

    def drop(self, name: str) -> None:
        """Break a connection; it is made again if it was dialled."""
        with self._lock:
            connection = self._by_name.get(name)
        if connection is not None:
            connection.close()

    def _receive(self, name: str, connection: Connection) -> None:
        with self._lock:
            self._by_name[name] = connection
        try:
            while not self._closing.is_set():
                self._on_message(name, connection.receive())
        except TransportError as error:
            _log.info("%s", error)
        finally:
            connection.close()
            with self._lock:
                self._gone_bytes[0] += connection.bytes_in
                self._gone_bytes[1] += connection.bytes_out
                current = self._by_name.get(name) is connection
                if current:
                    del self._by_name[name]
            if current and not self._closing.is_set():
                self.on_lost(name)

    def _keep(self, name: str, address: str, connection: Connection, give_up_s: float) -> None:
        while True:
            self._receive(name, connection)
            if self._closing.is_set():
                return
            try:
                connection = self._try(address, give_up_s)
            except TransportError as error:
                _log.warning("%s", error)
                return
            with self._lock:
                self._by_name[name] = connection
            self.on_back(name)

    def _try(self, address: str, give_up_s: float) -> Connection:
        deadline = time.monotonic() + give_up_s
        wait_s = 0.02
        while True:
            left_s = deadline - time.monotonic()
            try:
                return self._access.connect(address, self._me, max(0.1, min(CONNECT_S, left_s)))
            except TransportError:
                if left_s <= 0:
                    raise
            if self._closing.wait(min(wait_s, max(0.0, left_s))):
                raise TransportError(f"{address}: not needed any more")
            wait_s = min(1.0, 2 * wait_s)


@contextlib.contextmanager
def every(interval_s: float, action: Callable[[], Any], name: str) -> Any:
    """Run an action at regular times in a thread of its own, while in the context."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(interval_s):
            action()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5.0)
