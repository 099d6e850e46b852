"""An HTTP server that takes events: ``POST /streams/NAME/events``, answered when they are in the log.

Requests for a stream that come within a few milliseconds, or while others are committed, are committed together,
by a thread of the stream. With a producer's name and a number that grows a request can be repeated until it is
answered, and is taken once; a producer sends its next request when the last one was answered.

What waits is bounded in bytes; beyond that requests are refused with 429, and their senders wait.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import queue
import re
import signal
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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

__all__ = ["App", "Limits", "is_loopback", "serve"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_SOURCE = "http"
_TRIES = 5
_LINES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines")
_JSON = "application/json"
_PATH = re.compile(r"/streams/([^/]+)/events")
_NAME = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server lets others do."""

    body_nbytes: int = 16 << 20
    """Of a request as it is sent."""
    text_nbytes: int = 64 << 20
    """Of a request when it is decompressed."""
    waiting_nbytes: int = 256 << 20
    """Of all requests that are not answered yet."""
    connections: int = 512
    header_nbytes: int = 16 << 10
    header_s: float = 10.0
    """Time to send the head of a request in."""
    idle_s: float = 10.0
    """Time between two pieces of a body."""
    body_s: float = 120.0
    keep_alive_s: int = 30
    stop_s: int = 30
    """Time for what was begun to end, when the server is asked to stop."""
    gather_s: float = 0.003
    """A commit waits for so long for other requests."""
    commit_nbytes: int = 64 << 20


class _Refused(Exception):
    """An answer that is none of success."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(kw_only=True, eq=False)
class _Request:
    """Events of one request, and who waits for the answer."""

    text: bytes
    """Whole lines."""
    producer: str
    sequence: int
    answer: Callable[[dict[str, Any] | _Refused], None]
    rejected: list[Rejected] = field(default_factory=list)
    rows: int = 0


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
            self._commit(group)
            self.failure = None
        except StorageError as error:
            self.failure = str(error)
            _answer_all(group, _Refused(503, str(error), retry_after="5"))
        except InputError as error:
            if len(group) == 1:
                _answer_all(group, _Refused(400, str(error)))
                return
            # One of them is at fault, and the others shall not suffer for it.
            for request in group:
                self._commit_or_refuse([request])
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            _answer_all(group, _Refused(500, self.failure))

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

    def _commit(self, group: Sequence[_Request]) -> None:
        for attempt in range(_TRIES):
            try:
                _Group(self._opened(group), group, self._new, durable=self._durable).commit()
            except (PositionMoved, DataError):
                # Another process came in between: with the same requests, or with a column.
                if attempt == _TRIES - 1:
                    raise
                continue
            return

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


def _answer_all(group: Sequence[_Request], refused: _Refused) -> None:
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

    def commit(self) -> None:
        """Commit them, and answer."""
        stream = self._stream
        events = self._decode()
        refused = [request for request in self._fresh if _is_garbage(request)]
        taken = [request for request in self._fresh if not _is_garbage(request)]
        moves = {r.producer: (stream.position(r.producer), r.sequence + 1) for r in taken if r.producer}
        self._quarantine(taken)
        end = stream.end
        if events.num_rows or moves:
            end = stream.append(events, source=_SOURCE, parts=moves, durable=self._durable).end
        for request in taken:
            request.answer({"rows": request.rows, "rejected": len(request.rejected), "end": end})
        for request in self._repeated:
            request.answer({"rows": 0, "rejected": 0, "end": end, "duplicate": True})
        for request in refused:
            request.answer(_Refused(400, f"no line is an event; the first: {request.rejected[0].detail}"))

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
            status, answer, headers = 200, await self._answer(scope, receive), {}
        except _Refused as refused:
            status, answer, headers = refused.status, {"error": refused.message}, refused.headers
        except _Gone:
            return
        body = msgspec.json.encode(answer) + b"\n"
        head = {"content-type": _JSON, "content-length": str(len(body)), **headers}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in head.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] == "/health":
            return self._health(scope)
        self._authenticate(headers)
        found = _PATH.fullmatch(scope["path"])
        if found is None:
            raise _Refused(404, f"no such path {scope['path'][:100]!r}, allowed: /streams/NAME/events and /health")
        if scope["method"] != "POST":
            raise _Refused(405, f"got {scope['method']}, allowed: POST", allow="POST")
        is_json = _is_json(headers)
        producer, sequence = _numbered(headers)
        committer = await self._committer(found[1])
        held = _Held(self)
        try:
            text = await asyncio.to_thread(self._text, await self._body(headers, receive, held), headers, is_json)
            held.grow(max(0, len(text) - held.nbytes))
            return await _committed(committer, text, producer, sequence)
        finally:
            self._waiting -= held.nbytes

    def _health(self, scope: Scope) -> dict[str, Any]:
        if scope["method"] not in ("GET", "HEAD"):
            raise _Refused(405, f"got {scope['method']}, allowed: GET", allow="GET")
        failures = [f"stream {name}: {c.failure}" for name, c in self._committers.items() if c.failure]
        if failures:
            raise _Refused(503, "; ".join(failures))
        return {"status": "ok", "waiting_nbytes": self._waiting}

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        if self._token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if scheme.lower() != "bearer" or not right:
            raise _Refused(401, "the token is missing or wrong: Authorization: Bearer", www_authenticate="Bearer")

    async def _committer(self, name: str) -> _Committer:
        found = self._committers.get(name)
        if found is not None:
            return found
        try:
            check_name(name)
        except ConfigError as error:
            raise _Refused(404, str(error)) from error
        try:
            known = await asyncio.to_thread(lambda: Log(self._place).has(name))
        except PenstockError as error:
            raise _Refused(503, str(error), retry_after="5") from error
        if not known and not self._create:
            raise _Refused(404, f"there is no stream {name!r}; the server makes none without --create")
        if name not in self._committers:
            self._committers[name] = _Committer(self._place, name, self._new, self._limits, durable=self._durable)
        return self._committers[name]

    async def _body(self, headers: Mapping[str, str], receive: Receive, held: _Held) -> bytes:
        limits = self._limits
        length = headers.get("content-length", "")
        if length.isdigit():
            _check_size(int(length), limits.body_nbytes, "body")
            held.grow(int(length))
        pieces, nbytes = [], 0
        try:
            async with asyncio.timeout(limits.body_s):
                while True:
                    async with asyncio.timeout(limits.idle_s):
                        message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    piece = message.get("body", b"")
                    pieces.append(piece)
                    nbytes += len(piece)
                    _check_size(nbytes, limits.body_nbytes, "body")
                    held.grow(max(0, nbytes - held.nbytes))
                    if not message.get("more_body"):
                        return b"".join(pieces)
        except TimeoutError:
            raise _Refused(408, "the body came too slowly", connection="close") from None

    def _text(self, body: bytes, headers: Mapping[str, str], is_json: bool) -> bytes:
        """The body as whole lines, one for each event."""
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding == "gzip":
            body = _decompressed(body, self._limits.text_nbytes)
        elif encoding != "identity":
            raise _Refused(415, f"got content-encoding {encoding[:50]!r}, allowed: gzip")
        body = body.removeprefix(BOM)
        if is_json and (values := _values(body)) is not None:
            return Lines.of(values).block
        return body if body.endswith(b"\n") or not body else body + b"\n"


class _Gone(Exception):
    """The client went away."""


class _Held:
    """Bytes that a request holds of what may wait."""

    def __init__(self, app: App) -> None:
        self._app, self.nbytes = app, 0

    def grow(self, nbytes: int) -> None:
        """Hold more.

        Raises:
            _Refused: too much waits already.
        """
        if self._app._waiting + nbytes > self._app._limits.waiting_nbytes and self._app._waiting > self.nbytes:
            raise _Refused(429, "too much waits to be committed; try again", retry_after="1")
        self._app._waiting += nbytes
        self.nbytes += nbytes


def _is_json(headers: Mapping[str, str]) -> bool:
    """Whether the body is one JSON value rather than one a line."""
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != _JSON and given not in _LINES:
        raise _Refused(415, f"got content-type {given[:50]!r}, allowed: {_LINES[0]} (an event a line) or {_JSON}")
    return given == _JSON


def _numbered(headers: Mapping[str, str]) -> tuple[str, int]:
    producer, sequence = headers.get("penstock-producer"), headers.get("penstock-sequence")
    if producer is None and sequence is None:
        return "", 0
    if producer is None or sequence is None:
        raise _Refused(400, "Penstock-Producer and Penstock-Sequence belong together, got one of them")
    if not _NAME.fullmatch(producer):
        raise _Refused(400, f"Penstock-Producer: got {producer[:50]!r}, allowed: up to 200 printable characters")
    if not sequence.isascii() or not sequence.isdigit() or int(sequence[:20]) >= 1 << 62:
        raise _Refused(400, f"Penstock-Sequence: got {sequence[:50]!r}, allowed: a whole number from 0")
    return f"http/{producer}", int(sequence)


def _check_size(nbytes: int, allowed: int, what: str) -> None:
    if nbytes > allowed:
        raise _Refused(413, f"the {what} has more than {allowed:,} bytes; send less at a time", connection="close")


def _decompressed(body: bytes, allowed: int) -> bytes:
    pieces, nbytes = [], 0
    while body:
        stream = zlib.decompressobj(wbits=31)
        try:
            piece = stream.decompress(body, allowed + 1 - nbytes)
        except zlib.error as error:
            raise _Refused(400, f"the body is no gzip: {error}") from error
        pieces.append(piece)
        nbytes += len(piece)
        _check_size(nbytes, allowed, "decompressed body")
        if not stream.eof:
            raise _Refused(400, "the body is gzip that ends too early")
        body = stream.unused_data
    return b"".join(pieces)


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
        raise _Refused(400, str(error)) from error
    return [text]


async def _committed(committer: _Committer, text: bytes, producer: str, sequence: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[dict[str, Any] | _Refused] = loop.create_future()

    def answer(found: dict[str, Any] | _Refused) -> None:
        loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(found))

    committer.put(_Request(text=text, producer=producer, sequence=sequence, answer=answer))
    found = await future
    if isinstance(found, _Refused):
        raise found
    return found


def is_loopback(host: str) -> bool:
    """Whether nobody else can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    app: App, host: str, port: int, limits: Limits | None = None, on_listening: Callable[[str], None] = print
) -> None:
    """Serve until SIGTERM or Ctrl-C, and then answer what was accepted.

    Raises:
        ConfigError: the address cannot be had, or uvicorn is not installed.
    """
    try:
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError as error:
        raise ConfigError(
            "penstock log listen needs the extra `stream`: pip install 'penstock[stream]'"
        ) from error
    allowed = limits or Limits()

    class Protocol(H11Protocol):
        """Closes connections that take their time with the head of a request."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._calm()

        def _watch(self) -> None:
            if self.conn.their_state.__name__ != "IDLE":
                self._calm()
            elif self._late is None:
                self._late = self.loop.call_later(allowed.header_s, self._close)

        def _calm(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _close(self) -> None:
            self.transport.close()

    class Server(uvicorn.Server):
        """Leaves signals to us."""

        def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
            return nullcontext()

    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=allowed.connections,
        timeout_keep_alive=allowed.keep_alive_s,
        timeout_graceful_shutdown=allowed.stop_s,
        h11_max_incomplete_event_size=allowed.header_nbytes,
    )
    server = Server(config)
    with _bound(host, port) as listener:

        async def run() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
            shown = f"[{host}]" if ":" in host else host
            on_listening(f"http://{shown}:{listener.getsockname()[1]}")
            await server.serve(sockets=[listener])

        asyncio.run(run())
    app.stop()


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
