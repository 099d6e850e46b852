"""A small click log, made once: one file of 20,000 rows, in row groups of 4,096."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.data.clicks import ClickLog, write_clicks


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clicks") / "log"
    spec = ClickLog(rows=20_000, numeric=3, categorical=5, distinct=20_000, row_group_rows=4096, events_per_s=1)
    write_clicks(spec, folder)
    return folder / "clicks-00000.parquet"
