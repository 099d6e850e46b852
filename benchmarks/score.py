"""An exported model in NumPy alone: rows of 39 columns from memory, one a call and many a call, on one thread."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import penstock as ps
from benchmarks.harness import Goal, Options, Result, in_turn, machine, table
from benchmarks.serving import model_folder, table_of
from penstock.export import write_npz
from penstock.features import FeaturePlan
from penstock.score import Scorer
from penstock.serve.versions.load import load_scorer

__all__ = ["run"]

_MANY = 10_000


def run(options: Options) -> Result:
    """Beside the scorer of a server, which has kernels, and takes the same rows."""
    model_rows = 200_000 if options.quick else 10_000_000
    calls = 500 if options.quick else 5_000
    folder = model_folder(model_rows)
    data = pq.read_table(table_of(1_000_000)).slice(0, _MANY).drop_columns(["clicked", "time"])
    rows = data.to_pylist()
    model = ps.load(str(folder))
    assert isinstance(model.plan, FeaturePlan)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.npz"
        write_npz(model, file)
        began = time.perf_counter()
        alone = Scorer.load(file)
        load_s = time.perf_counter() - began
    if not np.array_equal(alone.predict(rows), model.predict(data)):
        raise RuntimeError("scores are not those of predict")
    served = load_scorer(folder)

    def one(score: Callable[[Sequence[Any]], Any]) -> dict[str, float]:
        began = time.perf_counter()
        for row in rows[:calls]:
            score([row])
        return {"rows_per_s": calls / (time.perf_counter() - began)}

    def many(score: Callable[[Sequence[Any]], Any]) -> dict[str, float]:
        began = time.perf_counter()
        score(rows)
        return {"rows_per_s": _MANY / (time.perf_counter() - began)}

    found = in_turn(
        {
            "NumPy alone, a row a call": lambda: one(alone.predict),
            "a server's scorer, a row a call": lambda: one(served.score),
            f"NumPy alone, {_MANY:,} rows a call": lambda: many(alone.predict),
            f"a server's scorer, {_MANY:,} rows a call": lambda: many(served.score),
        },
        options.repetitions,
    )
    result = Result(
        name="score",
        options=options,
        conditions={"model_rows": model_rows, "calls": calls, "repetitions": options.repetitions, **machine()},
        goals=(Goal(what="one_rows_per_s", least=3_000), Goal(what="many_rows_per_s", least=30_000)),
    )
    names = [*found]
    for figure, name in zip(("one", "served_one", "many", "served_many"), names, strict=True):
        result.figures[f"{figure}_rows_per_s"] = found[name]["rows_per_s"].median
    result.figures["load_s"] = load_s
    result.text.append(
        table(("", "rows/s"), [(name, f"{f['rows_per_s'].median:,.0f}") for name, f in found.items()])
    )
    return result
