"""Labels, weights, rows and columns that are refused, and the contract that every encoded batch keeps."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.batch import SparseBatch
from penstock.errors import DataError, RowError
from penstock.features import ColumnPlan, Encoder, FeaturePlan, Features


def plan_of(bias: bool = False, crosses=(), weight=None, **kinds: str) -> FeaturePlan:
    columns = tuple(ColumnPlan(name=name, kind=kind, type="") for name, kind in kinds.items())
    return FeaturePlan(label="label", columns=columns, crosses=crosses, weight=weight, bias=bias)


def encode(plan: FeaturePlan, labelled: bool = False, **columns) -> SparseBatch:
    batch = Encoder(plan).encode(pa.record_batch(columns), labelled=labelled)
    batch.check()
    return batch


def rows_of(batch: SparseBatch) -> list[list[int]]:
    return [batch.keys[a:b].tolist() for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]


def bad_row(plan: FeaturePlan, **columns) -> tuple[int, str]:
    with pytest.raises(RowError) as caught:
        encode(plan, labelled="label" in columns, **columns)
    assert str(caught.value) == f"row {caught.value.row}: {caught.value.message}"
    return caught.value.row, caught.value.message


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["raw", "standard", "log", "categorical"])
def test_a_number_that_is_not_finite_is_named_with_its_row(kind, bad):
    allowed = "a finite number or null" if kind == "categorical" else "a finite f32 number, or null"
    expected = (3, f"column 'c' is {bad}; allowed: {allowed}")
    array = pa.array([9.0, 1.5, None, 2.0, bad, bad])
    assert bad_row(plan_of(c=kind), c=array.slice(1)) == expected
    assert bad_row(plan_of(c=kind), c=array.cast(pa.float32()).slice(1)) == expected
    encoded = pa.array([bad, 7.0, 7.0, None, 7.0, bad]).dictionary_encode().slice(1)
    assert bad_row(plan_of(c=kind), c=encoded)[0] == 4


def test_a_number_too_large_for_f32_is_named_with_its_row():
    assert bad_row(plan_of(c="raw"), c=pa.array([1.0, 1e39])) == (
        1,
        "column 'c' is 1e+39; allowed: a finite f32 number, or null",
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e39])
def test_a_map_value_that_is_not_finite_is_named_with_its_row(bad):
    array = pa.array(
        [[("z", 1.0)], [("a", 1.0), ("b", 2.0)], [], None, [("c", bad)]], pa.map_(pa.string(), pa.float64())
    )
    expected = f"column 'c' has the value {bad}; allowed: finite f32 numbers"
    assert bad_row(plan_of(c="map"), c=array.slice(1)) == (3, expected)


def test_a_list_item_that_is_not_finite_is_named_with_the_row_of_its_list():
    array = pa.array([[9.0], [1.0, 2.5], [], None, [3.0, math.nan]])
    expected = (3, "column 'c' is nan; allowed: a finite number or null")
    assert bad_row(plan_of(c="list"), c=array.slice(1)) == expected


LABELS = {
    "int8": pa.array([1, 0], pa.int8()),
    "uint64": pa.array([1, 0], pa.uint64()),
    "float": pa.array([1.0, 0.0]),
    "float32": pa.array([1.0, 0.0], pa.float32()),
    "bool": pa.array([True, False]),
    "decimal": pa.array([Decimal(1), Decimal(0)]),
    "dictionary": pa.array([1, 0]).dictionary_encode(),
    "slice": pa.array([5, 1, 0, 5]).slice(1, 2),
    "slice of bool": pa.array([False] * 9 + [True, False]).slice(9),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_labels_of_every_type(labels):
    batch = encode(plan_of(True), labelled=True, label=labels)
    assert batch.labels.tolist() == [1, 0]
    assert batch.labels.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "row", "message"),
    [
        (pa.array([0, 1, 2]), 2, "label 'label' is 2; allowed: 0 or 1"),
        (pa.array([0, -1, 2]), 1, "label 'label' is -1; allowed: 0 or 1"),
        (pa.array([0, 0.5]), 1, "label 'label' is 0.5; allowed: 0 or 1"),
        (pa.array([math.nan, 1]), 0, "label 'label' is nan; allowed: 0 or 1"),
        (pa.array([0, 1, None]), 2, "label 'label' is missing; allowed: 0 or 1"),
        (pa.array([7, 0, 1, None]).slice(1), 2, "label 'label' is missing; allowed: 0 or 1"),
        (pa.nulls(2), 0, "label 'label' is missing; allowed: 0 or 1"),
        (pa.array(["1", "yes"]), 1, "label 'label' is 'yes'; allowed: 0 or 1, as a number or boolean"),
        (pa.array([[1]]), 0, "label 'label' is [1]; allowed: 0 or 1, as a number or boolean"),
    ],
)
def test_a_label_that_is_not_0_or_1_is_named_with_its_row(labels, row, message):
    assert bad_row(plan_of(True), label=labels) == (row, message)


def test_weights_are_f32_and_at_least_0():
    plan, labels = plan_of(True, weight="w"), pa.array([1, 0])
    for weights in (pa.array([0.5, 2.0]), pa.array([9, 0.5, 2.0], pa.float32()).slice(1)):
        batch = encode(plan, labelled=True, label=labels, w=weights)
        assert batch.weights.tolist() == [0.5, 2.0]
        assert batch.weights.dtype == np.float32
    assert encode(plan, labelled=True, label=labels, w=pa.array([0, 3])).weights.tolist() == [0, 3]
    assert encode(plan_of(True), labelled=True, label=labels).weights is None


@pytest.mark.parametrize("bad", [None, -1.0, math.nan, math.inf, 1e39])
def test_a_bad_weight_is_named_with_its_row(bad):
    got = bad_row(plan_of(True, weight="w"), label=pa.array([1, 0]), w=pa.array([1.0, bad]))
    assert got == (1, f"weight 'w' is {bad}; allowed: finite, >= 0")


def test_serving_needs_neither_label_nor_weight():
    plan = plan_of(True, weight="w", c="categorical")
    batch = encode(plan, c=pa.array(["a", "b"]))
    assert batch.labels.tolist() == [0, 0]
    assert batch.weights is None
    assert Encoder(plan).columns == ["c", "label", "w"]


@pytest.mark.parametrize(
    ("plan", "columns", "message"),
    [
        (plan_of(c="categorical"), {"d": ["a"]}, "column 'c' is not in the data; its columns are d"),
        (plan_of(c="list"), {"d": ["a"]}, "column 'c' is not in the data; its columns are d"),
        (plan_of(crosses=(("c", "d"),)), {"d": ["a"]}, "column 'c' is not in the data; its columns are d"),
        (plan_of(c="raw"), {"c": ["1", "x"]}, "column 'c' must be numeric, its type is string"),
        (plan_of(c="raw"), {"c": [[1.0]]}, "column 'c' must be numeric, its type is list<item: double>"),
        (plan_of(c="categorical"), {"c": [["a"]]}, "column 'c': a list<item: string> cannot be a category"),
        (
            plan_of(c="map"),
            {"c": pa.array([[("a", "x")]], pa.map_(pa.string(), pa.string()))},
            "values of column 'c' must be numeric, its type is string",
        ),
    ],
)
def test_data_that_does_not_fit_the_plan_is_refused(plan, columns, message):
    with pytest.raises(DataError) as caught:
        encode(plan, **columns)
    assert str(caught.value) == message


def test_missing_labels_and_weights_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match=r"^column 'label' is not in the data; its columns are c$"):
        encode(plan_of(c="categorical"), labelled=True, c=["a"])
    with pytest.raises(DataError, match=r"^weight 'w' must be numeric, its type is string$"):
        encode(plan_of(True, weight="w"), labelled=True, label=[1], w=["heavy"])


def test_a_list_column_must_hold_lists():
    plan = Features(categorical=["c"]).resolve(pa.table({"label": [1], "c": [["a"]]}))
    with pytest.raises(DataError, match=r"^column 'c' must be a list<item: string>, its type is string$"):
        encode(plan, c=["a"])


@st.composite
def tables(draw):
    """A table with a column of some types, perhaps sliced, and features of it."""
    n = draw(st.integers(0, 12))
    texts = st.one_of(
        st.none(), st.sampled_from(["a", "b", "17", "", "long enough for two words"]), st.text(max_size=9)
    )
    numbers = st.one_of(st.none(), st.floats(-1e6, 1e6, width=32), st.integers(-99, 99).map(float))
    integers = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 5))
    many = {
        "text": (texts, pa.string()),
        "large": (texts, pa.large_string()),
        "integer": (integers, pa.int64()),
        "small": (st.one_of(st.none(), st.integers(0, 3)), pa.uint8()),
        "number": (numbers, pa.float64()),
        "single": (numbers, pa.float32()),
        "flag": (st.one_of(st.none(), st.booleans()), pa.bool_()),
        "texts": (st.one_of(st.none(), st.lists(texts, max_size=5)), pa.list_(pa.string())),
        "integers": (st.one_of(st.none(), st.lists(integers, max_size=5)), pa.large_list(pa.int64())),
        "counts": (
            st.one_of(
                st.none(), st.dictionaries(st.text(max_size=4), numbers, max_size=4).map(lambda d: [*d.items()])
            ),
            pa.map_(pa.string(), pa.float64()),
        ),
    }
    names = draw(st.lists(st.sampled_from(sorted(many)), min_size=1, unique=True))
    columns = {"label": pa.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), pa.int8())}
    for name in names:
        items, type_ = many[name]
        columns[name] = pa.array(draw(st.lists(items, min_size=n, max_size=n)), type_)
        if name == "text" and draw(st.booleans()):
            columns[name] = columns[name].dictionary_encode()
    columns["weight"] = pa.array(draw(st.lists(st.floats(0, 9, width=32), min_size=n, max_size=n)), pa.float32())
    crossed = [name for name in names if name in ("text", "large", "integer", "small", "number", "single", "flag")]
    features = Features(
        crosses=[crossed[:2]] if len(crossed) > 1 and draw(st.booleans()) else (),
        weight="weight" if draw(st.booleans()) else None,
        ignore=["weight"],
        bias=draw(st.booleans()),
    )
    cut = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
    return pa.table(columns), features, cut


def as_batch(table: pa.Table) -> pa.RecordBatch:
    arrays = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


@settings(deadline=None, max_examples=120)
@given(case=tables())
def test_every_batch_keeps_the_contract_and_rows_do_not_depend_on_their_neighbours(case):
    table, features, (begin, end) = case
    plan = features.resolve(table)
    batch = as_batch(table)
    whole = Encoder(plan).encode(batch)
    whole.check()
    assert len(whole) == len(table)
    part = Encoder(plan).encode(batch.slice(begin, end - begin))
    part.check()
    same = whole.slice(begin, end)
    assert rows_of(part) == rows_of(same)
    assert part.labels.tolist() == same.labels.tolist()
    assert part.width == whole.width
    assert (part.values is None) == (whole.values is None)
    if part.values is not None:
        assert part.values.tolist() == same.values.tolist()
    assert (part.weights is None) == (features.weight is None)
    if part.weights is not None:
        assert part.weights.tolist() == same.weights.tolist()


@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("map", pa.map_(pa.string(), pa.float64())),
        ("list", pa.list_(pa.int64())),
        ("list", pa.large_list(pa.string())),
        ("categorical", pa.int64()),
        ("raw", pa.float32()),
    ],
)
def test_a_column_of_nulls_alone_has_nothing_but_what_is_missing(kind, type_, rows):
    """Buffers below such arrays may have any size."""
    batch = encode(plan_of(c=kind), c=pa.nulls(rows, type_))
    assert len(batch) == rows and len(batch.keys) == (0 if kind in ("map", "list") else rows)
