"""Kafka and NATS: each message once, whoever dies when."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import DataError, TransportError
from penstock.log import EventStream, Log
from penstock.log.sources.files import NewStream
from penstock.log.sources.kafka import KafkaTopic, follow_kafka
from penstock.log.sources.nats import NatsStream, follow_nats
from penstock.log.sources.pump import Delivery
from tests.log.helpers import column, free_port, process, until

kafka = pytest.importorskip("confluent_kafka", reason="needs confluent-kafka")
nats = pytest.importorskip("nats", reason="needs nats-py")


def event(n: int, **more: Any) -> bytes:
    return json.dumps({"ts": 1_767_225_600 + n, "n": n, **more}).encode()


# ---- Kafka, against the mock cluster that its client brings


class Broker:
    """A mock cluster of one broker, with a topic of three partitions."""

    def __init__(self) -> None:
        self._cluster = kafka.Producer({"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self._cluster.list_topics(timeout=30).brokers.values()
        self.address = f"{broker.host}:{broker.port}"
        self._producer = kafka.Producer({"bootstrap.servers": self.address, "log_level": 0})

    def send(self, *values: bytes | None, partition: int = 0, topic: str = "clicks") -> None:
        for value in values:
            self._producer.produce(topic, value, partition=partition)
        assert self._producer.flush(30) == 0


@pytest.fixture
def broker() -> Broker:
    return Broker()


def from_kafka(place: Path, broker: Broker, topic: str = "clicks", **more: Any) -> int:
    rows = 0

    def count(done: Any) -> None:
        nonlocal rows
        rows += done.rows

    read = KafkaTopic(brokers=broker.address, topic=topic, **more)
    follow_kafka(Log(str(place)), "s", read, Delivery(), NewStream(), once=True, on_commit=count)
    return rows


def test_a_topic_is_in_the_log_once(tmp_path: Path, broker: Broker) -> None:
    for n in range(30):
        broker.send(event(n), partition=n % 3)
    broker.send(None, b"garbage", b" ", b'{"ts":1,\n"n":30}', partition=1)
    assert from_kafka(tmp_path, broker, group="g") == 31
    assert from_kafka(tmp_path, broker) == 0
    broker.send(event(31), partition=2)
    assert from_kafka(tmp_path, broker) == 1
    numbers, sources = column(tmp_path, "s", "n"), column(tmp_path, "s", "_source")
    assert sorted(numbers) == list(range(32))
    assert all(source == f"kafka/clicks/{n % 3}" for n, source in zip(numbers, sources, strict=True) if n < 30)
    stream = Log(str(tmp_path)).stream("s")
    assert [stream.position(f"kafka/clicks/{p}") for p in range(3)] == [10, 14, 11]
    rows = Log(str(tmp_path)).quarantine("s").read().to_pylist()
    assert sorted((row["producer"], row["position"], row["reason"]) for row in rows) == [
        ("kafka/clicks/1", 11, "malformed"),
        ("kafka/clicks/1", 12, "malformed"),
    ]


def test_another_reader_of_the_topic_came_first(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.send(*map(event, range(5)))
    assert from_kafka(tmp_path, broker) == 5
    broker.send(*map(event, range(5, 10)))
    original = EventStream.append

    def meanwhile(stream: EventStream, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(EventStream, "append", original)
        assert from_kafka(tmp_path, broker) == 5
        broker.send(event(10))
        return original(stream, *args, **kwargs)

    monkeypatch.setattr(EventStream, "append", meanwhile)
    assert from_kafka(tmp_path, broker) == 1
    assert column(tmp_path, "s", "n") == list(range(11))


def test_what_kafka_says_no_to(tmp_path: Path, broker: Broker) -> None:
    broker.send(event(0))
    with pytest.raises(DataError, match="there is no topic 'nope'"):
        from_kafka(tmp_path, broker, topic="nope")
    broker.send(b"garbage", topic="bad")
    with pytest.raises(DataError, match="kafka topic bad: has no event; the first message: JSON is malformed"):
        from_kafka(tmp_path, broker, topic="bad")
    read = KafkaTopic(brokers=f"127.0.0.1:{free_port()}", topic="clicks", patience_s=0.3)
    with pytest.raises(TransportError, match=r"kafka 127\.0\.0\.1:\d+: no answer for 0 s: "):
        follow_kafka(Log(str(tmp_path)), "s", read, Delivery(), NewStream(), once=True)
    assert from_kafka(tmp_path, broker) == 1
    fresh = Broker()  # the same topic, with less in it
    Log(str(tmp_path)).stream("s").append(_nothing(), producer="kafka/clicks/0", start=1, end=100)
    fresh.send(event(0))
    with pytest.raises(DataError, match="the log is at offset 100, the topic ends at 1; was it made anew"):
        from_kafka(tmp_path, fresh)


def _nothing() -> Any:
    import pyarrow as pa

    return pa.table({})


# ---- NATS, against a real server


class Server:
    """A nats-server with JetStream, and its files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.url = f"nats://127.0.0.1:{self._port}"
        self.start()
        asyncio.run(self._make())

    def start(self) -> None:
        binary = shutil.which("nats-server")
        assert binary is not None
        self.running = subprocess.Popen(
            [binary, "-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(self._folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._is_up)

    def stop(self) -> None:
        self.running.kill()
        self.running.wait()

    def _is_up(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port)).close()
        except OSError:
            return False
        return True

    async def _make(self) -> None:
        client = await nats.connect(self.url)
        await client.jetstream().add_stream(name="S", subjects=["clicks.>"])
        await client.close()

    def send(self, *values: bytes, subject: str = "clicks.a") -> None:
        async def send() -> None:
            client = await nats.connect(self.url)
            for value in values:
                await client.jetstream().publish(subject, value)
            await client.close()

        asyncio.run(send())

    def delete(self, sequence: int) -> None:
        async def delete() -> None:
            client = await nats.connect(self.url)
            await client.jetstream().delete_msg("S", sequence)
            await client.close()

        asyncio.run(delete())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if shutil.which("nats-server") is None:
        pytest.skip("needs nats-server, as by: apt-get install nats-server")
    found = Server(tmp_path / "nats")
    yield found
    found.stop()


def from_nats(place: Path, server: Server, **more: Any) -> int:
    rows = 0

    def count(done: Any) -> None:
        nonlocal rows
        rows += done.rows

    source = NatsStream(servers=server.url, stream="S", **more)
    follow_nats(Log(str(place)), "s", source, Delivery(), NewStream(), once=True, on_commit=count)
    return rows


@pytest.mark.parametrize("consumer", [None, "penstock"])
def test_a_stream_is_in_the_log_once(tmp_path: Path, server: Server, consumer: str | None) -> None:
    place = tmp_path / "log"
    server.send(*map(event, range(10)), b"garbage", b"", *map(event, range(10, 20)))
    server.send(b"not ours", subject="clicks.b.c")
    server.delete(3)
    assert from_nats(place, server, consumer=consumer, subject="clicks.a") == 19
    assert from_nats(place, server, consumer=consumer, subject="clicks.a") == 0
    server.send(event(20))
    assert from_nats(place, server, consumer=consumer, subject="clicks.a") == 1
    assert column(place, "s", "n") == [0, 1, *range(3, 21)]
    assert set(column(place, "s", "_source")) == {"nats/S"}
    assert Log(str(place)).stream("s").position("nats/S") == 25
    assert Log(str(place)).quarantine("s").read()["position"].to_pylist() == [11, 12]


def test_a_consumer_that_is_killed_between_commit_and_acknowledgement(tmp_path: Path, server: Server) -> None:
    place = tmp_path / "log"
    code = (
        "import os, signal, penstock.log.sources.nats as source\n"
        "async def die(messages):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "source._acknowledge = die\n"
        "from penstock.cli.main import main; main()"
    )
    arguments = ["log", "nats", str(place), "s", "--servers", server.url, "--nats-stream", "S", "--consumer", "c"]
    for n in (0, 10):
        server.send(*map(event, range(n, n + 10)))
        killed = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert killed.returncode == -9, killed
        assert Log(str(place)).stream("s").end == n + 10
    server.send(event(20))
    assert from_nats(place, server, consumer="c") == 1
    assert column(place, "s", "n") == list(range(21))


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, server: Server) -> None:
    place = tmp_path / "log"
    server.send(*map(event, range(5)))
    with process("log", "nats", place, "s", "--servers", server.url, "--nats-stream", "S") as running:
        until(lambda: Log(str(place)).has("s") and Log(str(place)).stream("s").end == 5, running)
        server.stop()
        server.start()
        server.send(*map(event, range(5, 10)))
        until(lambda: Log(str(place)).stream("s").end == 10, running)
    assert column(place, "s", "n") == list(range(10))


def test_a_delivery_that_is_missing_is_asked_for_again(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nats.js import JetStreamContext

    server.send(*map(event, range(10)))
    original, lost = JetStreamContext.PullSubscription.fetch, []

    async def lossy(subscription: Any, *args: Any, **kwargs: Any) -> Any:
        found = await original(subscription, *args, **kwargs)
        if not lost and len(found) > 3:
            lost.append(found.pop(2))
        return found

    monkeypatch.setattr(JetStreamContext.PullSubscription, "fetch", lossy)
    assert from_nats(tmp_path / "log", server) == 10
    assert lost
    assert column(tmp_path / "log", "s", "n") == list(range(10))


def test_what_nats_says_no_to(tmp_path: Path, server: Server) -> None:
    log = Log(str(tmp_path / "log"))
    with pytest.raises(DataError, match="there is no stream 'nope'"):
        follow_nats(log, "s", NatsStream(servers=server.url, stream="nope"), Delivery(), NewStream(), once=True)
    server.send(b"garbage")
    with pytest.raises(DataError, match="nats stream S: has no event; the first message: JSON is malformed"):
        from_nats(tmp_path / "log", server)
    server.send(event(0))
    assert from_nats(tmp_path / "log", server) == 1
    log.stream("s").append(_nothing(), producer="nats/S", start=3, end=100)
    with pytest.raises(DataError, match="the log is at sequence 100, the stream ends at 2; was it made anew"):
        from_nats(tmp_path / "log", server)
    away = NatsStream(servers=f"nats://127.0.0.1:{free_port()}", stream="S", patience_s=0.3)
    with pytest.raises(TransportError, match="cannot be reached"):
        follow_nats(log, "s", away, Delivery(), NewStream(), once=True)
