"""What a slow worker costs under each consistency: 4 workers, steps of 20 ms, the slow one's of 80 (waiting).

The most that is possible is 3.25/4 of the even cluster's rows/s: the slow worker counts for a quarter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import penstock as ps
from benchmarks.clicklog import Clicks
from benchmarks.cluster import train
from benchmarks.harness import Goal, Options, Result, in_turn, machine, table
from penstock.engine.spec import Slowness

__all__ = ["run"]

STEP_S, SLOW_S = 0.02, 0.08
POSSIBLE = 3.25 / 4
MINIBATCH = 1024
_SHOWN = ("rows_per_s", "logloss", "staleness_mean", "busy")


def run(options: Options) -> Result:
    """An even cluster, and one with a straggler under ASP, SSP(8) and BSP."""
    clicks = Clicks(options.rows)
    files = clicks.parquet
    repetitions = min(options.repetitions, 3)
    even = {"*": Slowness(step_s=STEP_S)}
    slow = {**even, "worker-3": Slowness(step_s=SLOW_S)}
    result = Result(
        name="ps-straggler",
        options=options,
        conditions={
            "rows": clicks.rows,
            "workers": 4,
            "servers": 1,
            "minibatch": MINIBATCH,
            "step_s": STEP_S,
            "slow_step_s": SLOW_S,
            "repetitions": repetitions,
            **machine(),
        },
        goals=(Goal(what="asp_of_possible", least=0.95), Goal(what="ssp:8_of_possible", least=0.95)),
    )
    contenders: dict[str, Callable[[], Any]] = {
        "even, asp": partial(_train, files, ps.ASP(), even),
        "asp": partial(_train, files, ps.ASP(), slow),
        "ssp:8": partial(_train, files, ps.SSP(8), slow),
        "bsp": partial(_train, files, ps.BSP(), slow),
    }
    found = in_turn(contenders, repetitions, warm_up=False)
    possible = POSSIBLE * found["even, asp"]["rows_per_s"].median
    rows = []
    for name, figures in found.items():
        share = figures["rows_per_s"].median / possible
        rows.append(
            (
                name,
                f"{figures['rows_per_s'].median:,.0f}",
                f"{share:.1%}" if name != "even, asp" else "",
                f"{figures['busy'].median:.0%}",
                f"{figures['staleness_mean'].median:.2f}",
                f"{figures['logloss'].median:.5f}",
            )
        )
        for figure in figures:
            result.figures[f"{name.replace(', ', '_')}_{figure}"] = figures[figure].median
        if name != "even, asp":
            result.ratios[f"{name}_of_possible"] = share
    result.text.append(table(("", "rows/s", "of the possible", "busy", "staleness", "log loss"), rows))
    return result


def _train(files: list[str], consistency: Any, slow: dict[str, Slowness]) -> dict[str, float]:
    figures = train(
        files, servers=1, workers=4, consistency=consistency, minibatch=MINIBATCH, depth=2, window=2, slow=slow
    )
    return {name: figures[name] for name in _SHOWN}
