"""What the benchmarks of serving share: a model of ten million rows, requests, and a server as a process."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import penstock as ps
from benchmarks.harness import ROOT, note

__all__ = ["bodies_file", "model_folder", "serving", "table_of"]

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
        model.table.insert(keys, draw.normal(0, 0.1, (len(keys), model.table.width)).astype(np.float32))
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
def serving(*command: str) -> Iterator[int]:
    """A server, until it has said where it listens: its port."""
    running = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("listening at"):
                yield int(line.rsplit(":", 1)[1])
                return
        raise RuntimeError(f"the server ended with {running.wait()}")
    finally:
        running.kill()
        running.wait()
