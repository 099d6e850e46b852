"""``penstock log``: fill a log from files, standard input, HTTP and brokers, look at it, and look after it."""

from __future__ import annotations

import click

from penstock.cli.log_fill import append, kafka, listen, nats
from penstock.cli.log_look import compact, files, history, quarantine, retain, streams, tail

__all__ = ["log"]


@click.group()
def log() -> None:
    """Keep events in a durable log, one Delta table a stream, and look at them.

    \b
    penstock log append events/ clicks clicks/*.jsonl
    penstock log listen events/
    penstock log tail events/ clicks -n 3
    """


for _command in (append, compact, files, history, kafka, listen, nats, quarantine, retain, streams, tail):
    log.add_command(_command)
