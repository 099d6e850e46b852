"""Encoded batches against the documented hash in plain Python (the ``oracle`` of conftest.py)."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.batch import SparseBatch
from penstock.errors import DataError
from penstock.features import ColumnPlan, Encoder, FeaturePlan, Features, Numeric


def plan_of(bias: bool = False, crosses=(), weight=None, **kinds: str) -> FeaturePlan:
    columns = tuple(ColumnPlan(name=name, kind=kind, type="") for name, kind in kinds.items())
    return FeaturePlan(label="label", columns=columns, crosses=crosses, weight=weight, bias=bias)


def encode(plan: FeaturePlan, labelled: bool = False, **columns) -> SparseBatch:
    batch = Encoder(plan).encode(pa.record_batch(columns), labelled=labelled)
    batch.check()
    return batch


def keys_of(array: pa.Array, kind: str = "categorical") -> list[int]:
    return encode(plan_of(c=kind), c=array).keys.tolist()


def rows_of(batch: SparseBatch) -> list[list[int]]:
    return [batch.keys[a:b].tolist() for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]


def pairs_of(batch: SparseBatch) -> list[dict[int, float]]:
    assert batch.values is not None
    return [
        dict(zip(batch.keys[a:b].tolist(), batch.values[a:b].tolist(), strict=True))
        for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    ]


SEVENTEENS = {
    "int8": pa.array([17], pa.int8()),
    "int16": pa.array([17], pa.int16()),
    "int32": pa.array([17], pa.int32()),
    "int64": pa.array([17], pa.int64()),
    "uint8": pa.array([17], pa.uint8()),
    "uint16": pa.array([17], pa.uint16()),
    "uint32": pa.array([17], pa.uint32()),
    "uint64": pa.array([17], pa.uint64()),
    "uint64 beside 2^63": pa.array([17, 2**63], pa.uint64()),
    "float16": pa.array([np.float16(17)], pa.float16()),
    "float32": pa.array([17], pa.float32()),
    "float64": pa.array([17.0], pa.float64()),
    "float64 beside a fraction": pa.array([17.0, 0.5], pa.float64()),
    "decimal": pa.array([Decimal("17.00")], pa.decimal128(9, 2)),
    "string": pa.array(["17"], pa.string()),
    "large_string": pa.array(["17"], pa.large_string()),
    "string_view": pa.array(["17"], pa.string_view()),
    "binary": pa.array([b"17"], pa.binary()),
    "large_binary": pa.array([b"17"], pa.large_binary()),
    "dictionary of string": pa.array(["x", "17"]).dictionary_encode().slice(1),
    "dictionary of int": pa.array([5, 17]).dictionary_encode().slice(1),
    "dictionary of float": pa.array([5.5, 17.0]).dictionary_encode().slice(1),
    "dictionary with u8 indices": pa.DictionaryArray.from_arrays(pa.array([1], pa.uint8()), pa.array(["x", "17"])),
    "pandas Int64": pa.array(pd.array([17, None], dtype="Int64")),
    "pandas UInt8": pa.array(pd.array([17, None], dtype="UInt8")),
    "pandas float with nan": pa.array(pd.Series([17.0, math.nan]), from_pandas=True),
    "pandas string": pa.array(pd.array(["17", None], dtype="string")),
    "pandas category": pa.array(pd.Series(["17", "x"], dtype="category")),
    "polars": pl.Series([17, None], dtype=pl.Int32).to_arrow(),
}


@pytest.mark.parametrize("array", SEVENTEENS.values(), ids=SEVENTEENS.keys())
def test_17_has_one_key_whatever_its_type(array, oracle):
    assert keys_of(array)[0] == oracle.key("c", 17)


@pytest.mark.parametrize("value", [0, -1, 10**15, 10**16, 10**18 - 1, 10**18, 2**62, 2**63 - 1, -(2**63)])
def test_a_key_does_not_depend_on_the_rest_of_the_column(value, oracle):
    expected = oracle.key("c", value)
    assert keys_of(pa.array([value, None]))[0] == expected
    assert keys_of(pa.array([str(value)]))[0] == expected
    if value >= 0:
        assert keys_of(pa.array([value], pa.uint64()))[0] == expected
        assert keys_of(pa.array([value, 2**64 - 1], pa.uint64()))[0] == expected
    if float(value) == value and abs(value) < 2**63 - 1:
        for rest in ([], [0.5], [1e300], [None]):
            assert keys_of(pa.array([float(value), *rest], pa.float64()))[0] == expected


def test_floats_that_are_not_whole_hash_by_their_shortest_text(oracle):
    numbers = [0.1, -2.5, 1e-7, 17.0, -0.0, None]
    expected = [oracle.key("c", text) for text in ("0.1", "-2.5", "1e-7", "17", "0", None)]
    assert keys_of(pa.array(numbers, pa.float64())) == expected
    assert keys_of(pa.array(numbers, pa.float32())) == expected
    assert keys_of(pa.array([-0.0])) == [oracle.key("c", 0)]


def test_what_is_not_the_number_17_has_another_key():
    texts = ["17", "017", "+17", "17.0", " 17", "17 ", "", None, "seventeen", "-17", "17\0", "\x0017"]
    keys = keys_of(pa.array(texts))
    assert keys[6] == keys[7]  # an empty text is missing
    assert len(set(keys)) == len(texts) - 1


def test_texts_dates_and_booleans(oracle):
    day = datetime.date(2024, 2, 29)
    assert keys_of(pa.array([day, None])) == [oracle.key("c", "2024-02-29"), oracle.missing("c")]
    assert keys_of(pa.array([day]).cast(pa.date64())) == [oracle.key("c", "2024-02-29")]
    assert keys_of(pa.array([True, False])) == [oracle.key("c", "true"), oracle.key("c", "false")]
    assert keys_of(pa.array(["café", "日本"])) == [oracle.key("c", "café"), oracle.key("c", "日本")]
    assert keys_of(pa.array([b"\xff\x00"])) == [oracle.key("c", b"\xff\x00")]
    assert keys_of(pa.nulls(2)) == [oracle.missing("c")] * 2


def test_one_value_has_another_key_in_another_column(oracle):
    batch = encode(plan_of(a="categorical", b="categorical"), a=pa.array([17, None]), b=pa.array([17, None]))
    assert len(set(batch.keys.tolist())) == 4
    assert rows_of(batch)[0] == [oracle.key("a", 17), oracle.key("b", 17)]
    assert rows_of(batch)[1] == [oracle.missing("a"), oracle.missing("b")]


def test_a_column_called_17_is_no_integer(oracle):
    assert encode(plan_of(**{"17": "categorical"}), **{"17": pa.array([1])}).keys.tolist() == [oracle.key("17", 1)]


def test_keys_never_change():
    # Models on disk hold these. A change of any is a new FeaturePlan.version.
    table = {
        "site": pa.array(["a", None, "17"]),
        "user": pa.array([17, 1, 2]),
        "price": pa.array([1.5, None, 3.0]),
        "tags": pa.array([["x", "y", "x"], [], None]),
    }
    plan = plan_of(True, (("site", "user"),), site="categorical", user="categorical", price="raw", tags="list")
    assert FeaturePlan.version == 1
    first, second, third = pairs_of(encode(plan, **table))
    assert first == {
        0xF74D042CDF473F3C: 1.0,  # bias
        0x5858C50BE561CA0E: 1.0,  # site=a
        0xE0ADA5F5815965D4: 1.0,  # user=17
        0x1D785355D7DD6DF4: 1.5,  # price
        0x8AD6FF53EFF16EA8: 1.0,  # site=a & user=17
        0x4BFD7F3A66474848: 1.0,  # tags=x
        0xDD2E97682CA2AD4E: 1.0,  # tags=y
    }
    assert list(second)[1] == 0xBE55E4B0AA08EE2A  # site is missing
    assert second[0x270FDB13F668D530] == 1.0  # price is missing
    assert list(third)[1] == 0x677A59A64651A35A  # site=17
    assert (len(second), len(third)) == (5, 5)


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=20), st.integers().map(str)), max_size=20),
    cut=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    type_=st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.string_view(), "dictionary"]),
)
def test_texts_of_any_slice_hash_as_documented(texts, cut, type_, oracle):
    begin, end = sorted(cut)
    array = pa.array(texts, pa.string())
    array = array.dictionary_encode() if type_ == "dictionary" else array.cast(type_)
    assert keys_of(array.slice(begin, end - begin)) == [oracle.key("c", text) for text in texts[begin:end]]


@settings(deadline=None, max_examples=40)
@given(
    numbers=st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=20),
    cut=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    encoded=st.booleans(),
)
def test_integers_of_any_slice_hash_as_documented(numbers, cut, encoded, oracle):
    begin, end = sorted(cut)
    array = pa.array(numbers, pa.int64())
    array = array.dictionary_encode() if encoded else array
    assert keys_of(array.slice(begin, end - begin)) == [oracle.key("c", number) for number in numbers[begin:end]]


def test_dictionaries_with_nulls_among_their_values(oracle):
    indices = pa.array([0, 1, None, 2, 1], pa.int8())
    array = pa.DictionaryArray.from_arrays(indices, pa.array(["a", None, ""]))
    expected = [oracle.key("c", value) for value in ("a", None, None, None, None)]
    assert keys_of(array) == expected
    assert keys_of(array.slice(2)) == expected[2:]
    assert keys_of(pa.array([None, None], pa.dictionary(pa.int32(), pa.string()))) == [oracle.missing("c")] * 2


def test_a_sliced_dictionary_is_read_from_where_it_begins(oracle):
    array = pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["x", "a", "b"]).slice(1))
    assert keys_of(array) == [oracle.key("c", "b"), oracle.key("c", "a")]


def test_an_encoder_that_saw_other_dictionaries_makes_no_mistake(oracle):
    encoder = Encoder(plan_of(a="categorical", b="categorical"))
    shared = pa.array(["p", "q", "r"])
    for i in range(30):
        mine = pa.array([f"v{i}", f"w{i}", "p"])
        for dictionary in (mine, shared, shared.slice(1), mine, mine.slice(0, 2)):
            indices = pa.array([0, 1, 0])
            a = pa.DictionaryArray.from_arrays(indices, dictionary)
            batch = encoder.encode(pa.record_batch({"a": a, "b": a}), labelled=False)
            values = [dictionary[j].as_py() for j in (0, 1, 0)]
            assert rows_of(batch) == [[oracle.key("a", value), oracle.key("b", value)] for value in values]
        del mine, a, dictionary


def test_chunks_of_a_table_give_the_keys_of_the_whole(oracle):
    table = pa.table({"c": pa.chunked_array([["a", None], [], ["17", "b", "a"]])})
    encoder = Encoder(plan_of(c="categorical"))
    keys = [key for batch in table.to_batches() for key in encoder.encode(batch, labelled=False).keys.tolist()]
    assert keys == [oracle.key("c", value) for value in ("a", None, "17", "b", "a")]


TYPES = [
    pa.string(),
    pa.large_string(),
    pa.int64(),
    pa.uint64(),
    pa.float64(),
    pa.bool_(),
    pa.date32(),
    pa.null(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.list_(pa.string()),
    pa.map_(pa.string(), pa.float64()),
]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_no_rows_give_an_empty_batch(type_):
    schema = pa.schema([("label", pa.int64()), ("c", type_)])
    plan = Features().resolve(schema.empty_table())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([], schema))
    read = pa.ipc.open_stream(sink.getvalue()).read_next_batch()
    made = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
    for batch in (made, read):
        encoded = Encoder(plan).encode(batch)
        encoded.check()
        assert (len(encoded), encoded.nnz) == (0, 0)


def test_numbers_as_they_are_and_standardised(oracle):
    columns = (
        ColumnPlan(name="r", kind="raw", type=""),
        ColumnPlan(name="s", kind="standard", type="", mean=2.0, scale=0.5),
    )
    plan = FeaturePlan(label="label", columns=columns, bias=True)
    for r in (pa.array([1.5, None, -3]), pa.array([1.5, None, -3], pa.float32())):
        batch = encode(plan, r=r, s=pa.array([4, 2, None]))
        assert batch.width == 3
        assert pairs_of(batch) == [
            {oracle.bias(): 1, oracle.number("r"): 1.5, oracle.number("s"): 1},
            {oracle.bias(): 1, oracle.missing("r"): 1, oracle.number("s"): 0},
            {oracle.bias(): 1, oracle.number("r"): -3, oracle.missing("s"): 1},
        ]


NUMBERS = {
    "int8": pa.array([3, None, -1], pa.int8()),
    "uint64": pa.array([3, None, 2**63], pa.uint64()),
    "bool": pa.array([True, None, False]),
    "decimal": pa.array([Decimal("1.25"), None, Decimal("-3")], pa.decimal128(9, 2)),
    "float16": pa.array([np.float16(1.5), None, np.float16(2)], pa.float16()),
    "text": pa.array(["1.5", None, "-2e3"]),
    "dictionary": pa.array([1.5, None, 1.5]).dictionary_encode(),
    "null": pa.nulls(3),
}


@pytest.mark.parametrize("array", NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_of_every_type(array, oracle):
    expected = [None if x is None else float(x) for x in array.to_pylist()]
    for offset in range(3):
        got = pairs_of(encode(plan_of(c="raw"), c=array.slice(offset)))
        assert got == [
            {oracle.missing("c"): 1} if x is None else {oracle.number("c"): x} for x in expected[offset:]
        ]


def test_log_buckets(oracle):
    columns = (ColumnPlan(name="c", kind="log", type="", scale=2.0),)
    batch = encode(FeaturePlan(label="label", columns=columns, bias=False), c=pa.array([0, 1, 3, None, -7, 1000]))
    assert batch.values is None
    buckets = [0, 2, 4, None, -6, round(math.log2(1001) * 2)]
    assert batch.keys.tolist() == [oracle.key("c", bucket) for bucket in buckets]


LISTS = [["a", "b", "a"], [], None, ["17", None, "", "c"], [None], ["b"]]


@pytest.mark.parametrize("type_", [pa.list_(pa.string()), pa.large_list(pa.large_string())], ids=str)
def test_lists_are_sets(type_, oracle):
    array = pa.array(LISTS, type_)
    for begin in range(len(LISTS)):
        for end in range(begin, len(LISTS) + 1):
            batch = encode(plan_of(True, c="list"), c=array.slice(begin, end - begin))
            assert batch.width is None
            assert rows_of(batch) == [
                [oracle.bias(), *dict.fromkeys(oracle.key("c", value) for value in row or ())]
                for row in LISTS[begin:end]
            ]


def test_lists_of_other_things(oracle):
    expected = [[oracle.key("c", 1), oracle.key("c", 2)], [], [oracle.key("c", 3)]]
    lists = [[1, 2], None, [3, 3]]
    fixed = pa.array(lists, pa.list_(pa.int64(), 2))
    assert rows_of(encode(plan_of(c="list"), c=pa.array(lists))) == expected
    assert rows_of(encode(plan_of(c="list"), c=fixed)) == expected
    assert rows_of(encode(plan_of(c="list"), c=fixed.slice(1))) == expected[1:]
    assert rows_of(encode(plan_of(c="list"), c=pa.array([[1.0, 2.0], None, [3.0]]))) == expected
    encoded = pa.ListArray.from_arrays(pa.array([0, 2, 2, 4]), pa.array(["1", "2", "3", "3"]).dictionary_encode())
    assert rows_of(encode(plan_of(c="list"), c=encoded)) == expected
    nulls = pa.array([[None, None], []], pa.list_(pa.null()))
    assert rows_of(encode(plan_of(c="list"), c=nulls)) == [[oracle.missing("c")], []]


def test_a_null_list_with_items_below_it_has_none(oracle):
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4]), pa.array(["a", "b", "c", "d"]), mask=pa.array([False, True, False])
    )
    assert rows_of(encode(plan_of(c="list"), c=hidden)) == [[oracle.key("c", "a")], [], [oracle.key("c", "d")]]


def test_long_lists_are_sets_too(oracle):
    values = [i % 150 for i in range(300)]
    (row,) = rows_of(encode(plan_of(c="list"), c=pa.array([values])))
    assert sorted(row) == sorted(oracle.key("c", value) for value in range(150))


MAPS = [[("a", 1.0), ("b", -2.5)], [], None, [("17", 0.0), ("c", None)], [("", 4.0)]]


def test_maps_are_weighted_sets(oracle):
    array = pa.array(MAPS, pa.map_(pa.string(), pa.float64()))
    for begin in range(len(MAPS)):
        batch = encode(
            plan_of(s="categorical", c="map"), c=array.slice(begin), s=pa.array(["x"] * (len(MAPS) - begin))
        )
        # A value that is null counts nothing.
        assert pairs_of(batch) == [
            {oracle.key("s", "x"): 1, **{oracle.key("c", key): value or 0.0 for key, value in row or ()}}
            for row in MAPS[begin:]
        ]


def test_maps_of_integers(oracle):
    array = pa.array([[(3, 2), (5, 1)]], pa.map_(pa.int64(), pa.int32()))
    assert pairs_of(encode(plan_of(c="map"), c=array)) == [{oracle.key("c", 3): 2, oracle.key("c", 5): 1}]


def test_a_list_beside_numbers_has_the_value_1(oracle):
    batch = encode(plan_of(n="raw", c="list"), n=pa.array([2.5, 3.5]), c=pa.array([["a"], []]))
    assert pairs_of(batch) == [{oracle.number("n"): 2.5, oracle.key("c", "a"): 1}, {oracle.number("n"): 3.5}]


def test_crosses(oracle):
    table = pa.table({"label": [1, 0, 1], "b": ["x", None, "x"], "a": [1, 2, 1], "c": [0.5, 1.0, None]})
    batches = []
    for cross in (("a", "b"), ("b", "a")):
        plan = Features(categorical=[], crosses=[cross, ("c", "b", "a")], bias=False).resolve(table)
        batches.append(Encoder(plan).encode(table.to_batches()[0]))
    assert batches[0].keys.tolist() == batches[1].keys.tolist()
    names, values = ("a", "b", "c"), [(1, "x", "0.5"), (2, None, 1), (1, "x", None)]
    assert rows_of(batches[0]) == [[oracle.cross(names[:2], row[:2]), oracle.cross(names, row)] for row in values]


def test_a_cross_tells_combinations_apart():
    a, b = [str(i // 50) for i in range(2500)], [i % 50 for i in range(2500)]
    batch = encode(plan_of(crosses=(("a", "b"),)), a=pa.array(a), b=pa.array(b))
    assert len(np.unique(batch.keys)) == 2500


def test_a_cross_of_columns_that_are_features_as_well(oracle):
    plan = plan_of(crosses=(("n", "s"),), n="raw", s="categorical")
    batch = encode(plan, n=pa.array([2.0]), s=pa.array(["x"]))
    cross = oracle.cross(("n", "s"), (2, "x"))
    assert pairs_of(batch) == [{oracle.number("n"): 2, oracle.key("s", "x"): 1, cross: 1}]


def test_the_layout_is_bias_singles_crosses_lists(oracle):
    plan = plan_of(True, (("a", "b"),), t="list", b="categorical", a="categorical")
    batch = encode(plan, t=pa.array([["y"]]), a=pa.array(["p"]), b=pa.array(["q"]))
    assert batch.keys.tolist() == [
        oracle.bias(),
        oracle.key("b", "q"),
        oracle.key("a", "p"),
        oracle.cross(("a", "b"), ("p", "q")),
        oracle.key("t", "y"),
    ]


def test_a_plan_from_json_gives_the_same_keys():
    table = pa.table(
        {
            "label": [1, 0],
            "price": [1.5, -2.0],
            "depth": [10, 20],
            "site": ["a", None],
            "tags": [["x"], ["y", "z"]],
        }
    )
    numeric = ["price", Numeric(name="depth", how="log")]
    plan = Features(numeric=numeric, categorical=["site", "tags"], crosses=[("site", "depth")]).resolve(table)
    batch = table.to_batches()[0]
    ours, again = Encoder(plan).encode(batch), Encoder(FeaturePlan.from_dict(plan.to_dict())).encode(batch)
    assert rows_of(ours) == rows_of(again)
    assert pairs_of(ours) == pairs_of(again)
    np.testing.assert_allclose([row[1] for row in np.split(ours.values, ours.offsets[1:-1])], [1, -1], rtol=1e-6)


def test_names_of_keys(oracle):
    table = {
        "site": pa.array(["a", None, "b"]),
        "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
        "price": pa.array([1.5, 2.5, None]),
        "depth": pa.array([0, 3, 3]),
        "tags": pa.array([["x", "y"], None, ["x"]]),
        "counts": pa.array([[("p", 1.0)], [], [("q", 1.0)]], pa.map_(pa.string(), pa.float64())),
    }
    kinds = {"site": "categorical", "kind": "categorical", "price": "raw", "depth": "log", "tags": "list"}
    plan = plan_of(True, (("kind", "site"),), **kinds, counts="map")
    batch = pa.record_batch(table).slice(0, 3)
    expected = {
        oracle.bias(): "(bias)",
        oracle.key("site", "a"): "site=a",
        oracle.key("site", "b"): "site=b",
        oracle.missing("site"): "site is missing",
        oracle.key("kind", "u"): "kind=u",
        oracle.key("kind", "v"): "kind=v",
        oracle.number("price"): "price",
        oracle.missing("price"): "price is missing",
        oracle.key("depth", 0): "depth=0",
        oracle.key("depth", 2): "depth=3",
        oracle.key("tags", "x"): "tags=x",
        oracle.key("tags", "y"): "tags=y",
        oracle.key("counts", "p"): "counts=p",
        oracle.key("counts", "q"): "counts=q",
        oracle.cross(("kind", "site"), ("u", "a")): "kind=u & site=a",
        oracle.cross(("kind", "site"), ("v", None)): "kind=v & site=None",
        oracle.cross(("kind", "site"), ("u", "b")): "kind=u & site=b",
    }
    encoder = Encoder(plan)
    everything = np.unique(encoder.encode(batch, labelled=False).keys)
    assert encoder.name_keys(batch, everything) == expected
    some = everything[::3]
    assert encoder.name_keys(batch, some) == {key: expected[key] for key in some.tolist()}
    late = oracle.key("site", "b")
    assert encoder.name_keys(batch.slice(0, 2), np.array([late], np.uint64)) == {}
    assert encoder.name_keys(batch.slice(2), np.array([late], np.uint64)) == {late: "site=b"}


@pytest.mark.parametrize("indices", [[0, 3, 1], [0, -1, 1], [0, 10**9, 1]])
def test_an_index_outside_of_its_dictionary_is_refused(indices):
    # Arrow makes such an array when it is asked not to look.
    array = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(["a", "b"]), safe=False)
    with pytest.raises(DataError, match="column 'c': an index is outside of its dictionary"):
        Encoder(plan_of(c="categorical")).encode(pa.record_batch({"c": array}), labelled=False)


@pytest.mark.parametrize(
    "array",
    [pa.array([["a"], ["b"]], pa.list_view(pa.string())), pa.array([{"a": 1}, {"a": 2}]), pa.array(["a", "b"])],
    ids=["list view", "struct", "text"],
)
def test_a_list_column_that_came_as_something_else(array):
    with pytest.raises(DataError, match="column 'c' must be a "):
        Encoder(plan_of(c="list")).encode(pa.record_batch({"c": array}), labelled=False)


def test_an_entry_that_stands_twice_in_a_map_is_refused():
    # One of its two updates would be lost.
    maps = pa.array([[("a", 1.0)], [("b", 1.0), ("a", 2.0), ("b", 3.0)]], pa.map_(pa.string(), pa.float32()))
    with pytest.raises(DataError, match="row 1: column 'm' has an entry twice"):
        Encoder(plan_of(m="map")).encode(pa.record_batch({"m": maps}), labelled=False)
