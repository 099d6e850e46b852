"""A model of one's own: trained in this process by mini-batches, then the same by the parameter server.

Runs as it is: ``python examples/own_model.py``. The processes of a cluster import this file by its name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import penstock as ps


@ps.register_model
class Cloglog(ps.Model):
    """p = 1 - exp(-exp(w.x)): the complementary log-log link, for clicks as events of a rate exp(w.x)."""

    kind = "cloglog"

    def __init__(self, features: Any = None, *, optimizer: Any = None, slots: int = 1 << 16, segments: int = 1024):
        super().__init__(features, optimizer=optimizer)
        self.add_table("weights", dim=1, slots=slots, segments=segments)

    def keys(self, batch: ps.SparseBatch) -> dict[str, Any]:
        return {"weights": batch.keys}

    def gradients(self, rows: Mapping, index: Mapping, batch: ps.SparseBatch, out: Any) -> tuple[float, dict]:
        values = np.ones(batch.nnz) if batch.values is None else batch.values
        example = np.repeat(np.arange(len(batch)), np.diff(batch.offsets))
        terms = rows["weights"][index["weights"], 0] * values
        rate = np.exp(np.bincount(example, terms, len(batch)).clip(-9, 2))
        out[:] = p = -np.expm1(-rate)
        slope = np.where(batch.labels > 0, rate - rate / p, rate)  # of the loss by w.x
        total = np.bincount(index["weights"], slope[example] * values, len(rows["weights"]))
        loss = np.where(batch.labels > 0, -np.log(p), rate).sum()
        return float(loss), {"weights": total[:, None].astype(np.float32)}

    def predict_batch(self, batch: ps.SparseBatch) -> Any:
        rows = {"weights": self.tables()["weights"].pull(batch.keys)}
        self.gradients(rows, {"weights": np.arange(batch.nnz)}, batch, out := np.empty(len(batch), np.float32))
        return out


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    cluster = ps.ParameterServer(workers=2, consistency=ps.SSP(4), minibatch=512, imports=("own_model",))
    log = ps.ClickLog(rows=50_000, numeric=4, categorical=8, distinct=50_000, row_group_rows=8192)
    with tempfile.TemporaryDirectory() as folder:
        ps.write_clicks(log, folder)
        for strategy in (ps.Online(minibatch=512), cluster):
            model = Cloglog(ps.Features(label="clicked", time="time"), optimizer=ps.AdaGrad(alpha=0.05))
            run = ps.fit(model, f"{folder}/*.parquet", strategy=strategy, progress=False)
            print(f"{type(strategy).__name__:15} log loss {run.metrics.logloss:.4f}, AUC {run.metrics.auc:.4f}")
