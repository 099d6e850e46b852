"""Aggregates in memory, one thread: events taken in, look-ups, and what an event costs, by how many share a key.

The peer is the same in SQL: the look-up that DuckDB makes for one row over the same events, a table of them held
in memory by key.
"""

from __future__ import annotations

import time

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks.harness import Goal, Options, Result, in_turn, machine, table
from penstock.kernels.windows import BITS
from penstock.stream.spec import Aggregate
from penstock.stream.windows import Windows

__all__ = ["run"]

_MINUTE_US = 60_000_000
_EVENTS = 500_000
_LOOKED_UP = 20_000
_LOOKED_UP_SQL = 50
_SPECS = {
    "a count": (("count", None, 10),),
    "2 counts, a sum": (("count", None, 10), ("count", None, 60), ("sum", "cost", 60)),
}
_KEYS = {"a key each": 1_000_000_000, "10 a key": _EVENTS // 10, "100 keys": 100}


def run(options: Options) -> Result:
    """Events of 100,000 a second, which come up to two seconds late; taken in as from a log, 8,192 at once."""
    events = _EVENTS // 10 if options.quick else _EVENTS
    contenders = {
        f"{aggregates}, {spread}": lambda specs=specs, keys=keys: _sample(_windows(specs), keys, events)
        for aggregates, specs in _SPECS.items()
        for spread, keys in _KEYS.items()
    }
    contenders["DuckDB, a count, 10 a key"] = lambda: _sql(events)
    found = in_turn(contenders, options.repetitions)
    result = Result(
        name="windows",
        options=options,
        conditions={"events": events, "repetitions": options.repetitions, **machine("duckdb")},
        goals=(Goal(what="least_events_per_s", least=100_000), Goal(what="most_us_per_look_up", most=20)),
    )
    ours = {name: figures for name, figures in found.items() if "events_per_s" in figures}
    result.figures["least_events_per_s"] = min(f["events_per_s"].median for f in ours.values())
    result.figures["most_us_per_look_up"] = max(f["us_per_look_up"].median for f in ours.values())
    of_sql, of_ours = found["DuckDB, a count, 10 a key"], found["a count, 10 a key"]
    result.ratios["duckdb_look_up"] = of_sql["us_per_look_up"].median / of_ours["us_per_look_up"].median
    rows = [
        (
            name,
            f"{f['events_per_s'].median:,.0f}" if name in ours else "",
            f"{f['us_per_look_up'].median:,.1f}",
            f"{f['nbytes_per_event'].median:,.0f}" if name in ours else "",
        )
        for name, f in found.items()
    ]
    result.text.append(table(("", "events/s", "us a look-up", "bytes an event, keys apart"), rows))
    return result


def _windows(specs: tuple[tuple[str, str | None, int], ...]) -> Windows:
    return Windows(
        [
            Aggregate(name=f"a{n}", stream="s", by=("user",), over_us=minutes * _MINUTE_US, what=what, of=of)
            for n, (what, of, minutes) in enumerate(specs)
        ]
    )


def _drawn(keys: int, events: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    known = np.arange(events, dtype=np.int64) * 10
    times = known - draw.integers(0, 2_000_000, events)
    return [f"user-{n}" for n in draw.integers(0, keys, events).tolist()], times, known


def _sample(windows: Windows, keys: int, events: int) -> dict[str, float]:
    names, times, known = _drawn(keys, events)
    values = np.zeros((len(windows.summed), 4, events), np.int64)
    values[:, 0], values[:, 1] = 1, np.random.default_rng(1).integers(0, 1 << BITS, events)
    began = time.perf_counter()
    for begin in range(0, events, 8192):
        part = slice(begin, begin + 8192)
        windows.add(names[part], times[part], known[part], values[:, :, part])
    added = time.perf_counter()
    for key in names[:_LOOKED_UP]:
        windows.look_up(key, 10 * events)
    looked_up = time.perf_counter()
    return {
        "events_per_s": events / (added - began),
        "us_per_look_up": (looked_up - added) / min(_LOOKED_UP, events) * 1e6,
        "nbytes_per_event": windows.nbytes / events,
    }


def _sql(events: int) -> dict[str, float]:
    names, times, known = _drawn(_KEYS["10 a key"], events)
    rows = pa.table({"user": names, "t": times, "v": known})
    with duckdb.connect() as database:
        database.execute("set threads = 1")
        database.execute("create table events as select * from rows order by user")
        sql = "select count(*) from events where user = ? and v <= ? and t > ?"
        at, begin = 10 * events, 10 * events - 10 * _MINUTE_US
        began = time.perf_counter()
        for key in names[:_LOOKED_UP_SQL]:
            database.execute(sql, [key, at, begin]).fetchall()
        return {"us_per_look_up": (time.perf_counter() - began) / _LOOKED_UP_SQL * 1e6, "rows": float(len(rows))}
