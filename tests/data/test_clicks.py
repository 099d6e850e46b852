"""The synthetic click log: the same bytes again, the shape that was asked for, and a truth that is true."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.data.clicks import BLOCK_ROWS, ClickLog, ClickSummary, iter_blocks, write_clicks
from penstock.errors import ConfigError, StorageError

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT") == "1",
    reason="millions of cells; the kernels have tests of their own",
)

SMALL = ClickLog(rows=20_000, numeric=3, categorical=3, distinct=1000)


def with_(spec: ClickLog = SMALL, **changes: Any) -> ClickLog:
    return dataclasses.replace(spec, **changes)


def table(spec: ClickLog, probability: bool = False) -> pa.Table:
    return pa.Table.from_batches(list(iter_blocks(spec, probability=probability)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def full() -> pa.Table:
    """100,000 rows of the default log, with their true probabilities."""
    return table(ClickLog(rows=100_000), probability=True)


def test_columns_and_types(full: pa.Table) -> None:
    numbers, strings = [f"n{i}" for i in range(1, 14)], [f"c{i}" for i in range(1, 27)]
    assert full.column_names == ["clicked", "time", *numbers, *strings, "probability"]
    assert full.drop_columns("probability").schema == ClickLog().schema
    assert full.schema.field("clicked").type == pa.int8()
    assert full.schema.field("time").type == pa.timestamp("ms")
    assert {full.schema.field(name).type for name in numbers} == {pa.float32()}
    assert {full.schema.field(name).type for name in strings} == {pa.string()}
    full.validate(full=True)
    assert set(full["clicked"].unique().to_pylist()) == {0, 1}
    for name in strings:
        assert pc.all(pc.match_substring_regex(full[name], "^[0-9a-f]{8}$")).as_py()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    spec = with_(rows_per_file=15_000, drift=0.5)
    assert write_clicks(spec, tmp_path / "a") == write_clicks(spec, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == ["_clicks.json", "clicks-00000.parquet", "clicks-00001.parquet"]


def test_the_bytes_of_a_log_do_not_change_between_releases() -> None:
    # Benchmarks name their data by its seed. New figures here are a new log, and a line in the changelog.
    head = table(ClickLog(rows=3), probability=True)
    assert head["c1"].to_pylist() == ["b8561dee", "0621b4b1", "b8561dee"]
    assert head["c26"].to_pylist() == ["1578bd00", "bc049760", "d4917484"]
    assert head["n1"].to_pylist() == [0.22134782373905182, 0.156479611992836, 2.134800434112549]
    assert head["time"].cast(pa.int64()).to_pylist() == [1767225600087, 1767225600129, 1767225600242]
    assert head["clicked"].to_pylist() == [1, 0, 0]
    assert head["probability"].to_pylist() == pytest.approx(
        [0.178355089724, 0.508657786548, 0.078029037754], rel=1e-8
    )


def test_another_seed_gives_other_data() -> None:
    one, two = table(SMALL), table(with_(seed=8))
    for name in one.column_names:
        assert one[name] != two[name]
    a, b = (table(with_(seed=seed), probability=True)["probability"].to_numpy() for seed in (7, 8))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


@settings(deadline=None, max_examples=10)
@given(rows=st.integers(1, 2 * BLOCK_ROWS + 5), more=st.integers(0, BLOCK_ROWS))
def test_a_longer_log_begins_with_the_same_rows(rows: int, more: int) -> None:
    spec = ClickLog(rows=rows, numeric=1, categorical=2, distinct=100)
    short = table(spec, probability=True)
    assert short.num_rows == rows
    assert table(with_(spec, rows=rows + more), probability=True).slice(0, rows).equals(short)


def test_a_column_does_not_depend_on_the_number_of_other_columns() -> None:
    fewer, more = table(SMALL), table(with_(numeric=5))
    for name in ("time", "n1", "n2", "n3", "c1", "c2", "c3"):
        assert fewer[name] == more[name]


@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 40_000), rows_per_file=st.integers(4000, 50_000), group=st.integers(1000, 50_000))
def test_files_hold_the_rows_of_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, rows: int, rows_per_file: int, group: int
) -> None:
    spec = ClickLog(
        rows=rows, numeric=1, categorical=2, distinct=100, rows_per_file=rows_per_file, row_group_rows=group
    )
    folder = tmp_path_factory.mktemp("log")
    seen: list[int] = []
    summary = write_clicks(spec, folder, on_progress=seen.append)
    files = [pq.ParquetFile(folder / name) for name in summary.files]
    assert len(files) == math.ceil(rows / rows_per_file)
    assert pa.concat_tables(file.read() for file in files).equals(table(spec))
    groups = [[file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)] for file in files]
    assert [sum(g) for g in groups[:-1]] == [rows_per_file] * (len(files) - 1)
    assert all(n == group for g in groups for n in g[:-1])
    assert seen == np.cumsum([n for g in groups for n in g]).tolist()


def test_parquet_is_dictionary_encoded_and_compressed(tmp_path: Path) -> None:
    write_clicks(SMALL, tmp_path)
    group = pq.read_metadata(tmp_path / "clicks-00000.parquet").row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert {column.compression for column in columns} == {"SNAPPY"}
    dictionary = [column.path_in_schema for column in columns if "RLE_DICTIONARY" in column.encodings]
    assert dictionary == ["c1", "c2", "c3"]
    time = group.column(1).statistics
    assert time.min < time.max


def test_cardinalities_rise_geometrically() -> None:
    sizes = ClickLog().cardinalities
    assert len(sizes) == 26 and sizes[0] == 10 and sizes[-1] == 10_000_000
    ratios = np.array(sizes[1:]) / sizes[:-1]
    assert ratios.min() > 1.6 and ratios.max() < 1.9
    assert ClickLog(categorical=2, distinct=4).cardinalities == (4, 4)
    assert ClickLog(categorical=1, cross=False).cardinalities == (10_000_000,)
    assert ClickLog(categorical=0, cross=False).cardinalities == ()


def test_distinct_values_are_as_many_as_asked(full: pa.Table) -> None:
    found = [pc.count_distinct(full[f"c{i + 1}"]).as_py() for i in range(26)]
    assert found[:6] == list(ClickLog().cardinalities[:6])
    assert all(n <= most for n, most in zip(found, ClickLog().cardinalities, strict=True))
    assert found[-1] > 25_000


@pytest.mark.parametrize("zipf", [0.0, 1.0, 1.1, 2.0])
def test_values_follow_a_power_law(zipf: float) -> None:
    distinct = 50
    log = table(
        ClickLog(rows=100_000, numeric=0, categorical=1, distinct=distinct, zipf=zipf, cross=False, missing=0)
    )
    counts = np.sort(pc.value_counts(log["c1"].combine_chunks()).field("counts").to_numpy())[::-1]
    edges = np.arange(1.0, distinct + 2)
    mass = np.log(edges) if zipf == 1 else edges ** (1 - zipf) / (1 - zipf)
    expected = np.diff(mass) / (mass[-1] - mass[0]) * log.num_rows
    # Chi-squared with 49 degrees of freedom exceeds 100 once in 30,000; sorting only makes it smaller.
    assert len(counts) == distinct
    assert ((counts - expected) ** 2 / expected).sum() < 100


def test_numeric_columns_are_well_scaled(full: pa.Table) -> None:
    n1, n2, n3 = (full[name].drop_null().to_numpy() for name in ("n1", "n2", "n3"))
    assert n1.min() >= 0 and n1.max() <= 5 and np.median(n1) < n1.mean()
    assert abs(n2.mean()) < 0.02 and abs(n2.std() - 1) < 0.02 and abs(n2).max() < 3.5
    assert np.unique(n3).tolist() == [0, 1, 2, 3, 4, 5]


def test_nulls_are_as_many_as_asked(full: pa.Table) -> None:
    share = [full[name].null_count / full.num_rows for name in full.column_names if name[-1].isdigit()]
    assert len(share) == 39
    np.testing.assert_allclose(share, 0.02, atol=5 * math.sqrt(0.02 / full.num_rows))
    none = table(with_(missing=0))
    assert all(column.null_count == 0 for column in none.columns)


def test_a_null_adds_nothing_to_the_logit() -> None:
    log = table(ClickLog(rows=20_000, numeric=1, categorical=2, distinct=10, missing=0.5), probability=True)
    nothing = log.filter(pc.and_(pc.is_null(log["n1"]), pc.and_(pc.is_null(log["c1"]), pc.is_null(log["c2"]))))
    bias = set(nothing["probability"].to_pylist())
    assert nothing.num_rows > 2000 and len(bias) == 1
    # n1 is 5 u^3 without an offset, so n1 = 0 is as good as a null.
    small = log.filter(pc.and_(pc.less(log["n1"], 1e-6), pc.and_(pc.is_null(log["c1"]), pc.is_null(log["c2"]))))
    assert small.num_rows > 0
    np.testing.assert_allclose(small["probability"].to_numpy(), bias.pop(), rtol=1e-5)


def test_time_rises_from_the_start() -> None:
    log = table(with_(rows=50_000, start="2026-03-01T12:00:00+02:00", events_per_s=100.0))
    time = log["time"].to_numpy()
    assert (np.diff(time) >= np.timedelta64(0, "ms")).all()
    since = (time - np.datetime64("2026-03-01T10:00:00", "ms")).astype(np.int64)
    # Row i falls into the i-th slot of 10 ms.
    np.testing.assert_array_equal(since // 10, np.arange(50_000))
    assert len(np.unique(since % 10)) == 10


@pytest.mark.parametrize(("click_rate", "signal"), [(0.25, 1.3), (0.02, 1.3), (0.6, 3.0), (0.25, 0.0)])
def test_click_rate_and_signal_are_those_asked_for(click_rate: float, signal: float) -> None:
    log = table(with_(rows=100_000, click_rate=click_rate, signal=signal), probability=True)
    p = log["probability"].to_numpy()
    assert p.mean() == pytest.approx(click_rate, rel=0.05)
    assert np.log(p / (1 - p)).std() == pytest.approx(signal, rel=0.03, abs=1e-9)


def test_labels_follow_their_probabilities(full: pa.Table) -> None:
    y, p = full["clicked"].to_numpy(), full["probability"].to_numpy()
    for part in np.array_split(np.argsort(p), 10):
        assert abs(y[part].sum() - p[part].sum()) < 5 * math.sqrt((p[part] * (1 - p[part])).sum())


def test_the_summary_says_what_the_rows_say(full: pa.Table, tmp_path: Path) -> None:
    summary = write_clicks(ClickLog(rows=full.num_rows), tmp_path)
    y, p = full["clicked"].to_numpy(), full["probability"].to_numpy()
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert summary.rows == full.num_rows
    assert summary.click_rate == y.mean()
    assert summary.best_logloss == pytest.approx(entropy.mean(), rel=1e-9)
    assert summary.realised_logloss == pytest.approx(-np.log(np.where(y == 1, p, 1 - p)).mean(), rel=1e-9)
    rate = y.mean()
    assert summary.base_rate_logloss == pytest.approx(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate))
    ranks = np.empty(len(p))
    ranks[np.argsort(p)] = np.arange(1, len(p) + 1)
    clicks = int(y.sum())
    auc = (ranks[y == 1].sum() - clicks * (clicks + 1) / 2) / (clicks * (len(y) - clicks))
    assert summary.best_auc == pytest.approx(auc, abs=1e-3)
    assert 0.75 < summary.best_auc < 0.82
    assert summary.best_logloss < 0.85 * summary.base_rate_logloss
    # The loss of a row differs from its entropy with variance p (1 - p) logit^2.
    logit = np.log(p / (1 - p))
    error = math.sqrt((p * (1 - p) * logit**2).mean() / len(p))
    assert abs(summary.realised_logloss - summary.best_logloss) < 5 * error


def test_the_summary_stands_beside_the_files(tmp_path: Path) -> None:
    summary = write_clicks(SMALL, tmp_path)
    stored = json.loads((tmp_path / "_clicks.json").read_text())
    assert ClickLog(**stored.pop("spec")) == SMALL
    assert ClickSummary(**{**stored, "files": tuple(stored["files"])}) == summary


def test_one_row_has_a_summary(tmp_path: Path) -> None:
    summary = write_clicks(with_(rows=1), tmp_path)
    assert math.isnan(summary.best_auc) and summary.base_rate_logloss == 0
    assert json.loads((tmp_path / "_clicks.json").read_text())["best_auc"] is None


@pytest.mark.parametrize("cross", [False, True])
def test_a_logistic_regression_of_these_columns_reaches_the_best_loss(cross: bool) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    spec = ClickLog(rows=60_000, numeric=4, categorical=3, distinct=30, cross=cross, missing=0.1)
    log = table(spec, probability=True).to_pandas()
    if cross:
        log["c1 and c2"] = (log["c1"] + log["c2"]).where(log["c1"].notna() & log["c2"].notna())
    strings = [name for name in log.columns if name.startswith("c") and name != "clicked"]
    one_hot = pd.get_dummies(log[strings]).to_numpy(np.float64)
    X = np.hstack([log[["n1", "n2", "n3", "n4"]].fillna(0).to_numpy(), one_hot])
    y, p = log["clicked"].to_numpy(), log["probability"].to_numpy()
    fit = linear.LogisticRegression(C=1.0, max_iter=300).fit(X[:40_000], y[:40_000])
    q = fit.predict_proba(X[40_000:])[:, 1]
    truth, y = p[40_000:], y[40_000:]
    # The expected excess over the truth is that of so many parameters on so many rows, and no more.
    excess = np.mean(truth * np.log(truth / q) + (1 - truth) * np.log((1 - truth) / (1 - q)))
    assert 0 < excess < X.shape[1] / 40_000, (excess, X.shape)


def test_weights_turn_with_time() -> None:
    # One block a day and half a turn a day: the second block has the opposite weights.
    still = with_(rows=2 * BLOCK_ROWS, events_per_s=BLOCK_ROWS / 86_400)
    turning = with_(still, drift=math.pi)
    fixed, turned = (
        np.log(p / (1 - p))
        for p in (table(spec, probability=True)["probability"].to_numpy() for spec in (still, turning))
    )
    assert table(still).drop_columns("clicked").equals(table(turning).drop_columns("clicked"))
    np.testing.assert_allclose(turned[:BLOCK_ROWS], fixed[:BLOCK_ROWS], rtol=1e-9)
    both = turned[BLOCK_ROWS:] + fixed[BLOCK_ROWS:]
    np.testing.assert_allclose(both, both[0], rtol=1e-6)
    quarter = table(with_(still, drift=math.pi / 2), probability=True)["probability"].to_numpy()
    other = np.log(quarter / (1 - quarter))[BLOCK_ROWS:]
    assert abs(np.corrcoef(other, fixed[BLOCK_ROWS:])[0, 1]) < 0.5
    assert other.std() == pytest.approx(fixed.std(), rel=0.05)
    assert quarter[BLOCK_ROWS:].mean() == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows must be an integer from 1 to 1000000000000, got 0"),
        ({"rows": 1.5}, "rows must be an integer"),
        ({"rows": True}, "rows must be an integer"),
        ({"numeric": -1}, "numeric must be an integer from 0 to 1000, got -1"),
        ({"numeric": 0, "categorical": 0, "cross": False}, "numeric \\+ categorical must be >= 1"),
        ({"categorical": 1}, "cross=True needs categorical >= 2, got 1"),
        ({"cross": 1}, "cross must be True or False, got 1"),
        ({"distinct": 1}, "distinct must be an integer from 2 to 4294967296, got 1"),
        ({"distinct": 2**32 + 1}, "distinct must be"),
        ({"zipf": -0.1}, "zipf must be a number from 0 to 5, got -0.1"),
        ({"zipf": math.nan}, "zipf must be a number"),
        ({"click_rate": 0}, "click_rate must be a number from 1e-06 to 0.999999, got 0"),
        ({"click_rate": "half"}, "click_rate must be a number from .*, got 'half'"),
        ({"signal": math.inf}, "signal must be a number from 0 to 10, got inf"),
        ({"missing": 1.0}, "missing must be a number from 0 to 0.9, got 1.0"),
        ({"drift": math.nan}, "drift must be a number"),
        ({"events_per_s": 0}, "events_per_s must be a number"),
        ({"events_per_s": 1e-6, "rows": 10**6}, "must end before the year 10000"),
        ({"start": "yesterday"}, "start must be a time in ISO 8601 like '2026-01-01', got 'yesterday'"),
        ({"start": None}, "start must be a time in ISO 8601"),
        ({"seed": -1}, "seed must be an integer from 0 to 18446744073709551615, got -1"),
        ({"rows_per_file": 0}, "rows_per_file must be"),
        ({"rows_per_file": 1}, "rows / rows_per_file must be at most 100000 files, got 1000000 / 1"),
        ({"row_group_rows": 0}, "row_group_rows must be"),
    ],
)
def test_bad_specs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ClickLog(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2**64 - 1, "distinct": 2**32},
        {"numeric": 0},
        {"categorical": 0, "cross": False},
        {"zipf": 1 + 1e-7},
        {"zipf": 5, "missing": 0.9},
        {"click_rate": 1e-6, "signal": 10.0},
        {"drift": -1e6, "events_per_s": 1e-3},
        {"start": "0001-01-01", "events_per_s": 1e9},
    ],
)
def test_specs_at_their_limits_can_be_drawn(changes: dict[str, Any], tmp_path: Path) -> None:
    summary = write_clicks(with_(**changes), tmp_path)
    assert summary.rows == SMALL.rows
    assert 0 <= summary.best_logloss < 1 and math.isfinite(summary.realised_logloss)
    pq.read_table(tmp_path / "clicks-00000.parquet").validate(full=True)


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    write_clicks(SMALL, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"must be new or empty, .*got '_clicks.json' in it"):
        write_clicks(SMALL, tmp_path)
    assert contents(tmp_path) == before


def test_overwriting_removes_the_files_of_a_click_log(tmp_path: Path) -> None:
    write_clicks(with_(rows_per_file=5000), tmp_path)
    (tmp_path / "clicks-00009.parquet.tmp").write_bytes(b"left by a process that was killed")
    write_clicks(SMALL, tmp_path, overwrite=True)
    assert sorted(contents(tmp_path)) == ["_clicks.json", "clicks-00000.parquet"]


@pytest.mark.parametrize("name", ["notes.txt", "clicks.parquet", "clicks-00000.parquet.bak", "clicks-1.parquet"])
def test_overwriting_leaves_a_folder_with_other_files_alone(tmp_path: Path, name: str) -> None:
    write_clicks(SMALL, tmp_path)
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"hold a click log alone, got '{name}' in it"):
        write_clicks(SMALL, tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "clicks").write_text("mine")
    with pytest.raises(ConfigError, match="must be a folder, got a file"):
        write_clicks(SMALL, tmp_path / "clicks", overwrite=True)
    with pytest.raises(StorageError, match="cannot write the click log: Not a directory"):
        write_clicks(SMALL, tmp_path / "clicks" / "log")
    assert (tmp_path / "clicks").read_text() == "mine"


def limited_to(nbytes: int, action: Callable[[], object]) -> None:
    """Run it where no file may be larger, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("nbytes", [0, 50_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, nbytes: int) -> None:
    # Kernels are compiled, and cached on disk, before the disk is full.
    table(with_(rows=10))
    with pytest.raises(StorageError, match=r"cannot write the click log: File too large$") as caught:
        limited_to(nbytes, lambda: write_clicks(SMALL, tmp_path / "log"))
    assert "\n" not in str(caught.value)
    assert not contents(tmp_path / "log")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(rows: int) -> None:
        if rows >= 15_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clicks(with_(rows_per_file=10_000, row_group_rows=5000), tmp_path, on_progress=interrupt)
    assert not contents(tmp_path)
