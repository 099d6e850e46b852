"""Lines as a run writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BEGAN = 1_800_000_000.0


def line_of(seconds: float, rows: int, **more: Any) -> dict[str, Any]:
    """Of ``progress.jsonl``: 100 rows since the last line, unless told."""
    scores = {
        "rows": 100,
        "weight": 100.0,
        "logloss": 0.5,
        "auc": 0.7,
        "calibration": 1.0,
        "base_rate": 0.25,
        "mean_prediction": 0.25,
    }
    return {
        "at": BEGAN + seconds,
        "seconds": seconds,
        "rows": rows,
        "done": None,
        "rows_per_s": rows / seconds if seconds else 0.0,
        "features": 1000,
        "table_nbytes": 1 << 20,
        "memory_nbytes": 5 << 20,
        "progressive": {**scores, "rows": rows, "weight": float(rows)},
        "recent": scores,
        **more,
    }


def cluster_line_of(
    seconds: float, rows: int, *, events: list[Any] | None = None, **cluster: Any
) -> dict[str, Any]:
    """Of ``cluster.jsonl``."""
    status = {
        "phase": "training",
        "consistency": "ssp:4",
        "checkpoint": None,
        "clock": 7,
        "routing": 1,
        "stopped_by": None,
        "servers": [server_of("server-0"), server_of("server-1")],
        "workers": [worker_of("worker-0", clock=9, rows=rows), worker_of("worker-1", clock=7, rows=rows)],
        "skew": {"rows": 1.05, "load": 1.1},
        "hot": [[2**63 + 2, "weights", 0.5]],
        **cluster,
    }
    return line_of(seconds, rows, cluster=status, owners=[0, 0, 1, 0, 1, 1], events=events or [])


def server_of(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "address": "127.0.0.1:9000",
        "heartbeat_s": 0.2,
        "segments": 3,
        "rows": {"weights": 500},
        "pulled_keys": 1000,
        "complete": 7,
        "waiting": 0,
        "duplicates": 0,
        "staleness": {"0": 60, "1": 30, "3": 10},
        "bytes_in": 10_000,
        "bytes_out": 20_000,
        "table_nbytes": 1 << 20,
        "memory_nbytes": 1 << 22,
        **more,
    }


def worker_of(name: str, **more: Any) -> dict[str, Any]:
    waits = {"pull": 1.5, "read": 0.5}
    return {"name": name, "heartbeat_s": 0.1, "waits": waits, "done": 5, "stolen": 1, "busy_s": 2.0, **more}


def write_lines(path: Path, *lines: dict[str, Any]) -> None:
    """Append them."""
    with path.open("a") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def manifest_of(version: int, created: str = "2027-01-15T08:00:05+00:00", **more: Any) -> dict[str, Any]:
    return {
        "format": "penstock-model",
        "format_version": 1,
        "version": version,
        "created": created,
        "tables": {"weights": {"rows": 1000 * version}},
        "metrics": {"progressive": {"logloss": 0.4, "auc": 0.75, "calibration": 1.0}, "holdout": None},
        "lineage": {"rows": 500 * version, "files": []},
        **more,
    }
