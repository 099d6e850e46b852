"""What every reader promises, whatever it reads: one suite over all of them."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from penstock.data import Source, libsvm, open_source, text

ROWS = 700


def table() -> pa.Table:
    rng = np.random.default_rng(5)
    word = pa.array([f"w{i}" for i in rng.integers(0, 40, ROWS)], mask=rng.random(ROWS) < 0.1)
    price = pa.array(rng.random(ROWS).round(3), mask=rng.random(ROWS) < 0.1)
    return pa.table({"label": rng.integers(0, 2, ROWS), "word": word, "price": price})


def csv_bytes(part: pa.Table, delimiter: str = ",") -> bytes:
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(part, sink, pa.csv.WriteOptions(delimiter=delimiter))
    return sink.getvalue().to_pybytes()


def parquet(folder: Path) -> Any:
    pq.write_table(table().slice(0, 500), folder / "a.parquet", row_group_size=220)
    pq.write_table(table().slice(500), folder / "b.parquet")
    return folder


def arrow_file(folder: Path) -> Any:
    for name, start in (("a", 0), ("b", 400)):
        part = table().slice(start, 400 if name == "a" else None)
        with pa.ipc.new_file(
            folder / f"{name}.arrow", part.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
        ) as out:
            out.write_table(part, max_chunksize=30)
    return folder


def arrow_stream(folder: Path) -> Any:
    with pa.ipc.new_stream(folder / "a.arrows", table().schema) as out:
        out.write_table(table(), max_chunksize=130)
    return folder / "a.arrows"


def csv(folder: Path) -> Any:
    (folder / "a.csv").write_bytes(csv_bytes(table().slice(0, 650)))
    (folder / "b.csv").write_bytes(csv_bytes(table().slice(650).select(["price", "word", "label"])))
    return str(folder / "*.csv")


def tsv_gz(folder: Path) -> Any:
    (folder / "a.tsv.gz").write_bytes(gzip.compress(csv_bytes(table(), "\t")))
    return folder / "a.tsv.gz"


def csv_url(folder: Path) -> Any:
    with fsspec.open("memory://conformance/a.csv", "wb") as file:
        file.write(csv_bytes(table()))
    return "memory://conformance/a.csv"


def parquet_url(folder: Path) -> Any:
    with fsspec.open("memory://conformance/a.parquet", "wb") as file:
        pq.write_table(table(), file, row_group_size=300)
    return "memory://conformance/*.parquet"


def arrow_table(folder: Path) -> Any:
    return pa.concat_tables([table().slice(0, 123), table().slice(123)])


def pandas_frame(folder: Path) -> Any:
    frame: pd.DataFrame = table().to_pandas()
    return frame.set_index(frame.index * 2)


def polars_frame(folder: Path) -> Any:
    return pl.from_arrow(table())


def batch_list(folder: Path) -> Any:
    return table().to_batches(max_chunksize=77)


def batch_iterator(folder: Path) -> Any:
    return iter(table().to_batches(max_chunksize=77))


def batch_reader(folder: Path) -> Any:
    return table().to_reader(max_chunksize=77)


MAKERS = (
    parquet,
    arrow_file,
    arrow_stream,
    csv,
    tsv_gz,
    csv_url,
    parquet_url,
    arrow_table,
    pandas_frame,
    polars_frame,
    batch_list,
    batch_iterator,
    batch_reader,
)
COLUMNS = ["price", "label", "word"]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def source(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    make: Callable[[Path], Any] = request.param
    monkeypatch.setattr(text, "BLOCK_NBYTES", 3000)
    for module in ("ipc", "memory"):
        monkeypatch.setattr(f"penstock.data.{module}.CHUNK_ROWS", 256)
    monkeypatch.setattr("penstock.data.parquet.DECODED_ROWS", 64)
    return open_source(make(tmp_path))


def rows_of(batches: Any) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.to_pylist()]


def test_all_rows_in_order(source):
    assert source.schema.names == table().column_names
    rows = rows_of(batch for chunk in source.chunks() for batch in chunk.batches(COLUMNS, 32))
    assert rows == table().select(COLUMNS).to_pylist()


def test_batches_are_full_but_for_the_last_of_a_chunk_and_columns_as_asked(source):
    for chunk in source.chunks():
        batches = list(chunk.batches(COLUMNS, 32))
        assert all(batch.num_rows == 32 for batch in batches[:-1])
        assert 0 < batches[-1].num_rows <= 32
        assert all(batch.schema.names == COLUMNS for batch in batches)


def test_chunks_are_numbered_and_add_up(source):
    chunks = list(source.chunks())
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert source.size is None or sum(chunk.size for chunk in chunks) == source.size
    assert all(chunk.size > 0 for chunk in chunks)
    rows = [sum(batch.num_rows for batch in chunk.batches(COLUMNS, 32)) for chunk in chunks]
    # Bytes of a row are more than one here, so a reader that does not say what it counts is found out.
    assert (rows == [chunk.size for chunk in chunks]) == (source.unit == "rows")


def test_skipping_leaves_the_same_batches(source):
    for chunk in source.chunks():
        whole = list(chunk.batches(COLUMNS, 16))
        for done in (1, 5, len(whole)):
            rest = list(chunk.batches(COLUMNS, 16, skip=16 * done))
            assert [batch.num_rows for batch in rest] == [batch.num_rows for batch in whole[done:]]
            assert rows_of(rest) == rows_of(whole[done:])


def test_start_leaves_the_same_chunks(source):
    if not source.repeatable:
        assert [chunk.index for chunk in source.chunks(1)][:1] == [1]
        return
    chunks = list(source.chunks())
    for start in range(len(chunks) + 1):
        rest = list(source.chunks(start))
        assert [chunk.index for chunk in rest] == [chunk.index for chunk in chunks[start:]]
        assert [rows_of(chunk.batches(COLUMNS, 64)) for chunk in rest] == [
            rows_of(chunk.batches(COLUMNS, 64)) for chunk in chunks[start:]
        ]


def test_a_sample_does_not_use_rows_up(source):
    assert source.sample(5).to_pylist() == table().slice(0, 5).to_pylist()
    assert source.sample(400).to_pylist() == table().slice(0, 400).to_pylist()
    assert source.sample(10_000).num_rows == ROWS
    assert source.sample(5).schema.equals(source.schema)
    assert len(rows_of(batch for chunk in source.chunks() for batch in chunk.batches(["label"], 64))) == ROWS


def test_chunks_are_plain_data(source):
    for chunk in source.chunks():
        again = pickle.loads(pickle.dumps(chunk))
        assert rows_of(again.batches(COLUMNS, 64)) == rows_of(chunk.batches(COLUMNS, 64))


def test_chunks_are_read_side_by_side(source):
    chunks = list(source.chunks())
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda chunk: rows_of(chunk.batches(COLUMNS, 16)), chunks))
    assert [row for part in parts for row in part] == table().select(COLUMNS).to_pylist()


def test_an_iterator_is_read_once_and_says_so(source):
    list(source.chunks())
    if source.repeatable:
        assert list(source.chunks())
    else:
        with pytest.raises(ValueError, match="can be read once"):
            next(source.chunks())


def test_a_missing_column_is_named(source):
    with pytest.raises(ValueError, match=r"no column 'color', it has .*word"):
        list(next(source.chunks()).batches(["label", "color"], 16))


def test_plain_types(source):
    text_types = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    for chunk in source.chunks():
        for batch in chunk.batches(["word", "price"], 64):
            assert batch.schema.field("word").type in text_types
            assert batch.schema.field("price").type == pa.float64()


def test_every_reader_is_here(tmp_path):
    made = set()
    for i, maker in enumerate(MAKERS):
        folder = tmp_path / str(i)
        folder.mkdir()
        made.add(type(open_source(maker(folder))))

    def concrete(kind: type) -> set[type]:
        below = kind.__subclasses__()
        return {kind} if not below else set().union(*map(concrete, below))

    # libsvm has columns of its own: test_libsvm_files.py.
    readers = {kind for kind in concrete(Source) if kind.__module__.startswith("penstock.data.")}
    assert readers - made == {libsvm.LibsvmSource}
