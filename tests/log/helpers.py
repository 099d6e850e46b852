"""What tests of the log share: reading a stream back, processes of the command line, waiting for a condition."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.log import EventStream, Log

T = TypeVar("T")
DEADLINE_S = 60.0


def read(stream: EventStream) -> pa.Table:
    """All events of a stream with their hidden columns, by place; read as anybody would, without our code."""
    stream.refresh()
    tables = [pq.ParquetFile(stream.folder.place(file)).read() for file in stream.files()]
    if not tables:
        return pa.table({"_seq": pa.array([], pa.int64())})
    return pa.concat_tables(tables, promote_options="default").sort_by("_seq")


def column(place: Path | str, name: str, column: str) -> list[Any]:
    """A column of a stream, by place; places have no gap."""
    stream = Log(str(place)).stream(name)
    table = read(stream)
    assert table["_seq"].to_pylist() == list(range(stream.end))
    return table[column].to_pylist() if column in table.column_names else [None] * len(table)


def until(what: Callable[[], T], alive: subprocess.Popen[str] | None = None) -> T:
    """Wait until it is true, and return it."""
    give_up_s = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < give_up_s, "it did not become true in time"
        assert alive is None or alive.poll() is None, f"the process ended: {alive.communicate() if alive else ''}"
        time.sleep(0.01)
    return found


def command(*arguments: object) -> list[str]:
    """A command line of penstock."""
    return [sys.executable, "-m", "penstock.cli.main", *map(str, arguments)]


@contextlib.contextmanager
def process(
    *arguments: object, environment: Mapping[str, str] | None = None, argv: list[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process of penstock, which does not outlive the test."""
    running = subprocess.Popen(
        argv or command(*arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


_PORTS = range(12_000, 32_000)
"""Below those that systems hand out for port 0 and for connections, so no other test is given one by chance."""
_tried = itertools.count(os.getpid() * 61)


def free_port() -> int:
    """A port of this machine that nobody listens at, another one each time."""
    for number in itertools.islice(_tried, len(_PORTS)):
        port = _PORTS[number % len(_PORTS)]
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")
