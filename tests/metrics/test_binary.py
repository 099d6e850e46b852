"""BinaryMetrics against scikit-learn, plain NumPy, and its own promises (merge, window, saved state)."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError, DataError, ModelError
from penstock.metrics import BinaryMetrics, ReliabilityBin, Scores

PROBABILITY = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.25, 0.2505, 0.5, 1.0]))
ROWS = st.lists(st.tuples(PROBABILITY, st.integers(0, 1), st.floats(0, 100, width=32)), max_size=30)


def f32(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def of(probabilities: Any, labels: Any, weights: Any = None) -> BinaryMetrics:
    metrics = BinaryMetrics()
    metrics.update(probabilities, labels, weights)
    return metrics


def columns(rows: list[tuple[float, int, float]]) -> list[Any]:
    return [np.ascontiguousarray(column) for column in np.array(rows, np.float32).reshape(-1, 3).T]


def clicks(n: int, *, seed: int = 0, mean: float = -2.0, spread: float = 1.3) -> tuple[Any, Any, Any]:
    """Probabilities, labels and weights as a click model sees them."""
    random = np.random.default_rng(seed)
    p = (1 / (1 + np.exp(-random.normal(mean, spread, n)))).astype(np.float32)
    return p, (random.random(n) < p).astype(np.float32), random.uniform(0.1, 5, n).astype(np.float32)


def naive_auc(p: Any, y: Any, w: Any) -> float:
    """Share of pairs in the right order, all pairs written out."""
    clicked, other = y == 1, y == 0
    right = np.greater.outer(p[clicked], p[other]) + 0.5 * np.equal.outer(p[clicked], p[other])
    pairs = np.multiply.outer(w[clicked].astype(np.float64), w[other].astype(np.float64))
    return float((right * pairs).sum() / pairs.sum())


def assert_close(a: BinaryMetrics, b: BinaryMetrics) -> None:
    one, two = a.to_state(), b.to_state()
    assert one["rows"] == two["rows"]
    assert one["bins"] == two["bins"]
    for column in ("negative", "positive", "predicted", "loss"):
        np.testing.assert_allclose(one[column], two[column], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("mean", "spread"), [(-2.0, 1.3), (0.0, 4.0), (-4.0, 0.3)])
def test_agrees_with_scikit_learn(weighted: bool, mean: float, spread: float) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    p, y, w = clicks(20_000, mean=mean, spread=spread)
    weights = w if weighted else None
    scores = of(p, y, weights).scores()
    auc = sklearn.roc_auc_score(y, p, sample_weight=weights)
    assert abs(scores.auc - auc) <= scores.auc_error
    assert scores.auc == pytest.approx(auc, abs=1e-4)
    assert scores.logloss == pytest.approx(sklearn.log_loss(y, p, sample_weight=weights), rel=1e-5)
    assert scores.accuracy == pytest.approx(sklearn.accuracy_score(y, p > 0.5, sample_weight=weights), rel=1e-12)


def test_log_loss_is_clipped_as_in_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    p, y = f32(0, 1, 0, 1, 1e-9), f32(1, 0, 0, 1, 1)
    assert of(p, y).scores().logloss == pytest.approx(sklearn.log_loss(y, p), rel=1e-6)


@settings(deadline=None)
@given(ROWS)
def test_scores_agree_with_numpy(rows: list[tuple[float, int, float]]) -> None:
    p, y, w = columns([(p, y, w + 1) for p, y, w in [*rows, (0.3, 1, 1.0), (0.3, 0, 2.0)]])
    scores = of(p, y, w).scores()
    wide, base = w.astype(np.float64), np.average(y, weights=w.astype(np.float64))
    assert abs(scores.auc - naive_auc(p, y, w)) <= scores.auc_error + 1e-12
    assert 0 <= scores.auc <= 1
    assert scores.rows == len(p)
    assert scores.weight == pytest.approx(wide.sum())
    assert scores.base_rate == pytest.approx(base)
    assert scores.mean_prediction == pytest.approx(np.average(p, weights=wide))
    assert scores.calibration == pytest.approx((wide * p).sum() / (wide * y).sum())
    assert scores.accuracy == pytest.approx(np.average((p > 0.5) == (y == 1), weights=wide))
    entropy = -(base * math.log(base) + (1 - base) * math.log1p(-base))
    assert scores.normalised_entropy == pytest.approx(scores.logloss / entropy)


def test_auc_is_exact_where_each_bin_has_one_class() -> None:
    metrics = of(f32(0.1, 0.2, 0.3, 0.4), f32(0, 1, 0, 1))
    assert metrics.scores().auc == 0.75
    assert metrics.scores().auc_error == 0


def test_equal_predictions_count_half() -> None:
    scores = of(f32(0.2, 0.2, 0.2), f32(0, 1, 0)).scores()
    assert scores.auc == 0.5
    assert scores.auc_error == 0.5


@settings(deadline=None, max_examples=50)
@given(ROWS, ROWS, ROWS)
def test_merge_in_any_order_is_one_stream(a: Any, b: Any, c: Any) -> None:
    whole = of(*columns([*a, *b, *c]))
    one, two, three = (of(*columns(rows)) for rows in (a, b, c))
    left = one.copy()
    left.merge(two)
    left.merge(three)
    right = three.copy()
    right.merge(two)
    right.merge(one)
    assert_close(left, whole)
    assert_close(right, whole)


def test_merge_of_counts_is_exact() -> None:
    p, y, _ = clicks(3000)
    whole, parts = of(p, y), BinaryMetrics()
    for begin in (2000, 0, 1000):
        parts.merge(of(p[begin : begin + 1000], y[begin : begin + 1000]))
    for name in ("bins", "negative", "positive"):
        assert parts.to_state()[name] == whole.to_state()[name]
    assert parts.scores().auc == whole.scores().auc


@settings(deadline=None, max_examples=50)
@given(ROWS, ROWS, st.booleans())
def test_a_saved_state_goes_on_bit_for_bit(before: Any, after: Any, weighted: bool) -> None:
    straight = BinaryMetrics()
    saved = BinaryMetrics()
    for rows in (before, after):
        p, y, w = columns(rows)
        weights = w if weighted else None
        straight.update(p, y, weights)
        saved = BinaryMetrics.from_state(json.loads(json.dumps(saved.to_state(), allow_nan=False)))
        saved.update(p, y, weights)
    assert saved.to_state() == straight.to_state()
    assert np.array(saved.scores().logloss).tobytes() == np.array(straight.scores().logloss).tobytes()


def test_state_is_compact() -> None:
    p, y, _ = clicks(4096)
    state = of(p, y).to_state()
    assert len(state["bins"]) == len(state["negative"]) <= 4096  # type: ignore[arg-type]
    assert all(isinstance(count, int) for count in state["negative"])  # type: ignore[attr-defined]
    assert BinaryMetrics().to_state()["bins"] == []


GOOD_STATE = of(f32(0.25, 0.5), f32(0, 1)).to_state()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "2"}, "rows"),
        ({"rows": -2}, "rows"),
        ({"loss": math.nan}, "loss"),
        ({"unknown": 1}, "unknown"),
        ({"histogram_bins": 9217}, "9217"),
        ({"negative": [1]}, "one length"),
        ({"negative": [1, -1]}, ">= 0"),
        ({"predicted": [0.25, math.inf]}, "finite"),
        ({"bins": [6144, 12801]}, "12800"),
        ({"bins": [-1, 6400]}, "12800"),
        ({"bins": [6144, 6144]}, "rise"),
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, object], message: str) -> None:
    assert BinaryMetrics.from_state(GOOD_STATE).to_state() == GOOD_STATE
    with pytest.raises(ModelError, match=message):
        BinaryMetrics.from_state(GOOD_STATE | change)


def test_a_state_without_a_field_is_refused() -> None:
    with pytest.raises(ModelError, match="loss"):
        BinaryMetrics.from_state({name: value for name, value in GOOD_STATE.items() if name != "loss"})


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(PROBABILITY, st.integers(0, 1), st.integers(0, 4)), max_size=30))
def test_a_weight_is_a_repetition(rows: Any) -> None:
    p, y, w = columns(rows)
    weighted, repeated = of(p, y, w), of(*(np.repeat(column, w.astype(np.int64)) for column in (p, y)))
    one, two = weighted.scores(), repeated.scores()
    assert one.rows == len(rows)
    assert two.rows == w.sum()
    for name in Scores.__dataclass_fields__:
        if name != "rows":
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-9, nan_ok=True)


def test_window_since_a_copy() -> None:
    p, y, w = clicks(3000)
    metrics = of(p[:1000], y[:1000], w[:1000])
    earlier = metrics.copy()
    metrics.update(p[1000:], y[1000:], w[1000:])
    assert_close(metrics.since(earlier), of(p[1000:], y[1000:], w[1000:]))
    assert earlier.rows == 1000
    assert metrics.since(metrics).scores().rows == 0
    with pytest.raises(ValueError, match="earlier copy"):
        earlier.since(metrics)


def test_window_needs_the_same_past() -> None:
    with pytest.raises(ValueError, match="earlier copy"):
        of(f32(0.1, 0.1), f32(0, 1)).since(of(f32(0.9), f32(1)))


UNDEFINED_FOR_ONE_CLASS = {"auc", "auc_error", "normalised_entropy"}


@pytest.mark.parametrize(
    ("metrics", "undefined"),
    [
        (BinaryMetrics(), set(Scores.__dataclass_fields__) - {"rows", "weight"}),
        (of(f32(0.5), f32(1), f32(0)), set(Scores.__dataclass_fields__) - {"rows", "weight"}),
        (of(f32(0.5, 1), f32(0, 0)), {*UNDEFINED_FOR_ONE_CLASS, "calibration"}),
        (of(f32(0.5, 0), f32(1, 1)), UNDEFINED_FOR_ONE_CLASS),
    ],
    ids=["no rows", "no weight", "label 0 alone", "label 1 alone"],
)
def test_undefined_scores_are_nan_and_null(metrics: BinaryMetrics, undefined: set[str]) -> None:
    scores = metrics.scores()
    assert {name for name in Scores.__dataclass_fields__ if math.isnan(getattr(scores, name))} == undefined
    written = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert {name for name, value in written.items() if value is None} == undefined
    assert written["rows"] == metrics.rows


def test_perfect_and_reversed_predictions() -> None:
    y = f32(0, 1, 0, 1)
    assert of(y, y).scores().auc == 1
    assert of(y, y).scores().logloss == pytest.approx(2.0**-23, rel=1e-6)
    assert of(1 - y, y).scores().auc == 0
    assert of(1 - y, y).scores().logloss == pytest.approx(23 * math.log(2))


def test_half_is_predicted_as_label_0() -> None:
    assert of(f32(0.5, 0.5, 0.5), f32(0, 0, 1)).scores().accuracy == pytest.approx(2 / 3)


def test_update_names_a_bad_row_and_adds_nothing() -> None:
    metrics = BinaryMetrics()
    with pytest.raises(DataError, match=r"row 1 of 2: got probability nan, label 1\.0, weight 1\.0"):
        metrics.update(f32(0.5, math.nan), f32(1, 1))
    assert metrics.to_state() == BinaryMetrics().to_state()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.ones(2), f32(1, 1), None), r"probabilities must be .* got float64\[2\]"),
        ((f32(1), f32(1, 1), None), r"probabilities must be .*\[2\], got float32\[1\]"),
        ((f32(1, 1), f32(1, 1), f32(1, 1, 1)), r"weights must be .* got float32\[3\]"),
        ((f32(1, 1), np.ones((2, 1), np.float32), None), "labels"),
        ((np.ones(4, np.float32)[::2], f32(1, 1), None), "strides"),
    ],
)
def test_update_takes_contiguous_f32_of_one_length(arrays: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BinaryMetrics().update(*arrays)


def test_update_takes_read_only_arrays() -> None:
    p, y = f32(0.25), f32(1)
    p.flags.writeable = y.flags.writeable = False
    assert of(p, y).rows == 1


def test_reliability_points_are_the_rows_in_order() -> None:
    p = np.repeat(f32(0.1, 0.2, 0.4, 0.8), 25)
    y = np.tile(f32(0, 0, 0, 0, 1), 20)
    assert of(p, y).reliability(4) == tuple(
        ReliabilityBin(mean_prediction=pytest.approx(mean), observed_rate=0.2, weight=25)
        for mean in (0.1, 0.2, 0.4, 0.8)
    )
    (whole,) = of(p, y).reliability(1)
    assert whole == ReliabilityBin(mean_prediction=pytest.approx(0.375), observed_rate=0.2, weight=100)


def test_reliability_of_a_smooth_model() -> None:
    p, y, w = clicks(20_000)
    metrics = of(p, y, w)
    points = metrics.reliability()
    scores = metrics.scores()
    assert len(points) == 10
    assert sum(point.weight for point in points) == pytest.approx(scores.weight)
    assert sum(point.weight * point.observed_rate for point in points) == pytest.approx(
        scores.weight * scores.base_rate
    )
    means = [point.mean_prediction for point in points]
    assert means == sorted(means)
    for point in points:
        assert point.weight == pytest.approx(scores.weight / 10, rel=0.05)
        assert point.observed_rate == pytest.approx(point.mean_prediction, abs=0.05)


def test_reliability_keeps_equal_predictions_together() -> None:
    points = of(f32(0.1, 0.1, 0.1, 0.9), f32(0, 0, 1, 1)).reliability(10)
    assert [point.weight for point in points] == [3, 1]
    assert BinaryMetrics().reliability() == ()
    with pytest.raises(ConfigError, match="bins must be >= 1, got 0"):
        BinaryMetrics().reliability(0)


def test_reliability_puts_a_bin_where_its_middle_row_falls() -> None:
    p = np.repeat(f32(0.1, 0.2, 0.3), [3, 5, 2])
    assert [point.weight for point in of(p, np.zeros_like(p)).reliability(2)] == [3, 7]
