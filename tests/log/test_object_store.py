"""A log on an object store: a server that speaks S3 as a process, one bucket, several writers at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from penstock.log import Log
from tests.cli.test_stream import EVENTS, log
from tests.log.conftest import Penstock
from tests.object_store import bucket, needs_a_store

__all__ = ["bucket", "log"]

pytestmark = needs_a_store
WRITER = """
import sys
import pyarrow as pa
from penstock.log import Log
who, stream = int(sys.argv[2]), Log(sys.argv[1]).stream("s")
for n in range(10):
    stream.append(pa.table({"ts": [1.79e9], "who": [who], "n": [n]}), producer=f"p{who}", start=n, end=n + 1)
"""


def test_a_pipeline_over_a_log_in_a_bucket(bucket: str, penstock: Penstock, log: Path) -> None:
    place = f"{bucket}/events"
    for name in ("impressions", "clicks"):
        assert penstock("log", "append", place, name, f"{name}.jsonl")[0] == 0
        status, out, _ = penstock("log", "append", place, name, f"{name}.jsonl")
        assert status == 0 and "0 events appended" in out
    job = (log / "job.toml").read_text()
    (log / "remote.toml").write_text(job.replace("[pipeline]", f'[pipeline]\nlog = "{place}"'))
    times = ("--from", "2026-11-01", "--to", "2026-11-01T02:00")
    for name in ("job", "remote"):
        status, _, err = penstock("examples", f"{name}.toml", *times, "-o", name)
        assert status == 0, err
    local, remote = (pq.read_table(log / name).sort_by("request_id") for name in ("job", "remote"))
    assert local.num_rows == EVENTS and remote.equals(local)
    status, out, err = penstock("prove", "remote.toml", *times)
    assert status == 0 and "no row differs" in out, err
    status, out, _ = penstock("log", "tail", place, "clicks", "-n", "1")
    assert status == 0 and "click_id" in out


def test_writers_at_the_same_time_lose_nothing_and_leave_no_gap(bucket: str) -> None:
    import pyarrow as pa

    place = f"{bucket}/race"
    fields = [pa.field("ts", pa.float64()), pa.field("who", pa.int64()), pa.field("n", pa.int64())]
    Log(place).create("s", fields)
    command = [sys.executable, "-c", WRITER, place]
    writers = [subprocess.Popen([*command, str(who)], env=dict(os.environ)) for who in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    from deltalake import DeltaTable

    table = DeltaTable(f"{place}/s").to_pyarrow_table().sort_by("_seq")
    assert table["_seq"].to_pylist() == list(range(30))
    found = set(zip(table["who"].to_pylist(), table["n"].to_pylist(), strict=True))
    assert found == {(who, n) for who in range(3) for n in range(10)}
