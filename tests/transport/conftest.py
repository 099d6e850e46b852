"""Message types, a cluster of one listener, and certificates."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.transport import Codec, Connection, Identity, Listener, connect

TOKEN = b"correct horse battery staple"
SERVER = Identity(role="server", name="server-0")
WORKER = Identity(role="worker", name="worker-3")
SOON_S = 10.0
"""A deadline that is only ever reached where something is broken."""


class Note(msgspec.Struct, tag=True):
    number: int
    values: NDArray[np.float32] = np.zeros(0, np.float32)


CODEC = Codec(Note)


class Cluster:
    """Sends back whatever it gets; ``seen`` holds its connections, ``ended`` is set when one ends."""

    Note = Note
    codec = CODEC
    token = TOKEN

    def __init__(self, **options: Any) -> None:
        self.seen: list[Connection] = []
        self.ended = threading.Event()
        given = {"me": SERVER, "cluster": "a", "token": TOKEN, "codec": CODEC, **options}
        self.listener = Listener.bind("127.0.0.1:0", **given)
        self.address = self.listener.address

    def echo(self, connection: Connection) -> None:
        self.seen.append(connection)
        try:
            while True:
                connection.send(connection.receive(), SOON_S)
        finally:
            self.ended.set()

    def connect(self, **options: Any) -> Connection:
        given = {"me": WORKER, "cluster": "a", "token": TOKEN, "codec": CODEC, "timeout_s": SOON_S, **options}
        return connect(self.address, **given)

    def check_alive(self, **options: Any) -> None:
        """Others can still connect and talk."""
        with self.connect(**options) as connection:
            connection.send(Note(7), SOON_S)
            assert connection.receive(SOON_S).number == 7


@pytest.fixture
def new_cluster() -> Iterator[Callable[..., Cluster]]:
    """Makes listeners that serve; each is closed, and its threads are gone, when the test is over."""
    before = set(threading.enumerate())
    made: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        serve = options.pop("serve", None)
        made.append(Cluster(**options))
        made[-1].listener.serve(serve or made[-1].echo)
        return made[-1]

    yield make
    for cluster in made:
        cluster.listener.close()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster]) -> Cluster:
    return new_cluster()


class Authority:
    """Signs certificates with the ``openssl`` command."""

    NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._run(
            *("req", "-x509", *self.NEW_KEY, "-days", "2", "-subj", "/CN=authority"),
            *("-keyout", folder / "ca.key", "-out", self.ca),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
        )

    def sign(self, name: str, host: str = "IP:127.0.0.1") -> tuple[Path, Path]:
        """Return certificate and key."""
        cert, key, request = (self.folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={host}\n")
        self._run(
            *("req", *self.NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        self._run(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.folder / "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", cert),
        )
        return cert, key

    def _run(self, *arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make certificates with")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def other_authority(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"))
