"""From lines of progress to points: recent scores, resumed runs, times of events."""

from __future__ import annotations

import pytest

from penstock.dash.live.curve import COLUMNS, Curve
from tests.dash.live.helpers import BEGAN, line_of


def points(curve: Curve) -> list[dict[str, float | None]]:
    return [dict(zip(COLUMNS, curve.point(line), strict=False)) for line in curve.series.items]


def scores(
    rows: int, *, logloss: float = 0.5, auc: float | None = 0.7, base: float = 0.25, mean: float = 0.25
) -> dict:
    return {
        "rows": rows,
        "weight": float(rows),
        "logloss": logloss,
        "auc": auc,
        "base_rate": base,
        "mean_prediction": mean,
    }


def test_points_say_what_the_lines_say() -> None:
    curve = Curve()
    curve.add(line_of(0.0, 0))
    curve.add(line_of(2.0, 100))
    [point] = points(curve)
    assert point == {
        "seconds": 2.0,
        "rows": 100,
        "at": BEGAN + 2.0,
        "features": 1000,
        "memory_nbytes": 5 << 20,
        "logloss": 0.5,
        "auc": 0.7,
        "calibration": 1.0,
        "recent_logloss": 0.5,
        "recent_auc": 0.7,
        "recent_calibration": 1.0,
    }


def test_recent_scores_are_those_of_a_twentieth_together() -> None:
    curve = Curve()
    for n in range(1, 101):
        recent = scores(
            100, logloss=0.1 * (n % 2), auc=None if n % 2 else 0.8, base=0.5, mean=0.25 + 0.5 * (n % 2)
        )
        curve.add(line_of(n * 0.1, 100 * n, recent=recent))
    last = points(curve)[-1]
    # A twentieth of 10,000 rows: five lines, three of them even.
    assert last["recent_logloss"] == pytest.approx(0.1 * 2 / 5)
    assert last["recent_auc"] == pytest.approx(0.8)
    assert last["recent_calibration"] == pytest.approx((3 * 0.25 + 2 * 0.75) / (5 * 0.5))


def test_recent_scores_are_of_a_minute_at_most() -> None:
    curve = Curve()
    for n in range(1, 101):
        curve.add(line_of(n * 100.0, 100 * n, recent=scores(100, logloss=float(n))))
    assert points(curve)[-1]["recent_logloss"] == 100.0


def test_where_nothing_recent_is_known_there_is_no_score() -> None:
    curve = Curve()
    curve.add(line_of(1.0, 100, recent=scores(100, logloss=0.3)))
    for n in range(2, 200):  # further passes: learnt, and not scored
        curve.add(line_of(float(n), 100 * n, recent={"rows": 0, "weight": 0.0, "logloss": None}))
    last = points(curve)[-1]
    assert [last[f"recent_{name}"] for name in ("logloss", "auc", "calibration")] == [None, None, None]


def test_a_resumed_run_forgets_what_is_learnt_again() -> None:
    curve = Curve()
    for n in range(1, 11):
        curve.add(line_of(float(n), 100 * n))
    curve.add(line_of(4.5, 450, recent=scores(450)))
    assert [point["rows"] for point in points(curve)] == [100, 200, 300, 400, 450]
    assert curve.resumed == [(4.5, 450)]
    # Whoever goes on says in its first line what was learnt before it began.
    assert points(curve)[-1]["recent_logloss"] is None
    curve.add(line_of(3.0, 300))
    assert curve.resumed == [(3.0, 300)]


def test_figures_that_servers_have_not_given_yet_are_none() -> None:
    curve = Curve()
    curve.add(line_of(1.0, 100, features=0, memory_nbytes=0))
    assert points(curve)[0]["features"] is None and points(curve)[0]["memory_nbytes"] is None


def test_streams_have_a_column_each() -> None:
    curve = Curve()
    curve.add(line_of(1.0, 100))
    for n, names in ((2, ["a"]), (3, ["a", "b"])):
        curve.add(line_of(float(n), 100 * n, pipeline={"streams": {name: {"lag_s": n + 0.26} for name in names}}))
    assert curve.streams == ["a", "b"]
    assert [curve.point(line)[len(COLUMNS) :] for line in curve.series.items] == [
        [None, None],
        [2.3, None],
        [3.3, 3.3],
    ]


@pytest.mark.parametrize(
    "line", [{}, {"seconds": "x", "rows": 1}, {"seconds": 1.0}, {"seconds": 1, "rows": 10**400}]
)
def test_lines_that_are_none_are_left_out(line: dict) -> None:
    curve = Curve()
    curve.add(line)
    curve.add(line_of(1.0, 100, progressive="none"))
    assert len(curve.series) == 0


def test_times_of_events_become_seconds_of_the_run() -> None:
    curve = Curve()
    assert curve.seconds_at([BEGAN]) == [None]
    for n in (10, 20, 30):
        curve.add(line_of(float(n), 100 * n))
    curve.add(line_of(40.0, 4000, at=BEGAN + 5000))  # stopped, and resumed much later
    asked = [-100.0, 3.0, 20.0, 24.5, 31.0, 4000.0, 9000.0]
    assert curve.seconds_at([BEGAN + at for at in asked]) == [0.0, 3.0, 20.0, 24.5, 31.0, 40.0, 40.0]
