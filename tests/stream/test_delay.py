"""How long labels take: against loops over all events, and against what a live run gives out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event as note
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError, DataError
from penstock.log.times import DAY_US, SECOND_US, parse_duration
from penstock.stream import delay_costs
from penstock.stream.delay import Delays, measure
from penstock.stream.delay_advice import advice, percent, to_json
from penstock.stream.delay_costs import Wait
from penstock.stream.labels import LabelPolicy
from penstock.stream.spec import Pipeline, StreamSpec
from tests.stream.oracle import Event, Oracle, Question, Taken, rank
from tests.stream.worlds import (
    CLICKS,
    IMPRESSIONS,
    JOIN,
    Fact,
    Task,
    Turn,
    World,
    examples,
    log_of,
    replay,
    tasks,
    worlds,
)

Rows = list[tuple[Any, ...]]


def clicks_of(i: Event, seen: Any) -> list[Event]:
    return [c for c in seen[CLICKS] if i["request_id"] is not None and c["request_id"] == i["request_id"]]


def is_one(value: Any) -> bool:
    return value is not None and value == 1


def joined(i: Event, seen: Any) -> Rows:
    """Several rows that differ: the least is the one with the least value."""
    return [(c["v"], is_one(c["v"])) for c in clicks_of(i, seen)] or [(None, False)]


QUESTIONS = (
    Question(
        "left join",
        (IMPRESSIONS, CLICKS),
        f"select i.request_id, c.ts is not null as y from impressions i left join clicks c {JOIN}",
        ("request_id", "y"),
        lambda i, seen: [(i["request_id"], bool(clicks_of(i, seen)))],
    ),
    Question(
        "as a number",
        (IMPRESSIONS, CLICKS),
        "select exists (select 1 from clicks c where c.request_id = i.request_id and c.v = 1)::integer as y "
        "from impressions i",
        ("y",),
        lambda i, seen: [(int(any(is_one(c["v"]) for c in clicks_of(i, seen))),)],
    ),
    Question(
        "turns back",
        (IMPRESSIONS, CLICKS),
        f"select count(c.click_id) % 2 = 1 as y from impressions i left join clicks c {JOIN} "
        "group by i.request_id",
        ("y",),
        lambda i, seen: [(sum(c["click_id"] is not None for c in clicks_of(i, seen)) % 2 == 1,)],
    ),
    Question(
        "several rows",
        (IMPRESSIONS, CLICKS),
        f"select c.v, coalesce(c.v = 1, false) as y from impressions i left join clicks c {JOIN}",
        ("v", "y"),
        joined,
    ),
    Question(
        "inner join",
        (IMPRESSIONS, CLICKS),
        f"select coalesce(c.v = 1, false) as y from impressions i join clicks c {JOIN}",
        ("y",),
        lambda i, seen: [(is_one(c["v"]),) for c in clicks_of(i, seen)],
    ),
    Question(
        "two streams",
        (IMPRESSIONS, CLICKS, "buys"),
        "select exists (select 1 from clicks c join buys b on b.click_id = c.click_id "
        "where c.request_id = i.request_id) as y from impressions i",
        ("y",),
        lambda i, seen: [
            (
                any(
                    b["click_id"] is not None and b["click_id"] == c["click_id"]
                    for c in clicks_of(i, seen)
                    for b in seen["buys"]
                ),
            )
        ],
    ),
)


class Loops:
    """The same figures by going through all events, for each example and moment."""

    def __init__(self, task: Task, world: World, tick: int) -> None:
        events = world.events()
        steps = [
            *world.steps(),
            Taken(
                max([tick, *(step.tick for step in world.steps())]),
                {name: len(rows) for name, rows in events.items()},
            ),
        ]
        self.task, self.pipeline = task, task.pipeline
        self.oracle = Oracle(task.pipeline, task.question, steps, events)
        self.last = len(steps) - 1
        self.reach = {name: self.pipeline.streams[name].within_us for name in task.question.streams[1:]}
        self.final_us = max(self.reach.values())
        ripe = None
        for name, within in self.reach.items():
            mark = self.oracle.mark(name, self.last)
            ripe = -(1 << 80) if mark is None else min(mark - within, ripe if ripe is not None else 1 << 80)
            if mark is None:
                break
        assert ripe is not None
        asked = [
            event
            for event in events[self.pipeline.primary]
            if self.oracle.counts_from(self.pipeline.primary, event) is not None
            and (task.from_us is None or event.time >= task.from_us)
            and (task.to_us is None or event.time < task.to_us)
        ]
        self.examples = [event for event in asked if event.time < ripe]
        self.young = len(asked) - len(self.examples)

    def state(self, event: Event, moment: int, known: Callable[[Event], int]) -> int:
        """0, 1, or -1 for no example."""
        seen: dict[str, list[Event]] = {}
        for name in self.pipeline.others:
            spec = self.pipeline.streams[name]
            seen[name] = [
                other
                for other in self.oracle.events[name]
                if self.oracle.counts_from(name, other) is not None
                and event.time - spec.before_us <= other.time <= event.time + spec.within_us
                and max(known(other), event.time) <= moment
            ]
        rows = self.task.question.rows(event, seen)
        if not rows:
            return -1
        least = min(rows, key=lambda row: [rank(value) for value in row])
        return int(least[self.task.question.columns.index("y")])

    def changes(self, event: Event, known: Callable[[Event], int]) -> list[tuple[int, int, int]]:
        """(moment, state before, state after)."""
        moments = sorted(
            {max(known(other), event.time) for name in self.pipeline.others for other in self.oracle.events[name]}
        )
        found, before = [], self.state(event, event.time, known)
        for moment in moments:
            after = self.state(event, moment, known)
            if after != before:
                found.append((moment, before, after))
            before = after
        return found

    def sealed(self, event: Event, wait: int) -> list[int]:
        """When the example's windows are sealed."""
        more = self.pipeline.window_us + wait + self.pipeline.streams[self.pipeline.primary].lateness_us
        oracle = replace_range(self.oracle)
        return [begin + more for begin in oracle.windows_of(event)]

    def wait(self, wait: int, events: Sequence[Event], known: Callable[[Event], int]) -> dict[str, float]:
        """The figures of ``Wait``."""
        never = 1 << 80
        final = {e.seq: self.state(e, never, known) for e in events}
        positives = [e for e in events if final[e.seq] == 1]
        copies = [(e, moment) for e in events for moment in self.sealed(e, wait)]
        given = [(e, self.state(e, moment, known)) for e, moment in copies]
        there = [(e, state) for e, state in given if state >= 0]
        ones = sum(state for _, state in there)
        late = [change for e, moment in copies for change in self.changes(e, known) if change[0] > moment]
        mean = len(positives) / sum(state >= 0 for state in final.values())
        windows = len(copies) / len(events)
        span = max(max(e.time for e in self.examples) - min(e.time for e in self.examples), SECOND_US)
        learnt = len(there) + sum(after >= 0 for _, _, after in late)
        return {
            "known": np.mean([self.state(e, e.time + wait, known) == 1 for e in positives]),
            "on_time": np.mean([state == 1 for e, state in given if final[e.seq] == 1]),
            "fake_negatives": sum(s == 0 and final[e.seq] == 1 for e, s in there) / len(there) if there else 0,
            "mean_label": ones / len(there) / mean if there else 0,
            "learnt": (ones + sum(after == 1 for _, _, after in late)) / max(learnt, 1) / mean,
            "corrections_per_day": len(late) / windows * DAY_US / span * len(self.examples) / len(events),
            "age_us": np.mean([moment - e.time for e, moment in copies]),
        }


def replace_range(oracle: Oracle) -> Oracle:
    oracle.from_us = oracle.to_us = None
    return oracle


def by_time(event: Event) -> int:
    return event.time


def by_arrival(event: Event) -> int:
    return max(event.time, event.arrival)


def close(found: Wait, expected: dict[str, float], *names: str) -> None:
    for name in names or tuple(expected):
        value = getattr(found, name)
        assert value == pytest.approx(expected[name], abs=1 if name == "age_us" else 1e-9), (name, found)


@st.composite
def grown(draw: st.DrawFn) -> World:
    """Impressions, and clicks and purchases of them; then an event of each long after: labels are final."""
    delays = st.sampled_from([0, 0, 0, 1, 4, 30])
    values = st.sampled_from([0.0, 1.0, 1.0, None])
    facts: list[Fact] = []
    for k in range(draw(st.integers(1, 6))):
        time = draw(st.integers(0, 12))
        facts.append(Fact(IMPRESSIONS, time, delay=draw(delays), id=f"i{k}", value=1.0))
        for n in range(draw(st.integers(0, 3))):
            click = f"c{k}{n}"
            at = time + draw(st.sampled_from([-2, 0, 1, 2, 5, 9, 20]))
            facts.append(Fact(CLICKS, at, delay=draw(delays), id=click, of=f"i{k}", value=draw(values)))
            if draw(st.booleans()):
                facts.append(Fact("buys", at + draw(st.integers(-1, 9)), delay=draw(delays), id=click, of=click))
    facts = draw(st.permutations(facts))
    cut = draw(st.integers(0, len(facts)))
    newest = draw(st.sampled_from([35, 300, 300, 300]))
    ends = tuple(Fact(name, newest, id="end") for name in (CLICKS, "buys"))
    return World(
        turns=(Turn(tuple(facts[:cut]), tick=5), Turn((*facts[cut:], *ends), tick=newest)),
        unit=draw(st.sampled_from([1_000_000, 7 * 60 * 1_000_000, 1])),
        base=draw(st.sampled_from([1_793_534_388_000_000, -10_000_000])),
        ids=draw(st.booleans()),
    )


def without_nan(world: World) -> World:
    """DuckDB 2.0 takes Parquet's least and greatest values, which leave NaN out, for those of all rows."""

    def plain(fact: Fact) -> Fact:
        return fact if fact.value == fact.value else replace(fact, value=None)

    turns = tuple(replace(turn, facts=tuple(map(plain, turn.facts))) for turn in world.turns)
    return replace(world, turns=turns, rest=tuple(map(plain, world.rest)))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
@examples(12)
@given(world=st.one_of(grown(), grown(), grown(), worlds().map(without_nan)), data=st.data())
def test_figures_are_those_of_loops(question: Question, world: World, data: st.DataObject) -> None:
    task = data.draw(tasks(world, question=question))
    if data.draw(st.sampled_from([True, True, False])):
        # Most drawn settings let no label become final.
        within = data.draw(st.sampled_from([4, 25, 60])) * world.unit
        streams = {
            name: replace(
                spec,
                lateness_us=min(spec.lateness_us, 4 * world.unit),
                skew_us=100 * world.unit,
                within_us=0 if name == IMPRESSIONS else within,
            )
            for name, spec in task.pipeline.streams.items()
        }
        task = replace(task, pipeline=replace(task.pipeline, streams=streams), from_us=None)
    tick = world.us(data.draw(st.sampled_from([0, 60, 400])))
    with log_of(world) as built:
        pipeline = replace(task.pipeline, log=built.log.place, label="y")
        loops = Loops(replace(task, pipeline=pipeline), world, tick)
        asked: dict[str, Any] = {"from_us": task.from_us, "to_us": task.to_us, "tick_us": tick, "threads": 1}
        if loops.final_us == 0:
            with pytest.raises(ConfigError, match="within"):
                measure(pipeline, **asked)
            return
        positives = [e for e in loops.examples if loops.state(e, 1 << 80, by_time) == 1]
        if not positives:
            with pytest.raises(DataError):
                measure(pipeline, **asked)
            return
        found = measure(pipeline, **asked)
    note(f"basis {found.basis}, {len(positives)} positives")
    assert (found.examples, found.measured, found.positives) == (
        len(loops.examples),
        len(loops.examples),
        len(positives),
    )
    assert found.young == loops.young
    assert found.current.wait_us == pipeline.wait_us
    live = [e for e in loops.examples if e.arrival <= e.time + loops.final_us]
    for wait in found.waits:
        event = loops.wait(wait.wait_us, loops.examples, by_time)
        if found.basis == "event time":
            close(wait, event)
            assert wait.arrived is None
            if any(loops.state(e, 1 << 80, by_arrival) == 1 for e in live) and 2 * len(live) >= len(
                loops.examples
            ):
                arrived = loops.wait(wait.wait_us, live, by_arrival)
                assert abs(arrived["on_time"] - wait.on_time) <= 0.005
        else:
            close(wait, event, "known")
            arrived = loops.wait(wait.wait_us, live, by_arrival)
            assert wait.arrived == pytest.approx(arrived.pop("known"))
            close(wait, arrived)


# What a live run gives out.


def live_world(seed: int, seconds: int) -> World:
    """An impression a second, a step after each; clicks come as they happen."""
    rng = np.random.default_rng(seed)
    clicks: dict[int, list[Fact]] = {}
    for k in range(seconds):
        if rng.random() < 0.5:
            at = k + int(rng.exponential(12.0))
            clicks.setdefault(at, []).append(Fact(CLICKS, at, id=f"c{k}", of=f"i{k}"))
    turns = [Turn((*clicks.get(k, ()), Fact(IMPRESSIONS, k, id=f"i{k}")), tick=k) for k in range(seconds)]
    return World(turns=tuple(turns))


def test_on_time_is_the_share_that_a_live_run_gives_out() -> None:
    world = live_world(3, 60)
    question = QUESTIONS[0]
    # Examples of a stretch all of whose windows were sealed while the log grew, and are final.
    begin, end = world.us(6), world.us(36)
    with log_of(world) as built:
        for slide in (None, 2):
            pipeline = Pipeline(
                name="main",
                log=built.log.place,
                streams={
                    IMPRESSIONS: StreamSpec(lateness_us=3 * SECOND_US),
                    CLICKS: StreamSpec(lateness_us=0, within_us=16 * SECOND_US),
                },
                query=question.sql,
                window_us=6 * SECOND_US,
                slide_us=None if slide is None else slide * SECOND_US,
                label_wait_us=2 * SECOND_US,
                label="y",
            )
            found = measure(pipeline, from_us=begin, to_us=end, tick_us=world.us(59), threads=1)
            with replay(built.log, Task(question, pipeline)) as made:
                rows = [row for piece in made.run() for row in piece.rows.to_pylist()]
            final = {row["_seq"]: row["y"] for row in rows if row["_kind"] != "retraction"}
            first = [
                row for row in rows if row["_kind"] == "first" and begin <= row["_time"].timestamp() * 1e6 < end
            ]
            changed = [
                row
                for row in rows
                if row["_kind"] == "correction" and begin <= row["_time"].timestamp() * 1e6 < end
            ]
            windows = 1 if slide is None else 3
            assert len(first) == 30 * windows and found.examples == 30
            on_time = [row["y"] for row in first if final[row["_seq"]]]
            assert 0.3 < np.mean(on_time) < 0.95
            assert found.basis == "event time" and found.current.on_time == pytest.approx(np.mean(on_time))
            assert found.current.mean_label == pytest.approx(
                np.mean([row["y"] for row in first]) / np.mean([final[row["_seq"]] for row in first])
            )
            a_day = len(changed) / windows / (29 / 86_400)
            assert found.current.corrections_per_day == pytest.approx(a_day)


# Small logs by hand.

PIPELINE = Pipeline(
    name="main",
    log="",
    streams={
        IMPRESSIONS: StreamSpec(),
        CLICKS: StreamSpec(within_us=parse_duration("1h", ""), lateness_us=0),
    },
    query=QUESTIONS[0].sql,
    window_us=10 * SECOND_US,
    label_wait_us=20 * SECOND_US,
    label="y",
)
TICK_S = 4 * 3600


def of(
    delays: Sequence[int | None],
    *,
    pipeline: Pipeline = PIPELINE,
    arrive: int = 0,
    loaded: int = 0,
    newest: int = 3 * 3600,
    **options: Any,
) -> Delays:
    """Measure examples at 0, 10, 20 … seconds whose clicks come so much later; None for no click.

    Clicks arrive later by ``arrive`` seconds, and everything by ``loaded``. A last event says how far clicks are
    complete.
    """
    facts = [Fact(IMPRESSIONS, 10 * k, delay=loaded, id=f"i{k}") for k in range(len(delays))]
    clicks = [
        Fact(CLICKS, 10 * k + d, delay=max(arrive, loaded), id=f"c{k}", of=f"i{k}")
        for k, d in enumerate(delays)
        if d is not None
    ]
    end = Fact(CLICKS, newest, id="end", of="nothing")
    world = World(turns=(Turn((*facts, *clicks, end), tick=newest + loaded),), base=1_790_000_000_000_000)
    with log_of(world) as built:
        return measure(
            replace(pipeline, log=built.log.place), tick_us=world.us(newest + loaded), threads=1, **options
        )


def at(found: Delays, wait: str) -> Wait:
    return next(each for each in found.waits if each.wait_us == parse_duration(wait, ""))


def test_choices_are_round_and_shortest() -> None:
    found = of([*range(1, 101), *[None] * 100])
    # Windows of 10 s begin with the examples, so labels are seen 10 s and label_wait after the event.
    assert [found.choice(share) and found.choice(share).wait_us for share in (0.9, 0.95, 0.99)] == [
        80 * SECOND_US,
        85 * SECOND_US,
        90 * SECOND_US,
    ]
    assert (found.positives, found.examples, found.young) == (100, 200, 0)
    assert (at(found, "20s").known, at(found, "20s").on_time) == (0.20, 0.30)
    assert at(found, "20s") is found.current
    assert found.current.fake_negatives == pytest.approx(70 / 200)
    assert found.current.mean_label == pytest.approx(0.3)
    # 200 examples, of which 70 are learnt again: 100 positives of 270, for a half.
    assert found.current.learnt == pytest.approx(100 / 270 / 0.5)
    assert found.current.age_us == 30 * SECOND_US
    assert found.current.corrections_per_day == pytest.approx(70 / (1990 / 86_400))
    assert at(found, "0s").known == 0 and at(found, "1h").on_time == 1
    assert found.toml(found.current) == (
        'label_wait = "20s"',
        'late_positives = "duplicate"',
        "on_time = 0.3",
    )
    assert found.toml(at(found, "1h")) == ('label_wait = "1h"',)


def test_lines_can_be_put_into_a_job() -> None:
    import tomllib

    found = of([5, 50, 500, None])
    lines = tomllib.loads("\n".join(found.toml(found.current)))
    assert LabelPolicy(mode=lines["late_positives"], on_time=lines["on_time"]).on_time == 0.333
    assert parse_duration(lines["label_wait"], "") == PIPELINE.label_wait_us


def test_arrival_counts_where_it_differs() -> None:
    same = of([5, 50, 500, None])
    assert same.basis == "event time" and same.waits[0].arrived is None and same.notes[-1].startswith("of 3 pos")
    found = of([5, 50, 500, None], arrive=60)
    assert found.basis == "arrival"
    assert (at(found, "1m").known, at(found, "1m").arrived, at(found, "1m").on_time) == (2 / 3, 0, 1 / 3)


def test_loaded_history_is_measured_by_event_time() -> None:
    found = of([5, 50, 500, None], loaded=2 * 3600)
    assert found.basis == "event time" and at(found, "1m").known == 2 / 3
    assert any("all examples came more than 1h after" in note for note in found.notes)


def test_what_is_young_is_left_out() -> None:
    """Examples stand at 0, 10 and 20 s; clicks are complete up to an hour and 15 s."""
    found = of([1, 100, 1], newest=3615)
    assert (found.examples, found.young, found.positives) == (2, 1, 2)
    assert any(note.startswith("1 examples were left out") for note in found.notes)
    with pytest.raises(DataError, match=r"label of none of 3 examples is final.* complete up to .*--final-after"):
        of([1, 100, 1], newest=3600)
    with pytest.raises(DataError, match="label of none of 2 examples is final"):
        of([1, 1], newest=40)
    found = of([1, 100, 1], newest=120, final_after_us=90 * SECOND_US)
    assert (found.examples, found.young, found.positives) == (3, 0, 2)
    assert any("taken as final after 1m30s" in note for note in found.notes)


def test_labels_that_cannot_be_measured() -> None:
    for label, message in (
        (None, "features.label is missing"),
        ("z", "features.label: the query has no column 'z'"),
    ):
        with pytest.raises(ConfigError, match=message):
            of([1], pipeline=replace(PIPELINE, label=label))
    with pytest.raises(ConfigError, match="column 'request_id' is of type string"):
        of([1], pipeline=replace(PIPELINE, label="request_id"))
    with pytest.raises(DataError, match="none of 2 examples is positive"):
        of([None, None])
    with pytest.raises(DataError, match="has no events there"):
        of([1], from_us=1 << 60)
    two = f"select 2 * count(c.ts) as y from impressions i left join clicks c {JOIN} group by i.request_id"
    with pytest.raises(DataError, match="label 'y' of event 1 of impressions is 2 30s after it; allowed: 0 or 1"):
        of([None, 30], pipeline=replace(PIPELINE, query=two))
    null = f"select c.v as y from impressions i left join clicks c {JOIN}"
    with pytest.raises(DataError, match="label 'y' of event 0 of impressions is missing 0s after it"):
        of([30], pipeline=replace(PIPELINE, query=null))
    for streams in (
        {IMPRESSIONS: StreamSpec(), CLICKS: StreamSpec(before_us=5)},
        {IMPRESSIONS: StreamSpec()},
    ):
        query = QUESTIONS[0].sql if CLICKS in streams else "select i.u > 0 as y from impressions i"
        with pytest.raises(ConfigError, match="has `within`"):
            of([1], pipeline=replace(PIPELINE, streams=streams, query=query))


def test_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="impressions"):
        measure(replace(PIPELINE, log=str(tmp_path)))
    with log_of(World(turns=())) as built, pytest.raises(DataError, match="impressions has no events there"):
        measure(replace(PIPELINE, log=built.log.place))


def test_a_sample_is_the_same_each_time() -> None:
    delays = [k % 90 + 1 if k % 3 else None for k in range(600)]
    whole, drawn = of(delays), of(delays, sample=300)
    assert (whole.examples, whole.measured) == (drawn.examples, 600) == (600, 600)
    # Neighbours are spread evenly.
    assert 295 <= drawn.measured <= 305
    assert any("of 600 examples" in note for note in drawn.notes)
    assert to_json(replace(drawn, pipeline=PIPELINE)) == to_json(
        replace(of(delays, sample=300), pipeline=PIPELINE)
    )
    assert drawn.current.on_time == pytest.approx(whole.current.on_time, abs=0.1)
    assert drawn.current.corrections_per_day == pytest.approx(whole.current.corrections_per_day, rel=0.15)


def test_an_aggregate_that_the_query_names_counts() -> None:
    """Without its values no example would pass."""
    from penstock.stream.spec import Aggregate

    before = Aggregate(name="seen", stream=IMPRESSIONS, by=("u",), over_us=SECOND_US)
    query = f"select i.seen, c.ts is not null as y from impressions i left join clicks c {JOIN} where i.seen = 0"
    found = of([1, None], pipeline=replace(PIPELINE, aggregates=(before,), query=query))
    assert (found.examples, found.positives) == (2, 1)


def test_advice() -> None:
    fast = [*range(1, 101)]
    slow = replace(PIPELINE, label_wait_us=0)
    assert advice(of(fast)) == (
        'label_wait = "20s" has 30.0 % of the positives on time: put late_positives = "duplicate" and '
        'on_time = 0.300, or wait "1m25s" for 95.0 %.'
    )
    assert advice(of([3600] * 3, pipeline=slow)) == (
        'label_wait = "0s" has 0.0 % of the positives on time, or wait "1h" for 100.0 %.'
    )
    long = replace(PIPELINE, label_wait_us=parse_duration("1h", ""))
    assert advice(of(fast, pipeline=long)) == (
        'label_wait = "1h" has 100.0 % of the positives on time; "1m30s" would have 100.0 %.'
    )
    right = replace(PIPELINE, label_wait_us=90 * SECOND_US)
    assert advice(of(fast, pipeline=right)).endswith("100.0 % of the positives on time: leave it.")
    weighted = replace(PIPELINE, late=LabelPolicy(mode="importance", on_time=0.31))
    assert 'late_positives = "importance" makes up for the others: leave it, or wait' in advice(
        of(fast, pipeline=weighted)
    )
    wrong = replace(PIPELINE, late=LabelPolicy(mode="duplicate", on_time=0.6))
    assert "but on_time = 0.6: put on_time = 0.300" in advice(of(fast, pipeline=wrong))
    waiting = replace(PIPELINE, late=LabelPolicy(mode="wait"))
    assert advice(of(fast, pipeline=waiting)) == (
        'late_positives = "wait" waits 1h; label_wait = "1m25s" has 95.0 % of the positives on time, and '
        'late_positives = "duplicate" with on_time = 0.950 makes up for the others.'
    )


def test_ladders() -> None:
    for limit in (1, 7, 10**5, 3 * SECOND_US, 25 * SECOND_US, 3600 * SECOND_US, 30 * DAY_US):
        for made in (delay_costs.ladder(limit), delay_costs.rounds(limit)):
            assert made[0] == 0 and made[-1] == limit and made == sorted(set(made))
        assert len(delay_costs.ladder(limit)) < 50 and len(delay_costs.rounds(limit)) < 400
    rounds = delay_costs.rounds(DAY_US)
    assert max(b / a for a, b in zip(rounds[11:], rounds[12:], strict=False)) < 1.12


def test_percent() -> None:
    assert [percent(x) for x in (0, 0.0001, 0.5, 0.9999, 1)] == ["0.0 %", "<0.1 %", "50.0 %", ">99.9 %", "100.0 %"]
