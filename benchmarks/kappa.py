"""Live: events are appended while a model follows the log. How old is an event when the model has learnt it?

Two settings: windows of a second, nothing waited for; and windows of two seconds with lateness and a wait for
labels, counted from the moment at which the watermark lets go of a window. Then twice what can be taken, over
HTTP: what was acknowledged must be learnt once each, and the rest be refused.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import ROOT, Goal, Options, Result, Spread, machine, note, table
from penstock.log import Log
from penstock.log.times import SECOND_US, TIMESTAMP, now_us

__all__ = ["FIELDS", "run"]

FIELDS = [
    pa.field("ts", TIMESTAMP),
    pa.field("request_id", pa.string()),
    pa.field("site", pa.string()),
    pa.field("clicked", pa.bool_()),
]


def run(options: Options) -> Result:
    """The three parts, one after the other."""
    seconds = 5 if options.quick else 30
    rate = 2_000 if options.quick else 20_000
    folder = ROOT / "bench-data" / "kappa"
    shutil.rmtree(folder, ignore_errors=True)
    now = _live(folder / "now", seconds, rate, window_s=1, lateness_s=0, wait_s=0)
    later = _live(folder / "later", seconds, rate, window_s=2, lateness_s=2, wait_s=3)
    load = _overload(folder / "load", 3 if options.quick else 10)
    result = Result(
        name="kappa",
        options=options,
        conditions={"seconds": seconds, "events_per_s": rate, **machine("duckdb", "deltalake", "uvicorn")},
        goals=(
            Goal(what="arrival_to_learnt_s", most=2),
            Goal(what="watermark_to_learnt_s", most=2),
            Goal(what="overload_lost", most=0),
            Goal(what="overload_learnt_twice", most=0),
        ),
    )
    rows = []
    for name, what, ages in (
        ("window 1 s, nothing waited for", "arrival_to_learnt_s", now),
        ("window 2 s, lateness 2 s, label_wait 3 s", "watermark_to_learnt_s", later),
    ):
        spread = Spread.of(ages.tolist())
        result.figures[what] = spread.median
        result.figures[f"{what}_p95"] = float(np.quantile(ages, 0.95))
        rows.append(
            (name, len(ages), f"{spread.median:.2f}", f"{np.quantile(ages, 0.95):.2f}", f"{spread.most:.2f}")
        )
    result.text.append(
        table(("from arrival (or watermark) to learnt", "events", "median s", "95 %", "most"), rows)
    )
    result.figures.update({f"overload_{name}": value for name, value in load.items()})
    result.text.append(table(("overload", ""), [(name, f"{value:,.0f}") for name, value in load.items()]))
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _job(place: Path, *, window_s: int, lateness_s: int, wait_s: int) -> dict[str, Any]:
    return {
        "streams": {"impressions": {"lateness": f"{lateness_s}s", "idle": "2s"}},
        "pipeline": {
            "log": str(place / "events"),
            "window": f"{window_s}s",
            "label_wait": f"{wait_s}s" if wait_s else "0",
            "query": "select i.* from impressions i",
        },
        "features": {"label": "clicked", "categorical": ["site"]},
        "train": {"checkpoint_every_s": 5},
        "output": {"path": str(place / "model"), "publish_every_s": 5},
    }


def _append(place: Path, seconds: int, rate: int) -> None:
    """A process that appends events as they happen, ten times a second."""
    stream = Log(str(place / "events")).stream("impressions")
    began, brought, before = time.monotonic(), 0, now_us()
    for beat in itertools.count(1):
        due = began + beat * 0.1
        time.sleep(max(0.0, due - time.monotonic()))
        count = int((due - began) * rate) - brought
        stamp = now_us()
        # Of the time since the last beat, in order: with lateness 0 whatever is out of order is late.
        times = before + 1 + np.sort(np.random.default_rng(beat).integers(0, max(1, stamp - before), count))
        before = stamp
        stream.append(_events(times, brought), source="collector")
        brought += count
        if due - began >= seconds:
            return


def _events(times: Any, first: int) -> pa.Table:
    count = len(times)
    return pa.table(
        {
            "ts": pa.array(np.asarray(times, np.int64)).cast(TIMESTAMP),
            "request_id": [f"r{first + n}" for n in range(count)],
            "site": [f"s{n % 50}" for n in range(count)],
            "clicked": [n % 7 == 0 for n in range(count)],
        }
    )


def _live(place: Path, seconds: int, rate: int, *, window_s: int, lateness_s: int, wait_s: int) -> Any:
    """Ages of events in seconds, at the moment at which they had been learnt."""
    from penstock.job.pipeline import PipelineJob
    from penstock.train.live import fit_live

    log = Log(str(place / "events"))
    log.create("impressions", FIELDS, id="request_id")
    # So much must be there that the run can begin; these are not counted.
    stream = log.stream("impressions")
    stream.append(_events(now_us() - np.arange(1000)[::-1] * 1000 - 10 * SECOND_US, 10**9), source="collector")
    job = PipelineJob.from_dict(_job(place, window_s=window_s, lateness_s=lateness_s, wait_s=wait_s), "benchmark")
    expected = int(seconds * rate)
    ages: list[Any] = []

    def learnt(examples: Any) -> None:
        at = now_us()
        own = examples.rows.filter(pa.compute.less(pa.compute.utf8_length(examples.rows["request_id"]), 10))
        if not own.num_rows:
            return
        if window_s == 1 and not wait_s:
            since = np.asarray(own["_time"].cast(pa.int64()))
        else:
            # From when the watermark can pass the window's end and the wait for labels.
            since = np.asarray(own["_window"].cast(pa.int64())) + (window_s + wait_s + lateness_s) * SECOND_US
        ages.append((at - since) / SECOND_US)
        if sum(map(len, ages)) >= expected:
            os.kill(os.getpid(), signal.SIGINT)

    note(f"live, {rate:,} events/s for {seconds} s, window {window_s} s ...")
    producer = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kappa", str(place), str(seconds), str(rate)], cwd=ROOT
    )
    from penstock.errors import Interrupted

    source = job.source(follow=True)
    with contextlib.suppress(Interrupted):
        fit_live(
            job.model(source),
            source,
            output=job.job.output.path,
            checkpoint_every_s=5,
            publish_every_s=5,
            on_learnt=learnt,
            progress=False,
        )
    producer.wait(60)
    found = np.concatenate(ages)
    if len(found) != expected:
        raise RuntimeError(f"{expected:,} events were appended, {len(found):,} were learnt")
    return found


def _overload(place: Path, seconds: int) -> dict[str, float]:
    """Twice as many events as a listener and a learner on this machine take.

    What was acknowledged must be learnt, once; the rest is refused, or waits at the door.
    """
    from penstock.errors import Interrupted
    from penstock.job.pipeline import PipelineJob
    from penstock.train.live import fit_live

    log = Log(str(place / "events"))
    log.create("impressions", FIELDS, id="request_id")
    # Events wait for their answer, so they come out of order: hence the lateness.
    job = PipelineJob.from_dict(_job(place, window_s=1, lateness_s=10, wait_s=0), "benchmark")
    listener = subprocess.Popen(
        [
            *(sys.executable, "-m", "penstock.cli.main", "log", "listen", str(place / "events")),
            *("--port", "0", "--waiting-mb", "4"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    sent: dict[str, dict[str, float]] = {}
    learnt: dict[str, int] = {}
    done = threading.Event()

    def load() -> None:
        try:
            port = _port(listener)
            sent["alone"] = _post(port, "alone", clients=32, seconds=seconds, rate=None)
            rate = sent["alone"]["acknowledged"] / seconds
            note(f"{rate:,.0f} events/s are all that is taken; now twice that ...")
            sent["load"] = _post(port, "load", clients=64, seconds=seconds, rate=2 * rate)
        finally:
            done.set()

    def count(examples: Any) -> None:
        for request in examples.rows["request_id"].to_pylist():
            learnt[request] = learnt.get(request, 0) + 1
        if done.is_set() and len(learnt) >= sum(each["acknowledged"] for each in sent.values()):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        source = job.source(follow=True)
        with contextlib.suppress(Interrupted):
            fit_live(job.model(source), source, output=job.job.output.path, on_learnt=count, progress=False)
        thread.join()
    finally:
        listener.send_signal(signal.SIGTERM)
        listener.wait(60)
    acknowledged = sum(each["acknowledged"] for each in sent.values())
    return {
        "sustained_per_s": sent["alone"]["acknowledged"] / seconds,
        "offered_per_s": sent["load"]["offered"] / seconds,
        "acknowledged_per_s": sent["load"]["acknowledged"] / seconds,
        "refused_per_s": sent["load"]["refused"] / seconds,
        "lost": acknowledged - len(learnt),
        "learnt_twice": sum(times - 1 for times in learnt.values()),
    }


def _port(listener: subprocess.Popen[str]) -> int:
    assert listener.stdout is not None
    line = listener.stdout.readline()
    return int(line.rsplit(":", 1)[1].split("/")[0].split()[0])


def _post(port: int, name: str, *, clients: int, seconds: int, rate: float | None) -> dict[str, float]:
    """Post batches of 2,000 events for so long: as fast as answers come, or at a rate whatever the answers are."""
    batch = 2_000
    counts = {"offered": 0.0, "acknowledged": 0.0, "refused": 0.0}
    lock = threading.Lock()
    end = time.monotonic() + seconds
    events = [
        {"ts": "@time@", "request_id": f"@tag@-{n}", "site": f"s{n % 50}", "clicked": n % 7 == 0}
        for n in range(batch)
    ]
    template = "\n".join(map(json.dumps, events)).encode()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        due = time.monotonic() + (number * batch / rate if rate is not None else 0)
        for turn in itertools.count():
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() >= end:
                break
            body = template.replace(b'"@time@"', str(time.time()).encode())
            body = body.replace(b"@tag@", f"{name}-{number}-{turn}".encode())
            connection.request(
                "POST", "/streams/impressions/events", body, {"Content-Type": "application/x-ndjson"}
            )
            answer = connection.getresponse()
            answer.read()
            with lock:
                counts["offered"] += batch
                if answer.status == 200:
                    counts["acknowledged"] += batch
                elif answer.status == 429:
                    counts["refused"] += batch
                else:
                    raise RuntimeError(f"the listener answered {answer.status}")
            if rate is not None:
                due += batch * clients / rate

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


if __name__ == "__main__":
    _append(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
