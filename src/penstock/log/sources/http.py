"""An HTTP server that takes events: ``POST /streams/NAME/events``, answered when they are in the log.

Requests for a stream that come within a few milliseconds, or while others are committed, are committed together,
by a thread of the stream. With a producer's name and a number that grows a request can be repeated until it is
answered, and is taken once; a producer sends its next request when the last one was answered.

What waits is bounded in bytes; beyond that requests are refused with 429, and their senders wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from penstock.errors import ConfigError, DataError, InputError, PenstockError, StorageError
from penstock.log.events import EventStream, PositionMoved, timed
from penstock.log.log import Log, check_name
from penstock.log.quarantine import Rejected
from penstock.log.sources.decode import BOM, Decoder, Lines
from penstock.log.sources.files import NewStream
from penstock.log.types import plain_columns
from penstock.transport.http import (
    JSON,
    Gone,
    HttpLimits,
    Receive,
    Refused,
    Scope,
    Send,
    authenticate,
    headers_of,
    plain_body,
    read_body,
    refusal,
    send_answer,
)
from penstock.transport.http_serving import serve_http

__all__ = ["App", "Limits", "serve"]

_SOURCE = "http"
_TRIES = 5
_SMALL_NBYTES = 1 << 16
"""A body of so many bytes is split into events at once; to have a thread do it would take longer."""
_LINES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines")
_PATH = re.compile(r"/streams/([^/]+)/events")
_NAME = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True, kw_only=True)
class Limits(HttpLimits):
    """What a server lets others do."""

    waiting_nbytes: int = 256 << 20
    """Of all requests that are not answered yet."""
    gather_s: float = 0.003
    """A commit waits for so long for other requests."""
    commit_nbytes: int = 64 << 20


@dataclass(kw_only=True, eq=False)
class _Request:
    """Events of one request, and who waits for the answer."""

    text: bytes
    """Whole lines."""
    producer: str
    sequence: int
    answer: Callable[[dict[str, Any] | Refused], None]
    rejected: list[Rejected] = field(default_factory=list)
    rows: int = 0


_Answered = tuple[_Request, dict[str, Any] | Refused]


class _Committer:
    """The thread of a stream."""

    def __init__(self, place: str, name: str, new: NewStream, limits: Limits, *, durable: bool) -> None:
        self._place, self._name, self._new, self._limits, self._durable = place, name, new, limits, durable
        self._waiting: queue.Queue[_Request | None] = queue.Queue()
        self._stream: EventStream | None = None
        self._thread = threading.Thread(target=self._run, name=f"penstock-commit-{name}", daemon=True)
        self.failure: str | None = None
        """Why the last commit failed, if it did."""
        self._thread.start()

    def put(self, request: _Request) -> None:
        """Have it committed, and answered."""
        self._waiting.put(request)

    def stop(self) -> None:
        """Commit what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._log = Log(self._place)
        stopped = False
        while not stopped:
            group, stopped = self._gather()
            if not group:
                continue
            self._commit_or_refuse(group)

    def _commit_or_refuse(self, group: Sequence[_Request]) -> None:
        try:
            answers = self._commit(group)
        except StorageError as error:
            self.failure = str(error)
            _answer_all(group, Refused(503, str(error), retry_after="5"))
        except InputError as error:
            if len(group) == 1:
                _answer_all(group, Refused(400, str(error)))
                return
            # One of them is at fault, and the others shall not suffer for it.
            for request in group:
                self._commit_or_refuse([request])
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            _answer_all(group, Refused(500, self.failure))
        else:
            self.failure = None  # whoever has an answer must find the server in health
            for request, answer in answers:
                request.answer(answer)

    def _gather(self) -> tuple[list[_Request], bool]:
        first = self._waiting.get()
        if first is None:
            return [], True
        group, nbytes = [first], len(first.text)
        until_s = time.monotonic() + self._limits.gather_s
        while nbytes < self._limits.commit_nbytes:
            try:
                request = self._waiting.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                break
            if request is None:
                return group, True
            group.append(request)
            nbytes += len(request.text)
        return group, False

    def _commit(self, group: Sequence[_Request]) -> list[_Answered]:
        def once() -> list[_Answered]:
            return _Group(self._opened(group), group, self._new, durable=self._durable).commit()

        for _ in range(_TRIES - 1):
            with contextlib.suppress(PositionMoved, DataError):
                # Another process came in between: with the same requests, or with a column.
                return once()
        return once()

    def _opened(self, group: Sequence[_Request]) -> EventStream:
        if self._stream is None and not self._log.has(self._name):
            decoder = Decoder(pa.schema([]), types=self._new.types)
            lines = Lines(b"".join(request.text for request in group))
            rejected = decoder.decode(lines, np.arange(len(lines))).rejected
            if not len(decoder.schema):
                raise DataError(f"no event{f': {rejected[0].detail}' if rejected else ''}")
            self._log.create(self._name, list(decoder.schema), time=self._new.time, id=self._new.id)
        self._stream = self._log.stream(self._name)
        return self._stream


def _answer_all(group: Sequence[_Request], refused: Refused) -> None:
    for request in group:
        request.answer(refused)


class _Group:
    """Requests that are committed together."""

    def __init__(self, stream: EventStream, group: Sequence[_Request], new: NewStream, *, durable: bool) -> None:
        self._stream, self._new, self._durable = stream, new, durable
        self._fresh: list[_Request] = []
        self._repeated: list[_Request] = []
        positions: dict[str, int] = {}
        for request in group:
            name = request.producer
            if name and request.sequence < positions.get(name, stream.position(name)):
                self._repeated.append(request)
                continue
            positions[name] = request.sequence + 1
            self._fresh.append(request)

    def commit(self) -> list[_Answered]:
        """Commit them; what each is answered."""
        stream = self._stream
        events = self._decode()
        refused = [request for request in self._fresh if _is_garbage(request)]
        taken = [request for request in self._fresh if not _is_garbage(request)]
        moves = {r.producer: (stream.position(r.producer), r.sequence + 1) for r in taken if r.producer}
        self._quarantine(taken)
        end = stream.end
        if events.num_rows or moves:
            end = stream.append(events, source=_SOURCE, parts=moves, durable=self._durable).end
        answers: list[_Answered] = [
            (request, {"rows": request.rows, "rejected": len(request.rejected), "end": end}) for request in taken
        ]
        done = {"rows": 0, "rejected": 0, "end": end, "duplicate": True}
        answers += [(request, done) for request in self._repeated]
        answers += [
            (request, Refused(400, f"no line is an event; the first: {request.rejected[0].detail}"))
            for request in refused
        ]
        return answers

    def _decode(self) -> pa.Table:
        """All events; how many each request has of them, and what of it is none, is noted there."""
        for request in self._fresh:
            request.rows, request.rejected = 0, []
        time_column = self._stream.settings.time
        decoder = Decoder(self._stream.schema, time=time_column, types=self._new.types)
        counts = [request.text.count(b"\n") for request in self._fresh]
        owners = np.repeat(np.arange(len(counts)), counts)
        lines = Lines(b"".join(request.text for request in self._fresh))
        decoded = decoder.decode(lines, np.arange(len(lines)))
        where = f"stream {self._stream.name}"
        events, bad = timed(where, plain_columns(where, decoded.events), time_column, decoded.positions)
        for each in [*decoded.rejected, *bad.rows]:
            self._fresh[owners[each.position]].rejected.append(each)
        rows = np.bincount(owners[decoded.positions[~bad.mask]], minlength=len(counts))
        for request, count in zip(self._fresh, rows.tolist(), strict=True):
            request.rows = count
        return events

    def _quarantine(self, taken: Sequence[_Request]) -> None:
        by_producer: dict[str, list[Rejected]] = {}
        for request in taken:
            # The place of what a named producer brought is the number of its request.
            found = request.rejected
            if request.producer:
                found = [replace(each, position=request.sequence) for each in found]
            by_producer.setdefault(request.producer, []).extend(found)
        for producer, rejected in by_producer.items():
            self._stream.quarantine.reject(rejected, source=_SOURCE, producer=producer, durable=self._durable)


def _is_garbage(request: _Request) -> bool:
    return not request.rows and any(request.rejected) and all(r.reason == "malformed" for r in request.rejected)


class App:
    """The application, for a server that speaks ASGI."""

    def __init__(
        self,
        place: str,
        *,
        create: bool = False,
        new: NewStream | None = None,
        token: bytes | None = None,
        durable: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Serve the log at ``place``; ``create`` makes streams that are not there."""
        self._place, self._create, self._new = place, create, new or NewStream()
        self._token, self._durable, self._limits = token, durable, limits or Limits()
        self._committers: dict[str, _Committer] = {}
        self._waiting = 0

    def stop(self) -> None:
        """Commit what waits."""
        for committer in self._committers.values():
            committer.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(scope, receive)
        except Refused as refused:
            await send_answer(send, scope, refused.status, refusal(refused), JSON, refused.headers)
        except Gone:
            return
        else:
            await send_answer(send, scope, 200, msgspec.json.encode(answer) + b"\n", JSON)

    async def _answer(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        headers = headers_of(scope)
        if scope["path"] == "/health":
            return self._health(scope)
        authenticate(headers, self._token)
        found = _PATH.fullmatch(scope["path"])
        if found is None:
            raise Refused(404, f"no such path {scope['path'][:100]!r}, allowed: /streams/NAME/events and /health")
        if scope["method"] != "POST":
            raise Refused(405, f"got {scope['method']}, allowed: POST", allow="POST")
        is_json = _is_json(headers)
        producer, sequence = _numbered(headers)
        committer = await self._committer(found[1])
        held = _Held(self)
        try:
            body = await read_body(receive, headers, self._limits, held.hold)
            if len(body) <= _SMALL_NBYTES and "content-encoding" not in headers:
                text = self._text(body, headers, is_json)  # in the order in which they came
            else:
                text = await asyncio.to_thread(self._text, body, headers, is_json)
            held.hold(len(text))
            return await _committed(committer, text, producer, sequence)
        finally:
            self._waiting -= held.nbytes

    def _health(self, scope: Scope) -> dict[str, Any]:
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, f"got {scope['method']}, allowed: GET", allow="GET")
        failures = [f"stream {name}: {c.failure}" for name, c in self._committers.items() if c.failure]
        if failures:
            raise Refused(503, "; ".join(failures))
        return {"status": "ok", "waiting_nbytes": self._waiting}

    async def _committer(self, name: str) -> _Committer:
        found = self._committers.get(name)
        if found is not None:
            return found
        try:
            check_name(name)
        except ConfigError as error:
            raise Refused(404, str(error)) from error
        try:
            known = await asyncio.to_thread(lambda: Log(self._place).has(name))
        except PenstockError as error:
            raise Refused(503, str(error), retry_after="5") from error
        if not known and not self._create:
            raise Refused(404, f"there is no stream {name!r}; the server makes none without --create")
        if name not in self._committers:
            self._committers[name] = _Committer(self._place, name, self._new, self._limits, durable=self._durable)
        return self._committers[name]

    def _text(self, body: bytes, headers: Mapping[str, str], is_json: bool) -> bytes:
        """The body as whole lines, one for each event."""
        body = plain_body(body, headers, self._limits)
        body = body.removeprefix(BOM)
        if is_json and (values := _values(body)) is not None:
            return Lines.of(values).block
        return body if body.endswith(b"\n") or not body else body + b"\n"


class _Held:
    """Bytes that a request holds of what may wait."""

    def __init__(self, app: App) -> None:
        self._app, self.nbytes = app, 0

    def hold(self, nbytes: int) -> None:
        """Hold so many in all.

        Raises:
            Refused: too much waits already.
        """
        self.grow(max(0, nbytes - self.nbytes))

    def grow(self, nbytes: int) -> None:
        """Hold more.

        Raises:
            Refused: too much waits already.
        """
        if self._app._waiting + nbytes > self._app._limits.waiting_nbytes and self._app._waiting > self.nbytes:
            raise Refused(429, "too much waits to be committed; try again", retry_after="1")
        self._app._waiting += nbytes
        self.nbytes += nbytes


def _is_json(headers: Mapping[str, str]) -> bool:
    """Whether the body is one JSON value rather than one a line."""
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != JSON and given not in _LINES:
        raise Refused(415, f"got content-type {given[:50]!r}, allowed: {_LINES[0]} (an event a line) or {JSON}")
    return given == JSON


def _numbered(headers: Mapping[str, str]) -> tuple[str, int]:
    producer, sequence = headers.get("penstock-producer"), headers.get("penstock-sequence")
    if producer is None and sequence is None:
        return "", 0
    if producer is None or sequence is None:
        raise Refused(400, "Penstock-Producer and Penstock-Sequence belong together, got one of them")
    if not _NAME.fullmatch(producer):
        raise Refused(400, f"Penstock-Producer: got {producer[:50]!r}, allowed: up to 200 printable characters")
    if not sequence.isascii() or not sequence.isdigit() or int(sequence[:20]) >= 1 << 62:
        raise Refused(400, f"Penstock-Sequence: got {sequence[:50]!r}, allowed: a whole number from 0")
    return f"http/{producer}", int(sequence)


def _values(body: bytes) -> list[bytes] | None:
    """The events of a JSON array, or of one object; None where the body is lines after all."""
    text = body.strip()
    try:
        if text.startswith(b"["):
            return [bytes(value) for value in msgspec.json.decode(text, type=list[msgspec.Raw])]
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if b"\n" in text and not text.startswith(b"["):
            return None
        raise Refused(400, str(error)) from error
    return [text]


async def _committed(committer: _Committer, text: bytes, producer: str, sequence: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[dict[str, Any] | Refused] = loop.create_future()

    def answer(found: dict[str, Any] | Refused) -> None:
        loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(found))

    committer.put(_Request(text=text, producer=producer, sequence=sequence, answer=answer))
    found = await future
    if isinstance(found, Refused):
        raise found
    return found


def serve(
    app: App, host: str, port: int, limits: Limits | None = None, on_listening: Callable[[str], None] = print
) -> None:
    """Serve until SIGTERM or Ctrl-C, and then answer what was accepted.

    Raises:
        ConfigError: the address cannot be had, or the extra is not installed.
    """
    serve_http(app, host, port, limits or Limits(), extra="stream", on_listening=on_listening)
    app.stop()
