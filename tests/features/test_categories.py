"""Keys of dictionary columns are those of the plain values, and numbers those of the formula, batch after batch.

The documented hash itself is tested in ``test_encode``.
"""

from __future__ import annotations

import datetime
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import DataError, RowError
from penstock.features import ColumnPlan
from penstock.features.categories import BIAS, Categories, key_of_missing, key_of_number, seed_of
from penstock.features.numeric import NumericColumns
from penstock.kernels import hashing

INDEX_TYPES = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
DAY = datetime.date(2024, 1, 1)
VALUE_TYPES = {
    pa.string(): ["a", "", "17", "café", "long enough for several words of eight bytes"],
    pa.large_string(): ["a", "b", "017"],
    pa.binary(): [b"\xff", b"", b"17"],
    pa.int64(): [0, 17, -1, 2**63 - 1, -(2**63)],
    pa.uint64(): [17, 2**64 - 1],
    pa.bool_(): [True, False],
    pa.date32(): [DAY, DAY + datetime.timedelta(1)],
    pa.float64(): [17.0, 0.5, -0.0, 1e300],
}


def flat(n: int) -> hashing.Target:
    return hashing.Target(np.arange(n), np.empty(n, np.uint64), np.empty(0, np.float32))


def plain_keys(name: str, values: list, type_: pa.DataType) -> list[int]:
    """Keys of values in an array of their own, by somebody who has seen nothing else."""
    target = flat(len(values))
    Categories([name]).write([(0, name, pa.array(values, type_))], target)
    return target.keys.tolist()


def test_seeds_are_as_documented(oracle) -> None:
    for name in ("site", "17", "", "日本", BIAS):
        assert seed_of(name) == oracle.seed(name)
        assert key_of_number(name) == oracle.number(name)
        assert key_of_missing(name) == oracle.missing(name)


@st.composite
def dictionaries(draw: st.DrawFn) -> tuple[pa.Array, list, pa.DataType]:
    """A dictionary, its values and their type; with nulls, with a value twice, perhaps a slice of a longer one."""
    type_ = draw(st.sampled_from(list(VALUE_TYPES)))
    values = draw(st.lists(st.sampled_from([None, *VALUE_TYPES[type_]]), max_size=7))
    before = draw(st.integers(0, 2))
    return pa.array([*VALUE_TYPES[type_][:before], *values], type_).slice(min(before, 2)), values, type_


@st.composite
def encoded(draw: st.DrawFn, dictionary: pa.Array, values: list) -> tuple[pa.Array, list]:
    """An array of a dictionary, perhaps a slice of a longer one, and what it stands for."""
    places = st.one_of(st.none(), st.integers(0, len(values) - 1)) if values else st.none()
    indices = draw(st.lists(places, max_size=12))
    array = pa.DictionaryArray.from_arrays(pa.array(indices, draw(st.sampled_from(INDEX_TYPES))), dictionary)
    begin = draw(st.integers(0, len(indices)))
    end = draw(st.integers(begin, len(indices)))
    return array.slice(begin, end - begin), [None if i is None else values[i] for i in indices[begin:end]]


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_dictionaries_of_any_kind_have_the_keys_of_their_values(data):
    categories = Categories(["c"])
    known = data.draw(st.lists(dictionaries(), min_size=1, max_size=3))
    for _ in range(data.draw(st.integers(1, 6))):
        # Now a dictionary that was seen, now one equal to it at another place.
        dictionary, values, type_ = data.draw(st.sampled_from(known))
        if data.draw(st.booleans()):
            dictionary = pa.concat_arrays([dictionary, dictionary[:0]])
        array, expected = data.draw(encoded(dictionary, values))
        assert categories.keys("c", array).tolist() == plain_keys("c", expected, type_)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_several_columns_are_written_side_by_side_and_nowhere_else(data):
    names = ["a", "b", "c"]
    categories = Categories(names)
    untouched = np.uint64(0xABCD)
    rows = data.draw(st.integers(0, 6))
    for _ in range(3):
        columns, expected = [], {}
        for place, name in zip(data.draw(st.permutations(range(5))), names, strict=False):
            dictionary, values, type_ = data.draw(dictionaries())
            indices = [data.draw(st.integers(0, len(values) - 1)) if values else None for _ in range(rows)]
            meant = [None if i is None else values[i] for i in indices]
            array: pa.Array = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), dictionary)
            if data.draw(st.booleans()):
                array = pa.array(meant, type_)
            columns.append((place, name, array))
            expected[place] = plain_keys(name, meant, type_)
        target = hashing.Target(5 * np.arange(rows), np.full(5 * rows, untouched), np.empty(0, np.float32))
        categories.write(columns, target)
        written = target.keys.reshape(rows, 5).T
        for place in range(5):
            assert written[place].tolist() == expected.get(place, [int(untouched)] * rows)


@pytest.mark.parametrize("type_", INDEX_TYPES, ids=str)
def test_a_dictionary_as_long_as_its_indices_allow(type_: pa.DataType) -> None:
    n = min(2 ** (type_.bit_width - pa.types.is_signed_integer(type_)), 70_000)
    values = [f"v{i}" for i in range(n)]
    # What is missing stands one behind the end, where an int8 or uint8 cannot point.
    indices = pa.array([n - 1, None, 0, n // 2], type_)
    array = pa.DictionaryArray.from_arrays(indices, pa.array(values))
    want = plain_keys("c", [values[-1], None, values[0], values[n // 2]], pa.string())
    assert Categories(["c"]).keys("c", array).tolist() == want


def test_a_dictionary_longer_than_its_indices_can_say() -> None:
    values = [f"v{i}" for i in range(1000)]
    array = pa.DictionaryArray.from_arrays(pa.array([127, None, 0], pa.int8()), pa.array(values))
    assert Categories(["c"]).keys("c", array).tolist() == plain_keys("c", ["v127", None, "v0"], pa.string())


def test_dictionaries_that_are_alike_but_for_their_place_are_told_apart() -> None:
    categories = Categories(["c"])
    values = pa.array(["a", "b", "c", "d", None, "f"])
    others = pa.array(["p", "q", "r", "s", None, "u"])
    indices = pa.array([0, 1, None], pa.int8())
    # Two slices of one length share their buffers and differ in the offset alone.
    for dictionary in (values[:2], values[2:4], others[:2], values[:2], values[3:5], others[3:5]):
        array = pa.DictionaryArray.from_arrays(indices, dictionary)
        want = plain_keys("c", [*dictionary.to_pylist(), None], pa.string())
        assert categories.keys("c", array).tolist() == want


def test_a_dictionary_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    categories = Categories(["c"])
    hashed = []
    real = hashing.text_keys
    monkeypatch.setattr(hashing, "text_keys", lambda *args: hashed.append(len(args[1]) - 1) or real(*args))
    column = pa.array(["x", "y", "z", "x"] * 100).dictionary_encode()
    for begin in range(0, 400, 50):
        categories.keys("c", column.slice(begin, 50))
    assert hashed == [3]
    categories.keys("c", pa.array(["x", "w"]).dictionary_encode())
    assert hashed == [3, 2]


@pytest.mark.parametrize("index", [3, 100, -1, -100])
def test_an_index_outside_of_its_dictionary_is_refused(index: int) -> None:
    # Arrow checks none of these unless asked.
    indices = pa.array([0, 1, index, None], pa.int8())
    bad = pa.DictionaryArray.from_arrays(indices, pa.array(["a", "b"]), safe=False)
    good = pa.array(["x", "y", "x", "y"]).dictionary_encode()
    target = hashing.Target(2 * np.arange(4), np.zeros(8, np.uint64), np.empty(0, np.float32))
    for columns in ([(0, "good", good), (1, "bad", bad)], [(0, "bad", bad), (1, "good", good)]):
        with pytest.raises(DataError, match="column 'bad': an index is outside of its dictionary"):
            Categories(["good", "bad"]).write(columns, target)


def test_a_float_that_is_not_finite_counts_where_a_row_has_it() -> None:
    dictionary = pa.array([1.0, math.inf, 2.0])
    for indices, row in (([0, 2, 0], None), ([0, 2, 1, 1], 2)):
        array = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), dictionary)
        if row is None:
            assert Categories(["c"]).keys("c", array).tolist() == plain_keys("c", [1, 2, 1], pa.int64())
            continue
        with pytest.raises(RowError, match="column 'c' is inf; allowed: a finite number or null") as raised:
            Categories(["c"]).keys("c", array)
        assert raised.value.row == row


def test_what_cannot_be_a_category_is_refused() -> None:
    lists = pa.array([[1], [2]])
    for array in (lists, pa.DictionaryArray.from_arrays(pa.array([0, 1]), lists)):
        with pytest.raises(DataError, match=r"column 'c': a list<.*> cannot be a category"):
            Categories(["c"]).keys("c", array)


# Numbers.


COLUMNS = [
    ColumnPlan(name="raw", kind="raw", type="double"),
    ColumnPlan(name="standard", kind="standard", type="double", mean=1.5, scale=0.25),
    ColumnPlan(name="log", kind="log", type="double", scale=4.0),
]
NUMBER_TYPES = [pa.float64(), pa.float32(), pa.int64(), pa.int8(), pa.bool_(), pa.null(), "dictionary"]


def expected_number(oracle, column: ColumnPlan, x: float | None) -> tuple[int, float]:
    if x is None:
        return oracle.missing(column.name), 1.0
    if column.kind == "log":
        bucket = math.floor(math.log2(1 + abs(x)) * column.scale + 0.5)
        return oracle.key(column.name, -bucket if x < 0 else bucket), 1.0
    return oracle.number(column.name), float(np.float32((x - column.mean) * column.scale))


def numbers_of(type_: pa.DataType | str, values: list[float | None]) -> tuple[pa.Array, list[float | None]]:
    if type_ == "dictionary":
        return pa.array(values, pa.float64()).dictionary_encode(), values
    if type_ == pa.null():
        return pa.nulls(len(values)), [None] * len(values)
    if type_ == pa.bool_():
        values = [None if x is None else float(x > 0) for x in values]
        return pa.array([None if x is None else x == 1 for x in values], pa.bool_()), values
    if pa.types.is_integer(type_):
        values = [None if x is None else float(int(x)) for x in values]
        return pa.array([None if x is None else int(x) for x in values], type_), values
    return pa.array(values, type_), values


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_numbers_and_nulls_of_batch_after_batch(data, oracle):
    # Sixteenths up to 100 are exact in every type.
    number = st.one_of(st.none(), st.integers(-1600, 1600).map(lambda i: i / 16))
    # Places 1, 0 and 3 of an example; 2 is somebody else's.
    places = [1, 0, 3]
    numeric = NumericColumns(list(zip(places, COLUMNS, strict=True)))
    assert numeric.names == ["raw", "standard", "log"]
    for _ in range(data.draw(st.integers(1, 4))):
        rows = data.draw(st.integers(0, 9))
        begin = data.draw(st.integers(0, 2))
        arrays, expected = [], {}
        for place, column in zip(places, COLUMNS, strict=True):
            values = data.draw(st.lists(number, min_size=begin + rows, max_size=begin + rows))
            array, values = numbers_of(data.draw(st.sampled_from(NUMBER_TYPES)), values)
            arrays.append(array.slice(begin))
            expected[place] = [expected_number(oracle, column, x) for x in values[begin:]]
        target = hashing.Target(
            4 * np.arange(rows), np.zeros(4 * rows, np.uint64), np.full(4 * rows, 9, np.float32)
        )
        numeric.write(arrays, target)
        for place in range(4):
            got = list(zip(target.keys[place::4].tolist(), target.values[place::4].tolist(), strict=True))
            assert got == expected.get(place, [(0, 9.0)] * rows)


def test_what_lies_below_a_null_is_not_looked_at(oracle) -> None:
    numeric = NumericColumns(list(enumerate(COLUMNS)))
    hidden = pa.array(np.array([math.nan, 2.0, math.inf]), mask=np.array([True, False, True]))
    target = hashing.Target(3 * np.arange(3), np.zeros(9, np.uint64), np.zeros(9, np.float32))
    numeric.write([hidden, hidden, hidden], target)
    got = list(zip(target.keys.tolist(), target.values.tolist(), strict=True))
    assert got == [expected_number(oracle, column, x) for x in (None, 2.0, None) for column in COLUMNS]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("j", [0, 1, 2])
def test_a_number_that_is_not_finite_is_named(bad: float, j: int) -> None:
    numeric = NumericColumns(list(enumerate(COLUMNS)))
    good = pa.array([None, 1.0, 2.0, 3.0])
    for array in (pa.array([0.0, None, 1.0, bad]), pa.array([0.0, None, 1.0, bad]).dictionary_encode()):
        target = hashing.Target(3 * np.arange(4), np.zeros(12, np.uint64), np.zeros(12, np.float32))
        with pytest.raises(RowError, match=f"column '{COLUMNS[j].name}' is {bad}; allowed: a finite") as raised:
            numeric.write([array if i == j else good for i in range(3)], target)
        assert raised.value.row == 3


def test_a_column_that_is_no_number_is_refused() -> None:
    numeric = NumericColumns([(0, COLUMNS[0])])
    for array in (pa.array(["many"]), pa.array([[1.0]]), pa.array([{"a": 1.0}])):
        with pytest.raises(DataError, match="column 'raw' must be numeric, its type is"):
            numeric.write([array], flat(1))


def test_no_columns_and_no_rows() -> None:
    NumericColumns([]).write([], flat(3))
    numeric = NumericColumns([(0, COLUMNS[0])])
    numeric.write([pa.array([], pa.float64())], flat(0))
    assert not len(Categories(["c"]).keys("c", pa.array([], pa.dictionary(pa.int8(), pa.string()))))
