"""Logs that the benchmarks of the data layer read, made once in ``bench-data`` (``make clean`` removes it)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.events import BEGIN_US, DAY_US, clicks, impressions, parts
from benchmarks.harness import ROOT, note
from penstock.log import Log
from penstock.stream.spec import Pipeline

__all__ = ["QUERY", "event_files", "event_log", "pipeline"]

QUERY = (
    "select i.*, c.click_id is not null as clicked from impressions i left join clicks c "
    "on c.request_id = i.request_id and c.ts between i.ts and i.ts + interval 1 day"
)


def pipeline(place: str) -> Pipeline:
    """Impressions, and whether a click came within a day; windows of five minutes."""
    return Pipeline.from_dict(
        {
            "streams": {
                "impressions": {"time": "ts", "id": "request_id", "lateness": "2m", "idle": "30s"},
                "clicks": {"time": "ts", "id": "click_id", "lateness": "30m", "idle": "30s", "within": "1d"},
            },
            "pipeline": {"log": place, "window": "5m", "label_wait": "10m", "query": QUERY},
        },
        "benchmark",
    )


def _by_quarters(total: int) -> Iterator[tuple[int, pa.Table, pa.Table]]:
    """For each quarter of an hour: where it ends, its impressions, its clicks (of these and earlier ones)."""
    quarters = 96
    waiting = clicks(0, 0, total)
    for number, (begin, end) in enumerate(parts(total, -(-total // quarters))):
        shown = impressions(begin, end, total)
        waiting = pa.concat_tables([waiting, clicks(begin, end, total)]).sort_by("ts")
        until = BEGIN_US + (number + 1) * DAY_US // quarters
        came = pc.less(waiting["ts"].cast(pa.int64()), until)
        yield until, shown, waiting.filter(came)
        waiting = waiting.filter(pc.invert(came))


def event_log(events: int, *, steps: bool) -> str:
    """A log of so many events over a day; what arrived when is what happened when.

    With ``steps`` it has a step for each quarter of an hour, as if it had been followed live; without, one at
    its end.
    """
    place = ROOT / "bench-data" / f"log-{events}{'-steps' if steps else ''}"
    if (place / "_made").exists():
        return str(place)
    note(f"making {place} ...")
    shutil.rmtree(place, ignore_errors=True)
    log = Log(str(place))
    total = events * 4 // 5
    streams = {
        "impressions": log.create("impressions", list(impressions(0, 1, total).schema), id="request_id"),
        "clicks": log.create("clicks", list(clicks(0, 1, total).schema), id="click_id"),
    }
    for until, shown, clicked in _by_quarters(total):
        for name, table in (("impressions", shown), ("clicks", clicked)):
            streams[name].append(table, source="files", arrival=table["ts"].combine_chunks())
        if steps:
            log.step(tick_us=until)
    for days in (2, 3):
        log.step(tick_us=BEGIN_US + days * DAY_US)
    (place / "_made").touch()
    return str(place)


def event_files(events: int) -> Path:
    """The same events as Parquet files, one for each stream and quarter of an hour, for other programs."""
    place = ROOT / "bench-data" / f"events-{events}"
    if (place / "_made").exists():
        return place
    note(f"making {place} ...")
    shutil.rmtree(place, ignore_errors=True)
    for name in ("impressions", "clicks"):
        (place / name).mkdir(parents=True)
    total = events * 4 // 5
    for number, (_, shown, clicked) in enumerate(_by_quarters(total)):
        pq.write_table(shown, place / "impressions" / f"{number:05d}.parquet", compression="zstd")
        pq.write_table(clicked, place / "clicks" / f"{number:05d}.parquet", compression="zstd")
    (place / "_made").touch()
    return place
