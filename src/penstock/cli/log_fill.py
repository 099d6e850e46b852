"""``penstock log append``, ``listen``, ``kafka``, ``nats``: events into a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

from penstock.cli.show import count
from penstock.errors import ConfigError, Interrupted

__all__ = ["append", "kafka", "listen", "nats"]


def _types(given: tuple[str, ...]) -> dict[str, Any]:
    import pyarrow as pa

    from penstock.log.times import TIMESTAMP

    known = {
        "string": pa.string(),
        "int": pa.int64(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "boolean": pa.bool_(),
        "timestamp": TIMESTAMP,
        "date": pa.date32(),
    }
    types = {}
    for text in given:
        name, equals, type_ = text.rpartition("=")
        if not equals or not name or type_ not in known:
            raise ConfigError(
                f"--type: got {text!r}, allowed: a column, '=' and one of {', '.join(known)}, such as price=double"
            )
        types[name] = known[type_]
    return types


_stream_options = [
    click.option(
        "--time", "time_", help="Column of the event time, for a new stream.  [default: ts, time, timestamp, ...]"
    ),
    click.option("--id", "id_", help="Column that identifies an event, for a new stream."),
    click.option("--type", "types", multiple=True, help="Type of a new column: price=double. Once for each."),
    click.option("--durable", is_flag=True, help="Have each commit on the disk (fsync): survive a power cut."),
]


def _for_new_streams(command: Any) -> Any:
    for option in reversed(_stream_options):
        command = option(command)
    return command


def _new_stream(time_: str | None, id_: str | None, types: tuple[str, ...]) -> Any:
    from penstock.log.sources.files import NewStream

    return NewStream(time=time_, id=id_, types=_types(types))


# ---- filling


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("stream")
@click.argument("files", nargs=-1, required=True)
@_for_new_streams
@click.option("--arrival", help="Column that says when an event arrived, for loading history; else it is now.")
@click.option(
    "--producer",
    help="Name under which positions are kept. A file has one by itself; with '-' lines are taken once by it.",
)
@click.option("--source", help="What the watermark watches.  [default: files, or stdin]")
@click.option("--format", "format_", help="jsonl, parquet, csv, tsv, arrow; by the file's name if not given.")
@click.option("--quiet", "-q", is_flag=True, help="Print only errors.")
def append(
    log_: str,
    stream: str,
    files: tuple[str, ...],
    time_: str | None,
    id_: str | None,
    types: tuple[str, ...],
    arrival: str | None,
    producer: str | None,
    source: str | None,
    durable: bool,
    format_: str | None,
    quiet: bool,
) -> None:
    """Append the events of FILES to a STREAM of a LOG; '-' is standard input, as JSON lines.

    What is in the log already is passed over: to repeat the command appends nothing, and a file that grew
    gives what is new. What is no event goes to the stream's quarantine.
    """
    from penstock.log import Log, check_name
    from penstock.log.sources.files import FORMATS
    from penstock.log.sources.pump import Delivery

    check_name(stream)
    if format_ is not None and format_ not in FORMATS:
        raise ConfigError(f"--format: got {format_!r}, allowed: {', '.join(FORMATS)}")
    new = _new_stream(time_, id_, types)
    how = Delivery(producer=producer or "", source=source or "", arrival=arrival, durable=durable)
    if "-" in files:
        if len(files) > 1 or format_ not in (None, "jsonl"):
            raise ConfigError("'-' stands alone, and brings JSON lines")
        _append_stdin(Log(log_), stream, how, new, quiet)
    else:
        _append_files(Log(log_), stream, files, format_, how, new, quiet)


def _append_stdin(log_: Any, stream: str, how: Any, new: Any, quiet: bool) -> None:
    import dataclasses

    from penstock.log.sources.stdin import append_stdin
    from penstock.train.signals import StopSignals

    how = dataclasses.replace(
        how, producer=f"stdin/{how.producer}" if how.producer else "", source=how.source or "stdin"
    )
    with StopSignals() as signals:
        taken = append_stdin(log_, stream, how, new, lambda done: None, lambda: signals.by is not None)
    _say(quiet, stream, taken)
    if signals.by is not None:
        raise Interrupted(f"stopped by {signals.by}; what was read is in the log")


def _append_files(
    log_: Any, stream: str, files: tuple[str, ...], format_: str | None, how: Any, new: Any, quiet: bool
) -> None:
    from penstock.log.sources.files import append_file, find
    from penstock.log.sources.pump import Taken

    found = find(files, format_)
    if how.producer and len(found) > 1:
        raise ConfigError(f"--producer names one source, got {len(found)} files")
    taken, unfinished = Taken(), []
    try:
        with _progress(quiet) as show:
            for number, (path, format_of_it) in enumerate(found):

                def on_commit(share: float, done: Any, number: int = number) -> None:
                    taken.add(done)
                    show((number + share) / len(found), taken)

                _, nbytes = append_file(log_, stream, path, format_of_it, how, new, on_commit)
                if nbytes:
                    unfinished.append((path, nbytes))
                show((number + 1) / len(found), taken)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped by Ctrl-C; {taken.rows:,} events are in the log, the same command goes on from there"
        ) from error
    _say(quiet, stream, taken)
    for path, nbytes in unfinished:
        click.echo(
            f"{path}: the last {nbytes:,} bytes are no whole line yet, and were left for another time", err=True
        )


@click.command()
@click.argument("log_", metavar="LOG")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8321, show_default=True, help="0 takes any.")
@click.option(
    "--token-file", help="Who sends must know the token in this file; for --host others. See: cluster new-token."
)
@click.option("--create", is_flag=True, help="Make streams that are not there, from their first events.")
@click.option(
    "--waiting-mb",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Of requests that wait for their answer; more are refused by 429.",
)
@_for_new_streams
def listen(
    log_: str,
    host: str,
    port: int,
    token_file: str | None,
    create: bool,
    waiting_mb: int,
    time_: str | None,
    id_: str | None,
    types: tuple[str, ...],
    durable: bool,
) -> None:
    """Take events for the streams of a LOG over HTTP, until Ctrl-C or SIGTERM.

    \b
    curl -H 'Content-Type: application/x-ndjson' --data-binary @clicks.jsonl \\
        http://127.0.0.1:8321/streams/clicks/events

    The answer comes when the events are in the log. With the headers Penstock-Producer (a name) and
    Penstock-Sequence (a number that grows) a request can be sent again, and is taken once.
    """
    from penstock.log.sources.http import App, Limits, serve
    from penstock.transport import read_token
    from penstock.transport.http import is_loopback

    if token_file is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached by others: it needs --token-file; penstock cluster new-token makes one"
        )
    token = read_token(token_file) if token_file is not None else None
    limits = Limits(waiting_nbytes=waiting_mb << 20)
    app = App(log_, create=create, new=_new_stream(time_, id_, types), token=token, durable=durable, limits=limits)
    serve(app, host, port, limits, on_listening=lambda url: click.echo(f"listening at {url}"))


_follow_options = [
    click.option("--once", is_flag=True, help="End when what is there by now is in the log."),
    click.option(
        "--patience", "patience_s", type=click.FloatRange(min=0), default=60.0, show_default=True,
        help="Seconds that nobody may answer.",
    ),
    click.option("--source", help="What the watermark watches.  [default: each partition, or the stream]"),
]  # fmt: skip


def _following(command: Any) -> Any:
    for option in reversed(_follow_options):
        command = option(command)
    return _for_new_streams(command)


def _follow(stream: str, follow: Callable[..., None]) -> None:
    """Follow a broker until Ctrl-C or SIGTERM, and say what came of it."""
    from penstock.log.sources.pump import Taken
    from penstock.train.signals import StopSignals

    taken = Taken()
    with StopSignals() as signals:
        follow(
            stopping=lambda: signals.by is not None,
            on_commit=taken.add,
            warn=lambda text: click.echo(f"penstock: {text}", err=True),
        )
    _say(False, stream, taken)


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("stream")
@click.option("--brokers", required=True, help="host:9092,host:9092")
@click.option("--topic", required=True, help="Whose values are JSON.")
@click.option("--group", help="Consumer group that offsets are committed to, for tools that show the lag.")
@click.option("--set", "settings", multiple=True, help="A setting of librdkafka: security.protocol=SASL_SSL.")
@_following
def kafka(
    log_: str,
    stream: str,
    brokers: str,
    topic: str,
    group: str | None,
    settings: tuple[str, ...],
    once: bool,
    patience_s: float,
    source: str | None,
    time_: str | None,
    id_: str | None,
    types: tuple[str, ...],
    durable: bool,
) -> None:
    """Append the messages of a Kafka topic to a STREAM of a LOG, until Ctrl-C.

    Offsets are kept in the log, with the events: each message is there once, whatever is killed when.
    """
    import functools

    from penstock.log import Log, check_name
    from penstock.log.sources.kafka import KafkaTopic, follow_kafka
    from penstock.log.sources.pump import Delivery

    check_name(stream)
    read = KafkaTopic(brokers=brokers, topic=topic, group=group, options=_pairs(settings), patience_s=patience_s)
    how = Delivery(source=source or "", durable=durable)
    new = _new_stream(time_, id_, types)
    _follow(stream, functools.partial(follow_kafka, Log(log_), stream, read, how, new, once=once))


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("stream")
@click.option("--servers", default="nats://127.0.0.1:4222", show_default=True, help="URLs, with commas between.")
@click.option("--nats-stream", required=True, help="Stream of JetStream, whose messages are JSON.")
@click.option("--subject", help="Only messages with this subject.")
@click.option("--consumer", help="Name of a durable consumer, for tools that show the lag.")
@click.option("--credentials", help="File with the user's credentials.")
@_following
def nats(
    log_: str,
    stream: str,
    servers: str,
    nats_stream: str,
    subject: str | None,
    consumer: str | None,
    credentials: str | None,
    once: bool,
    patience_s: float,
    source: str | None,
    time_: str | None,
    id_: str | None,
    types: tuple[str, ...],
    durable: bool,
) -> None:
    """Append the messages of a stream of NATS JetStream to a STREAM of a LOG, until Ctrl-C.

    Sequence numbers are kept in the log, with the events: each message is there once, whatever is killed when.
    """
    import functools

    from penstock.log import Log, check_name
    from penstock.log.sources.nats import NatsStream, follow_nats
    from penstock.log.sources.pump import Delivery

    check_name(stream)
    options = {"user_credentials": credentials} if credentials else {}
    read = NatsStream(
        servers=servers,
        stream=nats_stream,
        subject=subject,
        consumer=consumer,
        options=options,
        patience_s=patience_s,
    )
    how = Delivery(source=source or "", durable=durable)
    new = _new_stream(time_, id_, types)
    _follow(stream, functools.partial(follow_nats, Log(log_), stream, read, how, new, once=once))


def _pairs(settings: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set: got {text!r}, allowed: a name, '=' and a value")
        pairs[name] = value
    return pairs


def _say(quiet: bool, stream: str, taken: Any) -> None:
    if not quiet:
        rejected = f"; {taken.rejected:,} rejected, see: penstock log quarantine" if taken.rejected else ""
        click.echo(f"{taken.rows:,} events appended to {stream}{rejected}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[float, Any], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda share, taken: None
        return
    import time

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    began_s = time.perf_counter()
    columns = (
        TextColumn("[bold]append"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("append", total=1.0, text="")

        def show(share: float, taken: Any) -> None:
            rate = taken.rows / max(time.perf_counter() - began_s, 1e-9)
            progress.update(task, completed=share, text=f"{count(taken.rows)} events  {count(rate)}/s")

        yield show
