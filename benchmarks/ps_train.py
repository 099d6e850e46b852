"""The `online` workload on a parameter server of local processes, beside one process and beside TensorFlow.

2 servers, 2 workers, ASP, all on this machine's cores. TensorFlow's ParameterServerStrategy (1 server, 1 worker)
is fed with ids that were hashed before; ours reads Parquet and hashes. The peer is run at its best setting within
the bound on log loss, and at batches of 512 with one step a call, as its tutorials do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import tensorflow_ps
from benchmarks.clicklog import Clicks
from benchmarks.cluster import online, train
from benchmarks.harness import Goal, Options, Result, in_turn, machine, note, table
from benchmarks.hashed import hashed

__all__ = ["run"]

MINIBATCH = 2048
CURVE = (256, 512, 1024, 2048, 4096)
LOGLOSS_MOST = 1.01
_SHOWN = ("rows_per_s", "logloss", "staleness_mean", "cpu_us_per_row", "bytes_per_row")


def run(options: Options) -> Result:
    """Ours at several batch sizes, `online`, and TensorFlow where it is installed."""
    clicks = Clicks(options.rows)
    files = clicks.parquet
    repetitions = min(options.repetitions, 3)
    result = Result(
        name="ps-train",
        options=options,
        conditions={
            "rows": clicks.rows,
            "servers": 2,
            "workers": 2,
            "consistency": "asp",
            "minibatch": MINIBATCH,
            "repetitions": repetitions,
            **machine(),
        },
        goals=(
            Goal(what="online", least=0.35),
            Goal(what="logloss_over_online", most=LOGLOSS_MOST),
            Goal(what="tensorflow_best", least=4),
            Goal(what="tensorflow_512_step_a_call", least=4),
        ),
    )
    contenders: dict[str, Callable[[], Any]] = {"online": partial(online, files)}
    for size in CURVE:
        contenders[f"penstock, batch {size:,}"] = partial(_ours, files, size)
    contenders["penstock, batch 1,024, window 2"] = partial(_ours, files, 1024, window=2)
    peers = {
        "tensorflow, batch 4,096, 16 steps a call": {"batch": 4096, "steps": 16},
        "tensorflow, batch 512, 16 steps a call": {"batch": 512, "steps": 16},
        "tensorflow, batch 512, a step a call": {"batch": 512, "steps": 1},
    }
    ids = hashed(clicks, bits=22)
    peer = tensorflow_ps.run_peer(ids.ids, ids.labels, values=ids.values, batch=4096, slots=1 << 22)
    if peer is None:
        result.conditions["missing"] = tensorflow_ps.MISSING
        result.text.append(tensorflow_ps.MISSING)
    else:
        result.conditions["versions"]["tensorflow"] = peer["tensorflow"]
        for name, setting in peers.items():
            contenders[name] = partial(_tensorflow, ids, setting)
    found = in_turn(contenders, repetitions)
    rows = []
    for name, figures in found.items():
        cells = [f"{figures[f].median:,.4g}" if f in figures else "" for f in _SHOWN[1:]]
        rows.append((name, f"{figures['rows_per_s'].median:,.0f}", *cells))
        for figure in figures:
            result.figures[f"{_plain(name)}_{figure}"] = figures[figure].median
    result.text.append(table(("", "rows/s", "log loss", "staleness", "CPU us/row", "bytes/row"), rows))

    def rate(name: str) -> float:
        return found[name]["rows_per_s"].median

    ours = f"penstock, batch {MINIBATCH:,}"
    result.ratios["online"] = rate(ours) / rate("online")
    result.ratios["logloss_over_online"] = found[ours]["logloss"].median / found["online"]["logloss"].median
    if peer is not None:
        best, naive = "tensorflow, batch 4,096, 16 steps a call", "tensorflow, batch 512, a step a call"
        result.ratios["tensorflow_best"] = rate(ours) / rate(best)
        result.ratios["tensorflow_512_step_a_call"] = rate("penstock, batch 512") / rate(naive)
        result.ratios["tensorflow_512"] = rate("penstock, batch 512") / rate(list(peers)[1])
    note("rates are of training alone: processes are started and kernels loaded before")
    return result


def _ours(files: list[str], minibatch: int, *, window: int = 1) -> dict[str, float]:
    figures = train(files, minibatch=minibatch, window=window)
    return {name: figures[name] for name in _SHOWN}


def _tensorflow(ids: Any, setting: dict[str, int]) -> dict[str, float]:
    found = tensorflow_ps.run_peer(ids.ids, ids.labels, values=ids.values, slots=1 << 22, **setting)
    assert found is not None
    return {
        "rows_per_s": found["rows_per_s"],
        "logloss": found["logloss"],
        "cpu_us_per_row": sum(found["cpu_us_per_row"].values()),
    }


def _plain(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")
