"""Train one model by the parameter server under BSP and under ASP, and say what each choice costs.

Runs as it is: ``python examples/parameter_server.py``. ``penstock compare`` does this for a job of your own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import penstock as ps

ROWS = 100_000


def train(clicks: Path, consistency: ps.BSP | ps.ASP) -> ps.Run:
    """One pass on 1 server and 2 workers, each a process of this machine."""
    features = ps.Features(label="clicked", time="time")
    model = ps.Linear(features, optimizer=ps.FTRL(alpha=0.1))
    strategy = ps.ParameterServer(servers=1, workers=2, consistency=consistency, minibatch=512)
    return ps.fit(model, str(clicks / "*.parquet"), strategy=strategy, progress=False)


def main() -> None:
    """Make a small click log, train twice, print the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        clicks = Path(folder) / "clicks"
        log = ps.ClickLog(rows=ROWS, numeric=4, categorical=8, distinct=100_000, row_group_rows=10_000)
        best = ps.write_clicks(log, clicks).best_logloss
        print(f"{ROWS:,} rows; the best possible log loss is {best:.4f}")
        print(f"{'':6} {'rows/s':>10} {'log loss':>9} {'AUC':>7}  staleness at most")
        for consistency in (ps.BSP(), ps.ASP()):
            run = train(clicks, consistency)
            stalest = max(int(updates) for updates in run.figures["servers"][0]["staleness"])
            metrics = run.metrics
            speed = run.rows / run.seconds
            print(f"{consistency!s:6} {speed:10,.0f} {metrics.logloss:9.4f} {metrics.auc:7.4f}  {stalest}")


if __name__ == "__main__":
    main()
