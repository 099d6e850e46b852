"""Logistic regression in one pass over a click log, beside Vowpal Wabbit on the same rows.

Time is from opening the file to the model in memory, kernels compiled, files in the page cache. Both learn by
FTRL-Proximal, each with the best of one grid of learning rates, and are compared by progressive log loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import penstock as ps
from benchmarks import vw
from benchmarks.clicklog import Clicks, features
from benchmarks.harness import Goal, Options, Result, Spread, in_turn, machine, missing, note, table
from penstock.data import BATCH_ROWS, Source
from penstock.features import Encoder
from penstock.metrics import BinaryMetrics

__all__ = ["GRID", "Setting", "compare", "ours", "run"]

Setting = tuple[float, float]
"""FTRL's alpha and beta."""
GRID: list[Setting] = [(alpha, beta) for alpha in (0.005, 0.02, 0.05, 0.1, 0.2, 0.5) for beta in (0.1, 1.0)]
_NO_PEER: Setting = (0.1, 1.0)
_LOGLOSS_TOLERANCE = 0.001


def run(options: Options) -> Result:
    """Ours from Parquet; VW from text and from its cache."""
    clicks = Clicks(options.rows)
    files = clicks.parquet
    result = Result(
        name="online",
        options=options,
        conditions={"rows": clicks.rows, "repetitions": options.repetitions, **machine(vw.PACKAGE)},
        goals=(
            Goal(what="vw_text", least=4),
            Goal(what="vw_cache", least=3.5),
            Goal(what="logloss_above_vw", most=_LOGLOSS_TOLERANCE),
        ),
    )
    compare(result, clicks, options, lambda: ps.open_source(files), from_cache=True)
    result.figures |= _stages(result, ps.open_source(files), options.repetitions)
    return result


def ours(
    opened: Callable[[], Source], setting: Setting, *, threads: int = 1, readers: int | None = None
) -> dict[str, float]:
    """One pass of ours."""
    began = time.perf_counter()
    model = ps.Linear(features(), optimizer=ps.FTRL(alpha=setting[0], beta=setting[1]))
    run = ps.fit(model, opened(), strategy=ps.Online(threads=threads), readers=readers, progress=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows_per_s": run.rows / seconds, "logloss": run.metrics.logloss}


def compare(
    result: Result, clicks: Clicks, options: Options, opened: Callable[[], Source], *, from_cache: bool
) -> None:
    """Measure ours and VW in turn, and write figures, ratios and a table into ``result``."""
    no_peer = missing(vw.PACKAGE)
    our_best, vw_best = _NO_PEER, _NO_PEER
    contenders: dict[str, Callable[[], dict[str, float]]] = {
        "penstock": lambda: ours(opened, our_best),
        "penstock, 2 threads": lambda: ours(opened, our_best, threads=2),
    }
    if no_peer is None:
        text, rows = clicks.vw, clicks.rows
        cache = vw.cache_of(text, rows)
        our_losses = _grid("penstock", lambda s: ours(opened, s))
        vw_losses = _grid("vw", lambda s: vw.learn(rows=rows, alpha=s[0], beta=s[1], cache=cache))
        our_best, vw_best = min(our_losses, key=our_losses.__getitem__), min(vw_losses, key=vw_losses.__getitem__)
        result.conditions |= {"alpha, beta": our_best, "vw alpha, beta": vw_best}
        result.text.append(_grid_table(our_losses, vw_losses))
        at: dict[str, Any] = {"rows": rows, "alpha": vw_best[0], "beta": vw_best[1]}
        contenders["vw text"] = lambda: vw.learn(text=text, **at)
        if from_cache:
            contenders["vw cache"] = lambda: vw.learn(cache=cache, **at)
            contenders["vw cache, huge pages"] = lambda: vw.learn(cache=cache, environment=vw.HUGE_PAGES, **at)
    else:
        result.conditions["missing"] = no_peer
        result.text.append(no_peer)
    found = in_turn(contenders, options.repetitions)
    result.text.append(_table(found))
    for name, figures in found.items():
        result.figures[f"{_plain(name)}_rows_per_s"] = figures["rows_per_s"].median
        result.figures[f"{_plain(name)}_logloss"] = figures["logloss"].median
        if name.startswith("vw"):
            result.ratios[_plain(name)] = found["penstock"]["rows_per_s"].median / figures["rows_per_s"].median
    if no_peer is None:
        result.figures["logloss_above_vw"] = (
            found["penstock"]["logloss"].median - found["vw text"]["logloss"].median
        )


def _grid(name: str, learn: Callable[[Setting], dict[str, float]]) -> dict[Setting, float]:
    losses = {}
    for setting in GRID:
        losses[setting] = learn(setting)["logloss"]
        note(f"grid     {name:24} alpha {setting[0]:g}  beta {setting[1]:g}  logloss {losses[setting]:.5f}")
    return losses


def _grid_table(our: dict[Setting, float], peer: dict[Setting, float]) -> str:
    rows = [(f"alpha {a:g}, beta {b:g}", f"{our[a, b]:.5f}", f"{peer[a, b]:.5f}") for a, b in GRID]
    return table(("progressive log loss", "penstock", "vw"), rows)


def _table(found: dict[str, dict[str, Spread]]) -> str:
    ours_rate = found["penstock"]["rows_per_s"].median
    rows = []
    for name, figures in found.items():
        seconds, rate = figures["seconds"], figures["rows_per_s"].median
        rows.append(
            (
                name,
                f"{rate:,.0f}",
                f"{seconds.median:.2f}",
                f"{seconds.least:.2f} to {seconds.most:.2f}",
                f"{figures['logloss'].median:.5f}",
                f"{ours_rate / rate:.2f}",
            )
        )
    return table(("", "rows/s", "seconds", "from, to", "log loss", "penstock is x times"), rows)


def _stages(result: Result, source: Source, repetitions: int) -> dict[str, float]:
    """Time of each stage of ours in one thread, batch by batch, in microseconds a row."""
    runs = [_stage_seconds(source) for _ in range(repetitions + 1)][1:]
    stages = {name: Spread.of([run[name] for run in runs]).median for name in runs[0]}
    whole, rows = sum(stages.values()), source.size or 1
    lines = [(name, f"{s / rows * 1e6:.3f}", f"{s / whole:.0%}") for name, s in stages.items()]
    lines.append(("all", f"{whole / rows * 1e6:.3f}", "100%"))
    result.text.append(table(("stage, in one thread", "us/row", "share"), lines))
    return {f"{_plain(name)}_us_per_row": seconds / rows * 1e6 for name, seconds in stages.items()}


def _stage_seconds(source: Source) -> dict[str, float]:
    spent = dict.fromkeys(("sample", "read", "hash", "learn", "metrics"), 0.0)
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[stage] += now - last
        last = now

    model = ps.Linear(features(), optimizer=ps.FTRL(alpha=_NO_PEER[0], beta=_NO_PEER[1]))
    plan = model.resolve(source.sample(16_384))
    encoder, metrics = Encoder(plan), BinaryMetrics()
    lap("sample")
    for chunk in source.chunks():
        batches = chunk.batches(encoder.columns, BATCH_ROWS)
        while (records := next(batches, None)) is not None:
            lap("read")
            batch = encoder.encode(records)
            lap("hash")
            out = np.empty(len(batch), np.float32)
            model.learn(batch, out)
            lap("learn")
            metrics.update(out, batch.labels, batch.weights)
            lap("metrics")
        lap("read")
    return spent


def _plain(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")
