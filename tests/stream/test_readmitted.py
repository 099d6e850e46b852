"""Readmission, by hand: how often, of what, and what it is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from penstock.log import Log
from tests.stream.oracle import Example
from tests.stream.test_replay import SECOND, simple
from tests.stream.worlds import (
    CLICKS,
    IMPRESSIONS,
    QUESTIONS,
    TIMESTAMP,
    Fact,
    Turn,
    World,
    examples_of,
    log_of,
    replay,
    run,
)

COUNTS = QUESTIONS[3]
us = World(()).us


def brief(found: Sequence[Example]) -> list[tuple[int, str, int, int]]:
    """Step, kind, place, clicks."""
    return [(each.step, each.kind, each.seq, each.values[1]) for each in found]


@contextmanager
def late_and_skewed() -> Iterator[Log]:
    """Window [0, 4) is sealed at step 0; impression 2 is late for it, click 0 has a wrong clock."""
    turns = (
        Turn((Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 20, id="b")), 20),
        Turn((Fact(IMPRESSIONS, 2, id="c"), Fact(CLICKS, 3, delay=-400, id="k", of="a")), 20),
    )
    with log_of(World(turns)) as built:
        yield built.log


def test_nothing_counts_before_it_is_readmitted() -> None:
    with late_and_skewed() as log:
        assert brief(run(log, simple(COUNTS))) == [(0, "first", 0, 0)]


def test_both_are_readmitted_at_once() -> None:
    with late_and_skewed() as log:
        log.step(tick_us=us(21), readmit={IMPRESSIONS: [2], CLICKS: [0]})
        log.step(tick_us=us(22))
        assert brief(run(log, simple(COUNTS))) == [
            (0, "first", 0, 0),
            (2, "retraction", 0, 0),
            (2, "correction", 0, 1),
            (2, "late", 2, 0),
        ]


def test_an_event_of_a_window_that_is_not_sealed_yet_is_no_late_one() -> None:
    with late_and_skewed() as log:
        times = pa.array([us(1000), us(2000)], pa.int64()).cast(TIMESTAMP)
        table = pa.table({"ts": times, "request_id": ["x", "y"], "u": [0, 0]})
        arrival = pa.array([us(20), us(2000)], pa.int64()).cast(TIMESTAMP)
        log.stream(IMPRESSIONS).append(table.slice(0, 1), source="a", arrival=arrival[:1])
        log.step(tick_us=us(21))
        log.step(tick_us=us(22), readmit={IMPRESSIONS: [3]})
        log.stream(IMPRESSIONS).append(table.slice(1, 1), source="a", arrival=arrival[1:])
        log.step(tick_us=us(23))
        assert brief(run(log, simple(COUNTS))) == [(0, "first", 0, 0), (4, "first", 1, 0), (4, "first", 3, 0)]


def test_once_more_changes_nothing() -> None:
    with late_and_skewed() as log:
        for tick in (21, 22):
            log.step(tick_us=us(tick), readmit={IMPRESSIONS: [2], CLICKS: [0]})
        assert brief(run(log, simple(COUNTS))) == [
            (0, "first", 0, 0),
            (2, "retraction", 0, 0),
            (2, "correction", 0, 1),
            (2, "late", 2, 0),
        ]


def test_what_has_not_come_yet_is_not_seen_earlier() -> None:
    turns = (
        Turn((Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 20, id="b")), 20),
        Turn((), 20),
        Turn((Fact(CLICKS, 3, delay=-400, id="k", of="a"), Fact(IMPRESSIONS, 40, id="c")), 20),
    )
    with log_of(World(turns), finish=False) as built, replay(built.log, simple(COUNTS)) as made:
        found = []
        for number in range(3):
            built.turn()
            if number == 0:
                built.log.step(tick_us=us(20), readmit={CLICKS: [0]})
            found += examples_of([each.rows for each in made.run()])
        assert run(Log(built.log.place), simple(COUNTS)) == found


def test_places_that_are_not_there_change_nothing() -> None:
    with late_and_skewed() as log:
        before = run(log, simple(COUNTS))
        log.step(tick_us=us(21), readmit={IMPRESSIONS: [99], CLICKS: [-1], "buys": [0]})
        assert run(log, simple(COUNTS)) == before


def test_a_duplicate_of_what_was_late_counts_beside_it_when_that_is_readmitted() -> None:
    """What made it late when it came, not what was done about it, decides whether it had been there before."""
    turns = (
        Turn((Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 20, id="b")), 20),
        Turn((Fact(IMPRESSIONS, 2, id="c"), Fact(IMPRESSIONS, 21, id="c")), 20),
        Turn((Fact(IMPRESSIONS, 50, id="d"),), 20),
    )
    with log_of(World(turns)) as built:
        built.log.step(tick_us=us(50), readmit={IMPRESSIONS: [2]})
        task = simple(COUNTS)
        assert task.pipeline.streams[IMPRESSIONS].dedup_us > 19 * SECOND
        assert brief(run(built.log, task)) == [
            (0, "first", 0, 0),
            (2, "first", 1, 0),
            (2, "first", 3, 0),
            (3, "late", 2, 0),
        ]
