"""What the user says about columns, and the plan that it becomes."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from penstock.errors import ConfigError, DataError
from penstock.features import ColumnPlan, FeaturePlan, Features, Numeric

DAY = datetime.date(2024, 2, 29)

EVERY_TYPE = pa.table(
    {
        "label": pa.array([1], pa.int8()),
        "id": pa.array([7], pa.int64()),
        "small": pa.array([7], pa.uint8()),
        "flag": pa.array([True]),
        "price": pa.array([1.5], pa.float64()),
        "rate": pa.array([1.5], pa.float32()),
        "cost": pa.array([Decimal("1.5")], pa.decimal128(9, 2)),
        "site": pa.array(["a"], pa.string()),
        "page": pa.array(["a"], pa.large_string()),
        "view": pa.array(["a"], pa.string_view()),
        "bytes": pa.array([b"a"], pa.binary()),
        "kind": pa.array(["a"]).dictionary_encode(),
        "day": pa.array([DAY], pa.date32()),
        "nothing": pa.nulls(1),
        "tags": pa.array([["a"]], pa.list_(pa.string())),
        "many": pa.array([["a"]], pa.large_list(pa.string())),
        "pair": pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
        "counts": pa.array([[("a", 1.0)]], pa.map_(pa.string(), pa.float64())),
        "at": pa.array([0], pa.timestamp("us")),
        "weight": pa.array([1.0]),
        "other": pa.array([1]),
    }
)


def kinds(plan: FeaturePlan) -> dict[str, str]:
    return {column.name: column.kind for column in plan.columns}


def test_kinds_follow_from_types():
    plan = Features(weight="weight", ignore=["other"]).resolve(EVERY_TYPE)
    assert kinds(plan) == {
        "id": "categorical",
        "small": "categorical",
        "flag": "categorical",
        "price": "standard",
        "rate": "standard",
        "cost": "standard",
        "site": "categorical",
        "page": "categorical",
        "view": "categorical",
        "bytes": "categorical",
        "kind": "categorical",
        "day": "categorical",
        "nothing": "categorical",
        "tags": "list",
        "many": "list",
        "pair": "list",
        "counts": "map",
    }
    assert [column.type for column in plan.columns if column.name in ("id", "rate")] == ["int64", "float"]
    assert (plan.label, plan.weight, plan.bias, plan.version) == ("label", "weight", True, 1)


def test_the_time_column_is_no_feature():
    table = pa.table({"label": [1], "day": [3], "site": ["a"]})
    assert kinds(Features(time="day").resolve(table)) == {"site": "categorical"}
    assert Features(time="day").resolve(table).time == "day"


def test_only_named_columns_are_features_where_some_are_named():
    features = Features(
        numeric=["id", "flag", Numeric(name="price", how="log", per_octave=2), Numeric(name="rate", how="raw")],
        categorical=["site", "cost", "tags", "counts"],
        crosses=[("site", "kind")],
    )
    plan = features.resolve(EVERY_TYPE)
    assert kinds(plan) == {
        "id": "standard",
        "flag": "standard",
        "price": "log",
        "rate": "raw",
        "site": "categorical",
        "cost": "categorical",
        "tags": "list",
        "counts": "map",
    }
    assert {c.name: c.scale for c in plan.columns}["price"] == 2
    assert plan.crosses == (("kind", "site"),)
    assert plan.inputs == ["id", "flag", "price", "rate", "site", "cost", "tags", "counts", "kind"]
    assert kinds(Features(categorical=["site"]).resolve(EVERY_TYPE)) == {"site": "categorical"}
    assert kinds(Features(numeric=["price"]).resolve(EVERY_TYPE)) == {"price": "standard"}


def test_crosses_alone_are_enough():
    plan = Features(categorical=[], crosses=[("site", "kind")]).resolve(EVERY_TYPE)
    assert (plan.columns, plan.crosses) == ((), (("kind", "site"),))


def test_crosses_of_the_same_columns_are_one_cross():
    table = pa.table({"label": [1], "a": [1], "b": [2], "c": [3]})
    plan = Features(crosses=[("b", "a"), ("a", "b"), ("a", "b", "a"), ("a", "c", "b")]).resolve(table)
    assert plan.crosses == (("a", "b"), ("a", "b", "c"))


def constants(numbers, **changes) -> ColumnPlan:
    table = pa.table({"label": [0] * len(numbers), "x": numbers})
    return Features(numeric=[Numeric(name="x", **changes)]).resolve(table).columns[0]


def test_mean_and_deviation_are_those_of_the_sample():
    numbers = [3.0, None, -1.5, 10.25, math.nan, math.inf, 4.0]
    finite = np.array([3.0, -1.5, 10.25, 4.0])
    column = constants(pa.array(numbers))
    assert column.mean == pytest.approx(finite.mean())
    assert column.scale == pytest.approx(1 / finite.std())
    chunked = pa.chunked_array([pa.array(numbers[:2]), pa.array(numbers[2:])])
    assert constants(chunked) == column
    assert constants(pa.array([1, 2, 6])).mean == 3
    assert constants(pa.array([True, False])).scale == 2


@pytest.mark.parametrize("how", ["raw", "log"])
def test_only_standardised_columns_have_constants(how):
    column = constants(pa.array([5.0, 7.0]), how=how, per_octave=4)
    assert (column.mean, column.scale) == (0.0, 4.0 if how == "log" else 1.0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 12345.678, -1e20, 1e-200])
def test_a_constant_column_is_not_blown_up(value):
    column = constants(pa.array([value] * 1000))
    assert column.mean == pytest.approx(value)
    assert column.scale == 1.0


@pytest.mark.parametrize(
    "numbers",
    [[], [None, None], [math.nan], [1.7e308] * 3, [1e308, -1e308], [5e-324, 0.0], [1e-310, 3e-310]],
)
def test_constants_are_finite_whatever_the_sample(numbers):
    column = constants(pa.array(numbers, pa.float64()))
    assert math.isfinite(column.mean)
    assert math.isfinite(column.scale)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Features(crosses=["ab"]), "a cross must name two or more columns, got 'ab'"),
        (lambda: Features(crosses=[("a",)]), "a cross must name two or more columns, got ('a',)"),
        (lambda: Features(crosses=[("a", "a")]), "a cross must name two or more columns, got ('a', 'a')"),
        (
            lambda: Features(crosses=[("a", "label")]),
            "column 'label' cannot be crossed: it is the label or the weight",
        ),
        (
            lambda: Features(weight="w", crosses=[("w", "a")]),
            "column 'w' cannot be crossed: it is the label or the weight",
        ),
        (
            lambda: Features(numeric=["a"], categorical=["a"]),
            "column 'a' is named twice among numeric and categorical",
        ),
        (
            lambda: Features(numeric=["a", Numeric(name="a")]),
            "column 'a' is named twice among numeric and categorical",
        ),
        (
            lambda: Features(label="y", categorical=["y"]),
            "column 'y' cannot be a feature: it is the label or the weight",
        ),
        (
            lambda: Features(weight="w", numeric=["w"]),
            "column 'w' cannot be a feature: it is the label or the weight",
        ),
        (
            lambda: Numeric(name="a", how="cube"),
            "numeric column 'a': how must be standard, raw or log, got 'cube'",
        ),
        (lambda: Numeric(name="a", per_octave=0), "numeric column 'a': per_octave must be >= 1, got 0"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


SMALL = pa.table({"label": [1], "s": ["a"], "l": [["a"]], "r": [{"x": 1}]})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (Features(label="y"), "column 'y' is not in the data; its columns are label, s, l, r"),
        (Features(weight="w"), "column 'w' is not in the data; its columns are label, s, l, r"),
        (Features(time="t"), "column 't' is not in the data; its columns are label, s, l, r"),
        (Features(ignore=["i"]), "column 'i' is not in the data; its columns are label, s, l, r"),
        (Features(numeric=["n"]), "column 'n' is not in the data; its columns are label, s, l, r"),
        (Features(categorical=["c"]), "column 'c' is not in the data; its columns are label, s, l, r"),
        (Features(crosses=[("s", "c")]), "column 'c' is not in the data; its columns are label, s, l, r"),
        (Features(numeric=["s"]), "column 's' cannot be numeric: its type is string"),
        (
            Features(categorical=["s"], crosses=[("s", "l")]),
            "column 'l' cannot be crossed: its type is list<item: string>",
        ),
        (
            Features(),
            "column 'r': a struct<x: int64> cannot be a feature; flatten it, or ignore it",
        ),
        (
            Features(ignore=["s", "l", "r"]),
            "no column is left to learn from; the columns are label, s, l, r",
        ),
        (Features(numeric=[]), "no column is left to learn from; the columns are label, s, l, r"),
    ],
)
def test_what_does_not_fit_the_data_is_said(features, message):
    with pytest.raises(DataError) as caught:
        features.resolve(SMALL)
    assert str(caught.value) == message


def some_plan() -> FeaturePlan:
    features = Features(
        numeric=["price", Numeric(name="rate", how="log")],
        categorical=["site", "tags"],
        crosses=[("site", "id")],
        weight="weight",
        time="at",
        bias=False,
    )
    return features.resolve(EVERY_TYPE)


def test_a_plan_survives_json():
    plan = some_plan()
    again = FeaturePlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert hash(again) == hash(plan)


@pytest.mark.parametrize(
    "change",
    [
        {"label": 3},
        {"bias": "yes"},
        {"columns": [{"name": "a"}]},
        {"columns": [{"name": "a", "kind": "magic", "type": ""}]},
        {"columns": [{"name": "a", "kind": "raw", "type": "", "mean": "0"}]},
        {"crosses": [[1, 2]]},
    ],
)
def test_a_damaged_plan_is_refused(change):
    with pytest.raises(msgspec.ValidationError):
        FeaturePlan.from_dict({**some_plan().to_dict(), **change})
    with pytest.raises(msgspec.ValidationError):
        FeaturePlan.from_dict({"label": "y"})


def test_a_plan_of_another_hashing_is_refused():
    with pytest.raises(ConfigError, match=r"^features of hashing version 2; allowed: 1$"):
        FeaturePlan.from_dict({**some_plan().to_dict(), "version": 2})


def test_categories_are_read_as_text_and_numbers_as_f64_where_a_format_leaves_a_choice():
    assert some_plan().read_types == {
        "price": pa.float64(),
        "rate": pa.float64(),
        "site": pa.string(),
        "id": pa.string(),
    }


def test_a_plan_describes_itself():
    rows = some_plan().describe()
    assert rows[0] == ("label", "", "label")
    words = " ".join(f"{what}: {name}" for name, _, what in rows)
    for name in ("price", "rate", "site", "tags", "id x site", "weight", "at"):
        assert name in words


@pytest.mark.parametrize("field", ["numeric", "categorical", "ignore"])
def test_one_name_is_no_list_of_names(field):
    with pytest.raises(
        ConfigError, match=rf"^{field} must be a list of names, got 'price'; allowed: \['price'\]$"
    ):
        Features(**{field: "price"})
