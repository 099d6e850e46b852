"""Batches read ahead by threads: the same as of a plain loop, in the same order, and nothing is left running."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.data import Chunk, Source, open_source
from penstock.data import memory as in_memory
from penstock.errors import ConfigError, DataError
from penstock.features import ColumnPlan, Encoder, FeaturePlan
from penstock.train.stream import EncodedStream, available_cores

ROWS, CHUNK, BATCH = 530, 100, 16
PLAN = FeaturePlan(
    label="label",
    columns=(
        ColumnPlan(name="site", kind="categorical", type="string"),
        ColumnPlan(name="price", kind="standard", type="double", mean=3.0, scale=0.5),
        ColumnPlan(name="tags", kind="list", type="list<string>"),
    ),
    crosses=(("site", "user"),),
    weight="w",
)


def a_table(rows: int = ROWS) -> pa.Table:
    random = np.random.default_rng(3)
    return pa.table(
        {
            "extra": [f"row {i}" for i in range(rows)],
            "label": random.integers(0, 2, rows),
            "site": pa.array([f"s{i}" if i else None for i in random.integers(0, 9, rows)]).dictionary_encode(),
            "user": random.integers(0, 50, rows),
            "price": pa.array(random.random(rows), mask=random.random(rows) < 0.2),
            "tags": [[f"t{j}" for j in random.integers(0, 5, n)] for n in random.integers(0, 4, rows)],
            "w": random.random(rows),
        }
    )


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return a_table()


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_memory, "CHUNK_ROWS", CHUNK)
        yield


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not readers_running()


def readers_running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("penstock")]


def copied(batch: Any) -> dict[str, Any]:
    arrays = {name: getattr(batch, name) for name in ("keys", "values", "offsets", "labels", "weights")}
    return {name: None if array is None else array.tolist() for name, array in arrays.items()}


def described(item: Any) -> dict[str, Any]:
    """All that a consumer sees, as plain values that no reader can change."""
    return {
        **copied(item.batch),
        "records": item.records.to_pydict(),
        "chunk": item.chunk.index,
        "row": item.row,
        "rows": item.rows,
        "last": item.last,
    }


def plain_loop(
    source: Source,
    *,
    start: tuple[int, int] = (0, 0),
    keep: Any = None,
    batch_rows: int = BATCH,
    labelled: bool = True,
    extra_columns: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    encoder = Encoder(PLAN)
    columns = [*(encoder.columns if labelled else PLAN.inputs), *extra_columns]
    found: list[dict[str, Any]] = []
    for chunk in source.chunks(start[0]):
        row = start[1] if chunk.index == start[0] else 0
        for records in chunk.batches(columns, batch_rows, row):
            kept = records if keep is None else records.filter(pa.array(keep(records, chunk, row)))
            found.append(
                {
                    **copied(encoder.encode(kept, labelled=labelled)),
                    "records": kept.to_pydict(),
                    "chunk": chunk.index,
                    "row": row,
                    "rows": len(records),
                    "last": row + len(records) == chunk.size,
                }
            )
            row += len(records)
    return found


def by_threads(source: Source, **options: Any) -> list[dict[str, Any]]:
    with EncodedStream(source, PLAN, **{"batch_rows": BATCH, **options}) as stream:
        return [described(item) for item in stream]


def keep_some(share: float) -> Any:
    def keep(records: pa.RecordBatch, chunk: Chunk, row: int) -> np.ndarray:
        return np.random.default_rng((chunk.index, row)).random(len(records)) < share

    return keep


# Order and content.


@settings(deadline=None, max_examples=60)
@given(
    readers=st.integers(1, 4),
    batch_rows=st.sampled_from([1, 16, 33, 100, 1000]),
    chunk=st.integers(0, 6),
    batch=st.integers(0, 5),
    share=st.one_of(st.none(), st.sampled_from([0.0, 0.05, 0.5, 1.0])),
    labelled=st.booleans(),
)
def test_batches_are_those_of_a_plain_loop(table, readers, batch_rows, chunk, batch, share, labelled):
    options: dict[str, Any] = {
        "start": (chunk, batch * batch_rows if batch * batch_rows < CHUNK else 0),
        "keep": None if share is None else keep_some(share),
        "batch_rows": batch_rows,
        "labelled": labelled,
        "extra_columns": () if labelled else ("extra",),
    }
    want = plain_loop(open_source(table), **options)
    assert by_threads(open_source(table), readers=readers, **options) == want
    assert bool(want) == (chunk * CHUNK + options["start"][1] < ROWS)


def test_one_batch_of_each_chunk_is_its_last(table: pa.Table) -> None:
    found = by_threads(open_source(table), readers=3)
    assert [item["chunk"] for item in found if item["last"]] == [0, 1, 2, 3, 4, 5]
    assert sum(item["rows"] for item in found) == ROWS


@pytest.mark.parametrize("readers", [1, 3])
def test_files_and_iterators_too(table: pa.Table, tmp_path: Path, readers: int) -> None:
    for i, part in enumerate((table.slice(0, 250), table.slice(250))):
        pq.write_table(part, tmp_path / f"{i}.parquet", row_group_size=60)
    files = str(tmp_path / "*.parquet")
    assert by_threads(open_source(files), readers=readers) == plain_loop(open_source(files))
    batches = table.to_batches(max_chunksize=70)
    got = by_threads(open_source(iter(batches)), readers=readers)
    assert got == plain_loop(open_source(batches)) == plain_loop(open_source(table))


def test_a_column_asked_for_twice_is_read_once(table: pa.Table) -> None:
    options: dict[str, Any] = {"extra_columns": ("site", "extra", "site")}
    with EncodedStream(open_source(table), PLAN, labelled=False, readers=1, **options) as stream:
        assert next(iter(stream)).records.schema.names == ["site", "price", "tags", "user", "extra"]


def test_as_many_readers_as_cores() -> None:
    allowed = getattr(os, "sched_getaffinity", None)
    assert available_cores() == (len(allowed(0)) if allowed else os.cpu_count())


# Sources whose reading is watched.


@dataclass(kw_only=True)
class WatchedChunk(Chunk):
    """Another chunk, that counts what was read and may fail before a batch of it."""

    inner: Chunk
    source: Watched

    @property
    def index(self) -> int:  # type: ignore[override]
        return self.inner.index

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.inner.size

    def batches(self, columns: Sequence[str], batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(self.inner.batches(columns, batch_rows, skip)):
            if self.source.fail_at == (self.index, number):
                self.source.failed.set()
                raise self.source.error
            with self.source.changed:
                self.source.read += 1
                self.source.changed.notify_all()
            yield batch

    def locate(self, row: int) -> str:
        return self.inner.locate(row)


class Watched(Source):
    def __init__(
        self, table: pa.Table, fail_at: tuple[int, int] | None = None, error: BaseException | None = None
    ) -> None:
        self._inner = open_source(table)
        self.schema, self.files, self.repeatable = self._inner.schema, (), True
        self.size = self._inner.size
        self.fail_at, self.error = fail_at, error or DataError("the disk is gone")
        self.failed = threading.Event()
        self.changed = threading.Condition()
        self.read = 0

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        return (WatchedChunk(inner=chunk, source=self) for chunk in self._inner.chunks(start))

    def sample(self, rows: int) -> pa.Table:
        return self._inner.sample(rows)

    def wait_until_read(self, batches: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.read >= batches, timeout=30), self.read


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(readers: int) -> None:
    source = Watched(a_table(2000))
    total = sum(-(-chunk.size // BATCH) for chunk in source.chunks())
    memories = []
    with EncodedStream(source, PLAN, readers=readers, batch_rows=BATCH) as stream:
        for number, item in enumerate(stream):
            before = copied(item.batch)
            # Meanwhile readers encode other batches.
            source.wait_until_read(min(number + 5, total))
            assert copied(item.batch) == before
            memories.append(item.memory)
    assert len(memories) == total == 140
    assert len({id(memory) for memory in memories}) < 20 * (readers + 1), "memory is not used again"


@pytest.mark.parametrize("readers", [1, 2, 3, 4])
@pytest.mark.parametrize("taken", [0, 1, 8, 20])
def test_leaving_early_stops_the_threads(
    table: pa.Table, monkeypatch: pytest.MonkeyPatch, readers: int, taken: int
) -> None:
    source = Watched(table)
    with EncodedStream(source, PLAN, readers=readers, batch_rows=1) as stream:
        items = iter(stream)
        for _ in range(taken):
            next(items)
        if taken:
            # A lane holds 8, and 2 more are in its reader's hands, which waits for room.
            source.wait_until_read(taken + 9)
            assert readers_running()
    assert not readers_running()
    # No chunk was read to its end.
    assert source.read < CHUNK


def test_an_error_of_the_consumer_stops_the_threads(table: pa.Table) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), EncodedStream(open_source(table), PLAN, readers=2, batch_rows=1) as stream:
            for item in stream:
                if item.row == 10:
                    raise error
        assert not readers_running()


def test_a_stream_may_be_left_before_it_began(table: pa.Table) -> None:
    with EncodedStream(open_source(table), PLAN):
        pass


# Errors.


def until_error(source: Source, **options: Any) -> tuple[list[dict[str, Any]], BaseException]:
    got = []
    with EncodedStream(source, PLAN, **{"batch_rows": BATCH, **options}) as stream:
        try:
            for item in stream:
                got.append(described(item))  # noqa: PERF401 - what came before the error counts
        except BaseException as error:
            return got, error
    raise AssertionError("there was no error")


def with_label(table: pa.Table, row: int, label: int) -> pa.Table:
    labels = table["label"].to_pylist()
    labels[row] = label
    return table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels))


@pytest.mark.parametrize("readers", [1, 2, 4])
@pytest.mark.parametrize("row", [0, 15, 16, 257, 529])
def test_a_bad_row_comes_out_at_its_place(table: pa.Table, readers: int, row: int) -> None:
    want = [
        item
        for item in plain_loop(open_source(table))
        if item["chunk"] * CHUNK + item["row"] + item["rows"] <= row
    ]
    got, error = until_error(open_source(with_label(table, row, 7)), readers=readers)
    assert isinstance(error, DataError)
    assert str(error) == f"table row {row}: label 'label' is 7; allowed: 0 or 1"
    assert got == want


@pytest.mark.parametrize("start", [(0, 0), (2, 2 * BATCH)])
def test_a_bad_row_among_those_kept_is_named_by_its_number_in_the_data(
    table: pa.Table, start: tuple[int, int]
) -> None:
    keep = keep_some(0.3)
    chunk = next(open_source(table).chunks(2))
    mask = np.concatenate(
        [keep(records, chunk, BATCH * i) for i, records in enumerate(chunk.batches(["label"], BATCH))]
    )
    kept, dropped = (np.flatnonzero(m[40:]) + 40 for m in (mask, ~mask))
    bad = with_label(table, 200 + int(kept[3]), 9)
    _, error = until_error(open_source(bad), keep=keep, start=start)
    assert str(error).startswith(f"table row {200 + kept[3]}: label 'label' is 9")
    # And one that is not kept is not looked at.
    harmless = with_label(table, 200 + int(dropped[3]), 9)
    assert len(by_threads(open_source(harmless), keep=keep, start=start)) > 10


def test_a_bad_row_of_a_file_is_named_with_the_file(table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=60)
    pq.write_table(with_label(table, 333, 5), tmp_path / "b.parquet", row_group_size=60)
    got, error = until_error(open_source(str(tmp_path / "*.parquet")), readers=3)
    assert str(error) == f"{tmp_path}/b.parquet row 333: label 'label' is 5; allowed: 0 or 1"
    assert sum(item["rows"] for item in got) >= ROWS + 300
    simple = FeaturePlan(label="y", columns=(ColumnPlan(name="c", kind="categorical", type="string"),))
    (tmp_path / "c.csv").write_text("y,c\n" + "1,a\n" * 50 + "3,a\n")
    with (
        EncodedStream(open_source(str(tmp_path / "c.csv")), simple, readers=1) as stream,
        pytest.raises(DataError, match=r"c\.csv line 52: label 'y' is 3"),
    ):
        list(stream)


@pytest.mark.parametrize("readers", [1, 2, 4])
@pytest.mark.parametrize("error", [DataError("the disk is gone"), MemoryError("no more"), KeyboardInterrupt()])
def test_an_error_of_reading_comes_after_the_chunks_before(
    table: pa.Table, readers: int, error: BaseException
) -> None:
    source = Watched(table, fail_at=(2, 3), error=error)
    with EncodedStream(source, PLAN, readers=readers, batch_rows=BATCH) as stream:
        items = iter(stream)
        got = [described(next(items))]
        if readers > 1:
            # Chunk 2 waits for a thread that is done with chunk 0 or 1.
            got += [described(next(items)) for _ in range(7)]
            assert source.failed.wait(30)
        with pytest.raises(type(error)) as raised:
            for item in items:
                got.append(described(item))
    assert raised.value is error
    want = plain_loop(open_source(table))
    assert got == want[: len(got)] and len(got) >= 2 * 7


def test_no_readers_are_refused(table: pa.Table) -> None:
    for readers in (0, -1):
        with pytest.raises(ConfigError, match=f"readers must be >= 1, got {readers}"):
            EncodedStream(open_source(table), PLAN, readers=readers)


def test_a_column_that_is_missing_is_said(table: pa.Table) -> None:
    got, error = until_error(open_source(table.drop_columns(["user"])), readers=2)
    assert not got and isinstance(error, DataError) and "'user'" in str(error)
