"""What ``penstock cluster status`` shows: who takes part in a run, as tables that fit a terminal of 80 columns."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["print_status"]

_EVENTS = 10
_WIDE = 110
"""Columns of a terminal that has room for everything."""
_NAME_WIDTH = 18


def print_status(console: Console, found: dict[str, Any], address: str) -> None:
    """Print ``Coordinator.status`` of the coordinator at an address."""
    _print_run(console, found, address)
    wide = console.width >= _WIDE
    console.print(_servers(found["servers"], wide=wide))
    console.print(_workers(found["workers"], wide=wide))
    if found["hot"]:
        console.print(_hot_keys(found["hot"]))
    if found["skew"]:
        rows, load = found["skew"].get("rows", 1.0), found["skew"].get("load", 1.0)
        skew = f"skew: {rows:.2f} x the mean of rows at the fullest server, {load:.2f} of pulls"
        console.print(skew, highlight=False, soft_wrap=True)
    for at, text in found["events"][-_EVENTS:]:
        console.print(f"{at:8.1f} s  {text}", highlight=False, soft_wrap=True)


def _print_run(console: Console, found: dict[str, Any], address: str) -> None:
    from penstock.metrics import BinaryMetrics

    scores = BinaryMetrics.from_state(found["metrics"]).scores()
    checkpoint = f"checkpoint {found['checkpoint']}" if found["checkpoint"] else "no checkpoint yet"
    for line in (
        f"{found['phase']}, {found['done']:.0%} done: {found['rows']:,} rows in {found['seconds']:.1f} s",
        f"logloss {scores.logloss:.5f}, AUC {scores.auc:.4f}, {checkpoint}",
        f"{found['consistency']}, coordinator at {address}, routing version {found['routing']}",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _servers(servers: list[dict[str, Any]], *, wide: bool) -> Table:
    more = ("address", "segments") if wide else ()
    table = _table("server", *more, "rows", "memory", "in", "out", "stale", "most", "heard")
    for one in servers:
        table.add_row(
            _short(one["name"]),
            *((one["address"], f"{one['segments']:,}") if wide else ()),
            _count(sum(one.get("rows", {}).values())),
            *_resources(one),
            *_staleness(one.get("staleness", {})),
            _ago(one["heartbeat_s"]),
        )
    return table


def _workers(workers: list[dict[str, Any]], *, wide: bool) -> Table:
    more = ("stolen", "busy") if wide else ()
    table = _table("worker", "batches", *more, "memory", "in", "out", "waits for", "heard")
    for one in workers:
        cause, seconds = max(one.get("waits", {}).items(), key=lambda wait: wait[1], default=("", 0.0))
        table.add_row(
            _short(one["name"]),
            _count(one.get("done", 0)),
            *((_count(one.get("stolen", 0)), f"{one.get('busy_s', 0.0):.1f} s") if wide else ()),
            *_resources(one),
            f"{cause} {seconds:.1f} s" if seconds >= 0.05 else "-",
            _ago(one["heartbeat_s"]),
        )
    return table


def _hot_keys(hot: list[Any]) -> Table:
    table = _table("hot keys", "table", "share of pulls")
    for key, of_table, share in hot:
        table.add_row(f"{key:#018x}", of_table, f"{share:.1%}")
    return table


def _count(number: float) -> str:
    from penstock.train.progress import human

    return human(number)


def _resources(one: dict[str, Any]) -> tuple[str, ...]:
    """Memory, bytes received and bytes sent."""
    from penstock.train.progress import human

    return tuple(human(one.get(name, 0), "B") for name in ("memory_nbytes", "bytes_in", "bytes_out"))


def _staleness(counts: dict[str, int]) -> tuple[str, str]:
    """Median and largest."""
    pairs = sorted((int(at), n) for at, n in counts.items())
    total, seen = sum(n for _, n in pairs), 0
    for at, n in pairs:
        seen += n
        if 2 * seen >= total:
            return f"{at}", f"{pairs[-1][0]}"
    return "-", "-"


def _ago(seconds: float) -> str:
    return f"{seconds:.1f} s ago"


def _short(name: str) -> str:
    """A name that fits; hosts begin alike, and differ at the end."""
    return name if len(name) <= _NAME_WIDTH else f"{name[:7]}…{name[8 - _NAME_WIDTH :]}"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for number, name in enumerate(columns):
        left = number == 0 or name in ("address", "waits for", "table")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table
