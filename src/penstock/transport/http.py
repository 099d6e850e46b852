"""What our HTTP servers share: limits on what others send, tokens, compressed bodies, TLS, an end that drains.

uvicorn speaks the protocol, with httptools and, where it is there, uvloop; applications are ASGI. All that comes
in is bounded: heads and bodies in bytes and in time, and the number of connections.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import signal
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from penstock.errors import ConfigError

__all__ = [
    "JSON",
    "Gone",
    "HttpLimits",
    "HttpTls",
    "Receive",
    "Refused",
    "Scope",
    "Send",
    "authenticate",
    "headers_of",
    "is_loopback",
    "plain_body",
    "read_body",
    "refusal",
    "send_answer",
    "serve_http",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = "application/json"


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What a server lets others do."""

    body_nbytes: int = 16 << 20
    """Of a request as it is sent."""
    text_nbytes: int = 64 << 20
    """Of a request when it is decompressed."""
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


@dataclass(frozen=True, kw_only=True)
class HttpTls:
    """A server's certificate (PEM, with its chain) and key; with ``ca``, clients must show one that it signed."""

    certificate: str
    key: str
    ca: str | None = None

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key, self.ca):
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"TLS: there is no file {path}")


class Refused(Exception):
    """An answer that is none of success."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Gone(Exception):
    """The client went away."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Headers by their names in small letters."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def authenticate(headers: Mapping[str, str], token: bytes | None) -> None:
    """Check the bearer token (RFC 6750), if there must be one.

    Raises:
        Refused: it is missing or wrong.
    """
    if token is None:
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("latin-1"), token)
    if scheme.lower() != "bearer" or not right:
        raise Refused(401, "the token is missing or wrong: Authorization: Bearer", www_authenticate="Bearer")


async def read_body(
    receive: Receive,
    headers: Mapping[str, str],
    limits: HttpLimits,
    on_more: Callable[[int], None] = lambda nbytes: None,
) -> bytes:
    """A request's body. ``on_more`` is told how many bytes it has, or will have, and may refuse.

    Raises:
        Refused: it is too large, or came too slowly.
        Gone: the client went away.
    """
    length = headers.get("content-length", "")
    if length.isdigit():
        _check_size(int(length), limits.body_nbytes, "body")
        on_more(int(length))
    pieces, nbytes = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                async with asyncio.timeout(limits.idle_s):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                piece = message.get("body", b"")
                pieces.append(piece)
                nbytes += len(piece)
                _check_size(nbytes, limits.body_nbytes, "body")
                on_more(nbytes)
                if not message.get("more_body"):
                    return b"".join(pieces)
    except TimeoutError:
        raise Refused(408, "the body came too slowly", connection="close") from None


def plain_body(body: bytes, headers: Mapping[str, str], limits: HttpLimits) -> bytes:
    """The body, decompressed where it is gzip.

    Raises:
        Refused: it is compressed in another way, damaged, or too large.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding != "gzip":
        raise Refused(415, f"got content-encoding {encoding[:50]!r}, allowed: gzip")
    return _decompressed(body, limits.text_nbytes)


async def send_answer(
    send: Send, scope: Scope, status: int, body: bytes, type_: str, headers: Mapping[str, str] | None = None
) -> None:
    """Send an answer; to HEAD without its body."""
    raw = [(b"content-type", type_.encode()), (b"content-length", b"%d" % len(body))]
    if headers:
        raw += [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def refusal(refused: Refused) -> bytes:
    """The body that says why."""
    return msgspec.json.encode({"error": refused.message}) + b"\n"


def is_loopback(host: str) -> bool:
    """Whether nobody else can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve_http(
    app: Any,
    host: str,
    port: int,
    limits: HttpLimits,
    *,
    extra: str,
    tls: HttpTls | None = None,
    on_listening: Callable[[str], None] = print,
    on_start: Callable[[asyncio.AbstractEventLoop], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, and then answer what was accepted.

    ``on_start`` is awaited in the server's loop before it listens.

    Raises:
        ConfigError: the address cannot be had, or the package's extra is not installed.
    """
    try:
        import httptools
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"an HTTP server needs the extra `{extra}`: pip install 'penstock[{extra}]'") from error

    class Server(uvicorn.Server):
        """Leaves signals to us."""

        def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
            return nullcontext()

    assert httptools is not None  # uvicorn imports it only when it serves
    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        lifespan="off",
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=limits.stop_s,
        **_tls_options(tls),
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS: the certificate or its key cannot be used: {error}") from error
    server = Server(config)
    with _bound(host, port) as listener:

        async def run() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
            if on_start is not None:
                await on_start(loop)
            shown = f"[{host}]" if ":" in host else host
            scheme = "http" if tls is None else "https"
            on_listening(f"{scheme}://{shown}:{listener.getsockname()[1]}")
            await server.serve(sockets=[listener])

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())


def _protocol(limits: HttpLimits) -> Any:
    """uvicorn's protocol, which besides closes connections that take their time with the head of a request."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        """Closes connections that take their time, or too many bytes, with the head of a request."""

        _late: asyncio.TimerHandle | None = None
        _head_nbytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._calm()

        def data_received(self, data: bytes) -> None:
            if self._late is not None:
                self._head_nbytes += len(data)
                if self._head_nbytes > limits.header_nbytes and b"\r\n\r\n" not in data[: limits.header_nbytes]:
                    self._calm()
                    self.send_400_response(f"The head of a request has at most {limits.header_nbytes} bytes.")
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._late is None:
                self._await_head()

        def on_headers_complete(self) -> None:
            self._calm()
            super().on_headers_complete()

        def _await_head(self) -> None:
            self._head_nbytes = 0
            self._late = self.loop.call_later(limits.header_s, self.transport.close)

        def _calm(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Protocol


def _tls_options(tls: HttpTls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    options: dict[str, Any] = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    if tls.ca is not None:
        options |= {"ssl_ca_certs": tls.ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    found: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return found


def _check_size(nbytes: int, allowed: int, what: str) -> None:
    if nbytes > allowed:
        raise Refused(413, f"the {what} has more than {allowed:,} bytes; send less at a time", connection="close")


def _decompressed(body: bytes, allowed: int) -> bytes:
    pieces, nbytes = [], 0
    while body:
        stream = zlib.decompressobj(wbits=31)
        try:
            piece = stream.decompress(body, allowed + 1 - nbytes)
        except zlib.error as error:
            raise Refused(400, f"the body is no gzip: {error}") from error
        pieces.append(piece)
        nbytes += len(piece)
        _check_size(nbytes, allowed, "decompressed body")
        if not stream.eof:
            raise Refused(400, "the body is gzip that ends too early")
        body = stream.unused_data
    return b"".join(pieces)


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
