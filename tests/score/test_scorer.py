"""The scorer has the bits of ``Model.predict``, and refuses what the server refuses."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.errors import ConfigError, RowError
from penstock.export import write_npz
from penstock.export.rows import nonzero_rows
from penstock.features import ColumnPlan, Encoder, FeaturePlan
from penstock.score import RowEncoder, Scorer, scorer
from penstock.serve.rows import RowReader
from tests.score.conftest import Exported, as_rows
from tests.serve.conftest import rows_of_all_kinds


def test_scores_have_the_bits_of_predict(exported: Exported) -> None:
    unseen = rows_of_all_kinds(3000, seed=1)
    expected = exported.model.predict(unseen)
    assert len(np.unique(expected)) > 1000
    scores = exported.scorer.predict(as_rows(unseen))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, expected)
    assert [exported.scorer.predict([row])[0] for row in as_rows(unseen)[:200]] == expected[:200].tolist()


def test_rows_of_weight_0_are_left_out(exported: Exported) -> None:
    assert 0 < len(exported.scorer) < exported.model.rows
    assert exported.scorer.version == "41"
    assert exported.scorer.inputs == exported.model.plan.inputs  # type: ignore[union-attr]


def test_many_rows_are_scored_in_parts(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = as_rows(exported.table.slice(0, 50))
    monkeypatch.setattr(scorer, "PART_ROWS", 7)
    np.testing.assert_array_equal(
        exported.scorer.predict(rows), exported.model.predict(exported.table.slice(0, 50))
    )
    with pytest.raises(RowError, match=r"^row 30: column 'price' is 'x'; allowed: a number, or null$"):
        exported.scorer.predict([*rows[:30], {"price": "x"}])


def test_without_the_c_library_scores_differ_by_a_rounding(exported: Exported, monkeypatch: Any) -> None:
    rows, expected = as_rows(exported.table), exported.model.predict(exported.table)
    monkeypatch.setattr(scorer.ctypes, "CDLL", None)
    portable = Scorer.load(exported.file)
    assert portable._exp is None
    np.testing.assert_array_max_ulp(portable.predict(rows), expected, 1)


def test_threads_share_a_scorer(exported: Exported) -> None:
    rows, expected = as_rows(exported.table), exported.model.predict(exported.table)
    parts = [slice(begin, begin + 100) for begin in range(0, 2000, 100)]
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda part: exported.scorer.predict(rows[part]), parts))
    np.testing.assert_array_equal(np.concatenate(scores), expected)


def test_missing_unknown_and_equal_values(exported: Exported) -> None:
    score, some = exported.scorer.predict, {"site": "site-1", "price": 2.5}
    nulls = dict.fromkeys(exported.table.column_names)
    assert score([some]) == score([{**nulls, **some}]) == score([{**some, "other": [1], "clicked": "x"}])
    for equal in ([17, 17.0, "17"],):
        assert len({float(score([{"user": value}])[0]) for value in equal}) == 1
    assert score([{"mobile": True}]) == score([{"mobile": "true"}]) != score([{"mobile": False}])
    assert score([{"site": ""}]) == score([{"site": None}])
    assert score([]).shape == (0,)


def test_large_weights_do_no_harm() -> None:
    plan = FeaturePlan(label="y", columns=(ColumnPlan(name="x", kind="raw", type="double"),), bias=False)
    key = RowEncoder(plan.to_dict()).encode([{"x": 1.0}]).keys
    found = Scorer({"features": plan.to_dict()}, key, np.array([3e38], np.float32))
    assert found.predict([{"x": -1.0}, {"x": 3e38}, {"x": 0}]).tolist() == [0.0, 1.0, 0.5]


def test_a_model_without_rows_knows_nothing() -> None:
    model = ps.Linear(PLAN, slots=64, segments=2)
    found = Scorer({"features": PLAN.to_dict()}, *nonzero_rows(model))
    assert len(found) == 0 and found.predict([{"category": "a"}]).tolist() == [0.5]


@pytest.mark.parametrize("rows", [1, 2, 3, 1000, 4095, 4097])
def test_rows_are_found_by_key(rows: int) -> None:
    draw = np.random.default_rng(rows)
    keys = np.unique(draw.integers(1, 2**63, rows, np.uint64) * np.uint64(2))
    keys[-1] = np.uint64(2**64 - 2)
    # Half of them close together, where hashes would not be.
    keys[: len(keys) // 2] = np.arange(len(keys) // 2, dtype=np.uint64) * np.uint64(2) + keys[0] // np.uint64(
        4
    ) * np.uint64(2)
    keys = np.unique(keys)
    weights = np.arange(1, len(keys) + 1, dtype=np.float32)
    found = scorer._Rows(keys, weights)
    np.testing.assert_array_equal(found.find(keys[::-1]), weights[::-1])
    others = np.setdiff1d(
        np.concatenate([keys - np.uint64(2), keys + np.uint64(2), keys[:1] * np.uint64(0)]), keys
    )
    assert not found.find(others).any()


# Any plan, any rows.

names = ("number", "narrow", "log", "category", "17", "é b", "tags", "words", "only crossed")
kinds = {
    "number": st.sampled_from(["raw", "standard"]),
    "narrow": st.sampled_from(["raw", "standard", "log"]),
    "log": st.just("log"),
    "tags": st.just("list"),
    "words": st.just("map"),
}


@st.composite
def plans(draw: Any) -> FeaturePlan:
    columns = []
    for name in draw(st.lists(st.sampled_from(names[:-1]), min_size=1, unique=True)):
        kind = draw(kinds.get(name, st.just("categorical")))
        mean = draw(st.floats(-1e3, 1e3)) if kind == "standard" else 0.0
        scale = draw(st.floats(0.01, 1e3)) if kind == "standard" else 1.0
        scale = float(draw(st.integers(1, 50))) if kind == "log" else scale
        type_ = {"narrow": "float", "tags": "list<item: string>"}.get(name, "double")
        columns.append(ColumnPlan(name=name, kind=kind, type=type_, mean=mean, scale=scale))
    single = [column.name for column in columns if column.kind not in ("list", "map")]
    crosses = st.lists(st.sampled_from([*single, "only crossed", "category"]), min_size=2, max_size=3, unique=True)
    return FeaturePlan(
        label="y",
        columns=tuple(columns),
        crosses=tuple({tuple(sorted(cross)) for cross in draw(st.lists(crosses, max_size=2))}),
        bias=draw(st.booleans()),
    )


texts = st.sampled_from(["", "a", "b", "17", "017", "true", "long enough for two words"]) | st.text(max_size=9)
# A boolean in a column of numbers that is crossed as well is "true" to some readers, and 1 to others.
plain = st.none() | st.integers(-5, 5) | st.floats(-1e6, 1e6) | texts
odd = st.integers(-(2**70), 2**70) | st.floats()
values = {
    "number": st.none() | st.integers(-5, 5) | st.floats(-1e6, 1e6),
    "narrow": st.none() | st.floats(-1e6, 1e6),
    "log": st.none() | st.integers(0, 10**6) | st.floats(-1e9, 1e9),
    "tags": st.none() | st.lists(plain, max_size=5) | st.lists(st.integers(0, 70), min_size=60, max_size=70),
    "words": st.none() | st.dictionaries(texts, st.none() | st.booleans() | st.floats(-9, 9), max_size=5),
}
good_rows = st.fixed_dictionaries({}, optional={name: values.get(name, plain) for name in names})
scalars = plain | odd
anything = st.recursive(
    scalars, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3)
)
any_rows = st.fixed_dictionaries({}, optional=dict.fromkeys(names, anything)) | scalars


def both_scores(plan: FeaturePlan, rows: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Scores by the scorer and by the model, which has learnt some of the rows; neither is kept.

    (A failing test keeps what it names, and a model reserves a TiB of addresses.)
    """
    model = learnt(plan, rows[: len(rows) // 2 + 1])
    expected = model.predict_batch(Encoder(plan).encode(RowReader(plan).read(rows), labelled=False))
    return Scorer({"features": plan.to_dict()}, *nonzero_rows(model)).predict(rows), expected


def learnt(plan: FeaturePlan, rows: list[Any]) -> ps.Linear:
    """A model that has learnt some rows."""
    model = ps.Linear(plan, optimizer=ps.FTRL(alpha=0.7), slots=64, segments=2)
    reader = RowReader(plan)
    batch = Encoder(plan).encode(reader.read(rows), labelled=False)
    batch.labels[::2] = 1
    model.learn(batch, np.empty(len(batch), np.float32))
    return model


@settings(deadline=None, max_examples=300)
@given(plans(), st.lists(good_rows, min_size=1, max_size=8), st.lists(good_rows, max_size=4))
def test_any_plan_and_rows_give_the_bits_of_the_model(plan: FeaturePlan, rows: list[Any], more: list[Any]) -> None:
    known = set(plan.inputs)
    rows = [row for row in [*rows, *more] if known & row.keys()]
    if not rows:
        return
    np.testing.assert_array_equal(*both_scores(plan, rows))
    encoded = Encoder(plan).encode(RowReader(plan).read(rows), labelled=False)
    mine = RowEncoder(plan.to_dict()).encode(rows)
    np.testing.assert_array_equal(mine.keys, encoded.keys)
    np.testing.assert_array_equal(mine.offsets, encoded.offsets)
    np.testing.assert_array_equal(
        mine.values, np.ones_like(mine.values) if encoded.values is None else encoded.values
    )
    keys, weights = mine.padded()
    assert keys.shape == weights.shape == (len(rows), np.diff(mine.offsets).max())
    np.testing.assert_array_equal(keys[keys != 0].view(np.uint64), mine.keys)


@pytest.mark.parametrize("items", [1, 63, 64, 65, 66, 200])
def test_the_keys_of_a_list_are_in_the_order_of_training(items: int) -> None:
    plan = FeaturePlan(label="y", columns=(ColumnPlan(name="tags", kind="list", type="list<item: string>"),))
    rows = [{"tags": [f"t{n * 7 % 150}" for n in range(items)]}, {"tags": []}, {"tags": ["b", "a", "b", None, ""]}]
    expected = Encoder(plan).encode(RowReader(plan).read(rows), labelled=False)
    found = RowEncoder(plan.to_dict()).encode(rows)
    np.testing.assert_array_equal(found.keys, expected.keys)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


PLAN = FeaturePlan(
    label="y",
    columns=(
        ColumnPlan(name="number", kind="standard", type="double", mean=0.5, scale=3.0),
        ColumnPlan(name="narrow", kind="raw", type="float"),
        ColumnPlan(name="log", kind="log", type="int64", scale=4.0),
        ColumnPlan(name="category", kind="categorical", type="string"),
        ColumnPlan(name="17", kind="categorical", type="int64"),
        ColumnPlan(name="tags", kind="list", type="list<item: string>"),
        ColumnPlan(name="words", kind="map", type="map<string, double>"),
    ),
    crosses=(("category", "only crossed"),),
)
SERVED = RowReader(PLAN)


@settings(deadline=None, max_examples=500)
@given(st.lists(any_rows, min_size=1, max_size=3))
def test_what_the_server_refuses_is_refused_and_nothing_else(rows: list[Any]) -> None:
    try:
        SERVED.check(rows)
        expected = Encoder(PLAN).encode(SERVED.read(rows), labelled=False)
    except ps.PenstockError:
        with pytest.raises(RowError) as caught:
            RowEncoder(PLAN.to_dict()).encode(rows)
        assert "\n" not in str(caught.value)
        if len(rows) == 1:
            assert caught.value.row == 0
        return
    found = RowEncoder(PLAN.to_dict()).encode(rows)
    np.testing.assert_array_equal(found.keys, expected.keys)
    np.testing.assert_array_equal(found.values, expected.values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "got [], allowed: an object of columns"),
        ({"other": 1}, "has none of the model's columns; they are price, "),
        ({"price": "3"}, "column 'price' is '3'; allowed: a number, or null"),
        ({"price": math.nan}, "column 'price' is nan; allowed: a finite f32 number, or null"),
        ({"price": 1e39}, "column 'price' is 1e+39; allowed: a finite f32 number, or null"),
        ({"seen": math.inf}, "column 'seen' is inf; allowed: a finite f32 number, or null"),
        ({"price": 10**400}, "column 'price' is 1000"),
        ({"site": ["a"]}, "column 'site' is ['a']; allowed: text, a number or a boolean, or null"),
        ({"site": "\ud800"}, "column 'site' is '\\ud800'; allowed: text"),
        ({"tags": "t1"}, "column 'tags' is 't1'; allowed: a list of texts, numbers or booleans, or null"),
        ({"words": ["w"]}, "column 'words' is ['w']; allowed: an object of numbers, or null"),
        ({"words": {"w": 1e39}}, "column 'words' has the value 1e+39; allowed: finite f32 numbers"),
        ({"site": ["y" * 10_000]}, "column 'site' is ['yyyyy"),
    ],
)
def test_what_is_wrong_is_said(exported: Exported, row: Any, said: str) -> None:
    good = {"site": "site-1", "words": {"a": 1}}
    with pytest.raises(RowError) as caught:
        exported.scorer.predict([good, good, row, good])
    message = str(caught.value)
    assert message.startswith(f"row 2: {said}") and "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "features of hashing version 2; allowed: 1"),
        ({"columns": [{"name": "x", "kind": "new"}]}, "column 'x' is of unknown kind 'new'"),
        ({"columns": None}, "feature plan: damaged"),
        ({"columns": [{"kind": "raw"}]}, "feature plan: damaged"),
    ],
)
def test_a_plan_that_it_does_not_know_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RowEncoder({**PLAN.to_dict(), **change})


def test_what_is_crossed_may_be_a_number_too(tmp_path: Any) -> None:
    draw = np.random.default_rng(3)
    table = pa.table(
        {
            "clicked": draw.integers(0, 2, 400),
            "width": pa.array(draw.integers(0, 9, 400) / 10, pa.float32()),
            "age": draw.integers(0, 5, 400),
            "site": [f"s{n}" for n in draw.integers(0, 3, 400)],
        }
    )
    features = ps.Features(
        label="clicked",
        numeric=["width", "age"],
        categorical=["site"],
        crosses=[("age", "site"), ("site", "width")],
    )
    model = ps.Linear(features)
    ps.fit(model, table, progress=False)
    write_npz(model, tmp_path / "m.npz")
    np.testing.assert_array_equal(Scorer.load(tmp_path / "m.npz").predict(table.to_pylist()), model.predict(table))
