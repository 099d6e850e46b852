"""Connections in time: who is let go when, and who is not; by a server in this process that is not patient."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.transport.http import HttpLimits, Receive, Scope, Send, read_body, send_answer

pytest.importorskip("uvicorn", reason="no uvicorn (extra `serve`)")

from penstock.transport.http_server import Server

HEAD = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = HttpLimits(
    header_s=0.3,
    idle_s=0.4,
    body_s=1.5,
    keep_alive_s=0.3,
    linger_s=0.3,
    drain_s=0.0,
    connections=20,
    body_nbytes=100,
)


class Echo:
    """``/n`` is answered by n bytes, ``POST /`` by the body's length, and ``/wait`` when it is let."""

    def __init__(self) -> None:
        self.begun, self.let = threading.Event(), threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            self.begun.set()
            await asyncio.to_thread(self.let.wait)
        if scope["method"] == "POST":
            body = await read_body(receive, {}, LIMITS)
            await send_answer(send, scope, 200, b"%d" % len(body), "text/plain")
            return
        size = scope["path"].strip("/")
        await send_answer(send, scope, 200, b"x" * int(size if size.isdigit() else 1), "text/plain")


class Running:
    """The server, its port, and how many connections it has."""

    def __init__(self, limits: HttpLimits = LIMITS) -> None:
        self.app = Echo()
        self.server = Server(self.app, limits, None, None)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=asyncio.run, args=(self.run(),))
        self.thread.start()

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.server.serve(sockets=[self.listener])

    def stop(self) -> None:
        self.app.let.set()
        while self.loop is None:
            pass
        self.loop.call_soon_threadsafe(self.server.ask_to_stop)
        self.thread.join()

    def open(self, **options: Any) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60, **options)


@contextlib.contextmanager
def started(limits: HttpLimits = LIMITS) -> Iterator[Running]:
    made = Running(limits)
    try:
        yield made
    finally:
        made.stop()
    assert not made.server.server_state.connections and not made.server.server_state.tasks


@pytest.fixture
def running() -> Iterator[Running]:
    with started() as made:
        yield made


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 20):
            found += piece
    return found


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", said)]


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET / HT", HEAD % 1, HEAD % 1 + b"GET / HT", HEAD % 1 + b"\r\n"])
def test_who_says_nothing_more_is_let_go(running: Running, sent: bytes) -> None:
    with running.open() as connection:
        connection.sendall(sent)
        assert statuses(read_all(connection)) == ([200] if sent.startswith(HEAD % 1) else [])


def test_a_head_that_drips_is_let_go(running: Running) -> None:
    """However often a byte of it comes."""
    with running.open() as connection:
        connection.settimeout(0.02)
        sent = 0
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(b"GET / HTTP/1.1\r\nX: "[sent : sent + 1] or b"x")
                sent += 1
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(1):
                        raise ConnectionError
        assert sent > 1


def test_an_answer_that_nobody_reads_is_given_up(running: Running) -> None:
    with running.open() as connection:
        connection.sendall(HEAD % (64 << 20))
        assert connection.recv(10) == b"HTTP/1.1 2"
        with running.open() as other:
            other.sendall(HEAD % 3 + b"GET /4 HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert statuses(read_all(other)) == [200, 200]
        while running.server.server_state.connections:
            assert running.thread.is_alive()
        assert len(read_all(connection)) < 64 << 20


class Sink:
    """A transport of whose bytes the client takes as many as the test says."""

    def __init__(self) -> None:
        self.unsent, self.ended = 0, ""

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return bool(self.ended)

    def abort(self) -> None:
        self.ended = "aborted"

    def close(self) -> None:
        self.ended = "closed"

    def get_extra_info(self, name: str) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return lambda *given: None


@pytest.mark.parametrize(
    ("taken", "given_up_s"),
    [
        ([0] * 20, 11),  # nothing: idle_s
        ([1] * 9 + [0] * 20, 20),
        ([1] * 200, 101),  # a byte a second: body_s
        ([100] * 9 + [190], None),  # all of it
    ],
)
def test_an_answer_must_be_read_steadily(taken: list[int], given_up_s: int | None) -> None:
    limits = HttpLimits(idle_s=10, body_s=100, keep_alive_s=10_000, header_s=10_000)
    server, sink = Server(Echo(), limits, None, None), Sink()
    kind: Any = server.config.http_protocol_class

    async def look() -> int | None:
        connection = kind(config=server.config, server_state=server.server_state, app_state={})
        connection.connection_made(sink)
        sink.unsent = 1000
        connection.look(0.0)
        for now_s, nbytes in enumerate(taken, 1):
            sink.unsent = max(0, sink.unsent - nbytes)
            connection.look(float(now_s))
            if sink.ended:
                assert sink.ended == "aborted"
                return now_s
        return None

    assert asyncio.run(look()) == given_up_s


def test_a_request_that_takes_its_time_is_not_let_go(running: Running) -> None:
    """Time is counted against clients only while it is their turn; what was sent behind waits."""
    with running.open() as connection, running.open() as other:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /5 HT")
        assert running.app.begun.wait(60)
        assert read_all(other) == b""  # who says nothing has been let go meanwhile
        with running.open() as another:
            assert read_all(another) == b""
        running.app.let.set()
        connection.sendall(b"TP/1.1\r\nConnection: close\r\n\r\n")
        assert statuses(read_all(connection)) == [200, 200]


def test_a_body_that_goes_on_after_its_answer_is_let_go(running: Running) -> None:
    with running.open() as connection:
        connection.sendall(b"GET /1 HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n")
        connection.settimeout(0.02)
        said = b""
        with contextlib.suppress(ConnectionError):
            while True:
                connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    said += connection.recv(1000)
        assert statuses(said) == [200] and b"connection: close" in said


def test_more_requests_than_may_wait_end_the_connection(running: Running) -> None:
    with running.open() as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD % 1 * 500)
        assert running.app.begun.wait(60)
        running.app.let.set()
        found = statuses(read_all(connection))
        assert set(found) == {200} and len(found) <= LIMITS.pipelined + 1


def test_connections_beyond_the_limit() -> None:
    with started(HttpLimits(connections=20)) as running, contextlib.ExitStack() as stack:
        first = stack.enter_context(running.open())
        first.sendall(HEAD % 1)
        assert first.recv(10)
        for _ in range(LIMITS.connections):
            stack.enter_context(running.open())
        late = stack.enter_context(running.open())
        late.sendall(HEAD % 1)
        assert statuses(read_all(late)) == [503]
        first.sendall(b"GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert statuses(read_all(first))[-1:] == [200]
