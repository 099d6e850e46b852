"""``penstock serve``: models over HTTP, and which of their versions."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from penstock.errors import ConfigError

__all__ = ["serve"]


class _Serve(click.Group):
    """Its first argument is a command's name or, nearly always, a model."""

    default = "models"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        return self.commands[self.default].get_help(ctx)


@click.group(cls=_Serve)
def serve() -> None:
    """Answer for models over HTTP."""


@serve.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", metavar="[NAME=]MODEL[@VERSION]...", nargs=-1, required=True)
@click.option("--follow", is_flag=True, help="Switch to each new version that a trainer publishes there.")
@click.option(
    "--canary",
    "canaries",
    metavar="[NAME=]MODEL[@VERSION]:SHARE",
    multiple=True,
    help="A version that gets a share of a model's requests, such as 5%.",
)
@click.option("--mapped", is_flag=True, help="Rows stay in files, for models that are larger than memory.")
@click.option("--cache", metavar="DIR", help="Where copies of remote models, and mapped files, are kept.")
@click.option(
    "--worst-logloss",
    type=click.FloatRange(min=0, min_open=True),
    default=1.2,
    show_default=True,
    help="Of a new version, as a multiple of the one that answers; worse is not switched to.",
)
@click.option("--calibration", default="0.33:3", show_default=True, help="Of a new version, at least and at most.")
@click.option(
    "--pipeline",
    "pipelines",
    metavar="[NAME=]JOB",
    multiple=True,
    help="Job file (.toml) whose aggregates are kept and looked up: for all models, or for one.",
)
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
def models(
    models: tuple[str, ...],
    follow: bool,
    canaries: tuple[str, ...],
    mapped: bool,
    cache: str | None,
    worst_logloss: float,
    calibration: str,
    pipelines: tuple[str, ...],
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
    """Answer for MODELs (folders, or URLs such as s3://...) over HTTP, until Ctrl-C or SIGTERM.

    \b
    curl localhost:8080/predict -d '[{"site": "news", "user": "u17", "price": 3.2}]'

    The first is the one that /predict means; each is at /v2/models/NAME/infer too (Open Inference Protocol). A
    model's name is its folder's, unless given. The page at / says which columns each takes. With --pipeline, rows
    bring the columns of the pipeline's first stream, and its aggregates are looked up as of now.

    \b
    penstock serve versions MODEL             which there are
    penstock serve rollback MODEL --to 41     have all servers that follow go back
    """
    from penstock.cli.serve_pipelines import features_of
    from penstock.serve.api.app import ServeLimits
    from penstock.serve.start import Serving, parse_canary, parse_model
    from penstock.serve.versions.gate import Gate
    from penstock.transport import read_token
    from penstock.transport.http import HttpTls, is_loopback
    from penstock.transport.http_serving import serve_http

    if token_file is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached by others: it needs --token-file; penstock cluster new-token makes one"
        )
    if (tls_cert is None) != (tls_key is None) or (tls_ca is not None and tls_cert is None):
        raise ConfigError("--tls-cert and --tls-key belong together, and --tls-ca needs both")
    tls = HttpTls(certificate=tls_cert, key=tls_key, ca=tls_ca) if tls_cert and tls_key else None
    token = read_token(token_file) if token_file is not None else None
    limits = ServeLimits(
        body_nbytes=body_mb << 20,
        text_nbytes=4 * body_mb << 20,
        waiting_nbytes=16 * body_mb << 20,
        rows=rows,
        connections=connections,
        drain_s=drain_s,
    )
    serving = Serving(
        [parse_model(each) for each in models],
        [parse_canary(each) for each in canaries],
        follow=follow,
        mapped=mapped,
        cache=cache,
        gate=Gate(worst_logloss=worst_logloss, calibration=_bounds(calibration)),
        features=lambda scorers: features_of(pipelines, scorers),
    )
    with serving:
        app = serving.load(click.echo, token=token, limits=limits, access_log=sys.stderr if access_log else None)
        tracing = None
        if otel:
            from penstock.serve.api.tracing import Tracing

            tracing = Tracing(app)
        try:
            serve_http(
                tracing or app,
                host,
                port,
                limits,
                extra="serve",
                tls=tls,
                on_start=serving.start,
                on_drain=app.drain,
                on_warning=lambda text: click.echo(f"penstock: {text}", err=True),
                on_listening=lambda url: click.echo(f"listening at {url}"),
            )
        finally:
            if tracing is not None:
                tracing.close()


@serve.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("--to", metavar="VERSION", required=True, help="A version that is there, or: newest.")
@click.option("--reason", default="", help="Kept beside it, for people.")
def rollback(model: str, to: str, reason: str) -> None:
    """Have servers that follow MODEL (a folder or URL) answer by a version, until told otherwise.

    The trainer goes on, and so do its versions; with --to newest they are followed again.
    """
    from penstock.models import pin_version
    from penstock.models.remote import RemoteFolder, is_url

    if to != "newest" and not (to.isascii() and to.isdigit() and len(to) < 10):
        raise ConfigError(f"--to: got {to!r}, allowed: the number of a version, or: newest")
    version = None if to == "newest" else int(to)
    if is_url(model):
        RemoteFolder(model).pin_version(version, reason)
    else:
        pin_version(model, version, reason)
    done = "follow the newest version again" if version is None else f"go back to version {version}"
    click.echo(f"{model}: servers that follow it {done}")


@serve.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
def versions(model: str) -> None:
    """List the versions of MODEL (a folder or URL) that are there to go back to."""
    import tempfile

    from rich.console import Console
    from rich.table import Table

    from penstock.models.history import list_versions
    from penstock.models.remote import RemoteFolder, is_url

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("version", "written", "features", "changed", "logloss", "newest event", ""):
        left = name in ("written", "newest event", "")
        table.add_column(name, justify="left" if left else "right", no_wrap=bool(name))
    if is_url(model):
        with tempfile.TemporaryDirectory(prefix="penstock-versions-") as folder:
            RemoteFolder(model).fetch_history(Path(folder))
            found = list_versions(folder)
    else:
        found = list_versions(model)
    for each in found:
        table.add_row(
            f"{each.version}",
            each.created.replace("+00:00", "Z"),
            f"{each.rows:,}",
            f"{each.changed:,}" if each.changed is not None else "all",
            f"{each.logloss:.5f}" if each.logloss is not None else "",
            each.newest_event or "",
            " ".join(each.notes),
        )
    # Who reads it by a program wants a line for each version.
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 250).print(table)


def _bounds(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise ConfigError(f"--calibration: got {text!r}, allowed: two numbers, such as 0.33:3") from error
