"""A server process and clients that do not behave: slow, half-closed, ambiguous, silent, very many."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.log.helpers import until
from tests.serve.conftest import Served
from tests.serve.test_server import ask, connect, serving

ROW = b'[{"site":"site-1"}]'
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
GOOD = POST % len(ROW) + ROW


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with serving(served.folder, "--connections", 100) as (running, port, _):
        yield running, port
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""


@pytest.fixture
def port(server: tuple[subprocess.Popen[str], int]) -> Iterator[int]:
    """A port at which a good request is answered, before and after."""
    yield server[1]
    assert predict(server[1]) == 200


def predict(port: int) -> int:
    with contextlib.closing(connect(port)) as connection:
        return ask(connection, "/predict", [{"site": "site-1"}])[0]


def open_to(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def talk(port: int, sent: bytes, *, finish: bool = False) -> bytes:
    """All that the server says until it closes; it must, without us closing first."""
    with open_to(port) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(sent)
            if finish:
                connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            found += piece
    return found


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", said)]


CLOSE = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (b"GET / HTTP/9.9\r\n\r\n", [400]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400]),
        (b"GET  HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
        (b"GET \xff HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
        (b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
        (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
        (b"GET /health HTTP/1.1\r\nHost x\r\n\r\n", [400]),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", [400]),
        (b"GET /health HTTP/1.1\r\nA\x00B: x\r\n\r\n", [400]),
        (b"GET /health HTTP/1.1\r\nA: x\x00y\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5x\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n" % (b"f" * 30), [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[{\"xx", [400]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"e" * 40_000, [431]),
        (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: " + b"e" * 40_000, [431]),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n[", [413]),
        (b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[", [404]),
        (b"GET /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[", [405]),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", [414]),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", [431]),
        (b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 9_000 + b"\r\n", [431]),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, [431]),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000, [431]),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n" + CLOSE, [400]),
        (b"GET /health HTTP/1.0\r\n\r\n", [200]),
        (b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", [200]),
        (b"\r\n\r\n" + CLOSE, [200]),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [404]),
        (b"OPTIONS /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [405]),
        (b"PROPFIND /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [405]),
        (b"DELETE /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [405]),
        (b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [200]),
        (b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [404]),
        (GET * 99 + CLOSE, [200] * 100),
        (GOOD * 20 + CLOSE, [200] * 21),
        (GOOD + b"garbage\r\n\r\n", [200]),
        (GOOD * 5 + b"POST /predict HTTP/1.1\r\nContent-Length: x\r\n\r\n", [200] * 5),
    ],
)  # fmt: skip
def test_what_is_no_request_or_an_unusual_one(port: int, sent: bytes, found: list[int]) -> None:
    said = talk(port, sent)
    assert statuses(said) == found, said
    if found[0] >= 400 and not sent.startswith(b"HEAD"):
        assert said.count(b"\r\n\r\n") == 1
        assert set(json.loads(said.partition(b"\r\n\r\n")[2])) == {"error"}


def test_an_upgrade_to_what_we_do_not_speak_is_not_one(port: int) -> None:
    """As some clients ask in every first request (h2c)."""
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    )
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n" % (upgrade, len(ROW))
    said = talk(port, (head + ROW) * 3 + CLOSE)
    assert statuses(said) == [200] * 4, said


def test_expect_100_continue(port: int) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with open_to(port) as connection:
        connection.sendall(head % (b"/predict", len(ROW)))
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(ROW)
        said = b""
        while not said.endswith(b"}"):
            said += connection.recv(65536)
        assert statuses(said) == [200]
        # An answer without having asked for the body is the last one: who knows whether the body comes.
        connection.sendall(head % (b"/nowhere", len(ROW)))
        said = read_all(connection)
        assert statuses(said) == [404] and b"connection: close" in said


def test_an_answer_reaches_a_client_that_has_closed_its_side(port: int) -> None:
    assert statuses(talk(port, GOOD, finish=True)) == [200]
    assert statuses(talk(port, GOOD * 30, finish=True)) == [200] * 30
    many = b"[" + b",".join([b'{"site":"site-1"}'] * 9000) + b"]"
    assert statuses(talk(port, POST % len(many) + many, finish=True)) == [200]
    assert statuses(talk(port, GOOD + POST % 99 + b"[", finish=True)) == [200]
    assert statuses(talk(port, GOOD * 3 + POST % 99 + b"[", finish=True)) == [200] * 3
    assert talk(port, POST % 99 + b"[", finish=True) == b""
    assert talk(port, b"", finish=True) == b""


def test_a_client_that_still_sends_hears_why_it_was_refused(port: int) -> None:
    body = b"[" + b" " * (80 << 20)
    with open_to(port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(POST % len(body) + body)
        assert statuses(read_all(connection)) == [413]


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass
class Used:
    """Open files, and bytes of memory, of a process."""

    files: int
    resident: int

    @staticmethod
    def by(running: subprocess.Popen[str]) -> Used:
        proc = Path("/proc") / str(running.pid)
        [kib] = re.findall(r"VmRSS:\s+(\d+) kB", (proc / "status").read_text())
        return Used(len(list((proc / "fd").iterdir())), int(kib) << 10)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to look at a process")
def test_many_rounds_of_bad_clients_leave_nothing_behind(server: tuple[subprocess.Popen[str], int]) -> None:
    running, port = server
    large = b"[" + b",".join([b'{"site":"site-1"}'] * 9000) + b"]"

    def a_round() -> None:
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(open_to(port)) for _ in range(8)]
            held[0].sendall(GOOD[:20])
            held[1].sendall(POST % 1000 + b"[")
            held[2].sendall(GOOD * 40)
            held[3].sendall(POST % len(large) + large)
            held[4].sendall(b"garbage\r\n\r\n")
            held[5].sendall(b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[{")
            for connection in held[:4]:
                reset(connection)
        assert predict(port) == 200

    for _ in range(10):
        a_round()
    until(lambda: Used.by(running).files < 60, running)
    before = Used.by(running)
    for _ in range(60):
        a_round()
    until(lambda: Used.by(running).files <= before.files, running)
    assert Used.by(running).resident < before.resident + (48 << 20)


def test_beyond_the_connections_newcomers_are_refused_and_the_others_go_on(served: Served) -> None:
    """Those who are connected are answered, whoever else comes; places that are free again are given again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(3000, hard - 200)
    if most < 300:
        pytest.skip(f"a process may have {hard} open files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most + 200), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        running, port, _ = stack.enter_context(serving(served.folder, "--connections", most - 200))
        connection = stack.enter_context(contextlib.closing(connect(port)))
        assert ask(connection, "/health")[0] == 200
        with contextlib.ExitStack() as crowd:
            many = [crowd.enter_context(open_to(port)) for _ in range(most)]
            for n in range(5):
                assert ask(connection, "/predict", [{"site": f"site-{n}"}])[0] == 200
            said = []
            for each in many[-150:]:
                with contextlib.suppress(ConnectionError):
                    each.sendall(CLOSE)
                said.append(statuses(read_all(each)))
            assert [503] in said and [] in said  # told, and closed at once
            assert all(each in ([503], []) for each in said)

        def is_free() -> bool:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                return predict(port) == 200
            return False

        until(is_free, running)
        assert ask(connection, "/health")[0] == 200


@dataclass
class Client:
    """Asks on one connection, one request after another, until it is told that the connection ends."""

    port: int
    answered: int = 0
    told: bool = False
    failure: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        try:
            with contextlib.closing(connect(self.port)) as connection:
                while not self.told:
                    connection.request("POST", "/predict", ROW)
                    answer = connection.getresponse()
                    assert answer.status == 200 and json.loads(answer.read())["predictions"]
                    self.answered += 1
                    self.told = answer.getheader("connection") == "close"
        except BaseException as error:
            self.failure = error


def test_sigterm_under_load_loses_no_request(served: Served) -> None:
    with serving(served.folder, "--drain-s", 2) as (running, port, _):
        clients = [Client(port) for _ in range(20)]
        until(lambda: all(client.answered > 5 or client.failure for client in clients), running)
        with open_to(port) as idle, open_to(port) as slow:
            idle.sendall(GET)
            said = b""
            while not said.endswith(b"}"):
                said += idle.recv(65536)
            slow.sendall(GOOD[:-5])
            running.send_signal(signal.SIGTERM)

            def ready() -> tuple[int, str | None]:
                with contextlib.closing(connect(port)) as connection:
                    connection.request("GET", "/v2/health/ready")
                    answer = connection.getresponse()
                    assert json.loads(answer.read())["ready"] == (answer.status == 200)
                    return answer.status, answer.getheader("connection")

            until(lambda: ready() == (503, "close"))  # while it drains, others may still connect
            for client in clients:
                client.thread.join(60)
            assert [client.failure for client in clients] == [None] * 20
            assert all(client.told for client in clients)
            slow.sendall(GOOD[-5:])
            said = read_all(slow)
            assert statuses(said) == [200] and b"connection: close" in said
            assert read_all(idle) == b""
        assert running.wait(60) == 0
        assert running.stderr is not None and running.stderr.read() == ""


def test_a_second_sigterm_ends_the_drain(served: Served) -> None:
    with serving(served.folder, "--drain-s", 1000) as (running, port, _):
        running.send_signal(signal.SIGTERM)

        def drains() -> bool:
            with contextlib.closing(connect(port)) as connection:
                return ask(connection, "/v2/health/ready")[0] == 503

        until(drains, running)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
