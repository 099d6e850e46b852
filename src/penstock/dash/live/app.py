"""The application that serves the page and, to whoever may have it, what is new on the board.

The page itself has nothing of the run and is given to all; figures want the token, where there is one. Without a
token the server is to be asked by a name of this machine alone, or a page elsewhere could read them by a name
that it lets point here (DNS rebinding).
"""

from __future__ import annotations

import logging
from urllib.parse import parse_qs

import msgspec

from penstock.dash.live.board import Board, Seen
from penstock.dash.live.page import live_page
from penstock.transport.http import (
    JSON,
    HttpLimits,
    Receive,
    Refused,
    Scope,
    Send,
    authenticate,
    headers_of,
    is_loopback,
    refusal,
    send_answer,
)

__all__ = ["LIMITS", "App"]

LIMITS = HttpLimits(body_nbytes=1 << 16, connections=64)
_log = logging.getLogger(__name__)
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class App:
    """Serves one board."""

    def __init__(self, name: str, board: Board, *, token: bytes | None = None) -> None:
        self._page = live_page(name if token is None else "run").encode()
        self._board, self._token = board, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise Refused(405, f"got {scope['method'][:20]}, allowed: GET", allow="GET, HEAD")
            headers = headers_of(scope)
            if self._token is None:
                _check_name(headers.get("host", ""))
            if scope["path"] == "/":
                await send_answer(send, scope, 200, self._page, "text/html; charset=utf-8", _HEADERS)
            elif scope["path"] == "/data":
                authenticate(headers, self._token)
                body = self._board.answer(_seen(scope.get("query_string", b"")))
                await send_answer(send, scope, 200, body, JSON, _HEADERS)
            else:
                raise Refused(404, f"no such path {scope['path'][:100]!r}, allowed: / and /data")
        except Refused as refused:
            await send_answer(send, scope, refused.status, refusal(refused), JSON, _HEADERS | refused.headers)
        except Exception as error:  # a defect of ours: told, and the server goes on
            _log.exception("%s", scope["path"])
            text = f"{type(error).__name__}: {error}"[:200]
            await send_answer(send, scope, 500, refusal(Refused(500, text)), JSON, _HEADERS)


def _seen(query: bytes) -> Seen | None:
    text = parse_qs(query.decode("latin-1")).get("seen")
    if text is None:
        return None
    try:
        return msgspec.json.decode(text[0], type=Seen)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(400, f"seen: got {text[0][:50]!r}, allowed: what an answer had there ({error})") from error


def _check_name(host: str) -> None:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if not is_loopback(name.strip("[]")):
        raise Refused(421, f"got the name {name[:100]!r}, allowed: localhost, 127.0.0.1, [::1]")
