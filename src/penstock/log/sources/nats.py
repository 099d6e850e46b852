"""A stream of NATS JetStream into a log: JSON messages, from where the log has it.

The position is the sequence number in the stream, committed with the events; what the server knows of the consumer
is for looking at the lag. A consumer is made anew where ours begins: so what was acknowledged and what was not
does not matter, and neither does in which order a server repeats what it thinks is lost. As soon as a delivery is
missing, we begin again at our position.
"""

from __future__ import annotations

import asyncio
import contextlib
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

__all__ = ["NatsStream", "follow_nats"]

_FETCH = 5_000
_FETCH_S = 0.5
_COMMIT_S = 1.0
_LOOK_S = 5.0
"""Without messages we look whether our consumer is still there."""
_ACK_WAIT_S = 300.0
_INACTIVE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class NatsStream:
    """What is read."""

    servers: str
    stream: str
    subject: str | None = None
    """Of the stream's messages those with this subject alone."""
    consumer: str | None = None
    """Name of a durable consumer; one without a name goes when we do."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the client: user_credentials, token, ..."""
    patience_s: float = 60.0
    """How long the server may be away."""


def follow_nats(
    log: Log,
    name: str,
    source: NatsStream,
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
        ConfigError: the client is not installed.
        DataError: there is no such stream, or it was made anew.
        TransportError: the server was away for longer than ``patience_s``.
    """
    asyncio.run(_Reader(log, name, source, how, new, once, on_commit, warn).run(stopping))


class _Reader:
    def __init__(
        self,
        log: Log,
        name: str,
        source: NatsStream,
        how: Delivery,
        new: NewStream,
        once: bool,
        on_commit: Callable[[Appended], None],
        warn: Callable[[str], None],
    ) -> None:
        try:
            import nats
            import nats.errors
            import nats.js.errors
        except ImportError as error:
            raise ConfigError(f"to read NATS needs {the_extra('nats')}") from error
        self._nats = nats
        self._log, self._name, self._source, self._new = log, name, source, new
        self._once, self._on_commit, self._warn = once, on_commit, warn
        self._producer = f"nats/{source.stream}"
        self._how = replace(how, producer=self._producer, source=how.source or self._producer)
        self._stream: EventStream | None = None
        self._position = 0
        self._trouble: tuple[float, str] | None = None
        """Since when, and what."""
        self._clear()

    def _clear(self) -> None:
        """Forget what is not committed."""
        self._end = self._position
        self._sequences: list[int] = []
        self._values: list[bytes] = []
        self._rejected: list[Rejected] = []
        self._messages: list[Any] = []
        self._nbytes = 0

    def _open(self, stream: EventStream) -> None:
        self._stream = stream
        self._decoder = Decoder(stream.schema, time=stream.settings.time, types=self._new.types)

    async def run(self, stopping: Callable[[], bool]) -> None:
        if self._log.has(self._name):
            self._open(make_stream(self._log, self._name, self._new, lambda types: []))
        try:
            client = await asyncio.wait_for(
                self._nats.connect(
                    self._source.servers.split(","),
                    name="penstock",
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.5,
                    error_cb=self._on_error,
                    **self._source.options,
                ),
                self._source.patience_s,
            )
        except (OSError, TimeoutError, self._nats.errors.Error) as error:
            trouble = self._trouble[1] if self._trouble is not None else _text(error)
            raise TransportError(f"nats {self._source.servers}: cannot be reached: {trouble}") from error
        self._trouble = None
        try:
            self._js = client.jetstream()
            await self._begin()
            await self._follow(stopping)
        finally:
            await client.close()

    async def _on_error(self, error: Exception) -> None:
        self._note(_text(error))

    def _note(self, trouble: str) -> None:
        since_s = self._trouble[0] if self._trouble is not None else time.monotonic()
        self._trouble = since_s, trouble

    # ---- the server

    async def _begin(self) -> None:
        """Have a consumer that starts at our position, and nothing that is not committed.

        What goes wrong with the server is borne for a while.
        """
        while True:
            try:
                await self._begin_once()
                self._trouble = None
                return
            except self._nats.js.errors.NotFoundError as error:
                raise DataError(
                    f"nats {self._source.servers}: there is no stream {self._source.stream!r}"
                ) from error
            except (TimeoutError, self._nats.errors.Error) as error:
                self._note(_text(error))
                assert self._trouble is not None
                if time.monotonic() - self._trouble[0] >= self._source.patience_s:
                    patience = f"no answer for {self._source.patience_s:.0f} s"
                    raise TransportError(f"nats {self._source.servers}: {patience}: {self._trouble[1]}") from error
                await asyncio.sleep(0.2)

    async def _begin_once(self) -> None:
        source, api = self._source, self._nats.js.api
        if self._stream is not None:
            self._stream.refresh()
            self._position = self._stream.position(self._producer)
        self._clear()
        self._check((await self._js.stream_info(source.stream)).state)
        if source.consumer is not None:
            with contextlib.suppress(self._nats.js.errors.NotFoundError):
                await self._js.delete_consumer(source.stream, source.consumer)
        made = await self._js.add_consumer(
            source.stream,
            api.ConsumerConfig(
                durable_name=source.consumer,
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=max(1, self._position),
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=_ACK_WAIT_S,
                max_ack_pending=2 * BATCH_ROWS,
                filter_subject=source.subject,
                inactive_threshold=_INACTIVE_S if source.consumer is None else None,
            ),
        )
        self._consumer = made.name
        self._subscription = await self._js.pull_subscribe_bind(consumer=made.name, stream=source.stream)
        self._next = 1
        self._heard_s = time.monotonic()

    def _check(self, state: Any) -> None:
        where = f"nats stream {self._source.stream}"
        if self._position > state.last_seq + 1:
            raise DataError(
                f"{where}: the log is at sequence {self._position:,}, the stream ends at {state.last_seq:,}; was "
                f"it made anew? Then append it to another stream"
            )
        if 0 < self._position < state.first_seq:
            gone = state.first_seq - self._position
            self._warn(f"{where}: {gone:,} messages are gone, it begins at {state.first_seq:,} by now")

    async def _follow(self, stopping: Callable[[], bool]) -> None:
        since_s = time.monotonic()
        while not stopping():
            try:
                found = await self._subscription.fetch(_FETCH, timeout=_FETCH_S)
                pending = found[-1].metadata.num_pending
            except TimeoutError:
                found, pending = [], None
                if self._once or time.monotonic() - self._heard_s >= _LOOK_S:
                    pending = await self._look()
            except self._nats.errors.Error as error:
                self._note(_text(error))
                await self._begin()
                continue
            if found:
                self._heard_s = time.monotonic()
            if not self._take(found):
                await self._begin()
                continue
            done = self._once and pending == 0
            full = len(self._values) >= BATCH_ROWS or self._nbytes >= BATCH_NBYTES
            if done or full or time.monotonic() - since_s >= _COMMIT_S:
                if not await self._commit(must=done or full):
                    await self._begin()
                    continue
                since_s = time.monotonic()
            if done:
                return
        await self._commit()

    async def _look(self) -> int | None:
        """How many messages wait; None where we do not know, and begin again."""
        try:
            info = await self._js.consumer_info(self._source.stream, self._consumer)
        except (TimeoutError, self._nats.errors.Error) as error:
            self._note(_text(error))
            await self._begin()
            return None
        self._heard_s = time.monotonic()
        pending: int = info.num_pending
        # What is under way to us is not pending any more, and not here yet.
        return pending if info.delivered.consumer_seq < self._next else None

    def _take(self, messages: list[Any]) -> bool:
        """Keep messages; False where one is missing."""
        for message in messages:
            at = message.metadata.sequence
            if at.consumer != self._next:
                return False
            self._next += 1
            self._messages.append(message)
            if at.stream < self._end:
                continue
            self._end = at.stream + 1
            value = message.data
            self._nbytes += len(value)
            if value.strip():
                self._sequences.append(at.stream)
                self._values.append(value)
            else:
                self._rejected.append(
                    Rejected(position=at.stream, reason="malformed", detail="an empty message", event=value)
                )
        return True

    # ---- the log

    async def _commit(self, *, must: bool = False) -> bool:
        """Append what came, and acknowledge it; False where another process did."""
        if self._stream is None and not self._make(must):
            return True
        if self._end > self._position:
            try:
                done = await asyncio.to_thread(self._append)
            except PositionMoved:
                return False
            self._position = self._end
            self._on_commit(done)
        messages = self._messages
        self._clear()
        await _acknowledge(messages)
        return True

    def _append(self) -> Appended:
        assert self._stream is not None
        blocks = [(Lines.of(self._values), np.array(self._sequences, np.int64))]
        batch = json_batch(self._decoder, blocks, self._rejected, start=self._position, end=self._end)
        return append(self._stream, batch, self._how)

    def _make(self, must: bool) -> bool:
        where = f"nats stream {self._source.stream}"
        made = make_from_values(self._log, self._name, self._new, self._values, where, must)
        if made is not None:
            self._open(made)
        return made is not None


async def _acknowledge(messages: list[Any]) -> None:
    for message in messages:
        await message.ack()


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
