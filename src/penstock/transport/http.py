"""What our HTTP servers share: limits on what others send, tokens, compressed bodies, TLS, an end that drains.

uvicorn speaks the protocol, with httptools and, where it is there, uvloop; applications are ASGI. All that comes
in is bounded: heads and bodies in bytes and in time, and the number of connections.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
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
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = "application/json"
_LARGE_NBYTES = 64 << 10
_MEMBERS_MOST = 1000


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What a server lets others do."""

    body_nbytes: int = 16 << 20
    """Of a request as it is sent."""
    text_nbytes: int = 64 << 20
    """Of a request when it is decompressed."""
    connections: int = 512
    refused_connections: int = 64
    """Beyond those, so many are told by 503, and others closed at once."""
    pipelined: int = 100
    """Requests of a connection that wait for their answers."""
    header_nbytes: int = 16 << 10
    header_s: float = 10.0
    """Time to send the head of a request in, and for the handshake of TLS."""
    idle_s: float = 10.0
    """Time between two pieces of a body, or of an answer that is read."""
    body_s: float = 120.0
    """Time for a body to come, and for an answer to be read."""
    keep_alive_s: float = 30.0
    linger_s: float = 2.0
    """Time for a client to hear why it was let go, while it still sends."""
    drain_s: float = 0.0
    """Time in which a server that is asked to stop still takes requests, and has clients ask elsewhere."""
    stop_s: int = 30
    """Then, time for what was begun to end."""


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
    if length.isascii() and length.isdigit() and len(length) < 20:
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
    """Send an answer; to HEAD without its body. Of a large one the client has most when this returns."""
    raw = [(b"content-type", type_.encode()), (b"content-length", b"%d" % len(body))]
    if headers:
        raw += [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    if scope["method"] == "HEAD":
        body = b""
    large = len(body) > _LARGE_NBYTES
    await send({"type": "http.response.body", "body": body, "more_body": large})
    if large:
        await send({"type": "http.response.body"})  # the server waits here until its buffer is empty enough


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


def _check_size(nbytes: int, allowed: int, what: str) -> None:
    if nbytes > allowed:
        raise Refused(413, f"the {what} has more than {allowed:,} bytes; send less at a time", connection="close")


def _decompressed(body: bytes, allowed: int) -> bytes:
    pieces: list[bytes] = []
    nbytes = 0
    while body:
        if len(pieces) == _MEMBERS_MOST:  # each copies what is left
            raise Refused(400, f"the body is gzip of more than {_MEMBERS_MOST:,} members")
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
