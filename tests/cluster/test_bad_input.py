"""A client with the token that says what it should not is told so, and the cluster goes on; bad data end a run."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from counting import Counting
from harness import Threads
from oracle import assert_counted

import penstock as ps
from penstock.engine.spec import Slowness
from penstock.errors import ConnectionClosed, PenstockError
from penstock.parameter_server import ASP
from penstock.parameter_server.messages import BatchName, Heartbeat, Join, Part, Pull, Push, Ready, Refused
from penstock.transport import Codec, Identity, connect

FEATURES = ps.Features(label="clicked", ignore=["time"])


class Shout(msgspec.Struct, tag=True, kw_only=True):
    """A message that nobody knows."""

    id: int


def strategy(**options: Any) -> ps.ParameterServer:
    given = {"servers": 2, "workers": 1, "minibatch": 256, "imports": ("counting",), "consistency": ASP()}
    return ps.ParameterServer(**given | {"slow": {"*": Slowness(step_s=0.01)}} | options)


def refusals(access: Any, server: dict[str, Any], routing: int, owners: list[int]) -> dict[str, str]:
    """What a server answers to each bad request."""
    shift = np.uint64(64 - (len(owners).bit_length() - 1))
    number = 0 if server["name"] == "server-0" else 1
    own = next(segment for segment, owner in enumerate(owners) if owner == number)
    other = next(segment for segment, owner in enumerate(owners) if owner != number)
    base = int(np.uint64(own) << shift)
    good = np.array([base + 2, base + 4], np.uint64)
    one = np.ones((2, 1), np.float32)

    def pull(keys: Any, table: str = "counts") -> Pull:
        return Pull(id=1, clock=None, routing=routing, tables={table: np.array(keys, np.uint64)})

    def push(keys: Any, gradients: Any, table: str = "counts") -> Push:
        part = Part(keys=np.array(keys, np.uint64), gradients=np.asarray(gradients, np.float32))
        return Push(
            id=1,
            name=BatchName(1 << 30, 0),
            lane=None,
            clock=0,
            ends=False,
            version=0,
            routing=routing,
            tables={table: part},
        )

    asked = {
        "nan": push(good, [[1.0], [np.nan]]),
        "infinite": push(good, [[np.inf], [1.0]]),
        "dim": push(good, np.ones((2, 3))),
        "rows": push(good, np.ones((1, 1))),
        "unknown": push(good, one, "other"),
        "unknown pulled": pull(good, "other"),
        "odd": pull([base + 2, base + 3]),
        "zero": pull([0]),
        "falling": pull([base + 4, base + 2]),
        "twice": push([base + 4, base + 4], one),
        "another's": pull([(other << int(shift)) + 2]),
        "routing": Pull(id=1, clock=None, routing=routing + 1, tables={"counts": good}),
    }
    answers = {}
    with access.connect(server["address"], Identity(role="worker", name="stranger")) as connection:
        for name, message in asked.items():
            connection.send(message, 5.0)
            answer = connection.receive(5.0)
            assert isinstance(answer, Refused) and answer.id == 1, (name, answer)
            answers[name] = answer.error
    return answers


def test_requests_that_servers_refuse(
    threads: Callable[..., Threads], clicks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers: dict[str, str] = {}

    def hook(cluster: Any, status: dict[str, Any]) -> None:
        if status["rows"] < 2000 or answers:
            return
        server = status["servers"][1]
        answers.update(refusals(cluster.access, server, status["routing"], status["owners"]))
        # What is no message at all closes its own connection, with a reason in the log.
        known = {"me": Identity(role="worker", name="shouter"), "cluster": cluster.access.cluster}
        codec = Codec(Shout)
        for address in (server["address"], cluster.address):
            with connect(address, **known, token=cluster.access.token, codec=codec, timeout_s=5.0) as connection:
                connection.send(Shout(id=1), 5.0)
                with pytest.raises(ConnectionClosed):
                    connection.receive(5.0)
            with socket.create_connection(address.rsplit(":", 1), 5.0) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
                while sock.recv(4096):
                    pass
        # To the coordinator: of nobody it knows, and out of turn.
        with cluster.access.connect(cluster.address, Identity(role="worker", name="nobody")) as connection:
            for message in (
                Heartbeat(incarnation=5, figures={}),
                Ready(incarnation=5),
                Join(role="server", name="server-9", incarnation=6, address="127.0.0.1:1"),
            ):
                connection.send(message, 5.0)

    model = Counting(FEATURES, segments=64)
    with caplog.at_level("INFO"):
        run = ps.fit(model, str(clicks), strategy=strategy(), engine=threads(hook=hook))
    assert run.rows == 24_000
    assert_counted(model, ps.open_source(str(clicks)))
    for name, message in {
        "nan": "gradient of key 0x",
        "infinite": "in table 'counts' is inf; allowed: finite numbers",
        "dim": "gradients of table 'counts' are f32[2, 3], not [2, 1]",
        "rows": "gradients of table 'counts' are f32[1, 1], not [2, 1]",
        "unknown": "table 'other' is not known; allowed: counts",
        "unknown pulled": "table 'other' is not known; allowed: counts",
        "odd": "at place 1 of 2; allowed: keys in rising order, even, not 0, of this server's segments",
        "zero": "key 0x0 at place 0 of 1",
        "falling": "at place 1 of 2; allowed: keys in rising order",
        "twice": "at place 1 of 2; allowed: keys in rising order",
        "another's": "at place 0 of 1; allowed: keys in rising order, even, not 0, of this server's segments",
        "routing": "routing version",
    }.items():
        assert answers[name].startswith("server-1: ") and message in answers[name], answers[name]
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "shouter" in text and "Shout" in text]) == 2, said
    assert len([text for text in said if "not a Penstock frame: it starts with b'GET '" in text]) == 2


def test_a_bad_row(threads: Callable[..., Threads], clicks: Path, tmp_path: Path) -> None:
    table = pq.read_table(clicks)
    labels = table["clicked"].to_pylist()
    labels[17_003] = 3
    bad = table.set_column(table.schema.get_field_index("clicked"), "clicked", pa.array(labels, pa.int64()))
    pq.write_table(bad, tmp_path / "bad.parquet", row_group_size=2048)
    with pytest.raises(PenstockError, match=r"bad\.parquet.*row 17[_,]?003\b.*label.*3"):
        ps.fit(
            Counting(FEATURES, segments=64), str(tmp_path / "bad.parquet"), strategy=strategy(), engine=threads()
        )


def test_training_that_diverges(threads: Callable[..., Threads], clicks: Path) -> None:
    features = ps.Features(label="clicked", numeric=[ps.Numeric(name="n1", how="raw")], categorical=["c1"])
    table = pq.read_table(clicks)
    n1 = np.full(len(table), 1e30)
    huge = table.set_column(table.schema.get_field_index("n1"), "n1", pa.array(n1))
    model = ps.Linear(features, optimizer=ps.SGD(alpha=1e8), segments=64)
    with pytest.raises(PenstockError, match=r"training diverged near|is (-?inf|nan); allowed: finite numbers"):
        ps.fit(model, huge, strategy=strategy(), engine=threads())
