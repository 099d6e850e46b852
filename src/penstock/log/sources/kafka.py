"""A Kafka topic into a log: JSON values, each partition from where the log has it.

The positions are in the log, committed with the events; what the broker knows of them is for looking at the lag.
So partitions are not handed out by the group: whoever runs this reads all of them, and a second process changes
nothing.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from penstock.errors import ConfigError, DataError, TransportError
from penstock.log.events import Appended, EventStream, PositionMoved
from penstock.log.log import Log
from penstock.log.quarantine import Rejected
from penstock.log.sources.decode import Decoder, Lines
from penstock.log.sources.files import NewStream, make_from_values, make_stream
from penstock.log.sources.pump import BATCH_NBYTES, BATCH_ROWS, Delivery, append, json_batch
from penstock.version import the_extra

__all__ = ["KafkaTopic", "follow_kafka"]

_ASK_S = 10.0
"""For an answer of the broker."""
_LOOK_S = 30.0
"""Between looks for new partitions."""
_POLL_S = 0.2
_COMMIT_S = 1.0
_MESSAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class KafkaTopic:
    """What is read."""

    brokers: str
    topic: str
    group: str | None = None
    """Consumer group that offsets are committed to, for tools that show the lag."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Of librdkafka: TLS, SASL, ..."""
    patience_s: float = 60.0
    """How long brokers may be away."""


def follow_kafka(
    log: Log,
    name: str,
    topic: KafkaTopic,
    how: Delivery,
    new: NewStream,
    *,
    once: bool = False,
    stopping: Callable[[], bool] = lambda: False,
    on_commit: Callable[[Appended], None] = lambda done: None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Append what comes, until ``stopping``; with ``once`` what is there by now.

    Raises:
        ConfigError: the client is not installed, or takes none of the options.
        DataError: there is no such topic, or it was made anew.
        TransportError: no broker was there for longer than ``patience_s``.
    """
    _Reader(log, name, topic, how, new, once, on_commit, warn).run(stopping)


@dataclass(kw_only=True)
class _Partition:
    """What came of a partition, and is not committed yet."""

    number: int
    position: int
    """In the log."""
    end: int
    """Behind the last message."""
    offsets: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    is_done: bool = False

    def clear(self) -> None:
        """Forget it."""
        self.offsets, self.values, self.rejected = [], [], []


class _Reader:
    def __init__(
        self,
        log: Log,
        name: str,
        topic: KafkaTopic,
        how: Delivery,
        new: NewStream,
        once: bool,
        on_commit: Callable[[Appended], None],
        warn: Callable[[str], None],
    ) -> None:
        try:
            import confluent_kafka
        except ImportError as error:
            raise ConfigError(f"to read Kafka needs {the_extra('kafka')}") from error
        self._kafka = confluent_kafka
        self._log, self._name, self._topic, self._how, self._new = log, name, topic, how, new
        self._once, self._on_commit, self._warn = once, on_commit, warn
        self._trouble: tuple[float, str] | None = None
        """Since when, and what."""
        settings = {
            "group.id": topic.group or f"penstock-{topic.topic}",
            "client.id": "penstock",
            "log_level": 2,  # it would tell on standard error what we tell ourselves
            **topic.options,
            "bootstrap.servers": topic.brokers,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": once,
            "error_cb": lambda error: self._note(error.str()),
        }
        try:
            self._consumer = confluent_kafka.Consumer(settings)
        except confluent_kafka.KafkaException as error:
            raise ConfigError(f"kafka {topic.brokers}: {_text(error)}") from error
        self._partitions: dict[int, _Partition] = {}
        self._stream: EventStream | None = None

    def run(self, stopping: Callable[[], bool]) -> None:
        try:
            if self._log.has(self._name):
                self._open(make_stream(self._log, self._name, self._new, lambda types: []))
            self._look()
            looked_s = since_s = time.monotonic()
            while not stopping():
                self._take(self._consumer.consume(_MESSAGES, _POLL_S))
                done = self._is_done()
                full = self._is_full()
                if done or full or time.monotonic() - since_s >= _COMMIT_S:
                    self._commit(must=done or full)
                    since_s = time.monotonic()
                if done and self._is_done():
                    return
                self._bear()
                if time.monotonic() - looked_s >= _LOOK_S:
                    self._look()
                    looked_s = time.monotonic()
            self._commit()
        except self._kafka.KafkaException as error:
            raise TransportError(f"kafka {self._topic.brokers}: {_text(error)}") from error
        finally:
            self._consumer.close()

    def _open(self, stream: EventStream) -> None:
        self._stream = stream
        self._decoder = Decoder(stream.schema, time=stream.settings.time, types=self._new.types)

    def _producer(self, number: int) -> str:
        return f"kafka/{self._topic.topic}/{number}"

    # ---- the broker

    def _note(self, trouble: str) -> None:
        since_s = self._trouble[0] if self._trouble is not None else time.monotonic()
        self._trouble = since_s, trouble

    def _bear(self) -> None:
        """Give up where there was trouble for too long, and is still."""
        if self._trouble is None or time.monotonic() - self._trouble[0] < self._topic.patience_s:
            return
        trouble = self._trouble[1]
        try:
            self._consumer.list_topics(self._topic.topic, timeout=_ASK_S)
        except self._kafka.KafkaException as error:
            raise TransportError(
                f"kafka {self._topic.brokers}: no answer for {self._topic.patience_s:.0f} s: {trouble}"
            ) from error
        self._trouble = None

    def _ask(self, question: Callable[[], Any]) -> Any:
        """An answer of the broker, for which we have patience."""
        until_s = time.monotonic() + self._topic.patience_s
        while True:
            try:
                return question()
            except self._kafka.KafkaException as error:
                if time.monotonic() >= until_s:
                    patience = f"no answer for {self._topic.patience_s:.0f} s"
                    raise TransportError(f"kafka {self._topic.brokers}: {patience}: {_text(error)}") from error

    def _look(self) -> None:
        """Begin with the partitions that we do not know yet."""
        timeout_s = min(_ASK_S, self._topic.patience_s)
        topic = self._topic.topic
        asked = self._ask(functools.partial(self._consumer.list_topics, topic, timeout=timeout_s))
        found = asked.topics[topic]
        if found.error is not None or not found.partitions:
            raise DataError(f"kafka {self._topic.brokers}: there is no topic {topic!r}")
        begun = []
        for number in sorted(set(found.partitions) - set(self._partitions)):
            place = self._kafka.TopicPartition(topic, number)
            ask = functools.partial(self._consumer.get_watermark_offsets, place, timeout=timeout_s)
            low, high = self._ask(ask)
            producer = self._producer(number)
            position = self._stream.position(producer) if self._stream is not None else 0
            self._check(number, position, low, high)
            self._partitions[number] = _Partition(number=number, position=position, end=position)
            begun.append(self._kafka.TopicPartition(topic, number, max(position, low)))
        if begun:
            self._consumer.incremental_assign(begun)

    def _check(self, number: int, position: int, low: int, high: int) -> None:
        where = f"kafka topic {self._topic.topic} partition {number}"
        if position > high:
            raise DataError(
                f"{where}: the log is at offset {position:,}, the topic ends at {high:,}; was it made anew? Then "
                f"append it to another stream"
            )
        if 0 < position < low:
            self._warn(f"{where}: {low - position:,} messages are gone, the topic begins at offset {low:,} by now")

    def _take(self, messages: list[Any]) -> None:
        for message in messages:
            error = message.error()
            partition = self._partitions.get(message.partition()) if message.partition() is not None else None
            if error is None and partition is not None:
                self._trouble = None
                _keep(partition, message.offset(), message.value())
            elif error is None or error.code() == self._kafka.KafkaError._PARTITION_EOF:
                if partition is not None:
                    partition.is_done = True
            elif error.code() == self._kafka.KafkaError._AUTO_OFFSET_RESET:
                raise DataError(f"kafka topic {self._topic.topic}: {error.str()}")
            else:
                self._note(error.str())

    # ---- the log

    def _is_done(self) -> bool:
        return self._once and all(each.is_done for each in self._partitions.values())

    def _is_full(self) -> bool:
        partitions = self._partitions.values()
        rows = sum(len(each.values) + len(each.rejected) for each in partitions)
        return rows >= BATCH_ROWS or sum(sum(map(len, each.values)) for each in partitions) >= BATCH_NBYTES

    def _commit(self, *, must: bool = False) -> None:
        if self._stream is None and not self._make(must):
            return
        assert self._stream is not None
        for partition in self._partitions.values():
            if partition.end > partition.position:
                self._commit_partition(self._stream, partition)

    def _make(self, must: bool) -> bool:
        values = [value for each in self._partitions.values() for value in each.values]
        made = make_from_values(self._log, self._name, self._new, values, f"kafka topic {self._topic.topic}", must)
        if made is not None:
            self._open(made)
        return made is not None

    def _commit_partition(self, stream: EventStream, partition: _Partition) -> None:
        producer = self._producer(partition.number)
        batch = json_batch(
            self._decoder,
            [(Lines.of(partition.values), np.array(partition.offsets, np.int64))],
            partition.rejected,
            start=partition.position,
            end=partition.end,
        )
        partition.clear()
        try:
            done = append(
                stream, batch, replace(self._how, producer=producer, source=self._how.source or producer)
            )
        except PositionMoved as moved:
            # Another process reads the topic too.
            partition.position = partition.end = moved.position
            partition.is_done = False
            place = self._kafka.TopicPartition(self._topic.topic, partition.number, moved.position)
            self._consumer.seek(place)
            return
        partition.position = partition.end
        self._on_commit(done)
        if self._topic.group is not None:
            place = self._kafka.TopicPartition(self._topic.topic, partition.number, partition.end)
            self._consumer.commit(offsets=[place], asynchronous=True)


def _keep(partition: _Partition, offset: int, value: bytes | None) -> None:
    if offset < partition.end:
        return
    partition.end = offset + 1
    if value is None:
        return
    if not value.strip():
        partition.rejected.append(
            Rejected(position=offset, reason="malformed", detail="an empty message", event=value)
        )
        return
    partition.offsets.append(offset)
    partition.values.append(value)


def _text(error: Exception) -> str:
    found = error.args[0] if error.args else error
    text = found.str() if hasattr(found, "str") else str(found)
    return " ".join(str(text).split())
