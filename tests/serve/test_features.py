"""What a pipeline adds to requests: the bits that examples were trained with; what cannot be served is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import penstock as ps
from penstock.cli.serve_pipelines import features_of
from penstock.errors import ConfigError, DataError
from penstock.features import Encoder
from penstock.log.times import TIMESTAMP
from penstock.serve.api.app import ARROW, App
from penstock.serve.features import Features
from penstock.serve.rows import BadRow
from penstock.serve.scorer import Scorer
from penstock.serve.versions.follow import Follower
from penstock.serve.versions.load import Loader, load_scorer
from penstock.serve.versions.source import LocalVersions
from tests.asgi import ask

SECOND = 1_000_000
T0 = 1_793_491_200 * SECOND
SPAN_S = 40
NOW = T0 + SPAN_S * SECOND
QUERY = """
    select i.*, i.site as place, i.price * 2 + coalesce(i.user_spent, 0) as double_price, hour(i.ts) as hour,
        coalesce(i.site, 'none') || '!' as site_or_none, lower(i.browser) as browser,
        c.user is not null as clicked, c.cost as paid
    from impressions i left join clicks c using (request_id)
"""
QUERY = QUERY.replace("i.*", "i.* exclude (browser)")
AGGREGATES = [
    {"name": "user_clicks", "stream": "clicks", "by": "user", "over": "10s"},
    {"name": "user_spent", "stream": "clicks", "by": "user", "over": "20s", "what": "sum", "of": "cost"},
    {"name": "mean_spent", "stream": "clicks", "by": "user", "over": "20s", "what": "mean", "of": "cost"},
    {"name": "of_ad", "stream": "clicks", "by": ["user", "ad"], "over": "30s"},
    {"name": "seen", "stream": "impressions", "by": "ad", "over": "5s"},
]
COLUMNS = {
    "numeric": ["user_spent", "mean_spent", "double_price", ps.Numeric(name="user_clicks", how="log")],
    "categorical": ["site", "place", "user", "of_ad", "seen", "hour", "site_or_none", "browser"],
}


def times(seconds: np.ndarray) -> pa.Array:
    return pa.array(T0 + (seconds * SECOND).astype(np.int64)).cast(TIMESTAMP)


def write_log(place: Path) -> None:
    """Impressions of 40 seconds, and clicks on them that come up to ten seconds later."""
    draw = np.random.default_rng(3)
    n = 400
    seconds = np.sort(draw.random(n)) * SPAN_S
    pick = {"user": ["a", "b", "17", None], "site": ["x", "Y", "", None], "browser": ["Fox", "SAFE", None]}
    impressions = pa.table(
        {
            "ts": times(seconds),
            "request_id": [f"r{k}" for k in range(n)],
            **{
                name: pa.array([values[k] for k in draw.integers(0, len(values), n)])
                for name, values in pick.items()
            },
            "ad": pa.array([[1, 12, None][k] for k in draw.integers(0, 3, n)], pa.int64()),
            "price": draw.normal(2, 1, n),
        }
    )
    shown = impressions.take(pa.array(np.flatnonzero(draw.random(n) < 0.5)))
    later = np.asarray(shown["ts"].cast(pa.int64())) + (draw.random(len(shown)) * 10 * SECOND).astype(np.int64)
    clicks = shown.select(["request_id", "user", "ad"]).append_column("ts", pa.array(later).cast(TIMESTAMP))
    clicks = clicks.append_column("cost", pa.array(np.round(draw.normal(1, 1, len(shown)), 2)))
    log = ps.Log(str(place))
    log.create("impressions", impressions.schema, id="request_id").append(impressions, arrival=impressions["ts"])
    log.create("clicks", clicks.schema).append(clicks, arrival=clicks["ts"])
    log.step(tick_us=NOW + 3600 * SECOND)


def pipeline(place: Path, query: str = QUERY) -> ps.Pipeline:
    return ps.Pipeline.from_dict(
        {
            "streams": {"impressions": {"idle": "1s"}, "clicks": {"within": "1m"}},
            "pipeline": {"log": str(place), "window": "5s", "query": query},
            "aggregates": AGGREGATES,
        },
        "test",
    )


@dataclass(frozen=True)
class World:
    place: Path
    scorer: Scorer
    examples: pa.Table
    features: Features
    folder: Path


def trained(world_pipeline: ps.Pipeline, **columns: Any) -> tuple[ps.Linear, pa.Table]:
    source = ps.PipelineSource(world_pipeline)
    found = [batch for chunk in source.chunks() for batch in chunk.batches(source.schema.names, 1 << 16)]
    model = ps.Linear(ps.Features(label="clicked", **(columns or COLUMNS)))
    ps.fit(model, source, progress=False)
    return model, pa.Table.from_batches(found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A log, a model that was trained on it, and its features as of the end of the log."""
    place = tmp_path_factory.mktemp("world")
    write_log(place / "log")
    model, examples = trained(pipeline(place / "log"))
    model.save(place / "ctr")
    features = Features(pipeline(place / "log"), clock_us=lambda: NOW)
    features.load(lambda stream, read, of: None)
    yield World(place / "log", load_scorer(place / "ctr"), examples, features, place / "ctr")
    features.current.close()


def asked(world: World) -> list[dict[str, Any]]:
    """The rows that requests had brought, as JSON has them."""
    table = ps.Log(str(world.place)).stream("impressions").folder.files()
    rows = pa.concat_tables(
        [pa.parquet.read_table(world.place / "impressions" / file.path, partitioning=None) for file in table]
    ).sort_by("_seq")
    found = rows.select(["ts", "request_id", "user", "site", "browser", "ad", "price"]).to_pylist()
    return [{**row, "ts": row["ts"].isoformat()} for row in found]


def test_rows_have_the_bits_of_examples(world: World) -> None:
    examples = {row["request_id"]: n for n, row in enumerate(world.examples.to_pylist())}
    rows = asked(world)
    assert len(rows) == len(examples) == 400
    bound = world.features.bind(world.scorer.model.plan)
    whole = bound.rows(rows)
    table = world.examples.take([examples[row["request_id"]] for row in rows])
    plan = world.scorer.model.plan
    assert plan is not None
    for name in ("user_clicks", "user_spent", "mean_spent", "of_ad", "seen", "double_price", "hour", "browser"):
        assert [row[name] for row in whole] == table[name].to_pylist(), name
    assert len(set(table["user_spent"].to_pylist())) > 50 and None in table["mean_spent"].to_pylist()
    served = Encoder(plan).encode(world.scorer.reader.read(whole), labelled=False)
    batch = table.select(plan.inputs).combine_chunks().to_batches()[0]
    learnt = Encoder(plan).encode(batch, labelled=False)
    np.testing.assert_array_equal(served.keys, learnt.keys)
    np.testing.assert_array_equal(served.values, learnt.values)
    np.testing.assert_array_equal(world.scorer.score(whole), world.scorer.score_table(table))
    assert [row for n in range(0, 40, 5) for row in bound.rows(rows[n : n + 5])] == whole[:40]  # by another way


def test_tables_have_the_bits_of_rows(world: World) -> None:
    rows = asked(world)
    bound = world.features.bind(world.scorer.model.plan)
    expected = world.scorer.score(bound.rows(rows))
    table = pa.Table.from_pylist(rows).drop_columns(["request_id"])
    np.testing.assert_array_equal(world.scorer.score_table(bound.table(table)), expected)
    times = pa.array([row["ts"] for row in rows]).cast(TIMESTAMP)
    table = table.set_column(0, "ts", times)
    np.testing.assert_array_equal(world.scorer.score_table(bound.table(table)), expected)
    with pytest.raises(DataError, match="row 0: column 'ts' is 2020-01-01T00:00:00Z; allowed: from 2026"):
        bound.table(pa.table({"user": ["a"], "ts": ["2020-01-01"], "site": ["x"]}))


def test_what_a_request_brings_itself(world: World) -> None:
    bound = world.features.bind(world.scorer.model.plan)
    [plain] = bound.rows([{"user": "a", "site": "x", "price": 1.0}])
    assert plain["user_clicks"] > 0 and plain["place"] == "x" and plain["hour"] == 0
    [own] = bound.rows([{"user": "a", "user_clicks": 77, "place": "y", "double_price": 5.0, "site": "x"}])
    assert (own["user_clicks"], own["place"], own["double_price"]) == (77, "y", 5.0)
    assert own["user_spent"] == plain["user_spent"]
    [computed] = bound.rows([{"user_spent": 10.0, "price": 1.0, "browser": "FOX"}])
    assert computed["double_price"] == 12.0  # of its own aggregate
    assert computed["browser"] == "fox"  # a column of the stream is always what the stream would have
    [nobody] = bound.rows([{"site": "x"}])
    assert (nobody["user_clicks"], nobody["user_spent"], nobody["mean_spent"]) == (0, 0.0, None)
    for same in (17, 17.0, "17"):  # as categories are
        assert bound.rows([{"user": same}])[0]["user_spent"] == bound.rows([{"user": "17"}])[0]["user_spent"] != 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (7, "got 7, allowed: an object of columns"),
        ({"nothing": 1}, "has none of the model's columns; they are"),
        ({"user": ["a"]}, "column 'user' is ['a']; allowed: text, a number or a boolean, or null"),
        ({"ts": "soon", "user": "a"}, "column 'ts' is 'soon'; allowed: a time (ISO 8601), or null"),
        ({"ts": "2020-01-01", "user": "a"}, "column 'ts' is 2020-01-01T00:00:00Z; allowed: from 2026-"),
        ({"price": "much"}, "column 'price' is 'much'; allowed: double, or null"),
    ],
)
def test_a_bad_row_is_told_and_no_other(world: World, row: Any, message: str) -> None:
    with pytest.raises(BadRow) as caught:
        world.features.bind(world.scorer.model.plan).rows([{"user": "a"}, row, {"user": "b"}])
    assert caught.value.row == 1 and message in caught.value.message


@pytest.mark.parametrize(
    ("query", "column", "message"),
    [
        (QUERY, "paid", '\'paid\' cannot be served: "c"."cost" looks at c.cost, which a request does not have'),
        (
            "select *, (select count(*) from clicks c where c.user = i.user) n, true clicked from impressions i",
            "n",
            "looks at other rows",
        ),
        (
            "select i.*, i.price + 1 as more, more * 2 as most, i.price > 1 as clicked from impressions i",
            "most",
            "is made of 'more', another column of the query; write that out",
        ),
        (
            "select i.*, i.ts - interval 1 hour as before, i.price > 1 as clicked from impressions i",
            "before",
            "is of type timestamp[us, tz=UTC]; allowed: text, numbers, booleans and lists",
        ),
    ],
)
def test_what_cannot_be_served(world: World, query: str, column: str, message: str, tmp_path: Path) -> None:
    declared = pipeline(world.place, query)
    model, _ = trained(declared, categorical=[column])
    features = Features(declared, clock_us=lambda: NOW)
    with pytest.raises(ConfigError) as caught:
        features.bind(model.plan)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    other = Features(pipeline(world.place, "select i.ts from impressions i"), clock_us=lambda: NOW)
    with pytest.raises(ConfigError, match=f"column '{column}' is none of the pipeline's query, which gives ts"):
        other.bind(model.plan)
    # A version that cannot be served is not switched to.
    shutil.copytree(world.folder, tmp_path / "ctr")
    follower = Follower("ctr", LocalVersions(tmp_path / "ctr"), Loader(folder=tmp_path / "ctr"))
    follower.first(wait=False, say=print)
    follower.check = features.check
    model.save(tmp_path / "ctr")
    assert follower.look() is None and follower.refused == 1
    job = tmp_path / "job.toml"
    job.write_text(
        f'[streams]\nimpressions = {{}}\nclicks = {{ within = "1m" }}\n[pipeline]\nlog = "{world.place}"\n'
        f"query = '''{query}'''\n" + "".join(map(_toml, AGGREGATES))
    )
    with pytest.raises(ConfigError, match=rf"^model ctr, {job}: the model's column '{column}'"):
        features_of([f"ctr={job}"], {"ctr": load_scorer(tmp_path / "ctr")})


def _toml(aggregate: dict[str, Any]) -> str:
    return "[[aggregates]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in aggregate.items())


def test_which_pipeline_is_whose(world: World) -> None:
    models = {"ctr": world.scorer, "next": world.scorer}
    with pytest.raises(ConfigError, match=r"--pipeline b\.toml: a second one for all models; .* ctr, next"):
        features_of(["a.toml", "b.toml"], models)
    with pytest.raises(ConfigError, match=r"nobody=b\.toml: there is no such file|nobody=b\.toml"):
        features_of(["nobody=b.toml"], models)
    assert features_of([], models) == {}


def test_requests(world: World) -> None:
    app = App({"ctr": world.scorer}, features={"ctr": world.features})
    rows = asked(world)[:50]
    expected = world.scorer.score(world.features.bind(world.scorer.model.plan).rows(rows))

    def call(method: str, path: str, body: bytes = b"", **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return asyncio.run(asyncio.wait_for(ask(app, method, path, body, named), 60))

    answer = call("POST", "/predict?explain=20", json.dumps(rows).encode())
    found = json.loads(answer.body)
    np.testing.assert_array_equal(np.array(found["predictions"], np.float32), expected)
    assert any("user_clicks" in each["feature"] for row in found["explanations"] for each in row)
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    answer = call("POST", "/predict", sink.getvalue().to_pybytes(), content_type=ARROW)
    np.testing.assert_array_equal(pa.ipc.open_stream(answer.body).read_all()["score"], expected)
    tensors = [{"name": "user", "shape": [1], "datatype": "BYTES", "data": ["a"]}]
    answer = call("POST", "/v2/models/ctr/infer", json.dumps({"inputs": tensors}).encode())
    one = json.loads(call("POST", "/predict", b'{"user": "a"}').body)["predictions"]
    assert json.loads(answer.body)["outputs"][0]["data"] == one
    assert call("POST", "/predict", b'[{"user": ["a"]}]').status == 400
    about = json.loads(call("GET", "/v2/models/ctr").body)
    assert {each["name"]: each["datatype"] for each in about["inputs"]} == {
        **dict.fromkeys(["ts", "user", "site", "browser", "ad"], "BYTES"),
        "price": "FP64",
    }
    described = json.loads(call("GET", "/openapi.json").body)["components"]["schemas"]["Row of ctr"]["properties"]
    assert set(described) == {each["name"] for each in about["inputs"]}
    metrics = call("GET", "/metrics").body.decode()
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("penstock_features"))
    assert float(values['penstock_features_events{model="ctr"}']) == world.features.events > 0
    assert float(values['penstock_features_age_seconds{model="ctr"}']) >= 0


def test_a_log_that_is_gone_ages_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_log(tmp_path / "log")
    features = Features(pipeline(tmp_path / "log"), clock_us=lambda: NOW)
    features.load(lambda stream, read, of: None)
    looked_s = features._looked_s
    (tmp_path / "log").rename(tmp_path / "away")
    features.look()
    features.look()
    assert features._looked_s == looked_s and features.age_s > 0
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "aggregates stay as they are" in caplog.text
    (tmp_path / "away").rename(tmp_path / "log")
    features.look()
    assert features._looked_s > looked_s
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
