"""``penstock log`` as a user meets it."""

from __future__ import annotations

import datetime
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.log import Log
from tests.log.conftest import Penstock
from tests.log.helpers import command, process, until

NOW = datetime.datetime.now(datetime.UTC)


def write(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def ago(**units: float) -> str:
    return (NOW - datetime.timedelta(**units)).isoformat()


@pytest.fixture
def filled(tmp_path: Path, penstock: Penstock) -> Path:
    """A log of 30 events, of this hour, of three days ago and of ten days ago, in three commits."""
    for n, days in enumerate((10, 3, 0)):
        events = [{"ts": ago(days=days, seconds=10 - k), "n": n * 10 + k, "s": f"text {k}"} for k in range(10)]
        assert penstock("log", "append", "log", "s", write(tmp_path / f"{n}.jsonl", events), "-q") == (0, "", "")
    return tmp_path / "log"


def numbers(out: str) -> list[int]:
    return [json.loads(line)["n"] for line in out.splitlines()]


def test_tail_shows_the_last_events(filled: Path, penstock: Penstock) -> None:
    status, out, err = penstock("log", "tail", filled, "s")
    assert (status, err, numbers(out)) == (0, "", list(range(20, 30)))
    first = json.loads(out.splitlines()[0])
    assert datetime.datetime.fromisoformat(first["ts"]) == NOW - datetime.timedelta(seconds=10)
    assert set(first) == {"ts", "n", "s"}
    assert numbers(penstock("log", "tail", filled, "s", "-n", 12)[1]) == list(range(18, 30))
    assert numbers(penstock("log", "tail", filled, "s", "-n", 0)[1]) == []
    assert numbers(penstock("log", "tail", filled, "s", "--since", "5d")[1]) == list(range(10, 30))
    assert numbers(penstock("log", "tail", filled, "s", "--since", "5d", "-n", 3)[1]) == [27, 28, 29]
    assert numbers(penstock("log", "tail", filled, "s", "--from", ago(days=3, seconds=5))[1]) == list(
        range(15, 30)
    )
    assert numbers(penstock("log", "tail", filled, "s", "--version", 2)[1]) == list(range(10, 20))


def test_streams_and_history(filled: Path, penstock: Penstock) -> None:
    status, out, _ = penstock("log", "streams", filled)
    assert status == 0
    head, row = [line.split() for line in out.splitlines() if " s " in line or "stream" in line]
    assert head == ["stream", "events", "first", "last", "columns", "files", "size", "version"]
    assert row[:2] == ["s", "30"]
    (one,) = [json.loads(line) for line in penstock("log", "streams", filled, "--json")[1].splitlines()]
    assert (one["events"], one["time"], one["version"]) == (30, "ts", 3)
    assert one["columns"] == {"ts": "timestamp[us, tz=UTC]", "n": "int64", "s": "string"}
    status, out, _ = penstock("log", "history", filled, "s")
    assert (status, out.count("write"), out.count("create table")) == (0, 3, 1)


def test_compact_merges_files_and_changes_no_event(filled: Path, penstock: Penstock) -> None:
    for n in range(3):
        path = write(filled.parent / f"more{n}.jsonl", [{"ts": ago(), "n": 30 + n}])
        penstock("log", "append", filled, "s", path)
    status, out, _ = penstock("log", "compact", filled)
    assert status == 0
    assert out.startswith("s: ")
    assert "files became" in out
    assert numbers(penstock("log", "tail", filled, "s", "-n", 100)[1]) == list(range(33))
    assert penstock("log", "append", filled, "s", filled.parent / "0.jsonl")[1] == "0 events appended to s\n"


def test_retain_deletes_whole_days(filled: Path, penstock: Penstock) -> None:
    assert "10 events before" in penstock("log", "retain", filled, "s", "--days", 5, "--dry-run")[1]
    assert numbers(penstock("log", "tail", filled, "s", "-n", 100)[1]) == list(range(30))
    status, out, _ = penstock("log", "retain", filled, "s", "--days", 5, "--keep-hours", 0)
    assert (status, "10 events before" in out) == (0, True)
    assert numbers(penstock("log", "tail", filled, "s", "-n", 100)[1]) == list(range(10, 30))
    assert Log(str(filled)).stream("s").end == 30
    # What is gone is not appended again, and what comes has new places.
    assert penstock("log", "append", filled, "s", filled.parent / "0.jsonl")[1] == "0 events appended to s\n"
    path = write(filled.parent / "old.jsonl", [{"ts": "2020-01-01", "n": 1}])
    assert penstock("log", "append", filled, "t", path)[0] == 0
    status, out, err = penstock("log", "retain", filled, "t", "--days", 5)
    assert (status, out) == (2, "")
    assert "all of its 1 events are before" in err
    assert penstock("log", "retain", filled, "t", "--days", 5, "--yes")[0] == 0
    assert penstock("log", "tail", filled, "t") == (0, "", "")


def test_the_quarantine_is_shown_with_reasons(filled: Path, penstock: Penstock) -> None:
    path = filled.parent / "bad.jsonl"
    path.write_text('{"ts":1,"n":1}\ngarbage [bold]\n{"n":2}\n{"ts":1,"n":"x"}\n{"ts":1,"n":1,"n":2}\n')
    status, out, _ = penstock("log", "append", filled, "s", path)
    assert (status, out) == (0, "1 events appended to s; 4 rejected, see: penstock log quarantine\n")
    status, out, err = penstock("log", "quarantine", filled, "s")
    assert (status, err) == (0, "4 in the quarantine of s\n")
    assert "garbage [bold]" in out
    assert "column 'n': got string, allowed: int64" in out
    out = penstock("log", "quarantine", filled, "s", "--reason", "malformed", "--json")[1]
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["event"], row["position"]) for row in rows] == [
        ("garbage [bold]", 15),
        ('{"ts":1,"n":1,"n":2}', 55),
    ]
    assert penstock("log", "quarantine", filled, "s", "--reason", "late") == (0, "", "0 in the quarantine of s\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("append", "log", "Bad-Name", "x.jsonl"), "got the name 'Bad-Name'"),
        (("append", "log", "s", "0.jsonl", "--format", "xml"), "--format: got 'xml', allowed: jsonl, parquet"),
        (("append", "log", "s", "0.jsonl", "--type", "x"), "--type: got 'x', allowed: a column, '='"),
        (("append", "log", "s", "0.jsonl", "--type", "x=complex"), "and one of string, int"),
        (("append", "log", "s", "0.jsonl", "--time", "n"), "its time column is 'ts' since it was made, got 'n'"),
        (("append", "log", "s", "-", "0.jsonl"), "'-' stands alone"),
        (
            ("append", "log", "s", "0.jsonl", "1.jsonl", "--producer", "p"),
            "--producer names one source, got 2 files",
        ),
        (("append", "log", "s"), "Missing argument"),
        (("tail", "log", "nope"), "there is no stream 'nope'; streams: s"),
        (("tail", "nowhere", "s"), "nowhere: there is no log, or no stream in it yet; looked for 's'"),
        (("tail", "log", "s", "--since", "5"), "--since: got '5', allowed: a duration"),
        (("tail", "log", "s", "--from", "x"), "--from: got 'x', allowed: a date or time"),
        (("tail", "log", "s", "--from", "2026-01-01", "--since", "1d"), "say the same"),
        (("tail", "log", "s", "--version", "99"), "version 99 is not there"),
        (("tail", "log", "s", "--version", "1", "-f"), "--follow waits"),
        (("streams", "nowhere"), "has no streams"),
        (("history", "log", "nope"), "there is no stream"),
        (("retain", "log", "s", "--days", "0"), "is not in the range"),
        (("kafka", "log", "s", "--brokers", "x:1", "--topic", "t", "--set", "x"), "--set: got 'x'"),
        (("kafka", "log", "s", "--brokers", "x:1", "--topic", "t", "--set", "no.such=1"), "No such configuration"),
    ],
)
def test_what_is_wrong_is_one_line(
    filled: Path, penstock: Penstock, arguments: tuple[str, ...], said: str
) -> None:
    status, out, err = penstock("log", *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_a_damaged_table_is_one_line(filled: Path, penstock: Penstock) -> None:
    (filled / "s" / "_delta_log" / f"{2:020d}.json").write_text("{garbage")
    for name in ("tail", "history", "compact"):
        status, out, err = penstock("log", name, filled, "s")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "the table's log cannot be read" in err


def test_follow_prints_what_comes_and_ends_by_ctrl_c(filled: Path, penstock: Penstock) -> None:
    with process("log", "tail", filled, "s", "-n", 1, "-f") as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["n"] == 29
        penstock("log", "append", filled, "s", write(filled.parent / "more.jsonl", [{"ts": ago(), "n": 30}]))
        assert json.loads(running.stdout.readline())["n"] == 30
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
        assert (running.returncode, out, err.strip()) == (130, "", "penstock: stopped")


def test_a_reader_that_has_enough(filled: Path) -> None:
    writer = command("log", "tail", filled, "s", "-n", 30)
    shell = f"{' '.join(writer)} | true"
    assert subprocess.run(shell, shell=True, capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.parametrize(
    "name",
    [
        "append",
        "compact",
        "files",
        "history",
        "kafka",
        "listen",
        "nats",
        "quarantine",
        "retain",
        "streams",
        "tail",
    ],
)
def test_every_command_says_what_it_does(penstock: Penstock, name: str) -> None:
    assert f"  {name} " in penstock("log", "--help")[1]
    status, out, _ = penstock("log", name, "--help")
    assert (status, out.startswith("Usage: penstock log")) == (0, True)


def test_kafka_ends_by_sigterm(filled: Path) -> None:
    from tests.log.test_brokers import Broker, event

    broker = Broker()
    broker.send(event(1))
    with process("log", "kafka", filled, "k", "--brokers", broker.address, "--topic", "clicks") as running:
        until(lambda: Log(str(filled)).has("k") and Log(str(filled)).stream("k").end == 1, running)
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate()
        assert (running.returncode, out, err) == (0, "1 events appended to k\n", "")


def test_the_files_of_a_version_are_its_events(filled: Path, penstock: Penstock) -> None:
    before = [json.loads(line) for line in penstock("log", "tail", filled, "s", "-n", "1000")[1].splitlines()]
    for _ in range(3):
        Log(str(filled)).stream("s").append(pa.table({"ts": [1.79e9], "n": [7]}))
    assert penstock("log", "compact", filled, "s")[0] == 0
    status, out, _ = penstock("log", "files", filled, "s")
    listed = out.splitlines()
    assert status == 0 and len(listed) < len(list((filled / "s").rglob("*.parquet")))
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in listed) == len(before) + 3
    version = Log(str(filled)).stream("s").version - 4
    older = penstock("log", "files", filled, "s", "--version", version)[1].splitlines()
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in older) == len(before)
