"""ONNX models give the scores of ``predict``, in onnxruntime."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.errors import ConfigError, DataError, StorageError
from penstock.export import onnx as exporter
from penstock.export import write_onnx
from penstock.score import RowEncoder
from tests.score.conftest import as_rows, trained
from tests.serve.conftest import rows_of_all_kinds

pytest.importorskip("onnx", reason="needs penstock-ml[onnx]")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

WITHIN = 1e-6


def session(path: Path) -> Any:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def by_keys(path: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """Scores of the model of hashed keys."""
    loaded = session(path)
    plan = json.loads(loaded.get_modelmeta().custom_metadata_map["penstock.features"])
    keys, values = RowEncoder(plan).encode(rows).padded()
    return loaded.run(["score"], {"keys": keys, "values": values})[0][:, 0]


def tensors(path: Path, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Columns as a client gives them."""
    found = {}
    for each in session(path).get_inputs():
        values = [row.get(each.name) for row in rows]
        if each.type == "tensor(string)":
            texts = ["" if x is None else str(x).lower() if isinstance(x, bool) else str(x) for x in values]
            found[each.name] = np.array(texts, object)[:, None]
        else:
            assert each.type == "tensor(double)"
            found[each.name] = np.array([math.nan if x is None else x for x in values], np.float64)[:, None]
    return found


def by_columns(path: Path, rows: list[dict[str, Any]], output: str = "score") -> np.ndarray:
    """Scores of the model of columns."""
    return session(path).run([output], tensors(path, rows))[0][:, 0]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return rows_of_all_kinds(3000)


@pytest.fixture(scope="module")
def flat(table: pa.Table) -> ps.Linear:
    """A model without lists."""
    return trained(
        table.drop_columns(["tags", "words"])
        .append_column("tags", table["site"])
        .append_column("words", table["user"]),
        l1=0.2,
    )


def with_columns(table: pa.Table) -> pa.Table:
    """The table as ``flat`` saw it."""
    return (
        table.drop_columns(["tags", "words"])
        .append_column("tags", table["site"])
        .append_column("words", table["user"])
    )


def test_hashed_keys_of_every_kind_of_column(table: pa.Table, tmp_path: Path) -> None:
    model = trained(table, l1=0.3)
    done = write_onnx(model, tmp_path / "m.onnx", manifest={"version": 41})
    assert 0 < done.rows == done.covered < model.rows
    assert done.inputs == {"keys": "int64", "values": "float32"}
    assert done.nbytes == (tmp_path / "m.onnx").stat().st_size
    unseen = rows_of_all_kinds(1000, seed=5)
    expected = model.predict(unseen)
    np.testing.assert_allclose(by_keys(tmp_path / "m.onnx", as_rows(unseen)), expected, rtol=0, atol=WITHIN)
    about = session(tmp_path / "m.onnx").get_modelmeta()
    assert about.producer_name == "penstock" and about.custom_metadata_map["penstock.version"] == "41"
    assert json.loads(about.custom_metadata_map["penstock.lineage"])["rows"] == 3000


def test_columns_with_the_vocabulary_of_training(table: pa.Table, flat: ps.Linear, tmp_path: Path) -> None:
    pq.write_table(with_columns(table), tmp_path / "seen.parquet")
    done = write_onnx(flat, tmp_path / "m.onnx", vocabulary=str(tmp_path / "seen.parquet"))
    assert done.covered == done.rows < flat.rows
    assert done.inputs["site"] == done.inputs["user"] == done.inputs["mobile"] == "string"
    assert done.inputs["price"] == done.inputs["width"] == done.inputs["seen"] == "float64"
    # Other rows, of the same categories.
    unseen = with_columns(rows_of_all_kinds(2000, seed=6))
    expected = flat.predict(unseen)
    assert len(np.unique(expected)) > 1000
    np.testing.assert_allclose(by_columns(tmp_path / "m.onnx", unseen.to_pylist()), expected, rtol=0, atol=WITHIN)


def test_an_f32_column_is_rounded_to_it(tmp_path: Path) -> None:
    """Numbers come as f64, and training saw f32: far from 0 these differ by more than a rounding of the sum."""
    width = np.random.default_rng(2).random(300) + 1000
    table = pa.table({"label": np.arange(300) % 2, "width": pa.array(width, pa.float32())})
    model = ps.Linear(ps.Features(numeric=["width"]), optimizer=ps.SGD(alpha=2.0))
    ps.fit(model, table, progress=False)
    write_onnx(model, tmp_path / "m.onnx", vocabulary=table)
    rows = [{"width": x} for x in width.tolist()]
    np.testing.assert_allclose(by_columns(tmp_path / "m.onnx", rows), model.predict(table), rtol=0, atol=WITHIN)
    wide = model.predict(pa.table({"width": width}))
    assert np.abs(wide - model.predict(table)).max() > 2 * WITHIN


def test_a_category_that_the_vocabulary_lacks_counts_nothing(
    table: pa.Table, flat: ps.Linear, tmp_path: Path
) -> None:
    full = with_columns(table)
    some = full.filter(pc.fill_null(pc.not_equal(full["site"], "site-3"), True))
    done = write_onnx(flat, tmp_path / "m.onnx", vocabulary=some)
    assert done.covered < done.rows
    rows = full.to_pylist()[:500]
    hidden = [row["site"] == "site-3" for row in rows]
    assert 0 < sum(hidden) < 500
    scores, expected = by_columns(tmp_path / "m.onnx", rows), flat.predict(full.slice(0, 500))
    same = np.isclose(scores, expected, rtol=0, atol=WITHIN)
    assert same[~np.array(hidden)].all() and not same[hidden].any()
    # As the model scores a category that it has never seen.
    others = [{**row, "site": "new", "tags": "new"} if row["site"] == "site-3" else row for row in rows]
    expected = flat.predict(pa.Table.from_pylist(others, full.schema))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=WITHIN)


TEXTS = st.none() | st.sampled_from(["", "a", "b", "17", "017", "x\x1fy", "é", "x", "y"])
NUMBERS = st.none() | st.floats(-1e6, 1e6) | st.integers(-9, 9).map(float)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(TEXTS, TEXTS, TEXTS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=20),
    st.lists(st.tuples(TEXTS, TEXTS, TEXTS, NUMBERS, NUMBERS, NUMBERS), max_size=10),
    st.booleans(),
)
def test_any_rows_of_columns(rows: list[Any], more: list[Any], bias: bool) -> None:
    """Combinations that the vocabulary has not are unknown to the model as well, as it is that of training."""
    names = ["a", "b", "_c", "raw", "score", "log"]
    types = [pa.string()] * 3 + [pa.float64()] * 3

    def as_table(part: list[Any]) -> pa.Table:
        arrays = [pa.array([row[i] for row in part], type_) for i, type_ in enumerate(types)]
        return pa.table([pa.array([n % 2 for n in range(len(part))]), *arrays], names=["label", *names])

    seen, unseen = as_table(rows), as_table([*rows, *more])
    features = ps.Features(
        numeric=[
            ps.Numeric(name="raw", how="raw"),
            "score",
            ps.Numeric(name="log", how="log", per_octave=3),
        ],
        categorical=["a", "b"],
        crosses=[("a", "_c"), ("a", "b", "_c")],
        bias=bias,
    )
    model = ps.Linear(features, optimizer=ps.FTRL(alpha=0.01), slots=64, segments=2)
    ps.fit(model, seen, progress=False)
    written: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "_write", lambda _, data: written.append(data))
        done = write_onnx(model, "never written", vocabulary=seen)
    assert done.output == "score_" and done.covered == done.rows
    loaded = ort.InferenceSession(written[0], providers=["CPUExecutionProvider"])
    columns = {}
    for name in done.inputs:
        values = unseen[name].to_pylist()
        text = done.inputs[name] == "string"
        columns[name] = np.array(
            [["" if text else math.nan] if x is None else [x] for x in values], object if text else np.float64
        )
    scores = loaded.run(["score_"], columns)[0][:, 0]
    np.testing.assert_allclose(scores, model.predict(unseen), rtol=0, atol=WITHIN)


def test_a_vocabulary_has_the_texts_that_json_would_bring(tmp_path: Path) -> None:
    table = pa.table(
        {
            "label": [0, 1, 1, 0],
            "id": pa.array([1, None, 3, 2**40]),
            "flag": [True, False, None, True],
            "ratio": pa.array([0.5, 2.0, None, 1e-7]),
            "coded": pa.array(["a", "b", "a", None]).dictionary_encode(),
            "bytes": pa.array([b"ok", b"\xff", None, b"ok"]),
            "none": pa.nulls(4),
        }
    )
    model = ps.Linear(ps.Features(categorical=["id", "flag", "ratio", "coded", "bytes", "none"]))
    ps.fit(model, table, progress=False, passes=3)
    found = exporter.Vocabulary(model, model.plan, table)  # type: ignore[arg-type]
    assert {name: found.texts(name) for name in found.categories} == {
        "id": ["", "1", "1099511627776", "3"],
        "flag": ["", "false", "true"],
        "ratio": ["", "0.5", "1e-7", "2"],
        "coded": ["", "a", "b"],
        "bytes": ["", "ok"],
        "none": [""],
    }
    done = write_onnx(model, tmp_path / "m.onnx", vocabulary=table)
    # Bytes that are no text are not covered.
    assert done.covered == done.rows - 1


def test_what_a_vocabulary_cannot_describe(table: pa.Table, flat: ps.Linear, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="column 'tags' is a list, which has no tensor of its own"):
        write_onnx(trained(table), tmp_path / "m.onnx", vocabulary=table)
    crossed = ps.Linear(ps.Features(label="clicked", numeric=["price"], crosses=[("price", "site")]))
    ps.fit(crossed, table, progress=False)
    with pytest.raises(ConfigError, match="column 'price' is a number that is crossed"):
        write_onnx(crossed, tmp_path / "m.onnx", vocabulary=table)
    with pytest.raises(DataError, match="column 'site' is not in the data"):
        write_onnx(flat, tmp_path / "m.onnx", vocabulary=table.select(["user", "mobile"]))
    fine = ps.Linear(ps.Features(label="clicked", numeric=[ps.Numeric(name="seen", how="log", per_octave=5000)]))
    ps.fit(fine, table, progress=False)
    with pytest.raises(ConfigError, match="'seen' has 5000 buckets for each doubling; as ONNX 4096 are allowed"):
        write_onnx(fine, tmp_path / "m.onnx", vocabulary=table)
    with pytest.raises(StorageError, match=r"nowhere/m\.onnx: cannot be written"):
        write_onnx(flat, tmp_path / "nowhere" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_too_large_is_refused(
    table: pa.Table, flat: ps.Linear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "LIMIT_NBYTES", 1200)
    with pytest.raises(ConfigError, match=r"features that are not 0; as ONNX, .* 2 GiB, 100 are allowed"):
        write_onnx(flat, tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="more than the 1,200 bytes that are allowed"):
        write_onnx(flat, tmp_path / "m.onnx", vocabulary=with_columns(table))
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_below_that_of_a_protocol_buffer(flat: ps.Linear, table: pa.Table, tmp_path: Path) -> None:
    """What is counted before is close to what a file takes, and 2 GiB stay out of reach."""
    counted = []

    class Counting(exporter.Graph):
        def _count(self, nbytes: int) -> None:
            counted.append(nbytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "Graph", Counting)
        for vocabulary in (None, with_columns(table)):
            counted.clear()
            nbytes = write_onnx(flat, tmp_path / "m.onnx", vocabulary=vocabulary).nbytes
            assert nbytes - 12_000 < sum(counted) < nbytes + 1000
    assert exporter.LIMIT_NBYTES < 2**31 - 100_000
