"""A cluster by hand: ``penstock coordinator``, ``server`` and ``worker`` on any hosts; ``cluster`` looks at it."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import click
from rich.console import Console

from penstock.cli.status import print_status
from penstock.errors import ConfigError

__all__ = ["access_of", "cluster", "coordinator", "optional_access_options", "server", "worker"]


_access_options = [
    click.option(
        "--token-file",
        required=True,
        help="File with the cluster's token, readable by its owner alone; the same on every host.",
    ),
    click.option("--cluster", "cluster_name", default="penstock", show_default=True, help="Name of the cluster."),
    click.option("--tls-cert", help="Certificate of this host (PEM), for mutual TLS."),
    click.option("--tls-key", help="Its key."),
    click.option("--tls-ca", help="The authority that signed everybody's certificate."),
    click.option(
        "--allow-plaintext", is_flag=True, help="Listen on a network without TLS: only where you trust everybody."
    ),
]


def access_options(command: Any) -> Any:
    """The options that say who belongs to a cluster."""
    for option in reversed(_access_options):
        command = option(command)
    return command


def optional_access_options(command: Any) -> Any:
    """The same but for ``--token-file``, for commands that may do without a cluster."""
    for option in reversed(_access_options[1:]):
        command = option(command)
    return command


def access_of(
    token_file: str,
    cluster_name: str,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    allow_plaintext: bool,
) -> Any:
    """What these options say; the names of arguments are theirs.

    Raises:
        ConfigError: only some of TLS's files are named, or one of them cannot be used.
    """
    from penstock.engine.node import Access
    from penstock.transport import client_tls, read_token, server_tls

    files = (tls_cert, tls_key, tls_ca)
    if any(files) and not all(files):
        raise ConfigError("TLS needs all of --tls-cert, --tls-key and --tls-ca")
    tls: dict[str, Any] = {}
    if tls_cert and tls_key and tls_ca:
        tls = {
            "server_tls": server_tls(tls_cert, tls_key, tls_ca),
            "client_tls": client_tls(tls_cert, tls_key, tls_ca),
        }
    return Access(cluster=cluster_name, token=read_token(token_file), allow_plaintext=allow_plaintext, **tls)


def _name(role: str, name: str | None) -> str:
    return name if name is not None else f"{role}-{socket.gethostname()[:40]}-{os.getpid()}"


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")


@click.command()
@click.argument("job")
@click.option("--listen", default="127.0.0.1:7077", show_default=True, help="Address that roles join at.")
@click.option("--servers", type=int, help="Servers to wait for.  [default: the job's, or 1]")
@click.option("--consistency", help="bsp, ssp:4 or asp.")
@click.option("-o", "--output", help="Folder for the model; every role must be able to write there.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the output folder.")
@click.option(
    "--gather-s", type=float, default=60.0, show_default=True, help="Seconds to wait for servers and a worker."
)
@access_options
def coordinator(
    job: str,
    listen: str,
    servers: int | None,
    consistency: str | None,
    output: str | None,
    resume: bool,
    gather_s: float,
    **access: Any,
) -> None:
    """Coordinate the run that a JOB file describes; servers and workers are started by hand, and join.

    It ends when the model is in the output folder. Ctrl-C or SIGTERM have it write a checkpoint first.
    """
    import dataclasses

    from penstock.engine.coordinator import CoordinatorSpec, run_coordinator
    from penstock.engine.fit import prepare
    from penstock.engine.strategy import ParameterServer
    from penstock.job import read_job
    from penstock.train.signals import StopSignals

    described = read_job(job)
    given: dict[str, Any] = {"servers": servers, "consistency": consistency}
    train = dataclasses.replace(described.train, **{k: v for k, v in given.items() if v is not None})
    place = described.output if output is None else dataclasses.replace(described.output, path=output)
    described = dataclasses.replace(
        described, train=dataclasses.replace(train, strategy="parameter-server"), output=place
    )
    strategy = described.strategy()
    assert isinstance(strategy, ParameterServer)
    _log_to_stderr()
    signals, again = StopSignals(), f"penstock coordinator {job} --resume" + (f" -o {output}" if output else "")
    with prepare(
        described.model(),
        described.data.open(),
        strategy=strategy,
        passes=described.train.passes,
        holdout=described.holdout(),
        output=described.output.path,
        resume=resume,
        checkpoint_every_s=described.train.checkpoint_every_s,
        publish=described.output.publish(),
        gather_s=gather_s,
        job=described.to_dict(),
    ) as prepared:
        spec = CoordinatorSpec(
            run=prepared.run,
            access=access_of(**access),
            listen=listen,
            resume_with=again,
            on_listening=lambda address: click.echo(f"listening at {address}"),
            why_stop=lambda: signals.by,
        )
        with signals:
            run_coordinator(spec)
        scores = prepared.finish()
    click.echo(f"model in {described.output.path}")
    if scores is not None:
        click.echo(f"hold-out: logloss {scores.logloss:.5f}, AUC {scores.auc:.4f}")


@click.command()
@click.option("--join", required=True, help="Address of the coordinator: host:port.")
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Address to serve at; port 0: any.")
@click.option("--advertise", help="Address by which others reach it, if another.")
@click.option("--name", help="Unique in the cluster.  [default: server-HOST-PID]")
@click.option("--join-s", type=float, default=60.0, show_default=True, help="Seconds to try to join for.")
@access_options
def server(join: str, listen: str, advertise: str | None, name: str | None, join_s: float, **access: Any) -> None:
    """Hold a share of the rows of a cluster's model, until its run is over."""
    from penstock.engine.server import ServerSpec, run_server

    if advertise is None and listen.startswith(("0.0.0.0:", "[::]:")):
        raise ConfigError(f"--listen {listen} is no address that workers can reach; name one by --advertise")
    _log_to_stderr()
    run_server(
        ServerSpec(
            join=join,
            access=access_of(**access),
            name=_name("server", name),
            listen=listen,
            advertise=advertise,
            join_s=join_s,
        )
    )


@click.command()
@click.option("--join", required=True, help="Address of the coordinator: host:port.")
@click.option("--name", help="Unique in the cluster.  [default: worker-HOST-PID]")
@click.option("--join-s", type=float, default=60.0, show_default=True, help="Seconds to try to join for.")
@access_options
def worker(join: str, name: str | None, join_s: float, **access: Any) -> None:
    """Read data and compute gradients for a cluster, until its run is over.

    May join at any time; leaves on Ctrl-C or SIGTERM, and others take what it had.
    """
    from penstock.engine.worker import WorkerSpec, run_worker
    from penstock.train.signals import StopSignals

    _log_to_stderr()
    with StopSignals() as signals:
        run_worker(
            WorkerSpec(
                join=join,
                access=access_of(**access),
                name=_name("worker", name),
                join_s=join_s,
                why_leave=lambda: signals.by,
            )
        )


@click.group()
def cluster() -> None:
    """Look at a running cluster, or stop it."""


def _find(run: str, join: str | None, token_file: str | None, **access: Any) -> tuple[Any, str]:
    """Access to a cluster and its coordinator's address: as options say, or as the run's folder does."""
    from penstock.engine.local import read_access

    if join is None:
        return read_access(run)
    if token_file is None:
        raise ConfigError("--join needs --token-file")
    return access_of(token_file=token_file, **access), join


def find_options(command: Any) -> Any:
    """The options that say which cluster."""
    command = optional_access_options(command)
    command = click.option("--token-file", help="The cluster's token, for --join.")(command)
    command = click.option("--join", help="Coordinator of a cluster that was started by hand: host:port.")(command)
    return click.argument("run", default="model")(command)


@cluster.command()
@find_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool, **which: Any) -> None:
    """Show who takes part in a RUN (its output folder): rows, memory, bytes, staleness, heartbeats."""
    from penstock.engine.observer import Observer

    access, address = _find(**which)
    with Observer(access, address) as observer:
        found = observer.status()
    if as_json:
        import json

        click.echo(json.dumps({k: v for k, v in found.items() if k != "metrics"}))
        return
    print_status(Console(markup=False), found, address)


@cluster.command()
@find_options
def stop(**which: Any) -> None:
    """Have a RUN write a checkpoint, and end."""
    from penstock.engine.observer import Observer

    access, address = _find(**which)
    with Observer(access, address) as observer:
        observer.stop("penstock cluster stop")
    click.echo("asked to stop; it writes a checkpoint first")


@cluster.command()
@click.argument("function")
@find_options
@click.option("--table", default="weights", show_default=True, help="Of the model.")
@click.option("--set", "settings", multiple=True, help="An argument of the function: k=20, threshold=0.001.")
def call(function: str, table: str, settings: tuple[str, ...], **which: Any) -> None:
    """Run a FUNCTION where the rows of a RUN are: count, norm, top, prune, decay. Prints JSON."""
    import json

    from penstock.engine import TableClient

    arguments: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        try:
            arguments[name] = int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError as error:
            raise ConfigError(f"--set {setting!r} must be a name, '=' and a number, such as k=20") from error
        if not name or not equals:
            raise ConfigError(f"--set {setting!r} must be a name, '=' and a number, such as k=20")
    access, address = _find(**which)
    with TableClient(access, address) as client:
        answer = client.call(function, table, **arguments)
    rows = [
        [f"{key:#018x}", value] for key, value in zip(answer.keys.tolist(), answer.floats.tolist(), strict=True)
    ]
    click.echo(json.dumps({**answer.value, **({"keys": rows} if rows else {})}))


@cluster.command("new-token")
@click.argument("file")
def new_token_file(file: str) -> None:
    """Write a new token to a FILE that its owner alone may read."""
    from penstock.transport import new_token

    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be made: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(new_token() + b"\n")
    click.echo(f"token in {file}; copy it to every host of the cluster")
