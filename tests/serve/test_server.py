"""``penstock serve`` as a process: what it answers, how it ends, who may reach it, and who cannot hurt it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.log.helpers import process, until
from tests.serve.conftest import Served, rows_of_all_kinds
from tests.serve.test_rows import as_json


@contextlib.contextmanager
def serving(*options: object) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """A server on a port that nobody has: the process, the port, and what it said before it listened."""
    with process("serve", *options, "--port", 0) as running:
        assert running.stdout is not None
        said = [running.stdout.readline()]
        while said[-1] and not said[-1].startswith("listening at"):
            said.append(running.stdout.readline())
        assert said[-1], running.communicate()
        yield running, int(said[-1].rsplit(":", 1)[1]), said


def ask(connection: http.client.HTTPConnection, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    connection.request("GET" if data is None else "POST", path, data, headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def test_it_answers_as_the_trainer_does_and_ends_well(served: Served) -> None:
    table = rows_of_all_kinds(50, seed=9)
    expected = served.model.predict(table)
    with serving(served.folder, f"other={served.folder}", "--access-log") as (running, port, said):
        assert said[0] == f"model ctr: version 1, {served.model.rows:,} features, from {served.folder}\n"
        with contextlib.closing(connect(port)) as connection:
            status, found = ask(connection, "/predict", as_json(table))
            assert status == 200
            np.testing.assert_array_equal(np.array(found["predictions"], np.float32), expected)
            assert ask(connection, "/predict?model=other", as_json(table)[:1])[1]["predictions"][0] == expected[0]
            assert ask(connection, "/predict", [{}])[0] == 400  # and the connection is still good
            assert ask(connection, "/v2/health/ready") == (200, {"ready": True})
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
        assert running.stderr is not None
        log = [json.loads(line) for line in running.stderr.read().splitlines()]
        assert [line["status"] for line in log] == [200, 200, 400, 200]


def test_sigterm_answers_what_was_begun(served: Served) -> None:
    with serving(served.folder) as (running, port, _):
        body = json.dumps([{"site": "site-1"}]).encode()
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5])
            with contextlib.closing(connect(port)) as connection:
                assert ask(connection, "/health")[0] == 200  # so the other one was begun
            running.send_signal(signal.SIGTERM)
            until(lambda: refuses(port))
            slow.sendall(body[5:])
            found = b""
            while piece := slow.recv(65536):
                found += piece
            assert b"200 OK" in found and b'"predictions":[' in found
        assert running.wait(60) == 0


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def test_garbage_and_hundreds_of_half_open_connections_harm_nobody(served: Served) -> None:
    garbage = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 1000,
        b"POST /predict HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
    ]
    with serving(served.folder) as (running, port, _), contextlib.ExitStack() as stack:
        for _ in range(40):
            for each in garbage:
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                with contextlib.suppress(OSError):
                    connection.sendall(each)
        with contextlib.closing(connect(port)) as connection:
            assert ask(connection, "/predict", [{"site": "site-1"}])[0] == 200
        assert running.poll() is None


def test_beyond_the_connections_others_are_told(served: Served) -> None:
    with serving(served.folder, "--connections", 4) as (_, port, _), contextlib.ExitStack() as stack:
        with contextlib.closing(connect(port)) as connection:
            assert ask(connection, "/health")[0] == 200
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))

        def is_refused() -> bool:
            with contextlib.closing(connect(port)) as connection:
                connection.request("GET", "/health")
                return connection.getresponse().status == 503

        until(is_refused)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make certificates with")
def test_tls_and_a_token(served: Served, tmp_path: Path) -> None:
    certificate, key, token = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "token"
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    named = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate)
    subprocess.run(["openssl", *new, *map(str, named)], check=True, capture_output=True, timeout=60)
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    options = ("--tls-cert", certificate, "--tls-key", key, "--token-file", token)
    with serving(served.folder, *options) as (_, port, said):
        assert "https://" in said[-1]
        context = ssl.create_default_context(cafile=str(certificate))
        with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, context=context)) as connection:
            assert ask(connection, "/predict", [{"site": "x"}])[0] == 401
            assert ask(connection, "/predict", [{"site": "x"}], Authorization="Bearer 0123456789abcdef")[0] == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("nothing",), "nothing: no model there (no manifest.json)"),
        (("a=ctr", "a=ctr"), "two models would be called 'a'"),
        (("=ctr",), "got the name ''"),
        (("ctr", "--host", "0.0.0.0"), "can be reached by others: it needs --token-file"),
        (("ctr", "--tls-cert", "x"), "--tls-cert and --tls-key belong together"),
        (("ctr", "--tls-cert", "x", "--tls-key", "x"), "TLS: there is no file x"),
        (("ctr", "--tls-cert", "ctr/manifest.json", "--tls-key", "ctr/manifest.json"), "TLS: the certificate"),
        (("ctr", "--host", "no.such.host.invalid", "--token-file", "token"), "cannot listen at"),
    ],
)
def test_what_cannot_be_served(served: Served, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    shutil.copytree(served.folder, tmp_path / "ctr")
    given = [str(tmp_path / each) if each in ("ctr", "ctr/manifest.json", "token") else each for each in options]
    given = [each.replace("=ctr", f"={tmp_path / 'ctr'}") for each in given]
    with process("serve", *given, "--port", 0) as running:
        out, err = running.communicate(timeout=60)
        assert running.returncode == 2, (out, err)
        [line] = err.splitlines()
        assert line.startswith("penstock: ") and said in line
