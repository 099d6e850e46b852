"""Bodies of requests, of which only so many bytes are kept at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.serve.api.facts import Facts
from penstock.serve.api.limits import ServeLimits
from penstock.serve.api.slices import SLICE_NBYTES
from penstock.transport.http import Receive, Refused, plain_body, read_body

__all__ = ["Bodies", "Request"]

_UNPACKED = 1032
"""Bytes that one byte of gzip can be, at most (RFC 1951: 258 bytes in two bits)."""


@dataclass(slots=True)
class Request:
    """What handlers need of a request."""

    path: str
    query: bytes
    headers: Mapping[str, str]
    receive: Receive
    facts: Facts | None
    """What its trace wants to know, if there is one."""
    held_nbytes: int = 0


class Bodies:
    """Of all requests of a server. Those of no more than ``SLICE_NBYTES`` are not counted, and never refused."""

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self.held_nbytes = 0

    async def read(self, request: Request) -> bytes:
        """A request's body, decompressed; it is held until ``release``.

        Raises:
            Refused: it is too large, alone or beside others, too slow, or damaged.
            Gone: the client went away.
        """
        body = await read_body(
            request.receive, request.headers, self._limits, lambda nbytes: self.hold(request, nbytes)
        )
        if "content-encoding" not in request.headers:
            return body
        self.hold(request, len(body) + min(self._limits.text_nbytes, _UNPACKED * len(body)))
        return await asyncio.to_thread(plain_body, body, request.headers, self._limits)

    def hold(self, request: Request, nbytes: int) -> None:
        """Count what a request makes us keep.

        Raises:
            Refused: it is too much, beside that of others.
        """
        if nbytes <= max(request.held_nbytes, SLICE_NBYTES):
            return
        others = self.held_nbytes - request.held_nbytes
        if others and others + nbytes > self._limits.waiting_nbytes:
            raise Refused(429, "too many large requests at the moment; try again", retry_after="1")
        self.held_nbytes, request.held_nbytes = others + nbytes, nbytes

    def release(self, request: Request) -> None:
        """The request is answered."""
        self.held_nbytes -= request.held_nbytes
        request.held_nbytes = 0
