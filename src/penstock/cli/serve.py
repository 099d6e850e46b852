"""``penstock serve``: models over HTTP."""

from __future__ import annotations

import asyncio
import functools
import re
import sys
from pathlib import Path

import click

from penstock.errors import ConfigError

__all__ = ["serve"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@click.command()
@click.argument("models", metavar="[NAME=]MODEL...", nargs=-1, required=True)
@click.option("--follow", is_flag=True, help="Switch to each new version that a trainer publishes there.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any.")
@click.option(
    "--token-file", help="Who asks must know the token in this file; for --host others. See: cluster new-token."
)
@click.option("--tls-cert", help="Certificate chain (PEM), for https.")
@click.option("--tls-key", help="Its key (PEM).")
@click.option("--tls-ca", help="Clients must show a certificate that this one (PEM) signed.")
@click.option(
    "--body-mb", type=click.IntRange(1, 4096), default=64, show_default=True, help="Of a request, at most."
)
@click.option("--rows", type=click.IntRange(min=1), default=10_000, show_default=True, help="Of a JSON request.")
@click.option("--connections", type=click.IntRange(min=1), default=2048, show_default=True, help="At most.")
@click.option(
    "--drain-s",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Asked to stop, go on for so long, not ready, each answer being the last one of its connection.",
)
@click.option("--otel", is_flag=True, help="Trace requests by OpenTelemetry, to OTEL_EXPORTER_OTLP_ENDPOINT.")
@click.option("--access-log", is_flag=True, help="A line of JSON for each request, to standard error.")
def serve(
    models: tuple[str, ...],
    follow: bool,
    host: str,
    port: int,
    token_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    body_mb: int,
    rows: int,
    connections: int,
    drain_s: float,
    otel: bool,
    access_log: bool,
) -> None:
    """Answer for MODELs (folders) over HTTP, until Ctrl-C or SIGTERM.

    \b
    curl localhost:8080/predict -d '[{"site": "news", "user": "u17", "price": 3.2}]'

    The first is the one that /predict means; each is at /v2/models/NAME/infer too (Open Inference Protocol). A
    model's name is its folder's, unless given. The page at / says which columns each takes.
    """
    from penstock.serve.app import App, ServeLimits
    from penstock.serve.follow import Follower, wait_for_model
    from penstock.serve.load import load_scorer
    from penstock.transport import read_token
    from penstock.transport.http import HttpTls, is_loopback, serve_http

    if token_file is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached by others: it needs --token-file; penstock cluster new-token makes one"
        )
    if (tls_cert is None) != (tls_key is None) or (tls_ca is not None and tls_cert is None):
        raise ConfigError("--tls-cert and --tls-key belong together, and --tls-ca needs both")
    tls = HttpTls(certificate=tls_cert, key=tls_key, ca=tls_ca) if tls_cert and tls_key else None
    folders: dict[str, str] = {}
    for each in models:
        name, equals, folder = each.partition("=")
        if not equals:
            name, folder = Path(each).resolve().name, each
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"model {each}: got the name {name!r}, allowed: letters, digits, _ . -; give one: NAME={folder}"
            )
        if name in folders:
            raise ConfigError(f"two models would be called {name!r}; give them names: NAME=MODEL")
        folders[name] = folder
    token = read_token(token_file) if token_file is not None else None
    limits = ServeLimits(
        body_nbytes=body_mb << 20,
        text_nbytes=4 * body_mb << 20,
        waiting_nbytes=16 * body_mb << 20,
        rows=rows,
        connections=connections,
        drain_s=drain_s,
    )
    scorers = {}
    for name, folder in folders.items():
        scorers[name] = scorer = wait_for_model(folder, click.echo) if follow else load_scorer(folder)
        click.echo(f"model {name}: version {scorer.version}, {scorer.model.rows:,} features, from {folder}")
    app = App(scorers, token=token, limits=limits, access_log=sys.stderr if access_log else None)
    followers = [Follower(name, folder, scorers[name]) for name, folder in folders.items()] if follow else []

    async def start(loop: asyncio.AbstractEventLoop) -> None:
        for follower in followers:
            follower.start(loop, functools.partial(app.switch, follower.name))

    tracing = None
    if otel:
        from penstock.serve.tracing import Tracing

        tracing = Tracing(app)
    try:
        serve_http(
            tracing or app,
            host,
            port,
            limits,
            extra="serve",
            tls=tls,
            on_start=start,
            on_drain=app.drain,
            on_warning=lambda text: click.echo(f"penstock: {text}", err=True),
            on_listening=lambda url: click.echo(f"listening at {url}"),
        )
    finally:
        for follower in followers:
            follower.stop()
        if tracing is not None:
            tracing.close()
