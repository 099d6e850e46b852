"""The application: each answer is that of ``predict``; a bad request is told what is wrong, and harms no other."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penstock.serve.api.app import ARROW, App, ServeLimits
from penstock.serve.scorer import Scorer
from tests.asgi import Answer, ask
from tests.serve.conftest import Served, rows_of_all_kinds
from tests.serve.test_rows import as_json

ROW = {"site": "site-1", "price": 2.5}
INFER = "/v2/models/ctr/infer"


@pytest.fixture
def app(served: Served) -> App:
    return App({"ctr": served.scorer}, limits=ServeLimits(rows=1000, body_nbytes=1 << 20, idle_s=0.05))


def call(app: App, method: str, path: str, body: Any = b"", **headers: str) -> Answer:
    if not isinstance(body, bytes | list) or (isinstance(body, list) and body and not isinstance(body[0], bytes)):
        body = json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(asyncio.wait_for(ask(app, method, path, body, named), 60))


def test_rows(app: App, served: Served) -> None:
    table = rows_of_all_kinds(40, seed=2)
    expected = served.model.predict(table)
    answer = call(app, "POST", "/predict", as_json(table), content_type="application/json")
    found = json.loads(answer.body)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert (found["model"], found["version"]) == ("ctr", "1")
    np.testing.assert_array_equal(np.array(found["predictions"], np.float32), expected)
    one = json.loads(call(app, "POST", "/predict?model=ctr&version=1", as_json(table)[0]).body)
    assert one["predictions"] == found["predictions"][:1]
    zipped = call(app, "POST", "/predict", gzip.compress(json.dumps([ROW]).encode()), content_encoding="gzip")
    assert zipped.body == call(app, "POST", "/predict", ROW).body


def test_tensors(app: App, served: Served) -> None:
    """A whole request of the Open Inference Protocol, and what it answers."""
    tensors = [
        {"name": "site", "shape": [2], "datatype": "BYTES", "data": ["site-1", None]},
        {"name": "price", "shape": [2, 1], "datatype": "FP64", "data": [[2.5], [3]]},
        {"name": "user", "shape": [2], "datatype": "INT64", "data": [7, 8]},
    ]
    body = {"id": "a", "inputs": tensors, "outputs": [{"name": "score"}]}
    found = json.loads(call(app, "POST", INFER, body).body)
    rows = [{"site": "site-1", "price": 2.5, "user": 7}, {"price": 3, "user": 8}]
    data = served.scorer.score(rows).tolist()
    output = {"name": "score", "shape": [2], "datatype": "FP32", "data": data}
    assert found == {"model_name": "ctr", "model_version": "1", "id": "a", "outputs": [output]}
    assert call(app, "POST", "/v2/models/ctr/versions/1/infer", body).status == 200
    about = json.loads(call(app, "GET", "/v2/models/ctr").body)
    assert about["versions"] == ["1"] and about["outputs"] == [
        {"name": "score", "datatype": "FP32", "shape": [-1]}
    ]
    assert {"name": "price", "datatype": "FP64", "shape": [-1]} in about["inputs"]
    assert about["parameters"]["lineage"]["rows"] == 2000


def arrow(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_arrow(served: Served) -> None:
    app = App({"ctr": served.scorer})
    table = rows_of_all_kinds(20_000, seed=3)
    answer = call(app, "POST", "/predict", arrow(table), content_type=ARROW)
    assert (answer.status, answer.headers["content-type"]) == (200, ARROW)
    found = pa.ipc.open_stream(answer.body).read_all()
    np.testing.assert_array_equal(found["score"].to_numpy(), served.model.predict(table))
    assert found.schema.metadata == {b"model": b"ctr", b"version": b"1"}


def test_explanations_add_up(app: App, served: Served) -> None:
    rows = as_json(rows_of_all_kinds(20, seed=4))
    found = json.loads(call(app, "POST", "/predict?explain=100&lineage=1", rows).body)
    for score, features in zip(found["predictions"], found["explanations"], strict=True):
        added = sum(each["contribution"] for each in features)
        assert 1 / (1 + np.exp(-added)) == pytest.approx(score, abs=1e-5)
        assert [abs(e["contribution"]) for e in features] == sorted(
            (abs(e["contribution"]) for e in features), reverse=True
        )
    named = {each["feature"].partition("=")[0] for features in found["explanations"] for each in features}
    assert {"site", "user", "price", "tags", "words", "(bias)"} <= named and "?" not in named
    assert found["lineage"]["lineage"]["rows"] == 2000
    two = json.loads(call(app, "POST", "/predict?explain=2", rows).body)["explanations"]
    assert [each[:2] for each in found["explanations"]] == two


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "said"),
    [
        ("GET", "/predict", b"", {}, 405, "got GET, allowed: POST"),
        ("POST", "/v2", b"", {}, 405, "allowed: GET"),
        ("GET", "/nowhere", b"", {}, 404, "no such path '/nowhere'"),
        ("POST", "/predict", b"[", {}, 400, "the body is no JSON"),
        ("POST", "/predict", b"\xff", {}, 400, "the body is no JSON"),
        ("POST", "/predict", b"[" * 100_000, {}, 400, "the body is no JSON"),
        ("POST", "/predict", 3, {}, 400, "got '3', allowed: a row"),
        ("POST", "/predict", b"[]", {}, 400, "there is no row"),
        ("POST", "/predict", [ROW, {"price": "x"}], {}, 400, "row 1: column 'price' is 'x'; allowed"),
        ("POST", "/predict", [ROW] * 1001, {}, 413, "got 1,001 rows, allowed: 1,000"),
        ("POST", "/predict", b" " * (2 << 20), {}, 413, "the body has more than 1,048,576 bytes"),
        ("POST", "/predict", ROW, {"content_type": "text/xml"}, 415, "got content-type 'text/xml'"),
        ("POST", "/predict", ROW, {"content_encoding": "br"}, 415, "allowed: gzip"),
        ("POST", "/predict?model=x", ROW, {}, 404, "there is no model 'x'; models: ctr"),
        ("POST", "/predict?version=9", ROW, {}, 404, "version '9' is not served here; versions: 1"),
        ("POST", "/predict?explain=x", ROW, {}, 400, "explain: got 'x'"),
        ("POST", "/predict?explain=5", [ROW] * 200, {}, 413, "got 200 rows to explain, allowed: 100"),
        ("POST", "/predict?wrong=5", ROW, {}, 400, "got the option 'wrong', allowed: model, version"),
        ("POST", "/predict", b"x", {"content_type": ARROW}, 400, "the body is no Arrow stream"),
        ("POST", INFER, {}, {}, 400, "missing required field `inputs`"),
        ("POST", INFER, {"inputs": []}, {}, 400, "length >= 1"),
        ("POST", "/v2/models/x/infer", {}, {}, 404, "there is no model 'x'"),
        ("GET", "/v2/models/ctr/versions/2", b"", {}, 404, "version '2' is not served here"),
    ],
)  # fmt: skip
def test_what_is_refused(
    app: App, method: str, path: str, body: Any, headers: dict[str, str], status: int, said: str
) -> None:
    answer = call(app, method, path, body, **headers)
    error = json.loads(answer.body)["error"]
    assert (answer.status, said in error) == (status, True), error
    assert "\n" not in error and len(error) < 400
    assert call(app, "POST", "/predict", ROW).status == 200


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "price", "shape": [2], "datatype": "FP64", "data": [1, 2], **changes}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([tensor(datatype="FLOAT")], "got datatype 'FLOAT', allowed: BOOL"),
        ([tensor(shape=[3])], "its shape [3] has 3 values, got 2"),
        ([tensor(shape=[1, 2])], "got shape [1, 2], allowed: [rows] or [rows, 1]"),
        ([tensor(shape=[-2])], ">= 0"),
        ([tensor(data=[1, "x"])], "value 1 is 'x', allowed: FP64"),
        ([tensor(datatype="INT8", data=[1, 1.5])], "value 1 is '1.5', allowed: INT8"),
        ([tensor(datatype="BOOL", data=[True, 1])], "value 1 is '1', allowed: BOOL"),
        ([tensor(datatype="BYTES", data=["x", 1])], "value 1 is '1', allowed: BYTES"),
        ([tensor(datatype="BYTES", data=["x", "y"])], "row 0: column 'price' is 'x'"),
        ([tensor(), tensor()], "is there twice"),
        ([tensor(), tensor(name="site", shape=[1], data=[1])], "has 1 rows, 'price' has 2"),
    ],
)
def test_what_is_no_tensor(app: App, inputs: list[Any], said: str) -> None:
    answer = call(app, "POST", INFER, {"inputs": inputs})
    assert answer.status == 400 and said in json.loads(answer.body)["error"]


def test_a_slow_body_is_let_go(app: App) -> None:
    assert asyncio.run(ask(app, "POST", "/predict", [])).status == 408


def test_arrow_of_other_columns(app: App) -> None:
    missing = call(app, "POST", "/predict", arrow(pa.table({"site": ["x"]})), content_type=ARROW)
    assert missing.status == 400 and b"is not in the data" in missing.body
    table = rows_of_all_kinds(3).set_column(4, "price", pa.array([1.0, float("inf"), 2.0]))
    assert b"row 1: column 'price' is inf" in call(app, "POST", "/predict", arrow(table), content_type=ARROW).body


def test_the_token(served: Served) -> None:
    app = App({"ctr": served.scorer}, token=b"secret-secret-secret")
    for path in ("/predict", INFER, "/metrics", "/", "/openapi.json"):
        assert call(app, "POST" if "e" in path[-2:] else "GET", path, ROW).status in (401, 405)
    assert call(app, "POST", "/predict", ROW).headers["www-authenticate"] == "Bearer"
    assert call(app, "POST", "/predict", ROW, authorization="Bearer wrong").status == 401
    assert call(app, "POST", "/predict", ROW, authorization="Bearer secret-secret-secret").status == 200
    assert call(app, "GET", "/v2/health/ready").status == 200


def test_what_comes_together_is_scored_together_and_a_bad_request_harms_no_other(app: App, served: Served) -> None:
    rows = as_json(rows_of_all_kinds(60, seed=5))
    expected = served.scorer.score(rows).tolist()

    async def all_at_once() -> list[Answer]:
        bodies = [json.dumps(rows[n : n + 1 + n % 3]).encode() for n in range(len(rows))]
        bodies[7] = b'[{"price": "x"}]'
        bodies[30] = json.dumps([rows[30], rows[31], {"tags": 1}]).encode()
        return await asyncio.gather(*[ask(app, "POST", "/predict", body) for body in bodies])

    answers = asyncio.run(all_at_once())
    assert [n for n, answer in enumerate(answers) if answer.status != 200] == [7, 30]
    assert b"row 0: column 'price'" in answers[7].body and b"row 2: column 'tags'" in answers[30].body
    found = {n: json.loads(a.body)["predictions"] for n, a in enumerate(answers) if a.status == 200}
    assert found == {n: expected[n : n + 1 + n % 3] for n in found}
    assert app.models["ctr"].stable.batches == 3  # all, all but one, all but two


def test_a_defect_of_ours_is_500_and_the_server_goes_on(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Scorer, rows: Any) -> Any:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", broken)
        answer = call(app, "POST", "/predict", ROW)
        assert (answer.status, json.loads(answer.body)) == (500, {"error": "RuntimeError: a defect"})
    assert call(app, "POST", "/predict", ROW).status == 200


def test_metrics_count(served: Served) -> None:
    app = App({"ctr": served.scorer})
    call(app, "POST", "/predict", [ROW, ROW])
    call(app, "POST", "/predict", b"x")
    text = call(app, "GET", "/metrics").body.decode()
    assert 'penstock_requests_total{route="/predict",status="200"} 1.0' in text
    assert 'penstock_requests_total{route="/predict",status="400"} 1.0' in text
    assert 'penstock_rows_total{model="ctr",role="stable"} 2.0' in text
    assert 'penstock_model_info{kind="linear",model="ctr",role="stable",version="1"} 1.0' in text
    assert 'penstock_request_seconds_count{route="/predict"} 2.0' in text


def test_the_access_log(served: Served) -> None:
    out = io.StringIO()
    app = App({"ctr": served.scorer}, access_log=out)
    call(app, "POST", "/predict", ROW)
    call(app, "POST", "/predict\n/x", ROW)
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (first["method"], first["path"], first["status"]) == ("POST", "/predict", 200)
    assert first["ms"] >= 0 and second["status"] == 404


def test_it_describes_itself(app: App) -> None:
    described = json.loads(call(app, "GET", "/openapi.json").body)
    properties = described["components"]["schemas"]["Row of ctr"]["properties"]
    assert properties["price"]["type"] == ["number", "boolean", "null"]
    assert properties["tags"]["type"] == ["array", "null"]
    assert set(described["paths"]) >= {"/predict", "/v2/models/{name}/infer", "/metrics"}
    page = call(app, "GET", "/", host="<b>:1").body.decode()
    assert "<td>price</td><td>number, boolean</td>" in page and "curl &lt;b&gt;:1/predict" in page
    assert call(app, "HEAD", "/").body == b""
    assert json.loads(call(app, "GET", "/v2/health/live").body) == {"live": True}
    assert json.loads(call(app, "GET", "/v2/models").body) == {"models": [{"name": "ctr", "version": "1"}]}
