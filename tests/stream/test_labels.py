"""What late labels do to learning: weights set the mean right, and what is sampled is sampled so again."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from penstock.errors import ConfigError
from penstock.stream.labels import LabelPolicy


def rows(kinds: list[str], labels: list[bool], seqs: list[int] | None = None) -> pa.Table:
    return pa.table(
        {
            "clicked": labels,
            "_kind": kinds,
            "_seq": pa.array(seqs if seqs is not None else range(len(kinds)), pa.int64()),
        }
    )


def shares(policy: LabelPolicy, p: float) -> tuple[float, float]:
    """Weight of positives and of negatives that are learnt, of examples that are positive with probability p."""
    q = policy.on_time
    weights = policy.weights(np.array([1, 0], np.float32), np.full(2, p, np.float32))
    positive, negative = (1.0, 1.0) if weights is None else (float(w) for w in weights)
    given_in_time, late = p * q, p * (1 - q)
    learnt_positives = given_in_time + (late if policy.mode != "importance" else 0.0)
    return learnt_positives * positive, (1 - given_in_time) * negative * policy.negatives


@pytest.mark.parametrize("mode", ["duplicate", "importance"])
@pytest.mark.parametrize("q", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("negatives", [1.0, 0.2])
def test_weights_set_the_share_of_positives_right(mode: str, q: float, p: float, negatives: float) -> None:
    positive, negative = shares(LabelPolicy(mode=mode, on_time=q, negatives=negatives), p)
    assert positive / (positive + negative) == pytest.approx(p, rel=1e-5)


def test_without_a_wait_they_are_the_fake_negative_weights_of_the_paper() -> None:
    """Ktena et al. 2019, section 4.2: 1 + p, and (1 - p) (1 + p)."""
    p = np.array([0.25, 0.25], np.float32)
    weights = LabelPolicy(mode="duplicate").weights(np.array([1, 0], np.float32), p)
    assert weights is not None
    assert weights.tolist() == pytest.approx([1.25, 0.75 * 1.25])


def test_without_correction_predictions_are_too_low() -> None:
    positive, negative = shares(LabelPolicy(mode="none", on_time=0.5), 0.3)
    assert positive / (positive + negative) < 0.27


def test_what_is_learnt_of_what_comes_out() -> None:
    kinds = ["first", "first", "retraction", "correction", "late", "correction"]
    labels = [True, False, False, True, False, False]
    table = rows(kinds, labels)
    for mode in ("none", "wait", "duplicate"):
        taken = LabelPolicy(mode=mode, on_time=0.5).taken(table, "clicked")
        assert taken["_kind"].to_pylist() == ["first", "first", "correction", "late", "correction"]
    taken = LabelPolicy(mode="importance", on_time=0.5).taken(table, "clicked")
    assert taken["_seq"].to_pylist() == [0, 1, 4, 5], "a late positive is stood for by those in time"


def test_a_sampled_negative_is_taken_again_or_left_again() -> None:
    policy = LabelPolicy(negatives=0.3)
    seqs = list(range(10_000))
    table = rows(["first"] * 10_000, [False] * 10_000, seqs)
    taken = set(policy.taken(table, "clicked")["_seq"].to_pylist())
    assert 0.27 < len(taken) / 10_000 < 0.33
    again = policy.taken(rows(["correction"] * 10_000, [False] * 10_000, seqs), "clicked")
    assert set(again["_seq"].to_pylist()) == taken
    assert policy.taken(rows(["first"] * 50, [True] * 50), "clicked").num_rows == 50
    assert policy.weights(np.array([1, 0], np.float32), None).tolist() == pytest.approx([1, 1 / 0.3])  # type: ignore[union-attr]


def test_all_of_them_weigh_one_and_null_is_no_positive() -> None:
    assert LabelPolicy().weights(np.array([1, 0], np.float32), None) is None
    table = pa.table({"clicked": pa.array([None, 1], pa.int64()), "_kind": ["first"] * 2, "_seq": [0, 1]})
    assert LabelPolicy().taken(table, "clicked").num_rows == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "hope"}, "late_positives: got 'hope', allowed: none, wait, duplicate, importance"),
        ({"mode": "importance"}, "'importance' needs on_time"),
        ({"on_time": 1.5}, "on_time: got 1.5, allowed: 0 to 1"),
        ({"negatives": 0}, "negatives: got 0, allowed: above 0"),
        ({"negatives": 2}, "negatives: got 2, allowed: above 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LabelPolicy(**settings)  # type: ignore[arg-type]
    assert message in str(caught.value)
