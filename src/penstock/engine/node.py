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

from penstock.errors import FrameError, HandshakeError, TransportError
from penstock.parameter_server.effects import Effect, Send
from penstock.parameter_server.messages import MESSAGES, Message
from penstock.transport import Codec, Connection, Identity, Listener, connect

__all__ = ["CODEC", "Access", "Links", "new_incarnation"]

_log: Final = logging.getLogger("penstock.engine")

CODEC: Final = Codec(*MESSAGES, header_limit=1 << 24)
"""Headers have names of pushes and files: a checkpoint of a long run, or data of many files, needs room."""

SEND_S: Final = 4.0
"""Less than anybody is silent for before others complain: a peer that does not read must not hold the rest."""
CONNECT_S: Final = 5.0
REFUSED_S: Final = 2.0
"""Who is refused for so long (another token, say) is refused for good; a moment's refusal may be of a port that
changes hands."""


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
        self._lock = threading.Condition()
        self._by_name: dict[str, Connection] = {}
        self._dialled: dict[str, str] = {}
        """Addresses of those who are connected to again and again."""
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._gone_bytes = [0, 0]
        self.on_lost: Callable[[str], None] = lambda name: None
        self.on_back: Callable[[str], None] = lambda name: None

    def serve(self, connection: Connection) -> None:
        """Receive from a peer that connected here; returns when it is gone."""
        peer = connection.peer
        if peer.name == "coordinator" and peer.role != "coordinator":
            _log.warning("%s: a %s must not be called coordinator", peer.address, peer.role)
            return
        self._receive(peer.name, connection)

    def dial(self, name: str, address: str, *, give_up_s: float) -> None:
        """Connect to a peer, and again whenever the connection breaks, until ``give_up_s`` have passed in vain.

        Does nothing where that is being done already.

        Raises:
            TransportError: the first attempts failed; later ones end in ``on_lost``.
        """
        with self._lock:
            if self._dialled.get(name) == address:
                return
            self._dialled[name] = address
            before = self._by_name.get(name)
        if before is not None:
            before.close()
        try:
            connection = self._try(address, give_up_s)
        except TransportError:
            with self._lock:
                del self._dialled[name]
            raise
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
        except FrameError:
            _log.exception("%s cannot be sent to %s", type(message).__name__, to)
            return False
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

    def wait_until_alone(self, timeout_s: float, observers_s: float) -> None:
        """Until nobody is connected; for observers it waits longer."""

        def observed() -> bool:
            return any(connection.peer.role == "observer" for connection in self._by_name.values())

        with self._lock:
            self._lock.wait_for(lambda: not self._by_name, timeout_s)
            self._lock.wait_for(lambda: not observed(), observers_s)

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
        except FrameError as error:
            _log.warning("%s", error)
        except TransportError as error:
            _log.info("%s", error)
        except Exception:
            # A mistake of ours with one message: the connection is made anew, and the protocol asks again.
            _log.exception("%s: a message could not be handled", name)
        finally:
            connection.close()
            with self._lock:
                self._gone_bytes[0] += connection.bytes_in
                self._gone_bytes[1] += connection.bytes_out
                current = self._by_name.get(name) is connection
                if current:
                    del self._by_name[name]
                    self._lock.notify_all()
            if current and not self._closing.is_set():
                self.on_lost(name)

    def _keep(self, name: str, address: str, connection: Connection, give_up_s: float) -> None:
        while True:
            self._receive(name, connection)
            with self._lock:
                wanted = self._dialled.get(name) == address
            if self._closing.is_set() or not wanted:
                return
            try:
                connection = self._try(address, give_up_s)
            except TransportError as error:
                if not self._closing.is_set():
                    _log.warning("%s", error)
                with self._lock:
                    if self._dialled.get(name) == address:
                        del self._dialled[name]
                return
            with self._lock:
                self._by_name[name] = connection
            self.on_back(name)

    def _try(self, address: str, give_up_s: float) -> Connection:
        deadline = time.monotonic() + give_up_s
        wait_s = 0.02
        refused_since: float | None = None
        while True:
            left_s = deadline - time.monotonic()
            try:
                return self._access.connect(address, self._me, max(0.1, min(CONNECT_S, left_s)))
            except TransportError as error:
                if left_s <= 0:
                    raise
                now = time.monotonic()
                if not isinstance(error, HandshakeError):
                    refused_since = None
                elif refused_since is None:
                    refused_since = now
                elif now - refused_since >= REFUSED_S:
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
            try:
                action()
            except Exception:
                _log.exception("%s", name)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5.0)
