"""``penstock log tail``, ``streams``, ``quarantine``, ``history``; ``compact`` and ``retain``: a log looked at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from penstock.cli.show import count
from penstock.errors import ConfigError, DataError

__all__ = ["compact", "files", "history", "quarantine", "retain", "streams", "tail"]

_FOLLOW_S = 0.5
_REASONS = ("malformed", "type", "time", "column", "too long", "late", "duplicate", "skewed")
_WIDE = 110
"""Columns of a terminal that has room for everything."""


def _stream(log_: str, name: str, version: int | None = None) -> Any:
    from penstock.log import EventStream, Log, check_name

    found = Log(log_)
    stream = found.stream(check_name(name))
    return stream if version is None else EventStream(name, stream.folder.at(version), stream.quarantine)


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("stream")
@click.option(
    "-n", "--events", "number", type=click.IntRange(min=0), help="How many, the last ones.  [default: 10]"
)
@click.option("--since", help="Events of so long ago or later: 2h, 30m, 1d.")
@click.option("--from", "from_", help="Events of this time or later: 2026-11-01T12:00:00Z.")
@click.option("--version", type=click.IntRange(min=0), help="As the stream was at this version; see history.")
@click.option("--follow", "-f", is_flag=True, help="Wait for more, until Ctrl-C.")
def tail(
    log_: str,
    stream: str,
    number: int | None,
    since: str | None,
    from_: str | None,
    version: int | None,
    follow: bool,
) -> None:
    """Print the last events of a STREAM as JSON lines, in the order in which they came."""
    import time

    from penstock.log.times import now_us, parse_duration, parse_time

    if since is not None and from_ is not None:
        raise ConfigError("--since and --from say the same; give one")
    if follow and version is not None:
        raise ConfigError("--follow waits for what comes, --version is what was; give one")
    from_us = None
    if since is not None:
        from_us = now_us() - parse_duration(since, "--since")
    elif from_ is not None:
        from_us = parse_time(from_, "--from")
    found = _stream(log_, stream, version)
    last = 10 if number is None and from_us is None else number
    end = found.end
    first = max(0, end - last) if last is not None and from_us is None else 0
    _print_events(found, from_seq=first, last=last, from_us=from_us)
    while follow:
        time.sleep(_FOLLOW_S)
        found.refresh()
        if found.end > end:
            begin, end = end, found.end
            _print_events(found, from_seq=begin, last=None, from_us=from_us)


def _print_events(stream: Any, *, from_seq: int, last: int | None, from_us: int | None) -> None:
    import msgspec
    import pyarrow as pa
    import pyarrow.dataset as ds

    from penstock.log.times import TIMESTAMP

    files = stream.files(from_us=from_us, from_seq=from_seq)
    if not files:
        return
    schema = pa.schema([*stream.schema, ("_seq", pa.int64())])
    chosen = ds.field("_seq") >= from_seq
    if from_us is not None:
        chosen &= ds.field(stream.settings.time) >= pa.scalar(from_us).cast(TIMESTAMP)
    try:
        table = ds.dataset(
            [file.path for file in files], schema=schema, format="parquet", filesystem=stream.folder.file_system
        ).to_table(filter=chosen)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{stream.uri}: cannot be read: {' '.join(str(error).split())[:300]}") from error
    table = table.sort_by("_seq").drop_columns(["_seq"])
    if last is not None:
        table = table.slice(max(0, table.num_rows - last))
    out = sys.stdout.buffer
    for batch in table.to_batches(max_chunksize=10_000):
        for event in batch.to_pylist():
            shown = {name: value for name, value in event.items() if value is not None}
            out.write(msgspec.json.encode(shown, enc_hook=str) + b"\n")
    out.flush()


@click.command()
@click.argument("log_", metavar="LOG")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a stream.")
def streams(log_: str, as_json: bool) -> None:
    """Show the streams of a LOG."""
    from penstock.log import Log

    all_ = Log(log_)
    found = [_describe(all_.stream(name)) for name in all_.streams()]
    if as_json:
        _print_json(found)
        return
    if not found:
        raise DataError(f"{log_}: has no streams; penstock log append makes one")
    console = Console(markup=False)
    wide = console.width >= _WIDE
    more = ("columns", "files") if wide else ()
    table = _table("stream", "events", "first", "last", *more, "size", "version")
    for one in found:
        table.add_row(
            one["stream"],
            f"{one['events']:,}",
            _minute(one["first"]),
            _minute(one["last"]),
            *((str(len(one["columns"])), str(one["files"])) if wide else ()),
            count(one["nbytes"], "B"),
            str(one["version"]),
        )
    console.print(table)


def _describe(stream: Any) -> dict[str, Any]:
    time, files = stream.settings.time, stream.files()
    return {
        "stream": stream.name,
        "events": sum(file.rows for file in files),
        "first": min((file.lows[time] for file in files if time in file.lows), default=None),
        "last": max((file.highs[time] for file in files if time in file.highs), default=None),
        "time": time,
        "id": stream.settings.id,
        "columns": {field.name: str(field.type) for field in stream.schema},
        "nbytes": sum(file.nbytes for file in files),
        "files": len(files),
        "version": stream.version,
    }


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("stream")
@click.option("--reason", type=click.Choice(_REASONS), help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a row, with all of the event.")
def quarantine(log_: str, stream: str, reason: str | None, as_json: bool) -> None:
    """Show what came to a STREAM and could not be taken, or is not counted, and why."""
    from penstock.log import Log, check_name

    found = Log(log_)
    rows = found.quarantine(check_name(stream)).read(reason).to_pylist()
    if not rows and not found.has(stream) and not found.quarantine(stream).read().num_rows:
        found.stream(stream)
    if as_json:
        _print_json(rows)
        return
    table = _table("at", "reason", "position", "detail", "event")
    for row in rows:
        place = row["position"] if row["position"] is not None else row["seq"]
        event = row["event"] or ""
        table.add_row(
            _minute(row["at"]),
            row["reason"],
            "" if place is None else f"{place:,}",
            row["detail"],
            event if len(event) <= 60 else event[:59] + "…",
        )
    if rows:
        Console(markup=False).print(table)
    click.echo(f"{len(rows):,} in the quarantine of {stream}", err=True)


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("stream")
@click.option("-n", "--commits", "number", type=click.IntRange(min=1), default=20, show_default=True)
def history(log_: str, stream: str, number: int) -> None:
    """Show the last commits of a STREAM, each a version that tail --version can show."""
    import datetime

    table = _table("version", "at", "operation", "files")
    for commit in _stream(log_, stream).folder.history(number):
        at = datetime.datetime.fromtimestamp(commit["timestamp"] / 1000, datetime.UTC)
        metrics = commit.get("operationMetrics") or {}
        files = [f"{sign}{metrics[key]}" for sign, key in _FILES_OF if metrics.get(key)]
        table.add_row(
            str(commit["version"]), f"{at:%Y-%m-%d %H:%M:%S}", commit["operation"].lower(), " ".join(files)
        )
    Console(markup=False).print(table)


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("stream")
@click.option("--version", type=click.IntRange(min=0), help="As the stream was at this version; see history.")
def files(log_: str, stream: str, version: int | None) -> None:
    """List the Parquet files that a STREAM consists of, a line each, for readers that do not know Delta tables.

    A folder may have others besides, which were merged or deleted and are kept for readers of earlier versions.
    """
    found = _stream(log_, stream, version)
    for file in found.files():
        click.echo(found.folder.place(file))


_FILES_OF = (
    ("+", "num_added_files"),
    ("-", "num_removed_files"),
    ("+", "numFilesAdded"),
    ("-", "numFilesRemoved"),
    ("-", "num_deleted_files"),
)


# ---- looking after it


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("streams", nargs=-1, metavar="[STREAM]...")
def compact(log_: str, streams: tuple[str, ...]) -> None:
    """Merge the small files of STREAMs (all, if none is named) into large ones. Events do not change.

    May run while others append and read.
    """
    from penstock.log import Log

    found = Log(log_)
    for name in streams or found.streams():
        gone, came = _unhindered(found.stream(name).folder.compact)
        click.echo(f"{name}: {gone:,} files became {came:,}" if gone else f"{name}: nothing to merge")


def _unhindered(action: Callable[[], Any]) -> Any:
    """Try again where somebody committed in between."""
    from penstock.errors import StorageError
    from penstock.log.delta import Conflict

    for _ in range(5):
        try:
            return action()
        except Conflict:
            continue
    raise StorageError("others committed 5 times in between; try again")


@click.command()
@click.argument("log_", metavar="LOG")
@click.argument("stream")
@click.option("--days", type=click.IntRange(min=1), required=True, help="Keep the events of so many days.")
@click.option(
    "--keep-hours",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Keep files on the disk that versions of the last hours need: somebody may be reading them.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Even where no event is left.")
def retain(log_: str, stream: str, days: int, keep_hours: int, dry_run: bool, yes: bool) -> None:
    """Delete the events of a STREAM that are older than so many days, by their event time, day by day (UTC)."""
    import datetime

    found = _stream(log_, stream)
    first = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=days)
    files = found.files()
    old = [file for file in files if file.partition["event_date"] < first]
    rows = sum(file.rows for file in old)
    if len(old) == len(files) and old and not (yes or dry_run):
        raise ConfigError(
            f"stream {stream}: all of its {rows:,} events are before {first}, and would go; if so, say --yes"
        )
    if dry_run:
        click.echo(f"{stream}: {rows:,} events before {first} in {len(old):,} files would go")
        return
    if old:
        found.folder.delete_partitions(f"event_date < '{first}'")
    gone = found.folder.vacuum(keep_hours)
    click.echo(f"{stream}: {rows:,} events before {first} deleted; {gone:,} files removed from the disk")


# ---- writing


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for column in columns:
        text = column in _TEXTS
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


_TEXTS = ("stream", "first", "last", "at", "reason", "detail", "event", "operation", "files")


def _minute(time: Any) -> str:
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M}"


def _print_json(rows: list[dict[str, Any]]) -> None:
    import msgspec

    for row in rows:
        shown = {name: value for name, value in row.items() if value is not None}
        click.echo(msgspec.json.encode(shown, enc_hook=str).decode())
