"""A value is the category that the server and Arrow make of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features.arrays import as_category
from penstock.score.values import as_column, category, number, weighted
from penstock.serve import rows as serve

floats = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.tuples(st.integers(-(10**17), 10**17), st.integers(-30, 30)).map(lambda x: float(f"{x[0]}e{x[1]}"))


@settings(deadline=None, max_examples=1000)
@given(floats | decimals)
def test_a_float_is_the_text_that_arrow_casts_it_to(value: float) -> None:
    assert category(value).decode() == serve.category(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (-0.0, "0"),
        (1e-6, "0.000001"),
        (1.25e-7, "1.25e-7"),
        (9999999999.5, "9999999999.5"),
        (10000000000.5, "1.00000000005e+10"),
        (2.0**62, str(2**62)),
        (2.0**63, "9.223372036854776e+18"),
        (-1e300, "-1e+300"),
        (5e-324, "5e-324"),
        (True, "true"),
        (17, "17"),
        (2**70, str(2**70)),
        ("é", "é"),
        (None, ""),
    ],
)
def test_the_text_of_a_value(value: Any, text: str) -> None:
    assert category(value) == text.encode()


@settings(deadline=None, max_examples=500)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_an_f32_that_is_crossed_is_the_text_of_the_f32(value: float) -> None:
    array, items = as_category("c", pa.array([value], pa.float32()))
    expected = str(items.data[0]) if hasattr(items, "data") and array.type == pa.int64() else array[0].as_py()
    assert category(as_column(value, "float")).decode() == expected
    # JSON brings more or fewer digits than an f32 has.
    assert category(as_column(float(str(np.float32(value))), "float")).decode() == expected


def test_a_boolean_is_a_number_in_a_column_of_numbers() -> None:
    assert (as_column(True, "double"), as_column(False, "float"), as_column(True, "bool")) == (1, 0, True)
    assert as_column("x", "float") == "x" and as_column(None, "float") is None and as_column(0.1, "double") == 0.1


@pytest.mark.parametrize("value", [math.nan, math.inf, [], {}, b"x", (), "\ud800"])
def test_what_is_no_category(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        category(value)


@pytest.mark.parametrize("value", ["1", None, [], 10**400, b"1"])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        number(value)


def test_a_map_has_texts_and_numbers() -> None:
    assert weighted({"a": 1, "b": None, "": True}) == [(b"a", 1.0), (b"b", 0.0), (b"", 1.0)]
    for wrong in ([], "a", {1: 1.0}, {"a": "1"}, {"a": []}):
        with pytest.raises(TypeError):
            weighted(wrong)
