"""Small logs and pipelines over them, drawn by Hypothesis, and how they are built and read.

Times are whole numbers of a unit, few and close together, so that ties and boundaries are the rule.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from penstock.log import Log
from penstock.stream.evaluator import EXTRA
from penstock.stream.labels import LabelPolicy
from penstock.stream.replay import Replay
from penstock.stream.spec import Pipeline, StreamSpec
from tests.stream.oracle import Event, Example, Oracle, Question, Taken, rank

TIMESTAMP = pa.timestamp("us", tz="UTC")
NOON = 1_793_534_400_000_000
"""2026-11-01, 12:00: events lie on both sides of it, so in files of two hours."""

SCHEMAS = {
    "impressions": pa.schema([("ts", TIMESTAMP), ("request_id", pa.string()), ("u", pa.int64())]),
    "clicks": pa.schema(
        [("ts", TIMESTAMP), ("click_id", pa.string()), ("request_id", pa.string()), ("v", pa.float64())]
    ),
    "buys": pa.schema(
        [("at", TIMESTAMP), ("buy_id", pa.string()), ("click_id", pa.string()), ("price", pa.int64())]
    ),
}
TIME = {"impressions": "ts", "clicks": "ts", "buys": "at"}
ID = {"impressions": "request_id", "clicks": "click_id", "buys": "buy_id"}


@dataclass(frozen=True)
class Fact:
    """An event before it is in a log; times in units."""

    stream: str
    time: int
    delay: int = 0
    """Of the arrival; below 0 the event's clock is ahead."""
    source: str = "a"
    id: str | None = None
    of: str | None = None
    """What it belongs to: a click's impression, a purchase's click."""
    value: float | None = None
    readmit: int | None = None
    """So many steps after the one that brings it; below 0 it has not come, and nothing happens."""


@dataclass(frozen=True)
class Turn:
    """Events, and the step that takes them in."""

    facts: tuple[Fact, ...]
    tick: int


@dataclass(frozen=True)
class World:
    """What comes, in order."""

    turns: tuple[Turn, ...]
    rest: tuple[Fact, ...] = ()
    """What no step knows."""
    unit: int = 1_000_000
    base: int = NOON
    ids: bool = True
    """Whether streams have id columns."""
    twice: bool = False
    """Whether what is readmitted is so again, two steps later."""

    def us(self, units: int) -> int:
        return self.base + units * self.unit

    def batches(self) -> list[tuple[list[list[Fact]], Turn | None]]:
        """What is appended at once, a stream and source each, and the step after it."""
        found: list[tuple[list[list[Fact]], Turn | None]] = []
        for facts, turn in [*((turn.facts, turn) for turn in self.turns), (self.rest, None)]:
            parts: dict[tuple[str, str], list[Fact]] = {}
            for fact in facts:
                parts.setdefault((fact.stream, fact.source), []).append(fact)
            found.append(([parts[key] for key in sorted(parts)], turn))
        return found

    def steps(self) -> list[Taken]:
        """The steps, ticks put right."""
        ends: Counter[str] = Counter(dict.fromkeys(SCHEMAS, 0))
        readmitted: list[dict[str, set[int]]] = [{} for _ in self.turns]
        known = []
        for number, (parts, turn) in enumerate(self.batches()):
            for part in parts:
                for fact in part:
                    again = [] if fact.readmit is None else [fact.readmit, fact.readmit + 2][: 1 + self.twice]
                    for later in again:
                        if 0 <= number + later < len(self.turns):
                            readmitted[number + later].setdefault(fact.stream, set()).add(ends[fact.stream])
                    ends[fact.stream] += 1
            if turn is not None:
                known.append(dict(ends))
        ticks: list[int] = []
        for turn in self.turns:
            ticks.append(max([self.us(turn.tick), *ticks]))
        return [
            Taken(tick, end, {name: sorted(seqs) for name, seqs in again.items()})
            for tick, end, again in zip(ticks, known, readmitted, strict=True)
        ]

    def events(self) -> dict[str, list[Event]]:
        """All events, as they will stand in the streams."""
        found: dict[str, list[Event]] = {name: [] for name in SCHEMAS}
        for parts, _ in self.batches():
            for part in parts:
                for fact in part:
                    found[fact.stream].append(
                        Event(
                            seq=len(found[fact.stream]),
                            time=self.us(fact.time),
                            arrival=self.us(fact.time + fact.delay),
                            source=fact.source,
                            id=fact.id if self.ids else None,
                            fields=fields_of(fact, self.us(fact.time)),
                        )
                    )
        return found


def fields_of(fact: Fact, time_us: int) -> dict[str, Any]:
    """An event's own columns."""
    if fact.stream == "impressions":
        u = None if fact.value is None else int(fact.value) if fact.value == fact.value else -1
        return {"ts": time_us, "request_id": fact.id, "u": u}
    if fact.stream == "clicks":
        return {"ts": time_us, "click_id": fact.id, "request_id": fact.of, "v": fact.value}
    price = int(fact.value) if fact.value is not None and fact.value == fact.value else None
    return {"at": time_us, "buy_id": fact.id, "click_id": fact.of, "price": price}


class Built:
    """A world as a log, built turn by turn."""

    def __init__(self, world: World, place: str) -> None:
        self.world, self.log = world, Log(place)
        for name, schema in SCHEMAS.items():
            self.log.create(name, list(schema), time=TIME[name], id=ID[name] if world.ids else None)
        self._left = [*zip(world.batches(), [*world.steps(), None], strict=True)]

    def turn(self) -> None:
        """Append what comes next, and take the step after it."""
        (parts, _), taken = self._left.pop(0)
        for part in parts:
            name = part[0].stream
            times = [self.world.us(fact.time) for fact in part]
            rows = [fields_of(fact, time) for fact, time in zip(part, times, strict=True)]
            columns = {
                field.name: pa.array([row[field.name] for row in rows], _plain(field.type)).cast(field.type)
                for field in SCHEMAS[name]
            }
            arrival = pa.array([self.world.us(fact.time + fact.delay) for fact in part], pa.int64())
            self.log.stream(name).append(pa.table(columns), source=part[0].source, arrival=arrival.cast(TIMESTAMP))
        if taken is not None:
            self.log.step(tick_us=taken.tick, readmit=dict(taken.readmitted))

    def finish(self) -> Built:
        while self._left:
            self.turn()
        return self


def _plain(type_: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_timestamp(type_) else type_


@contextlib.contextmanager
def log_of(world: World, *, finish: bool = True) -> Iterator[Built]:
    """The world as a log in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory() as place:
        built = Built(world, place)
        yield built.finish() if finish else built


def examples_of(tables: Sequence[pa.Table]) -> list[Example]:
    """Rows that came out, as the oracle writes them."""
    found = []
    for table in tables:
        for n, field in enumerate(table.schema):
            if pa.types.is_timestamp(field.type):
                table = table.set_column(n, field.name, table[n].cast(pa.int64()))
        own = [name for name in table.column_names if name not in EXTRA.names]
        found += [
            Example(
                values=tuple(row[name] for name in own),
                kind=row["_kind"],
                time=row["_time"],
                window=row["_window"],
                age=row["_age"],
                seq=row["_seq"],
                step=row["_step"],
            )
            for row in table.to_pylist()
        ]
    return found


def comparable(examples: Sequence[Example]) -> list[Example]:
    """Equal where the examples are, NaN included."""
    return [replace(each, values=tuple(rank(value) for value in each.values)) for each in examples]


def run(log: Log, task: Task, **options: Any) -> list[Example]:
    """All that a task gives in one go."""
    with replay(log, task, **options) as made:
        return examples_of([examples.rows for examples in made.run()])


@contextlib.contextmanager
def replay(log: Log, task: Task, **options: Any) -> Iterator[Replay]:
    made = Replay(
        log, task.pipeline, from_us=task.from_us, to_us=task.to_us, threads=options.pop("threads", 1), **options
    )
    try:
        yield made
    finally:
        made.close()


IMPRESSIONS, CLICKS, BUYS = "impressions", "clicks", "buys"

# Queries.


def _matching(rows: Sequence[Event], column: str, value: Any) -> list[Event]:
    return [row for row in rows if value is not None and row[column] == value]


def _clicks(i: Event, seen: Any) -> list[Event]:
    return _matching(seen["clicks"], "request_id", i["request_id"])


def _own(i: Event) -> tuple[Any, ...]:
    return (i["ts"], i["request_id"], i["u"])


def _left(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    return [(*_own(i), True) for _ in _clicks(i, seen)] or [(*_own(i), False)]


def _left_values(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    clicks = [c for c in _clicks(i, seen) if c["ts"] >= i["ts"]]
    return [(i["request_id"], c["v"], c["click_id"]) for c in clicks] or [(i["request_id"], None, None)]


def _inner(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    return [(i["request_id"], c["ts"], c["click_id"]) for c in _clicks(i, seen)]


def _grouped(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    clicks = _clicks(i, seen)
    ids = [c["click_id"] for c in clicks if c["click_id"] is not None]
    values = [c["v"] for c in clicks if c["v"] is not None]
    last = max([c["ts"] for c in clicks], default=None)
    return [(i["request_id"], len(ids), last, max(values, key=rank, default=None), sorted(ids) or None)]


def _grouped_twice(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    groups: dict[Any, list[int]] = {}
    names = {}
    for c in _clicks(i, seen):
        groups.setdefault(c["click_id"], [])
        names[c["click_id"]] = c["click_id"]
        for b in _matching(seen["buys"], "click_id", c["click_id"]):
            if b["price"] is not None:
                groups[c["click_id"]].append(b["price"])
    if not groups:
        groups, names = {None: []}, {None: None}
    return [(sum(prices) if prices else None, names[key]) for key, prices in groups.items()]


def _exists(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    return [(i["request_id"], any(c["v"] is not None and c["v"] == 1 for c in _clicks(i, seen)))]


def _not_exists(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    return [] if _clicks(i, seen) else [(i["request_id"], i["u"])]


def _chain(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for c in _clicks(i, seen) or [None]:
        buys = _matching(seen["buys"], "click_id", c["click_id"]) if c is not None else []
        found += [(i["u"], c["v"] if c is not None else None, b["price"], b["at"]) for b in buys] or [
            (i["u"], c["v"] if c is not None else None, None, None)
        ]
    return found


def _chain_inner(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    return [
        (c["click_id"], b["buy_id"], b["price"])
        for c in _clicks(i, seen)
        for b in _matching(seen["buys"], "click_id", c["click_id"])
    ]


def _alone(i: Event, seen: Any) -> list[tuple[Any, ...]]:
    return [_own(i)] if i["u"] is not None and i["u"] > 0 else []


JOIN = "on c.request_id = i.request_id"
QUESTIONS = (
    Question(
        "left join",
        (IMPRESSIONS, CLICKS),
        f"select i.*, c.ts is not null as clicked from impressions i left join clicks c {JOIN}",
        ("ts", "request_id", "u", "clicked"),
        _left,
    ),
    Question(
        "left join, values of the click",
        (IMPRESSIONS, CLICKS),
        f"select i.request_id, c.v, c.click_id from impressions i left join clicks c {JOIN} and c.ts >= i.ts",
        ("request_id", "v", "click_id"),
        _left_values,
    ),
    Question(
        "inner join",
        (IMPRESSIONS, CLICKS),
        f"select i.request_id, c.ts as clicked_at, c.click_id from impressions i join clicks c {JOIN}",
        ("request_id", "clicked_at", "click_id"),
        _inner,
    ),
    Question(
        "grouped",
        (IMPRESSIONS, CLICKS),
        "select i.request_id, count(c.click_id) as clicks, max(c.ts) as last, max(c.v) as most, "
        "list(c.click_id order by c.click_id) filter (where c.click_id is not null) as ids "
        f"from impressions i left join clicks c {JOIN} group by i.request_id",
        ("request_id", "clicks", "last", "most", "ids"),
        _grouped,
    ),
    Question(
        "grouped by the click too",
        (IMPRESSIONS, CLICKS, BUYS),
        f"select sum(b.price) as paid, c.click_id from impressions i left join clicks c {JOIN} "
        "left join buys b on b.click_id = c.click_id group by i.request_id, c.click_id",
        ("paid", "click_id"),
        _grouped_twice,
    ),
    Question(
        "exists",
        (IMPRESSIONS, CLICKS),
        "select i.request_id, "
        "exists (select 1 from clicks c where c.request_id = i.request_id and c.v = 1) as one from impressions i",
        ("request_id", "one"),
        _exists,
    ),
    Question(
        "not exists",
        (IMPRESSIONS, CLICKS),
        "select i.request_id, i.u from impressions i "
        "where not exists (select 1 from clicks c where c.request_id = i.request_id)",
        ("request_id", "u"),
        _not_exists,
    ),
    Question(
        "chain",
        (IMPRESSIONS, CLICKS, BUYS),
        f"select i.u, c.v, b.price, b.at from impressions i left join clicks c {JOIN} "
        "left join buys b on b.click_id = c.click_id",
        ("u", "v", "price", "at"),
        _chain,
    ),
    Question(
        "chain of inner joins",
        (IMPRESSIONS, CLICKS, BUYS),
        f"select c.click_id, b.buy_id, b.price from impressions i join clicks c {JOIN} "
        "join buys b on b.click_id = c.click_id",
        ("click_id", "buy_id", "price"),
        _chain_inner,
    ),
    Question(
        "alone", (IMPRESSIONS,), "select i.* from impressions i where i.u > 0", ("ts", "request_id", "u"), _alone
    ),
)
LEFT_JOIN = QUESTIONS[0]


# Strategies.


@dataclass(frozen=True)
class Task:
    """A pipeline, and the part of time that it is asked for."""

    question: Question
    pipeline: Pipeline
    from_us: int | None = None
    to_us: int | None = None

    def oracle(self, world: World) -> Oracle:
        return Oracle(self.pipeline, self.question, world.steps(), world.events(), self.from_us, self.to_us)


TIMES = st.integers(0, 24)
VALUES = st.sampled_from([0.0, 1.0, 2.0, None, float("nan")])


@st.composite
def facts(draw: st.DrawFn, *, readmit: bool = True) -> Fact:
    """An event; impressions and clicks share few ids, so that they meet, and meet again."""
    stream = draw(st.sampled_from([IMPRESSIONS] * 2 + [CLICKS] * 3 + [BUYS]))
    ids = {IMPRESSIONS: "abcde", CLICKS: "klmno", BUYS: "wxyz"}
    return Fact(
        stream=stream,
        time=draw(TIMES),
        delay=draw(st.sampled_from([0, 0, 0, 0, 0, 1, 4, 30, -2, -3, -40])),
        source=draw(st.sampled_from("aaaab")),
        id=draw(st.sampled_from([*ids[stream], *ids[stream], None])),
        of=draw(
            st.sampled_from([*({IMPRESSIONS: "", CLICKS: ids[IMPRESSIONS], BUYS: ids[CLICKS]}[stream] * 2), None])
        ),
        value=draw(VALUES),
        readmit=draw(st.sampled_from([None, None, None, None, 0, 1, 2, 3, -1])) if readmit else None,
    )


@st.composite
def turns(draw: st.DrawFn, *, readmit: bool = True) -> tuple[Turn, ...]:
    """Steps. Impressions go on in time, and what belongs to them comes with them or steps later."""
    found: list[Turn] = []
    tick = now = 0
    for _ in range(draw(st.sampled_from([4, 3, 5, 6, 2]))):
        tick += draw(st.sampled_from([0, 1, 5, 10, 40]))
        moved = now if draw(st.booleans()) else 0
        brought = [
            replace(fact, time=fact.time + moved) if fact.stream == IMPRESSIONS else fact
            for fact in draw(st.lists(facts(readmit=readmit), max_size=6))
        ]
        before = [fact for turn in found for fact in turn.facts] + brought
        if before and draw(st.integers(0, 3)):
            brought += [_answer(draw, draw(st.sampled_from(before))) for _ in range(draw(st.integers(1, 2)))]
        if before and draw(st.booleans()):
            # What came comes again, as far away as what is the same may be, and a bit farther.
            fact = draw(st.sampled_from(before))
            time = fact.time + draw(st.sampled_from([0, 0, 3, -3, 4]))
            brought.append(replace(fact, time=time, delay=draw(st.sampled_from([fact.delay, 0])), readmit=None))
        if draw(st.integers(0, 3)):
            now += draw(st.sampled_from([25, 6, 40]))
            brought.append(Fact(IMPRESSIONS, now, id=draw(st.sampled_from([None, "f"])), value=1.0))
        found.append(Turn(tuple(brought), tick))
    return tuple(found)


def _answer(draw: st.DrawFn, fact: Fact) -> Fact:
    """A click on an impression, a purchase after a click."""
    stream, ids = (CLICKS, "klmno") if fact.stream == IMPRESSIONS else (BUYS, "wxyz")
    time = fact.time + draw(st.sampled_from([1, 0, 3, 4, 9, -3]))
    return Fact(stream, time, id=draw(st.sampled_from(ids)), of=fact.id, value=draw(VALUES))


@st.composite
def worlds(draw: st.DrawFn, *, readmit: bool = True) -> World:
    """A log."""
    return World(
        turns=draw(turns(readmit=readmit)),
        rest=tuple(draw(st.lists(facts(), max_size=2))),
        unit=draw(st.sampled_from([1_000_000, 1_000_000, 7 * 60 * 1_000_000, 1])),
        # Some lie before 1970.
        base=draw(st.sampled_from([NOON - 12_000_000, NOON, -10_000_000])),
        ids=draw(st.sampled_from([True, True, True, False])),
        twice=draw(st.booleans()),
    )


@st.composite
def specs(draw: st.DrawFn, unit: int, *, primary: bool) -> StreamSpec:
    idle = draw(st.sampled_from([None, None, None, 0, 1, 5, 30]))
    return StreamSpec(
        lateness_us=draw(st.sampled_from([0, 0, 0, 1, 4] if primary else [30, 0, 1, 4, 100])) * unit,
        idle_us=None if idle is None else idle * unit,
        skew_us=draw(st.sampled_from([2, 100, 0])) * unit,
        within_us=0 if primary else draw(st.sampled_from([100, 9, 3, 0, 100])) * unit,
        before_us=0 if primary else draw(st.sampled_from([3, 100, 0])) * unit,
        dedup_us=draw(st.sampled_from([0, 3, 1000])) * unit,
    )


@st.composite
def tasks(draw: st.DrawFn, world: World, *, question: Question | None = None, bounded: bool = True) -> Task:
    """Something to be asked of a log."""
    question = draw(st.sampled_from(QUESTIONS)) if question is None else question
    names = draw(st.sampled_from([question.streams, tuple(SCHEMAS)]))
    window, slide = draw(st.sampled_from([(4, None), (1, None), (10, None), (4, 2), (6, 2), (6, 6), (10, 5)]))
    pipeline = Pipeline(
        name="main",
        log="",
        streams={name: draw(specs(world.unit, primary=name == IMPRESSIONS)) for name in names},
        query=question.sql,
        window_us=window * world.unit,
        slide_us=None if slide is None else slide * world.unit,
        label_wait_us=draw(st.sampled_from([0, 0, 3, 10])) * world.unit,
        late=LabelPolicy(mode=draw(st.sampled_from(["none"] * 7 + ["wait"]))),
    )
    whole = (None, None)
    part = (
        draw(st.sampled_from([whole] * 8 + [(3, None), (None, 30), (0, 60), (8, 40), (20, 3)]))
        if bounded
        else whole
    )
    begin, end = part
    return Task(
        question,
        pipeline,
        from_us=None if begin is None else world.us(begin),
        to_us=None if end is None else world.us(end),
    )


def examples(number: int) -> settings:
    """So many examples, times ``PENSTOCK_STREAM_EXAMPLES`` for a long campaign."""
    factor = int(os.environ.get("PENSTOCK_STREAM_EXAMPLES", "1"))
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=number * factor, deadline=None, suppress_health_check=checks)
