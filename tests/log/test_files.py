"""Files and standard input: what is new in them comes once, whatever happens to them and to us."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from penstock.data.ahead import ahead
from penstock.errors import ConfigError, DataError
from penstock.log import Log
from penstock.log.sources import pump
from penstock.log.sources.files import NewStream, append_file, find
from penstock.log.sources.pump import Delivery
from penstock.log.sources.stdin import append_stdin
from tests.log.conftest import Penstock
from tests.log.helpers import column, command, process, read, until


def lines(begin: int, end: int, **more: Any) -> str:
    return "".join(json.dumps({"ts": 1_767_225_600 + n, "n": n, **more}) + "\n" for n in range(begin, end))


def append(place: Path, path: Path, format: str | None = None, **more: Any) -> tuple[int, int]:
    ((file, found),) = find([str(path)], format)
    new = NewStream(types=more.pop("types", None))
    taken, _ = append_file(Log(str(place)), "s", file, found, Delivery(**more), new, lambda share, done: None)
    return taken.rows, taken.rejected


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "ndjson", "json"])
def test_json_lines_in_any_wrapping_come_once(tmp_path: Path, suffix: str) -> None:
    path, text = tmp_path / f"a.{suffix}", lines(0, 1000).encode()
    if suffix.endswith("gz"):
        text = gzip.compress(text[:1000]) + gzip.compress(text[1000:])
    elif suffix.endswith("zst"):
        text = pa.compress(text, "zstd", asbytes=True)
    path.write_bytes(text)
    assert append(tmp_path / "log", path) == (1000, 0)
    assert append(tmp_path / "log", path) == (0, 0)
    assert column(tmp_path / "log", "s", "n") == list(range(1000))


def test_a_file_that_grows_gives_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    whole = lines(0, 300)
    for end in [10, 100, 101, 5000, len(whole) - 1, len(whole), len(whole)]:  # the last but one has no newline
        path.write_text(whole[:end])
        if end >= 100:
            append(tmp_path / "log", path)
    assert column(tmp_path / "log", "s", "n") == list(range(300))


def test_a_file_that_is_replaced_is_another(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(0, 10))
    append(tmp_path / "log", path)
    path.write_text(lines(10, 15))
    assert append(tmp_path / "log", path) == (5, 0)
    path.write_text(lines(10, 12))
    with pytest.raises(DataError, match="that began the same are in the log"):
        append(tmp_path / "log", path)


def test_batches_of_any_size_are_the_same_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.log.sources.blocks.BLOCK_NBYTES", 1000)
    monkeypatch.setattr("penstock.log.sources.files.BATCH_ROWS", 50)
    path = tmp_path / "a.jsonl"
    path.write_text(lines(0, 200) + lines(200, 300, late="x") + "garbage\n" + lines(300, 310))
    assert append(tmp_path / "log", path) == (310, 1)
    assert column(tmp_path / "log", "s", "n") == list(range(310))
    assert column(tmp_path / "log", "s", "late") == [None] * 200 + ["x"] * 100 + [None] * 10
    (row,) = Log(str(tmp_path / "log")).quarantine("s").read().to_pylist()
    assert path.read_bytes()[row["position"] :].startswith(b"garbage")
    assert Log(str(tmp_path / "log")).stream("s").version > 5


def test_text_and_numbers_as_times_in_different_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.log.sources.blocks.BLOCK_NBYTES", 30)
    path = tmp_path / "a.jsonl"
    path.write_text('{"ts":1767225600,"n":0}\n{"ts":"2026-01-01","n":1}\n{"ts":1767225600.5,"n":2}\n')
    assert append(tmp_path / "log", path) == (3, 0)
    assert [at.timestamp() for at in column(tmp_path / "log", "s", "ts")] == [1767225600, 1767225600, 1767225600.5]


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        lines(0, 1) + '{"x":"' + "y" * (9 << 20) + '"}\n' + '{"x":"' + "y" * (2 << 20) + '"}\n' + lines(1, 2)
    )
    assert append(tmp_path / "log", path) == (2, 2)
    rows = Log(str(tmp_path / "log")).quarantine("s").read("too long").to_pylist()
    assert [len(row["event"]) for row in rows] == [1 << 16] * 2


def test_parquet_csv_and_arrow(tmp_path: Path) -> None:
    table = pa.table({"ts": [1_767_225_600 + n for n in range(5000)], "n": range(5000), "t": ["a", None] * 2500})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    for number, suffix in enumerate(("parquet", "csv", "arrow")):
        assert append(tmp_path / "log", tmp_path / f"a.{suffix}") == (5000, 0)
        assert append(tmp_path / "log", tmp_path / f"a.{suffix}") == (0, 0)
        got = read(Log(str(tmp_path / "log")).stream("s")).slice(number * 5000)
        assert got.select(["n", "t"]).to_pylist() == table.select(["n", "t"]).to_pylist()
        assert set(got["_source"].to_pylist()) == {"files"}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_file_goes_on_where_a_process_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr("penstock.log.sources.files.BATCH_ROWS", 1000)
    monkeypatch.setattr("penstock.log.sources.files._READ_ROWS", 500)
    monkeypatch.setattr("penstock.log.sources.blocks.BLOCK_NBYTES", 4000)
    table = pa.table({"ts": [1_767_225_600 + n for n in range(5000)], "n": range(5000)})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=700)
    elif suffix == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))

    class Died(Exception):
        pass

    def die(share: float, done: Any) -> None:
        raise Died

    rounds = 0
    while True:
        try:
            append_file(Log(str(tmp_path / "log")), "s", str(path), suffix, Delivery(), NewStream(), die)
            break
        except Died:
            rounds += 1
    assert rounds >= 4
    assert column(tmp_path / "log", "s", "n") == list(range(5000))


def test_a_column_of_another_type_in_parquet_is_refused_with_both(tmp_path: Path) -> None:
    pq.write_table(pa.table({"ts": [1], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"ts": [1], "n": ["x"]}), tmp_path / "b.parquet")
    append(tmp_path / "log", tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'n': got string, allowed: int64 as in the stream"):
        append(tmp_path / "log", tmp_path / "b.parquet")


def test_another_process_that_gives_a_column_another_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the reading of a block and its commit; then the block is read again, and only what fits is taken."""
    path = tmp_path / "a.jsonl"
    path.write_text(lines(0, 3))
    append(tmp_path / "log", path)
    path.write_text(lines(0, 3) + lines(3, 5, late=1) + lines(5, 6) + "garbage\n")
    original = pump.append

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(pump, "append", original)
        Log(str(tmp_path / "log")).stream("s").append(pa.table({"ts": [1], "n": [99], "late": ["x"]}))
        return original(*args)

    monkeypatch.setattr(pump, "append", meanwhile)
    assert append(tmp_path / "log", path) == (1, 3)
    assert column(tmp_path / "log", "s", "n") == [0, 1, 2, 99, 5]
    reasons = Log(str(tmp_path / "log")).quarantine("s").read()["reason"].to_pylist()
    assert sorted(reasons) == ["malformed", "type", "type"]


def test_types_that_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(0, 2, price=1))
    append(tmp_path / "log", path, types={"price": pa.float64()})
    assert column(tmp_path / "log", "s", "price") == [1.0, 1.0]
    with pytest.raises(ConfigError, match="column 'price' is double since it was made, got --type price=string"):
        append(tmp_path / "log", path, types={"price": pa.string()})


def test_arrival_is_a_column_for_history(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"ts":"2026-01-01"}\n{"ts":"x"}\n{"ts":"2026-01-03"}\n')
    append(tmp_path / "log", path, arrival="ts")
    assert [at.day for at in column(tmp_path / "log", "s", "_arrival")] == [1, 3]
    with pytest.raises(DataError, match="arrival column 'nope' is not there"):
        path.write_text(lines(0, 1))
        append(tmp_path / "log", path, arrival="nope")


def test_what_is_no_file_of_events(tmp_path: Path, penstock: Penstock) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "garbage.bin").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "garbage.jsonl").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "array.json").write_text('[\n{"ts":1},\n{"ts":2}\n]\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines(0, 1000).encode())[:-20])
    (tmp_path / "cut.jsonl.zst").write_bytes(pa.compress(lines(0, 1000).encode(), "zstd", asbytes=True)[:-20])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "no-time.jsonl").write_text('{"a":1}\n')
    (tmp_path / "good.jsonl").write_text(lines(0, 2))
    for name, said in [
        ("missing.jsonl", "does not exist"),
        ("empty.jsonl", "is empty"),
        ("garbage.bin", "its format cannot be told"),
        ("garbage.jsonl", "has no event; the first line: "),
        ("array.json", "is one JSON array, allowed: one object a line"),
        ("cut.jsonl.gz", "cannot be read: Compressed file ended before"),
        ("bad.parquet", "cannot be read"),
        ("folder", "has no files"),
        ("no-time.jsonl", "which column is the event time? Say it with time (--time), one of a"),
    ]:
        status, out, err = penstock("log", "append", "log", "s", name)
        assert (status, out) == (2, ""), (name, err)
        assert said in err
        assert err.count("\n") == 1
        assert err.startswith("penstock: ")
    assert penstock("log", "append", "log", "s", "good.jsonl")[:2] == (0, "2 events appended to s\n")
    # To a stream that is there garbage is something to look at later.
    status, out, _ = penstock("log", "append", "log", "s", "garbage.jsonl")
    assert (status, out.partition(";")[0]) == (0, "0 events appended to s")
    status, _, err = penstock("log", "append", "log", "s", "cut.jsonl.zst")
    assert status == 2, err


def test_a_disk_that_is_full_is_one_line_and_the_command_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"ts": 1_767_225_600, "n": n, "x": os.urandom(400).hex()}) + "\n" for n in range(500))
    )
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from penstock.cli.main import main; main()"
    )
    arguments = ["log", "append", str(tmp_path / "log"), "s", str(path)]
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 1, found
    assert "cannot be written: File too large" in found.stderr
    assert found.stderr.count("\n") == 1
    assert not list((tmp_path / "log").rglob("*.parquet"))
    append(tmp_path / "log", path)
    assert column(tmp_path / "log", "s", "n") == list(range(500))


def test_a_process_that_is_killed_while_it_appends(tmp_path: Path) -> None:
    path, place = tmp_path / "a.jsonl", tmp_path / "log"
    path.write_text(lines(0, 20_000))
    code = (
        "import penstock.log.sources.files as files, penstock.log.sources.blocks as blocks;"
        "files.BATCH_ROWS = 500; blocks.BLOCK_NBYTES = 10_000;"
        "from penstock.cli.main import main; main()"
    )
    argv = [sys.executable, "-c", code, "log", "append", str(place), "s", str(path)]
    for commits in (1, 4, 9):
        with process(argv=argv) as running:
            until(
                lambda commits=commits: len(list((place / "s" / "_delta_log").glob("*.json"))) > commits, running
            )
            running.send_signal(signal.SIGKILL)
    assert subprocess.run(argv, check=False).returncode == 0
    assert column(place, "s", "n") == list(range(20_000))


def pipe(text: bytes) -> int:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(text)

    threading.Thread(target=write).start()
    return reading


def from_stdin(place: Path, text: str, producer: str = "") -> tuple[int, int]:
    descriptor = pipe(text.encode())
    try:
        how = Delivery(producer=producer, source="stdin")
        taken = append_stdin(Log(str(place)), "s", how, NewStream(), lambda done: None, descriptor=descriptor)
    finally:
        os.close(descriptor)
    return taken.rows, taken.rejected


def test_standard_input_with_a_name_is_taken_once_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.log.sources.stdin.BATCH_ROWS", 7)
    monkeypatch.setattr("penstock.log.sources.blocks.BLOCK_NBYTES", 100)
    whole = (lines(0, 10) + "garbage\n\n" + lines(10, 30)).splitlines(keepends=True)
    assert from_stdin(tmp_path, "".join(whole[:5]), "p") == (5, 0)
    assert from_stdin(tmp_path, "".join(whole[:13]), "p") == (6, 1)
    assert from_stdin(tmp_path, "".join(whole), "p") == (19, 0)
    assert from_stdin(tmp_path, "".join(whole), "p") == (0, 0)
    assert column(tmp_path, "s", "n") == list(range(30))
    assert Log(str(tmp_path)).quarantine("s").read()["position"].to_pylist() == [10]
    assert from_stdin(tmp_path, lines(30, 31)) == (1, 0)
    assert from_stdin(tmp_path, lines(30, 31).rstrip("\n")) == (1, 0)


def test_standard_input_without_an_event(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="standard input: has no event; the first line: JSON is malformed"):
        from_stdin(tmp_path, "x\ny\n")
    assert from_stdin(tmp_path, "") == (0, 0)


def test_lines_of_a_pipe_are_in_the_log_while_it_is_open(tmp_path: Path) -> None:
    with process("log", "append", tmp_path, "s", "-") as running:
        assert running.stdin is not None
        running.stdin.write(lines(0, 3))
        running.stdin.flush()
        until(lambda: Log(str(tmp_path)).has("s") and Log(str(tmp_path)).stream("s").end == 3, running)
        running.stdin.write(lines(3, 5))
        running.stdin.flush()
        until(lambda: Log(str(tmp_path)).stream("s").end == 5, running)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
        assert (running.returncode, out) == (130, "5 events appended to s\n")
        assert err == "penstock: stopped by Ctrl-C; what was read is in the log\n"


def test_what_is_made_ahead_comes_in_order_and_ends_with_its_error() -> None:
    def items() -> Any:
        yield from range(10)
        raise DataError("bad")

    got = []
    with pytest.raises(DataError, match="bad"):
        got.extend(ahead(items()))
    assert got == [] or got == list(range(10))
    some = ahead(iter(range(1000)))
    assert next(some) == 0
    some.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "penstock-source"]


def test_the_command_line_is_as_it_says() -> None:
    found = subprocess.run(command("log", "append", "--help"), capture_output=True, text=True, check=True)
    assert "'-' is standard input" in found.stdout
