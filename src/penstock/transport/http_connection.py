"""A connection of an HTTP server: uvicorn's protocol, with bounds on all that a client may take its time with.

Heads that drip, answers that nobody reads, bodies that go on after their answer, trailers and pipelines without an
end are let go. An answer gets to a client that has closed its own side already, or that still sends. Nothing here
is a timer of a request: ``look`` is called for each connection twice a second.

This module and ``http_server`` are the only ones that import uvicorn; ``http`` does so when it serves.
"""

from __future__ import annotations

import asyncio
import select
from dataclasses import dataclass
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.transport.http import HttpLimits, Receive, Scope, Send

__all__ = ["Connection", "Shared"]

# What a connection is in the middle of.
_BETWEEN, _HEAD, _BODY = 0, 1, 2


@dataclass(eq=False)
class Shared:
    """What all connections of a server know."""

    limits: HttpLimits
    draining: bool = False
    """The server was asked to stop: each answer is the last one of its connection."""
    stopping: bool = False
    """And whoever asks nothing is let go."""


class Connection(HttpToolsProtocol):
    """One of them."""

    shared: Shared
    """Set in a subclass, one for each server; the constructor is uvicorn's."""

    _doing = _BETWEEN
    _steps = 0
    """Heads that began, heads that ended, answers: while it stands still, so does the connection."""
    _first: Any = None
    """The request that is being answered while others wait behind it."""
    _closing = False
    _deaf = False
    """What still comes is read, and dropped."""
    _half = False
    """The client has sent all that it will."""
    _refused: tuple[int, str] | None = None
    _keep_alive = False
    _long_head = False
    _nbytes = 0
    """Of a head, as far as it came in pieces; of a body's frame since its last byte."""
    _seen_steps, _seen_s = -1, 0.0
    _unsent, _unsent_s, _moved_s = 0, 0.0, 0.0

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        beyond = len(self.connections) - self.shared.limits.connections
        if beyond > 0:
            self.app = _busy
        if beyond > self.shared.limits.refused_connections:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if len(data) > self.shared.limits.header_nbytes or self._doing != _BETWEEN:
            self._receive_bounded(data)
        else:
            self._feed(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Let the transport be open for the answers to whole requests; TLS knows no half of a connection."""
        if self._closing or self.scheme != "http" or not self._is_busy():
            return None
        if self.cycle.more_body:
            if not self.pipeline:
                return None
            self.pipeline.popleft()  # the last request, of which the rest does not come
            self.cycle = self.pipeline[0][0] if self.pipeline else self._first
        self._half, self.cycle.keep_alive = True, False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._first is not None and not self._first.response_complete:
            self._first.disconnected = True
            self._first.message_event.set()

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._doing = _HEAD
        self._steps += 1
        self._nbytes = 0

    def on_headers_complete(self) -> None:
        limits = self.shared.limits
        if self._long_head:
            self._refused = _too_long(self.url, self.headers, limits.header_nbytes)
        if self._refused is not None or len(self.pipeline) >= limits.pipelined:
            raise ValueError  # the parser makes it an error of its own, of which ``send_400_response`` tells
        before = self.cycle
        super().on_headers_complete()
        if len(self.pipeline) == 1 and (self._first is None or self._first.response_complete):
            self._first = before
        self._doing = _BODY
        self._steps += 1
        self._nbytes = 0
        self.headers = _TRAILERS  # type: ignore[assignment]
        # An answer that comes before the whole body did is the last one: who knows what the client sends next.
        cycle = self.cycle
        self._keep_alive = cycle.keep_alive
        cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._doing = _BETWEEN
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive and not self.shared.draining

    # ---- what uvicorn calls

    def _should_upgrade(self) -> bool:
        return False

    def on_response_complete(self) -> None:
        """As in uvicorn, but without its timer."""
        self.server_state.total_requests += 1
        self._steps += 1
        self.transport.flush()  # type: ignore[attr-defined]
        if self._closing:
            return
        if self.pipeline:
            self._first, app = self.pipeline.pop()
            self._start_asgi_task(self._first, app)
        if not self.pipeline:
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Tell what is wrong with a request that is none, unless others wait for their answers first."""
        self._deaf = True
        if self._is_busy():
            self.cycle.keep_alive = False
            if self.pipeline or not self.cycle.more_body:
                return  # the connection ends after the answers to those before it
            # The application is told that the rest of the body does not come.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        status, text = self._refused or (400, msg)
        body = msgspec.json.encode({"error": text}) + b"\n"
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            % (status, _REASONS[status], len(body))
            + body
        )
        self.transport.close()

    def shutdown(self) -> None:
        """Close what is idle; whoever asks, or is about to, gets an answer first."""
        if self.cycle is not None:
            self.cycle.keep_alive = False
        if self._is_idle():
            self.transport.close()

    def drain(self) -> None:
        """Have the next answer be the last one."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    # ---- time

    def look(self, now_s: float) -> None:
        """Let the connection go if it has stood still for too long."""
        limits = self.shared.limits
        moved = self._steps != self._seen_steps
        if moved:
            self._seen_steps, self._seen_s = self._steps, now_s
        if self._is_stuck(now_s, moved):
            self.transport.abort()
            return
        waited_s = now_s - self._seen_s
        if self._closing:
            if waited_s > 2 * limits.linger_s and not self._unsent:
                self.transport.abort()
            elif waited_s > limits.linger_s:
                self.transport.close()
        elif not self._is_busy():
            first = self._doing == _HEAD or self.cycle is None
            late = waited_s > (limits.header_s if first else limits.keep_alive_s)
            if late or (self.shared.stopping and self._is_idle()):
                self.transport.close()

    def _is_stuck(self, now_s: float, moved: bool) -> bool:
        unsent = self.transport.get_write_buffer_size()
        if not unsent or not self._unsent or moved:
            self._unsent_s = self._moved_s = now_s
        elif unsent != self._unsent:
            self._moved_s = now_s
        self._unsent = unsent
        limits = self.shared.limits
        return now_s - self._moved_s > limits.idle_s or now_s - self._unsent_s > limits.body_s

    # ----

    def _receive_bounded(self, data: bytes) -> None:
        limit = self.shared.limits.header_nbytes
        if self._doing == _HEAD:
            self._nbytes += len(data)
        self._long_head = len(data) > limit or self._nbytes > limit
        cycle = self.cycle if self._doing == _BODY else None
        had, steps = len(cycle.body) if cycle is not None else 0, self._steps
        doing = self._doing
        self._feed(data)
        if self._closing or self._deaf:
            return
        if doing == _BETWEEN and self._doing == _HEAD and self._steps == steps + 1:
            self._nbytes = len(data)  # all of it is this head
        if self._doing == _HEAD and self._nbytes > limit:
            self._refused = 431, f"the head of a request has more than {limit:,} bytes"
            self.send_400_response("")
        elif self._doing == _BODY and self.cycle.more_body and not self.cycle.response_complete:
            # Sizes of chunks, their extensions, and trailers.
            came = len(data) if cycle is self.cycle else len(data) - limit
            self._nbytes = self._nbytes + came if len(self.cycle.body) == had else 0
            if self._nbytes > limit:
                self._refused = 431, f"there are more than {limit:,} bytes around the body's own"
                self.send_400_response("")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("this is no HTTP request")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on as before: we speak nothing else (RFC 9110, 7.8). The parser has dropped the request's body."""
        length = [b"%s: %s\r\n" % pair for pair in self.scope["headers"] if pair[0] in _LENGTHS]
        if length:
            cycle = self.cycle
            cycle.more_body, cycle.keep_alive = True, False
            cycle.message_event.clear()
            self._doing = _BODY
            self.parser = httptools.HttpRequestParser(_Resumed(self))
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(length))
        if rest:
            self._feed(rest)

    def _is_busy(self) -> bool:
        return self.cycle is not None and (not self.cycle.response_complete or bool(self.pipeline))

    def _is_idle(self) -> bool:
        return not self._is_busy() and self._doing == _BETWEEN and not _has_input(self.transport)

    def close(self, transport: asyncio.Transport) -> None:
        """Close, but not at once where the client still sends: the kernel would drop the answer with its bytes."""
        sends = self._doing != _BETWEEN or self._deaf
        if self._closing or self._half or not sends:
            self._closing = self._deaf = True
            transport.close()
            return
        self._closing = self._deaf = True
        self._steps += 1
        self.flow.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()


class _Transport:
    """A transport whose ``close`` is the connection's, and that sends the head of an answer with its body."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self.abort = transport.abort
        self.get_extra_info, self.get_write_buffer_size = (
            transport.get_extra_info,
            transport.get_write_buffer_size,
        )
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self._transport, self._connection = transport, connection
        self._write, self._head = transport.write, b""

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            if len(data) < _COPIED_NBYTES:
                self._write(head + data)
            else:
                self._write(head)
                self._write(data)
        elif data.startswith(_STATUS):
            self._head = data
        else:
            self._write(data)

    def flush(self) -> None:
        if self._head:  # of an answer without a body
            head, self._head = self._head, b""
            self._write(head)

    def is_closing(self) -> bool:
        return self._connection._closing or self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._connection.close(self._transport)


class _Resumed:
    """Has a parser go on behind a head that another one has read; it is fed one first, only to know the length."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._headed = connection, False
        self.on_body, self.on_message_complete = connection.on_body, connection.on_message_complete

    def on_message_begin(self) -> None:
        if self._headed:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._headed:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._headed:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._headed:
            self._connection.on_headers_complete()
        self._headed = True


class _Trailers:
    """Where headers after a body go: nowhere."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        pass


_TRAILERS = _Trailers()
_STATUS = (b"HTTP/1.1 2", b"HTTP/1.1 3", b"HTTP/1.1 4", b"HTTP/1.1 5")
"""What an answer begins with, other than 100 Continue."""
_COPIED_NBYTES = 16 << 10
"""Fewer bytes are copied behind their head faster than they are sent by themselves."""
_LENGTHS = (b"content-length", b"transfer-encoding")
_REASONS = {
    400: b"Bad Request",
    414: b"URI Too Long",
    431: b"Request Header Fields Too Large",
}


def _too_long(url: bytes, headers: list[tuple[bytes, bytes]], limit: int) -> tuple[int, str] | None:
    if len(url) > limit:
        return 414, f"the path has more than {limit:,} bytes"
    if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > limit:
        return 431, f"the head of a request has more than {limit:,} bytes"
    return None


def _has_input(transport: Any) -> bool:
    """Whether bytes have come that nobody has read yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    body = b'{"error":"the server has as many connections as it may; try again"}\n'
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"retry-after", b"1"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
