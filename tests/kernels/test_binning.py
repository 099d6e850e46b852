"""The histogram kernel against plain NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.binning import BINS, CLIP, MIDDLE, accumulate, bin_of

PROBABILITY = st.one_of(
    st.floats(0, 1, width=32),
    st.floats(-20, 20).map(lambda logit: float(np.float32(1 / (1 + math.exp(-logit))))),
    st.sampled_from([0.0, -0.0, 1.0, 0.5, 2.0**-149, 2.0**-26, 2.0**-23, 1 - 2.0**-24, 0.5 - 2.0**-25]),
)
ROWS = st.lists(st.tuples(PROBABILITY, st.integers(0, 1), st.floats(0, 1000, width=32)), max_size=50)


def f32(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def naive_bins(probabilities: Any) -> Any:
    """Edges written out: 256 equal slices of each octave from 2^-26 to 1/2, mirrored about 1/2."""
    edges = np.concatenate([2.0**-k * (1 + np.arange(256) / 256) for k in range(26, 1, -1)] + [[0.5]])
    p = np.asarray(probabilities, np.float64)
    place = np.maximum(np.searchsorted(edges, np.minimum(p, 1 - p), side="right") - 1, 0)
    return np.where(p < 0.5, place, 2 * 6400 - place)


def naive_accumulate(probabilities: Any, labels: Any, weights: Any) -> Any:
    bins = np.zeros((BINS, 3))
    p, w = probabilities.astype(np.float64), weights.astype(np.float64)
    at = naive_bins(probabilities)
    np.add.at(bins, (at, labels.astype(np.int64)), w)
    np.add.at(bins, (at, 2), w * p)
    likelihood = np.where(labels == 1, p, 1 - p).clip(CLIP, 1 - CLIP)
    return bins, -(w * np.log(likelihood)).sum()


@settings(deadline=None)
@given(st.lists(PROBABILITY, min_size=1, max_size=50))
def test_bin_of_agrees_with_edges_and_rises(probabilities: list[float]) -> None:
    p = np.sort(f32(*probabilities))
    got = [int(bin_of(x)) for x in p]
    assert got == naive_bins(p).tolist()
    assert got == sorted(got)
    assert got[0] >= 0
    assert got[-1] < BINS


def test_bin_of_examples() -> None:
    assert [int(bin_of(p)) for p in f32(0, 0.25, 0.5, 0.75, 1)] == [
        0,
        MIDDLE - 256,
        MIDDLE,
        MIDDLE + 256,
        BINS - 1,
    ]
    assert int(bin_of(np.nextafter(np.float32(0.5), np.float32(0)))) == MIDDLE - 1
    assert int(bin_of(np.nextafter(np.float32(0.5), np.float32(1)))) == MIDDLE + 1


def test_example_of_the_docstring() -> None:
    bins = np.zeros((BINS, 3))
    bad, loss = accumulate(bins, f32(0.5, 0.5), f32(1, 0), f32(2, 4))
    assert bad == -1
    assert loss == pytest.approx(6 * math.log(2), rel=1e-15)
    assert bins[MIDDLE].tolist() == [4, 2, 3]
    assert bins.sum() == 9


@settings(deadline=None)
@given(ROWS, st.booleans())
def test_accumulate_agrees_with_numpy(rows: list[tuple[float, int, float]], weighted: bool) -> None:
    columns = np.array(rows, np.float32).reshape(-1, 3)
    p, y, w = (np.ascontiguousarray(column) for column in columns.T)
    if not weighted:
        w = np.ones_like(w)
    bins = np.zeros((BINS, 3))
    bad, loss = accumulate(bins, p, y, w if weighted else None)
    expected, expected_loss = naive_accumulate(p, y, w)
    assert bad == -1
    np.testing.assert_allclose(bins, expected, rtol=1e-13)
    # Rows of equal weight share a logarithm: each costs one rounding of a product near 1, times its weight.
    rounding = float(np.finfo(np.float64).eps * w.astype(np.float64).sum())
    assert loss == pytest.approx(expected_loss, rel=1e-12, abs=max(1e-14, rounding))


@pytest.mark.parametrize("weight", [1.0, 201.0, 1e6])
def test_the_loss_of_sure_rows_keeps_its_digits(weight: float) -> None:
    p = f32(0.0, 3.7266393064783188e-06)
    _, loss = accumulate(np.zeros((BINS, 3)), p, f32(0, 0), f32(weight, weight))
    exact = -weight * (math.log1p(-(2.0**-23)) + math.log1p(-float(p[1])))
    assert loss == pytest.approx(exact, rel=1e-10)


def test_many_unlikely_rows_do_not_underflow() -> None:
    p, y = np.zeros(4096, np.float32), np.ones(4096, np.float32)
    _, loss = accumulate(np.zeros((BINS, 3)), p, y, None)
    assert loss == pytest.approx(4096 * 23 * math.log(2), rel=1e-12)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, math.nan),
        (0, -0.001),
        (0, 1.001),
        (0, math.inf),
        (1, 0.5),
        (1, -1.0),
        (1, math.nan),
        (2, -1.0),
        (2, math.nan),
        (2, math.inf),
    ],
)
def test_a_bad_row_is_named_and_nothing_added(column: int, value: float) -> None:
    columns = [np.full(9, 0.25, np.float32), np.ones(9, np.float32), np.ones(9, np.float32)]
    columns[column][[5, 7]] = value
    bins = np.zeros((BINS, 3))
    assert accumulate(bins, *columns) == (5, 0.0)
    assert not bins.any()


def test_no_rows() -> None:
    bins = np.zeros((BINS, 3))
    assert accumulate(bins, f32(), f32(), None) == (-1, 0.0)
    assert not bins.any()
