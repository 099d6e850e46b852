"""Scoring files and tables: every row in order, and no file that is not complete."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import penstock as ps
from penstock.errors import ConfigError, DataError, StorageError
from penstock.metrics import BinaryMetrics
from penstock.models import Linear

ROWS = 20_000
"""More than two batches."""


@pytest.fixture(scope="module")
def table() -> pa.Table:
    random = np.random.default_rng(4)
    site = random.integers(0, 30, ROWS)
    return pa.table(
        {
            "id": pa.array(range(ROWS), pa.int64()),
            "clicked": (random.random(ROWS) < site / 40).astype(np.int8),
            "site": pa.array([f"s{i}" if i % 7 else None for i in site]).dictionary_encode(),
            "price": pa.array(random.random(ROWS), mask=random.random(ROWS) < 0.1),
            "w": random.random(ROWS),
            "comment": [f'a "{i}", b' if i % 3 else None for i in range(ROWS)],
            "nothing": pa.nulls(ROWS),
        }
    )


@pytest.fixture(scope="module")
def model(table: pa.Table) -> Linear:
    features = ps.Features(label="clicked", numeric=["price"], categorical=["site"], weight="w")
    return ps.fit(ps.Linear(features), table).model


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("penstock")]


def read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    options = pa.csv.ConvertOptions(
        column_types={"score": pa.float32(), "site": pa.string(), "comment": pa.string()}, strings_can_be_null=True
    )
    return pa.csv.read_csv(path, convert_options=options)


def with_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values))


ENDINGS = pytest.mark.parametrize("ending", [".parquet", ".csv"])


@ENDINGS
@pytest.mark.parametrize("readers", [1, 3])
def test_a_score_for_each_row_in_order(
    model: Linear, table: pa.Table, tmp_path: Path, ending: str, readers: int
) -> None:
    output = tmp_path / f"scores{ending}"
    assert ps.predict_to_file(model, table, output, readers=readers) == ROWS
    scores = read(output)
    assert scores.column_names == ["score"]
    np.testing.assert_array_equal(scores["score"].to_numpy(), model.predict(table))
    assert [p.name for p in tmp_path.iterdir()] == [output.name]


@ENDINGS
def test_columns_are_kept_beside_the_scores(model: Linear, table: pa.Table, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"scores{ending}"
    keep = ("comment", "id", "site", "nothing", "clicked")
    ps.predict_to_file(model, table, str(output), keep=keep)
    scores = read(output)
    assert scores.column_names == [*keep, "score"]
    # What is a dictionary in memory is written as what it means.
    assert scores.schema.field("site").type == pa.string()
    for name in keep:
        assert scores[name].to_pylist() == table[name].to_pylist(), name
    np.testing.assert_array_equal(scores["score"].to_numpy(), model.predict(table))


@pytest.mark.parametrize("name", ["when", "price", "flag", "list", "bytes", "amount"], ids=str)
def test_kept_columns_of_a_parquet_file_have_their_types(model: Linear, tmp_path: Path, name: str) -> None:
    more = {
        "when": pa.array([1, None, 3], pa.timestamp("us", "UTC")),
        "flag": pa.array([True, None, False]),
        "list": pa.array([["a"], None, []]),
        "bytes": pa.array([b"\xff", None, b""]),
        "amount": pa.array(["1.50", None, "-2"]).cast(pa.decimal128(9, 2)),
    }
    table = pa.table({"site": ["s1", "s2", None], "price": [1.0, None, 2.0], **more})
    ps.predict_to_file(model, table, tmp_path / "s.parquet", keep=(name,))
    assert read(tmp_path / "s.parquet")[name].combine_chunks() == table[name].combine_chunks()


def test_dictionaries_that_differ_from_batch_to_batch(model: Linear, tmp_path: Path) -> None:
    parts = [[f"s{i % 5 + shift}" for i in range(9000)] for shift in (0, 3, 17)]
    batches = [
        pa.record_batch({"site": pa.array(part).dictionary_encode(), "price": np.zeros(9000)}) for part in parts
    ]
    assert ps.predict_to_file(model, iter(batches), tmp_path / "s.parquet", keep=("site",)) == 27_000
    scores = read(tmp_path / "s.parquet")
    assert scores["site"].to_pylist() == [site for part in parts for site in part]
    plain = pa.table({"site": scores["site"], "price": np.zeros(27_000)})
    np.testing.assert_array_equal(scores["score"].to_numpy(), model.predict(plain))


def test_neither_label_nor_weight_is_needed(model: Linear, table: pa.Table, tmp_path: Path) -> None:
    for i, data in enumerate((table, with_value(table, "clicked", 5, 99), with_value(table, "w", 5, -1.0))):
        ps.predict_to_file(model, data.select(["site", "price"]) if i == 0 else data, tmp_path / f"{i}.parquet")
        assert read(tmp_path / f"{i}.parquet").equals(read(tmp_path / "0.parquet"))


def test_files_are_scored_in_their_order(model: Linear, table: pa.Table, tmp_path: Path) -> None:
    for i in range(3):
        part = table.slice(i * 5000, 5000).select(["site", "price", "id"])
        pq.write_table(part, tmp_path / f"in-{i}.parquet", row_group_size=1999)
        pyarrow.csv.write_csv(part, tmp_path / f"in-{i}.csv")
    want = model.predict(table.slice(0, 15_000))
    for kind in ("parquet", "csv"):
        ps.predict_to_file(
            model, str(tmp_path / f"in-*.{kind}"), tmp_path / "out.parquet", keep=("id",), readers=3
        )
        scores = read(tmp_path / "out.parquet")
        assert scores["id"].to_pylist() == list(range(15_000))
        np.testing.assert_array_equal(scores["score"].to_numpy(), want)


def test_a_category_of_a_csv_is_kept_as_it_stands_there(model: Linear, tmp_path: Path) -> None:
    # The first of a CSV's rows are integers, a later one is not.
    sites = [f"{i % 100:03d}" for i in range(30_000)] + ["s7"]
    (tmp_path / "in.csv").write_text("site,price\n" + "".join(f"{site},1.5\n" for site in sites))
    ps.predict_to_file(model, str(tmp_path / "in.csv"), tmp_path / "s.parquet", keep=("site",))
    assert read(tmp_path / "s.parquet")["site"].to_pylist() == sites


def test_a_column_named_twice_is_kept_once(model: Linear, table: pa.Table, tmp_path: Path) -> None:
    ps.predict_to_file(model, table.slice(0, 3), tmp_path / "s.csv", keep=("id", "site", "id"))
    assert read(tmp_path / "s.csv").column_names == ["id", "site", "score"]


@pytest.mark.parametrize("column", [[[1], [2]], [{"a": 1}, {"a": 2}]], ids=["list", "struct"])
def test_what_a_csv_cannot_hold_is_refused(model: Linear, tmp_path: Path, column: list) -> None:
    table = pa.table({"site": ["s1", "s2"], "price": [1.0, 2.0], "x": column})
    with pytest.raises(ConfigError, match=r"column 'x' of type .* cannot be kept in a \.csv; allowed: \.parquet"):
        ps.predict_to_file(model, table, tmp_path / "s.csv", keep=("x",))
    bytes_ = table.set_column(2, "x", pa.array([b"a", b"\xff"]))
    with pytest.raises(DataError, match="a column cannot be kept"):
        ps.predict_to_file(model, bytes_, tmp_path / "s.csv", keep=("x",))
    assert not list(tmp_path.iterdir())


def test_a_url_as_output_is_refused(model: Linear, table: pa.Table) -> None:
    with pytest.raises(ConfigError, match=r"s3://bucket/s\.csv: scores are written to a local disk"):
        ps.predict_to_file(model, table, "s3://bucket/s.csv")


def test_what_is_done_is_told_and_the_file_comes_at_the_end(
    model: Linear, table: pa.Table, tmp_path: Path
) -> None:
    told: list[tuple[int, bool]] = []
    output = tmp_path / "s.csv"
    ps.predict_to_file(model, table, output, on_rows=lambda rows: told.append((rows, output.exists())))
    assert told == [(8192, False), (16_384, False), (ROWS, False)]
    assert output.exists()


@pytest.mark.parametrize("name", ["scores.txt", "scores", "scores.parquet.gz", "scores.CSV", ".parquet"])
def test_other_endings_are_refused(model: Linear, table: pa.Table, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"scores are written as \.parquet or \.csv") as raised:
        ps.predict_to_file(model, table, tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("drop", "keep", "error", "message"),
    [
        ("site", (), DataError, "column 'site' is not in the data; its columns are id, clicked, price"),
        ("price", ("id",), DataError, "column 'price' is not in the data"),
        ("id", ("id",), DataError, "column 'id' is not in the data"),
        ("id", ("w", "score"), ConfigError, "'score' cannot be kept"),
    ],
)
def test_columns_that_are_missing(
    model: Linear, table: pa.Table, tmp_path: Path, drop: str, keep: tuple[str, ...], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        ps.predict_to_file(model, table.drop_columns([drop]), tmp_path / "s.csv", keep=keep)
    assert not list(tmp_path.iterdir())


def fails_after_a_batch(rows: int) -> None:
    raise KeyboardInterrupt


@ENDINGS
@pytest.mark.parametrize("before", [None, b"the scores of yesterday"])
def test_a_failed_run_leaves_what_was_there(
    model: Linear, table: pa.Table, tmp_path: Path, ending: str, before: bytes | None
) -> None:
    output = tmp_path / f"scores{ending}"
    if before is not None:
        output.write_bytes(before)
    bad = with_value(table, "price", 17_000, float("inf"))
    with pytest.raises(DataError, match="table row 17000: column 'price' is inf; allowed: a finite f32 number"):
        ps.predict_to_file(model, bad, output)
    with pytest.raises(KeyboardInterrupt):
        ps.predict_to_file(model, table, output, on_rows=fails_after_a_batch)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({output.name: before} if before else {})


@pytest.mark.parametrize("step", ["__init__", "write_table", "close"])
@pytest.mark.parametrize(("ending", "writer"), [(".parquet", "ParquetWriter"), (".csv", "CSVWriter")])
def test_a_full_disk_is_one_line(
    model: Linear,
    table: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    writer: str,
    step: str,
) -> None:
    from penstock.train import scoring

    real = pq.ParquetWriter if ending == ".parquet" else pa.csv.CSVWriter

    class Full:
        """The real writer, until the step."""

        def __init__(self, path: Path, *args: Any, **kwargs: Any) -> None:
            self._real = real(path, *args, **kwargs)
            self.fill("__init__")

        def fill(self, at: str) -> None:
            if at == step:
                self._real.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self._real.close()
            self.fill("close")

        def write_table(self, rows: pa.Table) -> None:
            self._real.write_table(rows)
            self.fill("write_table")

    module = scoring.pq if ending == ".parquet" else scoring.pyarrow.csv
    monkeypatch.setattr(module, writer, Full)
    output = tmp_path / f"scores{ending}"
    output.write_bytes(b"old")
    with pytest.raises(StorageError) as raised:
        ps.predict_to_file(model, table, output)
    assert str(raised.value) == f"{output}: cannot be written: No space left on device"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {output.name: b"old"}


@ENDINGS
def test_places_that_cannot_be_written(model: Linear, table: pa.Table, tmp_path: Path, ending: str) -> None:
    (tmp_path / f"folder{ending}").mkdir()
    for output in (tmp_path / "nowhere" / f"s{ending}", tmp_path / f"folder{ending}"):
        with pytest.raises(StorageError, match="cannot be written") as raised:
            ps.predict_to_file(model, table, output)
        assert str(raised.value).startswith(str(output)) and len(str(raised.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == [f"folder{ending}"]


def test_a_model_that_was_never_fitted(table: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has not been fitted"):
        ps.predict_to_file(ps.Linear(), table, tmp_path / "s.csv")
    with pytest.raises(ConfigError, match="has not been fitted"):
        ps.evaluate(ps.Linear(), table)
    assert not list(tmp_path.iterdir())


# Evaluation.


@pytest.mark.parametrize("readers", [1, 2, None])
def test_metrics_are_those_of_the_predictions(model: Linear, table: pa.Table, readers: int | None) -> None:
    # In the batches of the stream: sums of another order differ by rounding.
    want = BinaryMetrics()
    scores = model.predict(table)
    labels, weights = (table[name].to_numpy().astype(np.float32) for name in ("clicked", "w"))
    for begin in range(0, ROWS, 8192):
        part = slice(begin, begin + 8192)
        want.update(scores[part], labels[part], weights[part])
    got = ps.evaluate(model, table, readers=readers)
    assert got.scores() == want.scores()
    assert got.rows == ROWS and got.scores().auc > 0.6
    assert got.scores().weight == pytest.approx(weights.sum(dtype=np.float64))


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("clicked", 12_000, 7, "table row 12000: label 'clicked' is 7; allowed: 0 or 1"),
        ("clicked", 19_999, None, "table row 19999: label 'clicked' is missing"),
        ("w", 8192, -0.5, "table row 8192: weight 'w' is -0.5; allowed: finite, >= 0"),
        ("price", 0, float("nan"), "table row 0: column 'price' is nan"),
    ],
)
def test_a_bad_row_is_named(
    model: Linear, table: pa.Table, column: str, row: int, value: Any, message: str
) -> None:
    with pytest.raises(DataError) as raised:
        ps.evaluate(model, with_value(table, column, row, value))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("column", ["clicked", "w", "site", "price"])
def test_a_column_that_evaluation_needs(model: Linear, table: pa.Table, column: str) -> None:
    with pytest.raises(DataError, match=f"column '{column}' is not in the data; its columns are id, "):
        ps.evaluate(model, table.drop_columns([column]))
