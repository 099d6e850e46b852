"""What the tests of tree aggregate share: columns of the small click log, and models compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import penstock as ps


@pytest.fixture(scope="session")
def new_model() -> Callable[..., ps.Linear]:
    def make(optimizer: ps.Optimizer | None = None, **more: Any) -> ps.Linear:
        features = ps.Features(
            label="clicked",
            numeric=["n1", "n2", "n3"],
            categorical=[f"c{i}" for i in range(1, 6)],
            time="time",
            **more,
        )
        return ps.Linear(features, optimizer=optimizer)

    return make


@pytest.fixture(scope="session")
def rows_of() -> Callable[[ps.Linear], tuple[np.ndarray, np.ndarray]]:
    """Keys and words of all rows, by rising key."""

    def rows(model: ps.Linear) -> tuple[np.ndarray, np.ndarray]:
        parts = [model.table.items(segment) for segment in range(model.table.segments)]
        return np.concatenate([k for k, _ in parts]), np.concatenate([w for _, w in parts])

    return rows


@pytest.fixture(scope="session")
def assert_same_model(rows_of: Any) -> Callable[[ps.Linear, ps.Linear], None]:
    def same(a: ps.Linear, b: ps.Linear) -> None:
        for left, right in zip(rows_of(a), rows_of(b), strict=True):
            assert left.tobytes() == right.tobytes()

    return same
