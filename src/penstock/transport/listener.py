"""The listening side: accepts connections, lets peers prove the token, and gives each its thread.

A peer that cannot prove itself, or sends nonsense, loses its own connection and is logged; nobody else notices.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from penstock.errors import ConfigError, ConnectionClosed, TransportError
from penstock.transport.addresses import format_address, is_loopback, parse_address
from penstock.transport.connection import Connection, Identity, check_name
from penstock.transport.frames import Codec
from penstock.transport.handshake import Accepting
from penstock.transport.tcp import TcpConnection, open_wire, shake_hands
from penstock.transport.wire import Wire

__all__ = ["Listener"]

_log: Final = logging.getLogger("penstock.transport")
_BACKLOG: Final = 1024
_SHORT_S: Final = 0.1
"""How long to leave the port alone when there are no more file descriptors."""


class Listener:
    """A port of this machine where members of the cluster may connect: ``bind``, ``serve``, ``close``."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        me: Identity,
        cluster: str,
        token: bytes,
        codec: Codec,
        tls: ssl.SSLContext | None,
        handshake_timeout_s: float,
        handshakes: int,
    ) -> None:
        """Take a socket that listens; ``bind`` makes one."""
        check_name("cluster", cluster)
        self._socket = sock
        self._me = me
        self._cluster = cluster
        self._token = token
        self._codec = codec
        self._tls = tls
        self._handshake_timeout_s = handshake_timeout_s
        self._handshakes = handshakes
        self.address = format_address(*sock.getsockname()[:2])
        """Host and port, the latter as the system chose it if 0 was asked for."""
        self._waker, self._wake = socket.socketpair()
        self._changed = threading.Condition()
        """Guards all below."""
        self._closing = False
        self._strangers: set[Wire] = set()
        self._connections: set[TcpConnection] = set()
        self._threads: set[threading.Thread] = set()

    @classmethod
    def bind(
        cls,
        address: str,
        *,
        me: Identity,
        cluster: str,
        token: bytes,
        codec: Codec,
        tls: ssl.SSLContext | None = None,
        allow_plaintext: bool = False,
        handshake_timeout_s: float = 5.0,
        handshakes: int = 64,
    ) -> Listener:
        """Listen at ``host:port``, or at any free port for port 0.

        At most ``handshakes`` peers that have not proved themselves are attended to at a time, for
        ``handshake_timeout_s`` each; more wait in the system's queue.

        Raises:
            ConfigError: the address is none, is taken, is not of this machine, or may be reached from others while
                there is neither ``tls`` nor ``allow_plaintext``.
        """
        host, port = parse_address(address)
        if tls is None and not allow_plaintext and not is_loopback(host):
            raise ConfigError(
                f"{address}: can be reached from other machines, and there is no TLS; give certificates, or allow "
                "plain text in a network that you trust, or listen on 127.0.0.1"
            )
        sock: socket.socket | None = None
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, kind, protocol)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
            return cls(
                sock,
                me=me,
                cluster=cluster,
                token=token,
                codec=codec,
                tls=tls,
                handshake_timeout_s=handshake_timeout_s,
                handshakes=handshakes,
            )
        except (OSError, UnicodeError, ConfigError) as error:
            if sock is not None:
                sock.close()
            if isinstance(error, ConfigError):
                raise
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise ConfigError(
                    f"{address}: is taken by another program (another cluster, or one that still runs?); "
                    "choose another port, or 0 for any free one"
                ) from error
            raise ConfigError(
                f"{address}: cannot listen there ({getattr(error, 'strerror', None) or error})"
            ) from error

    def serve(self, on_connection: Callable[[Connection], None]) -> None:
        """Start to accept, and return; ``on_connection`` runs in a thread for each peer that has proved itself.

        It loops on ``receive``. When it returns or raises, its connection is closed; a ``TransportError`` is
        how it usually ends.
        """
        self._start("accept", self._accept, on_connection)

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop accepting, close all connections, and wait for their threads; does nothing the second time.

        A thread that is still in ``on_connection`` after ``timeout_s`` is logged and left to itself.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
            connections = list(self._connections)
            for stranger in self._strangers:
                stranger.shut()
            threads = list(self._threads)
        self._wake.send(b"x")
        for connection in connections:
            connection.close()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    _log.warning("%s: %s did not end within %g s", self.address, thread.name, timeout_s)
        self._socket.close()
        self._waker.close()
        self._wake.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, name: str, target: Callable[..., None], *arguments: object) -> None:
        """Start a thread that ``close`` waits for.

        Raises:
            RuntimeError: the system has no more threads, or the listener is closing.
        """

        def run() -> None:
            try:
                target(*arguments)
            finally:
                with self._changed:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name=f"{self.address} {name}", daemon=True)
        with self._changed:
            if self._closing:
                raise RuntimeError(f"{self.address}: the listener is closed")
            thread.start()
            self._threads.add(thread)

    def _accept(self, on_connection: Callable[[Connection], None]) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._waker, select.POLLIN)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(self._strangers) < self._handshakes)
                if self._closing:
                    return
            poll.poll()
            try:
                sock, where = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                _log.error("%s: cannot accept: %s", self.address, error.strerror or error)
                select.select([self._waker], [], [], _SHORT_S)
                continue
            peer = format_address(*where[:2])
            try:
                wire = open_wire(sock, self._tls, server_side=True, server_hostname=None)
            except OSError as error:
                _log.warning("%s: lost before the handshake: %s", peer, error.strerror or error)
                continue
            with self._changed:
                self._strangers.add(wire)
            try:
                self._start(peer, self._attend, wire, peer, on_connection)
            except RuntimeError as error:
                _log.error("%s: turned away: %s", peer, error)
                self._forget(wire)
                wire.close()

    def _forget(self, wire: Wire) -> None:
        with self._changed:
            self._strangers.discard(wire)
            self._changed.notify_all()

    def _attend(self, wire: Wire, address: str, on_connection: Callable[[Connection], None]) -> None:
        """One peer, from the handshake to the end of its connection."""
        side = Accepting(self._me, self._cluster, self._token)
        deadline = time.monotonic() + self._handshake_timeout_s
        try:
            connection = shake_hands(wire, address, side, self._codec, deadline)
        except Exception as error:
            self._forget(wire)
            wire.close()
            if isinstance(error, TransportError):
                _log.warning("%s: refused: %s", self.address, error)
            else:
                _log.exception("%s: %s: the handshake failed", self.address, address)
            return
        with self._changed:
            self._strangers.discard(wire)
            self._connections.add(connection)
            closing = self._closing
            self._changed.notify_all()
        try:
            if not closing:
                on_connection(connection)
        except ConnectionClosed as error:
            _log.info("%s: %s", self.address, error)
        except TransportError as error:
            _log.warning("%s: connection closed: %s", self.address, error)
        except Exception:
            _log.exception("%s: %s: the connection's thread failed", self.address, connection.peer)
        finally:
            connection.close()
            with self._changed:
                self._connections.discard(connection)
