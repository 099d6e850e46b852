"""Impressions and clicks in a log, one SQL query to examples, a model; and what a late click changes.

Runs as it is: ``python examples/from_events.py``. ``penstock train pipeline.toml`` does this while events come.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

import penstock as ps

IMPRESSIONS = 50_000
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
QUERY = """
    select i.*, c.click_id is not null as clicked
    from impressions i left join clicks c on c.request_id = i.request_id
"""


def events(seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Impressions of two hours, and the clicks on them: some minutes later, more often on some sites."""
    draw = np.random.default_rng(seed)
    seconds, site = np.linspace(0, 7200, IMPRESSIONS), draw.integers(0, 50, IMPRESSIONS)
    clicked = np.flatnonzero(draw.random(IMPRESSIONS) < (0.05 + 0.6 * (site / 50) ** 2))
    delays = seconds[clicked] + draw.exponential(240, len(clicked))
    ids = [f"r{n}" for n in range(IMPRESSIONS)]
    at = [[BEGIN + timedelta(seconds=float(each)) for each in those] for those in (seconds, delays)]
    impressions = {"ts": at[0], "request_id": ids, "site": [f"site-{n}" for n in site]}
    clicks = {"ts": at[1], "click_id": [f"c{n}" for n in clicked], "request_id": [ids[n] for n in clicked]}
    return pa.table(impressions), pa.table(clicks).sort_by("ts")


def main() -> None:
    """Append, train on what is sealed; append the last clicks late, and see which labels they correct."""
    with tempfile.TemporaryDirectory() as folder:
        log, (impressions, clicks) = ps.Log(folder), events()
        log.create("impressions", impressions.schema, id="request_id").append(impressions)
        log.create("clicks", clicks.schema, id="click_id").append(clicks.slice(0, len(clicks) - 500))
        log.step()
        streams = {"impressions": {"idle": "1s"}, "clicks": {"within": "1d", "lateness": "1d"}}
        sections = {"streams": streams, "pipeline": {"log": folder, "query": QUERY, "window": "5m"}}
        examples = ps.PipelineSource(ps.Pipeline.from_dict(sections, "from_events.py"))
        run = ps.fit(ps.Linear(ps.Features(label="clicked", categorical=["site"])), examples, progress=False)
        print(f"{run.rows:,} examples, AUC {run.metrics.auc:.4f}")
        log.stream("clicks").append(clicks.slice(len(clicks) - 500))
        log.step()
        found = (batch for chunk in examples.chunks() for batch in chunk.batches(["_kind"], 1 << 16))
        kinds = Counter(kind for batch in found for kind in batch["_kind"].to_pylist())
        print(f"with the last clicks: {dict(kinds)}")


if __name__ == "__main__":
    main()
