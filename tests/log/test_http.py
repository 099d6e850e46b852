"""The HTTP server: what is answered with 200 is in the log, once, whatever is killed; and nobody can hurt it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ConfigError, StorageError
from penstock.log import EventStream, Log
from penstock.log.sources.http import App, Limits, serve
from penstock.transport.http import is_loopback
from tests.asgi import ask
from tests.log.conftest import Penstock
from tests.log.helpers import DEADLINE_S, column, process, until

LINES = {"content-type": "application/x-ndjson"}
JSON = {"content-type": "application/json"}
GZIP = {**LINES, "content-encoding": "gzip"}
HEAD = (
    b"POST /streams/s/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/jsonl\r\nContent-Length: %d\r\n\r\n"
)


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"ts": 1_767_225_600 + n, "n": n}).encode() + b"\n" for n in numbers)


def numbered(producer: str, sequence: int) -> dict[str, str]:
    return {**LINES, "penstock-producer": producer, "penstock-sequence": str(sequence)}


@dataclass
class Client:
    """Speaks to the application as a server would."""

    app: App

    async def ask(
        self, method: str, path: str, body: bytes | list[bytes] = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        found = await ask(self.app, method, path, body, headers)
        return found.status, found.headers, json.loads(found.body or b"{}")

    def __call__(self, method: str, path: str, body: bytes | list[bytes] = b"", headers: Any = None) -> Any:
        return asyncio.run(self.ask(method, path, body, headers))

    def post(self, body: bytes | list[bytes], headers: dict[str, str] = LINES, stream: str = "s") -> Any:
        status, _, answer = self("POST", f"/streams/{stream}/events", body, headers)
        return status, answer


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def client(place: Path) -> Iterator[Client]:
    app = App(str(place), create=True)
    yield Client(app)
    app.stop()


def test_events_are_in_the_log_when_they_are_answered(client: Client, place: Path) -> None:
    assert client.post(lines(0, 1)) == (200, {"rows": 2, "rejected": 0, "end": 2})
    assert column(place, "s", "n") == [0, 1]
    array = b'\xef\xbb\xbf [{"ts": 1767225602,\n "n": 2}, {"ts": "2026-01-01", "n": 3}]'
    assert client.post(array, JSON) == (200, {"rows": 2, "rejected": 0, "end": 4})
    assert client.post(b'{"ts": 1767225604,\n "n": 4}', JSON)[1]["rows"] == 1
    assert client.post(lines(5, 6), JSON)[1]["rows"] == 2
    assert client.post(lines(7).rstrip(), {"content-type": "Application/JSONL; charset=utf-8"})[1]["rows"] == 1
    assert client.post([b'{"ts":17672', b'25608,"n":8}', b"\n"])[1]["rows"] == 1
    two = gzip.compress(lines(9)) + gzip.compress(lines(10))
    assert client.post(two, {**LINES, "content-encoding": "gzip"})[1]["rows"] == 2
    assert client.post(b"") == (200, {"rows": 0, "rejected": 0, "end": 11})
    assert column(place, "s", "n") == list(range(11))
    assert set(column(place, "s", "_source")) == {"http"}


def test_what_is_no_event_is_counted_and_kept(client: Client, place: Path) -> None:
    client.post(lines(0))
    body = lines(1) + b'garbage\n{"ts":"x","n":2}\n{"n":3}\n{"ts":1,"n":"x"}\n' + lines(4)
    assert client.post(body) == (200, {"rows": 2, "rejected": 4, "end": 3})
    reasons = Log(str(place)).quarantine("s").read()["reason"].to_pylist()
    assert sorted(reasons) == ["malformed", "time", "time", "type"]


def test_a_request_with_a_number_is_taken_once(client: Client, place: Path) -> None:
    assert client.post(lines(0), numbered("p", 5)) == (200, {"rows": 1, "rejected": 0, "end": 1})
    done = {"rows": 0, "rejected": 0, "end": 1, "duplicate": True}
    assert client.post(lines(0), numbered("p", 5)) == (200, done)
    assert client.post(lines(0), numbered("p", 4)) == (200, done)
    assert client.post(lines(1) + b"x\n", numbered("p", 9))[1]["rejected"] == 1
    client.post(lines(1) + b"x\n", numbered("p", 9))
    assert client.post(lines(2), numbered("q", 5))[1]["rows"] == 1
    app = App(str(place))  # another server, later
    assert Client(app).post(lines(0), numbered("p", 9))[1] == {**done, "end": 3}
    app.stop()
    assert column(place, "s", "n") == [0, 1, 2]
    assert Log(str(place)).quarantine("s").read()["producer"].to_pylist() == ["http/p"]


def test_what_was_refused_can_be_sent_again_under_its_number(client: Client, place: Path) -> None:
    client.post(lines(0), numbered("p", 0))
    assert client.post(b"garbage\n", numbered("p", 1))[0] == 400
    assert client.post(lines(1), numbered("p", 1)) == (200, {"rows": 1, "rejected": 0, "end": 2})
    assert Log(str(place)).quarantine("s").read().num_rows == 0


def test_requests_at_the_same_time_are_one_commit(place: Path) -> None:
    app = App(str(place), create=True, limits=Limits(gather_s=0.5, commit_nbytes=1 << 30))
    client = Client(app)
    client.post(lines(0))
    before = Log(str(place)).stream("s").version

    async def all_at_once() -> list[Any]:
        some = [client.ask("POST", "/streams/s/events", lines(n), numbered(f"p{n % 3}", n)) for n in range(1, 9)]
        bad = client.ask("POST", "/streams/s/events", b"garbage\n", LINES)
        again = client.ask("POST", "/streams/s/events", lines(8), numbered("p2", 8))
        return await asyncio.gather(*some, bad, again)

    answers = asyncio.run(all_at_once())
    assert [status for status, _, _ in answers] == [200] * 8 + [400, 200]
    assert [answer["rows"] for _, _, answer in answers[:8]] == [1] * 8
    assert answers[-1][2]["duplicate"]
    app.stop()
    stream = Log(str(place)).stream("s")
    assert (stream.version - before, stream.end) == (1, 9)
    assert sorted(column(place, "s", "n")) == list(range(9))


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "said"),
    [
        ("GET", "/", b"", {}, 404, "no such path '/'"),
        ("GET", "/streams/s/events", b"", {}, 405, "got GET, allowed: POST"),
        ("POST", "/health", b"", {}, 405, "got POST, allowed: GET"),
        ("POST", "/streams/S%20/events", b"x", LINES, 404, "got the name"),
        ("POST", "/streams/../../etc/events", b"x", LINES, 404, "no such path"),
        ("POST", "/streams/s/events", b"x", {}, 415, "got content-type ''"),
        ("POST", "/streams/s/events", b"x", {"content-type": "text/plain"}, 415, "'text/plain', allowed"),
        ("POST", "/streams/s/events", b"x", {**LINES, "content-encoding": "br"}, 415, "allowed: gzip"),
        ("POST", "/streams/s/events", b"xxxxx", GZIP, 400, "is no gzip"),
        ("POST", "/streams/s/events", gzip.compress(b"x", mtime=0)[:-9], GZIP, 400, "too early"),
        ("POST", "/streams/s/events", b"x", LINES, 400, "no event: JSON is malformed"),
        ("POST", "/streams/s/events", b'{"a":1}', LINES, 400, "which column is the event time"),
        ("POST", "/streams/s/events", b"[1", JSON, 400, "truncated"),
        ("POST", "/streams/s/events", b"[" * 100_000, JSON, 400, ""),
        ("POST", "/streams/s/events", b"\xff\xfe", LINES, 400, "not UTF-8"),
        ("POST", "/streams/s/events", b"x", {**LINES, "penstock-producer": "p"}, 400, "belong together"),
        ("POST", "/streams/s/events", b"x", numbered("", 1), 400, "Producer"),
        ("POST", "/streams/s/events", b"x", numbered("p", -1), 400, "Penstock-Sequence: got '-1'"),
        ("POST", "/streams/s/events", b"x", numbered("p", 10**30), 400, "Penstock-Sequence"),
        ("POST", "/streams/s/events", b"x" * 2000, LINES, 413, "more than 1,000 bytes"),
        ("POST", "/streams/s/events", b"x", {**LINES, "content-length": "2000"}, 413, "more than 1,000 bytes"),
        ("POST", "/streams/s/events", gzip.compress(b" " * 9000, mtime=0), GZIP, 413, "decompressed"),
        ("POST", "/streams/s/events", [], LINES, 408, "too slowly"),
    ],
)  # fmt: skip
def test_what_is_refused(
    place: Path, method: str, path: str, body: Any, headers: dict[str, str], status: int, said: str
) -> None:
    app = App(str(place), create=True, limits=Limits(body_nbytes=1000, text_nbytes=5000, idle_s=0.05))
    if body == b"[" * 100_000:
        app = App(str(place), create=True)
    got, _, answer = Client(app)(method, path, body, headers)
    assert got == status
    assert said in answer["error"]
    assert "\n" not in answer["error"]
    assert Client(app)("GET", "/health")[2] == {"status": "ok", "waiting_nbytes": 0}
    app.stop()


def test_a_stream_that_is_not_there_is_not_made_unless_said(place: Path) -> None:
    app = App(str(place))
    status, answer = Client(app).post(lines(0))
    assert (status, "without --create" in answer["error"]) == (404, True)
    assert not place.exists()


def test_the_token(place: Path) -> None:
    app = App(str(place), create=True, token=b"secret-secret-secret")
    client = Client(app)
    for given in (
        None,
        "Bearer wrong",
        "Bearer",
        "Basic secret-secret-secret",
        "Bearer secret-secret-secretx",
        "Bearer \xff",
    ):
        headers = LINES if given is None else {**LINES, "authorization": given}
        status, got, _ = client("POST", "/streams/s/events", lines(0), headers)
        assert (status, got["www-authenticate"]) == (401, "Bearer")
    assert client.post(lines(0), {**LINES, "authorization": "bearer secret-secret-secret"})[0] == 200
    assert client("GET", "/health")[0] == 200
    app.stop()


def test_beyond_what_may_wait_senders_are_told_to_wait(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(str(place), create=True, limits=Limits(waiting_nbytes=500))
    client = Client(app)
    client.post(lines(0))
    go = threading.Event()
    original = EventStream.append

    def slow(*args: Any, **kwargs: Any) -> Any:
        go.wait()
        return original(*args, **kwargs)

    monkeypatch.setattr(EventStream, "append", slow)

    async def fill() -> None:
        first = asyncio.create_task(client.ask("POST", "/streams/s/events", lines(*range(1, 30)), LINES))
        while not app._waiting:
            await asyncio.sleep(0)
        status, headers, _ = await client.ask("POST", "/streams/s/events", lines(30), LINES)
        assert (status, headers["retry-after"]) == (429, "1")
        go.set()
        assert (await first)[0] == 200

    asyncio.run(asyncio.wait_for(fill(), DEADLINE_S))
    assert client.post(lines(30))[0] == 200
    app.stop()
    assert column(place, "s", "n") == list(range(31))


def test_a_full_disk_is_503_until_there_is_room(
    client: Client, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post(lines(0))

    def full(*args: Any, **kwargs: Any) -> None:
        raise StorageError("log: cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(EventStream, "append", full)
        status, headers, answer = client("POST", "/streams/s/events", lines(1), numbered("p", 1))
        assert (status, headers["retry-after"]) == (503, "5")
        assert "No space left on device" in answer["error"]
        assert client("GET", "/health")[0] == 503
    assert client.post(lines(1), numbered("p", 1))[0] == 200
    assert client("GET", "/health")[0] == 200
    assert column(place, "s", "n") == [0, 1]


def test_one_request_that_fails_does_not_fail_others(place: Path) -> None:
    app = App(str(place), create=True, limits=Limits(gather_s=0.3))
    client = Client(app)

    async def both() -> Any:
        return await asyncio.gather(
            client.ask("POST", "/streams/s/events", b'{"a":1}\n', LINES),
            client.ask("POST", "/streams/s/events", b'{"b":1}\n', LINES),
            client.ask("POST", "/streams/t/events", lines(0), LINES),
        )

    assert [status for status, _, _ in asyncio.run(both())] == [400, 400, 200]
    app.stop()


# ---- a real server


@contextlib.contextmanager
def server(place: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with process("log", "listen", place, "--port", 0, "--create", *options) as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        assert said.startswith("listening at http://127.0.0.1:"), running.communicate()
        yield running, int(said.rsplit(":", 1)[1])


def post(port: int, body: bytes, headers: dict[str, str] = LINES) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/streams/s/events", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("options", [(), ("--durable",)])
def test_what_was_answered_survives_kill_9_and_repeating_changes_nothing(
    place: Path, options: tuple[str, ...]
) -> None:
    """Senders repeat a request until it is answered; the server is killed again and again."""
    port = 0
    answered: set[int] = set()
    serving, stop = threading.Event(), threading.Event()

    def send(producer: int) -> None:
        sequence = 0
        while not stop.is_set():
            number = producer * 100_000 + sequence
            if not serving.wait(0.05):
                continue
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _ = post(port, lines(number), numbered(f"p{producer}", sequence))
                assert status == 200
                answered.add(number)
                sequence += 1

    senders = [threading.Thread(target=send, args=(producer,)) for producer in range(3)]
    for sender in senders:
        sender.start()
    try:
        for _ in range(2):
            with server(place, *options) as (running, at):
                port, before = at, len(answered)
                serving.set()
                until(lambda before=before: len(answered) >= before + 15, running)
                running.send_signal(signal.SIGKILL)
                running.wait()
                serving.clear()
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    there = column(place, "s", "n")
    assert len(there) == len(set(there))
    assert answered <= set(there)
    assert len(set(there) - answered) <= 2 * 3  # on their way when it was killed


def test_sigterm_answers_what_was_begun(place: Path) -> None:
    with server(place) as (running, port):
        with socket.create_connection(("127.0.0.1", port)) as slow:
            body = lines(0)
            slow.sendall(HEAD % len(body) + body[:5])
            assert post(port, lines(1))[0] == 200  # so the other one was begun
            running.send_signal(signal.SIGTERM)
            until(lambda: _refuses(port), None)
            slow.sendall(body[5:])
            assert b'"rows":1' in _read_all(slow)
        assert running.wait() == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""
    assert sorted(column(place, "s", "n")) == [0, 1]


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def _read_all(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


@contextlib.contextmanager
def serving(place: Path, **limits: Any) -> Iterator[int]:
    """A server in this test's process tree with limits of its own."""
    code = (
        "import sys; from penstock.log.sources.http import App, Limits, serve;"
        f"limits = Limits(**{limits!r});"
        f"serve(App({str(place)!r}, create=True, limits=limits), '127.0.0.1', 0, limits, "
        "lambda url: print(url, flush=True))"
    )
    with process(argv=[sys.executable, "-c", code]) as running:
        assert running.stdout is not None
        yield int(running.stdout.readline().rsplit(":", 1)[1])
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0


def test_slow_and_silent_and_large_senders_are_let_go(place: Path) -> None:
    with serving(place, header_s=0.2, idle_s=0.2, header_nbytes=2000) as port:
        with socket.create_connection(("127.0.0.1", port)) as silent:
            assert _read_all(silent) == b""
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
            assert _read_all(slow) == b""
        with socket.create_connection(("127.0.0.1", port)) as again:  # the second request on a connection
            again.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in again.recv(65536)
            again.sendall(b"GET /health HTT")
            assert b"200 OK" not in _read_all(again)
        with socket.create_connection(("127.0.0.1", port)) as body:
            body.sendall(HEAD % 99 + b"{")
            assert b"408" in _read_all(body)
        with socket.create_connection(("127.0.0.1", port)) as large:
            large.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 5000)
            assert b"431" in large.recv(65536)
        assert post(port, lines(0))[0] == 200


def test_too_many_connections_are_told_so(place: Path) -> None:
    with serving(place, connections=2) as port, contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(socket.create_connection(("127.0.0.1", port)))

        def is_refused() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health")
            status = connection.getresponse().status
            connection.close()
            return status == 503

        until(is_refused)


def test_who_may_reach_it(tmp_path: Path, penstock: Penstock) -> None:
    status, out, err = penstock("log", "listen", "log", "--host", "0.0.0.0")
    assert (status, out) == (2, "")
    assert "--host 0.0.0.0 can be reached by others: it needs --token-file" in err
    (tmp_path / "token").write_text("x" * 40)
    (tmp_path / "token").chmod(0o644)
    status, _, err = penstock("log", "listen", "log", "--host", "0.0.0.0", "--token-file", "token")
    assert (status, "others may read it" in err) == (2, True)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"cannot listen at 127\.0\.0\.1"),
    ):
        serve(App("log"), "127.0.0.1", taken.getsockname()[1])
    assert [is_loopback(host) for host in ("localhost", "127.3.2.1", "::1", "10.0.0.1", "0.0.0.0", "x", "")] == [
        *(True, True, True),
        *(False, False, False, False),
    ]


def test_a_server_with_a_token(place: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    with server(place, "--token-file", tmp_path / "token") as (_, port):
        assert post(port, lines(0))[0] == 401
        assert post(port, lines(0), {**LINES, "authorization": "Bearer 0123456789abcdef"})[0] == 200


def test_a_bomb_is_not_unpacked(client: Client) -> None:
    bomb = zlib.compressobj(9, wbits=31)
    body = b"".join([*(bomb.compress(b" " * (1 << 20)) for _ in range(200)), bomb.flush()])
    assert client.post(body, {**LINES, "content-encoding": "gzip"})[0] == 413
