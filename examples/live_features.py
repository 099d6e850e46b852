"""A feature that changes while a model is served: how many clicks of this user there were in the last ten minutes.

Runs as it is: ``python examples/live_features.py``. It trains, starts ``penstock serve``, and clicks.
"""

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pyarrow as pa

import penstock as ps

IMPRESSIONS = 20_000
JOB = """
streams = { impressions = { idle = "1s" }, clicks = { within = "1m" } }
features = { label = "clicked", numeric = [{ name = "clicks_10m", how = "log" }] }
aggregates = [{ name = "clicks_10m", stream = "clicks", by = "user", over = "10m" }]
pipeline.query = "select i.*, c.user is not null clicked from impressions i left join clicks c using (request_id)"
"""


def events(draw: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Impressions of an hour and their clicks: a tenth of the users click much, the others hardly."""
    begin = datetime.now(UTC) - timedelta(hours=1)
    user, times = draw.integers(0, 500, IMPRESSIONS), np.linspace(0, 3500, IMPRESSIONS)
    clicked = np.flatnonzero(draw.random(IMPRESSIONS) < np.where(user < 50, 0.6, 0.02))
    columns = {"ts": [begin + timedelta(seconds=each) for each in times], "user": [f"u{each}" for each in user]}
    impressions = pa.table({**columns, "request_id": [f"r{n}" for n in range(IMPRESSIONS)]})
    return impressions, impressions.take(pa.array(clicked))


with tempfile.TemporaryDirectory() as folder:
    log, job, model = ps.Log(f"{folder}/events"), Path(folder, "job.toml"), f"{folder}/model"
    for name, table in zip(("impressions", "clicks"), events(np.random.default_rng(0)), strict=True):
        log.create(name, table.schema).append(table, arrival=table["ts"])  # they arrived when they happened
    job.write_text(f'{JOB}pipeline.log = "{folder}/events"')
    penstock = [sys.executable, "-m", "penstock.cli.main"]
    subprocess.run([*penstock, "train", job, "--once", "-q", "-o", model], check=True)
    serve = [*penstock, "serve", model, "--pipeline", job, "--port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        url = next(line.split()[-1] for line in server.stdout or () if line.startswith("listening at"))
        row, score = json.dumps({"user": "somebody new"}).encode(), -1.0
        for clicks in range(4):
            while score == (score := json.load(urlopen(f"{url}/predict", row))["predictions"][0]):
                pass  # the server has not seen the click yet
            print(f"{clicks} clicks: {score:.3f}")
            click = {"ts": [datetime.now(UTC)], "request_id": ["r"], "user": ["somebody new"]}
            log.stream("clicks").append(pa.table(click))
        server.terminate()
