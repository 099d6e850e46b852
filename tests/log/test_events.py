"""Appends: all or none, once, in a row, whoever else appends."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penstock.errors import ConfigError, DataError, StorageError
from penstock.log import EventStream, Log, PositionMoved, Rejected
from tests.log.helpers import column, read

T0 = 1_767_225_600_000_000


def events(begin: int, end: int, **more: Any) -> pa.Table:
    ids = np.arange(begin, end)
    return pa.table({"ts": pa.array(T0 + ids * 1_000_000), "id": pa.array(ids), **more})


def make(place: Path) -> EventStream:
    return Log(str(place)).create("s", list(events(0, 1).schema), time="ts", id="id")


def test_an_append_is_there_with_its_places_and_partitions(tmp_path: Path) -> None:
    stream = make(tmp_path)
    done = stream.append(events(0, 5000), source="files")
    assert (done.rows, done.rejected, done.end) == (5000, 0, 5000)
    table = read(Log(str(tmp_path)).stream("s"))
    assert table["id"].to_pylist() == list(range(5000))
    assert set(table["_source"].to_pylist()) == {"files"}
    assert {file.partition["event_hour"] for file in stream.files()} == {0, 1}
    assert stream.files(from_us=T0 + 3_600_000_000)[0].partition["event_hour"] == 1
    assert [file.lows["_seq"] for file in stream.files(from_seq=4000)] == [3600]


def test_a_part_of_a_source_is_taken_once(tmp_path: Path) -> None:
    stream = make(tmp_path)
    stream.append(events(0, 10), producer="p", start=0, end=10)
    with pytest.raises(PositionMoved) as moved:
        stream.append(events(0, 10), producer="p", start=0, end=10)
    assert (moved.value.producer, moved.value.position) == ("p", 10)
    stream.append(events(10, 20), producer="p", start=10, end=20)
    assert column(tmp_path, "s", "id") == list(range(20))
    assert Log(str(tmp_path)).stream("s").position("p") == 20


def test_parts_of_several_sources_are_one_commit(tmp_path: Path) -> None:
    stream = make(tmp_path)
    stream.append(events(0, 4), parts={"a": (0, 2), "b": (0, 7)})
    assert (stream.position("a"), stream.position("b"), stream.version) == (2, 7, 1)
    with pytest.raises(PositionMoved, match="producer b"):
        stream.append(events(4, 8), producer="a", start=2, end=3, parts={"b": (6, 9)})
    stream.refresh()
    assert (stream.position("a"), stream.end) == (2, 4)


def test_threads_append_at_the_same_time(tmp_path: Path) -> None:
    make(tmp_path)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            stream = Log(str(tmp_path)).stream("s")
            for n in range(10):
                begin = number * 1000 + n * 10
                stream.append(events(begin, begin + 10), producer=f"p{number}", start=n, end=n + 1)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    ids = column(tmp_path, "s", "id")
    assert sorted(ids) == sorted(number * 1000 + n for number in range(4) for n in range(100))
    for number in range(4):  # each in its own order
        mine = [each for each in ids if each // 1000 == number]
        assert mine == sorted(mine)


def _append_all(place: str, go: Any) -> None:
    """Appends the same source as others do; goes on where they are."""
    stream = Log(place).stream("s")
    go.wait()
    position = 0
    while position < 20:
        try:
            stream.append(events(position, position + 1), producer="shared", start=position, end=position + 1)
            position += 1
        except PositionMoved as moved:
            position = moved.position


def test_processes_that_bring_the_same_source_bring_it_once(tmp_path: Path) -> None:
    make(tmp_path)
    context = multiprocessing.get_context("spawn")
    go = context.Barrier(3)
    workers = [context.Process(target=_append_all, args=(str(tmp_path), go)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert column(tmp_path, "s", "id") == list(range(20))


def test_two_handles_add_columns(tmp_path: Path) -> None:
    make(tmp_path)
    one, two = Log(str(tmp_path)).stream("s"), Log(str(tmp_path)).stream("s")
    one.append(events(0, 1, a=pa.array(["x"])))
    two.append(events(1, 2, b=pa.array([1.5])))
    one.append(events(2, 3, b=pa.array([2])))
    with pytest.raises(DataError, match="column 'a': got int64, allowed: string"):
        two.append(events(3, 4, a=pa.array([1])))
    assert column(tmp_path, "s", "a") == ["x", None, None]
    assert column(tmp_path, "s", "b") == [None, 1.5, 2.0]


def test_what_has_no_time_goes_to_the_quarantine(tmp_path: Path) -> None:
    stream = make(tmp_path)
    table = pa.table({"ts": ["2026-01-01", None, "x"], "id": [1, 2, 3]})
    done = stream.append(table, producer="p", start=0, end=3, positions=np.array([7, 8, 9]))
    assert (done.rows, done.rejected) == (1, 2)
    rows = stream.quarantine.read().to_pylist()
    assert [(r["position"], r["reason"], r["detail"], r["event"]) for r in rows] == [
        (8, "time", "ts is missing", '{"id":2}'),
        (9, "time", "ts: got 'x', allowed: a time", '{"ts":"x","id":3}'),
    ]


def test_the_arrival_of_what_is_left_is_kept(tmp_path: Path) -> None:
    stream = make(tmp_path)
    table = pa.table({"ts": ["2026-01-01", None, "2026-01-02"], "id": [1, 2, 3]})
    stream.append(table, arrival=pa.array(["2026-02-01", "2026-02-02", "2026-02-03"]))
    assert [at.day for at in read(stream)["_arrival"].to_pylist()] == [1, 3]


def test_what_is_rejected_is_there_once(tmp_path: Path) -> None:
    stream = make(tmp_path)
    bad = [Rejected(position=3, reason="malformed", detail="x", event=b"\xff{")]
    for _ in range(2):  # the process died in between
        stream.quarantine.reject(bad, source="files", producer="p")
    stream.append(events(0, 1), producer="p", start=0, end=5, rejected=bad)
    assert [row["event"] for row in stream.quarantine.read().to_pylist()] == ["\\xff{"]
    for _ in range(3):  # without a name all of it is kept, and the table remembers one name
        stream.append(events(0, 0), rejected=bad)
    assert stream.quarantine.read().num_rows == 4


def test_an_empty_append_moves_the_position(tmp_path: Path) -> None:
    stream = make(tmp_path)
    stream.append(pa.table({}), producer="p", start=0, end=9)
    assert (stream.position("p"), stream.end) == (9, 0)


def test_an_append_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make(tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(StorageError, match="No space left on device"):
            stream.append(events(0, 10), producer="p", start=0, end=10)
    assert not list((tmp_path / "s").rglob("*.parquet"))
    stream.append(events(0, 10), producer="p", start=0, end=10)
    assert column(tmp_path, "s", "id") == list(range(10))


def test_compaction_and_cleaning_keep_events_places_and_positions(tmp_path: Path) -> None:
    stream = make(tmp_path)
    for n in range(12):
        stream.append(events(n * 10, n * 10 + 10), producer="p", start=n, end=n + 1)
    gone, came = stream.folder.compact()
    assert (gone, came) == (12, 1)
    assert stream.folder.vacuum(0) == 12
    fresh = Log(str(tmp_path)).stream("s")
    assert column(tmp_path, "s", "id") == list(range(120))
    assert (fresh.end, fresh.position("p")) == (120, 12)
    with pytest.raises(PositionMoved):
        fresh.append(events(0, 10), producer="p", start=11, end=12)
    fresh.append(events(120, 130), producer="p", start=12, end=13)
    assert column(tmp_path, "s", "id") == list(range(130))


def test_earlier_versions_can_be_read(tmp_path: Path) -> None:
    stream = make(tmp_path)
    stream.append(events(0, 3))
    stream.append(events(3, 5))
    then = EventStream("s", stream.folder.at(1), stream.quarantine)
    assert then.end == 3
    with pytest.raises(DataError, match="version 9 is not there"):
        stream.folder.at(9)


def test_what_a_stream_cannot_be_made_of(tmp_path: Path) -> None:
    log = Log(str(tmp_path))
    with pytest.raises(DataError, match="which column is the event time"):
        log.create("s", [pa.field("a", pa.int64())])
    with pytest.raises(DataError, match="time column 'x' is not there, got a"):
        log.create("s", [pa.field("a", pa.int64())], time="x")
    with pytest.raises(ConfigError, match="got the name 'S p'"):
        log.create("S p", [pa.field("ts", pa.int64())])
    make(tmp_path)
    with pytest.raises(ConfigError, match="its time column is 'ts' since it was made, got 'id'"):
        log.create("s", [], time="id")
    with pytest.raises(DataError, match="there is no stream 'other'; streams: s"):
        log.stream("other")


def test_a_damaged_log_is_one_line(tmp_path: Path) -> None:
    stream = make(tmp_path)
    stream.append(events(0, 10))
    (tmp_path / "s" / "_delta_log" / f"{1:020d}.json").write_bytes(b"\x00garbage{")
    with pytest.raises(DataError, match="the table's log cannot be read") as error:
        Log(str(tmp_path)).stream("s")
    assert "\n" not in str(error.value)


def test_a_table_of_others_is_no_stream(tmp_path: Path) -> None:
    import deltalake

    deltalake.write_deltalake(str(tmp_path / "s"), pa.table({"a": [1]}))
    with pytest.raises(DataError, match="is a Delta table, but its format as an event stream is 'none'"):
        Log(str(tmp_path)).stream("s")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    stream = make(tmp_path)
    (tmp_path / "s").chmod(0o500)
    with pytest.raises(StorageError):
        stream.append(events(0, 1))


def test_arrival_is_now_unless_said(tmp_path: Path) -> None:
    stream = make(tmp_path)
    before = datetime.datetime.now(datetime.UTC)
    stream.append(events(0, 1))
    assert read(stream)["_arrival"][0].as_py() >= before


def test_durable_appends_can_be_read(tmp_path: Path) -> None:
    stream = make(tmp_path)
    stream.append(events(0, 10), durable=True)
    assert column(tmp_path, "s", "id") == list(range(10))
