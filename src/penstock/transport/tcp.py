"""Connections over TCP, and how to make one: connect, TLS if wanted, prove the token.

The other side is in ``listener``. Retries, heartbeats and what messages mean are the business of the rooms above.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import Any

import msgspec

from penstock.errors import (
    ConfigError,
    ConnectionClosed,
    FrameError,
    HandshakeError,
    TransportError,
    TransportTimeout,
)
from penstock.transport.addresses import parse_address
from penstock.transport.connection import Connection, Identity, Peer
from penstock.transport.frames import Codec
from penstock.transport.handshake import HANDSHAKE_CODEC, Accepting, Connecting, Refused
from penstock.transport.wire import FrameStream, PlainWire, TlsWire, Wire, set_options

__all__ = ["TcpConnection", "connect", "open_wire", "shake_hands"]

_LAST_WORDS_S = 1.0
"""How long a side that refuses the other waits for it to have read why."""


class TcpConnection(Connection):
    """A connection whose peers have shown who they are."""

    def __init__(self, stream: FrameStream, peer: Peer, codec: Codec) -> None:
        self.peer = peer
        self._stream = stream
        self._codec = codec
        self._closed = False
        # Held while the socket is in use, so that it is given back only when it is not: another one may get its
        # number at once. Re-entrant for whoever closes in a signal handler.
        self._sending = threading.RLock()
        self._receiving = threading.RLock()
        # One thread alone may close: a sender and a receiver who lose the connection together, each with its lock,
        # would wait for the other's.
        self._judging = threading.RLock()

    @property
    def bytes_in(self) -> int:  # type: ignore[override]
        """Bytes of all frames received."""
        return self._stream.bytes_in

    @property
    def bytes_out(self) -> int:  # type: ignore[override]
        """Bytes of all frames sent."""
        return self._stream.bytes_out

    @property
    def wire_s(self) -> float:
        """Seconds in the calls that move bytes; for what is received, arrays alone."""
        return self._stream.read_s + self._stream.write_s

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side."""
        return self._closed

    def send(self, message: msgspec.Struct, timeout_s: float) -> None:
        """Send whole; see ``Connection``. Other threads that send meanwhile wait within their own deadlines."""
        parts = self._codec.encode(message)
        deadline = time.monotonic() + timeout_s
        if not self._sending.acquire(timeout=max(timeout_s, 0.0)):
            raise TransportTimeout(f"{self.peer}: another message was still being sent after {timeout_s:g} s")
        try:
            self._check_open()
            self._stream.write(parts, deadline)
        except TimeoutError as error:
            self.close()
            nbytes = sum(map(len, parts))
            raise TransportTimeout(
                f"{self.peer}: did not take {type(message).__name__} of {nbytes:,} bytes within {timeout_s:g} s"
            ) from error
        except OSError as error:
            raise self._lost(error) from error
        finally:
            self._sending.release()

    def receive(self, timeout_s: float | None = None) -> Any:
        """Wait for the next message; see ``Connection``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._receiving:
            self._check_open()
            try:
                return self._stream.read(self._codec, deadline)
            except FrameError as error:
                self.close()
                raise FrameError(f"{self.peer}: {error}") from error
            except ConnectionClosed as error:
                raise self._lost(error) from error
            except TimeoutError as error:
                if not self._stream.idle:
                    self.close()
                raise TransportTimeout(f"{self.peer}: sent no whole message within {timeout_s:g} s") from error
            except OSError as error:
                raise self._lost(error) from error

    def close(self) -> None:
        """Close; see ``Connection``."""
        with self._judging:
            if self._closed:
                return
            self._closed = True
        self._stream.wire.shut()
        with self._sending, self._receiving:
            self._stream.wire.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionClosed(f"{self.peer}: the connection was closed on this side")

    def _lost(self, error: Exception) -> ConnectionClosed:
        if self._closed:
            return ConnectionClosed(f"{self.peer}: the connection was closed on this side")
        self.close()
        if isinstance(error, ssl.SSLError):
            return ConnectionClosed(f"{self.peer}: the TLS connection broke ({_tls_reason(error)})")
        if isinstance(error, OSError):
            return ConnectionClosed(f"{self.peer}: the connection was lost ({error.strerror or error})")
        return ConnectionClosed(f"{self.peer}: closed the connection" + (f" {error}" if str(error) else ""))


def connect(
    address: str,
    *,
    me: Identity,
    cluster: str,
    token: bytes,
    codec: Codec,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> Connection:
    """Connect to a listener of the cluster at ``host:port``; both sides prove the token within ``timeout_s``.

    Whether a network may be used without TLS is for the listener to say; the token is safe either way.

    Raises:
        ConfigError: the address is none.
        HandshakeError: the listener is of another cluster, token or protocol version, or refuses our certificate.
        TransportTimeout: no answer in time.
        TransportError: nobody listens there, or the host is unknown.
    """
    host, port = parse_address(address)
    if not port:
        raise ConfigError(f"address {address!r}: cannot connect to port 0")
    deadline = time.monotonic() + timeout_s
    late = f"{address}: no answer within {timeout_s:g} s"
    sock = _open_socket(address, host, port, deadline, late)
    wire: Wire | None = None
    try:
        side = Connecting(me, cluster, token)
        wire = open_wire(sock, tls, server_side=False, server_hostname=host)
        return shake_hands(wire, address, side, codec, deadline)
    except BaseException as error:
        sock.close()
        if wire is not None:
            wire.close()
        if isinstance(error, TransportTimeout):
            raise TransportTimeout(late) from error
        if isinstance(error, OSError):
            raise TransportError(f"{address}: the connection was lost ({error.strerror or error})") from error
        raise


def open_wire(
    sock: socket.socket, tls: ssl.SSLContext | None, *, server_side: bool, server_hostname: str | None
) -> Wire:
    """Make a wire of a connected socket, which is its from now on; no byte is sent yet.

    Raises:
        OSError: the connection is lost already; the socket is closed.
    """
    try:
        set_options(sock)
        sock.setblocking(True)
        if tls is None:
            return PlainWire(sock)
        return TlsWire(
            tls.wrap_socket(
                sock, server_side=server_side, server_hostname=server_hostname, do_handshake_on_connect=False
            )
        )
    except BaseException:
        sock.close()
        raise


def shake_hands(
    wire: Wire, address: str, side: Connecting | Accepting, codec: Codec, deadline: float
) -> TcpConnection:
    """Make a connection of a wire, by TLS and token. The wire is the caller's to close where that fails.

    Raises:
        HandshakeError, TransportTimeout: messages begin with the address.
    """
    secret = isinstance(wire, TlsWire)
    try:
        try:
            if isinstance(wire, TlsWire):
                wire.shake_hands(deadline)
            stream = FrameStream(wire)
            peer, version = _prove(stream, side, deadline)
            stream.forget_counts()
        except (HandshakeError, ssl.SSLError):
            wire.finish(min(deadline, time.monotonic() + _LAST_WORDS_S))
            raise
    except HandshakeError as error:
        raise HandshakeError(f"{address}: {error}") from error
    except ConnectionClosed as error:
        hint = "; does it accept this side's certificate?" if secret else "; does it expect TLS?"
        raise HandshakeError(f"{address}: closed the connection during the handshake{hint}") from error
    except TimeoutError as error:
        raise TransportTimeout(f"{address}: no handshake in time") from error
    except ssl.SSLError as error:
        raise HandshakeError(f"{address}: TLS: {_tls_reason(error)}") from error
    except OSError as error:
        raise HandshakeError(
            f"{address}: the connection was lost during the handshake ({error.strerror or error})"
        ) from error
    return TcpConnection(stream, Peer(role=peer.role, name=peer.name, address=address, version=version), codec)


def _prove(stream: FrameStream, side: Connecting | Accepting, deadline: float) -> tuple[Identity, str]:
    """Run the handshake; its messages are small, and have no payload.

    Raises:
        HandshakeError: the peer was refused or refuses; the message is the rest of a sentence.
        ConnectionClosed, OSError: of the stream.
    """

    def say(message: msgspec.Struct) -> None:
        stream.write(HANDSHAKE_CODEC.encode(message), deadline)

    if isinstance(side, Connecting):
        say(side.start())
    while True:
        try:
            message = stream.read(HANDSHAKE_CODEC, deadline)
        except FrameError as error:
            # A peer of another version reads ours in the prefix of this.
            with contextlib.suppress(OSError):
                say(Refused("frame"))
            raise HandshakeError(str(error)) from error
        reply = side.handle(message)
        if reply is not None:
            say(reply)
        if side.failure is not None:
            raise HandshakeError(side.failure)
        if side.peer is not None:
            return side.peer, side.peer_version


def _tls_reason(error: ssl.SSLError) -> str:
    """Say what OpenSSL says, without its numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
    reason = (error.reason or error.strerror or "failed").lower().replace("_", " ")
    if reason in ("wrong version number", "http request", "record layer failure", "packet length too long"):
        return f"the other side does not speak it ({reason})"
    return reason


def _open_socket(address: str, host: str, port: int, deadline: float, late: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TransportError(
            f"{address}: host {host!r} is unknown ({getattr(error, 'strerror', None) or error})"
        ) from error
    failure: OSError | None = None
    for family, kind, protocol, _, where in found:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TransportTimeout(late) from failure
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left_s)
            sock.connect(where)
            # A port that nobody listens on may be given to this very socket, which then connects to itself.
            if sock.getsockname() == sock.getpeername():
                raise ConnectionRefusedError(None, "Connection refused")
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    if isinstance(failure, TimeoutError):
        raise TransportTimeout(late) from failure
    if isinstance(failure, ConnectionRefusedError):
        raise TransportError(f"{address}: nobody listens there (connection refused)") from failure
    reason = (failure and failure.strerror) or str(failure)
    raise TransportError(f"{address}: cannot connect ({reason})") from failure
