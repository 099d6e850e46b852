"""A delta of 1 % of a model's rows, from a trainer to a server that answers meanwhile.

How many bytes it is, how long until the server answers by it, and what the latency of requests, a thousand a
second, is while versions come, beside what it is without.
"""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np

import penstock as ps
from benchmarks.harness import ROOT, Goal, Options, Result, Spread, machine, note, table
from benchmarks.serving import at_rate, bodies_file, model_folder, serving
from penstock.models import Publisher

__all__ = ["run"]

RATE = 1000
EVERY_S = 2.0
"""Between two versions."""


def run(options: Options) -> Result:
    """Without versions, with them, in turn."""
    rows = 200_000 if options.quick else 10_000_000
    seconds = 4 if options.quick else 10
    repetitions = 1 if options.quick else 3
    folder = ROOT / "bench-data" / "sync"
    shutil.rmtree(folder, ignore_errors=True)
    trainer = _Trainer(ps.load(model_folder(rows)), folder)
    result = Result(
        name="sync",
        options=options,
        conditions={
            "model_rows": rows,
            "changed_rows": trainer.changed_rows,
            "versions_every_s": EVERY_S,
            "rate": RATE,
            "seconds": seconds,
            "repetitions": repetitions,
            **machine("uvicorn"),
        },
        goals=(
            Goal(what="delta_share_of_base", most=0.02),
            Goal(what="applied_s", most=1),
            Goal(what="p99_with_versions_over_without", most=2),
        ),
    )
    bodies = bodies_file()
    alone, beside = [], []
    with serving("-m", "penstock.cli.main", "serve", "--follow", str(folder), "--port", "0") as port:
        at_rate(port, bodies, RATE, 2)
        for _ in range(repetitions):
            alone.append(at_rate(port, bodies, RATE, seconds))
            with trainer.publishing(port):
                beside.append(at_rate(port, bodies, RATE, seconds))
    applied = Spread.of(trainer.applied_s)
    result.figures |= {
        "base_mb": trainer.base_nbytes / 1e6,
        "delta_mb": trainer.delta_nbytes / 1e6,
        "delta_share_of_base": trainer.delta_nbytes / trainer.base_nbytes,
        "versions": len(trainer.applied_s),
        "published_s": Spread.of(trainer.published_s).median,
        "applied_s": applied.most,
        "applied_s_median": applied.median,
        **{f"{name}_without": Spread.of([f[name] for f in alone]).median for name in ("p50_ms", "p99_ms")},
        **{f"{name}_with": Spread.of([f[name] for f in beside]).median for name in ("p50_ms", "p99_ms")},
    }
    result.figures["p99_with_versions_over_without"] = (
        result.figures["p99_ms_with"] / result.figures["p99_ms_without"]
    )
    result.text.append(
        table(
            ("", "p50 ms", "p99 ms"),
            [
                (name, f"{result.figures[f'p50_ms_{key}']:.2f}", f"{result.figures[f'p99_ms_{key}']:.2f}")
                for name, key in (("no versions", "without"), (f"a version every {EVERY_S:g} s", "with"))
            ],
        )
    )
    result.text.append(
        f"delta {result.figures['delta_mb']:.2f} MB of {result.figures['base_mb']:.0f} MB; from its commit to the "
        f"first answer by it {applied.median:.2f} s, at most {applied.most:.2f} s"
    )
    shutil.rmtree(folder, ignore_errors=True)
    return result


class _Trainer:
    """Changes rows, publishes, and sees when the server answers by it."""

    def __init__(self, model: ps.Linear, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.changed_rows = model.rows // 100
        note(f"publishing {model.rows:,} rows ...")
        self.publisher = Publisher(folder)
        self.base_nbytes = self._nbytes(self.publisher.publish(model))
        self.delta_nbytes = 0
        self.published_s: list[float] = []
        self.applied_s: list[float] = []
        self._keys = np.concatenate([model.table.items(s)[0] for s in range(model.table.segments)])
        self._draw = np.random.default_rng(1)

    def publishing(self, port: int) -> _Publishing:
        """A context in which versions come."""
        return _Publishing(self, port)

    def version(self, port: int) -> None:
        """One, until it answers."""
        keys = self._draw.choice(self._keys, self.changed_rows, replace=False)
        self.model.table.push(keys, np.full((len(keys), 1), 0.1, np.float32))
        began_s = time.perf_counter()
        manifest = self.publisher.publish(self.model)
        committed_s = time.perf_counter()
        self.published_s.append(committed_s - began_s)
        if "layers" in manifest["tables"]["weights"]:
            self.delta_nbytes = self._nbytes(manifest, last=True)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            connection.request("GET", "/v2/models")
            found = json.loads(connection.getresponse().read())["models"][0]["version"]
            if found == str(manifest["version"]):
                break
            time.sleep(0.02)
        connection.close()
        self.applied_s.append(time.perf_counter() - committed_s)

    def _nbytes(self, manifest: dict, *, last: bool = False) -> int:
        entry = manifest["tables"]["weights"]
        layers = entry.get("layers", [{"files": entry.get("files"), "removed": []}])
        chosen = layers[-1:] if last else layers
        return sum(file["nbytes"] for layer in chosen for file in (*layer["files"], *layer.get("removed", ())))


class _Publishing:
    def __init__(self, trainer: _Trainer, port: int) -> None:
        self._trainer, self._port = trainer, port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._trainer.version(self._port)
