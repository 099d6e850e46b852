"""What the benchmarks of serving share: a model of ten million rows, requests, and a server as a process."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import penstock as ps
from benchmarks.harness import ROOT, note

__all__ = ["at_rate", "bodies_file", "model_folder", "serving", "serving_process", "table_of"]

_DATA = ROOT / "bench-data"


def table_of(rows: int) -> Path:
    """A file of ``make-clicks`` rows, which is kept."""
    folder = _DATA / f"serve-clicks-{rows}"
    if not (folder / "clicks-00000.parquet").exists():
        shutil.rmtree(folder, ignore_errors=True)
        note(f"making {folder} ...")
        ps.write_clicks(ps.ClickLog(rows=rows), folder)
    return folder / "clicks-00000.parquet"


def model_folder(rows: int) -> Path:
    """A model of so many rows, which is kept: trained on a click log, and filled up with features of no row."""
    folder = _DATA / f"serve-model-{rows}"
    if (folder / "manifest.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    note(f"making {folder} ...")
    trained = min(1_000_000, rows)
    features = ps.Features(label="clicked", time="time")
    model = ps.Linear(features, slots=2 * rows)
    ps.fit(model, str(table_of(trained)), progress=False)
    draw = np.random.default_rng(0)
    while (missing := rows - model.rows) > 0:
        keys = draw.integers(1, 1 << 63, min(missing, 1 << 20), dtype=np.uint64) * np.uint64(2)
        words = np.abs(draw.normal(0, 3, (len(keys), model.table.width))).astype(np.float32)
        words[::2, 0] *= -1
        model.table.insert(keys, words)
    model.save(folder)
    return folder


def bodies_file(count: int = 2000) -> Path:
    """A file of JSON bodies of one row each, a line each."""
    path = _DATA / f"serve-bodies-{count}.jsonl"
    if not path.exists():
        rows = pq.read_table(table_of(1_000_000)).slice(0, count).drop_columns(["clicked", "time"])
        path.write_text("".join(json.dumps([row]) + "\n" for row in rows.to_pylist()))
    return path


@contextlib.contextmanager
def serving_process(*command: str, errors: Path | None = None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server, from when it has said where it listens: its process and its port. What it complains of goes to a
    file, if one is given."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(errors.open("w")) if errors is not None else None
        running = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        )
        stack.callback(running.wait)
        stack.callback(running.kill)
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("listening at"):
                yield running, int(line.rsplit(":", 1)[1])
                return
        raise RuntimeError(f"the server ended with {running.wait()}")


@contextlib.contextmanager
def serving(*command: str) -> Iterator[int]:
    """The same, its port."""
    with serving_process(*command) as (_, port):
        yield port


def at_rate(port: int, bodies: Path, rate: int, seconds: float) -> dict[str, float]:
    """Latencies at a fixed rate, by h2load: its log has a line for each request, with status and microseconds.

    Raises:
        RuntimeError: a request was not answered with 200.
    """
    clients = 5  # each asks at the same moment as the others, which more of them would make a test of bursts
    requests = int(rate * seconds)
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body.json", Path(folder) / "log.tsv"
        body.write_text(bodies.open().readline())
        subprocess.run(
            [
                *("h2load", "--h1", f"--clients={clients}", "--threads=1", f"--rps={rate / clients:g}"),
                *(f"--requests={requests}", f"--data={body}", "--header=content-type: application/json"),
                *(f"--log-file={log}", f"http://127.0.0.1:{port}/predict"),
            ],
            capture_output=True,
            check=True,
        )
        lines = np.loadtxt(log, dtype=np.int64, ndmin=2)
    if (lines[:, 1] != 200).any() or len(lines) != requests:
        raise RuntimeError(f"of {requests} requests {int((lines[:, 1] == 200).sum())} were answered with 200")
    took_ms = lines[:, 2] / 1000
    span_s = (lines[:, 0].max() - lines[:, 0].min()) / 1e6
    return {
        "p50_ms": float(np.percentile(took_ms, 50)),
        "p99_ms": float(np.percentile(took_ms, 99)),
        "requests_per_s": len(lines) / max(span_s, 1e-9),
    }
