"""Bytes over a connected socket, plain or TLS, each call with a deadline; and frames over that.

Knows no handshake and no threads: whoever uses it sees to it that one thread writes and one reads at a time.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from penstock.errors import ConnectionClosed
from penstock.transport.frames import PREFIX_NBYTES, Codec, Part, check_start, raw_bytes

__all__ = ["FrameStream", "PlainWire", "TlsWire", "Wire", "set_options"]

_IOV_MAX: Final = 512
"""Buffers a ``sendmsg``; POSIX systems take at least 1,024 in practice."""
_BUFFER_NBYTES: Final = 1 << 13
_T = TypeVar("_T")


def set_options(sock: socket.socket) -> None:
    """No waiting for more to send, and a peer whose machine is gone is found within a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _wait(sock: socket.socket, event: int, deadline: float | None) -> None:
    """Wait until the socket may be read or written, or fails.

    Raises:
        TimeoutError: at the deadline.
    """
    poll = select.poll()
    poll.register(sock, event)
    while True:
        left_ms = None if deadline is None else (deadline - time.monotonic()) * 1e3
        if left_ms is not None and left_ms <= 0:
            raise TimeoutError("the deadline passed")
        if poll.poll(left_ms):
            return


class Wire(Protocol):
    """A connected socket; errors are ``OSError``, a deadline's is ``TimeoutError``."""

    def send(self, parts: Sequence[Part], deadline: float | None) -> None:
        """Send all parts."""

    def receive_into(self, view: memoryview, deadline: float | None, *, full: bool) -> int:
        """Fill some of the view, and if ``full`` all that can be had before the stream ends; 0 at its end."""

    def shut(self) -> None:
        """End both directions, which wakes whoever waits; the socket stays open."""

    def finish(self, deadline: float) -> None:
        """Say that nothing more will come and read what the peer still sends, so that it gets our last words."""

    def close(self) -> None:
        """Give the socket back; only where no other thread uses it."""


class _SocketWire:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def finish(self, deadline: float) -> None:
        # A socket that is closed with bytes unread sends a reset, which may overtake what was sent before it.
        waste = bytearray(1 << 16)
        sock = self._socket
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_WR)
            sock.setblocking(False)
            for _ in range(64):
                _wait(sock, select.POLLIN, deadline)
                # Not the socket's own method: a TLS socket would decrypt.
                if not socket.socket.recv_into(sock, waste):
                    return

    def close(self) -> None:
        self._socket.close()


class PlainWire(_SocketWire):
    """A socket as it is."""

    def send(self, parts: Sequence[Part], deadline: float | None) -> None:
        """Send all parts, as many at a time as the system takes."""
        sock = self._socket
        todo = list(parts)
        while todo:
            try:
                sent = sock.sendmsg(todo[:_IOV_MAX], (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            done = 0
            while done < len(todo) and sent >= len(todo[done]):
                sent -= len(todo[done])
                done += 1
            full = done < min(len(todo), _IOV_MAX)
            del todo[:done]
            if full:
                todo[0] = memoryview(todo[0])[sent:]
                _wait(sock, select.POLLOUT, deadline)

    def receive_into(self, view: memoryview, deadline: float | None, *, full: bool) -> int:
        """Without a deadline in one system call where that is possible."""
        sock = self._socket
        if deadline is None:
            return sock.recv_into(view, 0, socket.MSG_WAITALL if full else 0)
        while True:
            try:
                return sock.recv_into(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                _wait(sock, select.POLLIN, deadline)


class TlsWire(_SocketWire):
    """A TLS socket, not yet or already shaken hands.

    OpenSSL's connection must not be used by two threads at once, and some versions of Python hold a lock of their
    own while they read. So the socket never blocks: each call is short and locked, and we wait outside the lock.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        sock.setblocking(False)
        self._tls = sock
        self._lock = threading.Lock()

    def shake_hands(self, deadline: float) -> None:
        """Prove and check certificates."""
        self._call(self._tls.do_handshake, deadline)

    def send(self, parts: Sequence[Part], deadline: float | None) -> None:
        """Send all parts, a TLS record at a time."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[self._call(partial(self._tls.send, rest), deadline) :]

    def receive_into(self, view: memoryview, deadline: float | None, *, full: bool) -> int:
        """Receive a TLS record at most."""
        return self._call(lambda: self._tls.recv_into(view), deadline)

    def _call(self, call: Callable[[], _T], deadline: float | None) -> _T:
        while True:
            with self._lock:
                try:
                    return call()
                except ssl.SSLWantReadError:
                    event = select.POLLIN
                except ssl.SSLWantWriteError:
                    event = select.POLLOUT
            _wait(self._tls, event, deadline)


class FrameStream:
    """Frames over a wire. ``write`` and ``read`` may run at the same time, but each in one thread only."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.forget_counts()
        self._buffer = memoryview(bytearray(_BUFFER_NBYTES))
        self._start = 0
        self._end = 0
        self.idle = True
        """Whether the last ``read`` ended, or failed, between two frames."""

    def forget_counts(self) -> None:
        """Count from here on."""
        self.bytes_in = 0
        self.bytes_out = 0
        self.read_s = 0.0
        self.write_s = 0.0

    def write(self, parts: Sequence[Part], deadline: float | None) -> None:
        """Send one frame.

        Raises:
            OSError: of which ``TimeoutError`` is the deadline's.
        """
        began = time.perf_counter()
        self.wire.send(parts, deadline)
        self.write_s += time.perf_counter() - began
        self.bytes_out += sum(map(len, parts))

    def read(self, codec: Codec, deadline: float | None) -> Any:
        """Return the next message.

        Raises:
            ConnectionClosed: the stream ended.
            FrameError: what came is no frame.
            OSError: of which ``TimeoutError`` is the deadline's.
        """
        if self._start == self._end:
            self._start = self._end = 0
            self._more(deadline)
        self.idle = False
        while self._end - self._start < PREFIX_NBYTES:
            # Whatever is wrong is said at once: a peer that speaks something else may be short, and wait.
            check_start(self._buffer[self._start : self._end])
            self._compact()
            self._more(deadline)
        at = self._start + PREFIX_NBYTES
        header_nbytes, payload_nbytes = codec.read_prefix(self._buffer[self._start : at])
        if PREFIX_NBYTES + header_nbytes <= _BUFFER_NBYTES:
            while self._end - self._start < PREFIX_NBYTES + header_nbytes:
                self._compact()
                self._more(deadline)
            at = self._start + PREFIX_NBYTES
            # A copy, because a message may keep parts of the header, and the buffer is used again.
            header: bytes | bytearray = bytes(self._buffer[at : at + header_nbytes])
            self._start = at + header_nbytes
        else:
            self._start = at
            header = bytearray(header_nbytes)
            self._fill(memoryview(header), deadline)
        message, arrays = codec.decode_header(header, payload_nbytes)
        if arrays:
            began = time.perf_counter()
            for array in arrays:
                self._fill(raw_bytes(array), deadline)
            self.read_s += time.perf_counter() - began
        self.bytes_in += PREFIX_NBYTES + header_nbytes + payload_nbytes
        self.idle = True
        return message

    def _compact(self) -> None:
        """Move what is there to the front, so that a prefix and a usual header fit."""
        if self._start:
            have = self._end - self._start
            self._buffer[:have] = self._buffer[self._start : self._end]
            self._start, self._end = 0, have

    def _more(self, deadline: float | None) -> None:
        got = self.wire.receive_into(self._buffer[self._end :], deadline, full=False)
        if not got:
            raise ConnectionClosed("in the middle of a frame" if self._end > self._start else "")
        self._end += got

    def _fill(self, view: memoryview, deadline: float | None) -> None:
        at = min(self._end - self._start, len(view))
        view[:at] = self._buffer[self._start : self._start + at]
        self._start += at
        while at < len(view):
            got = self.wire.receive_into(view[at:], deadline, full=True)
            if not got:
                raise ConnectionClosed("in the middle of a frame")
            at += got
