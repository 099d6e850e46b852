"""Roles as a user starts them on any hosts, by commands; what is refused, and what others notice of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Commands, check_folder, listens, status_of, wait_for
from oracle import assert_same, bsp, rows_of

import penstock as ps
from penstock.engine.node import Access
from penstock.models import load_model
from penstock.transport import client_tls, read_token, server_tls
from tests.log.helpers import free_port


@pytest.fixture
def job(clicks: Path, tmp_path: Path) -> Path:
    """Small steps, so that it takes some seconds."""
    path = tmp_path / "job.toml"
    path.write_text(
        f'[data]\ntrain = "{clicks}"\n[features]\nlabel = "clicked"\nignore = ["time"]\n'
        '[train]\nconsistency = "bsp"\nservers = 2\nminibatch = 32\nmicro_batches = 4\npasses = 5\n'
        '[output]\npath = "run"\n'
    )
    return path


@pytest.fixture
def token(roles: Commands, tmp_path: Path) -> Path:
    """As ``penstock cluster new-token`` makes it."""
    made = roles("cluster", "new-token", "token")
    assert made.ends() == 0
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    return tmp_path / "token"


def check_rows(folder: Path, clicks: Path, passes: int = 5) -> None:
    """The rows of an undisturbed run."""
    found = load_model(folder)
    expected = ps.Linear(found.plan, segments=found.segments)
    rows = bsp(expected, ps.open_source(str(clicks)), minibatch=32, lanes=4, passes=passes)
    assert_same(rows_of(found), rows)


class Proxy:
    """Passes bytes on between a worker and a server, and breaks connections when it is told to."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self.moved = 0
        self.broken = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def break_all(self) -> None:
        for sock in self._open:
            self._shut(sock)
        self.broken += 1

    def close(self) -> None:
        self._shut(self._listener)
        self._listener.close()
        self.break_all()
        for thread in self._threads:
            thread.join(10)
        for sock in self._open:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            try:
                there = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                here.close()
                continue
            for sock in (here, there):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(sock)
            for pair in ((here, there), (there, here)):
                self._threads.append(threading.Thread(target=self._pass_on, args=pair))
                self._threads[-1].start()

    def _pass_on(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 12):
                to.sendall(data)
                self.moved += len(data)
        self._shut(source)
        self._shut(to)

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxied() -> Iterator[tuple[int, Proxy]]:
    """A port for a server, and what stands before it."""
    port = free_port()
    proxy = Proxy(port)
    yield port, proxy
    proxy.close()


def test_roles_by_hand(
    roles: Commands, job: Path, token: Path, clicks: Path, tmp_path: Path, proxied: tuple[int, Proxy]
) -> None:
    """They start before their coordinator does; connections break, one worker comes late and one leaves."""
    port, proxy = proxied
    address = f"127.0.0.1:{free_port()}"
    member = ("--join", address, "--token-file", token)
    servers = [
        roles("server", *member, "--name", "north"),
        roles("server", *member, "--name", "south", "--listen", f"127.0.0.1:{port}", "--advertise", proxy.address),
    ]
    early = roles("worker", *member, "--name", "early")
    coordinator = roles("coordinator", job, "--listen", address, "--token-file", token, "-o", "run")
    coordinator.says(f"listening at {address}")
    find = ("--join", address, "--token-file", token)

    access = Access(cluster="penstock", token=read_token(token))

    wait_for("it learns", lambda: proxy.moved > 200_000)
    proxy.break_all()
    late = roles("worker", *member, "--name", "late")
    found = wait_for(
        "both learn",
        lambda: (s := status_of(access, address)) and len([w for w in s["workers"] if w.get("done")]) == 2 and s,
    )
    assert [server["name"] for server in found["servers"]] == ["north", "south"]
    proxy.break_all()
    early.signal(signal.SIGTERM)
    assert early.ends(20) == 0 and not early.errors, early.err
    shown = roles("cluster", "status", *find)
    assert shown.ends() == 0
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "…" not in shown.out, "a cell that is cut off says nothing"
    assert coordinator.ends() == 0, coordinator.err
    assert [role.ends(20) for role in (*servers, late)] == [0, 0, 0]
    assert proxy.broken == 2
    assert "model in run" in coordinator.out
    check_rows(tmp_path / "run", clicks)
    check_folder(tmp_path / "run")
    assert not listens(address)


def test_stop_and_go_on_by_mutual_tls(
    roles: Commands, job: Path, token: Path, clicks: Path, tmp_path: Path
) -> None:
    """Stopped by ``penstock cluster stop``, gone on with, and stopped by SIGTERM."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make certificates with")
    tls = certificates(tmp_path)
    address = f"127.0.0.1:{free_port()}"
    both = ("--token-file", token, *tls)
    long = tmp_path / "long.toml"
    long.write_text(job.read_text().replace("passes = 5", "passes = 8").replace("servers = 2", "servers = 1"))
    files = [tls[1], tls[3], tls[5]]
    access = Access(
        cluster="penstock",
        token=read_token(token),
        server_tls=server_tls(*files),
        client_tls=client_tls(*files),
    )

    def start(*more: object) -> tuple[Any, Any, Any]:
        return (
            roles("coordinator", long, "--listen", address, *both, *more),
            roles("server", "--join", address, *both),
            roles("worker", "--join", address, *both),
        )

    coordinator, server, worker = start()

    def learns() -> bool:
        found = status_of(access, address)
        return bool(found and found["phase"] == "training" and found["rows"] > 1000)

    wait_for("training", learns)
    plain = roles("cluster", "status", "--join", address, "--token-file", token)
    assert plain.ends(20) == 1 and "TLS" in plain.err
    stop = roles("cluster", "stop", "--join", address, *both)
    assert stop.ends() == 0
    assert coordinator.ends(20) == 130
    (error,) = coordinator.errors
    assert error.startswith("penstock: stopped by penstock cluster stop; go on from the checkpoint with: ")
    assert error.endswith(f"penstock coordinator {long} --resume")
    assert [server.ends(20), worker.ends(20)] == [1, 1]
    assert server.errors == worker.errors == ["penstock: stopped by penstock cluster stop"]
    coordinator, server, worker = start("--resume")
    wait_for("training", learns)
    assert coordinator.process.poll() is None
    coordinator.signal(signal.SIGTERM)
    assert coordinator.ends(20) == 130 and "stopped by SIGTERM" in coordinator.err
    assert [server.ends(20), worker.ends(20)] == [1, 1]
    last = roles("train", "--resume", "-o", "run", "--workers", 1, "--quiet")
    assert last.ends() == 0, last.err
    check_rows(tmp_path / "run", clicks, passes=8)


def certificates(folder: Path) -> tuple[object, ...]:
    """An authority, and one certificate for all hosts, which are one."""
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca, cert, key = folder / "ca.pem", folder / "host.pem", folder / "host.key"
    signing = ("-CAcreateserial", "-days", 2, "-extfile", folder / "host.ext", "-out", cert)
    (folder / "host.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for arguments in (
        ("req", "-x509", *new, "-days", 2, "-subj", "/CN=authority", "-keyout", folder / "ca.key", "-out", ca),
        ("req", *new, "-subj", "/CN=host", "-keyout", key, "-out", folder / "host.csr"),
        ("x509", "-req", "-in", folder / "host.csr", "-CA", ca, "-CAkey", folder / "ca.key", *signing),
    ):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)
    return ("--tls-cert", cert, "--tls-key", key, "--tls-ca", ca)


def test_who_is_refused(roles: Commands, job: Path, token: Path, tmp_path: Path) -> None:
    """All at once, at a coordinator that waits for servers; it does not mind, and ends when it is told to."""
    address = f"127.0.0.1:{free_port()}"
    coordinator = roles("coordinator", job, "--listen", address, "--token-file", token, "--servers", 1)
    coordinator.says("listening at")
    others, readable = tmp_path / "others", tmp_path / "readable"
    for path, mode in ((others, 0o600), (readable, 0o644)):
        path.write_text("0123456789abcdef0123456789abcdef\n")
        path.chmod(mode)
    server = ("server", "--join", address, "--token-file")
    nobody = f"127.0.0.1:{free_port()}"
    wrong_token = roles(*server, others)
    wrong_name = roles(*server, token, "--cluster", "another")
    for_all = roles(*server, readable)
    taken = roles(*server, token, "--listen", address)
    second = roles("coordinator", job, "--listen", address, "--token-file", token, "-o", "second")
    bare = roles(*server, token, "--listen", "0.0.0.0:0")
    alone = roles("worker", "--join", nobody, "--token-file", token, "--join-s", 0.5)
    first = roles(*server, token, "--name", "first")
    access = Access(cluster="penstock", token=read_token(token))
    wait_for("the first joined", lambda: (s := status_of(access, address)) and s["servers"])
    too_many = roles(*server, token, "--name", "second")
    for command, status, message in (
        (wrong_token, 1, f"{address}: the cluster token is wrong"),
        (wrong_name, 1, f"{address}: is a coordinator of cluster 'penstock', not 'another'"),
        (for_all, 2, "others may read it (mode 644); run: chmod 600"),
        (taken, 2, f"{address}: is taken by another program"),
        (second, 2, f"{address}: is taken by another program"),
        (bare, 2, "--listen 0.0.0.0:0 is no address that workers can reach; name one by --advertise"),
        (alone, 1, f"{nobody}: nobody listens there (connection refused)"),
        (too_many, 1, "the cluster has its 1 servers already"),
    ):
        assert command.ends(20) == status, (message, command.err)
        (error,) = command.errors
        assert message in error
    assert coordinator.process.poll() is None and first.process.poll() is None
    assert f"{address}: refused: " in coordinator.err
    os.kill(coordinator.process.pid, signal.SIGINT)
    assert coordinator.ends(20) == 130
    assert first.ends(20) == 1
