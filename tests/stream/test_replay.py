"""The window engine against the oracle, and what must not matter to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError, DataError
from penstock.log import Log
from penstock.stream import plan
from penstock.stream import replay as replay_module
from penstock.stream.evaluator import EXTRA
from penstock.stream.replay import Examples, Replay
from penstock.stream.spec import Pipeline, StreamSpec
from penstock.stream.timeline import NEVER
from tests.stream.oracle import Example, Question
from tests.stream.worlds import (
    BUYS,
    CLICKS,
    IMPRESSIONS,
    LEFT_JOIN,
    QUESTIONS,
    SCHEMAS,
    TIMESTAMP,
    Built,
    Fact,
    Task,
    Turn,
    World,
    comparable,
    examples,
    examples_of,
    log_of,
    rank,
    replay,
    run,
    tasks,
    worlds,
)

SECOND = 1_000_000


def rows_of(pieces: Sequence[Examples]) -> list[Example]:
    return comparable(examples_of([each.rows for each in pieces]))


# The oracle.


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
@examples(8)
@given(world=worlds(), data=st.data())
def test_examples_are_those_of_the_oracle(question: Question, world: World, data: st.DataObject) -> None:
    with log_of(world) as built:
        for _ in range(2):
            task = data.draw(tasks(world, question=question))
            # A piece each, or all with one query.
            rows = data.draw(st.sampled_from([1, 1 << 20]))
            with mock.patch.object(replay_module, "QUERY_ROWS", rows), replay(built.log, task) as made:
                assert made.schema.names == [*question.columns, *EXTRA.names]
                pieces = list(made.run())
                assert all(piece.rows.schema == made.schema for piece in pieces)
            assert rows_of(pieces) == comparable(task.oracle(world).examples())


@examples(8)
@given(world=worlds(), data=st.data())
def test_watermarks_are_those_of_the_oracle(world: World, data: st.DataObject) -> None:
    with log_of(world) as built:
        for _ in range(3):
            task = data.draw(tasks(world, question=QUESTIONS[-1]))
            oracle = task.oracle(world)
            with replay(built.log, task) as made:
                made.timeline.extend()
                assert len(made.timeline.points) == len(world.turns)
                for point in made.timeline.points:
                    for name in task.pipeline.streams:
                        mark = oracle.mark(name, point.step)
                        assert point.marks[name] == (NEVER if mark is None else mark)


@examples(8)
@given(world=worlds(), data=st.data())
def test_a_batch_job_gives_what_stands_in_the_end(world: World, data: st.DataObject) -> None:
    task = data.draw(tasks(world))
    oracle = task.oracle(world)
    with log_of(world) as built, replay(built.log, task) as made, mock.patch.object(plan, "PIECE_ROWS", 3):
        assert rows_of(list(made.final())) == comparable(oracle.final(len(world.turns) - 1))
        step = len(world.turns) // 2
        assert rows_of(list(made.final(step))) == comparable(oracle.final(step))
        assert rows_of(list(made.run())) == comparable(oracle.examples()), "and is not in the way of the rest"


# What must not matter.


@examples(10)
@given(world=worlds(), data=st.data())
def test_step_after_step_is_as_in_one_go(world: World, data: st.DataObject) -> None:
    """With one replay that goes on, and with a fresh one after each step that skips what was there."""
    task = data.draw(tasks(world))
    kept: list[Examples] = []
    fresh: list[Examples] = []
    with log_of(world, finish=False) as built, replay(built.log, task) as going_on:
        for number in range(len(world.turns) + 1):
            built.turn()
            kept += going_on.run()
            if number == len(world.turns) // 2 or number == len(world.turns):
                with replay(Log(built.log.place), task) as made:
                    fresh += made.run(len(fresh))
        with replay(built.log, task) as made:
            whole = list(made.run())
    pieces = [each.piece for each in whole]
    assert [each.piece for each in kept] == pieces
    assert [each.piece for each in fresh] == pieces
    assert [rows_of([each]) for each in kept] == [rows_of([each]) for each in whole]
    assert [rows_of([each]) for each in fresh] == [rows_of([each]) for each in whole]


@examples(8)
@given(world=worlds(), data=st.data())
def test_one_can_go_on_from_any_piece(world: World, data: st.DataObject) -> None:
    task = data.draw(tasks(world))
    with log_of(world) as built, mock.patch.object(plan, "PIECE_ROWS", 2):
        with replay(built.log, task) as made:
            whole = list(made.run())
        for start in {1, len(whole) // 2, len(whole) - 1, len(whole)}:
            with replay(built.log, task) as made:
                tail = list(made.run(max(start, 0)))
            assert [each.piece for each in tail] == [each.piece for each in whole[max(start, 0) :]]
            assert [rows_of([each]) for each in tail] == [rows_of([each]) for each in whole[max(start, 0) :]]
        with replay(built.log, task) as made:
            made.timeline.extend()
            planned = list(made.planner.plan())
            alone = [each for piece in reversed(planned) for each in made.compute([piece])]
        assert [rows_of([each]) for each in reversed(alone)] == [rows_of([each]) for each in whole]


@examples(8)
@given(world=worlds(), data=st.data(), sizes=st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 2, 6])))
def test_the_size_of_pieces_and_queries_and_threads_do_not_matter(
    world: World, data: st.DataObject, sizes: tuple[int, int]
) -> None:
    task = data.draw(tasks(world))
    with log_of(world) as built:
        with replay(built.log, task) as made:
            whole = list(made.run())
        with mock.patch.object(replay_module, "QUERY_ROWS", sizes[0]), replay(built.log, task) as made:
            several = list(made.run())
        assert [each.piece for each in several] == [each.piece for each in whole]
        assert [rows_of([each]) for each in several] == [rows_of([each]) for each in whole]
        with (
            mock.patch.object(plan, "PIECE_ROWS", sizes[1]),
            mock.patch.object(replay_module, "QUERY_ROWS", sizes[0]),
        ):
            assert comparable(run(built.log, task, threads=2)) == rows_of(whole)


@examples(8)
@given(world=worlds(), data=st.data())
def test_compaction_does_not_matter(world: World, data: st.DataObject) -> None:
    task = data.draw(tasks(world))
    seen: list[Examples] = []
    with log_of(world, finish=False) as built, replay(built.log, task) as made:
        for _ in range(len(world.turns) + 1):
            built.turn()
            seen += made.run()
            for name in SCHEMAS:
                built.log.stream(name).folder.compact()
        assert rows_of(seen) == comparable(task.oracle(world).examples())
        assert comparable(run(Log(built.log.place), task)) == rows_of(seen)


def labels(found: Sequence[Example], *, by: int) -> dict[Any, tuple[Any, ...] | None]:
    """The last result of each event, by a column that tells events apart; None where it was taken back."""
    last: dict[Any, tuple[Any, ...] | None] = {}
    for each in comparable(found):
        last[each.values[by]] = None if each.kind == "retraction" else each.values
    return {key: values for key, values in last.items() if values is not None}


@st.composite
def orders(draw: st.DrawFn) -> tuple[World, World]:
    """Two logs of the same events, which come in other orders; at the end one that seals them all."""
    drawn = draw(worlds(readmit=False))
    drawn_facts = [fact for turn in drawn.turns for fact in turn.facts]
    named = [replace(fact, id=f"{fact.stream[0]}{n}", delay=0) for n, fact in enumerate(drawn_facts)]
    ids: dict[str, list[str | None]] = {name: [f.id for f in named if f.stream == name] for name in SCHEMAS}
    above = {CLICKS: IMPRESSIONS, BUYS: CLICKS}
    linked = [
        replace(fact, of=draw(st.sampled_from([*ids[above[fact.stream]], None]))) if fact.stream in above else fact
        for fact in named
    ]
    end = Turn(
        (Fact(IMPRESSIONS, 10_000, id="end", source="a"), Fact(IMPRESSIONS, 10_000, id="end", source="b")), 0
    )
    found = []
    for _ in range(2):
        mixed = draw(st.permutations(linked))
        cuts = sorted(draw(st.lists(st.integers(0, len(mixed)), max_size=3)))
        parts = [mixed[a:b] for a, b in zip([0, *cuts], [*cuts, len(mixed)], strict=True)]
        found.append(replace(drawn, turns=(*(Turn(tuple(part), 0) for part in parts), end), rest=()))
    return found[0], found[1]


@examples(8)
@given(pair=orders(), data=st.data())
def test_the_order_of_arrival_does_not_matter_to_final_labels(
    pair: tuple[World, World], data: st.DataObject
) -> None:
    world = pair[0]
    task = data.draw(
        tasks(world, question=data.draw(st.sampled_from([LEFT_JOIN, *QUESTIONS[2:4]])), bounded=False)
    )
    patient = {
        name: replace(spec, lateness_us=1000 * world.unit, idle_us=None)
        for name, spec in task.pipeline.streams.items()
    }
    task = replace(task, pipeline=replace(task.pipeline, streams=patient))
    found = []
    for each in pair:
        with log_of(each) as built:
            found.append(labels(run(built.log, task), by=task.question.columns.index("request_id")))
    assert found[0] == found[1]


@examples(8)
@given(world=worlds(), data=st.data())
def test_the_length_of_windows_does_not_matter_to_final_labels(world: World, data: st.DataObject) -> None:
    end = Turn(tuple(Fact(IMPRESSIONS, 10_000, source=source, id="end") for source in "ab"), 10_000)
    world = replace(world, turns=(*world.turns, end), rest=())
    question = data.draw(st.sampled_from(QUESTIONS))
    task = data.draw(tasks(world, question=question, bounded=False))
    found = []
    with log_of(world) as built:
        for window in (5, 1440):
            pipeline = replace(task.pipeline, window_us=window * world.unit, slide_us=None)
            last: dict[int, tuple[Any, ...] | None] = {}
            for each in comparable(run(built.log, replace(task, pipeline=pipeline))):
                last[each.seq] = None if each.kind == "retraction" else each.values
            found.append({seq: values for seq, values in last.items() if values is not None})
    # What lies in the end's own long window is not sealed in one of the two.
    ends = {event.seq for event in world.events()[IMPRESSIONS] if event.time >= world.us(7_000)}
    assert {s: v for s, v in found[0].items() if s not in ends} == {
        s: v for s, v in found[1].items() if s not in ends
    }


@examples(8)
@given(world=worlds(), data=st.data())
def test_each_event_that_counts_comes_out_once(world: World, data: st.DataObject) -> None:
    end = Turn(tuple(Fact(IMPRESSIONS, 10_000, source=source, id="end") for source in "ab"), 10_000)
    world = replace(world, turns=(*world.turns, end), rest=())
    task = data.draw(tasks(world, question=LEFT_JOIN, bounded=False))
    task = replace(task, pipeline=replace(task.pipeline, slide_us=None))
    with log_of(world) as built, replay(built.log, task) as made:
        found = examples_of([each.rows for each in made.run()])
        last = len(made.timeline.points) - 1
        made.records.uncounted(last)
        left_out = set(built.log.quarantine(IMPRESSIONS).read()["seq"].to_pylist())
        again = {
            seq
            for step in made.timeline.steps
            for seq in step.readmitted.get(IMPRESSIONS, ())
            if seq < step.ends[IMPRESSIONS]  # what had not come yet is not readmitted
        }
        sealed_to = made.timeline.sealed_to(last)
    slide = task.pipeline.window_us
    counted = {
        event.seq
        for event in world.events()[IMPRESSIONS]
        if (event.seq not in left_out or event.seq in again) and event.time // slide * slide < sealed_to
    }
    assert Counter(each.seq for each in found if each.kind in ("first", "late")) == Counter(counted)
    balance = Counter(each.kind for each in found)
    assert balance["retraction"] == balance["correction"]


# By hand.


def simple(question: Question = LEFT_JOIN, **changes: Any) -> Task:
    streams = {
        IMPRESSIONS: StreamSpec(),
        CLICKS: StreamSpec(within_us=100 * SECOND, lateness_us=100 * SECOND),
    }
    return Task(
        question,
        Pipeline(
            **{"name": "main", "log": "", "streams": streams, "query": question.sql, "window_us": 4 * SECOND}
            | changes
        ),
    )


def brief(found: Sequence[Example]) -> list[tuple[Any, ...]]:
    return [(each.step, each.kind, each.seq, each.values[-1], each.age) for each in found]


CLICK_AFTER = World(
    (
        Turn((Fact(IMPRESSIONS, 1, id="a"), Fact(IMPRESSIONS, 20, id="b")), 20),
        Turn((Fact(CLICKS, 3, id="k", of="a"), Fact(IMPRESSIONS, 2, id="c")), 30),
        Turn((Fact(CLICKS, 4, id="l", of="a"),), 30),
    )
)


def test_a_click_after_the_window_corrects_its_label_once() -> None:
    with log_of(CLICK_AFTER) as built:
        assert brief(run(built.log, simple())) == [
            (0, "first", 0, False, 19.0),
            (1, "retraction", 0, False, 19.0),
            (1, "correction", 0, True, 19.0),
        ]


def test_an_event_that_was_readmitted_gives_a_late_example_and_corrections() -> None:
    turns = (
        CLICK_AFTER.turns[0],
        Turn((Fact(IMPRESSIONS, 2, id="c", readmit=1),), 30),
        Turn((Fact(CLICKS, 1, id="k", of="a"),), 30),
        Turn((Fact(CLICKS, 4, id="l", of="c"),), 30),
    )
    with log_of(World(turns)) as built:
        assert brief(run(built.log, simple())) == [
            (0, "first", 0, False, 19.0),
            (2, "retraction", 0, False, 19.0),
            (2, "correction", 0, True, 19.0),
            (2, "late", 2, False, 18.0),
            (3, "retraction", 2, False, 18.0),
            (3, "correction", 2, True, 18.0),
        ]


def test_what_counts_may_be_readmitted_and_nothing_changes() -> None:
    turns = tuple(
        replace(turn, facts=tuple(replace(fact, readmit=1 if n == 0 else None) for fact in turn.facts))
        for n, turn in enumerate(CLICK_AFTER.turns)
    )
    with log_of(World(turns)) as built, log_of(CLICK_AFTER) as plain:
        assert run(built.log, simple()) == run(plain.log, simple())


def test_windows_are_sealed_and_clicks_reach_up_to_their_boundaries() -> None:
    """Of [from, to) each: the watermark that equals a window's end seals it; reaches include both ends."""
    task = simple()
    clicks = replace(task.pipeline.streams[CLICKS], within_us=3 * SECOND, before_us=2 * SECOND)
    task = replace(task, pipeline=replace(task.pipeline, streams={**task.pipeline.streams, CLICKS: clicks}))

    def world(click: int, end: int) -> World:
        facts = (Fact(CLICKS, click, id="k", of="a"), Fact(IMPRESSIONS, 10, id="a"), Fact(IMPRESSIONS, end))
        return World((Turn(facts, end),))

    for click, end, want in [
        *[(8, 12, [True]), (13, 12, [True]), (7, 12, [False]), (14, 12, [False])],
        (13, 11, []),
    ]:
        with log_of(world(click, end)) as built:
            found = [each.values[-1] for each in run(built.log, task) if each.seq == 0]
            assert found == want, (click, end)


@pytest.mark.parametrize(("time", "kinds"), [(8, 2), (13, 2), (7, 0), (14, 0)])
def test_corrections_reach_up_to_their_boundaries(time: int, kinds: int) -> None:
    reach = StreamSpec(within_us=3 * SECOND, before_us=2 * SECOND, lateness_us=100 * SECOND)
    turns = (
        Turn((Fact(IMPRESSIONS, 10, id="a"), Fact(IMPRESSIONS, 40, id="b")), 40),
        Turn((Fact(CLICKS, time, id="k", of="a"),), 40),
    )
    with log_of(World(turns)) as built:
        found = run(built.log, simple(streams={IMPRESSIONS: StreamSpec(), CLICKS: reach}))
        assert [each.kind for each in found] == ["first", "retraction", "correction"][: 1 + kinds]


def test_of_several_clicks_the_least_is_taken_and_said_to_be_ambiguous() -> None:
    turn = Turn(
        (
            *(Fact(CLICKS, time, id=id_, of="a", value=1.0) for time, id_ in [(4, "m"), (3, "l"), (5, "l")]),
            *(Fact(CLICKS, 2, id=None, of="b", value=2.0) for _ in range(2)),
            *(Fact(IMPRESSIONS, time, id=id_) for time, id_ in [(1, "a"), (2, "b"), (20, "c")]),
        ),
        20,
    )
    task = simple(QUESTIONS[1], streams={IMPRESSIONS: StreamSpec(), CLICKS: StreamSpec(within_us=SECOND * 9)})
    with log_of(World((turn,))) as built, replay(built.log, task) as made:
        (piece,) = made.run()
        assert [each.values for each in examples_of([piece.rows])] == [("a", 1.0, "l"), ("b", 2.0, None)]
        assert piece.ambiguous == 1


def test_an_age_is_never_below_zero_and_counts_from_the_watermark() -> None:
    turns = (Turn((Fact(IMPRESSIONS, 0, id="a"), Fact(IMPRESSIONS, 3, id="b"), Fact(IMPRESSIONS, 7, id="c")), 0),)
    with log_of(World(turns)) as built:
        found = run(
            built.log, simple(streams={IMPRESSIONS: StreamSpec(lateness_us=3 * SECOND), CLICKS: StreamSpec()})
        )
        assert [(each.seq, each.age) for each in found] == [(0, 4.0), (1, 1.0)]
        # Each of eight windows that an event lies in, if its end is there: at 7.
        sliding = simple(window_us=8 * SECOND, slide_us=SECOND)
        assert [(each.window, each.seq, each.age) for each in run(built.log, sliding)] == [
            (World(()).us(begin), seq, age)
            for begin in range(-7, 0)
            for seq, time, age in [(0, 0, 7.0), (1, 3, 4.0)]
            if begin <= time < begin + 8
        ]


def test_a_stream_may_come_after_the_first_steps_and_a_column_in_between(tmp_path: Any) -> None:
    def impressions(log: Log, *rows: tuple[int, str], **more: Any) -> None:
        times = pa.array([World(()).us(time) for time, _ in rows], pa.int64()).cast(TIMESTAMP)
        table = pa.table({"ts": times, "request_id": [id_ for _, id_ in rows], "u": [0] * len(rows), **more})
        log.stream(IMPRESSIONS).append(table, source="a", arrival=times)

    log = Log(str(tmp_path))
    log.create(IMPRESSIONS, list(SCHEMAS[IMPRESSIONS]), id="request_id")
    impressions(log, (1, "a"), (20, "b"))
    log.step(tick_us=World(()).us(20))
    with pytest.raises(DataError, match="there is no stream 'clicks'"):
        run(log, simple())
    log.create(CLICKS, list(SCHEMAS[CLICKS]), id="click_id")
    with replay(log, simple()) as made:
        found = examples_of([each.rows for each in made.run()])
        impressions(log, (21, "c"), (40, "d"), new=["x", "y"])
        log.step(tick_us=World(()).us(40))
        found += examples_of([each.rows for each in made.run()])
        assert [(each.step, each.seq) for each in found] == [(0, 0), (1, 1), (1, 2)]
        assert len(found[-1].values) == 4  # the query's columns are those of its beginning
    again = run(log, simple())
    assert [each.values[1:] for each in again] == [
        ("a", 0, None, False),
        ("b", 0, None, False),
        ("c", 0, "x", False),
    ]


def test_a_log_without_steps_or_events_gives_nothing() -> None:
    with log_of(World(())) as built:
        assert run(built.log, simple()) == []
    with log_of(World((Turn((), 5), Turn((), 9)))) as built:
        assert run(built.log, simple()) == []
    with log_of(World((Turn((), 5),), rest=(Fact(IMPRESSIONS, 1), Fact(IMPRESSIONS, 90)))) as built:
        assert run(built.log, simple()) == []


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("c.ts - i.ts", "column 'x' is of type month_day_nano_interval, which examples cannot keep"),
        ("null", "column 'x' is null in every row"),
    ],
)
def test_a_type_that_no_file_keeps_is_refused(expression: str, message: str) -> None:
    question = replace(
        LEFT_JOIN,
        sql=f"select i.request_id, {expression} as x from impressions i "
        "left join clicks c on c.request_id = i.request_id",
    )
    with log_of(World(())) as built, pytest.raises(ConfigError) as caught:
        Replay(built.log, simple(question).pipeline)
    assert message in str(caught.value)


def test_another_time_column_than_the_stream_has_is_refused() -> None:
    with log_of(World(())) as built:
        task = simple(streams={IMPRESSIONS: StreamSpec(time="at"), CLICKS: StreamSpec()})
        with pytest.raises(ConfigError, match=r"streams\.impressions\.time: got 'at', allowed: 'ts'"):
            Replay(built.log, task.pipeline)


def test_an_id_column_of_the_pipeline_counts_instead_of_the_streams() -> None:
    turn = Turn((Fact(IMPRESSIONS, 1, id="a", value=1.0), Fact(IMPRESSIONS, 1, id="b", value=1.0)), 0)
    world = World((turn, Turn((Fact(IMPRESSIONS, 50, id="c"),), 0)))
    with log_of(world) as built:
        assert [each.seq for each in run(built.log, simple())] == [0, 1]
        by_u = simple(streams={IMPRESSIONS: StreamSpec(id="u"), CLICKS: StreamSpec()})
        assert [each.seq for each in run(built.log, by_u)] == [0]


def test_an_event_that_is_far_away_costs_no_more_than_another() -> None:
    far = Turn((Fact(IMPRESSIONS, 30, id="c"), Fact(IMPRESSIONS, 90 * 86_400, id="far")), 20)
    with log_of(World((CLICK_AFTER.turns[0], far)), finish=False) as built, replay(built.log, simple()) as made:
        built.turn()
        list(made.run())
        built.turn()
        with mock.patch.object(made.database, "run", wraps=made.database.run) as queries:
            assert [each.seq for each in examples_of([each.rows for each in made.run()])] == [1, 2]
        assert queries.call_count < 100


@pytest.mark.parametrize("other", ["clicks_steps", "clicks_readmitted", "schema_clicks", "doubles_clicks"])
def test_a_stream_may_have_any_name(tmp_path: Any, other: str) -> None:
    log = Log(str(tmp_path))
    for name, like in [(IMPRESSIONS, IMPRESSIONS), (CLICKS, CLICKS), (other, CLICKS)]:
        log.create(name, list(SCHEMAS[like]), id=SCHEMAS[like].names[1])
    for batch in range(2):  # so that there are several steps, and a duplicate that is readmitted
        for name in (CLICKS, other):
            times = pa.array([World(()).us(3)], pa.int64()).cast(TIMESTAMP)
            table = pa.table({"ts": times, "click_id": [f"of {name}"], "request_id": ["a"]})
            log.stream(name).append(table, source="a", arrival=times)
        log.step(tick_us=0, readmit={CLICKS: [1]} if batch else None)
    times = pa.array([World(()).us(1), World(()).us(50)], pa.int64()).cast(TIMESTAMP)
    log.stream(IMPRESSIONS).append(pa.table({"ts": times, "request_id": ["a", "b"]}), source="a", arrival=times)
    log.step(tick_us=0)
    question = replace(
        LEFT_JOIN,
        sql=f"select i.request_id, c.click_id, d.click_id as more from impressions i "
        f"left join clicks c on c.request_id = i.request_id left join {other} d on d.request_id = i.request_id",
    )
    reach = StreamSpec(within_us=9 * SECOND)
    task = simple(question, streams={IMPRESSIONS: StreamSpec(), CLICKS: reach, other: reach})
    assert [each.values for each in run(log, task)] == [("a", "of clicks", f"of {other}")]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("apart", "counts"), [(0, False), (3, False), (-3, False), (4, True), (-4, True)])
def test_duplicates_are_no_farther_apart_than_they_may_be(
    apart: int, counts: bool, steps: int, kept: bool
) -> None:
    """Of which each lies in a window of its own, that is looked at alone."""
    pair = (Fact(IMPRESSIONS, 10, id="a"), Fact(IMPRESSIONS, 10 + apart, id="a"))
    brought = [pair] if steps == 1 else [pair[:1], pair[1:]]
    brought += [(Fact(IMPRESSIONS, 109, id="b"),), (Fact(IMPRESSIONS, 300, id="c"),)]
    world = World(tuple(Turn(facts, 0) for facts in brought))
    patient = StreamSpec(lateness_us=100 * SECOND, dedup_us=3 * SECOND)
    task = simple(streams={IMPRESSIONS: patient, CLICKS: StreamSpec()}, window_us=SECOND)
    found = []
    with (
        log_of(world, finish=False) as built,
        mock.patch.object(plan, "PIECE_ROWS", 1),
        mock.patch.object(replay_module, "QUERY_ROWS", 1),
        replay(built.log, task) as made,
    ):
        for turn in range(len(brought)):
            built.turn()
            if kept or turn == len(brought) - 1:
                found += examples_of([each.rows for each in made.run()])
    assert sorted(each.seq for each in found) == [0, *[1] * counts, 2]


def test_ends_of_time_are_cut_to_windows() -> None:
    facts = tuple(Fact(IMPRESSIONS, time, id=f"r{time}") for time in (0, 3, 4, 7, 8, 11, 12, 60))
    with log_of(World((Turn(facts, 60),))) as built:
        us = World(()).us

        def seqs(begin: int | None, end: int | None) -> list[int]:
            task = replace(
                simple(), from_us=None if begin is None else us(begin), to_us=None if end is None else us(end)
            )
            return [each.seq for each in run(built.log, task)]

        assert seqs(None, None) == [0, 1, 2, 3, 4, 5, 6]
        assert seqs(4, 8) == seqs(7, 11) == [2, 3]
        assert seqs(4, 7) == seqs(20, 10) == []
        assert seqs(None, 4) == [0, 1]
        assert seqs(12, None) == [6]
        assert seqs(4, None) + seqs(None, 4) == [2, 3, 4, 5, 6, 0, 1]


def test_the_builder_builds_what_the_oracle_is_told() -> None:
    world = replace(CLICK_AFTER, rest=(Fact(CLICKS, 9, id="z"),))
    with log_of(world) as built:
        assert isinstance(built, Built)
        steps = built.log.progress.steps()
        assert [(s.tick_us, s.ends, s.readmitted) for s in steps] == [
            (t.tick, t.ends, t.readmitted) for t in world.steps()
        ]
        assert built.log.stream(CLICKS).end == 3
    assert rank(None) > rank(float("nan")) > rank(1.0)
