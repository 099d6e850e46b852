"""MovieLens 100k as a stream: its ratings with their times, and clicks on what was liked, some time after.

Skipped where ``PENSTOCK_DATA`` (or shared/data) has it not.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pytest

from penstock.log import Log
from penstock.log.times import DAY_US, HOUR_US, SECOND_US
from penstock.stream.replay import Replay
from penstock.stream.spec import Pipeline, StreamSpec

FOLDER = Path(os.environ.get("PENSTOCK_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
TIMESTAMP = pa.timestamp("us", tz="UTC")
REACH_US = 12 * HOUR_US
QUERY = """
    select i.request_id, i.user, i.item, count(c.click_id) as clicks, min(c.ts) as first_click
    from impressions i left join clicks c on c.request_id = i.request_id
    group by i.request_id, i.user, i.item
"""


@dataclass(frozen=True)
class Rating:
    request_id: str
    user: int
    item: int
    time: int
    click: int | None
    """When it was clicked."""


def ratings(days: int | None = None) -> list[Rating]:
    """In the order of the file, which is that of nothing."""
    path = FOLDER / "ml-100k.inter"
    if not path.is_file():
        pytest.skip(f"{path} is not there; name its folder with PENSTOCK_DATA")
    table = pc.read_csv(path, parse_options=pc.ParseOptions(delimiter="\t"))
    rows = list(zip(*(table[n].to_pylist() for n in range(4)), strict=True))
    first = min(int(row[3]) for row in rows)
    found = []
    for user, item, rating, seconds in rows:
        if days is not None and seconds >= first + days * 86_400:
            continue
        request_id = f"{user}-{item}"
        time = int(seconds) * SECOND_US
        # Most within a minute, few after hours.
        draw = zlib.crc32(request_id.encode()) / 2**32
        delay = int(SECOND_US * min(60 / (1 - draw), 11 * 3_600))
        found.append(Rating(request_id, user, item, time, time + delay if rating >= 4 else None))
    assert len({each.request_id for each in found}) == len(found)
    return found


def patience_us(events: Sequence[Rating]) -> int:
    """By how much an event, or a click on it, may be behind another at most."""
    times = [each.time for each in events]
    return max(times) - min(times) + REACH_US


def build(place: Path, batches: Sequence[Sequence[Rating]], *, clicks_after: int = 0) -> Log:
    """A log to which these come, a step after each, and one in the end that seals them all.

    Clicks come so many batches after their impressions.
    """
    log = Log(str(place))
    log.create(
        "impressions",
        [
            *[pa.field("ts", TIMESTAMP), pa.field("request_id", pa.string())],
            *[pa.field("user", pa.int64()), pa.field("item", pa.int64())],
        ],
        id="request_id",
    )
    log.create(
        "clicks",
        [pa.field("ts", TIMESTAMP), pa.field("click_id", pa.string()), pa.field("request_id", pa.string())],
        id="click_id",
    )
    everyone = [each for batch in batches for each in batch]
    end = max(each.time for each in everyone) + patience_us(everyone) + 2 * DAY_US
    last = [Rating("end", 0, 0, end, None)]
    everything = [*batches, *([[]] * clicks_after), last]
    for number, batch in enumerate(everything):
        if batch:
            times = _times([each.time for each in batch])
            log.stream("impressions").append(
                pa.table(
                    {
                        "ts": times,
                        "request_id": [each.request_id for each in batch],
                        "user": [each.user for each in batch],
                        "item": [each.item for each in batch],
                    }
                ),
                source="a",
                arrival=times,
            )
        clicked = everything[number - clicks_after] if number >= clicks_after else []
        clicks = [(each.click, each.request_id) for each in clicked if each.click is not None]
        if clicks:
            times = _times([time for time, _ in clicks])
            ids = [request_id for _, request_id in clicks]
            table = pa.table({"ts": times, "click_id": [f"c{each}" for each in ids], "request_id": ids})
            log.stream("clicks").append(table, source="a", arrival=times)
        log.step(tick_us=number)
    return log


def _times(values: Sequence[int]) -> pa.Array:
    return pa.array(values, pa.int64()).cast(TIMESTAMP)


def pipeline(impressions_us: int, clicks_us: int) -> Pipeline:
    """With the lateness of each."""
    return Pipeline(
        name="main",
        log="",
        streams={
            "impressions": StreamSpec(lateness_us=impressions_us),
            "clicks": StreamSpec(lateness_us=clicks_us, within_us=REACH_US),
        },
        query=QUERY,
    )


def rows_of(log: Log, task: Pipeline) -> list[dict[str, object]]:
    made = Replay(log, task, threads=2)
    try:
        return [row for examples in made.run() for row in examples.rows.to_pylist()]
    finally:
        made.close()


def final(rows: Sequence[dict[str, object]]) -> dict[object, tuple[object, ...] | None]:
    found: dict[object, tuple[object, ...] | None] = {}
    for row in rows:
        key = row["request_id"]
        if row["_kind"] == "retraction":
            assert found[key] == (row["user"], row["item"], row["clicks"], row["first_click"])
            found[key] = None
        else:
            assert found.get(key) is None
            found[key] = (row["user"], row["item"], row["clicks"], row["first_click"])
    return found


def truth(events: Sequence[Rating]) -> dict[object, tuple[object, ...]]:
    times = _times([each.click or 0 for each in events]).to_pylist()
    return {
        each.request_id: (each.user, each.item, int(each.click is not None), time if each.click else None)
        for each, time in zip(events, times, strict=True)
    }


def cut(events: Sequence[Rating], parts: int) -> list[list[Rating]]:
    return [list(part) for part in np.array_split(np.array(events, object), parts)]


def check_orders(tmp_path: Path, events: list[Rating], parts: int) -> None:
    """Whatever the order, labels come out as they are in truth."""
    by_time = sorted(events, key=lambda each: (each.time, each.request_id))
    shuffled = [events[n] for n in np.random.default_rng(7).permutation(len(events))]
    patient = patience_us(events)
    # With the lateness of impressions, and that of clicks.
    orders = {
        "as in the file": (build(tmp_path / "file", [events]), HOUR_US, HOUR_US),
        "by time": (build(tmp_path / "time", cut(by_time, parts)), 0, 0),
        "clicks later": (build(tmp_path / "later", cut(by_time, parts), clicks_after=1), 0, patient),
        "shuffled": (build(tmp_path / "shuffled", cut(shuffled, parts)), patient, patient),
    }
    for name, (log, *lateness_us) in orders.items():
        if name == "shuffled":
            log.stream("impressions").folder.compact()
        task = pipeline(*lateness_us)
        rows = rows_of(log, task)
        assert final(rows) == truth(events), name
        kinds = Counter(str(row["_kind"]) for row in rows)
        assert kinds["first"] == len(events)
        assert kinds["retraction"] == kinds["correction"]
        assert kinds["late"] == 0
        clicked = sum(each.click is not None for each in events)
        known = sum(bool(row["clicks"]) for row in rows if row["_kind"] == "first")
        assert known + kinds["correction"] == clicked, name
        if name == "clicks later":
            assert kinds["correction"] > clicked / 2
        if name in ("as in the file", "shuffled"):
            assert kinds["correction"] == 0
        longer = final(rows_of(log, replace(task, window_us=DAY_US)))
        assert longer == truth(events), name


def check_late(tmp_path: Path, events: list[Rating], parts: int) -> None:
    """Without patience, whatever came too late is in the quarantine, and the rest comes out, each once."""
    shuffled = [events[n] for n in np.random.default_rng(8).permutation(len(events))]
    log = build(tmp_path / "late", cut(shuffled, parts))
    made = Replay(log, pipeline(DAY_US, DAY_US), threads=2)
    out = [key for each in made.run() for key, kind in _keys(each.rows) if kind == "first"]
    last = len(made.timeline.points) - 1
    made.records.uncounted(last)
    made.close()
    left = log.quarantine("impressions").read()
    assert set(left["reason"].to_pylist()) == {"late"}
    ids = [shuffled[seq].request_id for seq in left["seq"].to_pylist()]
    assert len(ids) > len(events) / 3
    assert sorted([*out, *ids]) == sorted(each.request_id for each in events)


def _keys(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows["request_id"].to_pylist(), rows["_kind"].to_pylist(), strict=True))


def test_some_days_of_ratings_in_several_orders(tmp_path: Path) -> None:
    check_orders(tmp_path, ratings(days=5), 4)


def test_some_days_of_ratings_that_comes_too_late(tmp_path: Path) -> None:
    check_late(tmp_path, ratings(days=5), 3)


@pytest.mark.slow
def test_all_ratings_in_several_orders(tmp_path: Path) -> None:
    check_orders(tmp_path, ratings(), 4)


@pytest.mark.slow
def test_all_ratings_that_come_too_late(tmp_path: Path) -> None:
    check_late(tmp_path, ratings(), 3)
