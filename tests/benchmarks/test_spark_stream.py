"""The peer Spark: that it is named as missing, says what is wrong, and joins as a loop over all pairs does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import spark_stream
from benchmarks.spark_stream import PYTHON, run_peer

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FILES = 8
Event = tuple[datetime, str]


def streams(hours: float) -> tuple[list[Event], list[Event]]:
    """Impressions over some hours, and clicks: at once, at the last moment, too late, too early, on none."""
    rng = np.random.default_rng(5)
    impressions = [
        (START + timedelta(microseconds=int(at)), f"{i:04x}")
        for i, at in enumerate(np.sort(rng.integers(0, int(hours * 3_600_000_000), 400)))
    ]
    delays = (timedelta(0), DAY, DAY + timedelta(microseconds=1), -timedelta(microseconds=1), timedelta(minutes=9))
    clicks = [(ts + delays[i // 5 % 5], request) for i, (ts, request) in enumerate(impressions) if i % 5 == 0]
    clicks.append((START + timedelta(hours=1), "none"))
    return impressions, sorted(clicks)


def written(folder: Path, impressions: Sequence[Event], clicks: Sequence[Event]) -> Path:
    """Files in order of time by name; the first was modified last."""
    end = max(*impressions, *clicks)[0] + timedelta(microseconds=1)
    for stream, events in (("impressions", impressions), ("clicks", clicks)):
        (folder / stream).mkdir(parents=True)
        for i in range(FILES):
            begin, stop = (START + (end - START) * k / FILES for k in (i, i + 1))
            part = [event for event in events if (begin <= event[0] or i == 0) and event[0] < stop]
            columns: dict[str, Any] = {
                "ts": pa.array([ts for ts, _ in part], pa.timestamp("us", "UTC")),
                "request_id": pa.array([request for _, request in part], pa.string()),
            }
            if stream == "impressions":
                columns["price"] = pa.array([0.5] * len(part), pa.float64())
            file = folder / stream / f"{i:02d}.parquet"
            pq.write_table(pa.table(columns), file)
            os.utime(file, (2_000_000_000 - i,) * 2)
    return folder


def joined(impressions: Sequence[Event], clicks: Sequence[Event]) -> dict[str, bool]:
    return {
        request: any(of == request and ts <= at <= ts + DAY for at, of in clicks) for ts, request in impressions
    }


@pytest.fixture
def peer() -> None:
    try:
        interpreter = spark_stream.interpreter(None)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if interpreter is None:
        pytest.skip(spark_stream.MISSING)
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("there is no Java")


@pytest.mark.slow
@pytest.mark.usefixtures("peer")
def test_it_joins_as_a_loop_does_and_all_comes_out_at_a_flush(tmp_path: Path) -> None:
    impressions, clicks = streams(hours=40)
    source = written(tmp_path / "in", impressions, clicks)
    found = run_peer(source, tmp_path / "out", flush=True, memory="1g", files_per_trigger=1)
    assert found is not None
    expected = joined(impressions, clicks)
    table = pq.read_table(tmp_path / "out" / "examples")
    assert dict(zip(table["request_id"].to_pylist(), table["clicked"].to_pylist(), strict=True)) == expected
    assert table.schema.names == ["ts", "request_id", "price", "clicked"]
    assert (found["impressions_in"], found["clicks_in"]) == (len(impressions), len(clicks))
    assert (found["examples_out"], found["clicked"]) == (len(expected), sum(expected.values()))
    assert (found["dropped_late"], found["state_rows"]) == (0, 2)
    assert found["batches"] >= FILES
    assert not (tmp_path / "out" / "scratch").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("peer")
def test_without_a_flush_the_unclicked_of_the_last_day_stay(tmp_path: Path) -> None:
    impressions, clicks = streams(hours=12)
    clicks = [click for click in clicks if click[0] < START + DAY]
    found = run_peer(written(tmp_path / "in", impressions, clicks), tmp_path / "out", memory="1g")
    assert found is not None
    assert found["examples_out"] == found["clicked"] == sum(joined(impressions, clicks).values()) > 0


def test_without_pyspark_there_is_no_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_peer(tmp_path / "in", tmp_path / "out") is None


def test_an_interpreter_without_pyspark_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -S -c "raise SystemExit(1)"\n')
    interpreter.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(interpreter))
    with pytest.raises(FileNotFoundError, match=PYTHON):
        run_peer(tmp_path / "in", tmp_path / "out")


def test_a_failed_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stderr="Java gateway process exited", stdout="")
    monkeypatch.setattr(spark_stream, "interpreter", lambda named: sys.executable)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(RuntimeError, match="gateway"):
        run_peer(Path("in"), Path("out"))


def test_a_folder_without_files_and_an_output_in_use_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="impressions"):
        spark_stream._staged(tmp_path, tmp_path / "staged")
    with pytest.raises(FileExistsError, match="not empty"):
        (tmp_path / "file").touch()
        spark_stream._measure(tmp_path, tmp_path, spark_stream._How())
