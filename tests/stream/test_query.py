"""The query of a pipeline: what the rewritten SQL gives, which rows it finds affected, and what is refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.stream.query import Query, Reach

REACHES = {
    "impressions": Reach(columns=("request_id", "user_id", "score")),
    "clicks": Reach(columns=("click_id", "request_id", "kind", "price"), within_us=20, before_us=3),
    "conversions": Reach(columns=("conversion_id", "click_id", "request_id", "value"), within_us=40),
}
STEPS = 6
Row = dict[str, Any]
Made = dict[str, list[Row]]


def parse(sql: str) -> Query:
    return Query.parse(sql, primary="impressions", reaches=REACHES)


def make(seed: int) -> Made:
    """Few keys, nulls among them, so that rows meet; times around the limits of the reaches."""
    draw = random.Random(seed)

    def key(of: int) -> int | None:
        return None if draw.random() < 0.1 else draw.randrange(of)

    made: Made = {name: [] for name in REACHES}
    for n in range(12):
        made["impressions"].append(
            {"_seq": n, "_t": draw.randrange(60), "_step": draw.randrange(STEPS), "request_id": key(5)}
            | {"user_id": key(3), "score": draw.randrange(4)}
        )
    for n in range(14):
        made["clicks"].append(
            {"_seq": n, "_t": draw.randrange(80), "_step": draw.randrange(STEPS), "click_id": key(6)}
            | {"request_id": key(5), "kind": draw.choice(["a", "b"]), "price": draw.randrange(5)}
        )
    for n in range(14):
        made["conversions"].append(
            {"_seq": n, "_t": draw.randrange(100), "_step": draw.randrange(STEPS), "conversion_id": n}
            | {"click_id": key(6), "request_id": key(5), "value": draw.randrange(5)}
        )
    return made


TYPES = {"kind": pa.string(), "_step": pa.int32(), "_as_of": pa.int32()}


def fill(database: duckdb.DuckDBPyConnection, name: str, columns: list[str], rows: list[Row]) -> None:
    table = pa.table(
        {column: pa.array([row[column] for row in rows], TYPES.get(column, pa.int64())) for column in columns}
    )
    database.register("given", table)
    database.execute(f"create or replace table {name} as from given").fetchall()


def load(database: duckdb.DuckDBPyConnection, made: Made) -> None:
    """Each row of the primary stream once for each version."""
    for name, reach in REACHES.items():
        columns = [*reach.columns, "_t", "_seq", "_step"]
        rows = made[name]
        if name == "impressions":
            columns.append("_as_of")
            rows = [row | {"_as_of": version} for row in rows for version in range(STEPS)]
        fill(database, name, columns, rows)


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as opened:
        yield opened


Oracle = Callable[[Row, list[Row], list[Row]], list[tuple[Any, ...]]]


def equal(left: Any, right: Any) -> bool:
    return left is not None and left == right


def of(i: Row, rows: list[Row]) -> list[Row]:
    return [row for row in rows if equal(row["request_id"], i["request_id"])]


def or_none(rows: list[Row]) -> list[Row]:
    return rows or [dict.fromkeys(("click_id", "kind", "price", "value"))]


def chain(i: Row, clicks: list[Row], conversions: list[Row]) -> list[tuple[Any, ...]]:
    return [
        (c["click_id"], v["value"])
        for c in or_none(of(i, clicks))
        for v in or_none([v for v in conversions if equal(v["click_id"], c["click_id"])])
    ]


def first_kind(i: Row, clicks: list[Row]) -> str | None:
    return min(((c["price"], c["_seq"], c["kind"]) for c in of(i, clicks)), default=(0, 0, None))[2]


def in_list(value: Any, values: list[Any]) -> bool | None:
    if not values:
        return False
    if value is None:
        return None
    return True if value in values else None if None in values else False


CASES: dict[str, tuple[str, Oracle]] = {
    "left": (
        "select i.request_id, c.click_id is not null as clicked from impressions i "
        "left join clicks c on c.request_id = i.request_id and c.price between i.score and i.score + 2",
        lambda i, c, v: [
            (i["request_id"], row["click_id"] is not None)
            for row in or_none([r for r in of(i, c) if i["score"] <= r["price"] <= i["score"] + 2])
        ],
    ),
    "left, where it is null": (
        "select i.score from impressions i left join clicks c on c.request_id = i.request_id where c.kind is null",
        lambda i, c, v: [] if of(i, c) else [(i["score"],)],
    ),
    "inner": (
        "select i.*, c.kind from impressions i join clicks c on c.request_id = i.request_id "
        "where c.price > i.score",
        lambda i, c, v: [
            (i["request_id"], i["user_id"], i["score"], row["kind"])
            for row in of(i, c)
            if row["price"] > i["score"]
        ],
    ),
    "inner, primary second": (
        "select i.score, c.kind from clicks c join impressions i on c.request_id = i.request_id",
        lambda i, c, v: [(i["score"], row["kind"]) for row in of(i, c)],
    ),
    "comma": (
        "select i.score, c.price, v.value from impressions i, clicks c left join conversions v "
        "on v.click_id = c.click_id where c.request_id = i.request_id and c.kind = 'a'",
        lambda i, c, v: [
            (i["score"], row["price"], other["value"])
            for row in of(i, c)
            if row["kind"] == "a"
            for other in or_none([o for o in v if equal(o["click_id"], row["click_id"])])
        ],
    ),
    "using": (
        "select * exclude (click_id, user_id) from impressions left join clicks using (request_id) "
        "where request_id is null or request_id > 1",
        lambda i, c, v: [
            (i["request_id"], i["score"], row["kind"], row["price"])
            for row in or_none(of(i, c))
            if i["request_id"] is None or i["request_id"] > 1
        ],
    ),
    "chain": (
        "select c.click_id, v.value from impressions i left join clicks c on c.request_id = i.request_id "
        "left join conversions v on v.click_id = c.click_id",
        chain,
    ),
    "chain, where the middle is null": (
        "select v.value from impressions i left join clicks c on c.request_id = i.request_id "
        "left join conversions v on v.request_id = i.request_id and c.click_id is null",
        lambda i, c, v: [
            (other["value"],)
            for row in or_none(of(i, c))
            for other in or_none(of(i, v) if row["click_id"] is None else [])
        ],
    ),
    "chain, where nulls are equal": (
        "select v.value from impressions i left join clicks c on c.request_id = i.request_id and c.kind = 'a' "
        "left join conversions v on v.click_id is not distinct from c.click_id and v.request_id = i.request_id",
        lambda i, c, v: [
            (other["value"],)
            for row in or_none([r for r in of(i, c) if r["kind"] == "a"])
            for other in or_none([o for o in of(i, v) if o["click_id"] == row["click_id"]])
        ],
    ),
    "scalar subquery": (
        "select (select sum(c.price) from clicks c where c.request_id = i.request_id) as s from impressions i",
        lambda i, c, v: [(sum(r["price"] for r in of(i, c)) if of(i, c) else None,)],
    ),
    "first of a subquery": (
        "select (select c.kind from clicks c where c.request_id = i.request_id order by c.price limit 1) as k "
        "from impressions i",
        lambda i, c, v: [(first_kind(i, c),)],
    ),
    "window in a subquery": (
        "select (select max(n) from (select row_number() over (order by c.price) as n from clicks c "
        "where c.request_id = i.request_id) r) as n from impressions i",
        lambda i, c, v: [(len(of(i, c)) or None,)],
    ),
    "exists": (
        "select exists (select * from clicks where request_id = i.request_id and kind = 'b') as e "
        "from impressions i",
        lambda i, c, v: [(any(r["kind"] == "b" for r in of(i, c)),)],
    ),
    "not exists in where": (
        "select i.score from impressions i where not exists (from clicks c where c.request_id = i.request_id)",
        lambda i, c, v: [] if of(i, c) else [(i["score"],)],
    ),
    "exists in exists": (
        "select exists (select 1 from clicks c where c.request_id = i.request_id and exists "
        "(select 1 from conversions v where v.click_id = c.click_id)) as e from impressions i",
        lambda i, c, v: [(any(equal(o["click_id"], r["click_id"]) for r in of(i, c) for o in v),)],
    ),
    "in": (
        "select i.request_id in (select request_id from clicks) as n from impressions i",
        lambda i, c, v: [(in_list(i["request_id"], [r["request_id"] for r in c]),)],
    ),
    "not in": (
        "select i.score from impressions i where i.request_id not in (select c.request_id from clicks c)",
        lambda i, c, v: [(i["score"],)] if in_list(i["request_id"], [r["request_id"] for r in c]) is False else [],
    ),
    "lateral": (
        "select i.score, l.n, l.kind from impressions i left join lateral (select count(*) as n, kind "
        "from clicks c where c.request_id = i.request_id group by kind) l on l.n > 1",
        lambda i, c, v: [
            (i["score"], n, kind)
            for kind, n in [(k, n) for k, n in Counter(r["kind"] for r in of(i, c)).items() if n > 1]
            or [(None, None)]
        ],
    ),
    "group by": (
        "select i.request_id, i.score, count(c.kind) as n, list(c.kind order by c.price) as ids "
        "from impressions i left join clicks c on c.request_id = i.request_id group by i.request_id, i.score "
        "having count(*) < 3",
        lambda i, c, v: (
            [
                (
                    i["request_id"],
                    i["score"],
                    len(of(i, c)),
                    [r["kind"] for r in sorted(of(i, c), key=lambda r: (r["price"], r["_seq"]))] or [None],
                )
            ]
            if len(of(i, c)) < 3
            else []
        ),
    ),
    "group by all": (
        "select i.user_id, arg_max(c.kind, c.price) as k from impressions i left join clicks c using (request_id) "
        "group by all",
        lambda i, c, v: [
            (i["user_id"], max(of(i, c), key=lambda r: (r["price"], -r["_seq"]))["kind"] if of(i, c) else None)
        ],
    ),
    "distinct": (
        "select distinct i.user_id, c.kind from impressions i join clicks c on c.request_id = i.request_id",
        lambda i, c, v: sorted({(i["user_id"], r["kind"]) for r in of(i, c)}),
    ),
    "semi": (
        "select i.score from impressions i semi join clicks c on c.request_id = i.request_id and c.kind = 'a'",
        lambda i, c, v: [(i["score"],)] if any(r["kind"] == "a" for r in of(i, c)) else [],
    ),
    "anti": (
        "select score from impressions i anti join clicks using (request_id)",
        lambda i, c, v: [] if of(i, c) else [(i["score"],)],
    ),
    "values": (
        "with names(kind, name) as (values ('a', 'A')) select i.score, n.name from impressions i "
        "join clicks c on c.request_id = i.request_id left join names n on n.kind = c.kind",
        lambda i, c, v: [(i["score"], "A" if r["kind"] == "a" else None) for r in of(i, c)],
    ),
    "left join in a subquery": (
        "select (select count(v.value) from clicks c left join conversions v on v.click_id = c.click_id "
        "where c.request_id = i.request_id) as n from impressions i",
        lambda i, c, v: [(sum(equal(o["click_id"], r["click_id"]) for r in of(i, c) for o in v),)],
    ),
    "the same stream twice": (
        "select c.kind, d.price from impressions i left join clicks c on c.request_id = i.request_id "
        "left join clicks d on d.click_id = c.click_id and d.kind <> c.kind",
        lambda i, c, v: [
            (r["kind"], d["price"])
            for r in or_none(of(i, c))
            for d in or_none([d for d in c if equal(d["click_id"], r["click_id"]) and d["kind"] != r["kind"]])
        ],
    ),
}


def visible(i: Row, rows: list[Row], reach: Reach, as_of: int) -> list[Row]:
    return [
        row
        for row in rows
        if row["_step"] <= as_of and i["_t"] - reach.before_us <= row["_t"] <= i["_t"] + reach.within_us
    ]


def results(database: duckdb.DuckDBPyConnection, query: Query) -> Counter[tuple[Any, ...]]:
    return Counter((repr(row[:-3]), *row[-3:]) for row in database.execute(query.versioned()).fetchall())


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_plain_python(case: str, database: duckdb.DuckDBPyConnection) -> None:
    sql, oracle = CASES[case]
    query = parse(sql)
    found = 0
    for seed in range(8):
        made = make(seed)
        load(database, made)
        expected: Counter[tuple[Any, ...]] = Counter()
        for i in made["impressions"]:
            for as_of in range(STEPS):
                clicks = visible(i, made["clicks"], REACHES["clicks"], as_of)
                conversions = visible(i, made["conversions"], REACHES["conversions"], as_of)
                for row in oracle(i, clicks, conversions):
                    expected[(repr(row), i["_seq"], i["_t"], as_of)] += 1
        assert results(database, query) == expected
        found += len(expected)
    assert found > 20
    names = [row[0] for row in database.execute(f"describe {query.versioned()}").fetchall()]
    assert names == [*query.columns, "_seq", "_t", "_as_of"]


@pytest.mark.parametrize("case", CASES)
def test_whatever_changes_is_affected(case: str, database: duckdb.DuckDBPyConnection) -> None:
    query = parse(CASES[case][0])
    changes = 0
    for seed in range(20, 32):
        made = make(seed)
        load(database, made)
        by_row: dict[tuple[int, int], list[str]] = {}
        for row in database.execute(query.versioned()).fetchall():
            by_row.setdefault((row[-3], row[-1]), []).append(repr(row[:-3]))
        changed = {
            (i["_seq"], step)
            for i in made["impressions"]
            for step in range(1, STEPS)
            if sorted(by_row.get((i["_seq"], step), [])) != sorted(by_row.get((i["_seq"], step - 1), []))
        }
        affected = set()
        for stream in query.streams[1:]:
            rows = [row for row in made[stream] if row["_step"] > 0]
            fill(database, "fresh", [*REACHES[stream].columns, "_t", "_seq", "_step"], rows)
            affected |= set(database.execute(query.affected(stream, "fresh")).fetchall())
        assert changed <= affected
        changes += len(changed)
    assert changes > 0


def test_affected_rows_are_few_where_the_query_says_so(database: duckdb.DuckDBPyConnection) -> None:
    made = make(1)
    load(database, made)
    for case in ("left", "scalar subquery", "in", "chain", "comma"):
        query = parse(CASES[case][0])
        stream = query.streams[-1]
        bound = f"select count(*) from impressions i, {stream} n where n._t between i._t - 3 and i._t + 40"
        within = database.execute(
            f"select count(*) from ({bound.replace('count(*)', 'distinct i._seq, n._step')})"
        )
        pairs = within.fetchall()[0][0]
        assert len(database.execute(query.affected(stream, stream)).fetchall()) < pairs / 2


def test_new_rows_of_the_primary_stream_are_affected(database: duckdb.DuckDBPyConnection) -> None:
    made = make(2)
    load(database, made)
    found = database.execute(parse("select i.* from impressions i").affected("impressions", "impressions"))
    assert sorted(found.fetchall()) == [(i["_seq"], i["_step"]) for i in made["impressions"]]
    with pytest.raises(ValueError, match="does not read 'clicks'"):
        parse("select i.* from impressions i").affected("clicks", "fresh")


def test_relations_take_other_names(database: duckdb.DuckDBPyConnection) -> None:
    load(database, make(3))
    query = parse(CASES["chain"][0])
    expected = results(database, query)
    for name in REACHES:
        database.execute(f'create or replace view "the {name}" as from {name}').fetchall()
    sql = query.versioned({name: f"the {name}" for name in REACHES})
    assert '"the clicks"' in sql
    assert Counter((repr(row[:-3]), *row[-3:]) for row in database.execute(sql).fetchall()) == expected


def test_what_a_query_says_of_itself() -> None:
    query = parse(
        "select * exclude (price) rename (kind as k) from clicks c join impressions i using (request_id)"
    )
    assert query.streams == ("impressions", "clicks")
    assert query.primary == "impressions"
    assert query.columns == ("click_id", "request_id", "k", "user_id", "score")
    assert query.versioned() == parse(query.sql).versioned()
    assert parse('from impressions select score as "the Score", user_id').columns == ("the Score", "user_id")
    assert parse("select * replace (score + 1 as score) from impressions").columns[-1] == "score"
    assert parse("select i.score as n /* so */ -- and so\n from impressions i;").columns == ("n",)


def test_other_dialects() -> None:
    query = parse("select i.score, c.kind ilike 'A' as a from impressions i left join clicks c using (request_id)")
    assert "ILIKE" in query.dialect("spark") and "USING (request_id)" in query.dialect("spark")
    with pytest.raises(ConfigError, match="cannot be written as nonsense"):
        query.dialect("nonsense")


I = "from impressions i"  # noqa: E741
C = "left join clicks c on c.request_id = i.request_id"
REFUSED = {
    "select i.score frm impressions": "line 1, column",
    "select i.score\nfrom impressions i where": "line 2, column",
    "select i.score, (select 1": "line 1, column",
    "select 'abc": "cannot be read",
    f"select arg_max(c.kind) as k {I} {C} group by all": "what to order by is missing",
    "": "no statement",
    "-- nothing": "no statement",
    f"select i.score {I}; drop table x": "more than one statement",
    "create table x (a int)": "got 'create'",
    "insert into clicks values (1)": "got 'insert'",
    "with x as (select 1) insert into clicks from x": "allowed: one SELECT",
    "pragma database_list": "got 'pragma'",
    "copy clicks to 'x'": "got 'copy'",
    "attach 'x'": "got 'attach'",
    "call f()": "got 'call'",
    "values (1)": "got 'values'",
    f"select v.x {I}, views v": "views AS v is no stream; streams: impressions, clicks, conversions",
    f"select i.score {I}, main.clicks": "main.clicks is no stream",
    "select c.kind from clicks c": "primary stream 'impressions' is not in FROM",
    f"select i.score {I} join impressions j on true": "read 2 times",
    "select c.kind from clicks c where exists (select 1 from impressions i where i.request_id = c.request_id)": (
        "stands in a subquery"
    ),
    f"select (select count(*) from clicks) as n {I}": "names no column of the row outside",
    f"with c as (select * from clicks) select i.score {I} join c on c.request_id = i.request_id": (
        "clicks in WITH would look outside its window; join it directly"
    ),
    f"select i.score {I} join (select * from clicks) c on c.request_id = i.request_id": "in a derived table",
    f"select i.score {I}, (select * from clicks c where c.request_id = i.request_id) c": "say LATERAL",
    f"with clicks as (select 1 as x) select i.score {I}": "there is a stream of this name",
    f"with recursive r as (select 1 as x) select i.score {I}": "RECURSIVE",
    f"select x.a {I}, read_csv('x.csv') x": "read_csv_auto|read_csv",
    f"select i.score {I}, 'x.parquet' x": "is no stream",
    f"select i.score {I}, glob('*') x": r"glob\(\) at line 1, column \d+ reads outside the log",
    f"select i.score {I}, duckdb_settings() x": "reads outside",
    f"select random() as x {I}": r"random\(\) at line 1, column 8 differs from run to run",
    f"select uuid() as x {I}": "differs from run to run",
    f"select gen_random_uuid() as x {I}": "differs from run to run",
    f"select now() as x {I}": r"now\(\) .* differs",
    f"select current_timestamp as x {I}": "current_timestamp .* differs",
    f"select current_date as x {I}": "current_date .* differs",
    f"select today() as x {I}": r"today\(\) .* differs",
    f"select nextval('x') as x {I}": r"nextval\(\) .* differs",
    f"select current_setting('threads') as x {I}": "differs",
    f"select ago(interval 1 day) as x {I}": r"ago\(\) .* differs",
    f"select age(timestamp '2020-01-01') as x {I}": r"age\(\) .* differs",
    f"select getvariable('x') as x {I}": "differs",
    f"select current_schema as x {I}": "current_schema",
    f"select getenv('HOME') as x {I}": r"getenv\(\) .* is no function that DuckDB knows",
    f"select frobnicate(i.score) as x {I}": r"frobnicate\(\) .* is no function",
    f"select pg_get_viewdef(1) as x {I}": "reads outside the log",
    f"select i.score {I} limit 3": "LIMIT would look at other examples",
    f"select i.score {I} offset 3": "OFFSET",
    f"select i.score {I} order by 1": "ORDER BY has no meaning",
    f"select i.score {I} qualify row_number() over (order by i.score) = 1": "looks at other",
    f"select i.score {I} using sample 3": "sample differs",
    f"select i.score {I} tablesample 3": "sample differs",
    f"select (select c.kind from clicks c where c.request_id = i.request_id limit 1) as k {I}": "without ORDER BY",
    f"select (select kind from clicks c where c.request_id = i.request_id order by all limit 1) as k {I}": "name",
    f"select distinct on (i.score) i.score {I}": "DISTINCT ON",
    f"select row_number() over (order by i.score) as n {I}": r"looks at other examples.*\[\[aggregates\]\]",
    f"select sum(i.score) over () as n {I}": "looks at other examples",
    f"select (select max(n) from (select lag(c.price) over () as n from clicks c where c.request_id = i.request_id)) as n {I}": (  # noqa: E501
        "write ORDER BY in it"
    ),
    f"select i.score {I} union all select i.score {I}": "UNION",
    f"select i.score {I} where i.score in (select 1 union select 2)": "UNION",
    f"select i.score {I} right join clicks c on c.request_id = i.request_id": "RIGHT join gives rows that are no",
    f"select i.score {I} full join clicks c on c.request_id = i.request_id": "FULL join gives rows",
    f"select i.score {I} natural join clicks c": "NATURAL joins are not supported",
    f"select i.score {I} positional join clicks c": "POSITIONAL",
    f"select i.score {I} asof join clicks c on c.request_id = i.request_id and c.price >= i.score": "ASOF",
    "select i.score from clicks c left join impressions i on c.request_id = i.request_id": "must come first",
    "select i.score from clicks c left join conversions v on v.click_id = c.click_id "
    "join impressions i on i.request_id = c.request_id": "joined before 'impressions'",
    f"select i.score {I} join (clicks c join conversions v on v.click_id = c.click_id) on true": "in FROM",
    f"select count(*) as n {I}": "puts examples together",
    f"select i.user_id, count(*) as n {I} group by rollup (i.user_id)": "groups of groups",
    f"select unnest([1, 2]) as n {I}": "more than one row",
    f"select i.*, c.* {I} {C}": "two columns are named 'request_id'",
    f"select i.score as a, i.user_id as A {I}": "two columns are named 'A'",
    f"select i.score as _x {I}": "begin with _",
    f"select i.score + 1 {I}": "needs a name; add AS",
    f"select i.nothing {I}": "there is no such column; columns: i.request_id, i.user_id, i.score",
    f"select nothing {I}": "there is no such column",
    f"select request_id {I} {C}": r"in several relations \(i, c\)",
    f"select i._seq as x {I}": "Penstock's own",
    f"select (select max(c._step) from clicks c where c.request_id = i.request_id) as x {I}": "Penstock's own",
    f"select i._t.abs() as x {I}": r"write f\(x\) for x.f\(\)|Penstock's own",
    f"select i as x {I}": "a whole row is no value",
    f"select to_json(c) as x {I} {C}": "a whole row is no value",
    f"select hash(i.*) as x {I}": "name the columns",
    f"select columns('s.*') {I}": "name the columns",
    f"select * exclude (nothing) {I}": "there is no column nothing",
    f"select i.a {I}(a, b)": "cannot be renamed",
    f"select i.score {I} join clicks i on true": "used twice",
    f"select (select count(*) from clicks i where i.request_id = 1 and exists (select 1 from conversions v where v.click_id = i.click_id)) as n {I}": (  # noqa: E501
        "hides the primary"
    ),
    f"select i.score {I} where i.score = $1": "parameters",
    f"select i.score {I} where i.score = ?": "parameters",
    f"select i.score, #1 as x {I}": "#1 is not supported",
    f"select array(select c.kind from clicks c where c.request_id = i.request_id) as x {I}": "order by",
    f"select i.score {I} " + "-" * 70000: "bytes of SQL",
    f"select {'(' * 100}1{')' * 100} as x {I}": "brackets 100 deep",
    f"select {'not ' * 5000} true as x {I}": "nested too deeply",
    f"select 1{'::int' * 5000} as x {I}": "nested too deeply|depth",
} | {
    f"select {name}(c.{column}) as x {I} {C} group by i.request_id": message
    for name, column, message in [
        ("first", "kind", r"first\(\) .* depends on the order of rows; write first\(x order by …\)"),
        ("last", "kind", "depends on the order"),
        ("any_value", "kind", "depends on the order"),
        ("list", "kind", "depends on the order"),
        ("array_agg", "kind", "depends on the order"),
        ("string_agg", "kind", "depends on the order"),
        ("group_concat", "kind", "depends on the order"),
        ("mode", "kind", "depends on the order"),
        ("stddev", "price", "depends on the order"),
        ("fsum", "price", "depends on the order"),
        ("product", "price", "depends on the order"),
        ("json_group_array", "kind", "depends on the order"),
        ("approx_count_distinct", "kind", "differs from run to run"),
    ]
}


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: sql[:60])
def test_refused_with_a_reason_on_one_line(sql: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[sql]) as caught:
        Query.parse(sql, primary="impressions", reaches=REACHES, where="pipeline.query")
    assert str(caught.value).startswith("pipeline.query: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("aggregate", ["sum", "avg"])
def test_sums_of_floats_need_an_order(aggregate: str) -> None:
    with duckdb.connect() as database:
        load(database, make(0))
        plain = f"select i.score, {aggregate}(c.price) as x {I} {C} group by i.score"
        inner = (
            f"select (select {aggregate}(c.price + 1) from clicks c where c.request_id = i.request_id) as x {I}"
        )
        for sql in (plain, inner):
            parse(sql).check_types(database)
        for kind in ("double", "float"):
            database.execute(f"alter table clicks alter price type {kind}").fetchall()
            for sql in (plain, inner):
                with pytest.raises(ConfigError, match=rf"query: {aggregate}\(\) of .*order by"):
                    parse(sql).check_types(database)
            parse(plain.replace("c.price)", "c.price order by c.kind)")).check_types(database)
            parse(plain.replace("c.price)", "c.price::decimal(18, 3))")).check_types(database)
        database.execute("alter table clicks alter price type decimal(9, 2)").fetchall()
        parse(plain).check_types(database)
        with pytest.raises(ConfigError, match=r"avg\(\) of"):
            parse(plain.replace(f"{aggregate}(", "geomean(")).check_types(database)


def test_types_must_fit() -> None:
    with duckdb.connect() as database:
        load(database, make(0))
        for sql in (
            f"select i.score + [1] as x {I}",
            f"select i.score {I} where list_sum(i.score) = 1",
            f"select i.score, i.user_id, count(*) as n {I} group by i.score",
        ):
            with pytest.raises(ConfigError, match=r"^query: ") as caught:
                parse(sql).check_types(database)
            assert "\n" not in str(caught.value)
        for sql, _ in CASES.values():
            parse(sql).check_types(database)


SQL = r"""
    select from where group by order limit ( ) , . * = < 'a' 1 and or not in exists join left on using as i c
    impressions clicks request_id score kind count sum over partition lateral unnest values with case when then
    end [ ] { } : :: -> lambda x distinct having union all interval day between is null ; -- /* $1 ? @ # " ' \ é
"""
WORDS = [*SQL.split(), "\x00"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join) | st.text(max_size=60))
def test_garbage_is_refused_and_nothing_else_happens(text: str) -> None:
    for sql in (text, f"select {text} from impressions i", f"select i.score from impressions i where {text}"):
        try:
            parse(sql).versioned()
        except ConfigError as error:
            assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(CASES)), st.data())
def test_damaged_queries_are_refused_or_read(case: str, data: st.DataObject) -> None:
    words = CASES[case][0].split(" ")
    for _ in range(data.draw(st.integers(1, 3))):
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(WORDS))
    try:
        query = parse(" ".join(words))
    except ConfigError:
        return
    assert query.streams[0] == "impressions"
    assert all(query.affected(stream, "fresh") for stream in query.streams)
