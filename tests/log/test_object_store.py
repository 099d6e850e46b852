"""A log on an object store: a server that speaks S3 as a process, one bucket, several writers at once."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from penstock.log import Log
from tests.cli.test_stream import EVENTS, log
from tests.log.conftest import Penstock
from tests.log.helpers import free_port, until

__all__ = ["log"]

needed = [name for name in ("moto", "flask", "s3fs") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(needed), reason=f"not installed: {', '.join(needed)}"),
    # What the store's client warns of is its own business.
    pytest.mark.filterwarnings("ignore"),
]
WRITER = """
import sys
import pyarrow as pa
from penstock.log import Log
who, stream = int(sys.argv[2]), Log(sys.argv[1]).stream("s")
for n in range(10):
    stream.append(pa.table({"ts": [1.79e9], "who": [who], "n": [n]}), producer=f"p{who}", start=n, end=n + 1)
"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket; where it is, the environment says, as it does for users."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    # It says a line for each request, which nobody reads.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], **quiet) as server:
        until(lambda: _listens(port))
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        try:
            yield "s3://bucket"
        finally:
            server.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


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
