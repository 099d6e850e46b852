"""The records: JSON and back, what is refused, and the figures derived from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.dash import Comparison, JobSummary, Point, Trial, WorkerFigures, load_comparison, save_comparison
from penstock.errors import ConfigError, DataError, StorageError
from penstock.metrics import BinaryMetrics


def test_a_comparison_comes_back_equal(comparison: Comparison, tmp_path: Path) -> None:
    save_comparison(comparison, tmp_path / "compare.json")
    assert load_comparison(tmp_path / "compare.json") == comparison


def test_what_json_cannot_hold_comes_back_equal_too(
    trial: Callable[..., Trial], compare: Callable[..., Comparison]
) -> None:
    made = trial(
        "bsp",
        curve=(Point(seconds=1, rows=10, logloss=math.nan, auc=math.inf),),
        scores={"logloss": math.nan},
        events=((1.0, "opened \udcff.parquet"),),
    )
    comparison = compare(made, job=JobSummary(files=("caf\udce9.parquet",)))
    assert made.curve[0].logloss is None and made.curve[0].auc is None and made.logloss is None
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_scores_of_the_package_fit(trial: Callable[..., Trial], compare: Callable[..., Comparison]) -> None:
    comparison = compare(trial("bsp", scores=BinaryMetrics().scores().to_json()))
    assert Comparison.from_json(comparison.to_json()).trials[0].scores["auc"] is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "comparison: "),
        (b"\xff\xfe", "comparison: "),
        (b"{}", "missing required field `format`"),
        (b'{"format": 2, "other": 1}', "format is 2, this version reads up to 1"),
        (b'{"format": 1}', "missing required field `job`"),
    ],
)
def test_other_files_are_refused(text: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(DataError, match=words) as caught:
        load_comparison(tmp_path / "x.json")
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_an_altered_value_is_refused_on_reading(comparison: Comparison) -> None:
    with pytest.raises(DataError, match="seconds must be finite and >= 0, got -42"):
        Comparison.from_json(comparison.to_json().replace(b'"seconds": 42.0', b'"seconds": -42.0'))


def test_a_missing_file_and_a_folder_that_is_not_there(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_comparison(tmp_path / "none.json")
    with pytest.raises(StorageError, match="cannot be written: No such file"):
        save_comparison(comparison, tmp_path / "none" / "compare.json")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Trial(name="bsp", seconds=math.nan),
        lambda: Trial(name="bsp", rows=-1),
        lambda: Trial(name="bsp", staleness={-1: 3}),
        lambda: Point(seconds=-1.0, rows=1, logloss=0.5),
        lambda: WorkerFigures(name="w", rows=1, batches=1, busy_s=1.0, idle_s=math.inf),
        lambda: WorkerFigures(name="w", rows=1, batches=1, busy_s=1.0, idle_s=1.0, waits_s={"pull": -1.0}),
    ],
)
def test_impossible_figures_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=">= 0, got"):
        make()


def test_records_do_not_change(comparison: Comparison) -> None:
    with pytest.raises(AttributeError):
        comparison.trials[0].rows = 3  # type: ignore[misc]
    assert msgspec.structs.replace(comparison, straggler=None).straggler is None


def test_derived_figures() -> None:
    trial = Trial(
        name="asp",
        rows=1000,
        seconds=4.0,
        bytes_in=3000,
        bytes_out=1000,
        by_worker=(
            WorkerFigures(name="a", rows=1, batches=1, busy_s=3.0, idle_s=1.0),
            WorkerFigures(name="b", rows=0, batches=0, busy_s=0.0, idle_s=0.0),
        ),
    )
    assert trial.rows_per_s == 250 and trial.bytes_per_row == 4 and trial.idle_shares == (0.25,)
    none = Trial(name="online")
    assert none.rows_per_s is None and none.bytes_per_row is None and none.staleness_at(0.5) is None


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 40), st.integers(0, 20), max_size=8),
    st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_staleness_quantiles_are_those_of_the_sorted_list(counts: dict[int, int], quantile: float) -> None:
    each = sorted(at for at, count in counts.items() for _ in range(count))
    got = Trial(name="asp", staleness=counts).staleness_at(quantile)
    if not each:
        assert got is None
    else:
        assert got == next(at for at in each if sum(x <= at for x in each) >= quantile * len(each))


def test_the_curve_goes_through_to_the_final_scores() -> None:
    first = Point(seconds=1.0, rows=10, logloss=0.6)
    unknown = Point(seconds=0.5, rows=5, logloss=None)
    cut = Trial(name="bsp", rows=20, seconds=2.0, curve=(unknown, first), scores={"logloss": 0.5, "auc": 0.7})
    assert cut.points() == (first, Point(seconds=2.0, rows=20, logloss=0.5, auc=0.7))
    whole = Trial(name="bsp", rows=10, seconds=2.0, curve=(first,), scores={"logloss": 0.6})
    assert whole.points() == (first,)
