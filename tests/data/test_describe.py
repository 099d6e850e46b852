"""Sources described and opened again: the same chunks and the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import penstock as ps
from penstock.data.describe import describe, open_described
from penstock.data.source import Source
from penstock.errors import ConfigError


def rows_of(source: Source) -> list[tuple[int, int, Any]]:
    columns = source.schema.names
    return [
        (chunk.index, chunk.size, [batch.to_pydict() for batch in chunk.batches(columns, 100)])
        for chunk in source.chunks()
    ]


def sources(folder: Path) -> dict[str, Source]:
    table = pa.table({"label": [i % 2 for i in range(350)], "c": [f"a{i % 7}" for i in range(350)]})
    pq.write_table(table, folder / "x.parquet", row_group_size=120)
    pyarrow.feather.write_feather(table, folder / "x.arrow", compression="uncompressed", chunksize=90)
    (folder / "x.tsv").write_text("label\tc\n" + "".join(f"{i % 2}\ta{i % 7}\n" for i in range(350)))
    (folder / "x.txt").write_text("".join(f"{i % 2};'a;{i % 7}';NA\n" for i in range(350)))
    (folder / "x.svm").write_text("".join(f"{i % 2} {i % 7}:0.5\n" for i in range(350)))
    options = ps.CsvOptions(
        delimiter=";", header=False, columns=("label", "c", "n"), null_values=("NA",), quote="'"
    )
    return {
        "parquet": ps.open_source([str(folder / "x.parquet"), str(folder / "x.parquet")]),
        "arrow": ps.open_source(str(folder / "x.arrow")),
        "tsv": ps.open_source(str(folder / "x.tsv")),
        "csv": ps.open_source(str(folder / "x.txt"), format="csv", csv=options),
        "libsvm": ps.open_source(str(folder / "x.svm")),
    }


@pytest.mark.parametrize("kind", ["parquet", "arrow", "tsv", "csv", "libsvm"])
def test_described_and_opened_again_it_is_the_same(tmp_path: Path, kind: str) -> None:
    source = sources(tmp_path)[kind]
    again = open_described(json.loads(json.dumps(describe(source))))
    assert again.schema == source.schema and again.files == source.files
    found = rows_of(again)
    assert found == rows_of(source) and sum(len(b["label"]) for _, _, bs in found for b in bs) in (350, 700)


def test_what_is_in_memory_has_no_description() -> None:
    source = ps.open_source(pa.table({"label": [0, 1]}))
    with pytest.raises(ConfigError, match="got data in memory; write it to Parquet files"):
        describe(source)
