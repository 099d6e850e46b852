"""What the benchmarks of the parameter server share: one training run in local processes, and its figures."""

from __future__ import annotations

import gc
import tempfile
from typing import Any

import penstock as ps
from benchmarks.clicklog import features
from penstock.engine.spec import Slowness

__all__ = ["online", "train"]

ALPHA, BETA = 0.1, 1.0


def online(files: list[str]) -> dict[str, float]:
    """One pass example by example in one process; seconds of the training alone."""
    run = ps.fit(_model(), files, progress=False)
    return {"rows_per_s": run.rows / run.seconds, "logloss": run.metrics.logloss}


def train(
    files: list[str],
    *,
    servers: int = 2,
    workers: int = 2,
    consistency: Any = None,
    minibatch: int = 2048,
    depth: int = 4,
    window: int = 1,
    slow: dict[str, Slowness] | None = None,
) -> dict[str, Any]:
    """One pass by parameter server: seconds from the first micro-batch asked for to the last push."""
    strategy = ps.ParameterServer(
        servers=servers,
        workers=workers,
        consistency=consistency if consistency is not None else ps.ASP(),
        minibatch=minibatch,
        depth=depth,
        window=window,
        slow=slow or {},
    )
    gc.collect()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        run = ps.fit(_model(), files, strategy=strategy, output=folder, progress=False, checkpoint_every_s=None)
    roles: Any = run.figures
    counts = {int(k): n for k, n in roles["servers"][0]["staleness"].items()}
    total = sum(counts.values())
    busy = sum(worker["busy_s"] for worker in roles["workers"]) / (workers * run.seconds)
    return {
        "rows_per_s": run.rows / run.seconds,
        "logloss": run.metrics.logloss,
        "staleness_mean": sum(k * n for k, n in counts.items()) / total,
        "staleness_most": max(counts),
        "cpu_us_per_row": sum(r["cpu_s"] for r in [*roles["workers"], *roles["servers"]]) / run.rows * 1e6,
        "bytes_per_row": sum(s["bytes_in"] + s["bytes_out"] for s in roles["servers"]) / run.rows,
        "busy": busy,
        "server_rows": [sum(server["rows"].values()) for server in roles["servers"]],
        "server_bytes": [server["bytes_in"] + server["bytes_out"] for server in roles["servers"]],
    }


def _model() -> ps.Linear:
    return ps.Linear(features(), optimizer=ps.FTRL(alpha=ALPHA, beta=BETA))
