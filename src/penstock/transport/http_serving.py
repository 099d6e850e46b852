"""An HTTP server in this process, until it is asked to stop. What it is made of needs an extra."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from penstock.errors import ConfigError
from penstock.transport.http import HttpLimits, HttpTls
from penstock.version import the_extra

__all__ = ["serve_http"]

_OTHER_FILES = 160
"""Open files besides connections: those to be refused, models, logs, the loop's own."""
_log = logging.getLogger(__name__)


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
    on_drain: Callable[[], None] | None = None,
    on_warning: Callable[[str], None] = _log.warning,
) -> None:
    """Serve until SIGTERM or Ctrl-C, and then answer what was accepted.

    ``on_start`` is awaited in the server's loop before it listens; ``on_drain`` is called there when the server is
    asked to stop, and still takes requests for ``drain_s``.

    Raises:
        ConfigError: the address cannot be had, or the package's extra is not installed.
    """
    try:
        from penstock.transport.http_server import Server
    except ImportError as error:
        raise ConfigError(f"an HTTP server needs {the_extra(extra)}") from error
    limits = replace(limits, connections=_affordable(limits.connections, on_warning))
    server = Server(app, limits, tls, on_drain)
    with _bound(host, port) as listener:

        async def run() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, server.ask_to_stop)
            if on_start is not None:
                await on_start(loop)
            # What is there by now stays: to look at all of it again for cycles would hold up requests by 70 ms.
            gc.collect()
            gc.freeze()
            shown = f"[{host}]" if ":" in host else host
            scheme = "http" if tls is None else "https"
            on_listening(f"{scheme}://{shown}:{listener.getsockname()[1]}")
            await server.serve(sockets=[listener])

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run())


def _affordable(connections: int, on_warning: Callable[[str], None]) -> int:
    """How many connections may be open, after the process was allowed as many files as it may be."""
    try:
        import resource
    except ImportError:  # no limit that we know of
        return connections
    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        fewer = max(1, allowed - _OTHER_FILES)
        on_warning(f"{connections:,} connections need {wanted:,} open files, allowed: {hard:,}; taking {fewer:,}")
        return fewer
    return connections


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    found: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return found


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"cannot listen at {host}:{port}: {why}") from error
