"""Rows with nan are found by SQL, as they were written and compacted: column statistics must not hide them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from penstock.log import Log
from penstock.log.times import TIMESTAMP


@pytest.mark.parametrize("compacted", [False, True])
def test_nan_is_seen_by_sql(tmp_path: Path, compacted: bool) -> None:
    stream = Log(str(tmp_path)).create("s", [pa.field("ts", TIMESTAMP), pa.field("v", pa.float64())])
    for values in ([1.0, float("nan")], [1.0, 1.0]):
        stream.append(pa.table({"ts": pa.array([0, 1], pa.int64()).cast(TIMESTAMP), "v": values}))
    if compacted:
        assert stream.folder.compact() == (2, 1)
    files = [stream.folder.place(file) for file in stream.files()]
    for condition, rows in (("isnan(v)", 1), ("v > 5", 1), ("v = 1", 3)):
        found = duckdb.sql(f"select count(*) from read_parquet({files!r}) where {condition}").fetchall()
        assert found == [(rows,)], condition
