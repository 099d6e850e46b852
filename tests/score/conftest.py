"""A model with every kind of column, exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import penstock as ps
from penstock.export import write_npz
from penstock.score import Scorer
from tests.serve.conftest import rows_of_all_kinds


@dataclass(frozen=True)
class Exported:
    model: ps.Linear
    table: pa.Table
    file: Path
    scorer: Scorer


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as a program has them: maps are dicts."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        if row.get("words") is not None:
            row["words"] = dict(row["words"])
    return rows


def trained(table: pa.Table, **options: Any) -> ps.Linear:
    features = ps.Features(
        label="clicked",
        numeric=["price", "width", ps.Numeric(name="seen", how="log")],
        categorical=["site", "user", "mobile", "tags", "words"],
        crosses=[("site", "mobile"), ("user", "mobile", "site")],
    )
    model = ps.Linear(features, optimizer=ps.FTRL(**options))
    ps.fit(model, table, progress=False)
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    table = rows_of_all_kinds(2000)
    # Some weights are exactly 0.
    model = trained(table, l1=0.3)
    file = tmp_path_factory.mktemp("exported") / "model.npz"
    write_npz(model, file, manifest={"version": 41})
    return Exported(model, table, file, Scorer.load(file))
