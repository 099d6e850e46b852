"""``penstock dash``: a live page of a run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from penstock.cli.cluster import access_of, optional_access_options
from penstock.errors import ConfigError, TransportError

__all__ = ["dash"]

_ADDRESS = re.compile(r"[^/\s]+:\d{1,5}")


@click.command()
@click.argument("run")
@click.option(
    "--serve", "urls", multiple=True, help="A prediction server whose answers to show: http://host:port."
)
@click.option("--serve-token-file", help="The token that these servers ask for.")
@click.option("--save", help="Write the page to this file, with its figures in it, and end.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0 takes any.")
@click.option("--page-token-file", help="Who looks must know the token in this file; for --host others.")
@click.option("--page-tls-cert", help="Certificate chain (PEM), for https.")
@click.option("--page-tls-key", help="Its key (PEM).")
@click.option("--token-file", help="The cluster's token, where RUN is a coordinator's address.")
@optional_access_options
def dash(
    run: str,
    urls: tuple[str, ...],
    serve_token_file: str | None,
    save: str | None,
    host: str,
    port: int,
    page_token_file: str | None,
    page_tls_cert: str | None,
    page_tls_key: str | None,
    **access: Any,
) -> None:
    """Show a RUN as a page that keeps itself up to date, until Ctrl-C or SIGTERM.

    \b
    penstock dash run/
    penstock dash run/ --serve http://localhost:8080
    penstock dash trainer-0:7077 --token-file token

    RUN is the output folder of a run, while it trains or after, or the address of a cluster's coordinator, with
    the cluster's --token-file.
    """
    from penstock.dash.live.app import LIMITS, App
    from penstock.dash.live.page import save_page
    from penstock.dash.live.servers import Servers
    from penstock.dash.live.watch import Watch
    from penstock.transport import read_token
    from penstock.transport.http import HttpTls, is_loopback
    from penstock.transport.http_serving import serve_http

    if page_token_file is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached by others: it needs --page-token-file; "
            "penstock cluster new-token makes one"
        )
    if (page_tls_cert is None) != (page_tls_key is None):
        raise ConfigError("--page-tls-cert and --page-tls-key belong together")
    tls = HttpTls(certificate=page_tls_cert, key=page_tls_key) if page_tls_cert and page_tls_key else None
    servers = Servers(urls, read_token(serve_token_file) if serve_token_file is not None else None)
    token = read_token(page_token_file) if page_token_file is not None else None
    with contextlib.ExitStack() as stack:
        seer: Any = stack.enter_context(_seer(run, access))
        if save is not None:
            for url in servers.urls:
                servers.ask(url)
            watch = Watch(seer, servers)
            watch.look()
            save_page(save, seer.view.name, watch.board.answer())
            click.echo(f"page in {save}")
            return
        watch = stack.enter_context(Watch(seer, servers))
        serve_http(
            App(seer.view.name, watch.board, token=token),
            host,
            port,
            LIMITS,
            extra="serve",
            tls=tls,
            on_listening=lambda url: click.echo(
                f"listening at {url}"
                + ("" if token is None else "; add #token=... of --page-token-file, or type it")
            ),
        )


@contextlib.contextmanager
def _seer(run: str, access: dict[str, Any]) -> Iterator[Any]:
    """Who looks at the run: by its folder, or by its coordinator."""
    from penstock.dash.live.folder import FolderSeer
    from penstock.dash.live.remote import CoordinatorSeer

    if Path(run).exists() or not _ADDRESS.fullmatch(run):
        yield FolderSeer(run)
        return
    if access["token_file"] is None:
        raise ConfigError(f"{run}: a coordinator needs --token-file, with the cluster's token")
    with _asker(run, access) as ask:
        yield CoordinatorSeer(run, ask)


@contextlib.contextmanager
def _asker(address: str, access: dict[str, Any]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Asks a coordinator for its status; connects when first asked, and again where the connection broke."""
    from penstock.engine.observer import Observer

    entry = access_of(**access)
    held: list[Observer] = []

    def ask() -> dict[str, Any]:
        if not held:
            held.append(Observer(entry, address))
        try:
            return held[0].status()
        except TransportError:
            held.pop().__exit__(None, None, None)
            raise

    ask()  # what is wrong with the address or the token is said at once
    try:
        yield ask
    finally:
        for observer in held:
            observer.__exit__(None, None, None)
