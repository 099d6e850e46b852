"""Models with every kind of column, and the rows that they were made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import penstock as ps
from penstock.serve.scorer import Scorer
from penstock.serve.versions.load import load_scorer


def rows_of_all_kinds(rows: int, seed: int = 0) -> pa.Table:
    """A label, and columns of each kind that a plan can have; a tenth of the values is missing."""
    draw = np.random.default_rng(seed)

    def some_missing(values: list[object]) -> list[object]:
        return [None if missing else value for value, missing in zip(values, draw.random(rows) < 0.1, strict=True)]

    tags = [[f"t{n}" for n in draw.integers(0, 5, draw.integers(0, 4))] for _ in range(rows)]
    words = [[(f"w{n}", float(draw.normal())) for n in range(draw.integers(0, 3))] for _ in range(rows)]
    sites = draw.integers(0, 9, rows)
    return pa.table(
        {
            "clicked": pa.array((draw.random(rows) < 0.1 + 0.08 * sites).astype(np.int8)),
            "site": pa.array(some_missing([f"site-{n}" for n in sites])),
            "user": pa.array(some_missing(draw.integers(0, 50, rows).tolist()), pa.int64()),
            "mobile": pa.array(some_missing((draw.random(rows) < 0.5).tolist())),
            "price": pa.array(some_missing(draw.normal(3, 2, rows).tolist())),
            "width": pa.array(some_missing(draw.random(rows).astype(np.float32).tolist()), pa.float32()),
            "seen": pa.array(some_missing(draw.integers(0, 1000, rows).tolist()), pa.int32()),
            "tags": pa.array(some_missing(tags), pa.list_(pa.string())),
            "words": pa.array(some_missing(words), pa.map_(pa.string(), pa.float64())),
        }
    )


@dataclass(frozen=True)
class Served:
    folder: Path
    model: ps.Linear
    table: pa.Table
    scorer: Scorer


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A trained model, in a folder and loaded from it."""
    table = rows_of_all_kinds(2000)
    features = ps.Features(
        label="clicked",
        numeric=["price", "width", ps.Numeric(name="seen", how="log")],
        categorical=["site", "user", "mobile", "tags", "words"],
        crosses=[("site", "mobile")],
    )
    model = ps.Linear(features)
    ps.fit(model, table, progress=False)
    folder = tmp_path_factory.mktemp("served") / "ctr"
    model.save(folder)
    yield Served(folder, model, table, load_scorer(folder))
