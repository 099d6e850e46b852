"""Pull and push alone: one server process, one client process, loopback TCP.

100,000 random keys an operation out of a table of 10 M rows, dim 1, FTRL; keys rise, as a worker's do. Beside it,
the same kernels called in one process, without a wire.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import penstock as ps
from benchmarks.clicklog import Clicks, features
from benchmarks.harness import Goal, Options, Result, in_turn, machine, note, table
from penstock.engine import LocalProcesses, ParameterServer, TableClient
from penstock.engine.fit import prepare
from penstock.errors import PenstockError
from penstock.table import Table

__all__ = ["run"]

KEYS = 100_000
OPERATIONS = 50
_DEADLINE_S = 60.0


def run(options: Options) -> Result:
    """Pull and push over the wire, and without it."""
    rows = 1_000_000 if options.quick else 10_000_000
    result = Result(
        name="ps-pull-push",
        options=options,
        conditions={
            "rows": rows,
            "keys": KEYS,
            "operations": OPERATIONS,
            "repetitions": options.repetitions,
            **machine(),
        },
        goals=(Goal(what="pull_Mkeys_per_s", least=28), Goal(what="push_Mkeys_per_s", least=20)),
    )
    generator = np.random.default_rng(0)
    everything = np.unique(generator.integers(1, 1 << 63, rows, dtype=np.uint64) * np.uint64(2))
    some = [np.sort(generator.choice(everything, KEYS, replace=False)) for _ in range(8)]
    gradients = generator.normal(size=(KEYS, 1)).astype(np.float32)
    local = Table(ps.FTRL(alpha=0.1), slots=2 * rows)
    _fill(everything, lambda keys, ones: local.push(keys, ones))
    with _server() as client:
        _fill(everything, lambda keys, ones: client.wait(client.push("weights", keys, ones), _DEADLINE_S))

        def pull(keys: Any) -> object:
            return client.wait(client.pull("weights", keys), _DEADLINE_S)

        def push(keys: Any) -> object:
            return client.wait(client.push("weights", keys, gradients), _DEADLINE_S)

        contenders: dict[str, Callable[[], dict[str, float]]] = {
            "pull": partial(_measure, pull, some, lambda: client.wire_s),
            "push": partial(_measure, push, some, lambda: client.wire_s),
            "pull, no wire": partial(_measure, local.pull, some, lambda: 0.0),
            "push, no wire": partial(_measure, lambda keys: local.push(keys, gradients), some, lambda: 0.0),
        }
        found = in_turn(contenders, options.repetitions)
    lines = []
    for name, figures in found.items():
        rate = figures["Mkeys_per_s"]
        wire = f"{figures['wire'].median:.0%}" if "no wire" not in name else ""
        lines.append((name, f"{rate.median:.1f}", f"{rate.least:.1f} to {rate.most:.1f}", wire))
        plain = name.replace(", ", "_").replace(" ", "_")
        result.figures[f"{plain}_Mkeys_per_s"] = rate.median
        if wire:
            result.figures[f"{plain}_wire_share"] = figures["wire"].median
            result.ratios[f"{plain}_of_no_wire"] = rate.median / found[f"{name}, no wire"]["Mkeys_per_s"].median
    result.text.append(table(("", "M keys/s", "from, to", "client's time on the wire"), lines))
    note("the client's time on the wire is that in its calls that send and receive; the server's comes on top")
    return result


def _measure(operation: Callable[[Any], object], some: list[Any], wire_s: Callable[[], float]) -> dict[str, float]:
    before_s, began = wire_s(), time.perf_counter()
    for number in range(OPERATIONS):
        operation(some[number % len(some)])
    seconds = time.perf_counter() - began
    return {"Mkeys_per_s": OPERATIONS * KEYS / seconds / 1e6, "wire": (wire_s() - before_s) / seconds}


def _fill(keys: Any, push: Callable[[Any, Any], object]) -> None:
    for begin in range(0, len(keys), 500_000):
        part = keys[begin : begin + 500_000]
        push(part, np.ones((len(part), 1), np.float32))


@contextlib.contextmanager
def _server() -> Iterator[TableClient]:
    """A cluster of one server and no worker."""
    model = ps.Linear(features(), optimizer=ps.FTRL(alpha=0.1))
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        prepare(
            model, Clicks(10_000).parquet, strategy=ParameterServer(servers=1), output=folder, gather_s=3600.0
        ) as prepared,
        LocalProcesses().start(prepared.run, workers=0) as cluster,
    ):
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                client = TableClient(cluster.access, cluster.address)
                break
            except PenstockError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        with client:
            yield client
        cluster.close(kill=True)
