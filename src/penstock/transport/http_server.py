"""uvicorn's server, with sockets that are ours, and an end that loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import httptools
import uvicorn

from penstock.errors import ConfigError
from penstock.transport.http import HttpLimits, HttpTls
from penstock.transport.http_connection import Connection, Shared

__all__ = ["Server"]

_LOOK_S = 0.5
assert httptools is not None  # uvicorn would import it when it serves, which is late to say that it is missing


class Server(uvicorn.Server):
    """Serves one application at one socket.

    It ends in two steps. While it drains, for ``drain_s``, it still takes requests, and each answer says
    ``Connection: close``, so that clients ask elsewhere; then it stops listening, and answers what was begun.
    """

    def __init__(
        self, app: Any, limits: HttpLimits, tls: HttpTls | None, on_drain: Callable[[], None] | None
    ) -> None:
        """``on_drain`` is called when the server is asked to stop.

        Raises:
            ConfigError: the certificate or its key cannot be used.
        """
        self._limits, self._on_drain = limits, on_drain
        self._shared = Shared(limits)
        protocol = type("Connection", (Connection,), {"shared": self._shared})
        config = uvicorn.Config(
            app,
            http=protocol,
            lifespan="off",
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=limits.stop_s,
            **_tls_options(tls),
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"TLS: the certificate or its key cannot be used: {error}") from error
        super().__init__(config)

    def ask_to_stop(self) -> None:
        """Drain, and then end; asked again, end at once. In the loop's thread."""
        if self._shared.draining or not self._limits.drain_s:
            self.should_exit = True
        if not self._shared.draining:
            self._shared.draining = True
            for connection in self._connections():
                connection.drain()
            if self._on_drain is not None:
                self._on_drain()
            asyncio.get_running_loop().call_later(self._limits.drain_s, setattr, self, "should_exit", True)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals to whoever runs the loop."""
        return nullcontext()

    async def startup(self, sockets: Any = None) -> None:
        """Listen."""
        await self.lifespan.startup()
        self.servers = []
        loop, config = asyncio.get_running_loop(), self.config

        def connection() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        handshake_s = None if config.ssl is None else self._limits.header_s
        for each in sockets:
            server = await loop.create_server(
                connection, sock=each, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=handshake_s
            )
            self.servers.append(server)
        self._looking = loop.create_task(self._look())
        self.started = True

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop listening, answer what was begun, and close."""
        self._shared.draining = self._shared.stopping = True
        await asyncio.sleep(0)  # who waits to be accepted is
        try:
            await super().shutdown(sockets)
        finally:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            for connection in self._connections():
                connection.look(loop.time())

    def _connections(self) -> list[Connection]:
        return list(self.server_state.connections)  # type: ignore[arg-type]


def _tls_options(tls: HttpTls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    options: dict[str, Any] = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    if tls.ca is not None:
        options |= {"ssl_ca_certs": tls.ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options
