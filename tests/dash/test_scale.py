"""Axes: ranges that show what matters, ticks that are round."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.dash import Point
from penstock.dash.scale import Axis, count_axis, loss_range, time_unit, written


def test_places() -> None:
    axis = Axis(low=10.0, high=20.0, start=100.0, end=0.0)
    assert (axis.at(10.0), axis.at(15.0), axis.at(20.0)) == (100.0, 50.0, 0.0)
    log = Axis(low=1.0, high=100.0, start=0.0, end=10.0, logarithmic=True)
    assert (log.at(1.0), log.at(10.0), log.at(100.0)) == pytest.approx((0.0, 5.0, 10.0))
    assert log.at(0.0) < 0


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 42.0, ["0", "10", "20", "30", "40"]),
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.4731, 0.4938, ["0.475", "0.480", "0.485", "0.490"]),
        (0.0, 1_000_000.0, ["0", "200 k", "400 k", "600 k", "800 k", "1 M"]),
    ],
)
def test_ticks(low: float, high: float, texts: list[str]) -> None:
    assert written(Axis(low=low, high=high, start=0.0, end=1.0).ticks(6)) == texts


def test_logarithmic_ticks() -> None:
    def ticks(low: float, high: float) -> list[float]:
        return Axis(low=low, high=high, start=0.0, end=1.0, logarithmic=True).ticks(6)

    assert ticks(1.0, 100.0) == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    assert ticks(0.8, 2000.0) == pytest.approx([1, 3, 10, 30, 100, 300, 1000])
    assert ticks(1.0, 1e5) == pytest.approx([1, 10, 100, 1e3, 1e4, 1e5])


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9))
def test_ticks_are_within_and_not_too_many(low: float, width: float) -> None:
    axis = Axis(low=low, high=low + width, start=0.0, end=1.0)
    if axis.high - axis.low > 1e-6 * low:
        ticks = axis.ticks(6)
        assert 1 <= len(ticks) <= 7 and ticks == sorted(set(ticks))
        assert all(-1e-6 <= axis.at(tick) <= 1 + 1e-6 for tick in ticks)


def points(*losses: float) -> list[Point]:
    return [Point(seconds=i + 1.0, rows=10 * (i + 1), logloss=loss) for i, loss in enumerate(losses)]


def test_the_first_points_do_not_flatten_the_rest() -> None:
    low, high = loss_range([points(9.0, 0.70, 0.60, 0.55, 0.52, 0.51, 0.505, 0.503, 0.501, 0.50)])
    assert 0.48 < low < 0.50 and 0.70 < high < 0.72


def test_noise_is_not_blown_up() -> None:
    low, high = loss_range([points(0.48, 0.48001), points(0.48, 0.47999)])
    assert high - low >= 0.005 * 0.48


def test_no_points_and_zeros() -> None:
    assert loss_range([]) == (0.0, 1.0)
    low, high = loss_range([points(0.0, 0.0)])
    assert low == 0.0 < high


def test_a_logarithm_where_ends_lie_far_apart() -> None:
    assert not count_axis([10.0, 100.0], 0.0, 1.0).logarithmic
    far = count_axis([1.0, 100.0], 0.0, 1.0)
    assert far.logarithmic and (far.low, far.high) == (0.1, 100.0)
    assert count_axis([1e-9, 1e9], 0.0, 1.0).low == pytest.approx(1e5)
    assert not count_axis([0.0, 5.0], 0.0, 1.0).logarithmic
    assert count_axis([0.0], 0.0, 1.0).high > 0


def test_time_units() -> None:
    assert time_unit(299.0) == (1.0, "seconds")
    assert time_unit(300.0) == (60.0, "minutes")
    assert time_unit(5 * 3600.0) == (3600.0, "hours")
