"""Rows from JSON give the bits that ``predict`` gives for the table that they stand in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.features import ColumnPlan, Encoder, FeaturePlan, ValueEncoder
from penstock.features.memory import Memory
from penstock.serve.rows import BadRow, RowReader, read_values
from penstock.serve.scorer import Scorer
from penstock.serve.versions.load import load_scorer
from tests.serve.conftest import Served, rows_of_all_kinds


def as_json(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as a client would send them."""
    rows = table.to_pylist()
    for row in rows:
        if row.get("words") is not None:
            row["words"] = dict(row["words"])
        if row.get("width") is not None:
            row["width"] = float(str(np.float32(row["width"])))  # the shortest text that is this f32
    found: list[dict[str, Any]] = json.loads(json.dumps(rows))
    return found


def test_rows_are_scored_as_the_trainer_scores_them(served: Served) -> None:
    unseen = rows_of_all_kinds(500, seed=1)
    expected = served.model.predict(unseen)
    assert len(np.unique(expected)) > 400
    np.testing.assert_array_equal(served.scorer.score(as_json(unseen)), expected)
    one_by_one = [served.scorer.score([row])[0] for row in as_json(unseen)]
    np.testing.assert_array_equal(one_by_one, expected)
    np.testing.assert_array_equal(served.scorer.score_table(unseen), expected)


def test_a_missing_column_is_null_and_an_unknown_one_nothing(served: Served) -> None:
    some, score = {"site": "site-1", "price": 2.5}, served.scorer.score
    nulls = dict.fromkeys(served.table.column_names)
    assert score([some]) == score([{**nulls, **some}]) == score([{**some, "other": {"x": [1]}, "clicked": "x"}])


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ([17, 17.0, "17"], "user"),
        ([True, "true"], "mobile"),
        ([0.1, "0.1"], "site"),
        ([-0.0, 0, "0"], "site"),
        ([1e300, "1e+300"], "site"),
        ([2**63, str(2**63)], "site"),
        ([1, 1.0, True], "price"),
    ],
)
def test_equal_values_are_equal_however_they_are_written(served: Served, values: list[Any], column: str) -> None:
    [batch] = served.scorer.reader.read([{column: value} for value in values]).to_pylist()[:1]
    assert batch[column] is not None
    keys = Encoder(served.scorer.model.plan).encode(  # type: ignore[arg-type]
        served.scorer.reader.read([{column: value} for value in values]), labelled=False
    )
    per_row = np.split(keys.keys, keys.offsets[1:-1])
    assert all(set(row.tolist()) == set(per_row[0].tolist()) for row in per_row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "got [], allowed: an object of columns"),
        ("x", "got 'x', allowed: an object of columns"),
        ({"other": 1}, "has none of the model's columns"),
        ({"price": "3"}, "column 'price' is '3'; allowed: a number, or null"),
        ({"price": [3]}, "column 'price' is [3]"),
        ({"price": 10**400}, "column 'price' is 1000"),
        ({"words": {"w": 10**400}}, "column 'words'"),
        ({"site": ["a"]}, "column 'site' is ['a']; allowed: text, a number or a boolean"),
        ({"site": "\ud800"}, "column 'site'"),
        ({"tags": "t1"}, "column 'tags' is 't1'; allowed: a list"),
        ({"tags": [{}]}, "column 'tags' is [{}]; allowed: a list"),
        ({"words": ["w"]}, "column 'words' is ['w']; allowed: an object of numbers"),
        ({"words": {"w": "1"}}, "column 'words'"),
        ({"price": 1e39}, "column 'price' is 1e+39; allowed: a finite f32 number"),
        ({"words": {"w": 1e39}}, "column 'words' has the value"),
        ({"site": "x" * 10_000, "price": "y" * 10_000}, "column 'price'"),
    ],
)
def test_what_cannot_be_scored(served: Served, row: Any, said: str) -> None:
    good = {"site": "site-1"}
    with pytest.raises(BadRow) as caught:
        served.scorer.score([good, good, row, good])
    message = str(caught.value)
    assert said in message and message.startswith("row 2: ") and "\n" not in message and len(message) < 300
    assert caught.value.row == 2


def without_lists(served: Served, folder: Path) -> tuple[ps.Linear, Scorer]:
    """A model whose plan has no lists, so that its rows take the short way."""
    features = ps.Features(
        label="clicked",
        numeric=["price", "width", ps.Numeric(name="seen", how="log")],
        categorical=["site", "user", "mobile"],
        crosses=[("site", "tagged"), ("user", "mobile", "site")],
    )
    table = served.table.append_column("tagged", pc.list_value_length(served.table["tags"]))
    model = ps.Linear(features)
    ps.fit(model, table, progress=False)
    model.save(folder)
    return model, load_scorer(folder)


def test_the_short_way_gives_the_same_bits(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, scorer = without_lists(served, tmp_path)
    unseen = rows_of_all_kinds(300, seed=6)
    unseen = unseen.append_column("tagged", pc.list_value_length(unseen["tags"]))
    expected = model.predict(unseen)
    monkeypatch.setattr(scorer, "reader", None)  # the long way
    with pytest.raises(AttributeError):
        scorer.score(as_json(unseen))
    monkeypatch.undo()
    monkeypatch.setattr(RowReader, "read", None)
    np.testing.assert_array_equal(scorer.score(as_json(unseen)), expected)
    assert [scorer.score([row])[0] for row in as_json(unseen)[:50]] == expected[:50].tolist()
    odd = [{"site": 1.0, "user": True, "price": True}, {"mobile": "true", "price": 2**70}]
    short = scorer.score(odd)
    monkeypatch.undo()
    monkeypatch.setattr(scorer, "_values", None)
    np.testing.assert_array_equal(short, scorer.score(odd))


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)


SHORT = FeaturePlan(
    label="y",
    columns=(
        ColumnPlan(name="number", kind="standard", type="double", mean=0.5, scale=3.0),
        ColumnPlan(name="narrow", kind="raw", type="float"),
        ColumnPlan(name="log", kind="log", type="int64", scale=4.0),
        ColumnPlan(name="category", kind="categorical", type="string"),
        ColumnPlan(name="tags", kind="categorical", type="string"),
    ),
    crosses=(("category", "words"), ("other", "tags", "words")),
)
short_names = ("number", "narrow", "log", "category", "tags", "words", "other", "unknown")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_both_ways_agree_on_whatever_comes(data: st.DataObject) -> None:
    """The short way gives the keys and values of the long one, or leaves rows to it."""
    rows = data.draw(st.lists(st.dictionaries(st.sampled_from(short_names), scalars), min_size=1, max_size=4))
    values = ValueEncoder(SHORT)
    found = read_values(values, rows)
    batch = values.encode(*found, Memory()) if found is not None else None
    try:
        expected = Encoder(SHORT).encode(RowReader(SHORT).read(rows), labelled=False)
    except (BadRow, ps.PenstockError):
        assert batch is None
        return
    assert batch is not None and batch.width == expected.width
    np.testing.assert_array_equal(batch.keys, expected.keys)
    np.testing.assert_array_equal(batch.offsets, expected.offsets)
    np.testing.assert_array_equal(batch.values, expected.values)  # type: ignore[arg-type]


anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
names = ("number", "log", "category", "tags", "words", "other")
PLAN = FeaturePlan(
    label="y",
    columns=(
        ColumnPlan(name="number", kind="standard", type="double"),
        ColumnPlan(name="log", kind="log", type="int64", scale=4.0),
        ColumnPlan(name="category", kind="categorical", type="string"),
        ColumnPlan(name="tags", kind="list", type="list<item: string>"),
        ColumnPlan(name="words", kind="map", type="map<string, double>"),
    ),
    crosses=(("category", "crossed"),),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(names), anything) | anything, min_size=1, max_size=4))
def test_whatever_comes_is_scored_or_refused(rows: list[Any]) -> None:
    model = ps.Linear(PLAN, slots=64, segments=2)
    reader, encoder = RowReader(PLAN), Encoder(PLAN)
    try:
        reader.check(rows)
        encoded = encoder.encode(reader.read(rows), labelled=False)
    except (BadRow, ps.PenstockError) as error:
        assert "\n" not in str(error)
        return
    assert np.isfinite(model.predict_batch(encoded)).all()


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**62), 2**62))
def test_a_number_as_a_category_has_the_key_of_its_column_in_arrow(value: float) -> None:
    plan = FeaturePlan(label="y", columns=(ColumnPlan(name="c", kind="categorical", type="double"),), bias=False)
    other = pa.record_batch({"c": pa.array([value])})
    encoder = Encoder(plan)
    mixed = RowReader(plan).read([{"c": value}, {"c": "text"}])  # so that numbers become texts one by one
    assert encoder.encode(mixed, labelled=False).keys[0] == encoder.encode(other, labelled=False).keys[0]
    assert math.isfinite(value)
