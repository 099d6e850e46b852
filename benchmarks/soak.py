"""Minutes of load on a server whose trainer learns, publishes, is killed and leaves torn files.

A trainer follows a log and publishes every few seconds; a server follows the trainer; clients ask all the time.
Now and then the trainer is killed and goes on from its checkpoint; some of the times a version with a torn file is
left behind. Each answer must have the bits that ``predict`` gives by the version that the answer names.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import penstock as ps
from benchmarks.harness import ROOT, Goal, Options, Result, machine, note, table
from benchmarks.serving import serving_process
from penstock.errors import ModelError
from penstock.log import Log
from penstock.log.times import SECOND_US, TIMESTAMP, now_us
from penstock.models import read_manifest, read_version
from penstock.models.history import version_file

__all__ = ["run"]

_SITES, _USERS = 200, 20_000
_ROWS = 20
"""Of a request."""
_BODIES = 100
_CLIENTS = 4
_JOB = """
[streams.impressions]
lateness = "1s"
idle = "2s"

[pipeline]
log = "{place}/events"
window = "1s"
label_wait = "0"
query = "select i.* from impressions i"

[features]
label = "clicked"
categorical = ["site", "user"]
crosses = [["site", "user"]]

[train]
checkpoint_every_s = 10

[output]
path = "{place}/run"
publish_every_s = {every}
keep_versions = 64
"""


def run(options: Options) -> Result:
    """The plan is spread over the time; what was answered is checked as soon as it can be."""
    seconds = 60 if options.quick else 600
    kills, torn, every_s = (2, 1, 2) if options.quick else (10, 3, 3)
    place = ROOT / "bench-data" / "soak"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "pipeline.toml").write_text(_JOB.format(place=place, every=every_s))
    log = Log(str(place / "events"))
    log.create("impressions", _FIELDS, id="request_id")
    found = _Found()
    stop = threading.Event()
    rows = _events(now_us() - np.arange(_ROWS * _BODIES), 10**9, 7).select(["site", "user"])
    with contextlib.ExitStack() as stack:
        producer = threading.Thread(target=_produce, args=(log, stop))
        stack.callback(producer.join)
        stack.callback(stop.set)
        producer.start()
        trainer = stack.enter_context(_Trainer(place))
        note("waiting for the first version ...")
        command = ("-m", "penstock.cli.main", "serve", "--follow", f"ctr={place / 'run'}", "--port", "0")
        server, port = stack.enter_context(serving_process(*command, errors=place / "server.log"))
        oracle = _Oracle(place / "run", rows, found)
        threads = [threading.Thread(target=oracle.run, args=(stop,))]
        threads += [
            threading.Thread(target=_ask, args=(port, rows, n, oracle, found, stop)) for n in range(_CLIENTS)
        ]
        threads.append(threading.Thread(target=_watch, args=(server.pid, found, stop)))
        for thread in threads:
            stack.callback(thread.join)
            thread.start()
        stack.callback(stop.set)
        began_s = time.monotonic()
        for n in range(kills):
            time.sleep(max(0.0, began_s + (n + 1) * seconds / (kills + 1) - time.monotonic()))
            trainer.kill()
            if n < torn:
                _leave_torn(place / "run")
                time.sleep(1.0)  # the server looks at it
            trainer.start()
            note(f"{time.monotonic() - began_s:5.0f} s: trainer killed {n + 1} times, {found.answers:,} answers")
        time.sleep(max(0.0, began_s + seconds - time.monotonic()))
        metrics = _metrics(port)
    found.check_the_rest()
    result = Result(
        name="soak",
        options=options,
        conditions={
            "seconds": seconds,
            "kills": kills,
            "torn": torn,
            "clients": _CLIENTS,
            "rows_per_request": _ROWS,
            "publish_every_s": every_s,
            **machine("duckdb", "deltalake", "uvicorn"),
        },
        goals=(
            Goal(what="switches", least=100),
            Goal(what="wrong_answers", most=0),
            Goal(what="unchecked_answers", most=0),
            Goal(what="status_5xx", most=0),
            Goal(what="refused_versions", least=3),
            Goal(what="memory_end_over_begin", most=1.1),
        ),
    )
    fifth = max(1, len(found.memory) // 5)
    begin, end = np.median(found.memory[fifth : 2 * fifth]), np.median(found.memory[-fifth:])
    result.figures |= {
        "answers": found.answers,
        "versions_answered_by": len(found.versions),
        "wrong_answers": found.wrong,
        "unchecked_answers": sum(map(len, found.waiting.values())),
        "status_5xx": found.errors,
        "switches": metrics["penstock_model_switches_total"],
        "refused_versions": metrics.get("penstock_versions_refused_total", 0.0),
        "memory_mb_begin": float(begin) / 1e6,
        "memory_mb_end": float(end) / 1e6,
        "memory_end_over_begin": float(end / begin),
    }
    result.text.append(table(("", ""), [(name, f"{value:,.5g}") for name, value in result.figures.items()]))
    shutil.rmtree(place, ignore_errors=True)
    return result


_FIELDS = [
    pa.field("ts", TIMESTAMP),
    pa.field("request_id", pa.string()),
    pa.field("site", pa.string()),
    pa.field("user", pa.string()),
    pa.field("clicked", pa.bool_()),
]


def _events(times: Any, first: int, seed: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    count = len(times)
    sites, users = draw.integers(0, _SITES, count), draw.integers(0, _USERS, count)
    return pa.table(
        {
            "ts": pa.array(np.sort(np.asarray(times, np.int64))).cast(TIMESTAMP),
            "request_id": [f"r{first + n}" for n in range(count)],
            "site": [f"s{n}" for n in sites],
            "user": [f"u{n}" for n in users],
            "clicked": draw.random(count) < 0.05 + 0.3 * (sites % 7 == 0),
        }
    )


def _produce(log: Log, stop: threading.Event) -> None:
    """A thousand events a second."""
    stream = log.stream("impressions")
    stream.append(_events(now_us() - np.arange(5000) * 1000 - 10 * SECOND_US, 0, 0), source="collector")
    for beat in itertools.count(1):
        if stop.wait(0.2):
            return
        stream.append(_events(now_us() - np.arange(200) * 1000, 10_000 + 200 * beat, beat), source="collector")


class _Trainer:
    """``penstock train``, killed and started again."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._running: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Trainer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """From the checkpoint, if there is one."""
        more = ["--resume", "-o", str(self._place / "run")]
        resume = (self._place / "run" / "checkpoint" / "manifest.json").exists()
        command = [sys.executable, "-m", "penstock.cli.main", "train"]
        command += more if resume else [str(self._place / "pipeline.toml")]
        with (self._place / "trainer.log").open("ab") as said:
            self._running = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)

    def kill(self) -> None:
        """By SIGKILL."""
        assert self._running is not None
        if self._running.poll() is not None:
            raise RuntimeError(f"the trainer ended by itself: {(self._place / 'trainer.log').read_text()[-500:]}")
        self._running.send_signal(signal.SIGKILL)
        self._running.wait()


@dataclass
class _Found:
    answers: int = 0
    wrong: int = 0
    errors: int = 0
    versions: set[str] = field(default_factory=set)
    memory: list[int] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)
    waiting: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, version: str, body: int, scores: Any) -> None:
        """Check it, or keep it until its version is known here."""
        with self.lock:
            self.answers += 1
            self.versions.add(version)
            if version not in self.expected:
                self.waiting.setdefault(version, []).append((body, scores))
            elif not self._is_right(version, body, scores):
                self.wrong += 1

    def known(self, version: str, scores: Any) -> None:
        """What a version predicts for all rows."""
        with self.lock:
            self.expected[version] = scores
        self.check_the_rest()

    def check_the_rest(self) -> None:
        """Answers whose versions are known by now."""
        with self.lock:
            for version in [each for each in self.waiting if each in self.expected]:
                for body, scores in self.waiting.pop(version):
                    self.wrong += not self._is_right(version, body, scores)

    def _is_right(self, version: str, body: int, scores: Any) -> bool:
        expected = self.expected[version][body * _ROWS : (body + 1) * _ROWS]
        return bool(np.array_equal(np.array(scores, np.float32), expected))


class _Oracle:
    """Loads each version by itself, without a server, and predicts."""

    def __init__(self, folder: Path, rows: pa.Table, found: _Found) -> None:
        self._folder, self._rows, self._found = folder, rows, found

    def run(self, stop: threading.Event) -> None:
        """Until told to stop, and all that was answered by is known."""
        while not stop.wait(0.2) or self._found.waiting:
            there = {path.stem[1:].lstrip("0") for path in (self._folder / "versions").glob("v*.json")}
            for version in sorted(there - set(self._found.expected), key=int):
                with contextlib.suppress(ModelError):  # one with a torn file: nobody may answer by it
                    model = ps.load(self._folder, version=int(version))
                    self._found.known(version, model.predict(self._rows))
            if stop.is_set() and not set(self._found.waiting) & there:
                return


def _ask(port: int, rows: pa.Table, number: int, oracle: _Oracle, found: _Found, stop: threading.Event) -> None:
    listed = rows.to_pylist()
    bodies = [json.dumps(listed[n * _ROWS : (n + 1) * _ROWS]).encode() for n in range(_BODIES)]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for turn in itertools.count(number):
        if stop.is_set():
            return
        connection.request("POST", "/predict", bodies[turn % _BODIES], {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            found.errors += 1
            continue
        parsed = json.loads(body)
        found.answer(parsed["version"], turn % _BODIES, parsed["predictions"])
        time.sleep(0.005)


def _watch(pid: int, found: _Found, stop: threading.Event) -> None:
    """Resident bytes, once a second."""
    while not stop.wait(1.0):
        found.memory.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096)


def _leave_torn(folder: Path) -> None:
    """A version as a trainer on a failing disk leaves it: the manifest names a file of which a part is missing."""
    manifest = read_manifest(folder)
    version = manifest["version"] + 1
    place = folder / f"v{version:06d}"
    place.mkdir(exist_ok=True)
    entry = manifest["tables"]["weights"]
    layers = entry.pop("layers", None) or [{"files": entry.pop("files"), "removed": []}]
    file = layers[-1]["files"][0]
    data = (folder / file["path"]).read_bytes()
    torn = {**file, "path": f"{place.name}/torn.parquet"}
    (folder / torn["path"]).write_bytes(data[: len(data) // 2])
    entry["layers"] = [*layers, {"files": [torn], "removed": []}]
    text = json.dumps({**manifest, "version": version, "format_version": 2})
    for name in (version_file(version), "manifest.json"):
        (folder / f".{version}.tmp").write_text(text)
        (folder / f".{version}.tmp").replace(folder / name)
    assert read_version(folder, version)["version"] == version


def _metrics(port: int) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return {
        m[1]: float(m[2]) for m in re.finditer(r'^(penstock_\w+_total)\{model="ctr"\} (\S+)$', text, re.MULTILINE)
    }
