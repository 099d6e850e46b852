"""What a pipeline leaves in its log: each event that it did not count, and each window that it sealed, once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.log import Log
from penstock.log.ledger import Ledger
from penstock.stream import records
from penstock.stream.scan import Scanner
from tests.stream.oracle import Oracle
from tests.stream.test_replay import CLICK_AFTER, simple
from tests.stream.worlds import (
    CLICKS,
    IMPRESSIONS,
    TIME,
    Fact,
    Task,
    Turn,
    World,
    examples,
    log_of,
    replay,
    run,
    tasks,
    worlds,
)


def us(time: Any) -> int:
    """Microseconds of a time with a zone."""
    return round(time.timestamp() * 1_000_000)


def recorded(log: Log, name: str) -> list[tuple[Any, ...]]:
    rows = log.quarantine(name).read().to_pylist()
    return sorted((row["seq"], row["reason"], row["step"], us(row["event_time"]), row["source"]) for row in rows)


def uncounted(oracle: Oracle, name: str, through: int) -> list[tuple[Any, ...]]:
    found = []
    for event in oracle.events[name]:
        step, reason = oracle.step_of(name, event), oracle.reason(name, event)
        if step is not None and step <= through and reason is not None:
            found.append((event.seq, reason, step, event.time, event.source))
    return found


def sealed(log: Log, task: Task) -> list[tuple[int, int, int, int]]:
    ledger = Ledger(f"{log.place}/_pipelines/{task.pipeline.name}", records.SEALED, ordered_by="step")
    rows = ledger.read().to_pylist()
    assert all(row["fingerprint"] == task.pipeline.fingerprint for row in rows)
    return sorted(
        (row["step"], us(row["window_begin"]), us(row["window_end"]), us(row["watermark"])) for row in rows
    )


def windows(oracle: Oracle) -> list[tuple[int, int, int, int]]:
    """Those that were sealed, and have an event that was there by then, whether it counts or not."""
    found = set()
    for event in oracle.events[IMPRESSIONS]:
        for window in oracle.windows_of(event):
            step, known = oracle.sealed_at(window), oracle.step_of(IMPRESSIONS, event)
            if step is not None and known is not None and known <= step:
                mark = oracle.mark(IMPRESSIONS, step)
                assert mark is not None
                found.add((step, window, window + oracle.pipeline.window_us, mark))
    return sorted(found)


@examples(12)
@given(world=worlds(), data=st.data())
def test_each_event_that_does_not_count_is_recorded_once(world: World, data: st.DataObject) -> None:
    """However the steps are grouped, by whom they are recorded, and how often."""
    task = data.draw(tasks(world))
    oracle = task.oracle(world)
    last = len(world.turns) - 1
    through = [*data.draw(st.lists(st.integers(0, last), max_size=3)), last, last]
    with log_of(world) as built, replay(built.log, task) as kept:
        kept.timeline.extend()
        new, done = 0, -1
        for number, step in enumerate(through):
            if number % 2:
                with replay(Log(built.log.place), task) as other:
                    other.timeline.extend()
                    other.records.uncounted(step)
                    new += other.records.quarantined
            else:
                kept.records.uncounted(step)
            done = max(done, step)
            for name in task.pipeline.streams:
                assert recorded(built.log, name) == uncounted(oracle, name, done)
        assert new + kept.records.quarantined == sum(
            len(uncounted(oracle, name, last)) for name in task.pipeline.streams
        )
        for name in task.pipeline.streams:
            _check_events(built.log, oracle, name)


def _check_events(log: Log, oracle: Oracle, name: str) -> None:
    """Each is there as it came."""
    for row in log.quarantine(name).read().to_pylist():
        event = json.loads(row["event"])
        kept = oracle.events[name][row["seq"]].fields
        assert list(event) == list(kept)
        for column, value in kept.items():
            if column != TIME[name] and value == value:
                assert event[column] == value
        assert row["pipeline"] == "main"
        assert row["detail"]


@examples(8)
@given(world=worlds(), data=st.data())
def test_sealed_windows_are_recorded_once(world: World, data: st.DataObject) -> None:
    task = data.draw(tasks(world))
    with log_of(world, finish=False) as built, replay(built.log, task) as made:
        for number in range(len(world.turns)):
            built.turn()
            list(made.run())
            if number % 2 or number == len(world.turns) - 1:
                made.records.sealed(number)
                made.records.sealed(number)
        assert sealed(built.log, task) == windows(task.oracle(world))
        with replay(Log(built.log.place), task) as other:
            list(other.run())
            other.records.sealed(len(world.turns) - 1)
        assert sealed(built.log, task) == windows(task.oracle(world))


def test_the_reason_is_said_in_words() -> None:
    turns = (
        Turn((Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 100, id="b")), 100),
        Turn((Fact(IMPRESSIONS, 40, id="c"), Fact(CLICKS, 1000, delay=-301, id="k")), 100),
    )
    with log_of(World(turns)) as built, replay(built.log, simple()) as made:
        made.timeline.extend()
        made.records.uncounted(1)
        assert made.records.quarantined == 3
        rows = {name: built.log.quarantine(name).read() for name in (IMPRESSIONS, CLICKS)}
        assert sorted(rows[IMPRESSIONS]["detail"].to_pylist()) == [
            "1m behind the watermark",
            "an event of this id was there before",
        ]
        assert rows[CLICKS]["detail"].to_pylist() == ["5m1s ahead of its arrival, allowed: 5m"]


def test_the_first_reason_is_the_one_that_counts() -> None:
    """Skewed before late before duplicate."""
    turns = (
        Turn((Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 100, id="b")), 100),
        Turn((Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 1, id="a", delay=-400)), 100),
    )
    with log_of(World(turns)) as built, replay(built.log, simple()) as made:
        made.timeline.extend()
        made.records.uncounted(1)
        assert [row[:2] for row in recorded(built.log, IMPRESSIONS)] == [(2, "late"), (3, "skewed")]


def test_another_pipeline_records_for_itself() -> None:
    with log_of(CLICK_AFTER) as built:
        for task in (simple(), simple(window_us=8_000_000), simple()):
            with replay(built.log, task) as made:
                list(made.run())
                made.records.uncounted(2)
                made.records.sealed(2)
        assert [row[:2] for row in recorded(built.log, IMPRESSIONS)] == [(2, "late")] * 2
        ledger = Ledger(f"{built.log.place}/_pipelines/main", records.SEALED, ordered_by="step")
        assert len(set(ledger.read()["fingerprint"].to_pylist())) == 2


@pytest.mark.parametrize("steps", [[0, 1, 2], [2], [1, 2], [2, 0, 1]])
def test_what_is_recorded_changes_no_example(steps: list[int]) -> None:
    with log_of(CLICK_AFTER) as built:
        before = run(built.log, simple())
        with replay(built.log, simple()) as made:
            made.timeline.extend()
            for step in steps:
                made.records.uncounted(step)
        assert len(recorded(built.log, IMPRESSIONS)) == 1
        assert run(built.log, simple()) == before


def test_where_every_event_counts_nothing_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody appends, whoever follows the log leaves it alone."""
    asked: list[tuple[str, int, int]] = []
    original = Scanner.uncounted

    def counting(self: Scanner, name: str, first: int, end: int, steps: Any) -> Any:
        asked.append((name, first, end))
        return original(self, name, first, end, steps)

    monkeypatch.setattr(Scanner, "uncounted", counting)
    turns = (Turn((Fact(IMPRESSIONS, 1, id="a"),), 100), Turn((Fact(IMPRESSIONS, 101, id="b"),), 200))
    with log_of(World(turns), finish=False) as built, replay(built.log, simple()) as made:
        for number in range(2):
            built.turn()
            made.timeline.extend()
            for _ in range(3):
                made.records.uncounted(number)
    assert asked == [(IMPRESSIONS, 0, 1), (IMPRESSIONS, 1, 2)]
