"""Arrow data that is damaged, or of several layouts: files of Arrow IPC, and tables in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from penstock.data import open_source
from penstock.errors import DataError


def rows(data: Any) -> list[dict[str, Any]]:
    source = open_source(data)
    batches = (batch for chunk in source.chunks() for batch in chunk.batches(source.schema.names, 4))
    return [row for batch in batches for row in batch.to_pylist()]


def write_patched(path: Path, table: pa.Table, old: bytes, new: bytes, *, stream: bool = False) -> None:
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(path, table.schema) as out:
        out.write_table(table)
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("stream", [False, True])
def test_an_index_outside_of_its_dictionary_is_an_error_and_not_a_crash(tmp_path: Path, stream: bool) -> None:
    indices = np.array([0, 1, 1] * 50, np.int32)
    bad = indices.copy()
    bad[70] = 10**9
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["a", "b"]))
    table = pa.table({"label": [0, 1, 1] * 50, "c": texts})
    write_patched(tmp_path / "a.arrow", table, indices.tobytes(), bad.tobytes(), stream=stream)
    command = [sys.executable, "-m", "penstock.cli.main", "train", "a.arrow", "-o", "m", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("penstock: a.arrow cannot be read: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_text_that_is_not_utf8(tmp_path: Path, stream: bool) -> None:
    table = pa.table({"label": [0, 1], "c": ["abcdefgh", "qwertyui"]})
    write_patched(tmp_path / "a.arrow", table, b"qwertyui", b"\xff\xfe\xffrtyui", stream=stream)
    with pytest.raises(DataError, match=r"a\.arrow cannot be read: .*UTF8"):
        rows(tmp_path / "a.arrow")


def test_a_file_without_columns(tmp_path: Path) -> None:
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.schema([])) as out:
        out.write_table(pa.table({}))
    with pytest.raises(DataError, match="has no columns"):
        open_source(tmp_path / "a.arrow")


LAYOUTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("second", LAYOUTS, ids=str)
@pytest.mark.parametrize("first", LAYOUTS, ids=str)
def test_batches_may_hold_text_in_different_layouts(first: pa.DataType, second: pa.DataType) -> None:
    def batch(values: list[str | None], type_: pa.DataType) -> pa.RecordBatch:
        array = pa.array(values)
        dictionary = pa.types.is_dictionary(type_)
        return pa.record_batch({"x": array.dictionary_encode().cast(type_) if dictionary else array.cast(type_)})

    found = rows([batch(["a", None, "b"], first), batch(["c"], second), batch(["a"], first)])
    assert [row["x"] for row in found] == ["a", None, "b", "c", "a"]


@pytest.mark.parametrize(
    "data",
    [pd.Series([1]), pl.Series([1]), pd.DataFrame([[1, 2]], columns=["a", "a"])],
    ids=["pandas series", "polars series", "a name twice"],
)
def test_what_is_no_table_is_one_clear_error(data: Any) -> None:
    with pytest.raises(DataError, match=r"cannot become an Arrow table: [^\n]*$"):
        open_source(data)
