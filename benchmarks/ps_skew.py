"""How evenly rows and bytes lie on 8 servers: the fullest against the mean."""

from __future__ import annotations

from benchmarks.clicklog import Clicks
from benchmarks.cluster import train
from benchmarks.harness import Goal, Options, Result, machine, table

__all__ = ["run"]

SERVERS = 8


def run(options: Options) -> Result:
    """One run; placement does not depend on chance."""
    clicks = Clicks(options.rows)
    found = train(clicks.parquet, servers=SERVERS, minibatch=1024)
    result = Result(
        name="ps-skew",
        options=options,
        conditions={"rows": clicks.rows, "servers": SERVERS, "workers": 2, **machine()},
        goals=(Goal(what="rows_over_mean", most=1.2),),
    )
    rows, nbytes = found["server_rows"], found["server_bytes"]
    mean, mean_nbytes = sum(rows) / SERVERS, sum(nbytes) / SERVERS
    lines = [
        (f"server-{i}", f"{n:,}", f"{n / mean:.3f}", f"{b / 1e6:,.1f} MB", f"{b / mean_nbytes:.3f}")
        for i, (n, b) in enumerate(zip(rows, nbytes, strict=True))
    ]
    result.text.append(table(("", "rows", "of the mean", "bytes", "of the mean"), lines))
    result.ratios["rows_over_mean"] = max(rows) / mean
    result.ratios["bytes_over_mean"] = max(nbytes) / mean_nbytes
    return result
