"""From an event in the log to a prediction over HTTP that has changed by it.

A trainer follows the log and publishes, a server follows the trainer, each a process; events come all the time.
Now and then one of a site that nobody has seen: how long until the prediction for that site is another?
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.harness import ROOT, Goal, Options, Result, Spread, machine, note, table
from benchmarks.kappa import FIELDS
from benchmarks.serving import serving
from penstock.log import Log
from penstock.log.times import SECOND_US, TIMESTAMP, now_us

__all__ = ["run"]

_JOB = """
[streams.impressions]
lateness = "0s"
idle = "2s"

[pipeline]
log = "{place}/events"
window = "1s"
label_wait = "0"
query = "select i.* from impressions i"

[features]
label = "clicked"
categorical = ["site"]

[output]
path = "{place}/run"
publish_every_s = {every}
"""
PUBLISH_EVERY_S = 0.5


def run(options: Options) -> Result:
    """One run, many probes."""
    seconds = 10 if options.quick else 60
    rate = 2_000
    place = ROOT / "bench-data" / "fresh"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "pipeline.toml").write_text(_JOB.format(place=place, every=PUBLISH_EVERY_S))
    log = Log(str(place / "events"))
    log.create("impressions", FIELDS, id="request_id")
    events = _Events(log)
    events.append_past(2_000)
    note(f"{rate:,} events/s for {seconds} s, and five probes a second ...")
    with (
        _training(place),
        serving("-m", "penstock.cli.main", "serve", "--follow", f"{place}/run", "--port", "0") as port,
    ):
        took = _probe(events, port, seconds, rate)
    spread = Spread.of(took)
    result = Result(
        name="fresh",
        options=options,
        conditions={
            "window_s": 1,
            "events_per_s": rate,
            "publish_every_s": PUBLISH_EVERY_S,
            "probes": len(took),
            **machine("duckdb", "deltalake", "uvicorn"),
        },
        goals=(Goal(what="event_to_prediction_s_p95", most=3),),
    )
    result.figures |= {
        "event_to_prediction_s": spread.median,
        "event_to_prediction_s_p95": float(np.quantile(took, 0.95)),
        "event_to_prediction_s_most": spread.most,
    }
    result.text.append(
        table(
            ("from an event in the log to a changed prediction", "probes", "median s", "95 %", "most"),
            [("", len(took), f"{spread.median:.2f}", f"{np.quantile(took, 0.95):.2f}", f"{spread.most:.2f}")],
        )
    )
    shutil.rmtree(place, ignore_errors=True)
    return result


@contextlib.contextmanager
def _training(place: Path) -> Iterator[None]:
    trainer = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli.main", "train", str(place / "pipeline.toml")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        trainer.send_signal(signal.SIGINT)
        _, said = trainer.communicate(timeout=60)
        if trainer.returncode not in (0, 130):
            raise RuntimeError(f"the trainer ended with {trainer.returncode}: {said[-500:]}")


class _Events:
    """Appends events of now, in order."""

    def __init__(self, log: Log) -> None:
        self._stream = log.stream("impressions")
        self._before = now_us() - 10 * SECOND_US
        self._count = 0

    def append_past(self, count: int) -> None:
        """So much must be there that a run can begin."""
        self._append(self._before - np.arange(count)[::-1] * 1000, [f"s{n % 50}" for n in range(count)])

    def append(self, count: int, probes: list[str]) -> None:
        """Events since the last call; one for each probe, the last of them."""
        now = now_us()
        sites = [f"s{n % 50}" for n in range(count)] + probes
        self._append(np.linspace(self._before + 1, now, len(sites)).astype(np.int64), sites)
        self._before = now

    def _append(self, times: np.ndarray, sites: list[str]) -> None:
        rows = {
            "ts": pa.array(times).cast(TIMESTAMP),
            "request_id": [f"r{self._count + n}" for n in range(len(times))],
            "site": sites,
            "clicked": [site.startswith("probe") or n % 7 == 0 for n, site in enumerate(sites)],
        }
        self._count += len(times)
        self._stream.append(pa.table(rows), source="collector")


def _probe(events: _Events, port: int, seconds: float, rate: int) -> list[float]:
    """Seconds from each probe's append to the first answer that it has changed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    waiting: dict[str, float] = {}
    took: list[float] = []
    began = due = time.monotonic()
    beat = 0
    while (time.monotonic() < began + seconds) or waiting:
        if time.monotonic() >= due:
            probes = [f"probe-{beat}"] if time.monotonic() < began + seconds and beat % 2 == 0 else []
            events.append(rate // 10, probes)
            waiting |= {site: time.monotonic() for site in probes}
            beat, due = beat + 1, due + 0.1
        if waiting:
            # A site without a weight of its own has the prediction of one that never was.
            never, *scores = _predict(connection, ["never", *waiting])
            changed = [site for site, score in zip(waiting, scores, strict=True) if score != never]
            took += [time.monotonic() - waiting.pop(site) for site in changed]
        if time.monotonic() > began + seconds + 60:
            raise RuntimeError(f"{len(waiting)} probes have not changed their predictions after a minute")
        time.sleep(0.01)
    connection.close()
    return took


def _predict(connection: http.client.HTTPConnection, sites: list[str]) -> list[float]:
    body = json.dumps([{"site": site} for site in sites])
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    return list(json.loads(connection.getresponse().read())["predictions"])
