"""Tables of a running cluster from outside: pull, push and functions, beside one table in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.batch import Floats, Keys
from penstock.cli.main import cli
from penstock.engine import TableClient
from penstock.engine.fit import prepare
from penstock.engine.observer import Observer
from penstock.errors import PenstockError, TransportError
from penstock.parameter_server.functions import Answer, ServerFunction, register_function
from penstock.table import Table

FTRL = ps.FTRL(alpha=0.5, l1=0.1)


@pytest.fixture
def client(threads: Callable[..., Any], clicks: Path, tmp_path: Path) -> Iterator[TableClient]:
    """Of three servers, without a worker."""
    engine = threads()
    model = ps.Linear(ps.Features(label="clicked"), optimizer=FTRL)
    run = prepare(model, clicks, strategy=ps.ParameterServer(servers=3), output=tmp_path / "run")
    with run as prepared, engine.start(prepared.run, workers=0):
        with connected(engine) as made:
            yield made
        with Observer(engine.access, engine.address) as observer:
            observer.stop("the test is over")


def connected(engine: Any) -> TableClient:
    """Once the servers are there."""
    while True:
        try:
            return TableClient(engine.access, engine.address)
        except PenstockError as error:
            assert "not there yet" in str(error)


def rows(seed: int, n: int = 5_000) -> tuple[Keys, Floats]:
    """Rising distinct keys, and gradients."""
    generator = np.random.default_rng(seed)
    keys = np.unique(generator.integers(1, 1 << 63, n, dtype=np.uint64) * np.uint64(2))
    return keys, generator.normal(size=(len(keys), 1)).astype(np.float32)


def test_pull_push_and_functions(client: TableClient) -> None:
    here = Table(FTRL)
    assert len(client.servers) == 3
    for seed in (1, 2, 1):
        keys, gradients = rows(seed)
        here.push(keys, gradients)
        assert client.wait(client.push("weights", keys, gradients), 10.0) is None
    keys, _ = rows(1)
    np.testing.assert_array_equal(client.wait(client.pull("weights", keys), 10.0), here.pull(keys))

    norms = here.norms()
    found = client.call("norm", "weights").value
    assert (found["rows"], found["nonzero"]) == (norms.rows, norms.nonzero) == (len(here), norms.nonzero)
    assert found["l1"] == pytest.approx(norms.l1, rel=1e-12)
    assert found["l2_squared"] == pytest.approx(norms.l2_squared, rel=1e-12)
    assert client.call("count", "weights").value == {"rows": len(here)}

    top = client.call("top", "weights", k=7)
    want_keys, want_norms = here.top(7)
    np.testing.assert_array_equal(top.keys, want_keys)
    np.testing.assert_array_equal(top.floats, want_norms)

    assert client.call("prune", "weights", threshold=0.05).value == {
        "removed": here.prune(0.05),
        "rows": len(here),
    }
    client.call("decay", "weights", factor=0.5)
    here.decay(0.5)
    np.testing.assert_array_equal(client.wait(client.pull("weights", keys), 10.0), here.pull(keys))


def test_what_is_refused(client: TableClient) -> None:
    keys, gradients = rows(3, 50)
    for ask, parts in (
        (lambda: client.wait(client.pull("biases", keys), 10.0), ["server-", "'biases'", "allowed: weights"]),
        (lambda: client.wait(client.push("weights", keys, gradients * np.nan), 10.0), ["is nan", "key 0x"]),
        (lambda: client.wait(client.push("weights", keys[::-1].copy(), gradients), 10.0), ["rising order"]),
        (lambda: client.call("sing", "weights"), ["'sing'", "allowed: ", "norm"]),
        (lambda: client.call("decay", "weights", factor=2.0), ["decay", "2"]),
        (lambda: client.call("decay", "weights", speed=2.0), ["decay", "speed"]),
        (lambda: client.call("norm", "biases"), ["'biases'"]),
    ):
        with pytest.raises(PenstockError) as caught:
            ask()
        for part in parts:
            assert part in str(caught.value)
    assert client.call("count", "weights").value == {"rows": 0}, "nothing of what was refused is applied"


def test_a_function_of_ones_own(client: TableClient) -> None:
    def largest_key(table: Table) -> Answer:
        keys = [table.items(segment)[0] for segment in range(table.segments)]
        return Answer(value={"largest": max((int(k[-1]) for k in keys if len(k)), default=0)})

    def merge(answers: Any) -> Answer:
        return Answer(value={"largest": max(answer.value["largest"] for answer in answers)})

    register_function("largest-key", ServerFunction(run=largest_key, merge=merge))
    keys, gradients = rows(4)
    client.wait(client.push("weights", keys, gradients), 10.0)
    assert client.call("largest-key", "weights").value == {"largest": int(keys[-1])}
    with pytest.raises(PenstockError, match="already registered"):
        register_function("largest-key", ServerFunction(run=largest_key, merge=merge))


def test_a_deadline_names_who_is_late(client: TableClient) -> None:
    keys, _ = rows(5)
    client._links.send = lambda to, message: False  # type: ignore[method-assign]  # all is lost on the way
    with pytest.raises(TransportError, match=r"server-0, server-1, server-2: no answer within 0\.1 s"):
        client.wait(client.pull("weights", keys), 0.1)


def test_from_the_command_line(
    threads: Callable[..., Any], clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = threads()
    token = tmp_path / "token"
    token.write_bytes(engine.access.token)
    token.chmod(0o600)
    model = ps.Linear(ps.Features(label="clicked"), optimizer=FTRL)

    def call(*arguments: str) -> Any:
        where = ["--join", engine.address, "--token-file", str(token), "--cluster", engine.access.cluster]
        cli.main(["cluster", "call", *arguments, *where], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    with (
        prepare(model, clicks, strategy=ps.ParameterServer(servers=2), output=tmp_path / "run") as prepared,
        engine.start(prepared.run, workers=0),
    ):
        keys, gradients = rows(6)
        with connected(engine) as client:
            client.wait(client.push("weights", keys, gradients), 10.0)
        assert call("count") == {"rows": len(keys)}
        top = call("top", "--set", "k=3", "--table", "weights")
        assert top["k"] == 3 and len(top["keys"]) == 3 and top["keys"][0][1] >= top["keys"][2][1]
        with pytest.raises(PenstockError, match="must be a name, '=' and a number"):
            call("top", "--set", "k")
        with Observer(engine.access, engine.address) as observer:
            observer.stop("the test is over")
