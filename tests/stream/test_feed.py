"""A feed hands over what a replay gives, takes steps by itself, and ends when it should."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from penstock.errors import ConfigError, DataError
from penstock.log import Log
from penstock.stream import plan
from penstock.stream.feed import Feed, take_step
from penstock.stream.replay import Examples
from penstock.stream.spec import StreamSpec
from tests.stream.oracle import Example
from tests.stream.test_records import recorded, sealed
from tests.stream.test_replay import CLICK_AFTER, SECOND, brief, rows_of, simple
from tests.stream.worlds import (
    CLICKS,
    IMPRESSIONS,
    SCHEMAS,
    TIMESTAMP,
    Fact,
    Turn,
    World,
    examples_of,
    log_of,
    replay,
)

PATIENCE_S = 120
"""A test that has not seen by then what it waits for has failed."""
us = World(()).us


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "penstock-feed"] == []


def feed(place: str, task: Any = None, **options: Any) -> Feed:
    return Feed(place, (task or simple()).pipeline, **{"follow": False, "threads": 1, "poll_s": 0.001, **options})


def all_of(made: Feed) -> list[Examples]:
    with made:
        return [item for item in made if item is not None]


def collect(made: Iterator[Examples | None], number: int, found: list[Example]) -> None:
    """Take pieces until there are so many examples."""
    deadline = time.monotonic() + PATIENCE_S
    for item in made:
        assert time.monotonic() < deadline, found
        if item is not None:
            found += examples_of([item.rows])
            if len(found) >= number:
                return
    raise AssertionError(f"ended with {found}")


def append(log: Log, *times: int, ids: str) -> None:
    """Impressions that arrive at their own time."""
    column = pa.array([us(each) for each in times], pa.int64()).cast(TIMESTAMP)
    table = pa.table({"ts": column, "request_id": list(ids), "u": [0] * len(times)})
    log.stream(IMPRESSIONS).append(table, source="a", arrival=column)


MANY = World((Turn(tuple(Fact(IMPRESSIONS, 4 * n, id=str(n)) for n in range(30)), 200),))
"""29 windows that are sealed."""


# Not following.


def test_it_gives_what_a_replay_gives_and_ends() -> None:
    with log_of(CLICK_AFTER) as built:
        with replay(built.log, simple()) as made:
            whole = list(made.run())
        found = all_of(feed(built.log.place))
        assert [each.piece for each in found] == [each.piece for each in whole]
        assert rows_of(found) == rows_of(whole)
        assert len(Log(built.log.place).progress.steps()) == 3, "nothing came, so no step was taken"


def test_it_takes_a_step_for_what_no_step_knows() -> None:
    with log_of(replace(CLICK_AFTER, turns=CLICK_AFTER.turns[:1], rest=CLICK_AFTER.turns[1].facts)) as built:
        found = all_of(feed(built.log.place))
        assert brief(examples_of([each.rows for each in found])) == [
            (0, "first", 0, False, 19.0),
            (1, "retraction", 0, False, 19.0),
            (1, "correction", 0, True, 19.0),
        ]
        assert len(built.log.progress.steps()) == 2
        assert len(all_of(feed(built.log.place))) == len(found)
        assert len(built.log.progress.steps()) == 2


def test_it_takes_the_first_step_of_a_log_without_any() -> None:
    with log_of(World((), rest=(Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 50, id="b")))) as built:
        found = all_of(feed(built.log.place))
        assert brief(examples_of([each.rows for each in found])) == [(0, "first", 0, False, 49.0)]


def test_it_begins_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PIECE_ROWS", 4)
    with log_of(MANY) as built:
        whole = all_of(feed(built.log.place))
        assert [each.piece.index for each in whole] == list(range(8))
        for start in (0, 3, 7, 8):
            tail = all_of(feed(built.log.place, start=start))
            assert [each.piece for each in tail] == [each.piece for each in whole[start:]]
            assert rows_of(tail) == rows_of(whole[start:])
        part = all_of(feed(built.log.place, from_us=us(8), to_us=us(17)))
        assert [each.seq for each in examples_of([each.rows for each in part])] == [2, 3]


def test_it_says_where_it_stands_and_records_what_it_did_once() -> None:
    with log_of(CLICK_AFTER) as built:
        for new in (1, 0):
            made = feed(built.log.place)
            all_of(made)
            standing = made.standing
            assert standing is not None
            assert (standing.step, standing.watermark_us, standing.sealed_to_us) == (2, us(20), us(20))
            assert (standing.ends[IMPRESSIONS], standing.ends[CLICKS], standing.quarantined) == (3, 2, new)
            assert (standing.lag_us(us(21)), standing.lag_us(us(1))) == (SECOND, 0)
            assert [held.stream for held in standing.streams] == [IMPRESSIONS, CLICKS]
            assert standing.streams[0].mark_us == us(20) and "lateness" in standing.streams[0].policy
            assert [row[:3] for row in recorded(built.log, IMPRESSIONS)] == [(2, "late", 1)]
            assert sealed(built.log, simple()) == [(0, us(0), us(4), us(20))]


def test_a_log_without_events_stands_nowhere() -> None:
    with log_of(World(())) as built:
        made = feed(built.log.place)
        assert all_of(made) == []
        assert made.standing is not None
        assert (made.standing.watermark_us, made.standing.sealed_to_us) == (None, None)
        assert made.standing.lag_us(us(0)) is None


@pytest.mark.parametrize("options", [{"start": 5}, {"from_us": us(40)}])
def test_windows_that_one_feed_passed_over_are_recorded_by_the_next(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    """One goes on after a crash between handing over and recording, or takes a part first."""
    monkeypatch.setattr(plan, "PIECE_ROWS", 1)
    with log_of(MANY) as built:
        all_of(feed(built.log.place, **options))
        all_of(feed(built.log.place))
        assert len(sealed(built.log, simple())) == 29


# Ends and errors.


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_it_stops_when_it_is_left_early(monkeypatch: pytest.MonkeyPatch, follow: bool, taken: int) -> None:
    """More pieces than wait in its queue are to come."""
    monkeypatch.setattr(plan, "PIECE_ROWS", 1)
    with log_of(MANY) as built:
        with feed(built.log.place, follow=follow) as made:
            seen = 0
            for item in made if taken else ():
                seen += item is not None
                if seen == taken:
                    break
        assert made.standing is None, "pieces are recorded when they were all handed over"
        assert len(all_of(feed(built.log.place))) == 29


def test_an_error_of_whoever_iterates_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PIECE_ROWS", 1)
    with log_of(MANY) as built, pytest.raises(KeyError, match="mine"), feed(built.log.place, follow=True):
        raise KeyError("mine")


def test_errors_of_its_thread_are_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no log, or no stream in it yet; looked for 'impressions'"):
        all_of(feed(str(tmp_path / "nothing")))
    with log_of(CLICK_AFTER) as built:
        with pytest.raises(ConfigError, match=r"pipeline\.query"):
            all_of(feed(built.log.place, simple(query="select nothing from impressions")))
        shutil.rmtree(next(Path(built.log.place).glob("impressions/event_date=*")))
        for follow in (False, True):
            with pytest.raises(DataError):
                all_of(feed(built.log.place, follow=follow))


def test_pieces_before_an_error_are_handed_over() -> None:
    with log_of(CLICK_AFTER) as built:
        made = feed(built.log.place, follow=True)
        found: list[Example] = []
        with pytest.raises(DataError), made:
            collect(iter(made), 3, found)
            append(built.log, 90, ids="x")
            for part in Path(built.log.place).glob("impressions/event_date=*"):
                shutil.rmtree(part)
            append(built.log, 91, ids="y")
            collect(iter(made), 99, found)
        assert [each.kind for each in found[:3]] == ["first", "retraction", "correction"]


# Following.


def test_it_follows_what_comes_later() -> None:
    with log_of(replace(CLICK_AFTER, turns=CLICK_AFTER.turns[:1])) as built:
        found: list[Example] = []
        with feed(built.log.place, follow=True) as made:
            pieces = iter(made)
            collect(pieces, 1, found)
            append(built.log, 22, 41, ids="de")
            collect(pieces, 3, found)
            append(built.log, 80, ids="f")
            collect(pieces, 4, found)
            deadline = time.monotonic() + PATIENCE_S
            assert next(pieces) is None or time.monotonic() < deadline
        assert [each.values[1] for each in found] == ["a", "b", "d", "e"]
        with replay(Log(built.log.place), simple()) as again:
            assert examples_of([each.rows for each in again.run()]) == found


def test_it_says_now_and_then_that_nothing_comes() -> None:
    with log_of(CLICK_AFTER) as built, feed(built.log.place, follow=True) as made:
        deadline = time.monotonic() + PATIENCE_S
        for item in made:
            assert time.monotonic() < deadline
            if item is None:
                break


def test_it_ends_when_the_windows_that_are_asked_for_are_sealed() -> None:
    with log_of(replace(CLICK_AFTER, turns=CLICK_AFTER.turns[:1])) as built:
        found: list[Example] = []
        with feed(built.log.place, follow=True, to_us=us(25)) as made:
            pieces = iter(made)
            collect(pieces, 1, found)
            append(built.log, 24, 28, ids="de")
            for item in pieces:
                found += examples_of([item.rows]) if item is not None else []
        assert [each.values[1] for each in found] == ["a", "b"]


# Steps.


def test_a_step_is_taken_where_something_came() -> None:
    with log_of(World((), rest=(Fact(IMPRESSIONS, 1, id="a"),))) as built, replay(built.log, simple()) as made:
        assert take_step(made, us(1))
        assert not take_step(made, us(2))
        append(built.log, 2, ids="b")
        assert take_step(made, us(3))
        assert not take_step(made, us(10**6)), "never idle: silence seals nothing"
        assert [step.tick_us for step in built.log.progress.steps()] == [us(1), us(3)]


def test_a_step_is_taken_where_silence_seals_a_window_that_has_events() -> None:
    task = simple(streams={IMPRESSIONS: StreamSpec(idle_us=10 * SECOND), CLICKS: StreamSpec()})
    with log_of(World((), rest=(Fact(IMPRESSIONS, 1, id="a"),))) as built, replay(built.log, task) as made:
        assert take_step(made, us(1))
        assert not take_step(made, us(10)), "not idle yet"
        assert list(made.run()) == []
        assert take_step(made, us(11))
        assert [each.seq for each in examples_of([piece.rows for piece in made.run()])] == [0]
        assert not take_step(made, us(1000)), "silence seals only empty windows"
        assert len(built.log.progress.steps()) == 2


def test_a_step_that_another_took_is_enough() -> None:
    with log_of(CLICK_AFTER) as built, replay(built.log, simple()) as made:
        made.timeline.extend()
        other = Log(built.log.place)
        append(other, 90, ids="x")
        other.step(tick_us=us(90))
        assert take_step(made, us(91))
        made.timeline.extend()
        assert len(built.log.progress.steps()) == len(made.timeline.points)
        assert len(made.timeline.points) <= 5
        assert not take_step(made, us(92))


def test_the_streams_of_other_pipelines_are_no_reason_for_a_step() -> None:
    with log_of(CLICK_AFTER) as built, replay(built.log, simple()) as made:
        made.timeline.extend()
        assert set(SCHEMAS) > set(made.pipeline.streams)
        times = pa.array([us(1)], pa.int64()).cast(TIMESTAMP)
        built.log.stream("buys").append(pa.table({"at": times}), source="a", arrival=times)
        assert not take_step(made, us(50))
